# SPDX-License-Identifier: Apache-2.0
"""Binding: ports, sources, reuse; what an endpoint has is its own."""

from __future__ import annotations

import errno
import itertools
import socket
import time

import pytest
from lab import Can

from slimnet.model import Reason

INET, INET6 = socket.AF_INET, socket.AF_INET6

#: Of endpoints whose sockets are in the host's own network namespace.
SHARED = pytest.mark.lacks(Can.OWN_NAMESPACE)

#: A source port per test: one may be used towards a host by 32 endpoints a
#: minute (design 4.5), and tests follow one another fast.
SOURCE_PORTS = itertools.count(5000)


def bound(endpoint, address, port, *, family=INET, reuse=False):
    """A socket that is bound and not connected."""
    sock = endpoint.socket(family)
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    return sock


def refusal(action, *arguments):
    """The errno of what must fail."""
    with pytest.raises(OSError) as caught:
        action(*arguments)
    return caught.value.errno


def read(sock, length):
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            break
        data += piece
    return data


# Two binds


@pytest.mark.container
@pytest.mark.parametrize("second", ["0.0.0.0", "own"])
@pytest.mark.parametrize("first", ["0.0.0.0", "own"])
def test_double_bind_is_in_use(lab, first, second):
    endpoint = lab.endpoint()
    names = [endpoint.address if item == "own" else item for item in (first, second)]
    held = bound(endpoint, names[0], 8080)
    assert refusal(bound, endpoint, names[1], 8080) == errno.EADDRINUSE
    held.close()
    bound(endpoint, names[1], 8080)


@pytest.mark.container
def test_bind_twice_is_invalid(lab):
    endpoint = lab.endpoint()
    sock = bound(endpoint, "0.0.0.0", 8080)
    assert refusal(sock.bind, ("0.0.0.0", 8081)) == errno.EINVAL
    assert sock.getsockname() == ("0.0.0.0", 8080)


@pytest.mark.container
def test_explicit_bind_to_a_port_held_by_bind_0(lab):
    endpoint = lab.endpoint()
    first = bound(endpoint, "0.0.0.0", 0)
    port = first.getsockname()[1]
    assert refusal(bound, endpoint, "0.0.0.0", port) == errno.EADDRINUSE
    assert refusal(bound, endpoint, endpoint.address, port) == errno.EADDRINUSE
    first.close()
    bound(endpoint, "0.0.0.0", port)


@pytest.mark.container
def test_listening_port_held_by_a_listener_with_reuseaddr(lab):
    """SO_REUSEADDR does not let two sockets listen."""
    endpoint = lab.endpoint()
    endpoint.listen(80)
    assert refusal(endpoint.listen, 80) == errno.EADDRINUSE


@pytest.mark.container
def test_privileged_port_as_root(lab):
    endpoint = lab.endpoint()
    assert bound(endpoint, "0.0.0.0", 1).getsockname() == ("0.0.0.0", 1)
    assert bound(endpoint, "0.0.0.0", 473).getsockname() == ("0.0.0.0", 473)
    assert bound(endpoint, "0.0.0.0", 4790).getsockname() == ("0.0.0.0", 4790)
    assert bound(endpoint, "0.0.0.0", 65535).getsockname() == ("0.0.0.0", 65535)


# Whose port it is


@pytest.mark.container
def test_two_endpoints_of_one_host_listen_on_one_port(lab, place):
    one, other = lab.endpoint(0), lab.endpoint(0)
    client = lab.endpoint(0 if place == "one-host" else 1)
    listeners = [endpoint.listen(80) for endpoint in (one, other)]
    for endpoint, listener in zip((one, other), listeners, strict=True):
        for _ in range(5):
            opened = client.connect(endpoint.address, 80)
            accepted, peer = listener.accept()
            assert peer == opened.getsockname()
            assert accepted.getsockname() == (endpoint.address, 80)


