# SPDX-License-Identifier: Apache-2.0
"""What programs in an endpoint see of the network: the table of the README."""

from __future__ import annotations

import pytest
from lab import Can

CONNECTS = ": < /dev/tcp/127.0.0.1/8080"


def listeners(endpoint):
    """The local addresses and ports that ``ss`` shows, to be compared as a set."""
    return {line.split()[3] for line in endpoint.run(["ss", "-Hltn"]).splitlines()}


def addresses(endpoint):
    """Those of the interfaces that ``ip`` shows."""
    shown = endpoint.run(["ip", "-o", "-4", "address"])
    return {line.split()[3].partition("/")[0] for line in shown.splitlines()}


@pytest.mark.needs(Can.OWN_DEVICES)
def test_it_sees_its_own(lab):
    """Listeners by the port that it chose, and its address at an interface."""
    web, other = lab.endpoint(0), lab.endpoint(0)
    other.serve(9090)
    web.serve(8080)
    assert listeners(web) == {"0.0.0.0:8080"}
    assert web.address in addresses(web)


@pytest.mark.lacks(Can.OWN_DEVICES)
def test_it_sees_the_hosts(lab):
    """All listeners, its own by no port that it knows; interfaces without its address."""
    web, other = lab.endpoint(0), lab.endpoint(0)
    before = listeners(web)
    web.serve(8080)
    own = listeners(web) - before
    assert own
    assert not [each for each in own if each.endswith(":8080")]
    other.serve(9090)
    assert len(listeners(web)) > len(before | own)
    assert listeners(web) == listeners(other)
    assert web.address not in addresses(web)
    assert web.host.address in addresses(web)


@pytest.mark.container
def test_a_server_is_waited_for_by_connecting(lab):
    """Refused before, made when it listens: in every placement as in a plain container."""
    web = lab.endpoint(0)
    with pytest.raises(RuntimeError, match="Connection refused"):
        web.run(["bash", "-c", CONNECTS])
    web.serve(8080)
    web.run(["bash", "-c", CONNECTS])
