# SPDX-License-Identifier: Apache-2.0
"""Every way to connect or to bind, to every place that is not the endpoint's to reach
or to have: refused at once, its one reason counted once, nothing learned.

The endpoint's process is root with every capability: what refuses it is the data path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket

import pytest

from slimnet import contract
from slimnet.model import Direction, Reason

INET, INET6 = socket.AF_INET, socket.AF_INET6
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
#: Reasons of what was allowed on the way.
ALLOWED = {Reason.RULE_ALLOW, Reason.DEFAULT_ALLOW, Reason.SELF}
WIRE = 4790


def refusals(host):
    """The host's counters of refusals."""
    return {reason: count for reason, count in host.counters().items() if reason not in ALLOWED}


def grown(host, before):
    after = refusals(host)
    return {
        reason: count - before.get(reason, 0)
        for reason, count in after.items()
        if count != before.get(reason, 0)
    }


def nobody_came(listener):
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


# Ways to connect: how the socket is made ready, with the help of one whom policy
# allows to be reached, and by which call it goes then.


def _new(_):
    return socket.socket()


def _new6(_):
    return socket.socket(socket.AF_INET6)


def _without_blocking(_):
    sock = socket.socket()
    sock.setblocking(False)
    return sock


def _fast_open(_):
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
    return sock


def _bound_to_port_0(_):
    sock = socket.socket()
    sock.bind(("0.0.0.0", 0))
    return sock


def _bound_to_a_port(_):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", 5000))
    return sock


def _connected_before(friend):
    sock = socket.socket()
    sock.connect(tuple(friend))
    if ctypes.CDLL(None).connect(sock.fileno(), b"\0" * 16, 16):
        raise OSError("connect(AF_UNSPEC)")
    return sock


def _refused_before(friend):
    sock = socket.socket()
    with contextlib.suppress(ConnectionRefusedError):
        sock.connect((friend[0], friend[1] + 1))
    return sock


def _accepted_before(_):
    """A child of the endpoint's own listener, disconnected."""
    listener = socket.create_server(("127.0.0.1", 0))
    opened = socket.create_connection(listener.getsockname())
    sock, _ = listener.accept()
    opened.close()
    sock.recv(1)
    if ctypes.CDLL(None).connect(sock.fileno(), b"\0" * 16, 16):
        raise OSError("connect(AF_UNSPEC)")
    return sock


WAYS = {
    "plain": (_new, "connect"),
    "without blocking": (_without_blocking, "connect"),
    "v4-mapped": (_new6, "connect"),
    "MSG_FASTOPEN by sendto": (_new, "sendto"),
    "MSG_FASTOPEN by sendmsg": (_new, "sendmsg"),
    "MSG_FASTOPEN by sendto, v4-mapped": (_new6, "sendto"),
    "TCP_FASTOPEN_CONNECT": (_fast_open, "connect"),
    "bound to port 0": (_bound_to_port_0, "connect"),
    "bound to a port": (_bound_to_a_port, "connect"),
    "again after AF_UNSPEC": (_connected_before, "connect"),
    "again after AF_UNSPEC, MSG_FASTOPEN": (_connected_before, "sendto"),
    "again after a refusal": (_refused_before, "connect"),
    "an accepted socket": (_accepted_before, "connect"),
}


def _try(sock, how, address, port):
    """Go; the errno, and what the socket says of its ends then."""
    target = (f"::ffff:{address}" if sock.family == socket.AF_INET6 else address, port)
    number, peer = 0, ""
    try:
        if how == "connect":
            sock.connect(target)
        elif how == "sendto":
            sock.sendto(b"x", socket.MSG_FASTOPEN, target)
        else:
            sock.sendmsg([b"x"], [], socket.MSG_FASTOPEN, target)
    except OSError as error:
        number = error.errno
    try:
        peer = sock.getpeername()[0]
    except OSError as error:
        peer = errno.errorcode[error.errno]
    own = sock.getsockname()[0]
    sock.close()
    return errno.errorcode.get(number, number), peer, own.removeprefix("::ffff:")


# Where they do not lead


