# SPDX-License-Identifier: Apache-2.0
"""Tables: what is in the active slot is what was asked for, whatever the path."""

import random

import pytest
from attrs import evolve
from machine import NETWORK, endpoint
from netaddr import IPAddress, IPNetwork
from pinned import active_slot, pinned

from slimnet.encoding import encodings
from slimnet.model import Direction, Reason, Wire
from slimnet.tables import Change, CidrRecord, EndpointRecord, PolicyKey, PolicyRecord, Tables
from slimnet_ebpf import contract as private
from slimnet_ebpf.writer import MAPS

pytestmark = pytest.mark.root

HOST = IPAddress("192.0.2.1")


def in_force(backend):
    """The bytes of the active slot."""
    active = active_slot(backend)
    tables = {name: pinned(backend, private.MAPS[number]) for name, number in MAPS.items()}
    return {name: dict(table.inner(active).items()) for name, table in tables.items()}


def wanted(tables, indexes=None):
    return {
        kind.table: {
            kind.key(key): kind.value(key, record) for key, record in kind.of(tables).items()
        }
        for kind in encodings(indexes or {})
    }


def some_tables(generation, numbers):
    return Tables(
        generation,
        addresses={(7, IPAddress(f"10.1.0.{n}")): 100 + n for n in numbers},
        endpoints={
            100 + n: EndpointRecord(IPAddress(f"10.1.0.{n}"), HOST, 7, 256 + n, True, Wire.SYN)
            for n in numbers
        },
        cidrs={(7, IPNetwork(f"10.{n}.0.0/16")): CidrRecord(n) for n in numbers},
        policy={
            PolicyKey(256 + n, 0, Direction.INGRESS, 6, n, 16): PolicyRecord(
                bool(n % 2), Reason.RULE_ALLOW, generation % 3
            )
            for n in numbers
        },
    )


def difference(old, new):
    def split(which):
        before, after = getattr(old, which), getattr(new, which)
        changed = {key: value for key, value in after.items() if before.get(key) != value}
        return changed, frozenset(before.keys() - after.keys())

    names = ("addresses", "endpoints", "cidrs", "policy")
    parts = {name: split(name) for name in names}
    return Change(
        old.generation,
        Tables(new.generation, **{name: parts[name][0] for name in names}),
        **{f"gone_{name}": parts[name][1] for name in names},
    )


def test_the_first_tables(machine):
    backend = machine.start()
    assert backend.status().generation == 0
    tables = some_tables(3, range(1, 20))
    backend.install(tables)
    assert backend.status().generation == 3
    assert in_force(backend) == wanted(tables)


def test_any_path_of_changes_ends_in_the_same_tables(machine):
    """Whole, by change, with a change of an unknown base, after adoption."""
    backend = machine.start()
    dice = random.Random(1)
    tables = some_tables(1, range(1, 100))
    backend.install(tables)
    for generation in range(2, 40):
        numbers = [n for n in range(1, 200) if dice.random() < 0.5]
        new = some_tables(generation, numbers)
        change = difference(tables, new)
        match dice.randrange(5):
            case 0:
                change = None
            case 1:
                change = evolve(change, base=generation + 100)
            case 2:
                backend.close()
                backend = machine.start()
        backend.install(new, change)
        assert in_force(backend) == wanted(new)
        tables = new


def test_work_is_in_proportion_to_the_change(machine):
    """With a change, the untouched rest of the tables is not even looked at."""
    backend = machine.start()
    old = some_tables(1, range(1, 100))
    backend.install(old)
    for generation in (2, 3):
        new = evolve(old, generation=generation)
        backend.install(new, difference(old, new))
        old = new
    inactive = pinned(backend, "slim_cidr").inner(1 ^ active_slot(backend))
    for key, _ in list(inactive.items()):
        inactive.delete(key)
    new = evolve(some_tables(4, range(1, 101)), policy=old.policy)
    backend.install(new, difference(old, new))
    cidrs = in_force(backend)["cidrs"]
    assert len(cidrs) == 1


def test_tables_grow_beyond_what_was_made_for_them(machine):
    backend = machine.start()
    policy = {
        PolicyKey(256 + n, 0, Direction.EGRESS): PolicyRecord(True, Reason.RULE_ALLOW, n)
        for n in range(5000)
    }
    small = Tables(1)
    big = Tables(2, policy=policy)
    backend.install(small)
    backend.install(big, difference(small, big))
    assert in_force(backend) == wanted(big)
    bigger = Tables(
        3,
        policy=policy | {PolicyKey(9, 0, Direction.EGRESS): PolicyRecord(True, Reason.RULE_ALLOW)},
    )
    backend.install(bigger, difference(big, bigger))
    assert in_force(backend) == wanted(bigger)


def test_installing_what_is_in_force_changes_nothing(machine):
    backend = machine.start()
    tables = some_tables(1, [1])
    backend.install(tables)
    backend.install(evolve(tables, cidrs={}))
    assert in_force(backend) == wanted(tables)


@pytest.mark.parametrize("attach_first", [True, False])
def test_the_index_is_there_in_either_order(machine, attach_first):
    """An endpoint that is attached before its tables come, or after."""
    backend = machine.start()
    one = endpoint(1)
    tables = some_tables(1, [1, 2])
    if attach_first:
        backend.attach(one, NETWORK)
        backend.install(tables)
    else:
        backend.install(tables)
        backend.attach(one, NETWORK)
    index = backend.status().detail["indexes"][one.id]
    assert in_force(backend) == wanted(tables, {one.id: index})
    backend.detach(one.id)
    assert in_force(backend) == wanted(tables)
    later = evolve(tables, generation=2)
    backend.install(later, difference(tables, later))
    assert in_force(backend) == wanted(later)


def test_an_older_install_by_another_process_is_noticed(machine):
    """What we believe of the slots holds only while nobody else writes them."""
    ours, theirs = machine.start(), machine.start()
    first = some_tables(1, range(1, 50))
    second = some_tables(2, range(20, 80))
    third = some_tables(3, range(40, 90))
    ours.install(first)
    ours.install(second, difference(first, second))
    theirs.install(third, difference(second, third))
    fourth = some_tables(4, range(1, 10))
    ours.install(fourth, difference(third, fourth))
    assert in_force(ours) == wanted(fourth)
