# SPDX-License-Identifier: Apache-2.0
"""What is in the kernel, whoever drives it: maps opened by name where they are pinned."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from slimnet_ebpf.maps import Map
from slimnet_ebpf.pins import Pins

__all__ = ["active_slot", "count", "pinned"]


def pinned(of: Any, name: str) -> Map:
    """A map of a data path, newly opened.

    Args:
        of: the instance's name, or a backend.
        name: of the map.
    """
    return Pins(of if isinstance(of, str) else of.context.instance).open_map(name)


def count(of: Any, *names: str) -> int:
    """How many entries these hash tables have together."""
    total = 0
    for name in names:
        with closing(pinned(of, name)) as table:
            total += len(list(table.items()))
    return total


def active_slot(of: Any) -> int:
    """Which of the two slots holds the tables in force."""
    with closing(pinned(of, "slim_active")) as table:
        return int.from_bytes(table.get(bytes(4)), sys.byteorder) & 1
