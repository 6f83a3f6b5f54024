# SPDX-License-Identifier: Apache-2.0
"""The ports of a host are the host's: endpoints get a share of them, choose none, and
hear and speak for nobody but themselves."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time

import pytest
from pinned import pinned

from slimnet.model import Reason
from slimnet_ebpf import contract as private

pytestmark = pytest.mark.fresh

INET, INET6 = socket.AF_INET, socket.AF_INET6
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
IP_LOCAL_PORT_RANGE = 51


@contextlib.contextmanager
def source_ports(lab, host, count):
    """The host has so many, and its agent knows."""
    with host.sysctl("net.ipv4.ip_local_port_range", f"40000 {39999 + count}"):
        lab.install()
        yield
    lab.install()


# Nobody takes them all


def _take(kind, how, target, count):
    """Sockets until one is refused: how many, the errno, and the call it came from."""
    global taken
    taken = globals().get("taken", [])
    for number in range(count):
        call = "socket"
        try:
            sock = socket.socket(socket.AF_INET, kind)
            taken.append(sock)
            sock.settimeout(5)
            call = how
            if how == "bind":
                sock.bind(("0.0.0.0", 0))
            elif how == "sendto":
                sock.sendto(b"x", tuple(target))
            elif how == "refused sendto":
                with contextlib.suppress(OSError):
                    sock.sendto(b"x", ("255.255.255.255", 9))
            else:
                sock.connect(tuple(target))
        except OSError as error:
            return number, error.errno, call
    return count, 0, ""


def _give_back():
    while taken:
        sock = taken.pop()
        # A RST leaves no TIME_WAIT, in which a port is nobody's that is counted.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        sock.close()


def _ask(target):
    """As a resolver does."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.sendto(b"query", tuple(target))
    return sock.recv(100)


def _answer(sock):

    def serve():
        with contextlib.suppress(OSError):
            while True:
                data, peer = sock.recvfrom(100)
                sock.sendto(data, peer)

    threading.Thread(target=serve, daemon=True).start()


@pytest.mark.parametrize("how", ["bind", "connect", "sendto", "refused sendto"])
def test_no_endpoint_takes_all_ports_of_datagrams(lab, how):
    """Three quarters are the endpoints', and one has half of that; sendto(2) gives a
    socket its port before any hook is asked, so it is the socket that is refused."""
    host = lab.hosts[0]
    name_server = lab.outside.root.socket(INET, DATAGRAM)
    name_server.bind(("0.0.0.0", 53))
    lab.outside.root.call(_answer, name_server)
    target = (lab.outside.address, 53)
    one, two = lab.endpoint(0), lab.endpoint(0)
    with source_ports(lab, host, 80):
        for _ in range(2):  # what is closed is given back
            assert one.call(_take, DATAGRAM, how, target, 100) == (30, errno.ENOBUFS, "socket")
            assert two.call(_take, DATAGRAM, how, target, 100) == (15, errno.ENOBUFS, "socket")
            assert host.user.call(_ask, target) == b"query"
            assert lab.endpoint(0).call(_ask, target) == b"query"
            assert host.user.call(_take, DATAGRAM, "bind", None, 20) == (20, 0, "")
            for hands in (one, two, host.user):
                hands.call(_give_back)
    assert host.counters()[Reason.PORT_LIMIT] >= 4


@pytest.mark.parametrize("where", ["outside", "another host", "this host"])
def test_connections_leave_ports_to_the_host(lab, where):
    """Each connection to one destination that lives has a source port of its own."""
    host = lab.hosts[0]
    one, two, newcomer = (lab.endpoint(0) for _ in range(3))
    lab.outside.root.serve(7000)
    outside = (lab.outside.address, 7000)
    target = outside
    if where != "outside":
        server = lab.endpoint(1 if where == "another host" else 0)
        server.serve(7000)
        target = (server.address, 7000)
    with source_ports(lab, host, 80):
        for _ in range(2):  # what is closed is given back
            count, *refused = one.call(_take, STREAM, "connect", target, 100)
            assert refused == [errno.EADDRNOTAVAIL, "connect"]
            # A wire port, or an inner source address, serves a turn of 20 connects; the next
            # has source ports of its own.
            assert count == 30 or (where != "outside" and count > 30)
            assert max(ports_taken(host)) == 30
            count, *refused = two.call(_take, STREAM, "connect", target, 100)
            assert refused == [errno.EADDRNOTAVAIL, "connect"]
            # On one host each endpoint has a source address, and ports are shared.
            assert count == 15 or (where != "outside" and count > 15)
            assert max(ports_taken(host)) <= 45
            refused = (errno.EADDRINUSE, "bind")
            assert two.call(_take, STREAM, "bind", None, 1) == (0, *refused)
            assert host.user.call(_take, STREAM, "bind", None, 10) == (10, 0, "")
            assert host.user.call(_take, STREAM, "connect", outside, 10) == (10, 0, "")
            assert newcomer.call(_take, STREAM, "connect", target, 3) == (3, 0, "")
            for hands in (one, two, newcomer, host.user):
                hands.call(_give_back)