@pytest.fixture
def town(lab):
    """A client that may reach one friend on port 81, and nothing else but the hosts."""
    client, friend, foe, near = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1), lab.endpoint(0)
    friend.serve(81)
    lab.isolate(client, EGRESS)
    lab.rule(client, EGRESS, peer=friend, port=81, allow=True)
    lab.rule(client, EGRESS, peer=friend, port=82, allow=True)
    lab.rule(client, EGRESS, peer=near, allow=False)
    lab.install()
    return client, friend, foe, near


TARGETS = {
    "an endpoint that no rule allows": (Reason.DEFAULT_DENY, "EACCES"),
    "an endpoint that a rule denies": (Reason.RULE_DENY, "EACCES"),
    "another port of an allowed one": (Reason.DEFAULT_DENY, "EACCES"),
    "an address that nobody has": (Reason.NO_ENDPOINT, "EHOSTUNREACH"),
    "outside every overlay": (Reason.DEFAULT_DENY, "EACCES"),
    "its own host": (Reason.HOST_DENY, "EACCES"),
    "another host": (Reason.HOST_DENY, "EACCES"),
    "a wire port of its host": (Reason.WIRE_PORT, "EACCES"),
    "a wire port of another host": (Reason.WIRE_PORT, "EACCES"),
    "a wire port for bound sources": (Reason.WIRE_PORT, "EACCES"),
    "an inner address": (Reason.INNER_ADDRESS, "EACCES"),
    "an inner address of loopback": (Reason.INNER_ADDRESS, "EACCES"),
    "the host's loopback": (Reason.SYN_NO_LISTENER, "ECONNREFUSED"),
}


def place(lab, town, target):
    """Address, port, and the listeners that must hear nothing."""
    client, friend, foe, near = town
    host, other, outside = client.host, friend.host, lab.outside

    def inner(bits):
        return socket.inet_ntoa((0xF0000000 | bits).to_bytes(4, "big"))

    everywhere = [host.root.listen(8080), other.root.listen(8080), outside.root.listen(8080)]
    where, port = {
        "an endpoint that no rule allows": (foe.address, 80),
        "an endpoint that a rule denies": (near.address, 80),
        "another port of an allowed one": (friend.address, 80),
        "an address that nobody has": ("10.77.200.200", 80),
        "outside every overlay": (outside.address, 8080),
        "its own host": (host.address, 8080),
        "another host": (other.address, 8080),
        "a wire port of its host": (host.address, WIRE),
        "a wire port of another host": (other.address, WIRE + 7),
        "a wire port for bound sources": (other.address, WIRE + contract.SLIM_WIRE_PORTS),
        "an inner address": (inner(1 << 16 | 80), contract.SLIM_INNER_PORT),
        "an inner address of loopback": (inner(1 << 27 | 1 << 16 | 80), contract.SLIM_INNER_PORT),
        "the host's loopback": ("127.0.0.1", 8080),
    }[target]
    return where, port, [*everywhere, foe.listen(80), friend.listen(80), near.listen(80)]


@pytest.mark.parametrize("target", TARGETS)
def test_no_way_to_connect(lab, town, built, target):
    client, friend, *_ = town
    address, port, listeners = place(lab, town, target)
    reason, wanted = TARGETS[target]
    for way, (prepare, how) in WAYS.items():
        sock = client.call(prepare, (friend.address, 81))
        before = refusals(client.host)
        refusal, peer, own = client.call(_try, sock, how, address, port)
        assert (refusal, peer) == (wanted, "ENOTCONN"), way
        assert grown(client.host, before) == {reason: 1}, way
        assert own in (client.address, "0.0.0.0", "::", "127.0.0.1"), way
    before = refusals(client.host)
    said = client.run([*built("ring"), "client", address, port]).split()
    assert said == ["errno", str(getattr(errno, wanted))], "io_uring"
    assert grown(client.host, before) == {reason: 1}, "io_uring"
    for listener in listeners:
        nobody_came(listener)


def test_no_way_in(lab, ends):
    """The server's policy is asked about the SYN, whatever sent it."""
    client, server = ends
    friend = lab.endpoint(1)
    friend.serve(81)
    listener = server.listen(80)
    lab.isolate(server, INGRESS)
    lab.install()
    for way, (prepare, how) in WAYS.items():
        if prepare is _without_blocking:
            continue  # test_styles
        sock = client.call(prepare, (friend.address, 81))
        before = server.host.counters().get(Reason.DEFAULT_DENY, 0)
        refusal, peer, own = client.call(_try, sock, how, server.address, 80)
        assert (refusal, peer) == ("ECONNREFUSED", "ENOTCONN"), way
        assert server.host.counters()[Reason.DEFAULT_DENY] == before + 1, way
        assert own in (client.address, "0.0.0.0", "::", "127.0.0.1"), way
    nobody_came(listener)


