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
@pytest.mark.needs(Can.PUBLISHES_EVERYWHERE)
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
@pytest.mark.needs(Can.PUBLISHES_EVERYWHERE)
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
@pytest.mark.needs(Can.PUBLISHES_EVERYWHERE)
def test_only_on_its_address(lab):
    server = lab.endpoint(0)
    server.serve(80)
    lab.publish(server, 8080, 80, "127.0.0.1")
    lab.install()
    assert server.host.root.connect("127.0.0.1", 8080).getpeername() == ("127.0.0.1", 8080)
    closed(lab.outside.root, server.host.address, 8080)


@PUBLISHED
@pytest.mark.needs(Can.PUBLISHES_EVERYWHERE)
def test_an_endpoint_may_dial_it_if_policy_names_the_host(lab):
    """As any other port of a host."""
    server, client = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    lab.publish(server, 8080, 80)
    lab.install()
    with pytest.raises(PermissionError):
        client.connect(server.host.address, 8080)
    lab.rule(client, Direction.EGRESS, peer=contract.SLIM_IDENTITY_HOST, allow=True)
    lab.install()
    client.connect(server.host.address, 8080)


@PUBLISHED
@pytest.mark.lacks(Can.PUBLISHES_EVERYWHERE)
def test_from_the_host_itself_nobody_is_there(lab):
    """Refused at once, by whichever of its addresses; at the underlay address from elsewhere
    the endpoint is."""
    server = lab.endpoint(0)
    listener = server.listen(80)
    lab.publish(server, 8080, 80)
    lab.install()
    for address in ("127.0.0.1", server.host.address):
        closed(server.host.root, address, 8080)
    sock = lab.hosts[1].root.connect(server.host.address, 8080)
    _, peer = listener.accept()
    assert peer == sock.getsockname()


@PUBLISHED
def test_nobody_listens(lab):
    server = lab.endpoint(0)
    lab.publish(server, 8080, 80)
    lab.install()
    before = server.host.counters()
    refused(lab, lab.outside.root, server.host.address, 8080)
    # In a namespace of the endpoint's own it is that one's kernel that refuses.
    assert grew(server.host, before, Reason.SYN_NO_LISTENER) == int(not lab.can(Can.OWN_NAMESPACE))


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
    """By the client's address; the refusal is at once, counted, on account and told."""
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
        if lab.can(Can.COUNTS):
            (account,) = server.host.backend.accounts()
            assert (account.endpoint, account.refused) == (server.id, 1)
            assert account.direction == INGRESS
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        lab.rule(server, INGRESS, peer=5000, port=80, allow=True)
        lab.install()
        lab.outside.root.connect(server.host.address, 8080)


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
