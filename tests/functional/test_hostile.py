# SPDX-License-Identifier: Apache-2.0
"""A hostile process in an endpoint, root there: ways around that are none.

More of them: test_shield (forged SYNs, inner addresses), test_refused (sockets
and options), test_policy (every way to connect), test_survival (sockets that
outlive their endpoint), test_run_sandbox (capabilities, mounts).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import threading
import time

import pytest
from lab import Can

from slimnet.fallback.router import GATEWAY, HOST
from slimnet.model import Direction

INET, INET6 = socket.AF_INET, socket.AF_INET6
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
IP_PKTOPTIONS, IPV6_ADDRFORM, IPV6_2292PKTOPTIONS = 9, 1, 6
SO_PEERNAME = 28


pytestmark = pytest.mark.needs(Can.ENFORCES)

#: Of endpoints whose sockets are in the host's own network namespace.
SHARED = pytest.mark.lacks(Can.OWN_NAMESPACE)
#: Of endpoints that have no other sockets than those, and no other ports.
NOTHING_ELSE = pytest.mark.lacks(Can.OWN_DEVICES)


def silent(sock):
    """Nothing arrives at a UDP socket."""
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        sock.recv(100)


# The hosts of the cluster, by a side door


@contextlib.contextmanager
def services(host):
    """The host listens on port 8080, for connections and for datagrams (the socket of
    these); nothing comes that the test has not taken."""
    listener = host.root.listen(8080)
    datagrams = host.root.socket(INET, DATAGRAM)
    datagrams.bind(("0.0.0.0", 8080))
    yield datagrams
    silent(datagrams)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def no_way_to(lab, endpoint, address):
    with pytest.raises(OSError) as caught:
        endpoint.connect(address, 8080)
    assert caught.value.errno == lab.denied
    assert endpoint.refused_datagram(address, 8080) == lab.denied_datagram


@pytest.mark.needs(Can.KNOWS_ITS_HOST)
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
        with services(host):
            for address in ("192.168.50.200", "172.17.0.1", host.address):
                no_way_to(lab, endpoint, address)
    finally:
        host.netns.ip("link del bridge0")
        host.netns.ip("address del 192.168.50.200/24 dev eth0")
        host.refresh()


@pytest.mark.lacks(Can.KNOWS_ITS_HOST)
def test_the_hosts_other_addresses_are_outside(lab):
    """Policy for the outside holds there too."""
    endpoint = lab.endpoint()
    host = endpoint.host
    host.netns.ip("address add 192.168.50.200/24 dev eth0")
    try:
        host.root.serve(8080)
        endpoint.connect("192.168.50.200", 8080)
        lab.isolate(endpoint, Direction.EGRESS)
        lab.install()
        no_way_to(lab, endpoint, "192.168.50.200")
    finally:
        host.netns.ip("address del 192.168.50.200/24 dev eth0")


@pytest.mark.needs(Can.KNOWS_ITS_HOST)
def test_what_the_hosts_routes_deliver_to_it(lab):
    """No interface has these addresses, and the host hears what is sent there (RTN_LOCAL)."""
    endpoint = lab.endpoint()
    host = endpoint.host
    # Loopback's own device: the routes go with the test, not with an interface.
    own = {
        "198.51.100.0/24": "table local",
        "203.0.113.0/29": "table main",
        "203.0.113.16/29": "table 77",
    }
    #: For the marked packets of a transparent proxy only, and so nobody's own.
    marked = f"route add local {lab.outside.address}/32 dev lo table 78"
    commands = [
        *(f"route add local {range_} dev lo {table}" for range_, table in own.items()),
        "rule add not fwmark 1 lookup 77",
        marked,
        "rule add fwmark 2 lookup 78",
    ]
    beside = lab.outside.root.listen(8080)
    try:
        for command in commands:
            host.netns.ip(command)
        host.refresh()
        with services(host) as datagrams:
            for address in ("198.51.100.7", "203.0.113.7", "203.0.113.17"):
                own_socket = host.root.socket(INET, DATAGRAM)
                own_socket.bind((host.address, 0))
                own_socket.sendto(b"own", (address, 8080))
                assert datagrams.recv(10) == b"own"
                no_way_to(lab, endpoint, address)
        assert endpoint.connect(lab.outside.address, 8080)
        assert beside.accept()
    finally:
        for command in reversed(commands):
            host.netns.ip(command.replace(" add ", " del "))
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


@SHARED
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
    with contextlib.suppress(OSError):
        datagram.sendto(b"x", (address, port, 0, scope))
    sock = socket.socket(socket.AF_INET6)
    sock.settimeout(2)
    return sock.connect_ex((address, port, 0, scope))


@SHARED
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


@contextlib.contextmanager
def tracked(hosts):
    """Where connections are tracked, as for containers that are masqueraded, the kernel tells
    where one went first (SO_ORIGINAL_DST)."""
    rule = "table ip slt-nat { chain out { type nat hook postrouting priority srcnat; }; }"
    for host in hosts:
        host.netns.run("nft", rule)
    try:
        yield
    finally:
        for host in hosts:
            host.netns.run("nft", "delete", "table", "ip", "slt-nat")


@SHARED
@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_socket_options_show_no_underlay_address(lab, ends, family):
    with tracked({end.host for end in ends}):
        no_option_shows_an_underlay_address(lab, ends, family)


def no_option_shows_an_underlay_address(lab, ends, family):
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
    for level, name in (
        (socket.IPPROTO_IP, 8),
        (socket.IPPROTO_IPV6, 2),
        (socket.IPPROTO_IPV6, 49),
    ):
        with contextlib.suppress(OSError):
            sock.setsockopt(level, name, 1)
    found = {}
    levels = [socket.IPPROTO_IP, socket.SOL_SOCKET] + ([socket.IPPROTO_IPV6] if six else [])
    for level in levels:
        for name in range(1, 82):
            if level == socket.SOL_SOCKET and name != 28:
                continue
            if level == socket.IPPROTO_IP and name == 52:
                continue  # IP_PROTOCOL, no address: the number of the port that it sits on
            try:
                found[f"{level}/{name}"] = sock.getsockopt(level, name, 512)
            except OSError:
                continue
    return found


@SHARED
@pytest.mark.parametrize("how", ["option", "ancillary"])
def test_timestamps_show_no_underlay_address(lab, ends, how):
    """A sent packet that comes back with its time stamp (timestamping.rst) comes with
    its headers: the hosts' addresses and a wire port, or inner addresses. Whoever holds
    CAP_NET_RAW sees them in any case (see ``slimnet check``)."""
    client, server = ends
    server.serve(80)
    client.call(_unprivileged)
    sock = client.connect(server.address, 80)
    hidden = {host.address for host in lab.hosts}
    for data in client.call(_stamped, sock, how):
        found = addresses_in(data)
        assert not found & hidden, data
        assert not {item for item in found if item.startswith(("240.", "248."))}, data


def _unprivileged():
    os.setuid(65534)


def _stamped(sock, how):
    """Ask for the times of sent packets; all that the error queue then holds."""
    number, sent, scheduled, addresses = 37, 2, 1 << 8, 1 << 10  # SO_TIMESTAMPING, SOF_...
    try:
        if how == "option":
            sock.setsockopt(socket.SOL_SOCKET, number, sent | scheduled | addresses)
            sock.send(b"x")
        else:
            ancillary = (socket.SOL_SOCKET, number, struct.pack("=I", sent | scheduled))
            sock.sendmsg([b"x"], [ancillary])
    except OSError:
        return []
    assert sock.recv(1) == b"x"  # what was sent has left
    found = []
    while True:
        try:
            data, ancillary, *_ = sock.recvmsg(2000, 2000, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return found
        found += [data, *(item for *_, item in ancillary)]


@NOTHING_ELSE
@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "mapped"])
def test_icmp_errors_show_no_underlay_address(lab, family):
    """IP_RECVERR says which host made an error, here the endpoint's own: no neighbour answers."""
    client = lab.endpoint(0)
    with contextlib.ExitStack() as stack:
        for name, value in (("retrans_time_ms", 100), ("mcast_solicit", 1)):
            stack.enter_context(client.host.sysctl(f"net.ipv4.neigh.eth0.{name}", value))
        assert client.call(_errors, family, "192.168.50.99") == []


