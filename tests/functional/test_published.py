# SPDX-License-Identifier: Apache-2.0
"""A port of the host that is an endpoint's: by its policy, with the client's real address."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from lab import Can
from netaddr import IPNetwork

from slimnet import contract
from slimnet.model import Direction, EventKind, Reason
from slimnet.tables import CidrRecord

INGRESS = Direction.INGRESS
PUBLISHED = pytest.mark.needs(Can.PUBLISHED_PORTS)


def grew(host, before, reason):
    return host.counters().get(reason, 0) - before.get(reason, 0)


def closed(hands, address, port):
    """A connect that must be refused at once."""
    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        hands.connect(address, port)
    assert time.monotonic() - started < 0.5


def refused(lab, hands, address, port):
    """The same where the port is published: some data paths can only take it back."""
    if lab.can(Can.REFUSES_SYNS):
        closed(hands, address, port)
        return
    started = time.monotonic()
    with pytest.raises((ConnectionRefusedError, ConnectionResetError)):
        hands.connect(address, port).recv(1)
    assert time.monotonic() - started < 0.5


@PUBLISHED
@pytest.mark.parametrize("where", ["every address", "one address"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "dual-stack"])
def test_a_client_from_outside(lab, where, family):
    """The server sees the client's own address, and itself as it always does."""
    server = lab.endpoint(0)
    listener = server.listen(80, family=family)
    lab.publish(server, 8080, 80, None if where == "every address" else server.host.address)
    lab.install()
    sock = lab.outside.root.connect(server.host.address, 8080)
    child, peer = listener.accept()
    prefix = "::ffff:" if family == socket.AF_INET6 else ""
    name = (prefix + lab.outside.address, sock.getsockname()[1])
    assert peer[:2] == name == child.getpeername()[:2]
    assert child.getsockname()[:2] == (prefix + server.address, 80)
    sock.sendall(b"from outside")
    assert child.recv(12) == b"from outside"
    child.sendall(b"back")
    assert sock.recv(4) == b"back"
    (mine,) = server.host.backend.connections()
    assert (mine.endpoint, mine.peer_endpoint, mine.wire) == (server.id, 0, None)
    assert str(mine.peer[0]) == lab.outside.address


@PUBLISHED
def test_from_the_hosts_themselves(lab):
    """The endpoint's own host by any of its addresses, and another host of the cluster."""
    server = lab.endpoint(0)
    server.serve(80)
    lab.publish(server, 8080, 80)
    lab.install()
    for hands, address in (
        (server.host.root, "127.0.0.1"),
        (server.host.user, server.host.address),
        (lab.hosts[1].root, server.host.address),
    ):
        sock = hands.connect(address, 8080)
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


@PUBLISHED
def test_not_on_the_hosts_ipv6_addresses(lab):
    """Refused, whatever the server listens on: see docs/howto/services.rst."""
    server = lab.endpoint(0)
    server.listen(80, family=socket.AF_INET6)
    lab.publish(server, 8080, 80)
    lab.install()
    server.host.root.connect("127.0.0.1", 8080)
    with pytest.raises(ConnectionRefusedError):
        server.host.root.connect("::1", 8080, family=socket.AF_INET6)


@PUBLISHED
def test_only_on_its_address(lab):
    server = lab.endpoint(0)
    server.serve(80)
    lab.publish(server, 8080, 80, "127.0.0.1")
    lab.install()
    assert server.host.root.connect("127.0.0.1", 8080).getpeername() == ("127.0.0.1", 8080)
    closed(lab.outside.root, server.host.address, 8080)


@PUBLISHED
def test_an_endpoint_may_dial_it_if_policy_names_the_host(lab):
    """As any other port of a host."""
    server, client = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    lab.publish(server, 8080, 80)
    lab.install()
    with pytest.raises(OSError) as raised:
        client.connect(server.host.address, 8080)
    assert raised.value.errno == lab.denied
    lab.rule(client, Direction.EGRESS, peer=contract.SLIM_IDENTITY_HOST, allow=True)
    lab.install()
    client.connect(server.host.address, 8080)


@PUBLISHED
def test_nobody_listens(lab):
    server = lab.endpoint(0)
    lab.publish(server, 8080, 80)
    lab.install()
    before = server.host.counters()
    refused(lab, lab.outside.root, server.host.address, 8080)
    # In a namespace of the endpoint's own it is that one's kernel that refuses.
    brought = lab.can(Can.PUBLISHED_DATAGRAMS)
    assert grew(server.host, before, Reason.SYN_NO_LISTENER) == int(not brought)


@PUBLISHED
def test_a_listener_on_the_endpoints_loopback_is_not_reached(lab):
    server = lab.endpoint(0)
    server.serve(80, "127.0.0.1")
    lab.publish(server, 8080, 80)
    lab.install()
    refused(lab, lab.outside.root, server.host.address, 8080)


