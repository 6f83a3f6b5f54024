# SPDX-License-Identifier: Apache-2.0
"""No endpoint takes what all endpoints of a host share: each may take one more only
while it holds less than what is free.

Tables are full but for a little before a test begins, of records of an index that no
endpoint of the lab has.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from typing import Any

import pytest
from pinned import count, pinned

from slimnet import contract
from slimnet.encoding import u32
from slimnet.layout import Layout
from slimnet.model import Reason
from slimnet_ebpf import contract as private

pytestmark = pytest.mark.fresh

NOBODY = contract.SLIM_INDEX_MAX
USAGE = Layout(private.slim_usage)


@contextlib.contextmanager
def crowded(host, table, field, free, records=1):
    """All but ``free`` of a table is an endpoint's that the lab has not; ``field`` is
    its count. Whatever is in there afterwards goes."""
    room = pinned(host.instance, table).max_entries // records
    try:
        charge(host, field, NOBODY, room - free)
        yield room
    finally:
        clear(host, table, field)


def charge(host, field, index, count):
    """As if the endpoint with that index held so many."""
    usage = pinned(host.instance, "slim_local")
    for number, more in ((index, count), (0, count)):
        key = number.to_bytes(4, "little")
        held = USAGE.unpack(usage.get(key))
        usage.set(key, USAGE.pack(**(held | {field: held[field] + more})))


def clear(host, table, field):
    usage = pinned(host.instance, "slim_local")
    for key, value in usage.items():
        held = USAGE.unpack(value)
        if held[field]:
            usage.set(key, USAGE.pack(**(held | {field: 0})))
    tables = [table, "slim_opening"] if table == "slim_flow" else [table]
    for name in tables:
        records = pinned(host.instance, name)
        if name != "slim_listener":
            records.remove([key for key, _ in records.items()])


def fill(host, table, count):
    """Records of nobody's: of the last indexes, for a table may hold more than one has ports."""
    inner = NOBODY << 16
    if table == "slim_flow":
        fields = {"time": time.monotonic_ns(), "inner": inner}
        if hasattr(private.slim_flow, "charged"):
            fields["charged"] = inner
        value = Layout(private.slim_flow).pack(**fields)
    else:
        value = Layout(private.slim_held).pack(sockets=1)
    records = pinned(host.instance, table)
    rest = bytes(records.key_size - 4)
    records.update(
        (struct.pack("<I", inner - (number & ~0xFFFF) + (number & 0xFFFF)) + rest, value)
        for number in range(count)
    )


def handshakes(host):
    return count(host.instance, "slim_flow")


def talk(client, server, port=80):
    sock = client.connect(server.address, port)
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    sock.close()


# Handshakes


def begin_handshakes(client, server, port, count):
    """SYNs that the server's host has no way to answer: no handshake ends."""
    server.host.netns.ip(f"route add blackhole {client.host.address}")
    try:
        client.call(_begin, server.address, port, count)
    finally:
        server.host.netns.ip(f"route del blackhole {client.host.address}")


def _begin(address: str, port: int, count: int) -> None:
    for _ in range(count):
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex((address, port))


def _sweep_in(backend: Any, seconds: float) -> None:
    backend._swept = backend._kept = time.monotonic() + seconds


@contextlib.contextmanager
def few_handshakes(host, free):
    """``free`` records of handshakes are all that is left on the host, and nobody's go
    meanwhile."""
    host.driver.call(_sweep_in, host.backend, 3600)
    try:
        with crowded(host, "slim_flow", "flows", free) as room:
            fill(host, "slim_flow", room - free)
            yield room - free
    finally:
        host.driver.call(_sweep_in, host.backend, 0)


