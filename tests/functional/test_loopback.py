# SPDX-License-Identifier: Apache-2.0
"""The endpoint's own loopback: its, not the host's, and nobody else's."""

from __future__ import annotations

import errno
import socket

import pytest
from lab import Can

INET, INET6 = socket.AF_INET, socket.AF_INET6

#: Every spelling of "this machine", with the family that it is dialled by.
LOOPBACK = [
    (INET, "127.0.0.1"),
    (INET, "127.1.2.3"),
    (INET, "0.0.0.0"),
    (INET6, "::ffff:127.0.0.1"),
    (INET6, "::ffff:0.0.0.0"),
]
SIX = [(INET6, "::"), (INET6, "::1")]


def name(item):
    return f"v{4 if item[0] == INET else 6}-{item[1]}"


@pytest.mark.container
@pytest.mark.parametrize("target", LOOPBACK, ids=name)
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "127.1.2.3"])
def test_own_listener(lab, target, bind):
    """Reached by the very address, by the wildcard, and through a wildcard bind."""
    if (target[1] == "127.1.2.3") != (bind == "127.1.2.3"):
        bind = "0.0.0.0"
    endpoint = lab.endpoint()
    listener = endpoint.listen(80, bind)
    assert listener.getsockname() == (bind, 80)
    opened = endpoint.connect(target[1], 80, family=target[0])
    accepted, peer = listener.accept()
    assert peer[0].startswith("127.")
    assert accepted.getsockname()[0].startswith("127.")
    assert accepted.getsockname()[1] == 80
    assert accepted.getpeername() == peer
    assert opened.getsockname()[1] == peer[1]
    assert opened.getpeername()[1] == 80
    assert opened.getpeername()[0].removeprefix("::ffff:").startswith("127.")
    opened.sendall(b"ping")
    assert accepted.recv(10) == b"ping"


@pytest.mark.container
@pytest.mark.parametrize("target", SIX, ids=name)
def test_own_v6_listener(lab, target):
    """``::1`` and ``::`` reach a dual-stack listener and one on ``::1``."""
    endpoint = lab.endpoint()
    for bind in ("::", "::1"):
        listener = endpoint.listen(80, bind, family=INET6)
        assert listener.getsockname()[:2] == (bind, 80)
        opened = endpoint.connect(target[1], 80, family=target[0])
        accepted, peer = listener.accept()
        assert peer[0] == "::1"
        assert accepted.getsockname()[:2] == ("::1", 80)
        assert opened.getpeername()[:2] == ("::1", 80)
        assert opened.getsockname()[:2] == peer[:2]
        for sock in (listener, opened, accepted):
            sock.close()


#: Listeners, and clients by the loopback that they dial: (family, IPV6_V6ONLY, bound to).
LISTENERS = [
    (INET, 0, "127.0.0.1"),
    (INET, 0, "0.0.0.0"),
    (INET6, 0, "::ffff:127.0.0.1"),
    (INET6, 0, "::1"),
    (INET6, 1, "::1"),
    (INET6, 0, "::"),
    (INET6, 1, "::"),
]
CLIENTS = {
    "127.0.0.1": [
        *((INET, 0, source) for source in (None, "0.0.0.0", "127.0.0.1")),
        *((INET6, 0, source) for source in (None, "::", "::ffff:127.0.0.1")),
        (INET6, 1, None),
    ],
    "::1": [(INET6, only, source) for only in (0, 1) for source in (None, "::", "::1")],
}


def sock_of(endpoint, family, only, address, port):
    """Bound where there is an address."""
    sock = endpoint.socket(family)
    if only:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if address is not None:
        sock.bind((address, port))
    return sock


def meets(target, client, listener):
    """What a host with IPv6 answers: None where they meet, else the errno."""
    family, only, _ = listener
    if target == "127.0.0.1" and client[1]:
        return errno.ENETUNREACH
    if target == "127.0.0.1":
        met = listener[2] != "::1" and not only
    else:
        met = family == INET6 and listener[2] in ("::", "::1")
    return None if met else errno.ECONNREFUSED


