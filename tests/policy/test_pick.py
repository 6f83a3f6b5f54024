# SPDX-License-Identifier: Apache-2.0
"""slim_service_pick() from the header as it is: shares, and who stays where.

The checks are plain functions of the library: the mutations of service.h run them too.
"""

import random
from collections import Counter
from math import sqrt

import pytest
from attrs import evolve
from decide import Decider
from test_services import endpoint, of, record, service, state

from slimnet import contract
from slimnet.policy import compile as compile_tables
from slimnet.policy.document import Weight
from slimnet.policy.explain.decision import pick
from slimnet.tables import ServiceRecord

TIMEOUT = 60
CLIENTS = range(1, 401)


def serving(*numbers, **changes):
    """The record of a service that these endpoints serve."""
    fields = {"affinity": TIMEOUT, **changes}
    return record(state([endpoint(number) for number in numbers], services=[service(**fields)]))


def homes(library, found):
    """Where each client goes that was never seen before."""
    decider = Decider(library, compile_tables(state(), "h1"))
    try:
        return {client: decider.pick(found, client)[0] for client in CLIENTS}
    finally:
        decider.close()


class Visits:
    """Connects of all clients, one after the other, to services as they change."""

    def __init__(self, library):
        self._decider = Decider(library, compile_tables(state(), "h1"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._decider.close()

    def __call__(self, found, now, clients=CLIENTS):
        self._decider.change(found)
        return {client: self._decider.pick(found, client, now)[0] for client in clients}


def shares_follow_weights(library, found):
    """Each is served, within five standard deviations of what its slots promise."""
    slots = Counter(identifier for identifier, _ in found.slots)
    numbers = random.Random(1)
    decider = Decider(library, compile_tables(state(), "h1"))
    try:
        many = 20000
        picked = Counter(
            decider.pick(
                found,
                # With affinity it is the client that chooses, without it chance.
                numbers.randrange(2**32) if found.affinity else 7,
                random=0 if found.affinity else numbers.randrange(2**32),
            )[0]
            for _ in range(many)
        )
    finally:
        decider.close()
    assert picked.keys() == slots.keys()
    for identifier, count in slots.items():
        share = count / len(found.slots)
        bound = 5 * sqrt(many * share * (1 - share))
        assert abs(picked[identifier] - many * share) <= bound, (identifier, picked, slots)


def check_shares_by_chance(library):
    """Without affinity each connect is chosen anew."""
    shares_follow_weights(library, serving(1, 2, 3, affinity=0))


def check_shares_by_client(library):
    """With it clients are spread alike, though the table of clients is long full."""
    shares_follow_weights(library, serving(1, 2, 3))


def check_shares_of_weights(library):
    endpoints = [endpoint(1), evolve(endpoint(2, labels={"app": "web", "v": "2"}), identity=301)]
    weighted = service(weights=(Weight(of(v="2"), 20), Weight(of(app="web"), 80)))
    shares_follow_weights(library, record(state(endpoints, services=[weighted])))


def check_every_slot(library):
    """None of the slots is left out, the first and the last neither."""
    slots = tuple((number, 80) for number in range(1, contract.SLIM_SERVICE_SLOTS + 1))
    shares_follow_weights(library, ServiceRecord(1, 0, slots, len(slots)))


def check_clients_come_back(library):
    """From whichever host they come: nothing is remembered there, and it is the same one."""
    found = serving(1, 2, 3)
    assert homes(library, found) == homes(library, found)
    assert set(homes(library, found).values()) == {1, 2, 3}


def check_clients_stay(library):
    """Others join and leave: whoever came within the timeout is not moved, each time anew."""
    few, more = serving(1, 2, 3), serving(*range(1, 9))
    assert homes(library, few) != homes(library, more)
    with Visits(library) as visit:
        first = visit(few, 0)
        assert visit(more, TIMEOUT) == first
        assert visit(more, 2 * TIMEOUT) == first
        assert visit(few, 3 * TIMEOUT) == first


def check_clients_leave_after_the_timeout(library):
    few, more = serving(1, 2, 3), serving(*range(1, 9))
    with Visits(library) as visit:
        first = visit(few, 0)
        late = visit(more, TIMEOUT + 0.001)
        assert late != first
        assert late == homes(library, more)


def check_clients_of_an_endpoint_that_goes(library):
    """They move, all to where they would be without a past; the others do not."""
    all_three, two = serving(1, 2, 3), serving(2, 3)
    with Visits(library) as visit:
        first = visit(all_three, 0)
        after = visit(two, 1)
        assert set(after.values()) == {2, 3}
        assert all(after[client] == was for client, was in first.items() if was != 1)
        assert all(
            after[client] == home
            for client, home in homes(library, two).items()
            if first[client] == 1
        )
        # It comes back: its clients have moved, and stay where they are.
        assert visit(all_three, 2) == after


def check_clock_of_another_processor(library):
    """A connect that read the clock just before another one stored it is none of long ago."""
    few, more = serving(1, 2, 3), serving(*range(1, 9))
    with Visits(library) as visit:
        first = visit(few, 10)
        assert visit(more, 9.999999) == first


def check_services_do_not_share_clients(library):
    """Where a client is with one service says nothing of another with the same endpoints."""
    few = serving(1, 2, 3)
    other = evolve(serving(*range(1, 9)), id=few.id + 1)
    with Visits(library) as visit:
        visit(few, 0)
        assert visit(other, 1) == homes(library, other)


def check_services_spread_clients_apart(library):
    """Two services with the same endpoints do not send every client to the same one."""
    found = serving(1, 2, 3)
    assert homes(library, found) != homes(library, evolve(found, id=found.id + 1))


def check_nobody(library):
    """No endpoint is ready: nobody, with affinity and without."""
    decider = Decider(library, compile_tables(state(), "h1"))
    try:
        for affinity in (0, TIMEOUT):
            assert decider.pick(serving(affinity=affinity), 1) is None
    finally:
        decider.close()


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__[6:])
def test_pick(check, library):
    check(library)


def test_python_keeps_affinity_too():
    """What the memory backend and ``ask`` use: the same promises, with slots of its own."""
    few, more = serving(1, 2, 3), serving(*range(1, 9))
    affinity = {}

    def visit(found, now):
        return {client: pick(found, client, now, 0, affinity)[0] for client in CLIENTS}

    first = visit(few, 0)
    assert set(first.values()) == {1, 2, 3}
    assert visit(more, TIMEOUT) == first
    assert visit(more, 2 * TIMEOUT + 1) != first
    without = evolve(few, affinity=0)
    by_chance = [pick(without, 1, 0, chance, affinity) for chance in range(len(few.slots))]
    assert by_chance == list(few.slots)
