# SPDX-License-Identifier: Apache-2.0
"""New tables that forbid what lives: closed at both ends; what they allow never notices."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from lab import DEADLINE, Can

from slimnet.model import Direction, EventKind, Reason

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS


def pair(client, server, port=80, dialled=None):
    """A connection: (client's socket, server's)."""
    listener = server.listen(port)
    sock = client.connect(*(dialled or (server.address, port)))
    child, _ = listener.accept()
    return sock, child


def ends_within(sock, seconds):
    """How a socket that waits for data ends: the errno, or 0 for an orderly end."""
    sock.settimeout(seconds)
    try:
        data = sock.recv(1)
    except TimeoutError:
        pytest.fail("it lives")
    except OSError as error:
        return error.errno
    assert data == b""
    return 0


TCP_CLOSE = 7

#: What tcp(7) knows; EBADF is not among them.
ORDINARY = {errno.ECONNABORTED, errno.ECONNRESET, errno.EPIPE}


def alive(sock, child):
    sock.sendall(b"ping")
    assert child.recv(4) == b"ping"
    child.sendall(b"pong")
    assert sock.recv(4) == b"pong"


@pytest.mark.needs(Can.ENDS_AT_ONCE)
@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["egress", "ingress"])
def test_both_ends_are_closed(lab, ends, direction):
    """By whichever end's policy: there before the install returns, and from there the
    other end hears of it. Blocked in recv, with an ordinary error."""
    client, server = ends
    sock, child = pair(client, server)
    alive(sock, child)
    subject, end = (client, sock) if direction is EGRESS else (server, child)
    lab.isolate(subject, direction)
    waiting = [client.start(_receive, sock), server.start(_receive, child)]
    before = subject.host.counters().get(Reason.REVOKED, 0)
    lab.install()
    assert subject.call(_state, end) == TCP_CLOSE
    for future in waiting:
        assert future.result(DEADLINE) in ORDINARY
    assert subject.host.counters().get(Reason.REVOKED, 0) - before == 1


@pytest.mark.lacks(Can.ENDS_AT_ONCE)
@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["egress", "ingress"])
def test_both_ends_are_reset_at_the_next_packet(lab, ends, direction):
    """By whichever end's policy; not a byte comes through."""
    client, server = ends
    stays = pair(client, server, 81)
    sock, child = pair(client, server)
    alive(sock, child)
    lab.isolate(client if direction is EGRESS else server, direction)
    peer = server if direction is EGRESS else client
    lab.rule(client if direction is EGRESS else server, direction, peer=peer, port=81, allow=True)
    lab.install()
    sock.sendall(b"too late")
    assert ends_within(sock, DEADLINE) in ORDINARY
    child.settimeout(0.3)
    try:
        assert child.recv(100) == b"", "what was forbidden came through"
    except TimeoutError:
        child.settimeout(None)
        child.sendall(b"too late")
        assert ends_within(child, DEADLINE) in ORDINARY
    except OSError as error:
        assert error.errno in ORDINARY
    alive(*stays)


