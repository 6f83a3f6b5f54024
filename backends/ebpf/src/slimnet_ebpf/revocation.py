# SPDX-License-Identifier: Apache-2.0
"""Live connections that new tables forbid: found, and closed.

Each connection is put to the data path itself, once for each flow however many
connections it has. Only what policy denies is closed: a peer that the tables do
not know any more (its host's lease ran out, say) is no reason.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.answers import FlowQuestion
from slimnet.layout import Layout, from_bytes16, to_bytes16
from slimnet.linux.sock_diag import STATES, Socket
from slimnet.model import Decision, Direction, Reason
from slimnet.tables import Change, EndpointRecord, PublishKey, Tables
from slimnet_ebpf import contract as private
from slimnet_ebpf.carrier import Carried

__all__ = ["Revoked", "forbidden", "handshake", "may_forbid", "revoked"]

_SOCKET = Layout(private.slim_socket)
_TUPLE = Layout(contract.slim_tuple)
_SYN_RECV = STATES.index("SYN-RECV")
# Any of these says that the socket has a peer. The peer's port does not: from outside of the
# overlay it may be 0.
_CONNECTED = (
    private.SLIM_SOCKET_WIRE
    | private.SLIM_SOCKET_SAME_HOST
    | private.SLIM_SOCKET_OUTSIDE
    | private.SLIM_SOCKET_ACCEPTED
)
_DENIALS = frozenset({Reason["RULE_DENY"], Reason["DEFAULT_DENY"], Reason["HOST_DENY"]})


@frozen
class Revoked:
    """A connection that must not be any more.

    Attributes:
        socket: this end of it.
        endpoint: id of the endpoint whose policy forbids it.
        peer: id of the other endpoint, or 0.
        question: the flow, as policy was asked.
        rule: what forbids it; 0 where it is the lack of a rule.
        ports: of its opener and as it was dialled.
    """

    socket: Socket
    endpoint: int
    peer: int
    question: FlowQuestion
    rule: int
    ports: tuple[int, int]


def may_forbid(before: Tables | None, change: Change | None) -> bool:
    """Whether a change of these tables can deny anything that they allowed."""
    if before is None or change is None:
        return True
    new = change.set
    if new.policy or change.gone_policy or new.cidrs or change.gone_cidrs:
        return True
    identities = (
        (before.endpoints[number].identity, record.identity)
        for number, record in new.endpoints.items()
        if number in before.endpoints
    )
    return any(old != now for old, now in identities)


def revoked(
    sockets: Iterable[Socket],
    tables: Tables,
    owners: Callable[[], Mapping[int, int]],
    inner: Callable[[IPAddress], bool],
    ask: Callable[[FlowQuestion], Decision],
) -> Iterator[Revoked]:
    """The connections that policy denies now.

    Args:
        sockets: TCP and UDP sockets of this host that are live.
        tables: the ones in force.
        owners: cgroup id to endpoint id, asked for connected UDP sockets only, which
            keep nothing in storage.
        inner: whether it is an inner address. A UDP socket that has one as its peer is
            connected to where it may send nothing, and has nothing to lose.
        ask: puts a question to the data path.
    """
    answers: dict[FlowQuestion, Decision] = {}
    for one in sockets:
        found = None
        if one.protocol == socket.IPPROTO_UDP:
            found = _udp(one, tables.endpoints, owners, inner)
        elif one.storage:
            found = _tcp(one, tables.endpoints)
        elif one.state == _SYN_RECV:
            found = _published(one, tables)
        if found is None:
            continue
        endpoint, peer, question, ports = found
        if question not in answers:
            answers[question] = ask(question)
        verdict = answers[question].verdict
        if not verdict.allowed and verdict.reason in _DENIALS:
            yield Revoked(one, endpoint, peer, question, verdict.rule, ports)


def forbidden(
    every: Iterable[Carried], tables: Tables, ask: Callable[[FlowQuestion], Decision]
) -> Iterator[tuple[Revoked, Carried]]:
    """Of the connections that are carried those that policy denies now.

    Args:
        every: those of this host.
        tables: the ones in force.
        ask: puts a question to the data path.
    """
    answers: dict[FlowQuestion, Decision] = {}
    for one in every:
        own, peer = (tables.endpoints.get(id_) for id_ in (one.endpoint, one.peer_endpoint))
        if own is None or (one.peer_endpoint and peer is None):
            continue
        other = one.peer[0] if peer is None else peer.address
        source, destination = (other, own.address) if one.accepted else (own.address, other)
        question = FlowQuestion(
            own.vni,
            one.direction,
            source,
            destination,
            socket.IPPROTO_TCP,
            one.port,
        )
        if question not in answers:
            answers[question] = ask(question)
        verdict = answers[question].verdict
        if not verdict.allowed and verdict.reason in _DENIALS:
            ends = (one.peer, one.local) if one.accepted else (one.local, one.peer)
            ports = (ends[0][1], ends[1][1])
            yield (
                Revoked(one.socket, one.endpoint, one.peer_endpoint, question, verdict.rule, ports),
                one,
            )


def handshake(one: Socket, inside: Callable[[IPAddress, int], bool]) -> bytes | None:
    """The key of the record (struct slim_tuple) that a handshake to an endpoint must
    have; ``None`` for any other socket. A request socket has no cgroup and no storage.

    Args:
        one: a TCP socket of this host.
        inside: whether an endpoint is reached at an address and port of this host only
            by such a record.
    """
    if one.state != _SYN_RECV or one.storage:
        return None
    local, remote = map(_address, one.addresses)
    if not inside(local, one.ports[0]):
        return None
    return _TUPLE.pack(
        source=to_bytes16(remote),
        destination=to_bytes16(local),
        source_port=one.ports[1],
        destination_port=one.ports[0],
    )


def _address(raw: bytes) -> IPAddress:
    return from_bytes16(raw) if len(raw) == 16 else IPAddress(int.from_bytes(raw, "big"), 4)


_Found = tuple[int, int, FlowQuestion, tuple[int, int]]


def _tcp(one: Socket, endpoints: Mapping[int, EndpointRecord]) -> _Found | None:
    record: dict[str, Any] = _SOCKET.unpack(one.storage)
    own = endpoints.get(record["endpoint"])
    peer = endpoints.get(record["peer_endpoint"])
    connected = record["flags"] & _CONNECTED
    if not connected or record["endpoint"] == record["peer_endpoint"]:
        return None
    if own is None or (record["peer_endpoint"] and peer is None):
        return None
    other: IPAddress = from_bytes16(record["peer"]) if peer is None else peer.address
    local_port = record["local_port"] or one.ports[0]
    accepted = record["flags"] & private.SLIM_SOCKET_ACCEPTED
    question = FlowQuestion(
        own.vni,
        Direction.INGRESS if accepted else Direction.EGRESS,
        other if accepted else own.address,
        own.address if accepted else other,
        socket.IPPROTO_TCP,
        record["target_port"],
    )
    ports = (record["peer_port"], local_port) if accepted else (local_port, record["peer_port"])
    return record["endpoint"], record["peer_endpoint"], question, ports


def _published(one: Socket, tables: Tables) -> _Found | None:
    """A handshake to a published port, which has no record."""
    local, remote = map(_address, one.addresses)
    port = one.ports[0]
    for address in (local, None):
        published = tables.published.get(PublishKey(address, socket.IPPROTO_TCP, port))
        own = tables.endpoints.get(published.endpoint) if published else None
        if published and own:
            question = FlowQuestion(
                own.vni,
                Direction.INGRESS,
                remote,
                own.address,
                socket.IPPROTO_TCP,
                published.port,
            )
            return published.endpoint, 0, question, (one.ports[1], published.port)
    return None


def _udp(
    one: Socket,
    endpoints: Mapping[int, EndpointRecord],
    owners: Callable[[], Mapping[int, int]],
    inner: Callable[[IPAddress], bool],
) -> _Found | None:
    """Connected to the outside: sendto(2) is asked each time, send(2) is not."""
    local, remote = one.ports
    endpoint = owners().get(one.cgroup, 0) if remote else 0
    own = endpoints.get(endpoint)
    other = _address(one.addresses[1])
    if own is None or inner(other):
        return None
    question = FlowQuestion(
        own.vni, Direction.EGRESS, own.address, other, socket.IPPROTO_UDP, remote
    )
    return endpoint, 0, question, (local, remote)
