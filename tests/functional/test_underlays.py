# SPDX-License-Identifier: Apache-2.0
"""What a host's underlay interface may be: of any MTU, in a subnet of its own, made of other
interfaces, with several addresses, with and without offloads."""

from __future__ import annotations

import random
import subprocess

import pytest
from lab import Lab
from lab.wires import Namespace, Underlay
from netaddr import IPAddress

from slimnet.agent.site import underlay
from slimnet.config import Config, UnderlayConfig
from slimnet.linux import netns
from slimnet.model import Direction

TABLE = ("inet", "others")
BYTES = random.Random(1).randbytes(1 << 20)


def first_of(namespace: Namespace, *kinds: str) -> str:
    """The first that the kernel makes; the last one it has to make."""
    for kind in kinds[:-1]:
        try:
            namespace.ip(kind)
        except RuntimeError as error:
            if "Unknown device type" not in str(error):
                raise
        else:
            return kind
    namespace.ip(kinds[-1])
    return kinds[-1]


class Stacked(Underlay):
    """Cards below, and the interface with the address above them."""

    def plug(self, namespace: Namespace, port: str) -> None:
        self.cable(namespace, "card0", port)
        self.stack(namespace)
        namespace.ip(f"link set {self.INTERFACE} up")

    def stack(self, namespace: Namespace) -> None:
        raise NotImplementedError


class Tagged(Stacked):
    """Above a card: a VLAN, whose tags the other end takes off; else a macvlan."""

    def plug(self, namespace: Namespace, port: str) -> None:
        super().plug(namespace, port)
        if self.kind == "vlan":
            self.middle.ip(f"link set {port} name trunk-{port}")
            self.middle.ip(f"link set trunk-{port} up")
            self.middle.ip(f"link add link trunk-{port} name {port} type vlan id 5")
            self.middle.ip(f"link set {port} up")

    def stack(self, namespace: Namespace) -> None:
        above = f"link add link card0 name {self.INTERFACE} type"
        made = first_of(namespace, f"{above} vlan id 5", f"{above} macvlan mode bridge")
        self.kind = "vlan" if "vlan id" in made else "macvlan"
        # A card below hears ARP as well, and would answer with its own address.
        namespace.sysctl("net.ipv4.conf.card0.arp_ignore", 8)


class Bonded(Stacked):
    """A bond of one card; else a team; else a bridge."""

    def stack(self, namespace: Namespace) -> None:
        above = f"link add name {self.INTERFACE} type"
        first_of(namespace, f"{above} bond mode active-backup", f"{above} team", f"{above} bridge")
        namespace.ip("link set card0 down")
        namespace.ip(f"link set card0 master {self.INTERFACE}")
        namespace.ip("link set card0 up")


class Several(Underlay):
    """The host's address is neither the first of its interface nor the last, and what the host
    itself sends has it, by the route's source."""

    def join(self, namespace: Namespace) -> str:
        before, after = (
            f"address add 192.168.50.{number + self._hosts}/24 dev {self.INTERFACE}"
            for number in (100, 200)
        )
        self.before = before
        address = super().join(namespace)
        namespace.ip(after)
        here = f"dev {self.INTERFACE} proto kernel scope link src {address}"
        namespace.ip(f"route change 192.168.50.0/24 {here}")
        return address

    def plug(self, namespace: Namespace, port: str) -> None:
        super().plug(namespace, port)
        namespace.ip(self.before)


class Plain(Underlay):
    """Nothing is offloaded: the kernel cuts segments and sums them itself."""

    OFFLOADS = ("gso", "gro", "tso", "tx")

    def plug(self, namespace: Namespace, port: str) -> None:
        super().plug(namespace, port)
        words = [word for name in self.OFFLOADS for word in (name, "off")]
        namespace.run("ethtool", "-K", self.INTERFACE, *words)
        self.middle.run("ethtool", "-K", port, *words)


UNDERLAYS = {
    "MTU 9000": lambda: Underlay(mtu=9000),
    "MTU 1400": lambda: Underlay(mtu=1400),
    "subnets": lambda: Underlay(routed=True),
    "VLAN": Tagged,
    "bond": Bonded,
    "several addresses": Several,
    "no offloads": Plain,
}


@pytest.fixture
def lab(request, mode):
    lab = Lab(mode, hosts=2, underlay=UNDERLAYS[request.param])
    yield lab
    lab.close()


def send(sock, data):
    sock.settimeout(30)
    sock.sendall(data)


