# SPDX-License-Identifier: Apache-2.0
"""A socket that was accepted and is used again, as a client or as a listener: nothing
of its first connection speaks for the next, and the kernel comes to no harm."""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest
from lab import packets
from lab.packets import Syn

from slimnet.model import Direction, Reason

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS


def used(client, server, port=80):
    """What accept(2) gave at ``server``, disconnected; and the listener."""
    listener = server.listen(port)
    opened = client.connect(server.address, port)
    child, _ = listener.accept()
    opened.close()
    assert child.recv(1) == b""
    server.disconnect(child)
    return child, listener


def _in_use() -> int:
    """The TCP sockets of this network namespace that are not closed."""
    with open("/proc/net/sockstat") as file:
        return int(next(line for line in file if line.startswith("TCP:")).split()[2])


def _settled(in_use: int) -> bool:
    """Whether the kernel lets go of all but so many."""
    import time

    until = time.monotonic() + 5
    while time.monotonic() < until:
        with open("/proc/net/sockstat") as file:
            if int(next(line for line in file if line.startswith("TCP:")).split()[2]) <= in_use:
                return True
        time.sleep(0.02)
    return False


def test_a_listener_that_was_accepted(lab, ends, kernel_faults):
    """Its own children end as anywhere: the peer sees the end of the file, and the kernel
    keeps nothing of them (it never freed them, with a WARN in sock_map_close())."""
    client, server = ends
    child, listener = used(client, server)
    child.bind(("0.0.0.0", 81))
    child.listen()
    near = lab.endpoint(lab.hosts.index(server.host))
    before = server.host.root.call(_in_use)
    opened = near.connect(server.address, 81)
    accepted, peer = child.accept()
    assert peer == opened.getsockname()
    accepted.close()
    opened.settimeout(5)
    assert opened.recv(1) == b""
    opened.close()
    assert server.host.root.call(_settled, before)
    assert kernel_faults() == []
    # What was there before is not disturbed.
    again = client.connect(server.address, 80)
    _, peer = listener.accept()
    assert peer == again.getsockname()


@pytest.mark.parametrize("first", ["from an endpoint", "from a published port"])
def test_a_client_that_was_accepted(lab, ends, first):
    """It is under its endpoint's egress policy: at connect, when that changes, in the
    accounts and in what is told of it."""
    _, server = ends
    target = lab.endpoint(1)
    theirs = target.listen(81)
    if first == "from an endpoint":
        child, _ = used(lab.endpoint(0), server)
    else:
        lab.publish(server, 8080, 80)
        lab.install()
        listener = server.listen(80)
        opened = lab.outside.root.connect(server.host.address, 8080)
        child, _ = listener.accept()
        opened.close()
        assert child.recv(1) == b""
        server.disconnect(child)
    child.settimeout(5)
    child.connect((target.address, 81))
    assert child.getsockname()[0] == server.address
    assert child.getpeername() == (target.address, 81)
    arrived, peer = theirs.accept()
    assert peer == child.getsockname()
    (shown,) = [one for one in server.host.backend.connections() if one.endpoint == server.id]
    assert shown.direction is EGRESS
    assert shown.peer_endpoint == target.id
    accounts = {
        (one.endpoint, one.direction): one.connections for one in server.host.backend.accounts()
    }
    assert accounts[server.id, EGRESS] == 1
    # Ingress, by which it was let in at first, says nothing of it any more.
    lab.isolate(server, INGRESS)
    lab.install()
    arrived.sendall(b"x")
    assert child.recv(1) == b"x"
    lab.isolate(server, EGRESS)
    before = server.host.counters().get(Reason.REVOKED, 0)
    lab.install()
    assert server.host.counters()[Reason.REVOKED] == before + 1
    with pytest.raises(OSError) as caught:
        child.recv(1)
    assert caught.value.errno == errno.ECONNABORTED


