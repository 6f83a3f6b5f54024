# SPDX-License-Identifier: Apache-2.0
"""Records of connections of endpoints with network namespaces of their own: how many there may
be, and which of them makes room for another."""

from __future__ import annotations

import contextlib
import socket
from contextlib import closing

import pytest
from pinned import pinned

from slimnet.encoding import u32
from slimnet.layout import Layout
from slimnet.model import Reason
from slimnet_ebpf import contract as private

pytestmark = pytest.mark.fresh

ROOM = private.SLIM_CARRIED_ROOM
#: A number that no device has.
NOBODY = 0x7FFFFFFF
DEVICE = Layout(private.slim_device)
KEY = Layout(private.slim_carried_key)
CARRIED = Layout(private.slim_carried)
USAGE = Layout(private.slim_usage)
LINGER = private.SLIM_LINGER_SECONDS * 10**9


@pytest.fixture
def pair(lab, namespaces):
    """A client and a server on two hosts."""
    return tuple(lab.endpoint(number, netns=namespaces()) for number in (0, 1))


def all_carried(host):
    """As it is counted, of all endpoints."""
    with closing(pinned(host.instance, "slim_local")) as usage:
        return USAGE.unpack(usage.get(u32(0)))["carried"]


def records(host):
    with closing(pinned(host.instance, "slim_carried")) as table:
        return {key: CARRIED.unpack(value) for key, value in table.items()}


def names(host):
    """The keys of the names that have a record: of no source."""
    return [key for key in records(host) if not KEY.unpack(key)["source"]]


@contextlib.contextmanager
def crowded(lab, host, free):
    """All connections but ``free`` that a host has room for are another device's."""
    with closing(pinned(host.instance, "slim_device")) as table:
        table.set(u32(NOBODY), DEVICE.pack(carried=ROOM - all_carried(host) - free))
        lab.install()
        assert all_carried(host) == ROOM - free
        try:
            yield
        finally:
            table.remove([u32(NOBODY)])
            lab.install()


def a_minute_later(host):
    """As if nothing had happened for as long as closed connections are remembered."""
    with closing(pinned(host.instance, "slim_carried")) as table:
        for key, value in table.items():
            record = CARRIED.unpack(value)
            if record["used"]:
                table.set(key, CARRIED.pack(**(record | {"used": record["used"] - LINGER})))


def churn(target, count):
    """Connections one after the other, each closed by both ends."""
    for _ in range(count):
        with socket.create_connection(target, timeout=0.9) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""


@pytest.mark.parametrize("whose", ["client", "server"])
def test_closed_ones_make_room(lab, pair, whose):
    """However many are closed within a minute, nobody waits for room, and none that is live
    goes for them."""
    client, server = pair
    server.serve(80)
    live = [client.connect(server.address, 80) for _ in range(3)]
    host = (client if whose == "client" else server).host
    with crowded(lab, host, 10):
        client.call(churn, (server.address, 80), 300, deadline=60)
        for sock in live:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        assert all_carried(host) <= ROOM
        assert host.counters().get(Reason.BOUND_FULL, 0) == 0


def test_live_ones_make_none(lab, pair):
    client, server = pair
    server.serve(80)
    host = client.host
    with crowded(lab, host, 10):
        live = [client.connect(server.address, 80) for _ in range(5)]
        sock = client.socket()
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.connect((server.address, 80))
        assert host.counters()[Reason.BOUND_FULL] > 0
        for each in live:
            each.sendall(b"x")
            assert each.recv(1) == b"x"


def test_those_of_a_removed_endpoint_are_counted_no_more(lab, pair, namespaces):
    client, server = pair
    server.serve(80)
    client.connect(server.address, 80)
    client.call(churn, (server.address, 80), 20)
    other = lab.endpoint(0, netns=namespaces())
    other.connect(server.address, 80)
    assert all_carried(client.host) == 22
    lab.remove(client)
    lab.install()
    assert all_carried(other.host) == 1


@pytest.fixture
def one_port(lab, pair):
    """Connects from one port, to the server or to a service of it; and accepts."""
    client, server = pair
    listener = server.listen(80)
    addresses = [lab.service(8080, [(server, 80)], address=f"10.77.255.{last}") for last in (1, 2)]
    lab.install()
    targets = {"server": (server.address, 80)} | {
        f"service {number}": (address, 8080) for number, address in enumerate(addresses)
    }

    def connect(target):
        sock = client.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((client.address, 45678))
        sock.connect(targets[target])
        return sock, listener.accept()[0]

    return connect


def test_one_that_is_half_closed_is_not_over(pair, one_port):
    """An hour's download to whoever has nothing more to ask."""
    opened, accepted = one_port("server")
    opened.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    a_minute_later(pair[0].host)
    one_port("service 0")
    accepted.sendall(b"answer")
    assert opened.recv(100) == b"answer"


def test_a_name_goes_with_its_connection(pair, one_port):
    """Also where what makes another connection finds it over."""
    host = pair[0].host
    one_port("server")
    opened, accepted = one_port("service 0")
    assert len(names(host)) == 1
    accepted.close()
    assert opened.recv(1) == b""
    opened.close()
    a_minute_later(host)
    one_port("service 1")
    assert len(names(host)) == 1
