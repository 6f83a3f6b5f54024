# SPDX-License-Identifier: Apache-2.0
"""Root with every capability in a namespace that is an endpoint's: it makes packets of any
kind, and changes its device, its addresses and its neighbours. It gets nowhere by that, is
nobody else, and sees nobody else's."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time

import pytest
from attrs import evolve
from lab import Can, packets
from lab.cluster import KEY, NETWORK
from lab.packets import Syn

from slimnet import contract
from slimnet.model import Direction

pytestmark = [pytest.mark.root, pytest.mark.needs(Can.TAKES_NAMESPACES)]

INGRESS = Direction.INGRESS
#: Of slimnet's own TCP option (RFC 4727).
KIND = 253
VXLAN = 4789


@pytest.fixture
def three(lab, place, namespaces):
    """Who attacks, whom it would like to be, and a server that hears that one only."""
    attacker = lab.endpoint(0, netns=namespaces(), install=False)
    victim = lab.endpoint(0, netns=namespaces(), install=False)
    server = lab.endpoint(0 if place == "one-host" else 1, netns=namespaces(), install=False)
    lab.isolate(server, INGRESS)
    lab.rule(server, INGRESS, peer=victim, allow=True, protocol=None)
    lab.install()
    return attacker, victim, server


def nobody(listener, datagrams):
    """Nothing came in the meantime."""
    time.sleep(0.3)
    for sock, take in ((listener, "accept"), (datagrams, "recvfrom")):
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            getattr(sock, take)(*([100] if take == "recvfrom" else []))
        sock.setblocking(True)


def well(victim, listener, datagrams):
    """Whom the server hears, it hears."""
    sock = victim.connect(listener.getsockname()[0], 80)
    child, peer = listener.accept()
    assert peer[0] == victim.address
    sock.sendall(b"x")
    assert child.recv(1) == b"x"
    sender = victim.socket(kind=socket.SOCK_DGRAM)
    sender.sendto(b"y", (listener.getsockname()[0], 80))
    datagrams.settimeout(5)
    assert datagrams.recvfrom(10)[1][0] == victim.address


@contextlib.contextmanager
def address(endpoint, other):
    """The endpoint's device has another's address as well."""
    endpoint.netns.ip(f"address add {other}/32 dev eth0")
    try:
        yield
    finally:
        endpoint.netns.ip(f"address del {other}/32 dev eth0")


def serving(server):
    listener = server.listen(80, server.address)
    datagrams = server.socket(kind=socket.SOCK_DGRAM)
    datagrams.bind((server.address, 80))
    return listener, datagrams


def test_with_anothers_address(three):
    """Bound to it, and by packets that say it is theirs: TCP, UDP, ICMP."""
    attacker, victim, server = three
    listener, datagrams = serving(server)
    with address(attacker, victim.address):
        sock = attacker.socket()
        sock.settimeout(0.5)
        sock.bind((victim.address, 0))
        with pytest.raises(OSError):
            sock.connect((server.address, 80))
        sender = attacker.socket(kind=socket.SOCK_DGRAM)
        sender.bind((victim.address, 0))
        with contextlib.suppress(OSError):
            for _ in range(3):
                sender.sendto(b"forged", (server.address, 80))
    syn = Syn(victim.address, server.address, 80)
    assert packets.send(attacker, syn, 0.3) == "nothing"
    nobody(listener, datagrams)
    well(victim, listener, datagrams)


@pytest.mark.parametrize("how", ["plain", "IP options", "fragments", "acknowledgement", "data"])
def test_what_is_denied_in_another_form(three, how):
    """A SYN that policy denies, made by hand: as it should be, and as no kernel makes it."""
    attacker, victim, server = three
    listener, datagrams = serving(server)
    syn = Syn(attacker.address, server.address, 80)
    forms = {
        "plain": syn,
        "IP options": evolve(syn, ip_options=b"\x01" * 4),
        "fragments": evolve(syn, fragment=True, options=b"\x01" * 12),
        "acknowledgement": evolve(syn, flags=0x10),
        "data": evolve(syn, flags=0x18),
    }
    for _ in range(3):
        assert packets.send(attacker, forms[how], 0.3) != "syn-ack"
    nobody(listener, datagrams)
    well(victim, listener, datagrams)


@pytest.mark.needs(Can.NAMED_BY_SYN)
@pytest.mark.parametrize("where", ["overlay", "underlay"])
def test_with_an_option_of_ones_own(lab, three, where):
    """That names the victim, and even has the right tag, which root in there cannot know."""
    attacker, victim, server = three
    listener, datagrams = serving(server)
    to = server.address if where == "overlay" else server.host.address
    port = 80 if where == "overlay" else 4790
    for source in (attacker.address, victim.address, attacker.host.address):
        syn = Syn(source, to, port, source_port=packets.new_port())
        made = packets.option(KEY, syn, 80, server.id, victim.id)
        assert packets.send(attacker, made, 0.3) != "syn-ack"
    nobody(listener, datagrams)
    well(victim, listener, datagrams)


def _announce(device, claimed, own):
    """ARP (RFC 826): "I have that address", asked and told, to everybody."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        mac = raw.getsockname()[4]
        for operation in (1, 2):
            body = mac + socket.inet_aton(claimed) + bytes(6) + socket.inet_aton(own)
            head = b"\x00\x01\x08\x00\x06\x04" + operation.to_bytes(2, "big")
            for _ in range(3):
                raw.send(b"\xff" * 6 + mac + b"\x08\x06" + head + body)


