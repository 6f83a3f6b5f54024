# SPDX-License-Identifier: Apache-2.0
"""Sockets and options that every endpoint has, and what datagrams may do."""

from __future__ import annotations

import errno
import socket
from collections import Counter

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


#: What libraries set on a datagram socket without being asked, and give the error of back:
#: Go, glibc's and libuv's resolvers, the JVM, QUIC (quic-go, quinn), dig.
IP_MTU_DISCOVER, IP_RECVERR, IP_RECVTOS, IP_MULTICAST_ALL = 10, 11, 13, 49
UDP_SEGMENT, UDP_GRO = 103, 104
BY_THEMSELVES = [
    (INET, socket.SOL_SOCKET, socket.SO_BROADCAST),
    (INET, socket.SOL_SOCKET, socket.SO_REUSEADDR),
    (INET, socket.SOL_SOCKET, socket.SO_REUSEPORT),
    (INET, socket.IPPROTO_IP, IP_MTU_DISCOVER),
    (INET, socket.IPPROTO_IP, IP_RECVERR),
    (INET, socket.IPPROTO_IP, IP_RECVTOS),
    (INET, socket.IPPROTO_IP, 8),  # IP_PKTINFO
    (INET, socket.IPPROTO_IP, 12),  # IP_RECVTTL
    (INET, socket.IPPROTO_IP, IP_MULTICAST_ALL),
    (INET, socket.IPPROTO_IP, socket.IP_MULTICAST_TTL),
    (INET, socket.IPPROTO_UDP, UDP_SEGMENT),
    (INET, socket.IPPROTO_UDP, UDP_GRO),
    (INET6, socket.SOL_SOCKET, socket.SO_BROADCAST),
    (INET6, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    (INET6, socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS),
    (INET6, socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO),
    (INET6, socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS),
    (INET6, socket.IPPROTO_IPV6, 23),  # IPV6_MTU_DISCOVER
    (INET6, socket.IPPROTO_IPV6, 25),  # IPV6_RECVERR
]


@pytest.mark.container
def test_what_libraries_set_on_datagram_sockets_may_be_set(lab):
    """Some do nothing here; no call fails that works on any host."""
    endpoint = lab.endpoint()
    for family, level, option in BY_THEMSELVES:
        sock = endpoint.socket(family, DATAGRAM)
        sock.setsockopt(level, option, 1)
        sock.close()


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


@pytest.mark.needs(Can.DATAGRAMS)
def test_the_largest_datagram(ends):
    """65,507 bytes (RFC 768), in fragments on the way, come whole, and so does the answer."""
    client, server = ends
    there = server.socket(INET, DATAGRAM)
    there.bind(("0.0.0.0", 5000))
    sock = client.socket(INET, DATAGRAM)
    data = bytes(range(251)) * 261
    for each in (there, sock):
        each.settimeout(5)
    sock.sendto(data[:65_507], (server.address, 5000))
    question, peer = there.recvfrom(70_000)
    assert question == data[:65_507]
    there.sendto(data[1:65_508], peer)
    assert sock.recv(70_000) == data[1:65_508]


@pytest.mark.needs(Can.OWN_DEVICES)
def test_udp_lite_is_refused(lab, ends):
    """Of a protocol that policies do not name nothing leaves, whatever they allow."""
    client, server = ends
    before = client.host.counters().get(Reason.PROTOCOL, 0)
    assert client.refused_datagram(server.address, 5000, 136) == errno.EHOSTUNREACH
    assert client.host.counters()[Reason.PROTOCOL] > before


@pytest.mark.needs(Can.OWN_DEVICES)
def test_multicast_reaches_nobody(ends):
    """Whoever joins a group is not refused that, and hears only what is its own's."""
    client, server = ends
    sockets = [end.socket(INET, DATAGRAM) for end in ends]
    for sock in sockets:
        sock.bind(("0.0.0.0", 5353))
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton("0.0.0.0")
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        sock.settimeout(0.5)
    sockets[0].sendto(b"x", ("239.1.2.3", 5353))
    assert sockets[0].recvfrom(10) == (b"x", (client.address, 5353))  # IP_MULTICAST_LOOP
    with pytest.raises(TimeoutError):
        sockets[1].recv(10)
    sender = client.socket(INET, DATAGRAM)
    sender.sendto(b"y", (server.address, 5353))
    assert sockets[1].recv(10) == b"y"


def refused_datagrams(host):
    """To an endpoint's address, or to one that nobody has."""
    counters = host.counters()
    return counters.get(Reason.DATAGRAM, 0) + counters.get(Reason.NO_ENDPOINT, 0)


@pytest.mark.lacks(Can.DATAGRAMS)
@pytest.mark.parametrize("how", ["sendto", "sendmsg"])
@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_udp_to_overlay_addresses(lab, how, family):
    """Refused at the call, not lost on the way."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    for address in (server.address, "10.77.200.200", client.address):
        sock = client.socket(family, DATAGRAM)
        target = (address if family == INET else f"::ffff:{address}", 53)
        before = refused_datagrams(client.host)
        if how == "sendto":
            number = refusal(sock.sendto, b"x", target)
        else:
            number = refusal(sock.sendmsg, [b"x"], [], 0, target)
        assert number in DENIED | {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EOPNOTSUPP}
        assert refused_datagrams(client.host) == before + 1


#: Where nothing may be sent, as (family, address as dialled, own name, peer's name); E is the
#: endpoint's address, P a peer's, H a host's.
NOWHERE = [
    (INET, "127.0.0.1", "127.0.0.1", "127.0.0.1"),
    (INET, "127.1.2.3", "127.0.0.1", "127.1.2.3"),
    (INET, "0.0.0.0", "127.0.0.1", "127.0.0.1"),
    (INET6, "::1", "::1", "::1"),
    (INET6, "::", "::1", "::1"),
    (INET6, "::ffff:127.0.0.1", "::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    (INET, "P", "E", "P"),
    (INET6, "::ffff:P", "::ffff:E", "::ffff:P"),
    (INET, "10.77.200.200", "E", "10.77.200.200"),  # nobody's
    (INET, "239.1.2.3", "E", "239.1.2.3"),
    (INET, "H", "E", "H"),  # a host of the cluster: policy
]


@pytest.mark.needs(Can.SEES_DATAGRAMS)
@pytest.mark.lacks(Can.DATAGRAMS)
def test_a_connect_carries_nothing(lab):
    """It succeeds, and tells which address is one's own, also where nothing may be sent.
    What is sent is refused, told with where it was to go, and heard of: at the next call,
    where the kernel asks nobody about what a connected socket sends."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    receivers = [each.root.socket(INET6, DATAGRAM) for each in (lab.outside, *lab.hosts)]
    for receiver in receivers:
        receiver.bind(("::", 5353))
        receiver.setblocking(False)
    known = {"P": server.address, "E": client.address, "H": server.host.address}
    while client.host.events(1, 0.2):
        pass  # of other tests
    before = client.host.counters()
    wanted, got = [], []
    for family, *names in NOWHERE:
        target, own, peer = (each[:-1] + known.get(each[-1], each[-1]) for each in names)
        mapped = target.startswith("::ffff:")
        sock = client.socket(family, DATAGRAM)
        sock.settimeout(5)
        sock.connect((target, 5353))
        told = client.host.events(1, 0)
        named = sock.getsockname()[0], sock.getpeername()[:2]
        with pytest.raises(OSError) as caught:
            sock.send(b"x")
            sock.recv(1)
        told += client.host.events(1, 3)
        got.append((*named, caught.value.errno, [_told(event) for event in told]))
        refusal = (
            client.record.id,
            target.removeprefix("::ffff:"),
            5353,
            Reason.HOST_DENY if target == known["H"] else Reason.DATAGRAM,
        )
        if target == "10.77.200.200":
            refusal = (*refusal[:3], Reason.NO_ENDPOINT)
        wanted.append(
            (own, (peer, 5353), errno.ENETUNREACH if mapped else errno.ECONNREFUSED, [refusal])
        )
    assert wanted == got
    after = Counter(client.host.counters()) - Counter(before)
    assert Counter(refusal[3] for *_, (refusal,) in wanted) == after
    for receiver in receivers:
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
        receiver.close()


@pytest.mark.lacks(Can.DATAGRAMS, Can.SEES_DATAGRAMS)
def test_what_a_connected_socket_sends_is_refused_and_not_told(lab):
    """It is connected where nobody is: the kernel refuses what it sends, and nobody hears of it."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    receivers = [each.root.socket(INET6, DATAGRAM) for each in (lab.outside, *lab.hosts)]
    for receiver in receivers:
        receiver.bind(("::", 5353))
        receiver.setblocking(False)
    known = {"P": server.address, "E": client.address, "H": server.host.address}
    before = client.host.counters()
    for family, *names in NOWHERE:
        target, own, peer = (each[:-1] + known.get(each[-1], each[-1]) for each in names)
        sock = client.socket(family, DATAGRAM)
        sock.settimeout(5)
        sock.connect((target, 5353))
        assert (sock.getsockname()[0], sock.getpeername()[:2]) == (own, (peer, 5353))
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
    assert client.host.counters() == before
    for receiver in receivers:
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
        receiver.close()


def _told(event):
    address, port = event.destination
    return event.endpoint, str(address).removeprefix("::ffff:"), port, event.reason


@pytest.mark.lacks(Can.DATAGRAMS)
def test_connects_of_one_socket(lab):
    """One after the other, as getaddrinfo(3) asks about each address, with connect(2) to
    AF_UNSPEC between. Without that the source address stays: from loopback EINVAL."""
    endpoint = lab.endpoint()
    server = lab.outside.root.socket(INET, DATAGRAM)
    server.bind(("0.0.0.0", 53))
    sock = endpoint.socket(INET, DATAGRAM)
    sock.settimeout(5)
    for _ in range(2):
        sock.connect(("127.0.0.1", 53))
        assert refusal(sock.connect, (lab.outside.address, 53)) == errno.EINVAL
        endpoint.disconnect(sock)
        assert sock.getsockname()[0] == "0.0.0.0"
        sock.connect((lab.outside.address, 53))
        assert sock.getsockname()[0] == endpoint.address
        sock.send(b"query")
        _, peer = server.recvfrom(100)
        server.sendto(b"answer", peer)
        assert sock.recv(100) == b"answer"
        sock.connect(("10.77.200.200", 53))
        assert sock.getpeername() == ("10.77.200.200", 53)
        endpoint.disconnect(sock)
    server.close()


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
        assert endpoint.refused_datagram(host.address, 53) == lab.denied_datagram


@pytest.mark.lacks(Can.DATAGRAMS)
def test_udp_to_the_hosts_of_the_cluster_is_denied_at_the_call(lab):
    endpoint = lab.endpoint()
    for host in lab.hosts:
        sock = endpoint.socket(INET, DATAGRAM)
        assert refusal(sock.sendto, b"x", (host.address, 53)) in DENIED
