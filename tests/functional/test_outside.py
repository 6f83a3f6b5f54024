# SPDX-License-Identifier: Apache-2.0
"""Connections to addresses outside of every overlay."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from lab import Can

from slimnet.model import Direction, EventKind, Reason

INET, INET6 = socket.AF_INET, socket.AF_INET6


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_leaves_through_the_host(lab, family):
    """The server sees the host; the endpoint sees what a container behind a
    host's address translation sees."""
    endpoint = lab.endpoint()
    listener = lab.outside.root.listen(8080)
    target = lab.outside.address if family == INET else f"::ffff:{lab.outside.address}"
    opened = endpoint.connect(target, 8080, family=family)
    accepted, peer = listener.accept()
    assert peer[0] == endpoint.host.address
    assert opened.getpeername()[:2] == (target, 8080)
    own = opened.getsockname()
    assert own[0] == (endpoint.address if family == INET else f"::ffff:{endpoint.address}")
    assert own[1] == peer[1]
    opened.sendall(b"out")
    assert accepted.recv(10) == b"out"
    accepted.sendall(b"in")
    assert opened.recv(10) == b"in"
    listener.close()


def test_underlay_address_is_not_learned(lab):
    """While connecting and when refused the endpoint's own name is the overlay's."""
    endpoint = lab.endpoint()
    sock = endpoint.socket()
    with pytest.raises(ConnectionRefusedError):
        sock.connect((lab.outside.address, 8080))
    assert sock.getsockname()[0] in (endpoint.address, "0.0.0.0")


def test_closed_port_is_refused(lab):
    endpoint = lab.endpoint()
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect(lab.outside.address, 8081)


@pytest.mark.parametrize(
    "source",
    [("0.0.0.0", 0), ("own", 0), ("0.0.0.0", 5000), ("own", 5000)],
    ids=["wildcard-0", "own-0", "wildcard-5000", "own-5000"],
)
def test_bound_then_connected(lab, source):
    """Port 0 works; an explicit port works or is a clear errno, never a hang."""
    endpoint = lab.endpoint()
    listener = lab.outside.root.listen(8080)
    sock = endpoint.socket()
    address = endpoint.address if source[0] == "own" else source[0]
    sock.bind((address, source[1]))
    port = sock.getsockname()[1]
    sock.settimeout(3)
    started = time.monotonic()
    try:
        sock.connect((lab.outside.address, 8080))
    except OSError as error:
        assert time.monotonic() - started < 1
        assert source[1] != 0, error
        assert error.errno in (errno.EADDRNOTAVAIL, errno.EACCES, errno.ENETUNREACH, errno.EINVAL)
    else:
        accepted, peer = listener.accept()
        assert peer[0] == endpoint.host.address
        accepted.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert sock.getsockname() == (endpoint.address, port)
        if source[1] == 0:
            assert peer[1] == port
    listener.close()


def test_the_hosts_of_the_cluster_are_denied(lab):
    """Unless allowed by name: its own host, another, any port, wildcard or loopback."""
    endpoint = lab.endpoint()
    for host in lab.hosts:
        listener = host.root.listen(8080)
        before = endpoint.host.counters().get(Reason.HOST_DENY, 0)
        with pytest.raises(OSError) as caught:
            endpoint.connect(host.address, 8080)
        assert caught.value.errno == lab.denied
        assert lab.once(endpoint.host.counters()[Reason.HOST_DENY] - before)
        with pytest.raises(OSError) as caught:
            endpoint.connect(f"::ffff:{host.address}", 8080, family=INET6)
        assert caught.value.errno == lab.denied
        listener.close()


def test_egress_policy_holds_outside(lab):
    endpoint = lab.endpoint()
    listener = lab.outside.root.listen(8080)
    other = lab.outside.root.listen(8081)
    lab.isolate(endpoint, Direction.EGRESS)
    lab.rule(endpoint, Direction.EGRESS, peer=1, port=8080, allow=True)
    lab.install()
    endpoint.connect(lab.outside.address, 8080)
    with pytest.raises(OSError) as caught:
        endpoint.connect(lab.outside.address, 8081)
    assert caught.value.errno == lab.denied
    assert endpoint.refused_datagram(lab.outside.address, 53) == lab.denied_datagram
    listener.close()
    other.close()


def test_no_route(lab):
    """What the host cannot reach is its errno at once."""
    endpoint = lab.endpoint()
    sock = endpoint.socket()
    with pytest.raises(OSError) as caught:
        sock.connect(("203.0.113.1", 80))
    assert caught.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def test_v6_outside(lab):
    """IPv6 is not carried yet: at once and clear, so that programs fall back to IPv4."""
    endpoint = lab.endpoint()
    sock = endpoint.socket(INET6)
    with pytest.raises(OSError) as caught:
        sock.connect(("2001:db8::1", 80))
    assert caught.value.errno in (
        errno.ENETUNREACH,
        errno.EACCES,
        errno.EHOSTUNREACH,
        errno.EAFNOSUPPORT,
    )


def test_outside_then_overlay_on_one_socket(lab):
    """No stale name, either way round (AF_UNSPEC in between)."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    inside = server.listen(80)
    outside = lab.outside.root.listen(8080)
    sock = client.connect(lab.outside.address, 8080)
    outside.accept()
    for _ in range(2):
        client.disconnect(sock)
        sock.connect((server.address, 80))
        _, peer = inside.accept()
        assert peer == sock.getsockname()
        assert sock.getpeername() == (server.address, 80)
        client.disconnect(sock)
        sock.connect((lab.outside.address, 8080))
        _, peer = outside.accept()
        assert peer[0] == client.host.address
        assert sock.getpeername() == (lab.outside.address, 8080)
    outside.close()


@pytest.mark.needs(Can.OBSERVES)
@pytest.mark.lacks(Can.OWN_DEVICES)
def test_events_of_an_outside_connection(lab):
    endpoint = lab.endpoint()
    listener = lab.outside.root.listen(8080)
    endpoint.host.observe()
    opened = endpoint.connect(lab.outside.address, 8080)
    accepted, _ = listener.accept()
    opened.sendall(b"12345")
    assert accepted.recv(10) == b"12345"
    opened.close()
    accepted.close()
    seen = endpoint.host.events(2)
    assert [event.kind for event in seen] == [EventKind.OPENED, EventKind.CLOSED]
    for event in seen:
        assert event.endpoint == endpoint.id
        assert event.peer_endpoint == 0
        assert (str(event.destination[0]), event.destination[1]) == (lab.outside.address, 8080)
        assert event.direction == Direction.EGRESS
    assert (seen[1].sent, seen[1].received) == ((5, 0) if lab.can(Can.COUNTS) else (0, 0))
    listener.close()
