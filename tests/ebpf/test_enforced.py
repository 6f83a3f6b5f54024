# SPDX-License-Identifier: Apache-2.0
"""What may not be is dead in the kernel, whether there is an agent or not; and what the
agent is to end, it ends whatever else happens on its host."""

from __future__ import annotations

import collections
import contextlib
import errno
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pinned import pinned

from slimnet.layout import Layout
from slimnet.model import Direction, EventKind, Reason
from slimnet_ebpf import contract as private

pytestmark = pytest.mark.fresh

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
INET, INET6 = socket.AF_INET, socket.AF_INET6
RESET = 4  # of a TCP header's flags
CLOSED = 7  # TCP_CLOSE, in struct tcp_info
FLOW = Layout(private.slim_flow)
CONTROL = Layout(private.slim_control)


@contextlib.contextmanager
def killed(host):
    """kill -9 of the agent, for a while."""
    host.kill_backend()
    try:
        yield
    finally:
        host.start_backend()


def records(host):
    return dict(pinned(host.instance, "slim_flow").items())


def forget_handshakes(host):
    flows = pinned(host.instance, "slim_flow")
    found = [key for key, _ in flows.items()]
    assert found
    flows.remove(found)


def age_handshakes(host, seconds):
    flows = pinned(host.instance, "slim_flow")
    found = {key: FLOW.unpack(value) for key, value in flows.items()}
    assert found
    for key, record in found.items():
        flows.set(key, FLOW.pack(**(record | {"time": record["time"] - seconds * 10**9})))


def keep_house(host):
    """Have everything done that is ever due."""
    host.driver.call(_keep_house, host.backend)


def _keep_house(backend):
    pace, backend.pace = backend.pace, 0
    backend.tend()
    backend.pace = pace


def deferred(client, server, *, family=INET, seconds=60, bound=None, loopback=False):
    """(client's socket, listener): connected as the client sees it, and no child yet."""
    listener = server.call(_defer, family, 80, seconds)
    prefix = "::ffff:" if family == INET6 else ""
    sock = client.socket(family)
    if bound:
        sock.bind(bound)
    sock.connect(("127.0.0.1" if loopback else prefix + server.address, 80))
    return sock, listener


def _defer(family, port, seconds):
    listener = socket.socket(family)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)
    listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    listener.listen()
    return listener


def _answer(listener, seconds):
    """Accept one and answer it; whether there was one."""
    listener.settimeout(seconds)
    try:
        sock, _ = listener.accept()
    except TimeoutError:
        return False
    with contextlib.suppress(OSError):
        for _ in range(3):
            sock.sendall(b"answer")
            time.sleep(0.1)
    return True


def _ask(sock, data, seconds):
    """What comes back: bytes, or the errno that it ends with, or 0 for silence."""
    sock.settimeout(seconds)
    try:
        if data:
            sock.sendall(data)
        return sock.recv(100)
    except TimeoutError as error:
        return error.errno or 0
    except OSError as error:
        return error.errno


def _tap(interface):
    """From now on all packets of an interface are kept for :func:`_left`."""
    global tap
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    tap.bind((interface, 3))


def _left(port, seconds):
    """(flags, bytes of payload) of the TCP packets that left from a port, and leave for so long."""
    found = []
    with tap:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            tap.settimeout(left)
            try:
                data, name = tap.recvfrom(2000)
            except TimeoutError:
                break
            tcp = data[(data[0] & 15) * 4 : int.from_bytes(data[2:4], "big")]
            out = name[2] == socket.PACKET_OUTGOING and data[0] >> 4 == 4 and data[9] == 6
            if out and int.from_bytes(tcp[:2], "big") == port:
                found.append((tcp[13], len(tcp) - (tcp[12] >> 4) * 4))
    return found


# Dead in the kernel


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "mapped"])
def test_a_child_without_a_record_and_no_agent(ends, place, family):
    """Its client hears a reset at once, and not a byte of the answer."""
    client, server = ends
    sock, listener = deferred(client, server, family=family)
    host = server.host
    (wire,) = records(host)
    port = int.from_bytes(wire[-2:], "big")
    with killed(host):
        forget_handshakes(host)
        host.root.call(_tap, "lo" if place == "one-host" else "eth0")
        answering = server.start(_answer, listener, 2)
        assert client.call(_ask, sock, b"request", 2) == errno.ECONNRESET
        assert answering.result(5)
        packets = host.root.call(_left, port, 0.5)
        assert packets
        assert all(flags & RESET and not payload for flags, payload in packets), packets


