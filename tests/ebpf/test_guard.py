# SPDX-License-Identifier: Apache-2.0
"""What a connected datagram socket sends, of which no hook is asked: it reaches what policy
allows and nothing else, also where connect(2) allowed something else than what leaves."""

from __future__ import annotations

import errno
import socket

import pytest

from slimnet import contract
from slimnet.model import Direction, Reason

UDP = 17
DATAGRAM = socket.SOCK_DGRAM
PORT = 8443
DENIED = 9999
#: Of what is connected to nowhere (SLIM_INNER_PORT).
NOWHERE = contract.SLIM_INNER_PORT


def hears(host, port):
    sock = host.root.socket(kind=DATAGRAM)
    sock.bind(("0.0.0.0", port))
    sock.settimeout(0)
    return sock


def heard(sock):
    try:
        return sock.recvfrom(100)
    except BlockingIOError:
        return None


def refusals(host):
    """Of what comes by loopback, and of what is for a host."""
    counters = host.counters()
    return sum(counters.get(reason, 0) for reason in (Reason.DATAGRAM, Reason.HOST_DENY))


def only_to(lab, endpoint, port, peer=contract.SLIM_IDENTITY_WORLD):
    """The endpoint may send to that port of the outside, or of the hosts."""
    lab.isolate(endpoint, Direction.EGRESS)
    lab.rule(
        endpoint,
        Direction.EGRESS,
        peer=peer,
        port=port,
        allow=True,
        protocol=UDP,
    )
    lab.install()


def test_connected_by_one_thread_while_others_send(lab, built):
    """The kernel reads the peer's address, its port and the route one after the other."""
    endpoint, friend = lab.endpoint(0, install=False), lab.endpoint(1, install=False)
    only_to(lab, endpoint, PORT)
    allowed = hears(lab.outside, PORT)
    forbidden = [hears(lab.outside, port) for port in (DENIED, NOWHERE)]
    forbidden += [hears(endpoint.host, port) for port in (PORT, DENIED, NOWHERE)]
    output = endpoint.run(
        [
            *built("torn"),
            100_000,
            *(lab.outside.address, PORT),
            *("127.0.0.1", PORT),
            *(lab.outside.address, DENIED),
            *(friend.address, PORT),
        ],
        timeout=300,
    )
    assert int(output)
    assert heard(allowed)
    assert [heard(sock) for sock in forbidden] == [None] * len(forbidden)


def test_the_own_host_where_policy_allows_it(lab):
    """A resolver of the host's, say: what it sends goes over the host's loopback too."""
    endpoint = lab.endpoint(0, install=False)
    host = endpoint.host
    only_to(lab, endpoint, PORT, contract.SLIM_IDENTITY_HOST)
    for bound in ("0.0.0.0", host.address):
        here = host.root.socket(kind=DATAGRAM)
        here.bind((bound, PORT))
        here.settimeout(5)
        sock = endpoint.socket(kind=DATAGRAM)
        sock.connect((host.address, PORT))
        sock.send(b"allowed")
        data, client = here.recvfrom(100)
        assert data == b"allowed"
        here.sendto(b"answer", client)
        assert sock.recv(100) == b"answer"
        here.close()
    denied = hears(host, DENIED)
    sock.connect((host.address, DENIED))
    sock.send(b"refused")
    assert heard(denied) is None


def test_an_address_that_becomes_the_hosts_own(lab):
    """Whether or not the backend has looked meanwhile and its tables say so."""
    endpoint = lab.endpoint(0, install=False)
    host = endpoint.host
    only_to(lab, endpoint, PORT)
    there, here = hears(lab.outside, PORT), hears(host, PORT)
    sock = endpoint.socket(kind=DATAGRAM)
    sock.connect((lab.outside.address, PORT))
    sock.send(b"allowed")
    there.settimeout(5)
    assert there.recv(100) == b"allowed"
    refused = refusals(host)
    host.netns.ip(f"address add {lab.outside.address}/32 dev lo")
    try:
        with pytest.raises(PermissionError) as caught:
            sock.send(b"refused")
    finally:
        host.netns.ip(f"address del {lab.outside.address}/32 dev lo")
    assert caught.value.errno == errno.EPERM
    assert heard(here) is None
    assert refusals(host) == refused + 1
