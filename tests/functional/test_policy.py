# SPDX-License-Identifier: Apache-2.0
"""Policy at connect and at the SYN; counters, events, generations."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from lab import Can
from lab.cluster import TENANT

from slimnet.model import Direction, EventKind, Reason

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS


def difference(host, before):
    after = host.counters()
    return {
        reason: after[reason] - before.get(reason, 0)
        for reason in after
        if after[reason] != before.get(reason, 0)
    }


def test_default_is_to_allow(ends):
    """An endpoint that no policy selects."""
    client, server = ends
    server.serve(80)
    client.connect(server.address, 80)


def refusal(action, *arguments, **options):
    """The errno of what must fail."""
    with pytest.raises(OSError) as caught:
        action(*arguments, **options)
    return caught.value.errno


def test_egress_denial_is_an_errno(lab, ends):
    """Where connect(2) is decided as it says of a local firewall; nothing is sent."""
    client, server = ends
    listener = server.listen(80)
    lab.isolate(client, EGRESS)
    lab.install()
    before = client.host.counters()
    assert refusal(client.connect, server.address, 80) == lab.denied
    grown = difference(client.host, before)
    assert set(grown) == {Reason.DEFAULT_DENY}
    assert lab.once(grown[Reason.DEFAULT_DENY])
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_ingress_denial_is_a_refusal(lab, ends):
    """The client sees ECONNREFUSED at once, the server sees nothing."""
    client, server = ends
    listener = server.listen(80)
    lab.isolate(server, INGRESS)
    lab.install()
    before = server.host.counters()
    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 80)
    assert time.monotonic() - started < 0.5
    assert difference(server.host, before)[Reason.DEFAULT_DENY] == 1
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["egress", "ingress"])
def test_refusals_are_prompt_however_many(lab, ends, direction):
    """Answers are not rationed, nor forgotten by a kernel that gets them while the socket is in
    use: of 200 refused connects none waits until a SYN is sent a second time, which is after a
    second."""
    client, server = ends
    server.listen(80)
    lab.isolate(client if direction is EGRESS else server, direction)
    lab.install()
    slowest, errors = client.call(_refused_often, server.address, 200)
    assert errors == [lab.denied if direction is EGRESS else errno.ECONNREFUSED]
    assert slowest < 0.9


def _refused_often(address, count):
    """The longest connect in seconds, and the distinct errnos."""
    slowest, errors = 0.0, set()
    for _ in range(count):
        started = time.monotonic()
        with socket.socket() as sock:
            errors.add(sock.connect_ex((address, 80)))
        slowest = max(slowest, time.monotonic() - started)
    return slowest, sorted(errors)


@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["egress", "ingress"])
def test_by_peer_and_port(lab, place, direction):
    client, other = lab.endpoint(0), lab.endpoint(0)
    server = lab.endpoint(0 if place == "one-host" else 1)
    server.serve(80)
    server.serve(81)
    if direction == INGRESS:
        lab.isolate(server, INGRESS)
        lab.rule(server, INGRESS, peer=client, port=80, allow=True)
    else:
        for endpoint in (client, other):
            lab.isolate(endpoint, EGRESS)
        lab.rule(client, EGRESS, peer=server, port=80, allow=True)
    lab.install()
    refused = lab.denied if direction == EGRESS else errno.ECONNREFUSED
    client.connect(server.address, 80)
    for source, port in ((client, 81), (other, 80), (other, 81)):
        assert refusal(source.connect, server.address, port) == refused
        for form in ((0, "0.0.0.0"), (5000, "0.0.0.0"), (5000, source.address)):
            sock = source.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((form[1], form[0]))
            assert refusal(sock.connect, (server.address, port)) == refused


def test_every_way_to_connect_is_asked(lab, ends):
    """connect, sendto with MSG_FASTOPEN, TCP_FASTOPEN_CONNECT, v4-mapped, and
    again after AF_UNSPEC or a refusal."""
    client, server = ends
    listener, allowed = server.listen(80), server.serve(81)
    lab.isolate(client, EGRESS)
    lab.rule(client, EGRESS, peer=server, port=81, allow=True)
    lab.install()

    target, fast = (server.address, 80), socket.MSG_FASTOPEN
    assert refusal(client.socket().sendto, b"x", fast, target) == lab.denied
    assert refusal(client.socket().sendmsg, [b"x"], [], fast, target) == lab.denied
    sock = client.socket()
    sock.setsockopt(socket.IPPROTO_TCP, 30, 1)
    assert refusal(sock.connect, target) == lab.denied
    mapped = f"::ffff:{server.address}"
    assert refusal(client.connect, mapped, 80, family=socket.AF_INET6) == lab.denied
    sock = client.connect(server.address, 81)
    client.disconnect(sock)
    assert refusal(sock.connect, target) == lab.denied
    with pytest.raises(OSError) as caught:
        sock.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    sock.connect((server.address, 81))
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    allowed.close()


def test_a_reply_needs_no_rule(lab, ends):
    client, server = ends
    listener = server.listen(80)
    lab.isolate(server, EGRESS)
    lab.isolate(client, INGRESS)
    lab.install()
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    accepted.sendall(b"reply")
    assert opened.recv(10) == b"reply"


def test_an_endpoint_always_reaches_itself(lab):
    endpoint = lab.endpoint()
    endpoint.serve(80)
    for direction in Direction:
        lab.isolate(endpoint, direction)
    lab.install()
    endpoint.connect(endpoint.address, 80)
    endpoint.connect("127.0.0.1", 80)


def test_addresses_that_nobody_has(lab):
    endpoint = lab.endpoint()
    before = endpoint.host.counters().get(Reason.NO_ENDPOINT, 0)
    sock = endpoint.socket()
    with pytest.raises(OSError) as caught:
        sock.connect(("10.77.200.200", 80))
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
    assert lab.once(endpoint.host.counters()[Reason.NO_ENDPOINT] - before)


def test_new_tables_hold_at_once_and_old_connections_go_on(lab, ends):
    client, server = ends
    server.serve(80)
    first = client.connect(server.address, 80)
    lab.isolate(server, INGRESS)
    lab.rule(server, INGRESS, peer=client, port=80, allow=True)
    lab.install()
    client.connect(server.address, 80)
    lab.policy.clear()
    lab.isolate(server, INGRESS)
    lab.install()
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 80)
    del first
    lab.policy.clear()
    lab.install()
    client.connect(server.address, 80)


def test_nothing_goes_before_the_first_tables(mode):
    """Fail closed: attached, but no tables."""
    from lab import Lab

    fresh = Lab(mode, hosts=1, tables=False)
    try:
        endpoint = fresh.endpoint(0, install=False)
        for target in ((endpoint.address, 80), ("10.77.9.9", 80), (fresh.outside.address, 80)):
            sock = endpoint.socket()
            with pytest.raises(OSError) as caught:
                sock.connect(target)
            refusals = (errno.EACCES, errno.EPERM, errno.EHOSTUNREACH)
            under_way = (errno.ECONNREFUSED, errno.EHOSTUNREACH)
            decides = fresh.can(Can.DECIDES_AT_CONNECT)
            assert caught.value.errno in (refusals if decides else under_way)
        fresh.install()
        endpoint.serve(80)
        endpoint.connect(endpoint.address, 80)
    finally:
        fresh.close()


# Events


@pytest.mark.needs(Can.OBSERVES)
def test_events(lab, ends):
    """Opened and closed at both ends, with bytes and duration."""
    client, server = ends
    hosts = {client.host, server.host}
    for host in hosts:
        host.observe()
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    source = opened.getsockname()
    opened.sendall(b"x" * 1000)
    server.call(_exactly, accepted, 1000)
    accepted.sendall(b"y" * 2000)
    client.call(_exactly, opened, 2000)
    time.sleep(0.2)
    opened.close()
    assert accepted.recv(1) == b""
    accepted.close()
    if len(hosts) == 1:
        seen = client.host.events(4)
        at_client = [event for event in seen if event.direction == EGRESS]
        at_server = [event for event in seen if event.direction == INGRESS]
    else:
        at_client, at_server = client.host.events(2), server.host.events(2)
    for events, own, peer, sent, received in (
        (at_client, client, server, 1000, 2000),
        (at_server, server, client, 2000, 1000),
    ):
        assert [event.kind for event in events] == [EventKind.OPENED, EventKind.CLOSED]
        for event in events:
            assert (event.endpoint, event.peer_endpoint) == (own.id, peer.id)
            assert (str(event.source[0]), event.source[1]) == source
            assert (str(event.destination[0]), event.destination[1]) == (server.address, 80)
            assert event.protocol == 6
            assert abs(event.time - time.time()) < 30
        counted = (sent, received) if lab.can(Can.COUNTS) else (0, 0)
        assert (events[1].sent, events[1].received) == counted
        assert 0.2 <= events[1].duration < 10


def _exactly(sock, length):
    while length:
        length -= len(sock.recv(length))


@pytest.mark.lacks(Can.OBSERVES)
def test_no_events_of_connections_though_observed(lab, ends):
    """Only what is refused is told."""
    client, server = ends
    server.serve(80)
    lab.isolate(server, INGRESS)
    lab.rule(server, INGRESS, port=80, allow=True)
    lab.install()
    for host in {client.host, server.host}:
        host.observe()
    client.connect(server.address, 80).close()
    assert refusal(client.connect, server.address, 81) == errno.ECONNREFUSED
    (event,) = server.host.events(2, timeout=1.5)
    assert (event.kind, event.destination[1]) == (EventKind.REFUSED, 81)


@pytest.mark.parametrize("direction", [EGRESS, INGRESS], ids=["egress", "ingress"])
def test_refused_event(lab, ends, direction):
    client, server = ends
    server.listen(80)
    subject = client if direction == EGRESS else server
    lab.isolate(subject, direction)
    lab.rule(subject, direction, port=80, allow=False)
    lab.install()
    subject.host.watcher.forget()
    with pytest.raises(OSError):
        client.connect(server.address, 80)
    (event,) = subject.host.events(1)
    assert event.kind == EventKind.REFUSED
    assert event.reason == Reason.RULE_DENY
    assert event.rule == 2
    assert event.direction == direction
    assert event.endpoint == subject.id
    assert event.peer_endpoint == (server if direction == EGRESS else client).id
    assert str(event.source[0]) == client.address
    assert (str(event.destination[0]), event.destination[1]) == (server.address, 80)


def test_no_events_of_connections_unless_observed(lab, ends):
    client, server = ends
    server.serve(80)
    client.host.watcher.forget()
    server.host.watcher.forget()
    client.connect(server.address, 80).close()
    assert client.host.events(1, timeout=0.3) == []
    assert server.host.events(1, timeout=0.3) == []


def test_connections_are_listed(lab, ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    listener.accept()
    local = opened.getsockname()
    at_client = [item for item in client.host.backend.connections() if item.direction == EGRESS]
    at_server = [item for item in server.host.backend.connections() if item.direction == INGRESS]
    assert len(at_client) == len(at_server) == 1
    for item, own, peer, here, there in (
        (at_client[0], client, server, local, (server.address, 80)),
        (at_server[0], server, client, (server.address, 80), local),
    ):
        assert (item.endpoint, item.peer_endpoint) == (own.id, peer.id)
        assert (str(item.local[0]), item.local[1]) == here
        assert (str(item.peer[0]), item.peer[1]) == there
        assert item.state == "ESTAB"
    opened.close()


def test_two_networks_with_the_same_addresses(lab, place):
    """Tenants do not see each other, whatever their addresses are."""
    far = 0 if place == "one-host" else 1
    ours = lab.endpoint(0), lab.endpoint(far)
    theirs = [
        lab.endpoint(where, network=TENANT, address=endpoint.address)
        for where, endpoint in zip((0, far), ours, strict=True)
    ]
    lonely = lab.endpoint(far)
    lonely.serve(80)
    with pytest.raises(OSError) as caught:
        theirs[0].connect(lonely.address, 80)
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
    listeners = [pair[1].listen(80) for pair in (ours, theirs)]
    for (client, server), listener in zip((ours, theirs), listeners, strict=True):
        for source in (0, 4999):
            sock = client.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", source))
            sock.connect((server.address, 80))
            accepted, peer = listener.accept()
            assert peer == sock.getsockname()
            assert peer[0] == client.address
            sock.close()
            accepted.close()
    listeners[1].close()
    with pytest.raises(ConnectionRefusedError):
        theirs[0].connect(theirs[1].address, 80)


@pytest.mark.needs(Can.ANY_PROGRAM)
def test_io_uring_is_asked(lab, ends, built):
    """Connects that go through a ring are refused as others are."""
    client, server = ends
    server.serve(8080)
    lab.isolate(client, EGRESS)
    lab.install()
    words = client.run([*built("ring"), "client", server.address, 8080]).split()
    assert words == ["errno", str(lab.denied)]


LISTENERS = {
    "wildcard": lambda server: server.listen(80),
    "address": lambda server: server.listen(80, server.address),
    "dual stack": lambda server: server.listen(80, family=socket.AF_INET6),
    "mapped address": lambda server: server.listen(
        80, f"::ffff:{server.address}", family=socket.AF_INET6
    ),
    "reuseport": lambda server: server.listen(80, reuseport=True),
    "bind 0": lambda server: server.listen(0),
    "bind 0, dual stack": lambda server: server.listen(0, family=socket.AF_INET6),
    "address, bind 0": lambda server: server.listen(0, server.address),
    "without bind": lambda server: server.call(_listen_only, socket.AF_INET),
    "without bind, dual stack": lambda server: server.call(_listen_only, socket.AF_INET6),
}


def _listen_only(family):
    sock = socket.socket(family)
    sock.listen()
    return sock


@pytest.mark.parametrize("kind", LISTENERS)
def test_every_listener_is_reached_by_policy(lab, place, kind):
    """By whom it allows and by nobody else."""
    client, other = lab.endpoint(0), lab.endpoint(0)
    server = lab.endpoint(0 if place == "one-host" else 1)
    listener = LISTENERS[kind](server)
    port = listener.getsockname()[1]
    lab.isolate(server, INGRESS)
    lab.rule(server, INGRESS, peer=client, port=port, allow=True)
    lab.install()
    opened = client.connect(server.address, port)
    _, peer = listener.accept()
    assert peer[0].removeprefix("::ffff:") == client.address
    assert peer[1] == opened.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        other.connect(server.address, port)
    server.connect(server.address, port)
    if "address" not in kind:
        server.connect("127.0.0.1", port)
