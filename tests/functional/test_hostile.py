# SPDX-License-Identifier: Apache-2.0
"""A hostile process in an endpoint, root there: ways around that are none.

More of them: test_shield (forged SYNs, inner addresses), test_refused (sockets
and options), test_policy (every way to connect), test_survival (sockets that
outlive their endpoint), test_run_sandbox (capabilities, mounts).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
import time

import pytest

from slimnet.model import Direction

INET, INET6 = socket.AF_INET, socket.AF_INET6
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
IP_PKTOPTIONS, IPV6_ADDRFORM, IPV6_2292PKTOPTIONS = 9, 1, 6
SO_PEERNAME = 28


def silent(sock):
    """Nothing arrives at a UDP socket."""
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(100)


# The hosts of the cluster, by a side door


def test_the_hosts_other_addresses(lab):
    """A secondary address of the endpoint's own host, or one of a bridge of it."""
    endpoint = lab.endpoint()
    host = endpoint.host
    host.netns.ip("address add 192.168.50.200/24 dev eth0")
    host.netns.ip("link add name bridge0 type bridge")
    host.netns.ip("address add 172.17.0.1/16 dev bridge0")
    host.netns.ip("link set bridge0 up")
    host.refresh()
    try:
        listener = host.root.listen(8080)
        datagrams = host.root.socket(INET, DATAGRAM)
        datagrams.bind(("0.0.0.0", 8080))
        for address in ("192.168.50.200", "172.17.0.1", host.address):
            with pytest.raises(PermissionError):
                endpoint.connect(address, 8080)
            with pytest.raises(PermissionError):
                endpoint.socket(INET, DATAGRAM).sendto(b"x", (address, 8080))
        silent(datagrams)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    finally:
        host.netns.ip("link del bridge0")
        host.netns.ip("address del 192.168.50.200/24 dev eth0")
        host.refresh()


@pytest.mark.parametrize("target", ["192.168.50.255", "255.255.255.255", "224.0.0.1"])
def test_broadcast_and_multicast_reach_no_host(lab, target):
    """Every host of the underlay listens to these."""
    endpoint = lab.endpoint()
    receivers = []
    for host in lab.hosts:
        sock = host.root.socket(INET, DATAGRAM)
        sock.bind(("0.0.0.0", 8080))
        receivers.append(sock)
    endpoint.host.netns.ip("route add 224.0.0.0/4 dev eth0")
    try:
        endpoint.call(_shout, target, 8080)
        for sock in receivers:
            silent(sock)
    finally:
        endpoint.host.netns.ip("route del 224.0.0.0/4")


def _shout(target, port):
    """Send in every way; errors are welcome."""
    for broadcast in (0, 1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, broadcast)
            sock.sendto(b"sendto", (target, port))
        except OSError:
            pass
        try:
            sock.connect((target, port))
            sock.send(b"connected")
        except OSError:
            pass


def test_hosts_by_their_ipv6_addresses(lab):
    """Every interface has a link-local address; policy knows hosts by IPv4."""
    endpoint = lab.endpoint()
    for host in lab.hosts[:2]:
        listener = host.root.listen(8080, family=INET6)
        datagrams = host.root.socket(INET6, DATAGRAM)
        datagrams.bind(("::", 8080))
        address = host.root.call(_link_local)
        number = endpoint.call(_dial6, address, 8080)
        assert number in (
            errno.EACCES,
            errno.ENETUNREACH,
            errno.EHOSTUNREACH,
            errno.EAFNOSUPPORT,
        )
        silent(datagrams)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def _link_local():
    with open("/proc/thread-self/net/if_inet6") as file:
        for line in file:
            words = line.split()
            if words[-1] == "eth0":
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))
    raise LookupError("eth0 has no IPv6 address")


def _dial6(address, port):
    scope = socket.if_nametoindex("eth0")
    datagram = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        datagram.sendto(b"x", (address, port, 0, scope))
    except OSError:
        pass
    sock = socket.socket(socket.AF_INET6)
    sock.settimeout(2)
    return sock.connect_ex((address, port, 0, scope))


def test_unsolicited_datagrams(lab):
    """A socket that asked one server outside hears no other machine."""
    endpoint = lab.endpoint()
    server = lab.outside.root.socket(INET, DATAGRAM)
    server.bind(("0.0.0.0", 53))
    sock = endpoint.socket(INET, DATAGRAM)
    sock.connect((lab.outside.address, 53))
    sock.send(b"query")
    _, peer = server.recvfrom(100)
    for host in lab.hosts:
        host.root.socket(INET, DATAGRAM).sendto(b"hello", peer)
    silent(sock)


# What its own sockets tell of the underlay


