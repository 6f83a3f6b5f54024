# SPDX-License-Identifier: Apache-2.0
"""What hosts hold, in the kernel and in the store, and whether it is the same."""

import sys
import time
from collections import Counter
from contextlib import closing

from slimnet.agent.mirror import Mirror
from slimnet.cluster import keys
from slimnet.encoding import encodings
from slimnet.policy import compile as compile_tables
from slimnet_ebpf import contract
from slimnet_ebpf.maps import Map
from slimnet_ebpf.pins import Pins
from slimnet_ebpf.writer import MAPS

PATIENCE = 120


def until(holds, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def agree(machines, *hosts):
    """Until each host's tables in force are what the store says, record by record: and then no
    address is two endpoints', none is kept for nobody, and no host is in trouble."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with machines.opened() as store:
            mirror = Mirror(store)
            mirror.catch_up()
            held = store.list("")[0]
        wrong = {host.name: wrong_tables(mirror, host) for host in hosts}
        if not any(wrong.values()):
            break
        assert time.monotonic() < deadline, wrong
        time.sleep(0.2)
    endpoints = mirror.endpoints()
    for each in ("id", "address"):
        (_, most), *_ = Counter(getattr(one, each) for one in endpoints).most_common(1)
        assert most == 1, each
    places = {keys.ADDRESS.at(each.network, each.address) for each in endpoints}
    assert places == {key for key in held if key.startswith(keys.ADDRESS.below())}
    for host in hosts:
        until(lambda host=host: trouble(host) == [])


def trouble(host):
    with host.node() as node:
        return node.status()["trouble"]


def wrong_tables(mirror, host):
    """The names of its tables that are not what they should be; or that it is not there."""
    own = {each.name: each for each in mirror.hosts()}.get(host.name)
    if own is None:
        return [f"{host.name} is lost"]
    with host.node() as node:
        indexes = node.status()["detail"]["indexes"]
    tables = compile_tables(mirror.state(own), host.name)
    wrong = []
    for kind in encodings({int(key): value for key, value in indexes.items()}, judges=True):
        wanted = {kind.key(key): kind.value(key, one) for key, one in kind.of(tables).items()}
        if wanted != in_force(host, MAPS[kind.table]):
            wrong.append(kind.table)
    return wrong


def in_force(host, number):
    """A table in the kernel, as its bytes."""
    pins = Pins(host.instance)
    with closing(pins.open_map(contract.MAPS[contract.SLIM_MAP_ACTIVE])) as active:
        slot = int.from_bytes(active.get(bytes(4)), sys.byteorder) & 1
    with closing(pins.open_map(contract.MAPS[number])) as outer, closing(outer.inner(slot)) as one:
        assert isinstance(one, Map)
        return dict(one.items())