@pytest.mark.container
@pytest.mark.parametrize("order", ["host first", "endpoint first"])
def test_the_host_listens_on_the_endpoints_port(lab, ends, order):
    """Neither notices the other, whoever comes first."""
    client, server = ends
    host = server.host.root
    if order == "host first":
        of_host = host.listen(80)
        of_endpoint = server.listen(80)
    else:
        of_endpoint = server.listen(80)
        of_host = host.listen(80)

    from_outside = lab.outside.root.connect(server.host.address, 80)
    _, peer = of_host.accept()
    assert peer == from_outside.getsockname()
    opened = client.connect(server.address, 80)
    _, peer = of_endpoint.accept()
    assert peer == opened.getsockname()
    of_host.close()
    of_endpoint.close()


@pytest.mark.container
def test_the_host_binds_every_port_kind_beside_an_endpoint(lab):
    """An endpoint takes no port from the host."""
    endpoint = lab.endpoint()
    # None that the host may have given to somebody: all below ip_local_port_range.
    held = [bound(endpoint, "0.0.0.0", port) for port in (22, 80, 443, 8080, 20000)]
    # SO_REUSEADDR is for what earlier tests left in TIME_WAIT; the endpoint has it not.
    host = endpoint.host.root
    for port in (22, 80, 443, 8080, 20000):
        bound(host, "0.0.0.0", port, reuse=True).close()
        bound(host, endpoint.host.address, port, reuse=True).close()
        bound(host, "127.0.0.1", port, reuse=True).close()
        bound(endpoint.host.user, "0.0.0.0", max(port, 1024), reuse=True).close()
    assert len(held) == 5


# Whose address it is


@pytest.mark.container
def test_addresses_that_are_not_its_own(lab):
    endpoint, other = lab.endpoint(0), lab.endpoint(0)
    for address in (
        endpoint.host.address,
        lab.hosts[1].address,
        other.address,
        "10.77.200.200",
        "8.8.8.8",
    ):
        for port in (0, 80, 8080):
            assert refusal(bound, endpoint, address, port) == errno.EADDRNOTAVAIL, (address, port)
            assert (
                refusal(lambda a=address, p=port: bound(endpoint, f"::ffff:{a}", p, family=INET6))
                == errno.EADDRNOTAVAIL
            ), (address, port)


@SHARED
def test_inner_addresses_cannot_be_bound(lab):
    endpoint, other = lab.endpoint(0), lab.endpoint(0)
    listener = other.listen(80)
    for address in ("240.0.0.0", "240.1.0.80", "241.2.3.4", "248.0.1.80", "255.255.255.255"):
        for port in (0, 80, 473):
            assert refusal(bound, endpoint, address, port) == errno.EADDRNOTAVAIL, (address, port)
    assert listener.getsockname() == ("0.0.0.0", 80)


@SHARED
def test_v6_addresses_cannot_be_bound(lab):
    """Until IPv6 is carried no IPv6 address is the endpoint's; ``::1`` is its loopback."""
    endpoint = lab.endpoint()
    for address in ("fe80::1", "2001:db8::1", "fd00::1"):
        assert (
            refusal(lambda a=address: bound(endpoint, a, 80, family=INET6)) == errno.EADDRNOTAVAIL
        )