@contextlib.contextmanager
def range_of_outside(lab, identity):
    """Policy knows the outside machine's address by an identity of its own."""
    tables = lab.tables

    def with_range(host, **more):
        made = tables(host, **more)
        made.cidrs[77, IPNetwork(f"{lab.outside.address}/32")] = CidrRecord(identity)
        return made

    lab.tables = with_range
    try:
        yield
    finally:
        lab.tables = tables


@PUBLISHED
def test_ingress_policy_decides(lab):
    """By the client's address; the refusal is at once, counted and told."""
    server = lab.endpoint(0)
    listener = server.listen(80)
    lab.publish(server, 8080, 80)
    lab.isolate(server, INGRESS)
    with range_of_outside(lab, 5000):
        lab.install()
        server.host.observe()
        before = server.host.counters()
        refused(lab, lab.outside.root, server.host.address, 8080)
        assert grew(server.host, before, Reason.DEFAULT_DENY) == 1
        (event,) = server.host.events(1)
        assert (event.kind, event.direction) == (EventKind.REFUSED, INGRESS)
        assert (event.endpoint, event.peer_endpoint) == (server.id, 0)
        assert str(event.source[0]) == lab.outside.address
        assert event.destination == (server.record.address, 80)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        lab.rule(server, INGRESS, peer=5000, port=80, allow=True)
        lab.install()
        lab.outside.root.connect(server.host.address, 8080)


@PUBLISHED
def test_on_account(lab):
    """One that came and one that was refused, where connections between endpoints are and it is
    one like those."""
    server = lab.endpoint(0)
    server.serve(80)
    lab.publish(server, 8080, 80)
    lab.install()
    lab.outside.root.connect(server.host.address, 8080)
    lab.isolate(server, INGRESS)
    lab.install()
    refused(lab, lab.outside.root, server.host.address, 8080)
    found = list(server.host.backend.accounts())
    if not lab.can(Can.COUNTS) or not lab.can(Can.CARRIES_PUBLISHED):
        assert found == []
        return
    assert {(each.endpoint, each.direction) for each in found} == {(server.id, INGRESS)}
    assert sum(each.refused for each in found) == 1


@PUBLISHED
def test_taken_back(lab):
    """No new connection; the port is the host's again."""
    server = lab.endpoint(0)
    server.serve(80)
    lab.publish(server, 8080, 80)
    lab.install()
    lab.outside.root.connect(server.host.address, 8080)
    lab.published.clear()
    lab.install()
    closed(lab.outside.root, server.host.address, 8080)
    listener = server.host.root.listen(8080)
    lab.outside.root.connect(server.host.address, 8080)
    listener.accept()


@PUBLISHED
def test_a_reuseport_group_that_lost_a_member(lab):
    """The listener that is left is found again, by tc."""
    server = lab.endpoint(0)
    first = server.listen(80, reuseport=True)
    second = server.listen(80, reuseport=True)
    lab.publish(server, 8080, 80)
    lab.install()
    second.close()
    lab.outside.root.connect(server.host.address, 8080)
    _, peer = first.accept()
    assert peer[0] == lab.outside.address


@PUBLISHED
def test_syn_cookies(lab):
    """The last ACK of a handshake that the kernel kept nothing of."""
    server = lab.endpoint(0)
    with server.host.sysctl("net.ipv4.tcp_syncookies", 2):
        listener = server.listen(80)
        lab.publish(server, 8080, 80)
        lab.install()
        sock = lab.outside.root.connect(server.host.address, 8080)
        child, peer = listener.accept()
        assert peer == sock.getsockname()
        assert child.getsockname() == (server.address, 80)


DATAGRAMS = pytest.mark.needs(Can.PUBLISHED_DATAGRAMS)


def _exchange(address, port, text):
    """What comes back to a datagram; the name of the socket, which is connected."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((address, port))
        sock.send(text)
        return sock.recv(2048), sock.getsockname()


def _answer(sock):
    """Answers a datagram; whom it came from."""
    text, peer = sock.recvfrom(2048)
    sock.sendto(text + b"!", peer)
    return peer


def _bound(port, address="0.0.0.0"):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind((address, port))
    return sock


def asked(server, sock, hands, address, port):
    """Whom the endpoint saw, and the asker's own name."""
    answering = server.start(_answer, sock)
    answer, name = hands.call(_exchange, address, port, b"hello")
    assert answer == b"hello!"
    return answering.result(10), name


def with_datagrams(lab, address=None):
    """An endpoint with port 5353 of its host in force as its port 53 of UDP."""
    server = lab.endpoint(0)
    lab.publish(server, 5353, 53, address, protocol=socket.IPPROTO_UDP)
    lab.install()
    return server


@DATAGRAMS
@pytest.mark.parametrize("where", ["every address", "one address"])
def test_datagrams_from_outside(lab, where):
    """The server sees the client's own address; the answer comes from where it asked."""
    server = with_datagrams(lab, None if where == "every address" else lab.hosts[0].address)
    sock = server.call(_bound, 53)
    for _ in range(3):
        peer, name = asked(server, sock, lab.outside.root, server.host.address, 5353)
        assert peer == name
        assert peer[0] == lab.outside.address


