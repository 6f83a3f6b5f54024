# SPDX-License-Identifier: Apache-2.0
"""The C function over the compiler's tables answers every flow as the oracle does.

``SLIMNET_POLICY_FLOWS=1000000`` makes the long run.
"""

import os
from collections import Counter

import pytest
from decide import Decider
from hypothesis import HealthCheck, given, settings
from worlds import HOSTS, NETWORKS, worlds

from slimnet.model import Direction
from slimnet.policy import Oracle
from slimnet.policy import compile as compile_tables
from slimnet.policy.compiler import rule_text

FLOWS = int(os.environ.get("SLIMNET_POLICY_FLOWS", "25000"))
FLOWS_OF_A_WORLD = 50 if FLOWS < 200_000 else 200
WORLDS = max(500, FLOWS // FLOWS_OF_A_WORLD)
VNIS = {network.name: network.vni for network in NETWORKS}


def check_world(world, library, seen=None, *, broken=False):
    """Every flow of a world: oracle, C and Python agree on verdict, reason and rule."""
    oracle = Oracle(world.state)
    deciders = {
        host.name: Decider(library, compile_tables(world.state, host.name)) for host in HOSTS
    }
    try:
        for flow in world.flows(FLOWS_OF_A_WORLD):
            judged = oracle.judge(flow)
            here = flow.source if flow.direction is Direction.EGRESS else flow.destination
            (host,) = {
                item.host
                for item in world.state.endpoints
                if (item.network, item.address) == (flow.network, here)
            }
            decider = deciders[host]
            verdict = decider.verdict(VNIS[flow.network], flow)
            expected = (judged.allowed, judged.reason, "")
            if judged.policy is not None:
                rule = rule_text(judged.policy, flow.direction, judged.index)
                expected = (judged.allowed, judged.reason, rule)
            rule = decider.tables.rules[verdict.rule] if verdict.rule else ""
            assert (verdict.allowed, verdict.reason, rule) == expected, flow
            if broken:
                continue
            answerer = decider.answerer(VNIS[flow.network])
            subject, peer = decider.sites(VNIS[flow.network], flow)
            if peer.endpoint or not peer.overlay:
                said = answerer.verdict(subject, peer, flow.direction, flow.protocol, flow.port)
                assert said == verdict, flow
            if seen is not None:
                seen[judged.reason.name] += 1
    finally:
        for decider in deciders.values():
            decider.close()


@pytest.mark.slow
def test_oracle_and_library_agree(library):
    """At least 20,000 flows over at least 500 policy sets, and of every kind of answer some."""
    seen = Counter()
    runs = Counter()

    @settings(
        max_examples=WORLDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds())
    def agree(world):
        runs["worlds"] += 1
        check_world(world, library, seen)

    agree()
    assert runs["worlds"] >= 500
    assert seen.total() >= 20000
    scarce = seen.total() / 500
    assert all(
        seen[reason] > scarce
        for reason in ("RULE_ALLOW", "RULE_DENY", "DEFAULT_ALLOW", "DEFAULT_DENY", "SELF")
    ), seen
    assert seen["HOST_DENY"]
    assert seen["NO_ENDPOINT"]
