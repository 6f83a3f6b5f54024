# SPDX-License-Identifier: Apache-2.0
"""No endpoint takes what all endpoints of a host need: each has a share."""

from __future__ import annotations

import errno
import socket

import pytest

from slimnet import contract
from slimnet.model import Reason


def talk(client, server, port=80):
    sock = client.connect(server.address, port)
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"


def _begin_handshakes(address: str, port: int, count: int) -> None:
    """SYNs that nobody waits for an answer to."""
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((address, port))
        sock.close()


def _flows(backend) -> int:
    from slimnet import contract

    return len(list(backend._maps[contract.SLIM_MAP_FLOW].items()))


@pytest.mark.slow
def test_handshakes_that_never_end(lab):
    """A listener that does not accept, and a client that goes on asking: what is refused
    for want of room is counted, and the neighbour on that host never notices."""
    client, neighbour = lab.endpoint(0), lab.endpoint(1)
    greedy = lab.endpoint(1)
    neighbour.serve(80)
    greedy.listen(81, backlog=0)
    host = greedy.host
    with host.sysctl("net.ipv4.tcp_syncookies", 0):
        client.call(_begin_handshakes, greedy.address, 81, 2 * contract.SLIM_FLOW_SHARE)
        assert host.counters()[Reason.FLOW_FULL] > 0
        assert host.driver.call(_flows, host.backend) <= contract.SLIM_FLOW_SHARE
        for _ in range(20):
            talk(client, neighbour)


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


@pytest.mark.slow
def test_source_ports_without_end(lab):
    """Each closed one is kept for TIME_WAIT; who has used up its share waits, not others."""
    greedy, neighbour, server = lab.endpoint(0), lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    share = contract.SLIM_BOUND_SHARE
    result = greedy.call(_use_ports, server.address, 80, 2000, share + 100, deadline=120)
    assert result == (share, errno.EADDRNOTAVAIL)
    assert neighbour.call(_use_ports, server.address, 80, 2000, 20) == (20, 0)
    talk(greedy, server)