def without_a_record(client, server):
    """A child that is made while its client only waits: the SYN-ACK is sent again after
    a second, and the answer to that makes it."""
    sock, listener = deferred(client, server, seconds=1)
    forget_handshakes(server.host)
    waiting = client.start(_ask, sock, b"", 4)
    child, _ = listener.accept()
    return waiting, child


def test_it_ends_by_itself(lab):
    """No agent: within two seconds its owner hears that it is over."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    with killed(server.host):
        _, child = without_a_record(client, server)
        assert server.call(_ask, child, b"", 4) == errno.ETIMEDOUT


def test_a_client_that_only_waits_hears_of_it(lab):
    """The agent ends it, and its reset leaves although nothing else of it does."""
    waiting, _ = without_a_record(lab.endpoint(0), lab.endpoint(1))
    assert waiting.result(5) == errno.ECONNRESET


def test_an_agent_that_dies_before_it_has_looked(lab, ends):
    """The tables are in force, and what they deny is not ended yet: that child is dead."""
    client, server = ends
    sock, listener = deferred(client, server)
    lab.isolate(server, INGRESS)
    lab.install_and_die(server.host)
    try:
        answering = server.start(_answer, listener, 2)
        assert client.call(_ask, sock, b"request", 2) == errno.ECONNRESET
        assert answering.result(5)
    finally:
        server.host.start_backend()
    assert server.host.counters()[Reason.GENERATION] >= 1


def test_a_client_whose_agent_dies_before_it_has_looked(lab):
    """Its SYN is under way when its own tables deny it: the server never hears of it."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.listen(80)
    lab.hosts[1].backend.install(lab.tables(lab.hosts[1], without=client))
    sock = client.socket()
    asking = client.start(_dial_and_ask, sock, server.address)
    until = time.monotonic() + 5
    while not lab.hosts[1].counters().get(Reason.SYN_UNKNOWN):
        assert time.monotonic() < until
        time.sleep(0.01)
    lab.isolate(client, EGRESS)
    lab.install_and_die(client.host)
    try:
        lab.hosts[1].backend.install(lab.tables(lab.hosts[1]))
        assert asking.result(10) == errno.ETIMEDOUT
        assert server.call(_answer, listener, 0.1) is False
    finally:
        client.host.start_backend()


def _dial_and_ask(sock, address):
    sock.settimeout(8)
    try:
        sock.connect((address, 80))
        sock.sendall(b"request")
        return sock.recv(100)
    except OSError as error:
        return error.errno


# The agent's part


@contextlib.contextmanager
def port_limit(host, number):
    control = pinned(host.instance, "slim_control")
    before = control.get(bytes(4))
    control.set(bytes(4), CONTROL.pack(**(CONTROL.unpack(before) | {"held_limit": number})))
    try:
        yield
    finally:
        control.set(bytes(4), before)


def test_listeners_over_the_limit_during_anothers_flood(lab):
    """Of 400, over IPv4 and IPv6, all are destroyed, whatever else there is to tell."""
    greedy, loud = lab.endpoint(0), lab.endpoint(0)
    with port_limit(greedy.host, 8), flood(loud):
        assert greedy.call(_listen_often, 400, 10) == 400 - 8


@contextlib.contextmanager
def flood(endpoint):
    """Refusals as fast as its threads can: connects to an inner address; a list that has
    their number in the end."""
    endpoint.call(_flood)
    counted = []
    try:
        while endpoint.call(_flooded) < 10_000:
            time.sleep(0.01)
        yield counted
    finally:
        counted.append(endpoint.call(_flooded, end=True))


def _flood():
    def run():
        while flooding:
            for _ in range(100):
                sock.connect_ex(("240.1.2.3", 80))
                flooded[threading.get_ident()] += 1

    global flooding, flooded, threads
    flooding, flooded = True, collections.Counter()
    sock = socket.socket()
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()