@SHARED
def test_bind_to_device_is_refused(lab):
    endpoint = lab.endpoint()
    sock = endpoint.socket()
    for name in (b"eth0", b"lo"):
        number = refusal(sock.setsockopt, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        assert number in (errno.EPERM, errno.EACCES)
    datagram = endpoint.socket(INET, socket.SOCK_DGRAM)
    assert refusal(datagram.setsockopt, socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0") in (
        errno.EPERM,
        errno.EACCES,
    )


# Bound, then connected: every form

SOURCES = {
    "address port 0": lambda endpoint: (endpoint.address, 0),
    "wildcard port 0": lambda endpoint: ("0.0.0.0", 0),
    "address explicit": lambda endpoint: (endpoint.address, next(SOURCE_PORTS)),
    "wildcard explicit": lambda endpoint: ("0.0.0.0", next(SOURCE_PORTS)),
}


@pytest.mark.container
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_bind_then_connect(ends, source, family):
    client, server = ends
    address, port = SOURCES[source](client)
    if family == INET6:
        address = "::" if address == "0.0.0.0" else f"::ffff:{address}"
    target = server.address if family == INET else f"::ffff:{server.address}"
    listener = server.listen(80)
    sock = bound(client, address, port, family=family)
    before = sock.getsockname()[1]
    sock.connect((target, 80))
    accepted, peer = listener.accept()

    assert before == (port or before)
    name = sock.getsockname()
    assert name[0] == (client.address if family == INET else f"::ffff:{client.address}")
    assert name[1] == before
    assert sock.getpeername()[:2] == (target, 80)
    assert peer == (client.address, before)
    payload = b"slim" * 50_000
    sending = sock.start("sendall", payload)
    assert server.call(read, accepted, len(payload)) == payload
    sending.result(10)
    accepted.sendall(b"back")
    assert sock.recv(10) == b"back"
    sock.close()
    assert accepted.recv(1) == b""


@pytest.mark.container
def test_two_endpoints_with_one_source_port_to_one_server(lab, place):
    port = next(SOURCE_PORTS)
    server = lab.endpoint(0 if place == "one-host" else 1)
    listener = server.listen(80)
    clients = [lab.endpoint(0) for _ in range(3)]
    socks = [bound(client, "0.0.0.0", port) for client in clients]
    for sock, client in zip(socks, clients, strict=True):
        sock.connect((server.address, 80))
        assert sock.getsockname() == (client.address, port)
    accepted = [listener.accept() for _ in clients]
    assert {peer for _, peer in accepted} == {(client.address, port) for client in clients}
    for taken, peer in accepted:
        taken.sendall(peer[0].encode())
    for sock, client in zip(socks, clients, strict=True):
        assert sock.recv(100) == client.address.encode()


@pytest.mark.container
def test_one_source_port_to_two_endpoints_of_one_host(lab, place):
    """One bound port, two destinations behind one underlay address."""
    port = next(SOURCE_PORTS)
    client = lab.endpoint(0)
    servers = [lab.endpoint(0 if place == "one-host" else 1) for _ in range(3)]
    for number, server in enumerate(servers):
        listener = server.listen(80)
        sock = bound(client, client.address, port, reuse=True)
        sock.connect((server.address, 80))
        accepted, peer = listener.accept()
        assert peer == (client.address, port)
        accepted.sendall(b"%d" % number)
        assert sock.recv(10) == b"%d" % number


@pytest.mark.container
def test_one_source_port_to_two_ports_of_one_endpoint(ends):
    client, server = ends
    kept = []
    for port in (80, 81):
        listener = server.listen(port)
        sock = bound(client, client.address, port, reuse=True)
        sock.connect((server.address, port))
        accepted, peer = listener.accept()
        assert peer == (client.address, port)
        kept += [sock, accepted]


@pytest.mark.container
def test_a_live_tuple_is_not_had_twice(ends):
    """Same source port, same destination, while the first connection lives."""
    client, server = ends
    server.serve(80)
    port = next(SOURCE_PORTS)
    first = bound(client, client.address, port, reuse=True)
    first.connect((server.address, 80))
    second = bound(client, client.address, port, reuse=True)
    assert refusal(second.connect, (server.address, 80)) in (
        errno.EADDRNOTAVAIL,
        errno.EADDRINUSE,
    )
    first.sendall(b"x")
    assert first.recv(1) == b"x"


@pytest.mark.container
def test_a_source_port_that_another_endpoint_used_a_second_ago(lab, place):
    """Whoever closed first: TIME_WAIT is at the client or at the server."""
    port = next(SOURCE_PORTS)
    server = lab.endpoint(0 if place == "one-host" else 1)
    listener = server.listen(80)
    for closer in ("client", "server") * 2:
        client = lab.endpoint(0)
        sock = bound(client, "0.0.0.0", port)
        started = time.monotonic()
        sock.connect((server.address, 80))
        assert time.monotonic() - started < 0.5
        accepted, peer = listener.accept()
        assert peer == (client.address, port)
        first, second = (sock, accepted) if closer == "client" else (accepted, sock)
        first.close()
        assert second.recv(1) == b""
        second.close()
        time.sleep(0.2)


@pytest.mark.container
def test_the_same_source_port_again_and_again(ends):
    """The server closes first, so the client may reuse its port at once (RFC 6191)."""
    port = next(SOURCE_PORTS)
    client, server = ends
    listener = server.listen(80)
    for _ in range(10):
        sock = bound(client, "0.0.0.0", port, reuse=True)
        started = time.monotonic()
        sock.connect((server.address, 80))
        assert time.monotonic() - started < 0.5
        accepted, peer = listener.accept()
        assert peer == (client.address, port)
        accepted.close()
        assert sock.recv(1) == b""
        sock.close()


@pytest.mark.container
def test_source_port_in_time_wait_needs_reuseaddr(ends):
    """As bind(2) has it: a port whose connection is in TIME_WAIT here."""
    port = next(SOURCE_PORTS)
    client, server = ends
    listener = server.listen(80)
    sock = bound(client, "0.0.0.0", port, reuse=True)
    sock.connect((server.address, 80))
    accepted, _ = listener.accept()
    sock.close()
    assert accepted.recv(1) == b""
    accepted.close()
    time.sleep(0.1)
    assert refusal(bound, client, "0.0.0.0", port) == errno.EADDRINUSE
    bound(client, "0.0.0.0", port, reuse=True)


@pytest.mark.container
@pytest.mark.parametrize("address", ["0.0.0.0", "own"])
def test_listen_again_with_connections_in_time_wait(ends, address):
    """A restarted server: its closed connections are in TIME_WAIT on its port."""
    client, server = ends
    wanted = server.address if address == "own" else address
    for _ in range(3):
        listener = server.listen(80, wanted)
        live = client.connect(server.address, 80)
        kept, _ = listener.accept()
        for _ in range(5):
            opened = client.connect(server.address, 80)
            accepted, _ = listener.accept()
            accepted.close()
            assert opened.recv(1) == b""
            opened.close()
        listener.close()
        # The live connection lives on without its listener.
        live.sendall(b"still")
        assert kept.recv(10) == b"still"
        with pytest.raises(ConnectionRefusedError):
            client.connect(server.address, 80)
        kept.close()
        live.close()


@pytest.mark.container
def test_listening_and_connecting_from_one_port(ends):
    """A peer-to-peer program: it listens on 6000 and connects from 6000."""
    client, server = ends
    servers = server.listen(80)
    sock = bound(client, "0.0.0.0", 6000, reuse=True)
    sock.connect((server.address, 80))
    _, peer = servers.accept()
    assert peer == (client.address, 6000)
    sock.close()


@pytest.mark.container
def test_reuseport_listeners_share(ends):
    client, server = ends
    listeners = [server.listen(80, reuseport=True) for _ in range(2)]
    for listener in listeners:
        listener.settimeout(0.01)
    opened = [client.connect(server.address, 80) for _ in range(40)]
    counts = [server.call(_drain, listener) for listener in listeners]
    assert sum(counts) == len(opened)
    assert all(counts), counts


def _drain(listener):
    import time

    count = 0
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        try:
            listener.accept()
        except TimeoutError:
            continue
        count += 1
    return count


@pytest.mark.container
@pytest.mark.parametrize("which", [0, 1], ids=["first closes", "last closes"])
@pytest.mark.parametrize("address", ["0.0.0.0", "own"])
def test_of_two_reuseport_listeners_one_closes(ends, which, address):
    """The one that stays goes on to be reached."""
    client, server = ends
    wanted = server.address if address == "own" else address
    for _ in range(3):
        listeners = [server.listen(80, wanted, reuseport=True) for _ in range(2)]
        listeners.pop(which).close()
        (left,) = listeners
        for _ in range(10):
            opened = client.connect(server.address, 80)
            _, peer = left.accept()
            assert peer == opened.getsockname()
        left.close()
        with pytest.raises(ConnectionRefusedError):
            client.connect(server.address, 80)


@pytest.mark.container
def test_reuseport_is_among_one_endpoints_sockets(lab):
    """Two endpoints with SO_REUSEPORT on one port share nothing."""
    one, other, client = lab.endpoint(0), lab.endpoint(0), lab.endpoint(1)
    first, second = (endpoint.listen(80, reuseport=True) for endpoint in (one, other))
    host = one.host.root.listen(80, reuseport=True)
    opened = [client.connect(one.address, 80) for _ in range(20)]
    first.settimeout(0.05)
    second.settimeout(0.05)
    assert one.call(_drain, first) == len(opened)
    assert other.call(_drain, second) == 0
    host.close()


@pytest.mark.container
def test_a_port_reserved_with_reuseport(ends):
    """Bind to port 0 with SO_REUSEPORT, then let the workers bind that port
    (gRPC's own example of several processes)."""
    client, server = ends
    reserved = server.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(("0.0.0.0", 0))
    port = reserved.getsockname()[1]
    workers = [server.listen(port, reuseport=True) for _ in range(2)]
    for worker in workers:
        worker.settimeout(0.01)
    opened = [client.connect(server.address, port) for _ in range(20)]
    assert sum(server.call(_drain, worker) for worker in workers) == len(opened)
    assert opened[0].getpeername() == (server.address, port)


@pytest.mark.container
@pytest.mark.parametrize("kind", ["explicit", "port 0"])
def test_a_listener_that_stops_and_starts_again(ends, kind):
    """shutdown(2) ends a blocked accept and the listening; listen(2) resumes it."""
    client, server = ends
    listener = bound(server, "0.0.0.0", 80 if kind == "explicit" else 0, reuse=True)
    for _ in range(3):
        listener.listen()
        address, port = listener.getsockname()
        assert address == "0.0.0.0"
        assert (port == 80) == (kind == "explicit")  # the kernel keeps no other port
        opened = client.connect(server.address, port)
        accepted, peer = listener.accept()
        assert peer == opened.getsockname()
        accepted.close()
        waiting = listener.start("accept")
        time.sleep(0.05)
        listener.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError):
            waiting.result(5)
        with pytest.raises(ConnectionRefusedError):
            client.connect(server.address, port)