def test_neighbours_believe_nothing(three):
    """It says that the victim's address and the gateway's are its own."""
    attacker, victim, server = three
    listener, datagrams = serving(server)
    for claimed in (victim.address, "169.254.1.1", server.address):
        attacker.call(_announce, "eth0", claimed, attacker.address)
    well(victim, listener, datagrams)
    nobody(listener, datagrams)


def _open(device):
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    raw.bind((device, 0))
    return raw


def _captured(raw):
    """The IPv4 packets so far: source, destination, kinds of TCP options."""
    raw.setblocking(False)
    found = []
    while True:
        try:
            frame = raw.recv(1 << 16)
        except BlockingIOError:
            return found
        if frame[12:14] != b"\x08\x00":
            continue
        packet = frame[14:]
        offset = (packet[0] & 15) * 4
        kinds = set()
        if packet[9] == socket.IPPROTO_TCP:
            options = packet[offset + 20 : offset + (packet[offset + 12] >> 4) * 4]
            while options and options[0] != 0:
                kinds.add(options[0])
                options = options[1 if options[0] == 1 else max(2, options[1]) :]
        found.append((socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]), kinds))


def test_it_sees_its_own_packets_only(three):
    """None of others', no underlay address, and no option or tag, in either direction."""
    attacker, victim, server = three
    listener, datagrams = serving(server)
    sniffer = attacker.call(_open, "eth0")
    well(victim, listener, datagrams)
    mine = attacker.listen(81)
    came = server.connect(attacker.address, 81)
    child, _ = mine.accept()
    child.sendall(b"x")
    assert came.recv(1) == b"x"
    with pytest.raises(OSError):
        attacker.connect(server.address, 80)
    # Connections may be sockets of the host's, which have no packets here.
    attacker.socket(kind=socket.SOCK_DGRAM).sendto(b"x", (server.address, 81))
    seen = attacker.call(_captured, sniffer)
    assert seen
    gateway = "169.254.1.1"  # of the errors that say what is refused
    assert {source for source, _, _ in seen} | {to for _, to, _ in seen} <= {
        attacker.address,
        server.address,
        gateway,
    }
    assert KIND not in set().union(*(kinds for _, _, kinds in seen))


def test_another_hardware_address(three):
    """It cuts off itself at the most; with its own again it is reached again."""
    attacker, victim, server = three
    listener, datagrams = serving(server)
    (shown,) = json.loads(attacker.netns.ip("-json link show dev eth0"))
    attacker.netns.ip("link set eth0 address 02:00:00:00:00:99")
    with pytest.raises(OSError):
        attacker.connect(server.address, 80)
    well(victim, listener, datagrams)
    attacker.netns.ip(f"link set eth0 address {shown['address']}")
    mine = attacker.listen(81)
    server.connect(attacker.address, 81)
    assert mine.accept()[1][0] == server.address


def _datagram(source, destination, port):
    """An IPv4 packet with a UDP datagram, which needs no checksum (RFC 768)."""
    body = struct.pack("!HHHH", 4000, port, 8 + 6, 0) + b"forged"
    return Syn(source, destination, port).around(body, socket.IPPROTO_UDP)


def test_packets_in_packets(request, lab, three):
    """VXLAN of its own, to the port where the hosts of the cluster hear theirs: from an
    endpoint they hear none, even where policy lets it talk to hosts. To an address of a host
    that is none of the cluster's it may send what it likes, and that host does not hear it."""
    attacker, victim, server = three
    listener, datagrams = serving(server)
    host = contract.SLIM_IDENTITY_HOST
    lab.rule(attacker, Direction.EGRESS, peer=host, allow=True, protocol=None)
    lab.install()
    sender = attacker.socket(kind=socket.SOCK_DGRAM)
    other = "192.168.50.200"  # of the host, and heard of by nobody
    server.host.netns.ip(f"address add {other}/24 dev eth0")
    request.addfinalizer(lambda: server.host.netns.ip(f"address del {other}/24 dev eth0"))
    for address in (*(host.address for host in lab.hosts), other):
        # The router there has this hardware address (fallback/router.py).
        to = b"\x02\x53" + socket.inet_aton(server.host.address)
        frame = to + bytes(6) + b"\x08\x00" + _datagram(victim.address, server.address, 80)
        tunnelled = b"\x08\0\0\0" + NETWORK.vni.to_bytes(3, "big") + b"\0" + frame
        with contextlib.suppress(OSError):
            for _ in range(3):
                sender.sendto(tunnelled, (address, VXLAN))
    nobody(listener, datagrams)
    well(victim, listener, datagrams)