def _flooded(*, end=False):
    """How many there were so far; and at its end."""
    global flooding
    if end:
        flooding = False
        for thread in threads:
            thread.join()
    return sum(list(flooded.values()))


def _listen_often(count, seconds):
    """How many of so many listeners, on ports of the host, are destroyed within a time."""
    listeners = []
    for number in range(count):
        listener = socket.socket(socket.AF_INET6 if number % 2 else socket.AF_INET)
        listener.listen()
        listeners.append(listener)
    until = time.monotonic() + seconds
    closed = 7  # TCP_CLOSE
    while True:
        states = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] for one in listeners]
        if states.count(closed) >= count - 8 or time.monotonic() > until:
            return states.count(closed)
        time.sleep(0.05)


def test_a_listener_over_the_limit_while_no_agent_runs(lab):
    """The next one looks at all sockets as it starts."""
    endpoint = lab.endpoint(0)
    with port_limit(endpoint.host, 1), killed(endpoint.host):
        listeners = [endpoint.socket() for _ in range(2)]
        for listener in listeners:
            listener.listen()
    until = time.monotonic() + 3
    while listeners[1].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != CLOSED:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert listeners[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != CLOSED


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_a_listener_that_outlives_its_endpoint(lab, family):
    """On a port of the host, handed to a process of the host: destroyed by its removal."""
    endpoint = lab.endpoint(0)
    listener = endpoint.socket(family)
    listener.listen()
    left = endpoint.give(listener, endpoint.host.root)
    lab.remove(endpoint)
    assert left.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == CLOSED


def requests(host):
    """Handshakes under way (SYN-RECV), as the host's kernel lists them."""
    return host.root.call(_requests)


def _requests():
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[3] == "03"]


def test_a_handshake_that_is_older_than_a_denial(lab, ends):
    """The server waits for data before it accepts: gone when install() returns."""
    client, server = ends
    other = lab.endpoint(1)
    sock, _ = deferred(client, server)
    stays, listener = deferred(other, server.host.lab.endpoint(1))
    host = server.host
    host.watcher.forget()
    lab.isolate(server, INGRESS)
    lab.install()
    here = [] if host is client.host else requests(host)
    assert len(here) == len(records(host)) == (0 if host is client.host else 1)
    assert host.counters()[Reason.GENERATION] >= 1
    assert client.call(_ask, sock, b"request", 2) == errno.ECONNRESET
    (event,) = host.events(1)
    assert (event.kind, event.reason, event.direction) == (
        EventKind.REFUSED,
        Reason.GENERATION,
        INGRESS,
    )
    assert (event.endpoint, event.peer_endpoint) == (server.id, client.id)
    assert event.destination == (server.record.address, 80)
    # What the new tables allow goes on.
    answering = listener._hands.start(_answer, listener, 2)
    assert other.call(_ask, stays, b"request", 2).startswith(b"answer")
    assert answering.result(5)


def _pause_at_a_dump(backend, directory):
    """The next list of sockets is some time on its way."""
    sockets, here = backend._sockets.sockets, Path(directory)

    def slow(*args, **options):
        found = sockets(*args, **options)
        del backend._sockets.sockets
        (here / "listed").touch()
        while not (here / "go").exists():
            time.sleep(0.01)
        return found

    backend._sockets.sockets = slow


def test_a_handshake_that_ends_while_new_tables_come(lab, tmp_path):
    """It is a request where the sockets are listed and established where its record is
    looked for, with the same cookie."""
    client, server, other = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1)
    host = server.host
    before = set(records(host))  # of the tests before, which a sweep has still to find
    sock, listener = deferred(client, server)
    (made,) = set(records(host)) - before
    port = int.from_bytes(made[32:34], "big")
    assert sum(line.split()[2].endswith(f":{port:04X}") for line in requests(host)) == 1
    host.driver.call(_pause_at_a_dump, host.backend, str(tmp_path))
    lab.isolate(other, INGRESS)
    with ThreadPoolExecutor(1) as pool:
        installed = pool.submit(lab.install)
        try:
            until = time.monotonic() + 20
            while not (tmp_path / "listed").exists():
                assert time.monotonic() < until
                time.sleep(0.01)
            sock.sendall(b"request")
            child, _ = server.call(_accept, listener)
            assert made not in records(host)
        finally:
            (tmp_path / "go").touch()
        installed.result(20)
    child.sendall(b"answer")
    assert client.call(_ask, sock, b"", 5) == b"answer"


