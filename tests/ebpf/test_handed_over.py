# SPDX-License-Identifier: Apache-2.0
"""Sockets passed over SCM_RIGHTS: whoever holds one, it is the endpoint's that created
it, with that endpoint's name and under its policy, as it would be with network
namespaces. Policy is about who opens a connection, not about who holds it."""

from __future__ import annotations

import errno

import pytest

from slimnet.model import Direction, Reason

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS


@pytest.mark.container
def test_a_new_socket(lab, ends):
    """It dials in its creator's name."""
    client, server = ends
    other = lab.endpoint(0)
    listener = server.listen(80)
    new = client.give(client.socket(), other)
    new.connect((server.address, 80))
    accepted, peer = listener.accept()
    assert peer == new.getsockname()
    assert peer[0] == client.address
    accepted.sendall(b"hello")
    assert new.recv(10) == b"hello"


@pytest.mark.container
def test_a_connected_socket(lab, ends):
    """Names and data, at both ends, in the hands of others."""
    client, server = ends
    friend, other = lab.endpoint(0), lab.endpoint(server.host is not client.host)
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, name = listener.accept()
    opened, accepted = client.give(opened, friend), server.give(accepted, other)
    assert opened.getsockname() == accepted.getpeername() == name
    assert opened.getpeername() == accepted.getsockname() == (server.address, 80)
    opened.sendall(b"question")
    assert accepted.recv(10) == b"question"
    accepted.sendall(b"answer")
    assert opened.recv(10) == b"answer"


@pytest.mark.container
def test_a_listening_socket(lab, ends):
    """It is found at its creator's address only, and accepts in its name."""
    server, client = ends
    other = lab.endpoint(0)
    listening = server.give(server.listen(81), other)
    opened = client.connect(server.address, 81)
    accepted, peer = listening.accept()
    assert peer == opened.getsockname()
    assert accepted.getsockname() == (server.address, 81)
    with pytest.raises(ConnectionRefusedError):
        client.connect(other.address, 81)


@pytest.mark.parametrize("state", ["new", "bound", "connected before"])
def test_a_socket_of_a_denied_endpoint(lab, ends, state):
    """In the hands of one that may, it still may not."""
    client, server = ends
    other = lab.endpoint(0)
    server.serve(80)
    sock = client.socket()
    if state == "bound":
        sock.bind(("0.0.0.0", 0))
    elif state == "connected before":
        sock.connect((server.address, 80))
        client.disconnect(sock)
    lab.isolate(client, EGRESS)
    lab.install()
    before = client.host.counters().get(Reason.DEFAULT_DENY, 0)
    passed = client.give(sock, other)
    with pytest.raises(PermissionError) as caught:
        passed.connect((server.address, 80))
    assert caught.value.errno == errno.EACCES
    assert client.host.counters()[Reason.DEFAULT_DENY] == before + 1
    other.connect(server.address, 80)


def test_a_socket_for_a_denied_endpoint(lab, ends):
    """In the hands of one that may not, it still may: its creator vouches for it."""
    client, server = ends
    other = lab.endpoint(0)
    listener = server.listen(80)
    lab.isolate(other, EGRESS)
    lab.install()
    with pytest.raises(PermissionError):
        other.connect(server.address, 80)
    passed = client.give(client.socket(), other)
    passed.connect((server.address, 80))
    _, peer = listener.accept()
    assert peer == passed.getsockname()
    assert peer[0] == client.address


def test_a_connected_socket_of_an_endpoint_that_policy_admits(lab, ends):
    """The holder's own policy says nothing of it; to connect again it is asked anew."""
    client, server = ends
    other = lab.endpoint(0)
    server.serve(80)
    lab.isolate(other, EGRESS)
    lab.isolate(client, EGRESS)
    lab.rule(client, EGRESS, peer=server, port=80, allow=True)
    lab.install()
    passed = client.give(client.connect(server.address, 80), other)
    passed.sendall(b"x")
    assert passed.recv(1) == b"x"
    other.disconnect(passed)
    before = client.host.counters().get(Reason.DEFAULT_DENY, 0)
    with pytest.raises(PermissionError):
        passed.connect((server.address, 81))
    assert client.host.counters()[Reason.DEFAULT_DENY] == before + 1
    passed.connect((server.address, 80))


@pytest.mark.parametrize("denied", ["creator", "holder"])
def test_a_listening_socket_is_under_its_creators_policy(lab, ends, denied):
    server, client = ends
    holder = lab.endpoint(0)
    listening = server.give(server.listen(81), holder)
    lab.isolate(server if denied == "creator" else holder, INGRESS)
    lab.install()
    if denied == "holder":
        client.connect(server.address, 81)
        _, peer = listening.accept()
        assert peer[0] == client.address
        return
    before = server.host.counters().get(Reason.DEFAULT_DENY, 0)
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 81)
    assert server.host.counters()[Reason.DEFAULT_DENY] == before + 1
    listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        listening.accept()


def test_a_listening_socket_that_its_holder_starts(lab, ends):
    """Created and bound by one endpoint, listen(2) called by another."""
    server, client = ends
    holder = lab.endpoint(0)
    sock = server.socket()
    sock.bind(("0.0.0.0", 81))
    passed = server.give(sock, holder)
    passed.listen()
    opened = client.connect(server.address, 81)
    _, peer = passed.accept()
    assert peer == opened.getsockname()
    with pytest.raises(ConnectionRefusedError):
        client.connect(holder.address, 81)


def test_a_socket_of_the_host_is_the_hosts(lab):
    """What a process of the host hands an endpoint was the host's to give; and an
    endpoint's socket in the hands of the host stays under policy."""
    endpoint = lab.endpoint(0)
    host = endpoint.host
    listener = lab.outside.root.listen(8080)
    lab.isolate(endpoint, EGRESS)
    lab.install()
    given = host.root.give(host.root.socket(), endpoint)
    given.connect((lab.outside.address, 8080))
    _, peer = listener.accept()
    assert peer[0] == host.address
    taken = endpoint.give(endpoint.socket(), host.root)
    before = host.counters().get(Reason.DEFAULT_DENY, 0)
    with pytest.raises(PermissionError):
        taken.connect((lab.outside.address, 8080))
    assert host.counters()[Reason.DEFAULT_DENY] == before + 1