def _errors(family, address):
    """What the error queue says in the half second after a datagram to nobody."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
        address = f"::ffff:{address}"
    sock.sendto(b"x", (address, 53))
    select.select([], [], [sock], 0.5)
    sock.setblocking(False)
    try:
        return [sock.recvmsg(2000, 2000, socket.MSG_ERRQUEUE)]
    except BlockingIOError:
        return []


@pytest.mark.needs(Can.OWN_DEVICES)
@pytest.mark.parametrize("to", ["outside", "endpoint"])
def test_a_traced_route_shows_no_underlay_address(lab, place, to):
    """traceroute(8): the routers and the host on the way answer, under addresses that are the
    same everywhere."""
    client = lab.endpoint(0)
    if to == "outside":
        hops, address = [GATEWAY, HOST], lab.outside.address
    else:
        server = lab.endpoint(0 if place == "one-host" else 1)
        hops, address = [GATEWAY] * (1 if place == "one-host" else 2), server.address
    assert client.call(_traced, str(address)) == [*hops, str(address)]


def _traced(address):
    """Who answers a datagram that may make one hop, two and so on, until nobody does or it
    arrives, where nobody listens."""
    found = []
    for hops in range(1, 8):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
            sock.sendto(b"x", (address, 33434))
            select.select([], [], [sock], 2)
            sock.setblocking(False)
            try:
                _, ((*_, error),), *_ = sock.recvmsg(100, 500, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                return [*found, None]
        # struct sock_extended_err, and who sent it (ip(7)).
        kind, offender = struct.unpack_from("=5xB14x4s", error)
        found.append(socket.inet_ntoa(offender))
        if kind != 11:  # time exceeded (RFC 792)
            break
    return found


@SHARED
@pytest.mark.parametrize("option", [8, 20], ids=["IP_PKTINFO", "IP_RECVORIGDSTADDR"])
def test_datagrams_show_no_underlay_address(lab, option):
    endpoint = lab.endpoint()
    server = lab.outside.root.socket(INET, DATAGRAM)
    server.bind(("0.0.0.0", 53))
    sock = endpoint.socket(INET, DATAGRAM)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_IP, option, 1)
    sock.settimeout(5)
    sock.sendto(b"query", (lab.outside.address, 53))
    _, peer = server.recvfrom(100)
    server.sendto(b"answer", peer)
    data, ancillary, *_ = sock.recvmsg(100, 1000)
    assert data == b"answer"
    for *_, item in ancillary:
        assert endpoint.host.address not in addresses_in(item)


@SHARED
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


@SHARED
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


@SHARED
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
    forms = [
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(item)
        for item in (one, other)
    ]
    name = ctypes.create_string_buffer(forms[0], 16)
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


@SHARED
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


@SHARED
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
        with contextlib.suppress(OSError):
            sock.bind(("0.0.0.0", 0))

    threads = [
        threading.Thread(target=bind),
        threading.Thread(target=sock.connect, args=(target,)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@SHARED
@pytest.mark.parametrize("source", ["explicit", "port 0", "none"])
def test_no_listener_is_taken_over_by_connect_and_listen(lab, source):
    """A socket that was connected to another endpoint's listener, or accepted
    from it, and then listens, gets none of that endpoint's connections."""
    thief, victim, client = lab.endpoint(0), lab.endpoint(0), lab.endpoint(1)
    listener = victim.listen(80)
    listener.settimeout(5)
    sock = thief.socket()
    if source != "none":
        sock.bind(("0.0.0.0", 5555 if source == "explicit" else 0))
    sock.connect((victim.address, 80))
    listener.accept()
    thief.disconnect(sock)
    with contextlib.suppress(OSError):
        sock.listen()
    for _ in range(5):
        opened = client.connect(victim.address, 80)
        _, peer = listener.accept()
        assert peer == opened.getsockname()
        opened = thief.connect(victim.address, 80)
        _, peer = listener.accept()
        assert peer == opened.getsockname()
    sock.setblocking(False)
    with pytest.raises(OSError):
        sock.accept()
    if source == "explicit":
        opened = client.connect(thief.address, 5555)
        _, peer = sock.accept()
        assert peer == opened.getsockname()


