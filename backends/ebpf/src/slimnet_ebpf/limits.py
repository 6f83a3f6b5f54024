# SPDX-License-Identifier: Apache-2.0
"""What endpoints may send: a rate for each connection, which the kernel paces, and
one for all together, for which a program is attached to the endpoint's cgroup."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from slimnet import contract
from slimnet.tables import LimitRecord
from slimnet_ebpf import links
from slimnet_ebpf.layout import Layout
from slimnet_ebpf.maps import Map
from slimnet_ebpf.objects import Program
from slimnet_ebpf.records import u32

__all__ = ["Limits"]

_LIMIT = Layout(contract.slim_limit)
_NONE = LimitRecord()


class Limits:
    """The limits of one host's endpoints.

    Args:
        table: the contract's SLIM_MAP_LIMIT.
        program: the one that holds packets back.
    """

    def __init__(self, table: Map, program: Program) -> None:
        self._table = table
        self._program = program
        #: Endpoint id to its limit, as the last tables have it; ``None`` before the first.
        self.wanted: Mapping[int, LimitRecord] | None = None

    def apply(self, endpoint: int, index: int, cgroup: Path, pins: Path) -> None:
        """Put an endpoint's limit in force; what is so already stays.

        Args:
            endpoint: its id.
            index: its inner index.
            cgroup: its directory.
            pins: the directory of its pinned links.
        """
        limit = (self.wanted or {}).get(endpoint, _NONE)
        value = _LIMIT.pack(rate=limit.rate, connection_rate=limit.connection_rate)
        if self._table.get(u32(index)) != value:
            self._table.set(u32(index), value)
        pin = pins / self._program.name
        if not limit.rate:
            pin.unlink(missing_ok=True)
        elif not pin.exists():
            with self._open(cgroup) as fd:
                links.attach(self._program.fd, fd, self._program.attach_type, pin)

    @contextlib.contextmanager
    def _open(self, cgroup: Path) -> Iterator[int]:
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