@pytest.mark.container
@pytest.mark.needs(Can.LISTENS_AGAIN)
def test_a_listener_without_bind_that_stops_and_starts_again(ends):
    """It gets another port."""
    client, server = ends
    listener = server.socket()
    for _ in range(3):
        listener.listen()
        port = listener.getsockname()[1]
        opened = client.connect(server.address, port)
        accepted, peer = listener.accept()
        assert peer == opened.getsockname()
        accepted.close()
        listener.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ConnectionRefusedError):
            client.connect(server.address, port)


@pytest.mark.container
def test_a_bound_socket_connects_here_and_there(lab):
    """One bound socket, one after the other to an endpoint of its own host, to
    one of another, to itself, to loopback; then it listens."""
    client, near, far = lab.endpoint(0), lab.endpoint(0), lab.endpoint(1)
    listeners = {item.address: item.listen(80) for item in (near, far, client)}
    port = next(SOURCE_PORTS)
    sock = bound(client, "0.0.0.0", port, reuse=True)
    for address in (near.address, far.address, client.address, "127.0.0.1", far.address):
        listener = listeners.get(address, listeners[client.address])
        sock.connect((address, 80))
        accepted, peer = listener.accept()
        own = "127.0.0.1" if address == "127.0.0.1" else client.address
        assert peer == sock.getsockname() == (own, port)
        accepted.close()
        assert sock.recv(1) == b""
        client.disconnect(sock)
        assert sock.getsockname()[1] == port
    sock.listen()
    opened = far.connect(client.address, port)
    _, peer = sock.accept()
    assert peer == opened.getsockname()


