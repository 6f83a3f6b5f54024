# SPDX-License-Identifier: Apache-2.0
"""A running data path of another contract: what the programs of ours can go on with.

A map goes on where its layout is the same in both, by the BTF that the kernel has of the one that
runs; the tables, where the contract that all data paths share is the same. All others begin empty
and are filled as after any start. So a field of a map that goes on never changes its meaning
without changing its name.

What is under way, for a process that is killed in between, and whoever goes on:

======================  =======================================================================
the record's ``own``    0: neither's, so no agent adopts it but one that upgrades it
its ``closing``         there at all: that began; true: connections are to be closed, whatever
                        the maps look like by now
======================  =======================================================================
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from slimnet import contract
from slimnet.linux import netns
from slimnet.linux.sock_diag import LIVE, PRESENT, Diagnosis, Socket
from slimnet_ebpf import contract as private
from slimnet_ebpf.btf import Btf
from slimnet_ebpf.maps import TYPE_ARRAY_OF_MAPS, Map
from slimnet_ebpf.objects import Object, Shape
from slimnet_ebpf.pins import Pins

__all__ = ["Renewal", "close_inside", "compare", "of_cgroups"]

#: Without what these hold, a live connection has no name, no way, or no account of what it takes
#: of the host; and a listener is not found.
_LASTING = frozenset(
    {
        private.MAPS[number]
        for number in (
            private.SLIM_MAP_CGROUP,
            private.SLIM_MAP_LOCAL,
            private.SLIM_MAP_SOCKET,
            private.SLIM_MAP_LISTENER,
            private.SLIM_MAP_FLOW,
            private.SLIM_MAP_BOUND,
            private.SLIM_MAP_HELD,
            private.SLIM_MAP_SHIELD,
            private.SLIM_MAP_PORT,
            private.SLIM_MAP_JOINED,
            private.SLIM_MAP_NAME,
        )
    }
)
#: The same of endpoints with a network namespace of their own; a version without these maps has
#: none of those.
_CARRYING = frozenset(
    private.MAPS[number] for number in (private.SLIM_MAP_DEVICE, private.SLIM_MAP_CARRIED)
)
_ACTIVE = private.MAPS[private.SLIM_MAP_ACTIVE]


@frozen
class Renewal:
    """What becomes of a running data path's maps.

    Attributes:
        kept: those that go on, by name.
        lost: names of those that do not, and that live connections need.
    """

    kept: dict[str, Map]
    lost: tuple[str, ...]


def compare(pins: Pins, loaded: Object) -> Renewal:
    """What of a running data path goes on under the programs of an object that is open."""
    same = pins.record().get("fingerprint") == contract.FINGERPRINT
    shapes = loaded.shapes()
    kept: dict[str, Map] = {}
    types: dict[int, Btf] = {}
    with contextlib.ExitStack() as held:
        for name, shape in shapes.items():
            if not (pins.maps / name).exists():
                continue
            there = pins.open_map(name)
            # The kernel has no BTF of a table; what it holds is the shared contract's.
            table = name == _ACTIVE or there.type == TYPE_ARRAY_OF_MAPS
            if _shape(there, types, held).fits(shape) and (same or not table):
                kept[name] = there
    needed = _LASTING | {name for name in _CARRYING if (pins.maps / name).exists()}
    return Renewal(kept, tuple(sorted(needed & shapes.keys() - kept.keys())))


def _shape(of: Map, types: dict[int, Btf], held: contextlib.ExitStack) -> Shape:
    """What a map in the kernel is; the BTF that was read for it is held."""
    number, key, value = of.btf
    layouts = None
    if number:
        if number not in types:
            types[number] = held.enter_context(contextlib.closing(Btf.of_kernel(number)))
        layouts = (types[number].layout(key), types[number].layout(value))
    return Shape(of.type, of.key_size, of.value_size, of.max_entries, of.flags, layouts)


def of_cgroups(diagnosis: Diagnosis, cgroups: set[int]) -> tuple[list[Socket], int]:
    """The sockets of endpoints, and how many of them are connections of TCP."""
    found = [
        one
        for one in diagnosis.sockets(socket.IPPROTO_TCP, socket.IPPROTO_UDP, states=PRESENT)
        if one.cgroup in cgroups
    ]
    live = sum(one.protocol == socket.IPPROTO_TCP and bool(1 << one.state & LIVE) for one in found)
    return found, live


def close_inside(namespace: Path) -> None:
    """Close the connections that leave a network namespace of an endpoint's own."""
    with contextlib.suppress(FileNotFoundError), netns.enter(namespace):
        diagnosis = Diagnosis()
        try:
            diagnosis.destroy(list(_leaving(diagnosis)))
        finally:
            diagnosis.close()


def _leaving(diagnosis: Diagnosis) -> Iterator[Socket]:
    for one in diagnosis.sockets(states=LIVE):
        local, remote = one.addresses
        if local != remote and remote[-4] != 127:
            yield one
