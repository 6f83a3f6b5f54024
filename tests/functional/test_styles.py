# SPDX-License-Identifier: Apache-2.0
"""Unmodified programs in every style."""

from __future__ import annotations

import ctypes
import errno
import select
import shutil
import socket
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
from lab import Can

pytestmark = pytest.mark.container

INET, INET6 = socket.AF_INET, socket.AF_INET6
PROGRAMS = Path(__file__).parent / "programs"


def available(*tools):
    """Of languages with their compilers, those of this machine."""
    path = "/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin"
    return [name for name, tool in tools if shutil.which(tool, path=path)]


def check_lines(output, client, server, port, count):
    """Each line: what the client says it is, what the server says it saw."""
    lines = [line.split() for line in output.split("\n") if line]
    assert len(lines) == count, output
    for own, own_port, peer, peer_port, at, at_port in lines:
        assert (own, own_port) == (peer, peer_port)
        assert own == client.address
        assert (at, at_port) == (server.address, str(port))


@pytest.mark.parametrize("language", ["dynamic", *available(("java", "javac"), ("node", "node"))])
def test_programs(ends, built, language):
    """Client and server in C, Java, Node."""
    run_program(*ends, built, language)


@pytest.mark.needs(Can.ANY_PROGRAM)
@pytest.mark.parametrize("language", ["static", *available(("musl", "musl-gcc"), ("go", "go"))])
def test_programs_without_libc(ends, built, language):
    """Client and server in static C, with glibc and with musl, and in Go."""
    run_program(*ends, built, language)


def run_program(client, server, built, language):
    words = [8080, 4] if language in ("static", "musl", "dynamic") else [8080]
    program = server.spawn([*built(language), "server", *words])
    program.ready("ready")
    output = client.run([*built(language), "client", server.address, 8080, 20])
    check_lines(output, client, server, 8080, 20)
    with pytest.raises(RuntimeError):
        client.run([*built("dynamic"), "client", server.address, 8081, 1])


def test_prefork_fork_and_exec_with_inherited_sockets(ends, built):
    client, server = ends
    program = server.spawn([sys.executable, PROGRAMS / "prefork.py", 8080])
    program.ready("ready")
    output = client.run([*built("dynamic"), "client", server.address, 8080, 40])
    check_lines(output, client, server, 8080, 40)


@pytest.mark.needs(Can.ANY_PROGRAM)
def test_io_uring(ends, built):
    """Sockets made, connected and accepted by io_uring."""
    client, server = ends
    program = server.spawn([*built("ring"), "server", 8080])
    program.ready("ready")
    for _ in range(5):
        own, port, peer, peer_port = client.run(
            [*built("ring"), "client", server.address, 8080]
        ).split()
        assert own == peer == client.address
        assert port == peer_port
    refused = client.run([*built("ring"), "client", server.address, 8081])
    assert refused.split() == ["errno", str(errno.ECONNREFUSED)]


# Non-blocking


@pytest.mark.parametrize("how", ["select", "poll", "epoll", "edge-triggered"])
def test_non_blocking(ends, how):
    client, server = ends
    echo = server.start(non_blocking_server, server.listen(80, backlog=64), how, 20)
    assert client.call(non_blocking_client, (server.address, 80), how, 20) == 20
    assert echo.result(10) == 20


