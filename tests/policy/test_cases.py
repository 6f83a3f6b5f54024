# SPDX-License-Identifier: Apache-2.0
"""The public suites' reachability cases, decided by slim_decide() on both hosts' tables."""

import pytest
from cases import CLUSTER, KUBERNETES
from decide import Decider, flow
from netaddr import IPAddress

from slimnet.model import Protocol
from slimnet.policy import Compiler, Oracle
from slimnet.policy import compile as compile_tables

CASES = [*KUBERNETES, *CLUSTER]


def reachable(world, step, probe, verdict):
    """The table that ``verdict`` gives, decided at the source and at the destination."""
    table = {}
    for source, destination in probe.table:
        flows = flow(
            world.network,
            IPAddress(world.address(source)),
            IPAddress(world.address(destination)),
            Protocol[probe.protocol.upper()],
            probe.port,
        )
        verdicts = [verdict(question) for question in flows]
        table[source, destination] = all(item is None or item.allowed for item in verdicts)
    return table


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_reachability(case, library):
    """Every probe of every step: the whole table, in C and by the oracle."""
    compilers = {host: Compiler(host) for host in case.world.hosts}
    for number, step in enumerate(case.steps, 1):
        state = case.world.state(step, number)
        tables = {host: compiler.update(state)[0] for host, compiler in compilers.items()}
        # What came before leaves no trace.
        assert tables == {host: compile_tables(state, host) for host in tables}
        deciders = [Decider(library, item) for item in tables.values()]
        oracle = Oracle(state)

        def ask(question, deciders=deciders):
            """At the host where the asked end is local."""
            for decider in deciders:
                here = question.destination if question.direction == 0 else question.source
                endpoint = decider.tables.addresses.get((1, here))
                if endpoint is not None and decider.tables.endpoints[endpoint].local:
                    return decider.verdict(1, question)
            return None

        try:
            for probe in step.probes:
                expected = dict(probe.table)
                assert reachable(case.world, step, probe, ask) == expected, (step.name, probe.title)
                assert reachable(case.world, step, probe, oracle.judge) == expected, step.name
        finally:
            for decider in deciders:
                decider.close()


def test_suites_are_whole():
    """42 + 6 cases of Kubernetes; 24 tests and 92 sub-cases of ClusterNetworkPolicy."""
    assert len(KUBERNETES) == 42 + 6
    assert len({case.name for case in KUBERNETES}) == len(KUBERNETES)
    assert len(CLUSTER) == 24
    extra = sum(
        ", " in step.name and "label" in step.name for case in CLUSTER for step in case.steps
    )
    assert sum(len(case.steps) for case in CLUSTER) - extra == 92
