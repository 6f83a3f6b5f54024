# SPDX-License-Identifier: Apache-2.0
"""Sockets and options that endpoints do not get, and what UDP may do."""

from __future__ import annotations

import errno
import socket

import pytest

from slimnet.model import Reason

INET, INET6 = socket.AF_INET, socket.AF_INET6
STREAM, DATAGRAM, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
DENIED = {errno.EPERM, errno.EACCES}
#: What a kernel without the protocol says.
WITHOUT = {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}

IPPROTO_MPTCP, IPPROTO_SMC, IPPROTO_SMC6 = 262, 256, 257
AF_SMC = 43


def refusal(action, *arguments):
    with pytest.raises(OSError) as caught:
        action(*arguments)
    return caught.value.errno


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        (STREAM, IPPROTO_MPTCP),
        (STREAM, IPPROTO_SMC),
        (DATAGRAM, socket.IPPROTO_UDPLITE),
        (DATAGRAM, socket.IPPROTO_ICMP),
        (DATAGRAM, socket.IPPROTO_ICMPV6),
        (RAW, socket.IPPROTO_RAW),
        (RAW, socket.IPPROTO_TCP),
        (RAW, socket.IPPROTO_ICMP),
        (STREAM, socket.IPPROTO_SCTP),
        (socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
        (6, 33),  # SOCK_DCCP, IPPROTO_DCCP
    ],
    ids=[
        "mptcp",
        "smc",
        "udplite",
        "ping",
        "ping6",
        "raw",
        "raw-tcp",
        "raw-icmp",
        "sctp",
        "sctp-seqpacket",
        "dccp",
    ],
)
def test_every_protocol_but_tcp_and_udp(lab, family, kind, protocol):
    """Refused as by a kernel that has none of it, so that programs fall back; and
    counted, unless this kernel has none of it."""
    endpoint = lab.endpoint()
    host = endpoint.host
    with host.sysctl("net.ipv4.ping_group_range", "0 2147483647"):
        try:
            host.root.socket(family, kind, protocol).close()
        except OSError as error:
            assert error.errno in WITHOUT
            assert refusal(endpoint.socket, family, kind, protocol) in WITHOUT
            return
        before = host.counters().get(Reason.PROTOCOL, 0)
        assert refusal(endpoint.socket, family, kind, protocol) == errno.EPROTONOSUPPORT
        assert host.counters()[Reason.PROTOCOL] == before + 1


def test_smc_family(lab):
    """AF_SMC sockets carry a TCP socket of the kernel's own making."""
    endpoint = lab.endpoint()
    number = refusal(endpoint.socket, AF_SMC, STREAM, 0)
    assert number in DENIED | WITHOUT | {errno.EAFNOSUPPORT}


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


# Options


IP_BIND_ADDRESS_NO_PORT, SO_BINDTOIFINDEX = 24, 62
IP_TRANSPARENT, IP_UNICAST_IF, IPV6_TRANSPARENT, IPV6_UNICAST_IF = 19, 50, 75, 76
TCP_REPAIR, TCP_SAVE_SYN, TCP_SAVED_SYN, SO_ORIGINAL_DST, IP_PKTOPTIONS = 19, 27, 28, 80, 9


@pytest.mark.parametrize(
    ("level", "option", "value"),
    [
        (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0"),
        (socket.SOL_SOCKET, SO_BINDTOIFINDEX, 2),
        (socket.SOL_SOCKET, socket.SO_MARK, 7),
        (socket.IPPROTO_IP, IP_TRANSPARENT, 1),
        (socket.IPPROTO_TCP, TCP_REPAIR, 1),
        (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x01"),
        (socket.IPPROTO_IP, IP_UNICAST_IF, 2 << 24),
        (socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1),
        (socket.IPPROTO_IPV6, IPV6_UNICAST_IF, 2 << 24),
    ],
    ids=[
        "SO_BINDTODEVICE",
        "SO_BINDTOIFINDEX",
        "SO_MARK",
        "IP_TRANSPARENT",
        "TCP_REPAIR",
        "IP_OPTIONS",
        "IP_UNICAST_IF",
        "IPV6_TRANSPARENT",
        "IPV6_UNICAST_IF",
    ],
)
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_options_that_would_lead_around(lab, kind, level, option, value):
    """Though root with every capability asks: on the host it may."""
    endpoint = lab.endpoint()
    family = INET6 if level == socket.IPPROTO_IPV6 else INET
    if option != TCP_REPAIR or kind == STREAM:
        endpoint.host.root.socket(family, kind).setsockopt(level, option, value)
    before = endpoint.host.counters().get(Reason.OPTION, 0)
    sock = endpoint.socket(family, kind)
    assert refusal(sock.setsockopt, level, option, value) == errno.EPERM
    assert endpoint.host.counters()[Reason.OPTION] == before + 1


@pytest.mark.parametrize(
    ("level", "option"),
    [
        (socket.IPPROTO_TCP, TCP_SAVED_SYN),
        (socket.IPPROTO_IP, SO_ORIGINAL_DST),
        (socket.IPPROTO_IP, IP_PKTOPTIONS),
    ],
    ids=["TCP_SAVED_SYN", "SO_ORIGINAL_DST", "IP_PKTOPTIONS"],
)
def test_options_that_show_the_underlay(ends, level, option):
    """Its addresses, the first the tag as well."""
    client, server = ends
    listener = server.socket()
    listener.bind(("0.0.0.0", 80))
    listener.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
    listener.listen()
    client.connect(server.address, 80)
    accepted, _ = listener.accept()
    before = server.host.counters().get(Reason.OPTION, 0)
    assert refusal(accepted.getsockopt, level, option, 256) == errno.EPERM
    assert server.host.counters()[Reason.OPTION] == before + 1


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


# UDP


def refused_datagrams(host):
    """To an endpoint's address, or to one that nobody has."""
    counters = host.counters()
    return counters.get(Reason.DATAGRAM, 0) + counters.get(Reason.NO_ENDPOINT, 0)


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


@pytest.mark.parametrize("address", ["0.0.0.0", "own", "host", "127.0.0.1"])
def test_udp_binds_to_explicit_ports(lab, address):
    endpoint = lab.endpoint()
    wanted = {"own": endpoint.address, "host": endpoint.host.address}.get(address, address)
    sock = endpoint.socket(INET, DATAGRAM)
    refusal(sock.bind, (wanted, 5353))
    # The port is the host's.
    host = endpoint.host.root.socket(INET, DATAGRAM)
    host.bind(("0.0.0.0", 5353))
    host.close()


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
        sock = endpoint.socket(INET, DATAGRAM)
        assert refusal(sock.sendto, b"x", (host.address, 53)) in DENIED
        sock = endpoint.socket(INET, DATAGRAM)
        assert refusal(sock.connect, (host.address, 53)) in DENIED
