# SPDX-License-Identifier: Apache-2.0
"""What a host says that it is, and how far it is believed."""

import pytest
from attrs import evolve

from slimnet.model import Direction, Endpoint, Flow, Host, Network, Protocol
from slimnet.policy import Oracle, State, load
from slimnet.policy import compile as compile_tables
from slimnet.policy.explain.decision import Answerer

HERE = Host("h1", "192.0.2.1", labels={"rack": "a"})
THERE = Host(
    "h2",
    "192.0.2.2",
    labels={"rack": "b"},
    ranges=[
        "192.0.2.2/32",
        "198.51.100.0/24",
        # Not to be believed: an overlay address, the other host's, the whole world's.
        "10.1.0.9/32",
        "192.0.2.1/32",
        "0.0.0.0/0",
        "128.0.0.0/1",
    ],
)
WEB = Endpoint("prod", "web", "10.1.0.1", "h1", id=1, identity=256)
OTHER = evolve(WEB, name="other", address="10.1.0.2", id=2)
NETWORK = Network("prod", 7, "10.1.0.0/16")

RULES = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: racks}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress:
    - action: Accept
      to: [{nodes: {matchLabels: {rack: b}}}]
      protocols: [{tcp: {destinationPort: {number: 80}}}]
    - {action: Accept, to: [{networks: [198.51.100.80/32]}]}
    - {action: Accept, to: [{networks: [198.51.100.0/24]}]}
"""


def ask(state, address, port=80):
    """What the tables of h1 and the oracle say; they are of one mind."""
    flow = Flow("prod", "10.1.0.1", address, Protocol.TCP, port, Direction.EGRESS)
    answerer = Answerer(compile_tables(state, "h1"), NETWORK.vni)
    verdict = answerer.decision(flow, lambda record, _: record.slots[0]).verdict
    judged = Oracle(state).judge(flow)
    assert (verdict.allowed, verdict.reason) == (judged.allowed, judged.reason)
    return verdict.reason.name


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.2", "HOST_DENY"),
        ("198.51.100.7", "HOST_DENY"),
        ("198.51.100.255", "HOST_DENY"),
        ("198.51.101.7", "DEFAULT_ALLOW"),
        ("8.8.8.8", "DEFAULT_ALLOW"),
        ("203.0.113.7", "DEFAULT_ALLOW"),
        ("10.1.0.2", "DEFAULT_ALLOW"),
        ("10.1.0.9", "NO_ENDPOINT"),
        ("192.0.2.1", "HOST_DENY"),
    ],
)
def test_a_host_is_where_it_says_that_it_is(address, said):
    state = State([NETWORK], [HERE, THERE], endpoints=[WEB, OTHER])
    assert ask(state, address) == said


@pytest.mark.parametrize(
    ("address", "port", "said"),
    [
        ("198.51.100.7", 80, "RULE_ALLOW"),
        ("198.51.100.7", 81, "HOST_DENY"),
        ("192.0.2.2", 80, "RULE_ALLOW"),
        ("192.0.2.1", 80, "HOST_DENY"),
        ("198.51.100.80", 81, "RULE_ALLOW"),
    ],
)
def test_rules_know_it_there(address, port, said):
    """A node by its labels, and by name where a rule has the one address."""
    state = State([NETWORK], [HERE, THERE], endpoints=[WEB, OTHER], policies=load(RULES))
    assert ask(state, address, port) == said


def test_of_two_that_claim_an_address_it_is_ones_own():
    """Every host has its own 172.17.0.1 where it runs Docker."""
    docker = {"ranges": ["172.17.0.1/32"]}
    hosts = [evolve(HERE, **docker), evolve(THERE, **docker), Host("h0", "192.0.2.9", **docker)]
    state = State([NETWORK], hosts, endpoints=[WEB])
    oracle = Oracle(state)
    assert oracle.host("prod", "172.17.0.1", "h2").name == "h2"
    assert oracle.host("prod", "172.17.0.1").name == "h0"
    assert ask(state, "172.17.0.1") == "HOST_DENY"


def test_whom_the_fallback_overlay_reaches():
    """Whoever has a network namespace: on hosts that share theirs, those that brought one."""
    hosts = [Host("h1", "192.0.2.1"), Host("h2", "192.0.2.2", shares=True)]
    endpoints = [
        Endpoint("n", f"e{number}", f"10.1.0.{number}", host, id=number, identity=300, netns=netns)
        for number, (host, netns) in enumerate(
            [("h1", ""), ("h1", "/run/netns/a"), ("h2", ""), ("h2", "/run/netns/b")], 1
        )
    ]
    state = State([Network("n", 5, ["10.1.0.0/16"])], hosts, [], endpoints)
    made = compile_tables(state, "h1").endpoints
    assert {number: record.packets for number, record in made.items()} == {
        1: True,
        2: True,
        3: False,
        4: True,
    }