#: Bound to a port of both families, and listeners that take no IPv4.
BOTH, SIX_ONLY = (INET6, 0, "::"), [(INET6, 1, "::1"), (INET6, 1, "::")]


@pytest.mark.container
@pytest.mark.parametrize(
    ("target", "client"),
    [(target, client) for target, clients in CLIENTS.items() for client in clients],
    ids=str,
)
def test_every_client_and_every_listener(lab, target, client):
    """Of both families, with IPV6_V6ONLY and without, bound and not: who meets whom, and
    by which names, is what it is on any host."""
    endpoint = lab.endpoint()
    listeners = [each for each in LISTENERS if client != BOTH or each not in SIX_ONLY]
    wanted, got = {}, {}
    for number, listener in enumerate(listeners):
        wanted[listener] = meets(target, client, listener)
        got[listener] = meeting(endpoint, target, client, listener, 8080 + number)
    assert wanted == got


def meeting(endpoint, target, client, listener, port):
    """None, or the errno of the connect."""
    mapped = "::ffff:" if "." in target else ""
    server = sock_of(endpoint, *listener, port)
    server.listen()
    sock = sock_of(endpoint, *client, port + 1000)
    sock.settimeout(5)
    dialled = f"{mapped}{target}" if client[0] == INET6 else target
    number = sock.connect_ex((dialled, port))
    if number == 0:
        accepted, peer = server.accept()
        seen = f"{mapped}{target}" if listener[0] == INET6 else target
        assert peer[:2] == (seen, sock.getsockname()[1])
        assert accepted.getsockname()[:2] == (seen, port)
        assert sock.getsockname()[0] == dialled
        assert sock.getpeername()[:2] == (dialled, port)
        assert client[2] is None or peer[1] == port + 1000
        sock.sendall(b"x")
        assert accepted.recv(1) == b"x"
        accepted.close()
    sock.close()
    server.close()
    return number or None


@pytest.mark.needs(Can.SPARES_PORTS)
@pytest.mark.lacks(Can.OWN_DEVICES)
@pytest.mark.parametrize("listener", SIX_ONLY, ids=str)
def test_an_ipv4_source_reaches_no_listener_that_takes_none(lab, listener):
    """A socket that is bound to ``[::]:PORT`` sits at an inner address of IPv4 and leaves by
    it, and the kernel gives nothing of IPv4 to a socket with IPV6_V6ONLY."""
    assert meeting(lab.endpoint(), "::1", BOTH, listener, 8080) == errno.ECONNREFUSED


@pytest.mark.lacks(Can.SPARES_PORTS)
@pytest.mark.parametrize("listener", SIX_ONLY, ids=str)
def test_a_source_of_both_families_reaches_a_listener_of_ipv6(lab, listener):
    """Where a port is one of the host, its addresses are too."""
    assert meeting(lab.endpoint(), "::1", BOTH, listener, 8080) is None


@pytest.mark.container
def test_exact_names(lab):
    endpoint = lab.endpoint()
    listener = endpoint.listen(80)
    opened = endpoint.connect("127.0.0.1", 80)
    accepted, peer = listener.accept()
    assert peer[0] == "127.0.0.1"
    assert opened.getsockname() == peer
    assert opened.getpeername() == ("127.0.0.1", 80)
    assert accepted.getsockname() == ("127.0.0.1", 80)


@pytest.mark.container
@pytest.mark.parametrize("target", LOOPBACK + SIX, ids=name)
def test_nobody_listens(lab, target):
    endpoint = lab.endpoint()
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect(target[1], 80, family=target[0])


@pytest.mark.container
@pytest.mark.parametrize("target", LOOPBACK + SIX, ids=name)
def test_never_the_hosts(lab, target):
    """The host listens on everything; its endpoint does not reach it."""
    endpoint = lab.endpoint()
    listeners = [endpoint.host.root.listen(port, "0.0.0.0") for port in (80, 8081)]
    listeners += [endpoint.host.root.listen(8082, "::", family=INET6)]
    listeners += [endpoint.host.root.listen(8083, "127.0.0.1")]
    listeners += [endpoint.host.root.listen(8084, "::1", family=INET6)]
    for port in (80, 8081, 8082, 8083, 8084):
        with pytest.raises(ConnectionRefusedError):
            endpoint.connect(target[1], port, family=target[0])
    for listener in listeners:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.close()


