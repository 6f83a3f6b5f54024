# SPDX-License-Identifier: Apache-2.0
"""Sockets and options that every endpoint has, and what datagrams may do."""

from __future__ import annotations

import errno
import socket

import pytest
from lab import Can

from slimnet.model import Direction, Reason

INET, INET6 = socket.AF_INET, socket.AF_INET6
STREAM, DATAGRAM, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
DENIED = {errno.EPERM, errno.EACCES}
IP_BIND_ADDRESS_NO_PORT = 24


def refusal(action, *arguments):
    with pytest.raises(OSError) as caught:
        action(*arguments)
    return caught.value.errno


@pytest.mark.container
def test_tcp_udp_and_unix_are_there(lab):
    endpoint = lab.endpoint()
    for family, kind, protocol in (
        (INET, STREAM, 0),
        (INET, STREAM, socket.IPPROTO_TCP),
        (INET6, STREAM, 0),
        (INET, DATAGRAM, 0),
        (INET, DATAGRAM, socket.IPPROTO_UDP),
        (INET6, DATAGRAM, 0),
        (socket.AF_UNIX, STREAM, 0),
        (socket.AF_NETLINK, RAW, 0),
    ):
        endpoint.socket(family, kind, protocol).close()


@pytest.mark.container
def test_broadcast_may_be_allowed(lab, ends):
    """Go sets it on every datagram socket, and gives an error back: nothing would have names.
    Where a datagram goes is decided when it is sent."""
    sock = ends[0].socket(INET, DATAGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) == 1


@pytest.mark.container
def test_ordinary_options_work(ends):
    client, server = ends
    server.serve(80)
    sock = client.socket()
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
        (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno"),
        (socket.IPPROTO_IP, socket.IP_TOS, 16),
        (socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1),
    ):
        sock.setsockopt(level, option, value)
    sock.bind((client.address, 0))
    sock.connect((server.address, 80))
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    assert sock.getsockname()[0] == client.address
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 500
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP


# UDP between endpoints


@pytest.mark.needs(Can.DATAGRAMS)
def test_udp_between_endpoints(lab, ends):
    """By policy: what it allows comes and is answered, what it refuses is an error."""
    client, server = ends
    lab.isolate(server, Direction.INGRESS)
    lab.rule(server, Direction.INGRESS, peer=client, port=5000, protocol=17, allow=True)
    lab.install()
    there = server.socket(INET, DATAGRAM)
    there.bind(("0.0.0.0", 5000))
    there.settimeout(5)
    sock = client.socket(INET, DATAGRAM)
    sock.settimeout(5)
    sock.connect((server.address, 5000))
    sock.send(b"question")
    data, peer = there.recvfrom(100)
    assert (data, peer[0]) == (b"question", client.address)
    there.sendto(b"answer", peer)
    assert sock.recv(100) == b"answer"
    assert client.refused_datagram(server.address, 5001) == errno.ECONNREFUSED


def refused_datagrams(host):
    """To an endpoint's address, or to one that nobody has."""
    counters = host.counters()
    return counters.get(Reason.DATAGRAM, 0) + counters.get(Reason.NO_ENDPOINT, 0)


@pytest.mark.lacks(Can.DATAGRAMS)
@pytest.mark.parametrize("how", ["sendto", "connect", "sendmsg"])
@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_udp_to_overlay_addresses(lab, how, family):
    """Refused at the call, not lost on the way."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    for address in (server.address, "10.77.200.200", client.address):
        sock = client.socket(family, DATAGRAM)
        target = (address if family == INET else f"::ffff:{address}", 53)
        before = refused_datagrams(client.host)
        if how == "connect":
            number = refusal(sock.connect, target)
        elif how == "sendto":
            number = refusal(sock.sendto, b"x", target)
        else:
            number = refusal(sock.sendmsg, [b"x"], [], 0, target)
        assert number in DENIED | {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EOPNOTSUPP}
        assert refused_datagrams(client.host) == before + 1


@pytest.mark.parametrize("how", ["sendto", "connect"])
@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_dns_to_the_outside(lab, how, family):
    """A resolver's query leaves through the host and its answer comes back,
    named as it was asked."""
    endpoint = lab.endpoint()
    server = lab.outside.root.socket(INET, DATAGRAM)
    server.bind(("0.0.0.0", 53))
    target = (lab.outside.address if family == INET else f"::ffff:{lab.outside.address}", 53)
    sock = endpoint.socket(family, DATAGRAM)
    sock.settimeout(5)
    if how == "connect":
        sock.connect(target)
        sock.send(b"query")
    else:
        sock.sendto(b"query", target)
    data, peer = server.recvfrom(100)
    assert data == b"query"
    assert peer[0] == endpoint.host.address
    server.sendto(b"answer", peer)
    data, peer = sock.recvfrom(100)
    assert (data, peer[:2]) == (b"answer", target)
    if how == "connect":
        assert sock.getpeername()[:2] == target
        assert sock.getsockname()[0].removeprefix("::ffff:") == endpoint.address
    server.close()


def test_udp_bind_to_port_0_and_ask(lab):
    """What c-ares and musl do."""
    endpoint = lab.endpoint()
    server = lab.outside.root.socket(INET, DATAGRAM)
    server.bind(("0.0.0.0", 53))
    sock = endpoint.socket(INET, DATAGRAM)
    sock.bind(("0.0.0.0", 0))
    assert sock.getsockname()[0] == "0.0.0.0"
    sock.settimeout(5)
    sock.sendto(b"query", (lab.outside.address, 53))
    _, peer = server.recvfrom(100)
    server.sendto(b"answer", peer)
    assert sock.recvfrom(100) == (b"answer", (lab.outside.address, 53))
    server.close()


def test_udp_to_the_hosts_of_the_cluster_is_denied(lab):
    """The underlay's own hosts are denied unless allowed by name."""
    endpoint = lab.endpoint()
    for host in lab.hosts:
        assert endpoint.refused_datagram(host.address, 53) == lab.denied


@pytest.mark.lacks(Can.DATAGRAMS)
def test_udp_to_the_hosts_of_the_cluster_is_denied_at_the_call(lab):
    endpoint = lab.endpoint()
    for host in lab.hosts:
        sock = endpoint.socket(INET, DATAGRAM)
        assert refusal(sock.sendto, b"x", (host.address, 53)) in DENIED
        sock = endpoint.socket(INET, DATAGRAM)
        assert refusal(sock.connect, (host.address, 53)) in DENIED