def take(sock, size):
    sock.settimeout(30)
    got = bytearray()
    while len(got) < size and (data := sock.recv(1 << 18)):
        got += data
    return bytes(got)


def carries(lab, one, two, port):
    """A connection from one to the other, with a megabyte each way; policy lets in no other."""
    listener, closed = two.listen(port), two.listen(port + 1)
    lab.isolate(two, Direction.INGRESS)
    lab.rule(two, Direction.INGRESS, peer=one, port=port, allow=True)
    lab.install()
    sock = one.connect(two.address, port)
    accepted, peer = listener.accept()
    assert peer == sock.getsockname()
    for source, from_, target, to in ((one, sock, two, accepted), (two, accepted, one, sock)):
        sending = source.start(send, from_, BYTES)
        same = target.call(take, to, len(BYTES)) == BYTES  # pytest would compare them at length
        assert same
        sending.result(30)
    with pytest.raises(OSError):
        one.connect(two.address, port + 1)
    closed.settimeout(0.1)
    with pytest.raises(TimeoutError):
        closed.accept()


@pytest.mark.long("noop", "preload")
@pytest.mark.parametrize(
    "lab", [name for name, kind in UNDERLAYS.items() if kind is not Several], indirect=True
)
def test_both_ways_with_policy(lab):
    one, two = lab.endpoint(0), lab.endpoint(1)
    carries(lab, one, two, 80)
    carries(lab, two, one, 90)
    for host in lab.hosts:
        look(lab.underlay, host)


def look(made, host):
    """Whether the underlay is what it is called."""
    interface = made.INTERFACE
    assert f" mtu {made.mtu} " in host.netns.ip(f"link show {interface}")
    assert len(host.netns.ip(f"-4 -o address show dev {interface}").splitlines()) == (
        3 if isinstance(made, Several) else 1
    )
    if isinstance(made, Plain):
        features = host.netns.run("ethtool", "-k", interface)
        for name in ("generic-segmentation-offload", "tcp-segmentation-offload",
                     "generic-receive-offload", "tx-checksumming"):  # fmt: skip
            assert f"{name}: off" in features


@pytest.mark.parametrize("lab", ["subnets"], indirect=True)
def test_another_way_to_the_other_host(lab):
    """A live connection follows the host's routes, and leaves a router that is gone."""
    one, two = lab.endpoint(0), lab.endpoint(1)
    listener = two.listen(80)
    sock = one.connect(two.address, 80)
    accepted, _ = listener.accept()
    first, second = "192.168.50.1", "192.168.50.2"
    lab.underlay.middle.ip(f"address add {second}/24 dev port0")
    router = lab.underlay.middle.ip("-br link show port0").split()[2]
    for way, gone in ((first, second), (second, first), (first, second)):
        one.host.netns.ip(f"route replace default via {way}")
        for gateway, card in ((way, router), (gone, "02:00:00:00:00:99")):
            one.host.netns.ip(f"neighbour replace {gateway} dev eth0 lladdr {card}")
        for source, from_, target, to in ((one, sock, two, accepted), (two, accepted, one, sock)):
            source.call(send, from_, way.encode())
            assert target.call(take, to, len(way)) == way.encode()


@pytest.mark.parametrize("lab", ["several addresses"], indirect=True)
def test_the_address_that_is_said(lab):
    """Of several on one interface: nothing between the hosts goes by another."""
    said = ", ".join(host.address for host in lab.hosts)
    rules = f"""
        table inet others {{
            set seen {{ type ipv4_addr . ipv4_addr; size 99; flags dynamic; }}
            chain c {{
                type filter hook prerouting priority -400;
                iif eth0 ip saddr {{ {said} }} ip daddr {{ {said} }} accept
                iif eth0 ip protocol {{ tcp, udp }} add @seen {{ ip saddr . ip daddr }} drop
            }}
        }}"""
    for host in lab.hosts:
        with netns.enter(host.netns.path):
            found = underlay(Config(underlay=UnderlayConfig(address=IPAddress(host.address))))
            assert found == ("eth0", IPAddress(host.address))
            assert underlay(Config(underlay=UnderlayConfig(interface="eth0"))) != found
        subprocess.run(
            ["nsenter", f"--net={host.netns.path}", "nft", "-f", "-"],
            input=rules, text=True, check=True,
        )  # fmt: skip
    one, two = lab.endpoint(0), lab.endpoint(1)
    carries(lab, one, two, 80)
    carries(lab, two, one, 90)
    for host in lab.hosts:
        seen = host.netns.run("nft", "list", "set", *TABLE, "seen")
        assert "elements" not in seen, seen