@pytest.mark.container
def test_an_accepted_socket_connects_elsewhere(lab, ends):
    """AF_UNSPEC and connect on what accept(2) gave: it keeps the server's
    identity, whatever its source port is."""
    client, server = ends
    third = lab.endpoint(1)
    theirs = third.listen(81)
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    opened.close()
    assert accepted.recv(1) == b""
    server.disconnect(accepted)
    accepted.settimeout(5)
    accepted.connect((third.address, 81))
    arrived, peer = theirs.accept()
    assert peer == accepted.getsockname()
    assert peer[0] == server.address
    assert accepted.getpeername() == (third.address, 81)
    arrived.sendall(b"x")
    assert accepted.recv(1) == b"x"
    # The listener is not disturbed.
    again = client.connect(server.address, 80)
    _, peer = listener.accept()
    assert peer == again.getsockname()


# Limits


@SHARED
def test_no_endpoint_takes_all_source_ports_of_the_host(lab):
    """bind(0) sits on a port of the host; there is a limit, and others go on."""
    greedy, other = lab.endpoint(0), lab.endpoint(0)
    host = greedy.host
    with host.sysctl("net.ipv4.ip_local_port_range", "40000 50000"):
        lab.install()  # which is when the data path hears of it
        count, number = greedy.call(_take_ports, 10_001, "bind")
        assert count < 10_000, "it took every port of the host"
        assert number in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EAGAIN)
        others_go_on(lab, host, other)
    greedy.call(_give_ports)
    assert bound(greedy, "0.0.0.0", 0).getsockname()[1] > 0