@pytest.mark.container
def test_not_another_endpoints(lab):
    """Two endpoints of one host use port 80 of their loopback."""
    one, other = lab.endpoint(0), lab.endpoint(0)
    first, second = one.listen(80, "127.0.0.1"), other.listen(80, "127.0.0.1")
    for endpoint, listener in ((one, first), (other, second)) * 2:
        opened = endpoint.connect("127.0.0.1", 80)
        accepted, peer = listener.accept()
        assert peer == opened.getsockname()
        accepted.close()
        opened.close()
    first.close()
    with pytest.raises(ConnectionRefusedError):
        one.connect("127.0.0.1", 80)
    other.connect("127.0.0.1", 80)


@pytest.mark.container
def test_loopback_listener_is_out_of_reach_of_others(ends):
    client, server = ends
    server.listen(80, "127.0.0.1")
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 80)


@pytest.mark.container
def test_loopback_listener_is_not_at_the_overlay_address(lab):
    endpoint = lab.endpoint()
    endpoint.listen(80, "127.0.0.1")
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect(endpoint.address, 80)


@pytest.mark.container
def test_overlay_listener_is_not_at_loopback(lab):
    endpoint = lab.endpoint()
    endpoint.listen(80, endpoint.address)
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect("127.0.0.1", 80)
    endpoint.connect(endpoint.address, 80)


@pytest.mark.container
def test_one_port_on_loopback_and_on_the_overlay_address(ends):
    """Two listeners, each at its own address."""
    client, server = ends
    near, far = server.listen(80, "127.0.0.1"), server.listen(80, server.address)
    opened = client.connect(server.address, 80)
    _, peer = far.accept()
    assert peer == opened.getsockname()
    opened = server.connect("127.0.0.1", 80)
    _, peer = near.accept()
    assert peer == opened.getsockname()


@pytest.mark.container
@pytest.mark.parametrize("first", ["127.0.0.1", "0.0.0.0"])
def test_loopback_and_wildcard_collide(lab, first):
    endpoint = lab.endpoint()
    sock = endpoint.socket()
    sock.bind((first, 8080))
    other = endpoint.socket()
    with pytest.raises(OSError) as caught:
        other.bind(("0.0.0.0" if first == "127.0.0.1" else "127.0.0.1", 8080))
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.container
def test_loopback_port_0(lab):
    """What test suites and multiprocessing do: bind(127.0.0.1, 0), listen, connect."""
    endpoint = lab.endpoint()
    listener = endpoint.socket()
    listener.bind(("127.0.0.1", 0))
    address, port = listener.getsockname()
    assert address == "127.0.0.1"
    assert port > 0
    listener.listen()
    assert listener.getsockname() == (address, port)
    opened = endpoint.connect(address, port)
    _, peer = listener.accept()
    assert peer == opened.getsockname()


@pytest.mark.container
def test_loopback_port_0_is_out_of_reach_of_others(ends):
    client, server = ends
    listener = server.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, port)


@pytest.mark.container
@pytest.mark.parametrize(
    "source", [("127.0.0.1", 0), ("127.0.0.1", 5000), ("0.0.0.0", 5000)], ids=str
)
def test_bound_source(lab, source):
    endpoint = lab.endpoint()
    listener = endpoint.listen(80)
    sock = endpoint.socket()
    sock.bind(source)
    port = sock.getsockname()[1]
    sock.connect(("127.0.0.1", 80))
    accepted, peer = listener.accept()
    assert peer == ("127.0.0.1", port)
    assert sock.getsockname() == peer
    accepted.sendall(b"x")
    assert sock.recv(1) == b"x"


