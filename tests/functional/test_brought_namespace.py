# SPDX-License-Identifier: Apache-2.0
"""Endpoints in network namespaces that somebody brought, as container engines do, beside
those whose place the backend makes: of whatever kind that is, they talk to each other."""

from __future__ import annotations

import errno

import pytest
from lab import Can

from slimnet.model import Direction, Reason

pytestmark = [pytest.mark.root, pytest.mark.needs(Can.TAKES_NAMESPACES)]

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS


@pytest.fixture(params=["brought to made", "made to brought", "brought to brought"])
def pair(request, lab, place, namespaces):
    """A client and a server."""
    client, server = (kind == "brought" for kind in request.param.split(" to "))
    one = lab.endpoint(0, netns=namespaces() if client else None, install=False)
    two = lab.endpoint(
        0 if place == "one-host" else 1, netns=namespaces() if server else None, install=False
    )
    lab.install()
    return one, two


def test_a_connection_and_its_names(lab, pair):
    client, server = pair
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, peer = listener.accept()
    assert opened.getpeername() == (server.address, 80)
    assert accepted.getsockname() == (server.address, 80)
    assert peer == opened.getsockname() == accepted.getpeername()
    assert peer[0] == client.address
    opened.sendall(b"question")
    assert accepted.recv(100) == b"question"
    accepted.sendall(b"answer")
    assert opened.recv(100) == b"answer"
    opened.close()
    assert accepted.recv(1) == b""


def much(sock, count):
    sock.sendall(bytes(count))


def all_of(sock, count):
    got = 0
    while got < count:
        data = sock.recv(1 << 20)
        if not data:
            break
        got += len(data)
    return got


def test_a_lot_of_data_both_ways(lab, pair):
    """Segments of all sizes, and those that the kernel leaves whole for the device."""
    client, server = pair
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    for sender, receiver, one, other in (
        (client, server, opened, accepted),
        (server, client, accepted, opened),
    ):
        sending = sender.start(much, one, 20_000_000)
        assert receiver.call(all_of, other, 20_000_000, deadline=60) == 20_000_000
        sending.result(10)


def test_nobody_listens(lab, pair):
    client, server = pair
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 81)


@pytest.mark.parametrize("whose", [EGRESS, INGRESS])
def test_policy_of_either_end_holds(lab, pair, whose):
    client, server = pair
    subject, peer = (client, server) if whose is EGRESS else (server, client)
    listener = server.listen(80)
    server.listen(81)
    lab.isolate(subject, whose)
    lab.rule(subject, whose, peer=peer, port=80, allow=True)
    lab.install()
    client.connect(server.address, 80)
    listener.accept()
    before = [host.counters() for host in lab.hosts]
    with pytest.raises(OSError) as refused:
        client.connect(server.address, 81)
    assert refused.value.errno in {errno.ECONNREFUSED, errno.EACCES}
    # Of policy, and of nothing else that is in the way as well.
    for host, counted in zip(lab.hosts, before, strict=True):
        for reason in (Reason.NO_ENDPOINT, Reason.UNREACHABLE):
            assert host.counters().get(reason, 0) == counted.get(reason, 0)


def test_new_tables_end_it(lab, pair):
    client, server = pair
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    opened.sendall(b"x")
    assert accepted.recv(1) == b"x"
    lab.isolate(server, INGRESS)
    lab.install()
    with pytest.raises(OSError):
        for _ in range(50):
            opened.sendall(b"y")
            assert opened.recv(1) != b""
    accepted.close()


@pytest.mark.needs(Can.DIRECT)
def test_it_is_not_wrapped(lab, pair):
    """A connection between two hosts is one of the underlay's, whatever its ends are."""
    client, server = pair
    server.listen(80)
    client.connect(server.address, 80)
    wires = {each.wire for each in client.host.backend.connections() if each.endpoint == client.id}
    assert wires == ({None} if client.host is server.host else {lab.wire})