# Ways to bind


@pytest.mark.parametrize("port", [0, 80])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v4-mapped"])
def test_no_address_but_its_own(lab, family, kind, port):
    """Neither another endpoint's nor a host's, nor where slimnet keeps its sockets."""
    endpoint, other = lab.endpoint(0), lab.endpoint(0)
    foreign = (
        other.address,
        endpoint.host.address,
        lab.hosts[1].address,
        lab.outside.address,
        "10.77.200.200",
        "8.8.8.8",
    )
    inner = ("240.1.0.80", "241.2.3.4", "248.1.0.80", "255.255.255.255")
    for addresses, reason in (
        (foreign, Reason.FOREIGN_ADDRESS),
        (inner, Reason.INNER_ADDRESS),
    ):
        for address in addresses:
            sock = endpoint.socket(family, kind)
            before = refusals(endpoint.host)
            with pytest.raises(OSError) as caught:
                sock.bind((address if family == INET else f"::ffff:{address}", port))
            assert caught.value.errno == errno.EADDRNOTAVAIL, address
            assert grown(endpoint.host, before) == {reason: 1}, address


# Through io_uring, which makes system calls of its own


def ring(endpoint, built, *words):
    """Its errno; 0 when it was done."""
    said = endpoint.run([*built("ring"), *words]).split()
    return 0 if said == ["done"] else int(said[1])


@pytest.mark.parametrize(
    ("words", "reason", "wanted"),
    [
        (("socket", 2, 1, 262), Reason.PROTOCOL, errno.EPROTONOSUPPORT),  # MPTCP
        (("socket", 10, 1, 262), Reason.PROTOCOL, errno.EPROTONOSUPPORT),
        (("socket", 2, 2, 136), Reason.PROTOCOL, errno.EPROTONOSUPPORT),  # UDP-Lite
        (("socket", 2, 2, 1), Reason.PROTOCOL, errno.EPROTONOSUPPORT),  # ping
        (("socket", 2, 3, 1), Reason.PROTOCOL, errno.EPROTONOSUPPORT),  # raw ICMP
        (("socket", 2, 3, 255), Reason.PROTOCOL, errno.EPROTONOSUPPORT),  # IPPROTO_RAW
        (("bind", "8.8.8.8", 80), Reason.FOREIGN_ADDRESS, errno.EADDRNOTAVAIL),
        (("bind", "240.1.0.80", 473), Reason.INNER_ADDRESS, errno.EADDRNOTAVAIL),
        (("option", socket.IPPROTO_TCP, 19), Reason.OPTION, errno.EPERM),  # TCP_REPAIR
        (("option", socket.IPPROTO_IP, 19), Reason.OPTION, errno.EPERM),  # IP_TRANSPARENT
        (("option", socket.SOL_SOCKET, 36), Reason.OPTION, errno.EPERM),  # SO_MARK
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_io_uring(lab, built, words, reason, wanted):
    """What the host's root may do by a ring, an endpoint's may not."""
    endpoint = lab.endpoint()
    with endpoint.host.sysctl("net.ipv4.ping_group_range", "0 2147483647"):
        if words[0] != "bind":
            assert ring(endpoint.host.root, built, *words) == 0, "the test proves nothing"
        before = refusals(endpoint.host)
        assert ring(endpoint, built, *words) == wanted
        assert grown(endpoint.host, before) == {reason: 1}


def test_io_uring_as_usual(lab, built):
    """The controls of the test above."""
    endpoint = lab.endpoint()
    for words in (
        ("socket", 2, 1, 0),
        ("socket", 2, 2, 0),
        ("bind", "127.0.0.1", 80),
        ("bind", endpoint.address, 80),
        ("option", socket.IPPROTO_TCP, socket.TCP_NODELAY),
    ):
        assert ring(endpoint, built, *words) == 0, words
