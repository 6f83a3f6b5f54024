# SPDX-License-Identifier: Apache-2.0
"""One place decides by which wire two hosts talk; a version apart is no wire at all."""

from types import SimpleNamespace

import pytest
from netaddr import IPAddress

from slimnet import records, wires
from slimnet.agent.ping import _carried
from slimnet.model import Endpoint, Flow, Host, HostState, Network, Protocol, Wire, WireFormat
from slimnet.policy import State
from slimnet.policy import compile as compile_tables
from slimnet.policy.explain.oracle import Oracle
from slimnet.policy.explain.translation import translate
from slimnet.tables import HostRecord

NETWORK = Network("prod", 7, "10.1.0.0/16")
WEB, DB = (
    Endpoint("prod", name, f"10.1.0.{number}", f"h{number}", id=number, identity=300 + number)
    for number, name in enumerate(("web", "db"), 1)
)


def host(number, *spoken, **more):
    return Host(f"h{number}", f"192.0.2.{number}", spoken, "ebpf", **more)


@pytest.mark.parametrize(
    ("one", "other", "tcp", "udp"),
    [
        (["syn"], ["syn/1"], Wire.SYN, None),
        (["syn/1"], ["syn/2"], None, None),
        (["syn/2", "syn/1"], ["syn/1"], Wire.SYN, None),
        (["syn", "announce", "vxlan"], ["vxlan", "announce"], Wire.ANNOUNCE, Wire.VXLAN),
        (["syn/2", "vxlan"], ["syn/1", "vxlan"], Wire.VXLAN, Wire.VXLAN),
        (["syn"], [], None, None),
    ],
)
def test_the_best_that_both_speak(one, other, tcp, udp):
    for pair in ((host(1, *one), host(2, *other)), (host(2, *other), host(1, *one))):
        assert wires.choose(*pair) is tcp
        assert wires.choose(*pair, Protocol.UDP) is udp


def test_keys_matter_to_what_is_accelerated_only():
    syn = [host(1, "syn", "vxlan", key="a"), host(2, "syn", "vxlan", key="b")]
    assert wires.refused(*syn)
    assert not wires.refused(host(1, "vxlan", key="a"), host(2, "vxlan", key="b"))
    assert not wires.refused(syn[0], host(2, "syn", key="a"))


def test_the_version_is_in_the_hosts_record():
    spoken = host(1, "syn/2", "vxlan", control="192.0.2.1:4789")
    record = records.encode(spoken)
    assert record["wires"] == ["syn/2", "vxlan/1"]
    assert record["control"] == "192.0.2.1:4789"
    assert records.host(record) == spoken
    assert records.host({**record, "wires": ["syn"]}).wires == {WireFormat(Wire.SYN, 1)}


@pytest.fixture
def apart():
    """Two hosts a version apart, as their agents see them."""
    hosts = host(1, "syn/1"), host(2, "syn/2", control="192.0.2.2:4700")
    return State([NETWORK], hosts, [], [WEB, DB], [], 3)


def test_tables_say_that_nothing_leads_there(apart):
    """To the other host; its own endpoints are reached without a wire."""
    tables = compile_tables(apart, "h1")
    assert tables.endpoints[DB.id].wire is None
    assert tables.endpoints[WEB.id].wire is Wire.SYN
    assert tables.hosts == {
        IPAddress("192.0.2.1"): HostRecord("h1", frozenset({WireFormat(Wire.SYN)})),
        IPAddress("192.0.2.2"): HostRecord(
            "h2", frozenset({WireFormat(Wire.SYN, 2)}), "192.0.2.2:4700"
        ),
    }
    assert tables.endpoints[DB.id].host in tables.hosts


def test_ping_and_explain_say_so(apart):
    states = [HostState(each.name, each, lost=False, endpoints=1) for each in apart.hosts]
    agent = SimpleNamespace(hosts=lambda: states)
    found = _carried(agent, WEB, DB)
    assert (found["carried"], found["wire"]) == ("unreachable", None)
    assert found["why"] == "h1 (ebpf: syn/1) and h2 (ebpf: syn/2) have no wire in common"
    flow = Flow("prod", WEB.address, DB.address, Protocol.TCP, 80, 1)
    said = translate(Oracle(apart), lambda name: compile_tables(apart, name), flow).text
    assert said == "10.1.0.2:80 -> h2 (192.0.2.2) by no wire: they have none in common"


def test_status_names_them(apart):
    here, there = apart.hosts
    assert wires.apart(here, [here, host(3, "syn/1")]) == ""
    said = wires.apart(here, [here, there])
    assert said.startswith("h1 (ebpf: syn/1) has no wire in common with h2 (ebpf: syn/2): ")
