# SPDX-License-Identifier: Apache-2.0
"""The SYN of an endpoint's connection, recorded and sent again, bit for bit, by a
machine that is not in the cluster and has no key: never a connection that is accepted."""

from __future__ import annotations

import socket
import struct
import time

import pytest
from lab import Can, packets
from lab.packets import Syn

from slimnet import contract
from slimnet.model import Reason

WIRES = range(4790, 4790 + contract.SLIM_WIRE_PORTS + contract.SLIM_BOUND_PORTS)


@pytest.fixture
def recorded(lab):
    """Client, server, listener; both ends of a connection between two hosts; its SYN."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.listen(80)
    sniffer = server.host.root.call(_open_sniffer, "eth0")
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    packet = server.host.root.call(_sniff, sniffer, WIRES.start, WIRES.stop)
    return client, server, listener, opened, accepted, packets.sealed(packet)


def _open_sniffer(interface):
    # ETH_P_ALL: of one protocol it would see what tc lets through, and no redirected packet.
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sniffer.bind((interface, 0))
    return sniffer


def _sniff(sniffer, first, stop):
    """The next SYN to one of these ports, as an IP packet."""
    sniffer.settimeout(5)
    while True:
        frame = sniffer.recv(2048)
        if frame[12:14] != b"\x08\x00":
            continue
        packet = frame[14:]
        offset = (packet[0] & 15) * 4
        if packet[9] != 6 or packet[offset + 13] & 0x12 != 2:
            continue
        if first <= int.from_bytes(packet[offset + 2 : offset + 4], "big") < stop:
            return packet[: int.from_bytes(packet[2:4], "big")]


def nobody_came(listener):
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.setblocking(True)


@pytest.mark.needs(Can.NAMED_BY_SYN)
@pytest.mark.parametrize("when", ["live", "closed by the client", "closed by the server"])
def test_with_the_source_address_of_its_host(lab, recorded, when):
    """The tag is right, and what the server's host answers goes to the client's, which
    knows nothing of it."""
    client, server, listener, opened, accepted, packet = recorded
    if when == "closed by the client":
        opened.close()
        assert accepted.recv(1) == b""
        accepted.close()
    elif when == "closed by the server":
        accepted.close()
        assert opened.recv(1) == b""
        opened.close()
    before = server.host.counters()
    broken = server.host.statistic("TcpInCsumErrors")
    for _ in range(5):
        packets.inject(lab.outside.root, packet)
        time.sleep(0.05)
    time.sleep(0.3)
    after = server.host.counters()
    assert after[Reason.DEFAULT_ALLOW] == before[Reason.DEFAULT_ALLOW] + 5
    assert server.host.statistic("TcpInCsumErrors") == broken
    nobody_came(listener)
    if when == "live":
        opened.sendall(b"still here")
        assert accepted.recv(100) == b"still here"
    again = client.connect(server.address, 80)
    _, peer = listener.accept()
    assert peer == again.getsockname()


@pytest.mark.needs(Can.NAMED_BY_SYN)
@pytest.mark.xfail(
    raises=pytest.fail.Exception, reason="nothing in the tag says when the SYN was made"
)
def test_from_a_machine_that_took_over_the_hosts_address(lab, recorded):
    """The host is down, or its neighbours are told otherwise: the answer comes to the
    machine that replays, which completes the handshake."""
    client, server, listener, opened, accepted, packet = recorded
    opened.close()
    assert accepted.recv(1) == b""
    accepted.close()
    host, thief = client.host, lab.outside
    host.netns.ip("link set eth0 down")
    thief.netns.ip(f"address add {host.address}/24 dev eth0")
    server.host.netns.ip("neigh flush all")
    try:
        offset = (packet[0] & 15) * 4
        source_port, port, sequence = struct.unpack("!HHI", packet[offset : offset + 8])
        syn = Syn(
            source=host.address,
            destination=server.host.address,
            port=port,
            source_port=source_port,
            sequence=sequence,
        )
        with packets.no_reset(thief):
            packets.shake_hands(thief.root, syn, packet)
            time.sleep(0.3)
            nobody_came(listener)
    finally:
        thief.netns.ip(f"address del {host.address}/24 dev eth0")
        host.netns.ip("link set eth0 up")
        server.host.netns.ip("neigh flush all")


@pytest.mark.lacks(Can.DIRECT)
def test_there_is_no_syn_on_the_underlay(lab):
    """Between hosts there is nothing but the overlay's own packets."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.listen(80)
    sniffer = server.host.root.call(_open_sniffer, "eth0")
    opened = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    opened.sendall(b"x")
    assert accepted.recv(1) == b"x"
    protocols = server.host.root.call(_protocols, sniffer)
    assert protocols == {socket.IPPROTO_UDP}


#: The kind of slimnet's own (RFC 4727).
OPTION = 253


@pytest.mark.lacks(Can.NAMED_BY_SYN)
def test_no_syn_says_who_connects(lab):
    """No option of slimnet's is on the underlay."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    sniffer = server.host.root.call(_open_sniffer, "eth0")
    for _ in range(3):
        client.connect(server.address, 80).close()
    assert OPTION not in server.host.root.call(_syn_options, sniffer)


def _syn_options(sniffer):
    """The kinds of TCP option of the SYNs that came in the meantime (RFC 9293, 3.1)."""
    sniffer.setblocking(False)
    found = set()
    while True:
        try:
            packet = sniffer.recv(2048)[14:]
        except BlockingIOError:
            return found
        tcp = packet[(packet[0] & 15) * 4 :]
        if packet[9] != socket.IPPROTO_TCP or not tcp[13] & 2:
            continue
        options = tcp[20 : (tcp[12] >> 4) * 4]
        while options and options[0] != 0:
            found.add(options[0])
            options = options[1 if options[0] == 1 else options[1] :]


def _protocols(sniffer):
    """Of the IP packets that came in the meantime."""
    sniffer.setblocking(False)
    found = set()
    while True:
        try:
            frame = sniffer.recv(2048)
        except BlockingIOError:
            return found
        if frame[12:14] == b"\x08\x00":  # and no ARP
            found.add(frame[14 + 9])