def _accept(listener):
    listener.settimeout(10)
    return listener.accept()


def test_a_handshake_to_a_published_port(lab):
    server = lab.endpoint(0)
    server.call(_defer, INET, 80, 60)
    lab.publish(server, 8080, 80)
    lab.install()
    host = server.host
    sock = lab.outside.root.connect(host.address, 8080)
    assert len(requests(host)) == 1
    lab.isolate(server, INGRESS)
    lab.install()
    assert requests(host) == []
    assert lab.outside.root.call(_ask, sock, b"request", 2) == errno.ECONNRESET


# What is told


def test_a_flood_of_refusals_hides_no_other(lab):
    """A limited number a second is told of it, and each says how many were not; what
    another endpoint is refused is told, all of it."""
    loud, quiet = lab.endpoint(0), lab.endpoint(0)
    host = loud.host
    host.watcher.forget()
    before = host.counters().get(Reason.INNER_ADDRESS, 0)
    begun = time.monotonic()
    with flood(loud) as counted:
        for _ in range(20):
            with pytest.raises(PermissionError):
                quiet.connect("240.1.2.3", 80)
            time.sleep(0.03)
    # A second is the clock's, so that the first and the last of them are begun only.
    seconds = time.monotonic() - begun
    time.sleep(1.1)
    with pytest.raises(PermissionError):
        loud.connect("240.1.2.3", 80)
    events = host.events(1_000_000, timeout=0.5)
    told = [each for each in events if each.endpoint == loud.id]
    assert len([each for each in events if each.endpoint == quiet.id]) == 20
    assert 64 <= len(told) <= (seconds + 2) * 64
    assert sum(1 + each.omitted for each in told) == counted[0] + 1
    assert host.counters()[Reason.INNER_ADDRESS] - before == counted[0] + 21


# Records of handshakes


def test_a_full_queue_leaves_no_records(ends):
    """SYNs that the kernel dropped for want of room: their records go in seconds, and a
    client that goes on trying gets in when there is room again. A listener in a
    reuseport group, where only the kernel knows which member is full."""
    client, server = ends
    listener = server.listen(80, backlog=0, reuseport=True)
    full = client.connect(server.address, 80)
    host = server.host
    waiting = [client.call(_dial, server.address) for _ in range(10)]
    until = time.monotonic() + 3
    while len(records(host)) < 10:
        assert time.monotonic() < until
        time.sleep(0.01)
    shielded = host.counters().get(Reason.SHIELD, 0)
    for sock in waiting[1:]:
        sock.close()
    age_handshakes(host, private.SLIM_ANSWER_SECONDS)
    keep_house(host)
    assert len(records(host)) <= 1  # of the one that still tries
    assert host.counters().get(Reason.SHIELD, 0) == shielded
    listener.accept()
    listener.settimeout(5)
    assert listener.accept()[1] == waiting[0].getsockname()
    full.close()


def _dial(address):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((address, 80))
    return sock


@pytest.mark.parametrize("how", ["v4", "mapped", "own port", "port 0", "loopback"])
def test_a_deferred_accept_lives_as_long_as_the_listener_says(ends, how):
    """However old its record is. (With real 150 seconds of silence it is the same.)"""
    client, server = ends
    if how == "loopback":
        server = client
    bound = (client.address, {"own port": 7777}.get(how, 0)) if "port" in how else None
    family = INET6 if how == "mapped" else INET
    sock, listener = deferred(
        client, server, family=family, bound=bound, loopback=how == "loopback"
    )
    age_handshakes(server.host, private.SLIM_HANDSHAKE_SECONDS + 1)
    keep_house(server.host)
    answering = server.start(_answer, listener, 20)
    assert client.call(_ask, sock, b"request", 20) == b"answer"
    assert answering.result(30)
