# SPDX-License-Identifier: Apache-2.0
"""What of an instance is pinned, without starting or adopting anything."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path

from slimnet.exceptions import CapabilityMissing
from slimnet.linux import cgroup as cgroups
from slimnet.model import Running
from slimnet_ebpf.libbpf import BpfError
from slimnet_ebpf.maps import Map
from slimnet_ebpf.pins import INDEX_DEAD, INDEX_ENTRY, Pins

__all__ = ["find", "fits"]


def find(instance: str) -> Running | None:
    """See :meth:`slimnet.abc.Backend.find`."""
    pins = Pins(instance)
    if not pins.root.is_dir():
        return None
    if not pins.complete():
        return Running()
    try:
        with contextlib.closing(pins.open_map("index")) as index:
            if not fits(index):
                return _unreadable(pins)  # made by another slimnet
            there = tuple(_endpoints(index))
        busy = tuple(path for path in there if cgroups.populated(path))
        return Running(there, pins.record().get("cluster", ""), busy)
    except (BpfError, CapabilityMissing):
        # Without libbpf the maps cannot be read; the names of pins can.
        return _unreadable(pins)


def fits(index: Map) -> bool:
    """Whether a data path's table of endpoints is as this slimnet writes it."""
    return index.value_size == struct.calcsize(INDEX_ENTRY)


def _endpoints(index: Map) -> Iterator[Path]:
    """The cgroups of the endpoints that have one."""
    mount = cgroups.mount()
    for value in dict(index.items()).values():
        endpoint, flags, cgroup, *_ = struct.unpack(INDEX_ENTRY, value)
        lives = endpoint and not flags & INDEX_DEAD
        path = cgroups.path_of(mount, cgroup) if lives else None
        if path is not None:
            yield path


def _unreadable(pins: Pins) -> Running:
    """By the directories of the endpoints' links; nobody knows who is in them."""
    links = tuple(sorted(path for path in pins.links.iterdir() if path.is_dir()))
    return Running(links, busy=links)