def _state(sock: socket.socket) -> int:
    """The first byte of struct tcp_info."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _receive(sock: socket.socket) -> int:
    try:
        sock.settimeout(10)
        return 0 if sock.recv(1) == b"" else -1
    except OSError as error:
        return error.errno or -2


@pytest.mark.needs(Can.ENDS_AT_ONCE)
def test_those_that_remain_allowed_never_notice(lab, ends):
    """Another port, another peer, and a transfer under way."""
    client, server = ends
    other = lab.endpoint(1)
    doomed = pair(client, server, 80)
    stays = pair(client, server, 81)
    beside = pair(client, other, 80)
    lab.rule(server, INGRESS, peer=client, port=81, allow=True)
    lab.isolate(server, INGRESS)
    pump = client.start(_pump, stays[0], 200)
    drain = server.start(_drain, stays[1], 200)
    lab.install()
    assert ends_within(doomed[0], 2) in ORDINARY
    assert pump.result(20) == drain.result(20) == 200 * 65536
    alive(*beside)


def _pump(sock: socket.socket, blocks: int) -> int:
    for _ in range(blocks):
        sock.sendall(bytes(65536))
    return blocks * 65536


def _drain(sock: socket.socket, blocks: int) -> int:
    count = 0
    while count < blocks * 65536:
        count += len(sock.recv(65536))
    return count


@pytest.mark.needs(Can.SERVICES, Can.ENDS_AT_ONCE)
def test_through_a_service(lab, ends):
    """Policy is asked for the endpoint behind it, as at connect."""
    client, server = ends
    vip = lab.service(80, [(server, 8080)])
    lab.install()
    sock, child = pair(client, server, 8080, (vip, 80))
    lab.rule(client, EGRESS, peer=server, port=8080, allow=True)
    lab.isolate(client, EGRESS)
    lab.install()
    alive(sock, child)
    lab.policy.clear()
    lab.rule(client, EGRESS, peer=server, port=80, allow=True)
    lab.isolate(client, EGRESS)
    lab.install()
    assert ends_within(sock, 2) in ORDINARY
    assert ends_within(child, 2) in ORDINARY


@pytest.mark.needs(Can.PUBLISHED_PORTS)
def test_from_a_published_port(lab):
    server = lab.endpoint(0)
    listener = server.listen(80)
    lab.publish(server, 8080, 80)
    lab.install()
    sock = lab.outside.root.connect(server.host.address, 8080)
    child, _ = listener.accept()
    alive(sock, child)
    lab.isolate(server, INGRESS)
    lab.install()
    if not lab.can(Can.CARRIES_PUBLISHED):
        sock.sendall(b"x")
    assert ends_within(sock, 2) in ORDINARY
    if lab.can(Can.CARRIES_PUBLISHED):
        assert ends_within(child, 2) in ORDINARY


@pytest.mark.lacks(Can.OWN_DEVICES)
def test_to_the_outside(lab):
    client = lab.endpoint(0)
    listener = lab.outside.root.listen(9000)
    sock = client.connect(lab.outside.address, 9000)
    listener.accept()
    lab.isolate(client, EGRESS)
    lab.install()
    assert ends_within(sock, 2) in ORDINARY


@pytest.mark.needs(Can.OWN_DEVICES)
def test_to_the_outside_at_the_next_packet(lab):
    client = lab.endpoint(0)
    listener = lab.outside.root.listen(9000)
    sock = client.connect(lab.outside.address, 9000)
    child, _ = listener.accept()
    lab.isolate(client, EGRESS)
    lab.install()
    sock.sendall(b"too late")
    assert ends_within(sock, DEADLINE) in ORDINARY
    child.settimeout(0.3)
    with pytest.raises(TimeoutError):
        child.recv(100)


def datagrams_to_the_outside(lab):
    """A connected UDP socket, and who hears it, once policy has changed its mind."""
    client = lab.endpoint(0)
    there = lab.outside.root.socket(kind=socket.SOCK_DGRAM)
    there.bind(("0.0.0.0", 9000))
    sock = client.socket(kind=socket.SOCK_DGRAM)
    sock.connect((lab.outside.address, 9000))
    sock.send(b"allowed")
    assert there.recv(100) == b"allowed"
    lab.isolate(client, EGRESS)
    lab.install()
    there.settimeout(0.3)
    return client, sock, there


@pytest.mark.needs(Can.SEES_DATAGRAMS)
def test_datagrams_to_the_outside(lab):
    """A connected UDP socket asks no hook when it sends: it is closed too."""
    _, sock, there = datagrams_to_the_outside(lab)
    with pytest.raises(OSError, match="abort|not connected|address required") as caught:
        sock.send(b"denied")
        sock.send(b"denied")
    assert caught.value.errno != errno.EBADF
    with pytest.raises(TimeoutError):
        there.recv(100)


@pytest.mark.lacks(Can.SEES_DATAGRAMS, Can.DATAGRAMS)
def test_datagrams_to_the_outside_go_on(lab):
    """Of a socket that was connected before; what a new one sends is refused."""
    client, sock, there = datagrams_to_the_outside(lab)
    sock.send(b"denied")
    assert there.recv(100) == b"denied"
    new = client.socket(kind=socket.SOCK_DGRAM)
    with pytest.raises(PermissionError):
        new.sendto(b"denied", (lab.outside.address, 9000))
    new.settimeout(5)
    new.connect((lab.outside.address, 9000))
    new.send(b"denied")
    with pytest.raises(ConnectionRefusedError):
        new.recv(1)
    with pytest.raises(TimeoutError):
        there.recv(100)


@pytest.mark.needs(Can.ENDS_AT_ONCE, Can.SEES_DATAGRAMS)
@pytest.mark.lacks(Can.DATAGRAMS)
def test_what_could_send_nothing_loses_nothing(lab):
    """A UDP socket that was let connect where policy refuses what it sends: it stays as it
    is, and nothing is told before it sends."""
    client = lab.endpoint(0)
    sock = client.socket(kind=socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect(("10.77.200.200", 9000))
    lab.isolate(client, EGRESS)
    lab.install()
    assert not [each for each in client.host.events(1, 0.3) if each.endpoint == client.record.id]
    sock.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        sock.recv(1)
    assert sock.getpeername() == ("10.77.200.200", 9000)


@pytest.mark.needs(Can.OUTLIVES_PEERS)
def test_a_peer_that_the_tables_lost_is_no_reason(lab, ends):
    """Its host's lease ran out, say: that is no policy."""
    client, server = ends
    sock, child = pair(client, server)
    client.host.backend.install(lab.tables(client.host, without=server))
    alive(sock, child)
    lab.install()
    alive(sock, child)


