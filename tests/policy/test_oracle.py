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

from slimnet.model import Direction, Verdict
from slimnet.policy import Oracle
from slimnet.policy import compile as compile_tables
from slimnet.policy.compiler import rule_text

FLOWS = int(os.environ.get("SLIMNET_POLICY_FLOWS", "25000"))
FLOWS_OF_A_WORLD = 50 if FLOWS < 200_000 else 200
WORLDS = max(500, FLOWS // FLOWS_OF_A_WORLD)
VNIS = {network.name: network.vni for network in NETWORKS}


class Dialler:
    """Takes flows to services to the endpoints that serve them, as one host's data path does.

    C must choose one of those that the oracle allows, stay with it where the service has
    affinity, and refuse as the oracle does.
    """

    def __init__(self, decider, oracle, seen):
        self._decider = decider
        self._oracle = oracle
        self._seen = seen
        self._served = {}

    def follow(self, flow):
        """The flow as policy is asked; ``None`` where it never comes to that."""
        if flow.direction is Direction.INGRESS:
            return flow
        backing = self._oracle.backing(flow)
        found = self._decider.resolve(VNIS[flow.network], flow, random=self._seen.total())
        said = self._decider.answerer(VNIS[flow.network]).service(
            flow.destination, flow.protocol, flow.port
        )
        if backing is None:
            assert found is flow
            assert said is None
            return flow
        if backing.reason is not None:
            assert found is backing.reason, flow
            assert said == Verdict(False, backing.reason)
            self._seen[backing.reason.name] += 1
            return None
        assert found in backing.flows, flow
        assert said.size == len(backing.flows)
        self._seen["service"] += 1
        if backing.service.affinity:
            assert self._served.setdefault(flow, found) == found
        return found


def check_world(world, library, seen=None, *, broken=False):
    """Every flow of a world: oracle, C and Python agree on who serves it, verdict, reason
    and rule."""
    seen = Counter() if seen is None else seen
    oracle = Oracle(world.state)
    deciders = {
        host.name: Decider(library, compile_tables(world.state, host.name)) for host in HOSTS
    }
    diallers = {host: Dialler(decider, oracle, seen) for host, decider in deciders.items()}
    try:
        for dialled in world.flows(FLOWS_OF_A_WORLD):
            egress = dialled.direction is Direction.EGRESS
            here = dialled.source if egress else dialled.destination
            (host,) = {
                item.host
                for item in world.state.endpoints
                if (item.network, item.address) == (dialled.network, here)
            }
            flow = diallers[host].follow(dialled)
            if flow is None:
                continue
            judged = oracle.judge(flow)
            decider = deciders[host]
            verdict = decider.verdict(VNIS[flow.network], flow)
            expected = (judged.allowed, judged.reason, "")
            if judged.policy is not None:
                rule = rule_text(judged.policy, flow.direction, judged.index)
                expected = (judged.allowed, judged.reason, rule)
            rule = decider.tables.rules[verdict.rule] if verdict.rule else ""
            assert (verdict.allowed, verdict.reason, rule) == expected, flow
            seen[judged.reason.name] += 1
            if broken:
                continue
            answerer = decider.answerer(VNIS[flow.network])
            subject, peer = decider.sites(VNIS[flow.network], flow)
            if peer.endpoint or not peer.overlay:
                said = answerer.verdict(subject, peer, flow.direction, flow.protocol, flow.port)
                assert said == verdict, flow
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
    # A flow to a service that is served counts as such and as what policy says of it.
    flows = seen.total() - seen["service"]
    assert flows >= 20000
    scarce = flows / 500
    assert all(
        seen[reason] > scarce
        for reason in ("RULE_ALLOW", "RULE_DENY", "DEFAULT_ALLOW", "DEFAULT_DENY", "SELF")
    ), seen
    for kind in ("HOST_DENY", "NO_ENDPOINT", "NO_BACKEND", "NO_SERVICE_PORT", "service"):
        assert seen[kind] > scarce / 10, seen
