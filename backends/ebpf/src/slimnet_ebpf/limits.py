# SPDX-License-Identifier: Apache-2.0
"""What endpoints may send: a rate for each connection, which the kernel paces, and
one for all together, for which a program is attached to the endpoint's cgroup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slimnet import contract
from slimnet.encoding import u32
from slimnet.layout import Layout
from slimnet.linux import cgroup as cgroups
from slimnet.tables import LimitRecord
from slimnet_ebpf import links
from slimnet_ebpf.maps import Map
from slimnet_ebpf.objects import Program

__all__ = ["Limits"]

_LIMIT = Layout(contract.slim_limit)
_NONE = LimitRecord()


class Limits:
    """The limits of one host's endpoints.

    Args:
        table: the contract's SLIM_MAP_LIMIT.
        rate: the program that holds packets back.
        repace: the one that goes through the namespace's connections.
    """

    def __init__(self, table: Map, rate: Program, repace: Program) -> None:
        self._table = table
        self._rate = rate
        self._repace = repace
        #: Endpoint id to its limit, as the last tables have it; ``None`` before the first.
        self.wanted: Mapping[int, LimitRecord] | None = None

    def apply(self, endpoint: int, index: int, cgroup: Path) -> None:
        """Put an endpoint's limit in force; what is so already stays.

        Args:
            endpoint: its id.
            index: its inner index.
            cgroup: its directory.
        """
        limit = (self.wanted or {}).get(endpoint, _NONE)
        value = _LIMIT.pack(rate=limit.rate, connection_rate=limit.connection_rate)
        if self._table.get(u32(index)) != value:
            self._table.set(u32(index), value)
        change = links.keep if limit.rate else links.take_off
        with cgroups.opened(cgroup) as fd:
            change(self._rate.fd, fd, self._rate.attach_type)

    def repace(self) -> None:
        """Tell the kernel anew how to pace the live connections of the namespace that
        the calling thread is in."""
        links.iterate(self._repace.fd, self._repace.attach_type)