def _accept(listener: socket.socket) -> socket.socket:
    """accept(2) that does not ask for the peer's name: a port 0 has none."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.accept(listener.fileno(), None, None)
    if number < 0:
        raise OSError(ctypes.get_errno(), "accept")
    return socket.socket(fileno=number)


def test_a_published_connection_from_port_0(lab):
    """Port 0 is one that a machine outside may send from."""
    server = lab.endpoint(0)
    listener = server.listen(80)
    lab.publish(server, 8080, 80)
    lab.install()
    syn = Syn(source=lab.outside.address, destination=server.host.address, port=8080)
    with packets.no_reset(lab.outside):
        assert packets.shake_hands(lab.outside.root, syn)
        child = server.call(_accept, listener)
        lab.isolate(server, INGRESS)
        lab.install()
        child.settimeout(5)
        with pytest.raises(OSError) as caught:
            child.recv(1)
        assert caught.value.errno == errno.ECONNABORTED


@pytest.mark.container
def test_a_listener_that_listens_on_another_port(ends):
    """Its first port is closed: the kernel gives a port back that it chose itself."""
    client, server = ends
    listener = server.socket()
    listener.bind(("0.0.0.0", 0))
    listener.listen()
    _, first = listener.getsockname()
    server.disconnect(listener)
    listener.listen()
    _, second = listener.getsockname()
    assert second != first
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, first)
    opened = client.connect(server.address, second)
    _, peer = listener.accept()
    assert peer == opened.getsockname()


def test_a_listener_that_connects_to_its_own_port(lab):
    """It does not meet itself there, and its port is free when it is closed."""
    endpoint = lab.endpoint()
    sock = endpoint.listen(80, "127.0.0.1")
    endpoint.disconnect(sock)
    with pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", 80))
    sock.close()
    endpoint.socket().bind(("0.0.0.0", 80))


def test_a_socket_that_met_itself(lab):
    """By a simultaneous open, which a listener on its own port lets it do: it keeps its
    name, and the next one that it connects to does not take it for a local client."""
    endpoint, neighbour = lab.endpoint(0), lab.endpoint(0)
    listener = neighbour.listen(80)
    endpoint.listen(81, reuseport=True)
    sock = endpoint.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((endpoint.address, 81))
    sock.connect(("127.0.0.1", 81))
    assert sock.getsockname() == (endpoint.address, 81)
    assert sock.getpeername() == ("127.0.0.1", 81)
    endpoint.disconnect(sock)
    sock.connect((neighbour.address, 80))
    _, peer = listener.accept()
    assert peer == (endpoint.address, 81)


def test_a_connect_that_the_kernel_refuses(lab):
    """A connection on the same addresses and ports is in its way, and that one keeps its
    name although its handshake is not over."""
    client, server = lab.endpoint(0), lab.endpoint(0)
    server.serve(81)
    listener = server.listen(80)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    first, second = client.socket(), client.socket()
    for sock in (first, second):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((client.address, 5000))
    second.connect((server.address, 81))  # it is followed to its end from here on
    client.disconnect(second)
    first.connect((server.address, 80))
    with pytest.raises(OSError) as caught:
        second.connect((server.address, 80))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    first.sendall(b"x")
    child, peer = listener.accept()
    assert peer == (client.address, 5000)
    assert child.recv(1) == b"x"


@pytest.mark.parametrize("target", ["224.0.0.1", "240.0.0.1"])
def test_a_refused_connect_of_an_accepted_socket(ends, target):
    """The kernel remembers the port that its first connection came in by: a wire port, or
    that of inner addresses."""
    child, _ = used(*ends)
    with pytest.raises(OSError):
        child.connect((target, 80))
    assert child.getsockname() == ("0.0.0.0", 0)


def _bind_and_connect(own: str, seconds: float) -> set[tuple[str, int]]:
    """A bind, and a connect that is refused, at once; the names that came of it."""
    import threading
    import time

    names = set()
    gate = threading.Barrier(2)

    def refused() -> None:
        while True:
            gate.wait()
            if sock is None:
                return
            sock.connect_ex(("240.0.0.1", 80))
            gate.wait()

    thread = threading.Thread(target=refused)
    thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sock = socket.socket()
        gate.wait()
        with contextlib.suppress(OSError):
            sock.bind((own, 5000))
        gate.wait()
        names.add(sock.getsockname())
        sock.close()
    sock = None
    gate.wait()
    thread.join()
    return names


def test_bind_and_a_refused_connect_at_once(lab):
    """bind(2) holds the socket's lock twice, and connect(2) may come in between."""
    endpoint = lab.endpoint()
    names = endpoint.call(_bind_and_connect, endpoint.address, 1.5)
    assert names <= {(endpoint.address, 5000), ("0.0.0.0", 0)}
