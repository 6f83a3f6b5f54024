# SPDX-License-Identifier: Apache-2.0
"""What getsockname, getpeername and accept say, in every state of a socket."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import time

import pytest

INET, INET6 = socket.AF_INET, socket.AF_INET6

pytestmark = pytest.mark.container


def mapped(address):
    return f"::ffff:{address}"


def test_connected_both_ends(ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, peer = listener.accept()

    local = opened.getsockname()
    assert local[0] == client.address
    assert local[1] > 0
    assert opened.getpeername() == (server.address, 80)
    assert peer == local
    assert accepted.getpeername() == local
    assert accepted.getsockname() == (server.address, 80)


def test_accept4_names_the_client(ends):
    """accept4(2) with an address buffer, as C programs call it; flags are taken."""
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)

    family, port, address, flags = server.call(_accept4, listener)

    assert family == INET
    assert (address, port) == opened.getsockname()
    assert flags == (True, True)


def _accept4(listener):
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(128)
    length = ctypes.c_uint32(128)
    fd = libc.accept4(
        listener.fileno(),
        buffer,
        ctypes.byref(length),
        socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
    )
    if fd < 0:
        raise OSError(ctypes.get_errno(), "accept4")
    flags = (
        bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC),
        bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK),
    )
    os.close(fd)
    family, port = struct.unpack("=H", buffer.raw[:2])[0], struct.unpack("!H", buffer.raw[2:4])[0]
    return family, port, socket.inet_ntoa(buffer.raw[4:8]), flags


@pytest.mark.parametrize("address", ["own", "0.0.0.0"])
def test_bound_and_listening(lab, address):
    """What was bound is what is named: the wildcard stays the wildcard."""
    server = lab.endpoint()
    wanted = server.address if address == "own" else address
    sock = server.socket()
    sock.bind((wanted, 8080))
    assert sock.getsockname() == (wanted, 8080)
    sock.listen()
    assert sock.getsockname() == (wanted, 8080)
    with pytest.raises(OSError) as caught:
        sock.getpeername()
    assert caught.value.errno == errno.ENOTCONN


def test_fresh_socket_is_nobody(lab):
    endpoint = lab.endpoint()
    for family, nothing in ((INET, ("0.0.0.0", 0)), (INET6, ("::", 0, 0, 0))):
        assert endpoint.socket(family).getsockname() == nothing


@pytest.mark.parametrize("address", ["own", "0.0.0.0"])
def test_bound_to_port_0(lab, address):
    """The kernel chooses a port; the address is the one that was asked for."""
    endpoint = lab.endpoint()
    wanted = endpoint.address if address == "own" else address
    sock = endpoint.socket()
    sock.bind((wanted, 0))
    name = sock.getsockname()
    assert name[0] == wanted
    assert name[1] > 0
    sock.listen()
    assert sock.getsockname() == name


def test_v6_wildcard_stays(lab):
    server = lab.endpoint()
    sock = server.socket(INET6)
    sock.bind(("::", 8080))
    assert sock.getsockname() == ("::", 8080, 0, 0)
    sock.listen()
    assert sock.getsockname() == ("::", 8080, 0, 0)


def test_v4_mapped_bind(lab):
    server = lab.endpoint()
    sock = server.socket(INET6)
    sock.bind((mapped(server.address), 8080))
    assert sock.getsockname() == (mapped(server.address), 8080, 0, 0)


def test_dual_stack_listener_sees_mapped_names(ends):
    client, server = ends
    listener = server.listen(80, family=INET6)
    opened = client.connect(server.address, 80)
    accepted, peer = listener.accept()
    address, port = opened.getsockname()
    assert peer == (mapped(address), port, 0, 0)
    assert accepted.getpeername() == (mapped(client.address), port, 0, 0)
    assert accepted.getsockname() == (mapped(server.address), 80, 0, 0)


def test_v4_mapped_connect(ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(mapped(server.address), 80, family=INET6)
    accepted, peer = listener.accept()
    assert opened.getpeername() == (mapped(server.address), 80, 0, 0)
    local = opened.getsockname()
    assert local[0] == mapped(client.address)
    assert peer == (client.address, local[1])
    assert accepted.getsockname() == (server.address, 80)


def test_mapped_to_dual_stack(ends):
    client, server = ends
    server.serve(80, family=INET6)
    opened = client.connect(mapped(server.address), 80, family=INET6)
    opened.sendall(b"x" * 1000)
    assert client.call(_read, opened, 1000) == b"x" * 1000


def _read(sock, length):
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            break
        data += piece
    return data


def test_v6only_listener_is_not_reached_by_v4(ends):
    """nginx opens ``[::]:80 ipv6only=on`` beside ``0.0.0.0:80``: they do not collide."""
    client, server = ends
    six = server.socket(INET6)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    six.bind(("::", 80))
    six.listen()
    assert six.getsockname() == ("::", 80, 0, 0)
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 80)
    four = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = four.accept()
    assert accepted.getpeername() == opened.getsockname()


def test_dual_stack_and_v4_wildcard_collide(lab):
    server = lab.endpoint()
    server.listen(80, family=INET6)
    with pytest.raises(OSError) as caught:
        server.listen(80)
    assert caught.value.errno == errno.EADDRINUSE


def test_dual_stack_and_v4_address_collide(lab):
    server = lab.endpoint()
    server.listen(80, family=INET6)
    with pytest.raises(OSError) as caught:
        server.listen(80, server.address)
    assert caught.value.errno == errno.EADDRINUSE


def test_while_connecting(ends):
    """A full accept queue keeps the connect in SYN_SENT; its name is known already."""
    client, server = ends
    listener = server.listen(80, backlog=0)
    hold = client.connect(server.address, 80)
    sock = client.socket()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.connect((server.address, 80))
    address, port = sock.getsockname()
    assert address == client.address
    assert port > 0
    with pytest.raises(OSError) as caught:
        sock.getpeername()
    if caught.value.errno != errno.ENOTCONN:
        raise caught.value
    first, _ = listener.accept()
    assert first.getpeername() == hold.getsockname()
    until = time.monotonic() + 10
    while client.call(_writable, sock) is False:
        assert time.monotonic() < until
    assert sock.getsockname() == (address, port)
    assert sock.getpeername() == (server.address, 80)


def _writable(sock):
    return bool(select.select([], [sock], [], 0.5)[1])


def test_after_shutdown_and_after_the_peer_has_gone(ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, peer = listener.accept()
    opened.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    assert opened.getpeername() == (server.address, 80)
    assert opened.getsockname() == peer
    assert accepted.getpeername() == peer
    accepted.close()
    assert opened.recv(1) == b""
    # Both FINs are through: closed for getpeername, as everywhere.
    with pytest.raises(OSError) as caught:
        opened.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    assert opened.getsockname() == peer


def test_after_a_refused_connect(ends):
    """No stale name is left, and the socket can be used again."""
    client, server = ends
    sock = client.socket()
    with pytest.raises(ConnectionRefusedError):
        sock.connect((server.address, 80))
    with pytest.raises(OSError) as caught:
        sock.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    listener = server.listen(80)
    sock.connect((server.address, 80))
    accepted, peer = listener.accept()
    assert sock.getpeername() == (server.address, 80)
    assert peer == sock.getsockname()
    accepted.close()


def test_after_a_reset(ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    local = opened.getsockname()
    accepted, _ = listener.accept()
    server.call(_reset, accepted)
    with pytest.raises(ConnectionResetError):
        opened.recv(1)
    with pytest.raises(OSError) as caught:
        opened.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    assert opened.getsockname()[1] in (0, local[1])


def _reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_port_0_to_any_listener(ends):
    """A listener on a port that the kernel chose is reached at that port."""
    client, server = ends
    for address in ("0.0.0.0", server.address):
        listener = server.listen(0, address)
        port = listener.getsockname()[1]
        opened = client.connect(server.address, port)
        accepted, peer = listener.accept()
        assert opened.getpeername() == (server.address, port)
        assert accepted.getsockname() == (server.address, port)
        assert peer == opened.getsockname()


def test_listen_without_bind(ends):
    """The kernel binds to the wildcard and a port of its choice."""
    client, server = ends
    listener = server.socket()
    listener.listen()
    address, port = listener.getsockname()
    assert address == "0.0.0.0"
    assert port > 0
    opened = client.connect(server.address, port)
    accepted, peer = listener.accept()
    assert peer == opened.getsockname()
    assert accepted.getsockname() == (server.address, port)


def test_own_address(lab):
    """An endpoint reaches its own listener at its own overlay address."""
    endpoint = lab.endpoint()
    listener = endpoint.listen(80)
    opened = endpoint.connect(endpoint.address, 80)
    accepted, peer = listener.accept()
    assert opened.getpeername() == (endpoint.address, 80)
    assert peer == opened.getsockname()
    assert peer[0] == endpoint.address
    assert accepted.getsockname() == (endpoint.address, 80)


def test_peek_at_names_by_recvmsg_and_sendto(ends):
    """On TCP recvfrom gives no address and sendto's is ignored when connected."""
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    opened.sendto(b"hello", (server.address, 80))
    assert accepted.recvfrom(10) == (b"hello", None)