@DATAGRAMS
def test_datagrams_from_the_hosts_themselves(lab):
    """By loopback the host comes under its underlay address."""
    server = with_datagrams(lab)
    sock = server.call(_bound, 53)
    own = server.host.address
    peer, _ = asked(server, sock, server.host.root, "127.0.0.1", 5353)
    assert peer[0] == own
    assert asked(server, sock, server.host.root, own, 5353)[0][0] == own
    other = lab.hosts[1]
    assert asked(server, sock, other.root, own, 5353)[0][0] == other.address


@DATAGRAMS
def test_datagrams_at_one_address_only(lab):
    """One port at two addresses of the host, two endpoints'; one at none."""
    first, second = lab.endpoint(0), lab.endpoint(0)
    host = first.host
    lab.publish(first, 5353, 53, "127.0.0.1", protocol=socket.IPPROTO_UDP)
    lab.publish(second, 5353, 53, host.address, protocol=socket.IPPROTO_UDP)
    lab.publish(second, 5354, 53, "127.0.0.1", protocol=socket.IPPROTO_UDP)
    lab.install()
    one, two = first.call(_bound, 53), second.call(_bound, 53)
    asked(first, one, host.root, "127.0.0.1", 5353)
    asked(second, two, lab.outside.root, host.address, 5353)
    with pytest.raises(ConnectionRefusedError):
        lab.outside.root.call(_exchange, host.address, 5354, b"x")


@DATAGRAMS
def test_datagrams_are_put_to_policy(lab):
    """By the client's address, at the first and at whatever comes after a change; counted and
    told."""
    server = lab.endpoint(0)
    lab.publish(server, 5353, 53, protocol=socket.IPPROTO_UDP)
    lab.isolate(server, INGRESS)
    with range_of_outside(lab, 5000):
        lab.install()
        sock = server.call(_bound, 53)
        server.host.observe()
        before = server.host.counters()
        with pytest.raises(ConnectionRefusedError):
            lab.outside.root.call(_exchange, server.host.address, 5353, b"x")
        assert grew(server.host, before, Reason.DEFAULT_DENY) == 1
        (event,) = server.host.events(1)
        assert (event.kind, event.endpoint, event.protocol) == (EventKind.REFUSED, server.id, 17)
        assert event.destination == (server.record.address, 53)
        lab.rule(server, INGRESS, peer=5000, port=53, allow=True, protocol=17)
        lab.install()
        asked(server, sock, lab.outside.root, server.host.address, 5353)


@DATAGRAMS
def test_datagrams_are_taken_back(lab):
    """For whoever is in the middle of it, too; the port is the host's again."""
    server = with_datagrams(lab)
    sock = server.call(_bound, 53)
    client = lab.outside.root.call(_bound, 40404)
    client.sendto(b"one", (server.host.address, 5353))
    assert server.start(_answer, sock).result(10) == (lab.outside.address, 40404)
    assert client.recvfrom(100) == (b"one!", (server.host.address, 5353))
    lab.published.clear()
    lab.install()
    client.sendto(b"two", (server.host.address, 5353))
    with pytest.raises(TimeoutError):
        server.call(_answer, sock)
    own = server.host.root.call(_bound, 5353)
    fresh = lab.outside.root.call(_bound, 40405)
    fresh.sendto(b"three", (server.host.address, 5353))
    assert own.recvfrom(100) == (b"three", (lab.outside.address, 40405))


@DATAGRAMS
def test_large_datagrams_come_in_pieces(lab):
    server = with_datagrams(lab)
    sock = server.call(_bound, 53)
    client = lab.outside.root.call(_bound, 40404)
    client.sendto(b"x" * 30000, (server.host.address, 5353))
    text, peer = sock.recvfrom(65535)
    assert (len(text), peer) == (30000, (lab.outside.address, 40404))


@pytest.mark.lacks(Can.PUBLISHED_DATAGRAMS)
def test_the_port_of_datagrams_stays_the_hosts(lab):
    """Tables with such ports are installed, and are nobody's way to the endpoint."""
    server = with_datagrams(lab)
    client = lab.outside.root.call(_bound, 40404)
    own = server.host.root.call(_bound, 5353)
    client.sendto(b"x", (server.host.address, 5353))
    assert own.recvfrom(100) == (b"x", (lab.outside.address, 40404))


@pytest.mark.lacks(Can.PUBLISHED_PORTS)
def test_the_port_stays_the_hosts(lab):
    """Tables with published ports are installed, and nobody gets to the endpoint by them."""
    server = lab.endpoint(0)
    server.serve(80)
    lab.publish(server, 8080, 80)
    lab.install()
    with pytest.raises(ConnectionRefusedError):
        lab.outside.root.connect(server.host.address, 8080)
    listener = server.host.root.listen(8080)
    sock = lab.outside.root.connect(server.host.address, 8080)
    _, peer = listener.accept()
    assert peer == sock.getsockname()
