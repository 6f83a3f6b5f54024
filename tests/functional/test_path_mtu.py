# SPDX-License-Identifier: Apache-2.0
"""A path whose MTU shrinks while connections live: routers answer with ICMP,
which must reach the right socket (RFC 1191)."""

from __future__ import annotations

import socket

import pytest
from lab import Can, Lab


@pytest.fixture(scope="module")
def routed(mode):
    """Two hosts with a router between them."""
    lab = Lab(mode, hosts=2, routed=True)
    yield lab
    lab.close()


def bulk(sock, size):
    sock.settimeout(20)
    sock.sendall(b"m" * size)
    return size


def take(sock, size):
    sock.settimeout(20)
    got = 0
    while got < size:
        data = sock.recv(1 << 18)
        if not data:
            break
        got += len(data)
    return got


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("source", ["free", "port 0", "explicit", "explicit wildcard"])
def test_path_mtu_shrinks(routed, source, sender):
    """The same for a socket whose source tc rewrites."""
    with routed.test() as lab:
        client, server = lab.endpoint(0), lab.endpoint(1)
        listener = server.listen(80)
        sock = client.socket()
        if source != "free":
            port = 5000 if source.startswith("explicit") else 0
            sock.bind(("0.0.0.0" if source.endswith("wildcard") else client.address, port))
        sock.connect((server.address, 80))
        accepted, peer = listener.accept()
        assert peer == sock.getsockname()
        from_, to, hands, other = (
            (sock, accepted, client, server)
            if sender == "client"
            else (accepted, sock, server, client)
        )
        router_port = "port1" if sender == "client" else "port0"
        size = 1 << 20
        try:
            for mtu in (1500, 1300, 1000):
                lab.underlay.middle.ip(f"link set {router_port} mtu {mtu}")
                sending = hands.start(bulk, from_, size)
                assert other.call(take, to, size) == size
                assert sending.result(20) == size
            # Where hosts wrap it up, they send what is too long in fragments, and the
            # connection hears nothing of that.
            assert (hands.call(_mss, from_) < 1000) == lab.can(Can.DIRECT)
        finally:
            lab.underlay.middle.ip(f"link set {router_port} mtu 1500")
            for host in lab.hosts:
                host.netns.ip("route flush cache")


def _mss(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def test_bulk_data_passes_whole_and_unfragmented(routed):
    """The MTU leaves room for whatever the data path adds."""
    size = 20_000_000
    with routed.test() as lab:
        client, server = lab.endpoint(0), lab.endpoint(1)
        listener = server.listen(80)
        sock = client.connect(server.address, 80)
        accepted, _ = listener.accept()
        names = ("IpReasmReqds", "IpFragCreates")
        before = [host.statistic(name) for host in lab.hosts for name in names]
        sending = client.start(bulk, sock, size)
        assert server.call(take, accepted, size) == size
        assert sending.result(20) == size
        assert [host.statistic(name) for host in lab.hosts for name in names] == before


@pytest.mark.needs(Can.DIRECT, Can.TRIES_AT_ONCE)
def test_a_host_that_cannot_be_reached(routed):
    """A router's ICMP "unreachable" ends a connect; it does not hang."""
    with routed.test() as lab:
        client, server = lab.endpoint(0), lab.endpoint(1)
        server.serve(80)
        middle = lab.underlay.middle
        middle.ip(f"route add unreachable {server.host.address}/32")
        try:
            for port in (None, 5001):
                sock = client.socket()
                sock.settimeout(10)
                if port:
                    sock.bind((client.address, port))
                with pytest.raises(OSError) as caught:
                    sock.connect((server.address, 80))
                assert "No route to host" in str(caught.value), caught.value
        finally:
            middle.ip(f"route del unreachable {server.host.address}/32")
        client.connect(server.address, 80)
