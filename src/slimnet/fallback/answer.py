# SPDX-License-Identifier: Apache-2.0
"""An accelerating data path's answer, as it is where there is the fallback overlay."""

from __future__ import annotations

from attrs import evolve

from slimnet.model import Decision, Reason, WayKind
from slimnet.tables import Tables

__all__ = ["carried"]

#: Why a data path leaves a connection or a datagram to the overlay, in the words of
#: slim_way() (``slimnet/way.h``).
_LEFT = frozenset({Reason["UNREACHABLE"], Reason["DATAGRAM"]})


def carried(answer: Decision, tables: Tables | None) -> Decision:
    """The fallback overlay refuses no call by itself, and carries datagrams, and connections
    to hosts without a wire in common, if they are heard where they go.

    Args:
        answer: the accelerating data path's.
        tables: in force; ``None`` where they are not known.
    """
    way = answer.way
    peer = None if tables is None else tables.endpoints.get(answer.endpoint)
    if tables is None or peer is None or way is None or way.kind is not WayKind.REFUSED:
        return answer
    hears = peer.local or tables.hears_packets(peer)
    return evolve(answer, way=None) if hears and way.reason in _LEFT else answer
