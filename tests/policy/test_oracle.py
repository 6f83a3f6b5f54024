# SPDX-License-Identifier: Apache-2.0
"""The C function over the compiler's tables answers every flow as the oracle does.

``SLIMNET_POLICY_FLOWS=1000000`` makes the long run.
"""

import os
from collections import Counter
from functools import partial

import pytest
from decide import Decider
from hypothesis import HealthCheck, given, settings
from worlds import HOSTS, NETWORKS, worlds

from slimnet.model import Direction, Reason, Verdict
from slimnet.policy import Oracle
from slimnet.policy import compile as compile_tables
from slimnet.policy.compile.compiler import rule_text

FLOWS = int(os.environ.get("SLIMNET_POLICY_FLOWS", "25000"))
FLOWS_OF_A_WORLD = 50 if FLOWS < 200_000 else 200
WORLDS = FLOWS // FLOWS_OF_A_WORLD
VNIS = {network.name: network.vni for network in NETWORKS}


class Services:
    """Who serves flows to services: C must choose one of those that the oracle allows, stay
    with it where the service has affinity, and refuse as the oracle does."""

    def __init__(self, oracle, seen):
        self._oracle = oracle
        self._seen = seen
        self._served = {}

    def follow(self, flow, decider, chance):
        """The flow as policy is asked, or the reason why it never comes to that."""
        found = decider.resolve(VNIS[flow.network], flow, random=chance)
        backing = self._oracle.backing(flow) if flow.direction is Direction.EGRESS else None
        if backing is None:
            assert found is flow
        elif backing.reason is not None:
            assert found is backing.reason, flow
            self._seen[found.name] += 1
        else:
            assert found in backing.flows, flow
            self._seen["service"] += 1
            if backing.service.affinity:
                assert self._served.setdefault(flow, found) == found
        return found


def check_world(world, library, seen=None, *, broken=False):
    """Every flow of a world: oracle, C and Python agree on who serves it, verdict, reason
    and rule."""
    seen = Counter() if seen is None else seen
    oracle = Oracle(world.state)
    services = Services(oracle, seen)
    deciders = {
        host.name: Decider(library, compile_tables(world.state, host.name)) for host in HOSTS
    }
    try:
        for chance, dialled in enumerate(world.flows(FLOWS_OF_A_WORLD)):
            vni = VNIS[dialled.network]
            egress = dialled.direction is Direction.EGRESS
            here = dialled.source if egress else dialled.destination
            (host,) = {
                item.host
                for item in world.state.endpoints
                if (item.network, item.address) == (dialled.network, here)
            }
            decider = deciders[host]
            flow = services.follow(dialled, decider, chance)
            if isinstance(flow, Reason):
                verdict = Verdict(False, flow)
            else:
                judged = oracle.judge(flow)
                verdict = decider.verdict(vni, flow)
                assert_same(verdict, decider.tables, judged, flow)
                seen[judged.reason.name] += 1
            if broken:
                continue
            decision = decider.answerer(vni).decision(dialled, partial(decider.pick, random=chance))
            assert decision.verdict == verdict, dialled
            if not isinstance(flow, Reason):
                assert decision.target == (flow.destination, flow.port)
    finally:
        for decider in deciders.values():
            decider.close()


def assert_of_every_kind(seen):
    """There were as many flows as were asked for, and of every kind of answer some."""
    # A flow to a service that is served counts as such and as what policy says of it.
    flows = seen.total() - seen["service"]
    assert flows >= 0.8 * FLOWS
    if FLOWS < 20_000:
        return  # too few to have all kinds each time
    for kind in ("RULE_ALLOW", "RULE_DENY", "DEFAULT_ALLOW", "DEFAULT_DENY", "SELF"):
        assert seen[kind] > flows / 500, seen
    for kind in ("HOST_DENY", "NO_ENDPOINT", "NO_BACKEND", "NO_SERVICE_PORT", "service"):
        assert seen[kind] > flows / 5000, seen


def assert_same(verdict, tables, judged, flow):
    """A data path's verdict is the oracle's: allowed, why, and by which rule in words."""
    expected = (judged.allowed, judged.reason, "")
    if judged.policy is not None:
        rule = rule_text(judged.policy, flow.direction, judged.index)
        expected = (judged.allowed, judged.reason, rule)
    rule = tables.rules[verdict.rule] if verdict.rule else ""
    assert (verdict.allowed, verdict.reason, rule) == expected, flow


@pytest.mark.slow
def test_oracle_and_library_agree(library):
    """Thousands of flows over hundreds of policy sets, and of every kind of answer some."""
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
    assert runs["worlds"] >= WORLDS
    assert_of_every_kind(seen)