def addresses_in(data):
    return {socket.inet_ntoa(data[at : at + 4]) for at in range(len(data) - 3)}


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_socket_options_show_no_underlay_address(lab, ends, family):
    client, server = ends
    listener = server.listen(80, family=family)
    prefix = "::ffff:" if family == INET6 else ""
    opened = client.connect(prefix + server.address, 80, family=family)
    accepted, _ = listener.accept()
    hidden = {host.address for host in lab.hosts}
    for hands, sock in ((client, opened), (server, accepted)):
        for name, data in hands.call(_options, sock).items():
            found = addresses_in(data)
            assert not found & hidden, (name, found & hidden)
            inner = {item for item in found if item.startswith(("240.", "248."))}
            assert not inner, (name, inner)


def _options(sock):
    """Everything that getsockopt gives of IP and TCP options, after asking for
    packet information."""
    six = sock.family == socket.AF_INET6
    for level, name in ((socket.IPPROTO_IP, 8), (socket.IPPROTO_IPV6, 2), (socket.IPPROTO_IPV6, 49)):
        try:
            sock.setsockopt(level, name, 1)
        except OSError:
            pass
    found = {}
    levels = [socket.IPPROTO_IP, socket.SOL_SOCKET] + ([socket.IPPROTO_IPV6] if six else [])
    for level in levels:
        for name in range(1, 82):
            if level == socket.SOL_SOCKET and name not in (28,):
                continue
            try:
                found[f"{level}/{name}"] = sock.getsockopt(level, name, 512)
            except OSError:
                continue
    return found


def test_so_peername(ends):
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    for sock in (opened, accepted):
        family, port, address = struct.unpack(
            "!2sH4s", sock.getsockopt(socket.SOL_SOCKET, SO_PEERNAME, 16)[:8]
        )
        assert family == struct.pack("=H", INET)
        assert (socket.inet_ntoa(address), port) == sock.getpeername()


def test_a_mapped_socket_becomes_an_ipv4_socket(ends):
    """IPV6_ADDRFORM: the names stay the overlay's."""
    client, server = ends
    listener = server.listen(80, family=INET6)
    opened = client.connect(f"::ffff:{server.address}", 80, family=INET6)
    accepted, _ = listener.accept()
    port = opened.getsockname()[1]
    for sock in (opened, accepted):
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_ADDRFORM, INET)
    assert client.call(_raw_names, opened) == [(client.address, port), (server.address, 80)]
    assert server.call(_raw_names, accepted) == [(server.address, 80), (client.address, port)]


def _raw_names(sock):
    """The family is not what Python's socket believes any more."""
    copy = socket.socket(fileno=os.dup(sock.fileno()))
    return [copy.getsockname(), copy.getpeername()]


# Races


def test_the_address_changes_while_the_kernel_reads_it(lab):
    """connect(2) copies the address once: another thread that rewrites it in
    memory never gets past the policy."""
    client, denied, allowed = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1)
    listener = denied.listen(80)
    allowed.serve(80)
    lab.isolate(client, Direction.EGRESS)
    lab.rule(client, Direction.EGRESS, peer=allowed, port=80, allow=True)
    lab.install()
    peers = client.call(_racing, denied.address, allowed.address, 80, 1.0)
    assert peers <= {allowed.address}
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def _racing(one, other, port, seconds):
    libc = ctypes.CDLL(None, use_errno=True)
    name = ctypes.create_string_buffer(16)
    forms = [
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(item)
        for item in (one, other)
    ]
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            for form in forms:
                ctypes.memmove(name, form, 8)

    thread = threading.Thread(target=rewrite)
    thread.start()
    peers = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as sock:
            if libc.connect(sock.fileno(), name, 16) == 0:
                peers.add(sock.getpeername()[0])
    stop.set()
    thread.join()
    return peers


def test_two_threads_connect_one_socket(lab):
    """Each connect is decided by itself; what one left serves no other."""
    client, one, other = lab.endpoint(0), lab.endpoint(1), lab.endpoint(0)
    one.serve(80)
    other.serve(80)
    assert client.call(_both, (one.address, 80), (other.address, 80), 100) == 0


def _both(first, second, count):
    """How often the peer's name is neither, or the data does not come back."""
    wrong = 0
    for _ in range(count):
        sock = socket.socket()
        threads = [
            threading.Thread(target=sock.connect_ex, args=(target,)) for target in (first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sock.settimeout(2)
        try:
            sock.sendall(b"x")
            wrong += sock.recv(1) != b"x" or sock.getpeername() not in (first, second)
        except OSError:
            wrong += 1
        sock.close()
    return wrong


def test_bind_and_connect_at_once(lab):
    """Whichever comes first, both ends agree on the names."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.listen(80)
    for _ in range(30):
        sock = client.socket()
        client.call(_bind_and_connect, sock, (server.address, 80))
        accepted, peer = listener.accept()
        assert peer == sock.getsockname()
        accepted.close()
        sock.close()


def _bind_and_connect(sock, target):
    def bind():
        try:
            sock.bind(("0.0.0.0", 0))
        except OSError:
            pass

    threads = [
        threading.Thread(target=bind),
        threading.Thread(target=sock.connect, args=(target,)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
