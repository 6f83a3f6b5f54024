# SPDX-License-Identifier: Apache-2.0
"""Where slimnet's time goes: its BPF programs, by run and by operation.

The kernel counts runs and time of every program while
``kernel.bpf_stats_enabled`` is set (Documentation/admin-guide/sysctl/kernel.rst).
Counting adds some 90 ns to a run, so that it is never on while the demo measures.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from slimnet.demo.mode import Pair
from slimnet.demo.sample import measure
from slimnet.demo.setting import Setting
from slimnet.demo.workload import Workload
from slimnet.linux import sysctl

__all__ = ["Cost", "profile"]

_SWITCH = "kernel/bpf_stats_enabled"
_PINS = Path("/sys/fs/bpf/slimnet")


@frozen
class Cost:
    """What one program of both hosts takes.

    Attributes:
        workload: its name.
        program: the program's name.
        runs: per operation.
        ns: per run, with what counting adds.
    """

    workload: str
    program: str
    runs: float
    ns: float

    @property
    def us(self) -> float:
        """Microseconds per operation."""
        return self.runs * self.ns / 1000


def profile(workload: Workload, pair: Pair, setting: Setting) -> list[Cost]:
    """Run a workload once more and count; the dearest program first.

    Raises:
        ProgramFailed, ValueError: as :func:`.measure`.
    """
    with _counting():
        before = _programs(pair)
        sample = measure(workload, pair, setting, 0)
        after = _programs(pair)
    costs = []
    for name, (time, runs) in after.items():
        time_before, runs_before = before.get(name, (0, 0))
        grown = runs - runs_before
        if grown:
            ns = (time - time_before) / grown
            costs.append(Cost(workload.name, name, grown / sample.operations, ns))
    return sorted(costs, key=lambda cost: -cost.us)


@contextmanager
def _counting() -> Iterator[None]:
    before = sysctl.read(_SWITCH)
    sysctl.write(_SWITCH, 1)
    try:
        yield
    finally:
        sysctl.write(_SWITCH, before)


def _programs(pair: Pair) -> dict[str, tuple[int, int]]:
    """Nanoseconds and runs so far, by name, of both hosts together."""
    total: dict[str, tuple[int, int]] = {}
    for instance in pair.instances:
        for pin in (_PINS / instance / "programs").iterdir():
            shown = subprocess.run(
                ["bpftool", "--json", "prog", "show", "pinned", str(pin)],
                check=True,
                capture_output=True,
            ).stdout
            program = json.loads(shown)
            time, runs = total.get(program["name"], (0, 0))
            total[program["name"]] = (
                time + program.get("run_time_ns", 0),
                runs + program.get("run_cnt", 0),
            )
    return total
