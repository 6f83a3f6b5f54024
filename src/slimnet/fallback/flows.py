# SPDX-License-Identifier: Apache-2.0
"""The connections that a router tracks (conntrack)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen
from netaddr import IPAddress

from slimnet.linux import netns
from slimnet.model import Protocol

__all__ = ["TrackedFlow", "tracked"]

# enum tcp_conntrack of linux/netfilter/nf_conntrack_tcp.h, in the words of ss.
_STATES = (
    "NONE",
    "SYN-SENT",
    "SYN-RECV",
    "ESTAB",
    "FIN-WAIT-1",
    "CLOSE-WAIT",
    "LAST-ACK",
    "TIME-WAIT",
    "CLOSE",
    "SYN-SENT",
)
_OVER = frozenset({"NONE", "TIME-WAIT", "CLOSE"})


@frozen
class TrackedFlow:
    """One TCP connection: who opened it to whom, where that led (a published port: to the
    endpoint's), its state, and when it was opened (seconds since the epoch)."""

    source: tuple[IPAddress, int]
    destination: tuple[IPAddress, int]
    reached: tuple[IPAddress, int]
    state: str
    opened: float


def _end(way: Any, side: str) -> tuple[IPAddress, int]:
    return (
        IPAddress(way.get_attr("CTA_TUPLE_IP").get_attr(f"CTA_IP_V4_{side}")),
        int(way.get_attr("CTA_TUPLE_PROTO").get_attr(f"CTA_PROTO_{side}_PORT")),
    )


def tracked(router: Path) -> Iterator[TrackedFlow]:
    """The TCP connections of a router's namespace that are not over."""
    # 100 ms that an agent of another backend, which asks this one what runs, need not pay.
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket  # noqa: PLC0415

    with netns.enter(router), NFCTSocket() as table:
        entries = list(table.dump())
    for entry in entries:
        original = entry.get_attr("CTA_TUPLE_ORIG")
        if original.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM") != Protocol.TCP:
            continue
        info = entry.get_attr("CTA_PROTOINFO").get_attr("CTA_PROTOINFO_TCP")
        state = _STATES[info.get_attr("CTA_PROTOINFO_TCP_STATE")]
        if state not in _OVER:
            stamp = entry.get_attr("CTA_TIMESTAMP")
            start = stamp.get_attr("CTA_TIMESTAMP_START") if stamp else None
            yield TrackedFlow(
                _end(original, "SRC"),
                _end(original, "DST"),
                _end(entry.get_attr("CTA_TUPLE_REPLY"), "SRC"),
                state,
                start / 1e9 if start else time.time(),
            )
