# SPDX-License-Identifier: Apache-2.0
"""Hosts are set up in many ways; endpoints do not notice."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from pathlib import Path

import pytest
from lab import Can

pytestmark = pytest.mark.needs(Can.NAMED_BY_SYN)

SOURCE_PORTS = itertools.count(15000)
TCP_FASTOPEN = 23

SETTINGS = {
    "strict reverse path": {"net.ipv4.conf.all.rp_filter": 1, "net.ipv4.conf.eth0.rp_filter": 1},
    "loose reverse path": {"net.ipv4.conf.all.rp_filter": 2},
    "no timestamps": {"net.ipv4.tcp_timestamps": 0},
    "no options at all": {
        "net.ipv4.tcp_timestamps": 0,
        "net.ipv4.tcp_sack": 0,
        "net.ipv4.tcp_window_scaling": 0,
    },
    "early TIME_WAIT reuse": {"net.ipv4.tcp_tw_reuse": 1},
    "ECN": {"net.ipv4.tcp_ecn": 1},
    "forwarding": {"net.ipv4.ip_forward": 1},
    "low ports for everybody": {"net.ipv4.ip_unprivileged_port_start": 0},
    "fast open everywhere": {"net.ipv4.tcp_fastopen": 0x407},
    "migrating requests": {"net.ipv4.tcp_migrate_req": 1},
    "MTU probing": {"net.ipv4.tcp_mtu_probing": 2},
}


@contextlib.contextmanager
def settings(hosts, values):
    with contextlib.ExitStack() as stack:
        for host in hosts:
            for name, value in values.items():
                stack.enter_context(host.sysctl(name, value))
        yield


def every_form(client, server, listener):
    """Free, bound to port 0, bound to a port; the server or the client closes first."""
    for source in ("free", "port 0", "explicit"):
        for first in ("client", "server"):
            sock = client.socket()
            if source != "free":
                port = next(SOURCE_PORTS) if source == "explicit" else 0
                sock.bind((client.address, port))
            started = time.monotonic()
            sock.connect((server.address, 80))
            assert time.monotonic() - started < 0.8
            accepted, peer = listener.accept()
            assert peer == sock.getsockname()
            assert accepted.getsockname() == (server.address, 80)
            accepted.sendall(b"hello")
            assert sock.recv(10) == b"hello"
            near, far = (sock, accepted) if first == "client" else (accepted, sock)
            near.close()
            assert far.recv(1) == b""
            far.close()


@pytest.mark.parametrize("name", SETTINGS)
def test_sysctls(lab, ends, name):
    client, server = ends
    with settings({client.host, server.host}, SETTINGS[name]):
        listener = server.listen(80)
        every_form(client, server, listener)
        own = server.connect("127.0.0.1", 80)
        _, peer = listener.accept()
        assert peer == own.getsockname()
        with pytest.raises(ConnectionRefusedError):
            client.connect(server.address, 81)


def test_nobody_knows_the_neighbour_yet(lab):
    """The first packet of all is from a source-bound socket: ARP must not ask
    with its inner address."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.listen(80)
    for source in (next(SOURCE_PORTS), 0, next(SOURCE_PORTS)):
        for host in lab.hosts:
            host.netns.ip("neigh flush all")
        sock = client.socket()
        sock.bind((client.address, source))
        sock.settimeout(5)
        started = time.monotonic()
        sock.connect((server.address, 80))
        assert time.monotonic() - started < 0.8
        _, peer = listener.accept()
        assert peer[0] == client.address


def test_a_fast_open_cookie_of_the_host(lab):
    """The hosts' own programs use Fast Open between them. The cookie that the
    client's host keeps for the server's leaves no room for the option in an
    endpoint's SYN; the endpoint connects all the same."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    with settings(lab.hosts[:2], {"net.ipv4.tcp_fastopen": 3}):
        of_host = server.host.root.socket()
        of_host.bind(("0.0.0.0", 7001))
        of_host.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        of_host.listen()
        for _ in range(2):
            sock = client.host.root.socket()
            sock.sendto(b"host", socket.MSG_FASTOPEN, (server.host.address, 7001))
            accepted, _ = of_host.accept()
            assert accepted.recv(10) == b"host"
        assert "fo_cookie" in client.host.netns.ip("tcp_metrics show")
        listener = server.listen(80)
        for number in range(3):
            sock = client.socket()
            text = b"endpoint %d" % number
            started = time.monotonic()
            assert sock.sendto(text, socket.MSG_FASTOPEN, (server.address, 80)) == len(text)
            accepted, peer = listener.accept()
            assert peer == sock.getsockname()
            assert accepted.recv(100) == text
            assert time.monotonic() - started < 3
            opened = client.connect(server.address, 80)
            _, peer = listener.accept()
            assert peer == opened.getsockname()


def test_a_firewall_on_the_host(lab, ends):
    """nftables with connection tracking: established passes, wire ports are
    open, the rest is dropped."""
    client, server = ends
    rules = (
        "table inet filter { chain input { type filter hook input priority 0; policy drop;"
        " ct state established,related accept; iif lo accept;"
        " tcp dport 4790-4885 accept; }; }"
    )
    path = lab.directory / "firewall.nft"
    Path(path).write_text(rules)
    for host in {client.host, server.host}:
        host.netns.run("nft", "-f", str(path))
    try:
        listener = server.listen(80)
        every_form(client, server, listener)
    finally:
        for host in {client.host, server.host}:
            host.netns.run("nft", "delete", "table", "inet", "filter")


def test_a_host_that_masquerades(lab):
    """docker's usual rule does not touch connections between endpoints, and
    those to the outside still come from the host."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    host = client.host
    path = lab.directory / "nat.nft"
    path.write_text(
        "table ip nat { chain postrouting { type nat hook postrouting priority srcnat;"
        ' ip saddr 172.17.0.0/16 oifname != "docker0" masquerade; }; }'
    )
    host.netns.run("nft", "-f", str(path))
    try:
        listener = server.listen(80)
        every_form(client, server, listener)
        outside = lab.outside.root.listen(8080)
        client.connect(lab.outside.address, 8080)
        _, peer = outside.accept()
        assert peer[0] == host.address
    finally:
        host.netns.run("nft", "delete", "table", "ip", "nat")