@SHARED
def test_an_accepted_socket_that_listens(lab):
    """It sits on a wire port of the host, or on the inner address: it hears nobody."""
    for place in (0, 1):
        client, server = lab.endpoint(0), lab.endpoint(place)
        listener = server.listen(80)
        opened = client.connect(server.address, 80)
        accepted, _ = listener.accept()
        opened.close()
        assert accepted.recv(1) == b""
        server.disconnect(accepted)
        with contextlib.suppress(OSError):
            accepted.listen()
        for _ in range(3):
            again = client.connect(server.address, 80)
            _, peer = listener.accept()
            assert peer == again.getsockname()
        accepted.setblocking(False)
        with pytest.raises(OSError):
            accepted.accept()
        other = lab.endpoint(place)
        theirs = other.listen(80)
        opened = client.connect(other.address, 80)
        _, peer = theirs.accept()
        assert peer == opened.getsockname()


@SHARED
def test_a_listener_that_moves_stays_behind_the_shield(lab):
    """Stopped and started again it has another port of the host."""
    server = lab.endpoint(0)
    sock = server.socket()
    for _ in range(3):
        sock.listen()
        port = sock.getsockname()[1]
        number = lab.outside.root.call(_knock, server.host.address, port)
        assert number == errno.ECONNREFUSED
        sock.shutdown(socket.SHUT_RDWR)
    assert lab.outside.root.call(_knock, server.host.address, port) == errno.ECONNREFUSED


