# SPDX-License-Identifier: Apache-2.0
"""What is said of a firewall, beside what the kernel does: none is blamed that lets a packet in."""

from __future__ import annotations

import socket
import subprocess

import pytest
from lab.wires import Namespace
from netaddr import IPAddress

from slimnet.agent.obstacles import obstacles
from slimnet.fallback import nft
from slimnet.linux import netns
from slimnet.linux.firewall import Packet, Ruleset
from slimnet.model import Wire

pytestmark = pytest.mark.root

HERE, THERE = "192.168.90.1", "192.168.90.2"
PORTS = (22, 80, 4790, 4850, 4886)

BASE = "type filter hook input priority filter; policy drop;"
RULESETS = {
    "nothing": "",
    "policy": f"chain c {{ {BASE} }}",
    "accepts": f"chain c {{ {BASE} tcp dport {{ 22, 4790-4885 }} accept\n }}",
    "drops": "chain c { type filter hook prerouting priority raw; tcp dport 4800-4900 drop\n }",
    "rejects": "chain c { type filter hook input priority 5; tcp dport != 22 reject\n }",
    "other source": f"chain c {{ {BASE} ip saddr 10.0.0.0/8 tcp dport 22 accept\n }}",
    "source": f"chain c {{ {BASE} ip saddr 192.168.0.0/16 tcp dport 22-80 accept\n }}",
    "udp": f"chain c {{ {BASE} udp dport 4790 accept\n meta l4proto tcp th dport 80 accept\n }}",
    "set": "set s { type inet_service; flags interval; elements = { 80, 4790-4800 } }\n"
    f"chain c {{ {BASE} tcp dport @s counter accept\n }}",
    "map": "chain in { tcp dport 80 accept\n }\n"
    f"chain c {{ {BASE} tcp dport vmap {{ 22 : accept, 4790-4850 : drop, 80 : goto in }}\n }}",
    "jump": "chain in { tcp dport 22 return\n tcp dport 80 drop\n }\n"
    "chain c { type filter hook input priority 0; jump in\n }",
    "states": f"chain c {{ {BASE} ct state vmap {{ invalid : drop, established : accept }}\n"
    " ct state new tcp dport 80 accept\n }",
    "interface": f'chain c {{ {BASE} iifname "eth*" tcp dport 22 accept\n iif lo accept\n }}',
    "limit": f"chain c {{ {BASE} limit rate 1000/second accept\n }}",
    "flags": "chain c { type filter hook input priority 0; tcp flags fin tcp dport 22 drop\n }",
    "two": f"chain a {{ {BASE} tcp dport 22 accept\n }}\n"
    "chain b { type filter hook input priority 9; tcp dport 22 drop\n }",
}
#: Here what is not known of a packet decides, and it is not dropped for sure.
OPEN = {"limit"}


@pytest.fixture(scope="module")
def pair():
    one, two = Namespace(), Namespace()
    one.cable("eth0", two, "eth0")
    for namespace, address in ((one, HERE), (two, THERE)):
        namespace.ip(f"address add {address}/24 dev eth0")
    yield one, two
    one.close()
    two.close()


@pytest.mark.parametrize("name", RULESETS)
def test_as_the_kernel_does(pair, name):
    one, two = pair
    script = f"table inet t {{\n{RULESETS[name]}\n}}"
    enter = ["nsenter", f"--net={two.path}", "nft"]
    subprocess.run([*enter, "-f", "-"], input=script, text=True, check=True)
    try:
        rules = Ruleset(nft.listing("ruleset", two.path))
        said, done = {}, {}
        for port in PORTS:
            packet = Packet("eth0", True, IPAddress(HERE), IPAddress(THERE), "tcp", port)
            said[port] = rules.drops(packet) is not None
            done[port] = dropped(one, two, port)
    finally:
        two.run("nft", "delete", "table", "inet", "t")
    if name in OPEN:
        assert not any(said.values())
        return
    assert said == done
    if name == "states":
        packet = Packet(
            "eth0",
            True,
            IPAddress(HERE),
            IPAddress(THERE),
            "tcp",
            source_port=1,
            state="established",
        )
        assert rules.drops(packet) is None


def test_a_route_with_another_source_before_there_is_a_peer(pair):
    """The first address of a subnet is what the kernel sends with, to whichever host comes."""
    one, _ = pair
    own = "192.168.91.9"
    one.ip("address add 192.168.91.1/24 dev eth0")
    one.ip(f"address add {own}/24 dev eth0")

    def found(address):
        with netns.enter(one.path):
            rules = Ruleset(nft.listing("ruleset"))
            return obstacles(rules, "eth0", IPAddress(address), None, Wire.SYN, ())

    try:
        assert found(HERE) == found("192.168.91.1") == []
        (there,) = found(own)
        assert there.text == (
            "connections to 192.168.91.2 leave with the source 192.168.91.1, not with this host's"
            f" {own}"
        )
        assert there.remedy == f"say `src {own}` in that route (ip route change)"
        one.ip(f"route change 192.168.91.0/24 dev eth0 proto kernel scope link src {own}")
        assert found(own) == []
    finally:
        one.ip(f"address del {own}/24 dev eth0")
        one.ip("address del 192.168.91.1/24 dev eth0")


def dropped(one, two, port):
    """Whether a connection is not made, though somebody listens."""
    with netns.enter(two.path):
        listener = socket.create_server((THERE, port))
    with listener, netns.enter(one.path), socket.socket() as client:
        client.settimeout(0.15)
        try:
            client.connect((THERE, port))
        except OSError:
            return True
        return False