def test_a_slow_port_leaves_room_to_the_others_of_its_endpoint(lab):
    """Whoever may reach one port of an endpoint does not shut another one."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.listen(81)
    server.serve(80)
    host = server.host
    before = host.counters().get(Reason.FLOW_FULL, 0)
    with few_handshakes(host, 1800) as others:
        begin_handshakes(client, server, 81, 2000)
        # As much for the port as is left to the endpoint, and that as is left to all.
        held = handshakes(host) - others
        assert held == 600
        assert host.counters()[Reason.FLOW_FULL] == before + 1400
        for _ in range(20):
            talk(client, server)


def test_three_greedy_endpoints_and_a_newcomer(lab):
    client = lab.endpoint(0)
    greedy = [lab.endpoint(1) for _ in range(3)]
    host = greedy[0].host
    with few_handshakes(host, 1800) as others:
        held = others
        for endpoint, share in zip(greedy, (600, 400, 267), strict=True):
            endpoint.listen(81)
            begin_handshakes(client, endpoint, 81, 2000)
            now = handshakes(host)
            assert now - held == share
            held = now
        newcomer = lab.endpoint(1)
        newcomer.serve(80)
        for _ in range(20):
            talk(client, newcomer)


def _keep_connecting(address: str, port: int, count: int) -> None:
    global kept
    kept = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((address, port))
        kept.append(sock)


def test_on_one_host_the_opener_is_charged(lab):
    """Who connects again and again to a neighbour that does not accept takes nothing of
    what is the neighbour's."""
    client, opener, server = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1)
    server.listen(81, backlog=0)
    server.serve(80)
    host = server.host
    with few_handshakes(host, 600) as others:
        opener.call(_keep_connecting, server.address, 81, 800)
        assert handshakes(host) - others == 200
        for _ in range(20):
            talk(client, server)
        opener.close()


