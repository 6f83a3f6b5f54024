# SPDX-License-Identifier: Apache-2.0
"""What compiling costs: ``python tests/policy/benchmark.py [policies] [endpoints] [services]``.

From nothing, and for one change; JSON on the standard output, times in milliseconds
(medians of several changes), memory as resident size.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from attrs import evolve
from worlds_big import big

from slimnet.policy import Compiler, State, parse

CHANGES = 9


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = what()
    return 1000 * (time.perf_counter() - start), result


def memory() -> int:
    """Peak resident size in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def changed_policy(state: State, turn: int) -> State:
    policies = list(state.policies)
    manifest = json.loads(json.dumps(policies[turn].to_json()["manifest"]))
    manifest["spec"]["ingress"][0]["ports"] = [{"port": 1000 + turn}]
    policies[turn] = parse([{"manifest": manifest}])[0]
    return evolve(state, policies=policies, revision=state.revision + 1)


def another_endpoint(state: State, turn: int) -> State:
    like = state.endpoints[turn * 10]
    new = evolve(like, id=2**30 + turn, name=f"new{turn}", address=f"10.2.0.{turn + 1}")
    return evolve(state, endpoints=(*state.endpoints, new), revision=state.revision + 1)


def changed_service(state: State, turn: int) -> State:
    services = list(state.services)
    services[turn] = evolve(services[turn], affinity=turn + 1)
    return evolve(state, services=services, revision=state.revision + 1)


def measure(policies: int, endpoints: int, services: int) -> dict[str, Any]:
    state = big(policies, endpoints, replicas=1, services=services)
    before = memory()
    compiler = Compiler("h1")
    whole, (tables, _) = timed(lambda: compiler.update(state))
    entries = len(tables.policy)
    grown = memory() - before
    report = {
        "policies": policies,
        "endpoints": endpoints,
        "services": services,
        "policy entries": entries,
        "from nothing ms": round(whole, 1),
        "memory MB": round(grown / 2**20, 1),
    }
    for name, change, number in (
        ("one policy", changed_policy, policies),
        ("one endpoint", another_endpoint, endpoints),
        ("one service", changed_service, services),
    ):
        if not number:
            continue
        times = []
        for turn in range(CHANGES):
            state = change(state, turn)
            times.append(timed(lambda state=state: compiler.update(state))[0])
        report[f"{name} ms"] = round(statistics.median(times), 1)
    return report


if __name__ == "__main__":
    sizes = [int(word) for word in sys.argv[1:]]
    print(json.dumps(measure(*sizes, *(1000, 10000, 1000)[len(sizes) :]), indent=1))