def _take_each(targets, count):
    """So many connections to each; the source ports that they have, which are not all those
    that they go by."""
    import os
    from pathlib import Path

    global taken
    taken = globals().get("taken", [])
    for target in targets:
        for _ in range(count):
            taken.append(socket.create_connection(tuple(target), timeout=5))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = {int(row[9]): int(row[1].rpartition(":")[2], 16) for row in rows}
    return [ports[os.fstat(sock.fileno()).st_ino] for sock in taken]


def test_a_port_is_counted_once(lab):
    """Connections to different destinations share a source port, those of different
    endpoints too; each is charged for those that it is on itself."""
    host = lab.hosts[0]
    clients = [lab.endpoint(0) for _ in range(3)]
    server = lab.endpoint(1)
    ports = [(server.address, port) for port in range(7000, 7008)]
    for _, port in ports:
        server.serve(port)
    with source_ports(lab, host, 400):
        for _ in range(2):
            held = [client.call(_take_each, ports, 10) for client in clients]
            distinct = sorted(len(set(one)) for one in held)
            together = len(set().union(*held))
            assert together < 3 * 80
            counted = sorted(ports_taken(host))
            assert counted[-1] == together
            assert counted[-4:-1] == distinct
            for client in (clients[1], clients[0], clients[2]):
                client.call(_give_back)
            until = time.monotonic() + 5
            while any(ports_taken(host)):
                assert time.monotonic() < until
                time.sleep(0.05)


def test_at_its_share_an_endpoint_connects_to_nothing(lab):
    """Not to another destination either, where one of its ports could go again: nobody knows
    before a connect which one the kernel is going to take."""
    host = lab.hosts[0]
    client, server = lab.endpoint(0), lab.endpoint(1)
    lab.outside.root.serve(7000)
    targets = [(lab.outside.address, 7000), (server.address, 7000), (server.address, 7001)]
    for _, port in targets[1:]:
        server.serve(port)
    with source_ports(lab, host, 16):  # of which 12 are the endpoints', and one has half
        refused = (errno.EADDRNOTAVAIL, "connect")
        assert client.call(_take, STREAM, "connect", targets[0], 10) == (6, *refused)
        before = host.counters().get(Reason.PORT_LIMIT, 0)
        for target in targets[1:]:
            assert client.call(_take, STREAM, "connect", target, 1) == (0, *refused)
        assert host.counters()[Reason.PORT_LIMIT] == before + 2
        client.call(_give_back)
        for target in targets[1:]:
            assert client.call(_take, STREAM, "connect", target, 1) == (1, 0, "")
        client.call(_give_back)


def ports_taken(host):
    """Distinct ports of the host by index."""
    usage = pinned(host.instance, "slim_local")
    return [private.slim_usage.from_buffer_copy(value).ports for _, value in usage.items()]


# Nobody chooses one


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_no_port_by_its_number(lab, family, kind):
    """IP_LOCAL_PORT_RANGE and port 0 are a port of choice."""
    endpoint = lab.endpoint(0)
    sock = endpoint.socket(family, kind)
    for port in (22, 45678):
        with pytest.raises(PermissionError):
            sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=HH", port, port))
    sock.bind(("::" if family == INET6 else "0.0.0.0", 0))
    assert sock.getsockname()[1] not in (22, 45678)


def _autobind(sock, target):
    with contextlib.suppress(OSError):
        sock.sendto(b"x", tuple(target))
    return sock.getsockname()[1]


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_no_port_of_a_datagram_service(lab, option):
    """With SO_REUSEADDR, or as the same user with SO_REUSEPORT, the kernel would give
    port 0 the port of a service that has it too; then one hears for the other."""
    endpoint, host = lab.endpoint(0), lab.hosts[0]
    with host.sysctl("net.ipv4.ip_local_port_range", "40000 40003"):
        for port in range(40000, 40004):
            service = host.root.socket(INET, DATAGRAM)
            service.setsockopt(socket.SOL_SOCKET, option, 1)
            service.bind(("0.0.0.0", port))
        for call in ("bind", "connect", "sendto"):
            sock = endpoint.socket(INET, DATAGRAM)
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
            if call == "sendto":
                assert endpoint.call(_autobind, sock, (lab.outside.address, 9)) == 0
                sock.close()
                continue
            with pytest.raises(OSError) as caught:
                if call == "bind":
                    sock.bind(("0.0.0.0", 0))
                else:
                    sock.connect((lab.outside.address, 9))
            assert caught.value.errno == (errno.EADDRINUSE if call == "bind" else errno.EAGAIN)
            sock.close()  # two of four ports are a share


# The shield knows families


def _host_listens(family, port):
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    sock.listen()
    return sock


def _knock(family, address, port):
    sock = socket.socket(family)
    sock.settimeout(3)
    return sock.connect_ex((address, port))