def _knock(address, port):
    sock = socket.socket()
    sock.settimeout(2)
    return sock.connect_ex((address, port))


# Ports of the host


@SHARED
def test_a_port_that_an_endpoint_left_is_the_hosts(lab):
    """bind(0), connect, AF_UNSPEC: the kernel let go of the port, though the
    socket lives. A service of the host that gets it is reached."""
    endpoint, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    sock = endpoint.socket()
    sock.bind(("0.0.0.0", 0))
    port = sock.getsockname()[1]
    sock.connect((server.address, 80))
    endpoint.disconnect(sock)
    listener = endpoint.host.root.listen(port)
    opened = lab.outside.root.connect(endpoint.host.address, port)
    _, peer = listener.accept()
    assert peer == opened.getsockname()
    listener.close()
    endpoint.listen(port)
    sock.connect((server.address, 80))


@NOTHING_ELSE
def test_a_shared_port_does_not_silence_the_host(lab):
    """SO_REUSEADDR lets an endpoint's bind(0) and a service of the host have one
    port as long as the endpoint does not listen; the host's service is heard."""
    endpoint = lab.endpoint()
    sock = endpoint.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", 0))
    port = sock.getsockname()[1]
    listener = endpoint.host.root.listen(port)  # with SO_REUSEADDR, as services do
    opened = lab.outside.root.connect(endpoint.host.address, port)
    _, peer = listener.accept()
    assert peer == opened.getsockname()
    with pytest.raises(OSError) as caught:
        sock.listen()
    assert caught.value.errno == errno.EADDRINUSE


@SHARED
@pytest.mark.parametrize("bind", ["port 0", "explicit"])
def test_a_host_user_joins_no_reuseport_group(lab, bind):
    """Same user, same port, SO_REUSEPORT: an endpoint's connections are its own."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.call(_become, 65534)
    listener = server.listen(0 if bind == "port 0" else 8080, reuseport=True)
    port = listener.getsockname()[1]

    for address in ("0.0.0.0", server.host.address):
        try:
            intruder = server.host.user.listen(port, address, reuseport=True)
        except OSError:
            continue
        intruder.setblocking(False)
        for _ in range(20):
            client.connect(server.address, port)
        listener.settimeout(0.2)
        for _ in range(20):
            _accepted, peer = listener.accept()
            assert peer[0] == client.address

        with pytest.raises(BlockingIOError):
            intruder.accept()
        intruder.close()


def _become(uid):
    os.seteuid(uid)


@SHARED
def test_a_failed_bind_leaves_no_port(lab):
    """bind(2) to a port that is taken fails; listen(2) then takes another, and
    the first listener goes on to be reached."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    first = server.listen(80)
    first.settimeout(5)
    second = server.socket()
    with pytest.raises(OSError) as caught:
        second.bind(("0.0.0.0", 80))
    assert caught.value.errno == errno.EADDRINUSE
    second.listen()
    port = second.getsockname()[1]
    assert port != 80
    for _ in range(3):
        opened = client.connect(server.address, 80)
        _, peer = first.accept()
        assert peer == opened.getsockname()
        opened = client.connect(server.address, port)
        _, peer = second.accept()
        assert peer == opened.getsockname()
    third = server.socket()
    with pytest.raises(OSError):
        third.bind(("0.0.0.0", 80))
    third.connect((client.address, client.serve(81).getsockname()[1]))
    assert third.getsockname()[1] != 80
