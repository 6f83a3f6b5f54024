# SPDX-License-Identifier: Apache-2.0
"""The live connections of endpoints, out of their sockets' storage."""

from __future__ import annotations

import time
from collections.abc import Iterator

from slimnet.layout import Layout, from_bytes16
from slimnet.linux.sock_diag import LIVE, STATES
from slimnet.model import Connection, Direction, Wire
from slimnet_ebpf import contract as private
from slimnet_ebpf.sockets import SocketDiagnosis

__all__ = ["connections"]

_SOCKET = Layout(private.slim_socket)


def _is_near(address: bytes) -> bool:
    """Whether it is a router's towards its host (slim_steer_is_near()): an endpoint of this
    host is behind it, which has a network namespace of its own."""
    return address[-4] == 0 and any(address[-4:])


def connections(sockets: SocketDiagnosis) -> Iterator[Connection]:
    """See :meth:`slimnet.abc.Backend.connections`."""
    epoch = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    for one in sockets.sockets(states=LIVE):
        if not one.storage:
            continue
        state = STATES[one.state] if one.state < len(STATES) else STATES[0]
        record = _SOCKET.unpack(one.storage)
        flags, local_port = record["flags"], one.ports[0]
        if not record["endpoint"]:
            continue
        accepted = bool(flags & private.SLIM_SOCKET_ACCEPTED)
        near = private.SLIM_FLOW_SAME_HOST | private.SLIM_FLOW_LOOPBACK
        over_wire = not _is_near(one.addresses[1]) and (
            flags & private.SLIM_SOCKET_WIRE
            or (
                accepted
                and not record["flow_flags"] & near
                and not flags & private.SLIM_SOCKET_PUBLISHED
            )
        )
        announced = flags & private.SLIM_SOCKET_ANNOUNCED or (
            record["flow_flags"] & private.SLIM_FLOW_ANNOUNCED
        )
        wire = Wire.ANNOUNCE if announced else Wire.SYN
        yield Connection(
            endpoint=record["endpoint"],
            peer_endpoint=record["peer_endpoint"],
            local=(from_bytes16(record["local"]), record["local_port"] or local_port),
            peer=(from_bytes16(record["peer"]), record["peer_port"]),
            direction=Direction.INGRESS if accepted else Direction.EGRESS,
            wire=wire if over_wire else None,
            state=state,
            opened=record["opened"] / 1e9 + epoch if record["opened"] else 0.0,
            cookie=one.cookie,
        )