def non_blocking_client(target, how, count):
    """``count`` connections at once, each sends and reads back."""
    socks = {}
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(target)
        socks[sock.fileno()] = sock

    def wait(fds, write):
        if how == "select":
            readable, writable, _ = select.select([] if write else fds, fds if write else [], [], 5)
            return writable if write else readable
        if how == "poll":
            poll = select.poll()
            for fd in fds:
                poll.register(fd, select.POLLOUT if write else select.POLLIN)
            return [fd for fd, _ in poll.poll(5000)]
        with select.epoll() as poll:
            edge = select.EPOLLET if how == "edge-triggered" else 0
            for fd in fds:
                poll.register(fd, (select.EPOLLOUT if write else select.EPOLLIN) | edge)
            return [fd for fd, _ in poll.poll(5)]

    waiting = list(socks)
    while waiting:
        ready = wait(waiting, True)
        assert ready, "connect never finished"
        for fd in ready:
            error = socks[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            assert error == 0, error
            assert socks[fd].connect_ex(target) in (0, errno.EISCONN)
            assert socks[fd].getpeername() == target
            socks[fd].send(b"%d" % fd)
            waiting.remove(fd)
    waiting = list(socks)
    while waiting:
        ready = wait(waiting, False)
        assert ready, "no answer"
        for fd in ready:
            assert socks[fd].recv(64) == b"%d" % fd
            waiting.remove(fd)
    for sock in socks.values():
        sock.close()
    return count


def non_blocking_server(listener, how, count):
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    socks, closed = {}, 0
    while closed < count:
        events = poll.poll(10)
        if not events:
            return closed
        for fd, _ in events:
            if fd == listener.fileno():
                try:
                    while True:
                        sock, _ = listener.accept()
                        sock.setblocking(False)
                        socks[sock.fileno()] = sock
                        poll.register(sock, select.EPOLLIN)
                except BlockingIOError:
                    continue
            data = socks[fd].recv(64)
            if data:
                socks[fd].send(data)
            else:
                poll.unregister(fd)
                socks.pop(fd).close()
                closed += 1
    return closed


def test_non_blocking_refusal(ends):
    """The error comes by SO_ERROR, as from any network."""
    client, server = ends
    assert client.call(refused_later, (server.address, 80)) == errno.ECONNREFUSED


def refused_later(target):
    sock = socket.socket()
    sock.setblocking(False)
    number = sock.connect_ex(target)
    if number != errno.EINPROGRESS:
        return number
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    assert poll.poll(5000)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def test_registered_with_epoll_before_connect(ends):
    """An event loop registers the socket first: it stays registered."""
    client, server = ends
    server.serve(80)
    assert client.call(early_epoll, (server.address, 80)) == b"early"


def early_epoll(target):
    sock = socket.socket()
    sock.setblocking(False)
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
    assert sock.connect_ex(target) in (0, errno.EINPROGRESS)
    until = time.monotonic() + 5
    sent = False
    while time.monotonic() < until:
        for _, event in poll.poll(1):
            if event & select.EPOLLOUT and not sent and not event & select.EPOLLHUP:
                sock.send(b"early")
                sent = True
            if event & select.EPOLLIN:
                return sock.recv(10)
    return b""


def test_threads(ends):
    """Twenty threads of one process, twenty connections each."""
    client, server = ends
    server.serve(80)
    assert client.call(threads, (server.address, 80), 20, 20, deadline=60) == 400


def threads(target, count, each):
    done = []

    def work(number):
        for _ in range(each):
            with socket.create_connection(target, timeout=10) as sock:
                text = b"thread %d" % number
                sock.sendall(text)
                assert sock.recv(64) == text
                assert sock.getpeername() == target
            done.append(number)

    running = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return len(done)


def test_dup_and_connect_twice(ends):
    client, server = ends
    server.serve(80)
    assert client.call(dup, (server.address, 80)) == errno.EISCONN


def dup(target):
    sock = socket.socket()
    copy = sock.dup()
    sock.connect(target)
    sock.close()
    assert copy.getpeername() == target
    copy.sendall(b"x")
    assert copy.recv(1) == b"x"
    return copy.connect_ex(target)


# Details of TCP


def test_half_close(ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    opened.sendall(b"question")
    opened.shutdown(socket.SHUT_WR)
    assert accepted.recv(100) == b"question"
    assert accepted.recv(100) == b""
    time.sleep(0.3)
    accepted.sendall(b"a long answer")
    assert opened.recv(100) == b"a long answer"
    with pytest.raises(BrokenPipeError):
        opened.send(b"more")
    accepted.close()
    assert opened.recv(1) == b""


def test_urgent_data(ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    opened.sendall(b"before")
    opened.send(b"!", socket.MSG_OOB)
    opened.sendall(b"after")
    time.sleep(0.2)
    assert server.call(urgent, accepted) == (True, b"!", b"before", b"after")


def urgent(sock):
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    signalled = bool(poll.poll(2000))
    return signalled, sock.recv(1, socket.MSG_OOB), sock.recv(100), sock.recv(100)


@pytest.mark.parametrize("who", ["client", "server"])
def test_linger_reset(ends, who):
    """SO_LINGER of 0: the other end gets ECONNRESET, and the port is free."""
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    near, far = (opened, accepted) if who == "client" else (accepted, opened)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_bulk_both_ways(ends):
    """16 MiB each way at once, unchanged."""
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    both = [
        hands.start(bulk, sock, seed, other)
        for hands, sock, seed, other in ((client, opened, 1, 2), (server, accepted, 2, 1))
    ]
    assert [future.result(60) for future in both] == [True, True]


def bulk(sock, mine, theirs):
    import hashlib
    import random

    size = 1 << 24
    wanted = hashlib.sha256(random.Random(theirs).randbytes(size)).digest()
    sender = threading.Thread(target=sock.sendall, args=(random.Random(mine).randbytes(size),))
    sender.start()
    found, got = hashlib.sha256(), 0
    while got < size:
        data = sock.recv(1 << 18)
        if not data:
            break
        found.update(data)
        got += len(data)
    sender.join()
    return found.digest() == wanted


# Fast Open: becomes an ordinary handshake

TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 23, 30


@pytest.mark.parametrize("how", ["sendto", "option"])
def test_fast_open(lab, ends, how):
    """On both sides; the data comes whole, the first time and with a cookie."""
    client, server = ends
    for end in (client, server):
        end.netns.sysctl("net.ipv4.tcp_fastopen", 3)
    listener = server.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 80))
    listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
    listener.listen()
    for number in range(4):
        text = b"early data %d" % number
        sock = client.socket()
        if how == "option":
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.connect((server.address, 80))
            assert sock.send(text) == len(text)
        else:
            assert sock.sendto(text, socket.MSG_FASTOPEN, (server.address, 80)) == len(text)
        accepted, peer = listener.accept()
        assert peer[0] == client.address
        assert accepted.recv(100) == text
        assert peer == sock.getsockname()
        assert sock.getpeername() == (server.address, 80)
        accepted.sendall(text)
        assert sock.recv(100) == text
        sock.close()
        accepted.close()


def set_fast_open():
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3")


def test_fast_open_to_nobody(ends):
    client, server = ends
    sock = client.socket()
    with pytest.raises(ConnectionRefusedError):
        sock.sendto(b"x", socket.MSG_FASTOPEN, (server.address, 80))


# Connecting again


def test_disconnect_and_connect_again(lab, ends):
    """connect(AF_UNSPEC) and then to somebody else."""
    client, server = ends
    other = lab.endpoint(1)
    first, second = server.listen(80), other.listen(80)
    sock = client.connect(server.address, 80)
    _, peer = first.accept()
    assert peer == sock.getsockname()
    assert client.call(unspec, sock) == 0
    with pytest.raises(OSError) as caught:
        sock.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    sock.connect((other.address, 80))
    accepted, peer = second.accept()
    assert peer == sock.getsockname()
    assert sock.getpeername() == (other.address, 80)
    accepted.sendall(b"x")
    assert sock.recv(1) == b"x"


def unspec(sock):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), b"\0" * 16, 16):
        return ctypes.get_errno()
    return 0


@pytest.mark.parametrize("first", ["connected", "refused"])
@pytest.mark.parametrize("order", ["near first", "far first"])
def test_connect_again_elsewhere(lab, first, order):
    """One socket, first to an endpoint of its own host, then to one of another,
    and the other way round; it never hangs."""
    client, near, far = lab.endpoint(0), lab.endpoint(0), lab.endpoint(1)
    one, two = (near, far) if order == "near first" else (far, near)
    listeners = {endpoint: endpoint.listen(80) for endpoint in (one, two)}
    sock = client.socket()
    for endpoint in (one, two, one):
        if first == "refused":
            with pytest.raises(ConnectionRefusedError):
                sock.connect((endpoint.address, 81))
        else:
            sock.connect((endpoint.address, 80))
            accepted, peer = listeners[endpoint].accept()
            assert peer == sock.getsockname()
            assert peer[0] == client.address
            assert client.call(unspec, sock) == 0
            accepted.close()
    sock.connect((two.address, 80))
    _, peer = listeners[two].accept()
    assert peer == sock.getsockname()
