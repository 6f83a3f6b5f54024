# SPDX-License-Identifier: Apache-2.0
"""States that no store would hold: refused with one of the documented errors, or compiled;
and whatever came before, the same.

``SLIMNET_FUZZ=20000`` makes the long run.
"""

import os
from functools import partial

import pytest
import worlds
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netaddr import IPAddress
from test_services import endpoint, limit, published, service, state

from slimnet import contract
from slimnet.exceptions import InvalidValue, NotFound
from slimnet.model import Network
from slimnet.policy import Compiler, check, explain
from slimnet.policy import compile as compile_tables

EXAMPLES = int(os.environ.get("SLIMNET_FUZZ", "150"))
DOCUMENTED = (InvalidValue, NotFound)
ADDRESSES = (
    *worlds.ADDRESSES,
    *worlds.VIRTUAL,
    "192.0.2.1",
    "::",
    "::ffff:10.1.0.1",
    "2001:db8::1",
)
NUMBERS = (0, 1, 2, 255, 256, 2**24 - 1, 2**24, contract.SLIM_ADDRESS_SERVICE, 2**32 - 1)

_addresses = st.sampled_from(ADDRESSES).map(IPAddress)
_numbers = st.integers(0, 9) | st.sampled_from(NUMBERS)
_names = st.sampled_from(("e1", "e2", "d0", "n1", "n2", "n3", "x", "h1", "h9"))
_broken = {
    "endpoints": {
        "id": _numbers,
        "identity": _numbers,
        "address": _addresses,
        "name": _names,
        "namespace": _names,
        "network": _names,
        "host": _names,
        "labels": worlds._labels,
        "ports": st.dictionaries(_names, st.tuples(_names, _numbers), max_size=2),
    },
    "hosts": {"address": _addresses, "name": _names},
    "networks": {
        "name": _names,
        "vni": st.integers(1, 3),
        "cidrs": st.sampled_from(("10.1.0.0/16", "0.0.0.0/0", "::/0", "192.0.2.1/32")),
    },
    "services": {
        "name": _names,
        "network": _names,
        "address": _addresses,
        "ports": st.lists(worlds._ports, max_size=2).map(tuple),
    },
    "published": {"name": _names, "endpoint": _names, "address": st.none() | _addresses},
    "limits": {"name": _names, "network": _names},
    "policies": {"name": _names},
}


@st.composite
def broken(draw, state):
    """The state with up to three values that belong elsewhere, or things there twice."""
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(sorted(_broken)))
        items = list(getattr(state, kind))
        if not items:
            continue
        number = draw(st.integers(0, len(items) - 1))
        field = draw(st.sampled_from(sorted(_broken[kind])))
        item = items[number]
        if draw(st.integers(0, 3)):
            item = evolve(item, **{field: draw(_broken[kind][field])})
        if draw(st.booleans()):
            items[number] = item
        else:
            items.append(item)
        state = evolve(state, **{kind: items})
    return state


def tried(what, *arguments):
    """The result, or the kind of the documented error."""
    try:
        return what(*arguments)
    except DOCUMENTED as error:
        assert str(error)
        return type(error)


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_only_documented_errors(data):
    """Of a compiler that goes on after an error, of the warnings, and of explain."""
    compiler = Compiler("h1")
    for world in (data.draw(worlds.worlds()), data.draw(worlds.worlds())):
        documents = {
            "published": worlds.many(data.draw, worlds._published, 2),
            "limits": worlds.many(data.draw, worlds._limits, 2),
        }
        whole = evolve(world.state, **documents)
        for each in (whole, data.draw(broken(whole)), whole):
            found = tried(lambda each=each: compiler.update(each)[0])
            assert found == tried(compile_tables, each, "h1")
            tried(check, each)
            tried(
                partial(
                    explain,
                    each,
                    network="n1",
                    source=data.draw(_addresses),
                    destination=data.draw(_addresses | _names),
                    port=80,
                )
            )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"endpoints": [endpoint(1), endpoint(1)]}, "endpoints: wanted each once"),
        ({"endpoints": [endpoint(1), evolve(endpoint(1), id=2)]}, "web-1.address: wanted one that"),
        (
            {"endpoints": [endpoint(1), evolve(endpoint(1), id=2, address="10.1.0.2")]},
            "endpoints.default.shop.web-1.name: wanted one that no other has",
        ),
        ({"endpoints": [evolve(endpoint(1), identity=1)]}, "web-1.identity: wanted a number"),
        ({"services": [service(), service()]}, "services: wanted each once"),
        ({"published": [published("a"), published("a")]}, "published ports: wanted each once"),
        ({"limits": [limit("a"), limit("a")]}, "limits: wanted each once"),
        (
            {"networks": [Network(name, 1, "10.1.0.0/16") for name in ("default", "other")]},
            "vni of networks: wanted each once",
        ),
    ],
)
def test_what_only_one_may_have(change, field):
    """Refused by the field's name; the next state starts from nothing."""
    compiler = Compiler("h1")
    compiler.update(state())
    with pytest.raises(InvalidValue, match=field):
        compiler.update(evolve(state(), **change))
    assert compiler.update(state())[0] == compile_tables(state(), "h1")