@pytest.mark.container
def test_from_the_overlay_address_to_loopback_does_not_leave(lab):
    """Bound to loopback a socket does not reach another endpoint."""
    one, other = lab.endpoint(0), lab.endpoint(0)
    other.listen(80)
    for port in (0, 5000):
        sock = one.socket()
        sock.bind(("127.0.0.1", port))
        sock.settimeout(2)
        with pytest.raises(OSError):
            sock.connect((other.address, 80))


@pytest.mark.container
def test_loopback_survives_many(lab):
    """200 connections in a row with the server closing first."""
    endpoint = lab.endpoint()
    listener = endpoint.listen(80, "127.0.0.1")
    assert endpoint.call(_churn, listener, ("127.0.0.1", 80), 200) == 200


def _churn(listener, target, count):
    for _ in range(count):
        sock = socket.create_connection(target, timeout=2)
        accepted, peer = listener.accept()
        assert peer == sock.getsockname()
        accepted.close()
        assert sock.recv(1) == b""
        sock.close()
    return count


# UDP


@pytest.mark.lacks(Can.DATAGRAMS)
@pytest.mark.parametrize("target", LOOPBACK + SIX, ids=name)
@pytest.mark.parametrize("how", ["sendto", "connect", "sendmsg"])
def test_udp_never_reaches_the_hosts_loopback(lab, target, how):
    """UDP to loopback is refused until it is carried."""
    endpoint = lab.endpoint()
    host = endpoint.host.root
    receivers = []
    for family, address in ((INET, "0.0.0.0"), (INET6, "::")):
        sock = host.socket(family, socket.SOCK_DGRAM)
        if family == INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, 5353))
        sock.setblocking(False)
        receivers.append(sock)
    sock = endpoint.socket(target[0], socket.SOCK_DGRAM)
    with pytest.raises(OSError) as caught:
        if how == "connect":
            sock.settimeout(5)
            sock.connect((target[1], 5353))
            sock.send(b"x")
            sock.recv(1)
        elif how == "sendto":
            sock.sendto(b"x", (target[1], 5353))
        else:
            sock.sendmsg([b"x"], [], 0, (target[1], 5353))
    assert caught.value.errno in REFUSED
    for receiver in receivers:
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
        receiver.close()


REFUSED = {errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EOPNOTSUPP, errno.ECONNREFUSED}


@pytest.mark.container
@pytest.mark.parametrize("order", ["four first", "six first"])
@pytest.mark.parametrize("v6only", [0, 1])
@pytest.mark.parametrize("port", [80, 0])
def test_both_loopbacks_on_one_port(lab, order, v6only, port):
    """``localhost`` is two addresses: PostgreSQL, redis, Go and others listen on both."""
    endpoint = lab.endpoint()
    six = endpoint.socket(INET6)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    four = endpoint.socket()
    first, second = (
        ((four, "127.0.0.1"), (six, "::1"))
        if order == "four first"
        else ((six, "::1"), (four, "127.0.0.1"))
    )
    first[0].bind((first[1], port))
    port = first[0].getsockname()[1]
    second[0].bind((second[1], port))
    for sock, address, family in ((four, "127.0.0.1", INET), (six, "::1", INET6)):
        sock.listen()
        assert sock.getsockname()[:2] == (address, port)
        opened = endpoint.connect(address, port, family=family)
        accepted, peer = sock.accept()
        assert peer == opened.getsockname()
        assert peer[0] == address
        assert accepted.getsockname()[:2] == (address, port)


@pytest.mark.container
@pytest.mark.parametrize("v6only", [0, 1])
def test_v6_loopback_and_overlay_address_on_one_port(lab, v6only):
    endpoint = lab.endpoint()
    far = endpoint.listen(80, endpoint.address)
    six = endpoint.socket(INET6)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    six.bind(("::1", 80))
    six.listen()
    opened = endpoint.connect(endpoint.address, 80)
    _, peer = far.accept()
    assert peer == opened.getsockname()
    opened = endpoint.connect("::1", 80, family=INET6)
    _, peer = six.accept()
    assert peer == opened.getsockname()
    with pytest.raises(ConnectionRefusedError):
        endpoint.connect("127.0.0.1", 80)