@pytest.mark.lacks(Can.OUTLIVES_PEERS)
def test_a_peer_that_the_tables_lost_is_a_reason(lab, ends):
    """At the next packet; and when they have it again there are new connections."""
    client, server = ends
    sock, _ = pair(client, server)
    client.host.backend.install(lab.tables(client.host, without=server))
    sock.sendall(b"late")
    assert ends_within(sock, DEADLINE) in ORDINARY
    lab.install()
    alive(*pair(client, server, 81))


def test_itself_stays(lab):
    """An endpoint to itself is always allowed, by loopback and by its address."""
    endpoint = lab.endpoint(0)
    listener = endpoint.listen(80)
    pairs = []
    for address in ("127.0.0.1", endpoint.address):
        sock = endpoint.connect(address, 80)
        pairs.append((sock, listener.accept()[0]))
    for direction in Direction:
        lab.isolate(endpoint, direction)
    lab.install()
    for sock, child in pairs:
        alive(sock, child)


@pytest.mark.needs(Can.ENDS_AT_ONCE)
def test_it_is_told(lab, ends):
    """An event with the reason and the rule that forbids it."""
    client, server = ends
    sock, _ = pair(client, server)
    client.host.observe()
    lab.rule(client, EGRESS, peer=server, port=80, allow=False)
    lab.install()
    assert ends_within(sock, 2) in ORDINARY
    # Besides what each end of the connection on this host says of its end.
    events = client.host.events(3 if server.host is client.host else 2)
    told = [each for each in events if each.kind is EventKind.REFUSED]
    assert [(each.reason, each.rule, each.direction) for each in told] == [
        (Reason.REVOKED, 1, EGRESS)
    ]
    assert told[0].endpoint == client.id
    assert told[0].destination == (server.record.address, 80)


@pytest.mark.needs(Can.NAMED_BY_SYN)
@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["egress", "ingress"])
def test_a_handshake_under_newer_tables_is_decided_again(lab, direction):
    """The SYN goes out under one generation, its answer comes under another."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.listen(80)
    # The SYN is dropped as long as the server's host does not know the client.
    lab.hosts[1].backend.install(lab.tables(lab.hosts[1], without=client))
    connecting = client.start(_connect, server.address)
    until = time.monotonic() + 5
    while not lab.hosts[1].counters().get(Reason.SYN_UNKNOWN):
        assert time.monotonic() < until
        time.sleep(0.01)
    lab.isolate(client if direction is EGRESS else server, direction)
    lab.install()
    assert connecting.result(10) in {errno.ECONNREFUSED, *ORDINARY}
    listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        child, _ = listener.accept()
        # Accepted in the moment before its client was gone.
        assert ends_within(child, 1) in ORDINARY
        raise TimeoutError


def _connect(address: str) -> int:
    sock = socket.socket()
    sock.settimeout(10)
    try:
        sock.connect((address, 80))
        return 0 if sock.recv(1) == b"" else -1
    except OSError as error:
        return error.errno or -2