@SHARED
def test_listening_without_bind_is_limited_too(lab):
    """No hook sees its port before it is taken: what is above the limit is
    destroyed right after."""
    greedy, other = lab.endpoint(0), lab.endpoint(0)
    host = greedy.host
    before = host.counters().get(Reason.PORT_LIMIT, 0)
    with host.sysctl("net.ipv4.ip_local_port_range", "40000 50000"):
        lab.install()
        count, _ = greedy.call(_take_ports, 10_001, "listen")
        until = time.monotonic() + 5
        while greedy.call(_still_listening) > 5_000:
            assert time.monotonic() < until, "it took every port of the host"
            time.sleep(0.1)
        others_go_on(lab, host, other)
    assert host.counters()[Reason.PORT_LIMIT] > before
    assert count > 0
    greedy.call(_give_ports)
    assert bound(greedy, "0.0.0.0", 0).getsockname()[1] > 0


def others_go_on(lab, host, other):
    """The host and another endpoint find ports."""
    assert bound(other, "0.0.0.0", 0).getsockname()[1] > 0
    assert bound(host.root, "0.0.0.0", 0).getsockname()[1] > 0
    lab.outside.root.serve(7000)
    assert host.user.connect(lab.outside.address, 7000)


def _still_listening():
    """tcp_info's first byte is the state; 10 is TCP_LISTEN."""
    return sum(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x0a" for sock in taken)


def _take_ports(limit, how):
    global taken
    taken = []
    for count in range(limit):
        sock = socket.socket()
        try:
            if how == "listen":
                sock.listen(1)
            else:
                sock.bind(("0.0.0.0", 0))
        except OSError as error:
            sock.close()
            return count, error.errno
        taken.append(sock)
    return limit, 0


def _give_ports():
    for sock in taken:
        sock.close()


@pytest.mark.needs(Can.SPARES_PORTS)
def test_connections_take_no_source_port_for_themselves(lab, place):
    """More live connections than the host has source ports; the host and other
    endpoints connect all the same."""
    client, server = lab.endpoint(0), lab.endpoint(0 if place == "one-host" else 1)
    for port in range(80, 84):
        server.serve(port)
    host, other = client.host, lab.endpoint(0)
    lab.outside.root.serve(7000)
    # The agent does not hear of it: what is counted here is the kernel's.
    host.kill_backend()
    try:
        with host.sysctl("net.ipv4.ip_local_port_range", "40000 40199"):
            for port in range(80, 84):
                assert client.call(_connect_many, (server.address, port), 150) == 150
            host.root.connect(lab.outside.address, 7000).close()
            other.connect(server.address, 80).close()
    finally:
        host.start_backend()
    client.call(_give_ports)


def _connect_many(target, count):
    global taken
    for _ in range(count):
        taken = [*globals().get("taken", []), socket.create_connection(target, timeout=5)]
    return count


@pytest.mark.needs(Can.SPARES_PORTS)
def test_listeners_are_no_limit(lab):
    """Explicit ports cost the host nothing: 2,000 of them, and none is taken."""
    endpoint = lab.endpoint()
    assert endpoint.call(_listen_on, range(20000, 22000)) == 2000
    host = endpoint.host.root
    assert host.call(_listen_on, range(20000, 22000)) == 2000
    host.call(_give_ports)


def _listen_on(ports):
    global taken
    taken = []
    for port in ports:
        sock = socket.socket()
        sock.bind(("0.0.0.0", port))
        sock.listen(1)
        taken.append(sock)
    return len(taken)


@pytest.mark.lacks(Can.SPARES_PORTS)
def test_each_port_is_one_of_the_host(lab):
    """As many ports as an endpoint binds the host has less; it says EADDRINUSE there, and the
    endpoint's other names are not touched."""
    endpoint = lab.endpoint()
    host = endpoint.host.root
    assert endpoint.call(_listen_on, range(40000, 40020)) == 20
    assert len(host.call(_free_ports, 20000, 32000)) <= 12000 - 20
    assert endpoint.call(_listen_on, range(20000, 20020)) == 20
    endpoint.call(_give_ports)


def _free_ports(first, end):
    free = []
    for port in range(first, end):
        with socket.socket() as sock:
            try:
                sock.bind(("0.0.0.0", port))
            except OSError:
                continue
            free.append(port)
    return free


@pytest.mark.lacks(Can.LISTENS_AGAIN)
def test_a_listener_that_stopped_has_its_port_still(lab):
    """As long as connections of it are in TIME_WAIT; to listen again takes another socket."""
    endpoint = lab.endpoint()
    listener = endpoint.socket()
    listener.listen()
    opened = endpoint.connect("127.0.0.1", listener.getsockname()[1])
    accepted, _ = listener.accept()
    accepted.close()
    opened.close()
    listener.shutdown(socket.SHUT_RDWR)
    assert refusal(listener.listen) == errno.EADDRINUSE
    endpoint.listen(0, address="127.0.0.1")


@pytest.mark.lacks(Can.TRIES_AT_ONCE)
def test_a_host_that_was_gone_is_back_soon(lab):
    """What is refused meanwhile is refused at once; nobody has to do anything about it."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    route = f"{server.host.address}/32"
    client.host.netns.ip(f"route add unreachable {route}")
    try:
        for _ in range(40):
            begin = time.monotonic()
            refusal(client.connect, server.address, 80)
            assert time.monotonic() - begin < 3
    finally:
        client.host.netns.ip(f"route del unreachable {route}")
    until = time.monotonic() + 10
    while refusal_or_none(client, server):
        assert time.monotonic() < until
        time.sleep(0.05)


def refusal_or_none(client, server):
    """The errno of a connect; 0 where it is made."""
    try:
        client.connect(server.address, 80).close()
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.lacks(Can.BINDS_LATE)
def test_bind_takes_the_port_at_once(lab):
    """Also where the application says that it may wait."""
    endpoint = lab.endpoint()
    sock = endpoint.socket()
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)
    sock.bind(("0.0.0.0", 0))
    port = sock.getsockname()[1]
    assert port > 0
    sock.listen()
    assert sock.getsockname() == ("0.0.0.0", port)


@pytest.mark.container
@pytest.mark.needs(Can.BINDS_LATE)
@pytest.mark.parametrize("address", ["own", "127.0.0.1", "0.0.0.0"])
def test_bind_address_no_port(ends, address):
    """IP_BIND_ADDRESS_NO_PORT: bind(2) takes the address, listen(2) the port."""
    client, server = ends
    wanted = server.address if address == "own" else address
    sock = server.socket()
    sock.setsockopt(socket.IPPROTO_IP, 24, 1)
    sock.bind((wanted, 0))
    assert sock.getsockname() == (wanted, 0)
    sock.listen()
    name, port = sock.getsockname()
    assert name == wanted
    assert port > 0
    if address == "127.0.0.1":
        with pytest.raises(ConnectionRefusedError):
            client.connect(server.address, port)
        opened = server.connect("127.0.0.1", port)
    else:
        opened = client.connect(server.address, port)
    _, peer = sock.accept()
    assert peer == opened.getsockname()


@pytest.mark.container
@pytest.mark.needs(Can.LISTENS_AGAIN)
def test_loopback_stays_loopback_when_it_listens_again(ends):
    """bind(127.0.0.1, 0), listen, stop, listen: the address is kept, the port not."""
    client, server = ends
    sock = server.socket()
    sock.bind(("127.0.0.1", 0))
    for _ in range(3):
        sock.listen()
        name, port = sock.getsockname()
        assert name == "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            client.connect(server.address, port)
        opened = server.connect("127.0.0.1", port)
        _, peer = sock.accept()
        assert peer == opened.getsockname()
        sock.shutdown(socket.SHUT_RDWR)


@SHARED
@pytest.mark.needs(Can.TRIES_AT_ONCE)
@pytest.mark.parametrize("source", ["explicit", "port 0", "free"])
def test_a_route_that_is_gone_for_a_moment(lab, source):
    """connect(2) fails before any SYN; nothing is left behind that is in the way."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    port = next(SOURCE_PORTS) if source == "explicit" else 0
    route = f"{server.host.address}/32"
    client.host.netns.ip(f"route add unreachable {route}")
    try:
        for _ in range(40):
            sock = client.socket()
            if source != "free":
                sock.bind((client.address, port))
            assert refusal(sock.connect, (server.address, 80)) == errno.EHOSTUNREACH
            sock.close()
    finally:
        client.host.netns.ip(f"route del unreachable {route}")
    for _ in range(3):
        sock = client.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source != "free":
            sock.bind((client.address, port))
        sock.connect((server.address, 80))
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()


# Without a listener


@pytest.mark.container
@pytest.mark.needs(Can.OWN_NAMESPACE)
@pytest.mark.parametrize("address", ["own", "127.0.0.1"])
def test_a_socket_connects_to_itself(lab, address):
    """RFC 9293, section 3.5: two SYNs that cross open one connection, and need no listener."""
    endpoint = lab.endpoint()
    name = (endpoint.address if address == "own" else address, 8080)
    sock = bound(endpoint, *name)
    sock.connect(name)
    assert sock.getsockname() == sock.getpeername() == name


@SHARED
@pytest.mark.parametrize("address", ["own", "127.0.0.1"])
def test_without_a_listener_there_is_no_connection(lab, address):
    """The socket for a SYN is found by who listens."""
    endpoint = lab.endpoint()
    name = (endpoint.address if address == "own" else address, 8080)
    assert refusal(bound(endpoint, *name).connect, name) == errno.ECONNREFUSED


@SHARED
def test_two_sockets_that_connect_to_each_other_are_refused(ends):
    """Hole punching's simultaneous open (RFC 9293, section 3.5): neither of them listens."""
    one, two = ends
    socks = [bound(one, one.address, 8080), bound(two, two.address, 8080)]
    names = [(two.address, 8080), (one.address, 8080)]
    meetings = [
        each.start(_meet, sock, name) for each, sock, name in zip(ends, socks, names, strict=True)
    ]
    assert [each.result(60) for each in meetings] == [errno.ECONNREFUSED] * 2


def _meet(sock, name):
    sock.settimeout(30)
    return sock.connect_ex(tuple(name))