@pytest.mark.parametrize("how", ["bound", "changed"])
def test_a_v6only_listener_does_not_silence_the_hosts_v4_service(lab, how):
    endpoint, host = lab.endpoint(0), lab.hosts[0]
    sock = endpoint.socket(INET6)
    if how == "changed":
        sock.bind(("::", 0))
        sock.listen()
        sock.shutdown(socket.SHUT_RDWR)  # takes its port from it
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if how == "bound":
        sock.bind(("::", 0))
    sock.listen()
    port = sock.getsockname()[1]
    host.root.call(_host_listens, INET, port)
    assert lab.outside.root.call(_knock, INET, host.address, port) == 0
    assert host.root.call(_knock, INET6, "::1", port) == errno.ECONNREFUSED
    sock.close()


def test_a_listener_at_v6_loopback_silences_nobody_of_the_other_family(lab):
    """The kernel's socket hears both families, so that no service of the host can be there."""
    endpoint, host = lab.endpoint(0), lab.hosts[0]
    sock = endpoint.socket(INET6)
    sock.bind(("::1", 0))
    sock.listen()
    port = sock.getsockname()[1]
    for address in ("127.0.0.1", host.address):
        assert host.root.call(_knock, INET, address, port) == errno.ECONNREFUSED
    with pytest.raises(OSError, match="in use"):
        host.root.call(_host_listens, INET, port)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.accept()


def test_a_v4_listener_does_not_silence_the_hosts_v6_service(lab):
    endpoint, host = lab.endpoint(0), lab.hosts[0]
    sock = endpoint.socket()
    sock.bind(("0.0.0.0", 0))
    sock.listen()
    port = sock.getsockname()[1]
    host.root.call(_host_listens, INET6, port)
    assert host.root.call(_knock, INET6, "::1", port) == 0
    assert lab.outside.root.call(_knock, INET, host.address, port) == errno.ECONNREFUSED


def test_a_listener_of_both_families_is_shielded_in_both(lab):
    endpoint, host = lab.endpoint(0), lab.hosts[0]
    sock = endpoint.socket(INET6)
    sock.bind(("::", 0))
    sock.listen()
    port = sock.getsockname()[1]
    assert host.root.call(_knock, INET6, "::1", port) == errno.ECONNREFUSED
    assert host.root.call(_knock, INET, "127.0.0.1", port) == errno.ECONNREFUSED
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.accept()


# Whose datagrams


def _send_from(sock, source, target, level, kind):
    address = socket.inet_aton(source)
    if level == socket.IPPROTO_IPV6:
        info = bytes(10) + b"\xff\xff" + address + struct.pack("=I", 0)
    else:
        info = struct.pack("=I", 0) + address + bytes(4)
    sock.sendmsg([b"hello"], [(level, kind, info)], 0, *([tuple(target)] if target else []))


@pytest.mark.parametrize("connected", [False, True], ids=["sendto", "connected"])
@pytest.mark.parametrize("how", ["v4", "v6 socket", "IPV6_PKTINFO"])
def test_datagrams_leave_from_the_address_that_the_route_says(lab, connected, how):
    """IP_PKTINFO names any address of the host as their source (ip(7))."""
    endpoint, host = lab.endpoint(0), lab.hosts[0]
    another = "10.200.0.9"
    host.netns.ip(f"address add {another}/32 dev lo")
    try:
        lab.outside.netns.ip(f"route add {another} via {host.address}")
        server = lab.outside.root.socket(INET, DATAGRAM)
        server.bind(("0.0.0.0", 53))
        server.settimeout(5)
        sock = endpoint.socket(INET if how == "v4" else INET6, DATAGRAM)
        mapped = "" if how == "v4" else "::ffff:"
        target = (mapped + lab.outside.address, 53)
        level, kind = (socket.IPPROTO_IPV6, 50) if how == "IPV6_PKTINFO" else (socket.IPPROTO_IP, 8)
        if connected:
            sock.connect(target)
        endpoint.call(_send_from, sock, another, None if connected else target, level, kind)
        data, peer = server.recvfrom(100)
        assert (data, peer[0]) == (b"hello", host.address)
    finally:
        host.netns.ip(f"address delete {another}/32 dev lo")
        with contextlib.suppress(Exception):
            lab.outside.netns.ip(f"route delete {another}")


def _send_marked(sock):
    sock.sendmsg([b"hello"], [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", 2))])


def test_control_data_on_a_connected_datagram_socket(lab):
    """QUIC marks its datagrams for ECN this way; the destination was decided before."""
    endpoint = lab.endpoint(0)
    server = lab.outside.root.socket(INET, DATAGRAM)
    server.bind(("0.0.0.0", 53))
    server.settimeout(5)
    sock = endpoint.socket(INET, DATAGRAM)
    sock.connect((lab.outside.address, 53))
    endpoint.call(_send_marked, sock)
    assert server.recv(100) == b"hello"