def test_a_handshake_that_finds_no_room_leaves_no_record(lab):
    """The accept queue is full: the kernel drops the SYN, and nobody would come back for
    its record."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.listen(81, backlog=0)
    host = server.host
    before = handshakes(host)
    client.call(_keep_connecting, server.address, 81, 100)
    time.sleep(0.1)
    assert handshakes(host) - before <= 2


@pytest.mark.parametrize("whose", ["all", "its own", "its port's"])
def test_a_count_below_zero_is_none(lab, whose):
    """Two processors that both find one may each take it off: nobody is refused for that."""
    client, server = lab.endpoint(0), lab.endpoint(0)
    server.serve(80)
    talk(client, server)
    host = lab.hosts[0]
    index = host.backend.status().detail["indexes"][client.id]
    if whose == "its port's":
        pinned(host.instance, "slim_opening").set(u32(index << 16), b"\xff" * 4)
    else:
        usage = pinned(host.instance, "slim_local")
        key = u32(0 if whose == "all" else index)
        held = USAGE.unpack(usage.get(key))
        usage.set(key, USAGE.pack(**(held | {"flows": 0xFFFFFFFF})))
    for _ in range(3):
        talk(client, server)


def test_a_flood_to_a_published_port_leaves_no_record(lab):
    """Refused or not, nothing is written down before a handshake is over."""
    server = lab.endpoint(0)
    server.serve(80)
    lab.publish(server, 8080, 80)
    lab.install()
    before = handshakes(server.host)
    for _ in range(20):
        lab.outside.root.connect(server.host.address, 8080)
    assert handshakes(server.host) <= before


# Source-bound connections


def _use_ports(address: str, port: int, first: int, count: int) -> tuple[int, int]:
    """Connect from one port after the other and close; how many, and how it ended."""
    for number in range(count):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("0.0.0.0", first + number))
            try:
                sock.connect((address, port))
            except OSError as error:
                return number, error.errno or 0
    return count, 0


def test_source_ports_without_end(lab):
    """Each closed one is kept for TIME_WAIT; who has used up its share waits, and the
    shares of three leave room for a fourth."""
    server = lab.endpoint(1)
    server.serve(80)
    with crowded(lab.hosts[0], "slim_bound", "bound", 240, records=3):
        for share in (120, 60, 30):
            result = lab.endpoint(0).call(_use_ports, server.address, 80, 2000, 300)
            assert result == (share, errno.EADDRNOTAVAIL)
        newcomer = lab.endpoint(0)
        assert newcomer.call(_use_ports, server.address, 80, 2000, 10) == (10, 0)
        talk(newcomer, server)


# Ports of the host that bind(0) gave


def _bind_and_connect(own: str, address: str, count: int, *, leave: bool) -> tuple[int, int]:
    """Connect from ports that bind(0) gives, closing each at once where ``leave``: how many,
    and how it ended."""
    global kept
    kept = []
    for number in range(count):
        sock = socket.socket()
        try:
            sock.bind((own, 0))
            sock.connect((address, 80))
        except OSError as error:
            return number, error.errno or 0
        if not leave:
            kept.append(sock)
            continue
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        sock.close()
    return count, 0


def _reset_all() -> None:
    while kept:
        sock = kept.pop()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        sock.close()


@contextlib.contextmanager
def few_bound_ports(host, free):
    """``free`` of the ports that bind(0) is for are nobody's."""
    control = Layout(private.slim_control).unpack(
        pinned(host.instance, "slim_control").get(bytes(4))
    )
    charge(host, "held", NOBODY, control["port_room"] // 3 * 2 - free)
    try:
        yield
    finally:
        clear(host, "slim_held", "held")
        usage = pinned(host.instance, "slim_local")
        for key, value in usage.items():
            usage.set(key, USAGE.pack(**(USAGE.unpack(value) | {"waiting": b""})))


def test_ports_in_time_wait_are_shared(lab):
    """An endpoint alone has nearly all that bind(0) is for, and newcomers still get some."""
    server = lab.endpoint(1)
    server.serve(80)
    with few_bound_ports(lab.hosts[0], 90):
        for share in (80, 9, 1):
            client = lab.endpoint(0)
            result = client.call(_bind_and_connect, client.address, server.address, 100, leave=True)
            assert result == (share, errno.EADDRINUSE)
            talk(client, server)
        assert lab.hosts[0].counters()[Reason.PORT_LIMIT] >= 3


@pytest.mark.parametrize(("passed", "counted"), [(0, 60), (1, 30), (2, 10), (3, 0), (10**6, 0)])
def test_time_wait_is_over_some_time(lab, passed, counted):
    """By half minutes; the kernel's is over after a minute."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    usage = pinned(lab.hosts[0].instance, "slim_local")
    began = ended = -1
    while began != ended or began < 0:  # until the clock's half minute does not end meanwhile
        with few_bound_ports(lab.hosts[0], 90):
            began = time.monotonic_ns() // (30 * 10**9)
            all_ = USAGE.unpack(usage.get(bytes(4)))
            waiting = struct.pack("=3I", 10, 20, 30)
            epoch = (began - passed) % 2**32
            usage.set(bytes(4), USAGE.pack(**(all_ | {"epoch": epoch, "waiting": waiting})))
            got, _ = client.call(_bind_and_connect, client.address, server.address, 100, leave=True)
            ended = time.monotonic_ns() // (30 * 10**9)
    # Eight times as many as are left.
    assert got == next(each for each in range(100) if each >= 8 * (90 - counted - each))


def test_ports_that_are_given_back_are_free(lab):
    """A reset leaves no TIME_WAIT."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    with few_bound_ports(lab.hosts[0], 90):
        for _ in range(3):
            result = client.call(
                _bind_and_connect, client.address, server.address, 100, leave=False
            )
            assert result == (80, errno.EADDRINUSE)
            client.call(_reset_all)


# Bound ports and listeners


def _listen_on(address: str, first: int, count: int, *, listen: bool = True) -> tuple[int, int]:
    """Listeners on one port after the other; how many, and how it ended."""
    global kept
    kept = globals().get("kept", [])
    for number in range(count):
        sock = socket.socket()
        kept.append(sock)
        try:
            sock.bind((address, first + number))
        except OSError as error:
            return number, error.errno or 0
        if listen:
            sock.listen()
    return count, 0


def _close_all() -> None:
    while kept:
        kept.pop().close()


def test_nothing_is_bound_that_could_not_be_written_down(lab):
    """Without its record nobody would know of the conflict with 127.0.0.1."""
    endpoint = lab.endpoint(0)
    host = endpoint.host
    with crowded(host, "slim_held", "places", 100) as room:
        fill(host, "slim_held", room)
        before = host.counters().get(Reason.PORT_LIMIT, 0)
        sock = endpoint.socket()
        with pytest.raises(OSError) as caught:
            sock.bind(("0.0.0.0", 80))
        assert caught.value.errno == errno.EADDRINUSE
        assert sock.getsockname() == ("0.0.0.0", 0)
        assert host.counters()[Reason.PORT_LIMIT] == before + 1
    sock.bind(("0.0.0.0", 80))
    with pytest.raises(OSError) as caught:
        endpoint.socket().bind(("127.0.0.1", 80))
    assert caught.value.errno == errno.EADDRINUSE


def test_bound_ports_are_shared(lab):
    greedy, neighbour = lab.endpoint(0), lab.endpoint(0)
    with crowded(greedy.host, "slim_held", "places", 60):
        for _ in range(2):  # what is closed is given back
            assert greedy.call(_listen_on, "0.0.0.0", 2000, 100) == (30, errno.EADDRINUSE)
            assert neighbour.call(_listen_on, "0.0.0.0", 2000, 100) == (15, errno.EADDRINUSE)
            greedy.call(_close_all)
            neighbour.call(_close_all)


def _crowd_listeners(instance, first, count):
    """Listeners of the host's, each under a thousand keys."""
    from pinned import pinned

    global crowd
    crowd = []
    listeners = pinned(instance, "slim_listener")
    for number in range(count):
        if number % 1000 == 0:
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            sock.listen()
            crowd.append(sock)
        key = (first + number).to_bytes(4, "little") + bytes(4)
        listeners.set(key, crowd[-1].fileno().to_bytes(8, "little"))


def _disperse():
    for sock in crowd:
        sock.close()


def test_many_listeners_of_one_endpoint(lab):
    """A later listener of anybody is reached."""
    client, greedy, neighbour = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1)
    host = greedy.host
    host.driver.call(_crowd_listeners, host.instance, NOBODY << 16, 65_500)
    try:
        assert greedy.call(_listen_on, "0.0.0.0", 2000, 100) == (100, 0)
        neighbour.serve(80)
        talk(client, neighbour)
    finally:
        host.driver.call(_disperse)


def test_listeners_are_shared(lab):
    """Over its share an endpoint is refused at bind; what is bound already may listen,
    and nobody finds it there."""
    client, greedy, neighbour = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1)
    host = greedy.host
    early = greedy.socket()
    early.bind((greedy.address, 99))
    with crowded(host, "slim_listener", "listeners", 60):
        for _ in range(2):  # what is closed is given back
            assert greedy.call(_listen_on, "0.0.0.0", 2000, 100) == (30, errno.EADDRINUSE)
            listener = neighbour.serve(80)
            assert neighbour.call(_listen_on, "0.0.0.0", 2000, 100) == (14, errno.EADDRINUSE)
            talk(client, neighbour)
            listener.close()
            host.watcher.forget()
            early.listen()
            assert [event.reason for event in host.events(1)] == [Reason.PORT_LIMIT]
            with pytest.raises(ConnectionRefusedError):
                client.connect(greedy.address, 99)
            early.shutdown(socket.SHUT_RDWR)
            greedy.call(_close_all)
            neighbour.call(_close_all)
            time.sleep(0.1)  # the thread that serves lets go of its listener
