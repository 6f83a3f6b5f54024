# SPDX-License-Identifier: Apache-2.0
"""One measurement: a workload, in a mode, in a round."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from slimnet.demo.mode import Pair
from slimnet.demo.setting import Setting
from slimnet.demo.workload import USER, Workload

__all__ = ["Sample", "Usage", "measure", "service"]

_READY_SECONDS = 60.0
_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


@frozen
class Sample:
    """What came out.

    Attributes:
        workload: its name.
        mode: its name.
        round: from 1.
        value: in the workload's unit; NaN when it failed.
        operations: how many operations that were.
        usage: what they took of the machine.
        detail: more of what the client said.
        error: one line when it failed, else empty.
    """

    workload: str
    mode: str
    round: int
    value: float
    operations: float
    usage: Mapping[str, Any]
    detail: Mapping[str, Any] = field(factory=dict)
    error: str = ""

    @classmethod
    def failure(cls, workload: Workload, pair: Pair, round_: int, error: str) -> Sample:
        """What a failed measurement leaves."""
        return cls(workload.name, pair.mode, round_, math.nan, 0, {}, {}, error)

    @property
    def cpu_us(self) -> float:
        """Processor time per operation, client's and server's, in microseconds."""
        if self.error or not self.operations:
            return math.nan
        used: float = self.usage["client_us"] + self.usage["server_us"]
        return used / self.operations


@frozen
class Usage:
    """What a pair and the machine have used so far.

    Processor time is that of the two cgroups (``cpu.stat``): it includes the
    softirqs that interrupted their processes, which on a veth are nearly all,
    but neither those that interrupted an idle processor nor ksoftirqd. The
    machine's busy time (/proc/stat, 10 ms ticks) includes these, and whatever
    else runs: the difference tells how quiet the machine was.

    Attributes:
        times: microseconds, by what.
    """

    times: Mapping[str, int]

    @classmethod
    def now(cls, pair: Pair) -> Usage:
        """Read the clocks."""
        cpu = {"client_us": pair.client.cpu_us(), "server_us": pair.server.cpu_us()}
        return cls({**cpu, **_machine()})

    def since(self, before: Usage) -> dict[str, int]:
        """The difference."""
        return {name: time - before.times[name] for name, time in self.times.items()}


def _counters(pair: Pair) -> dict[str, dict[str, int]]:
    return {"client": pair.client.counters(), "server": pair.server.counters()}


def _grown(
    after: Mapping[str, dict[str, int]], before: Mapping[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    return {
        side: {name: n - before[side][name] for name, n in of.items() if n != before[side][name]}
        for side, of in after.items()
    }


def _machine() -> dict[str, int]:
    # proc_stat(5): user nice system idle iowait irq softirq steal
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    busy = sum(ticks[index] for index in (0, 1, 2, 5, 6))
    return {
        "machine_us": busy * _TICK_US,
        "softirq_us": ticks[6] * _TICK_US,
        "steal_us": ticks[7] * _TICK_US,
    }


@contextmanager
def service(workload: Workload, pair: Pair, setting: Setting) -> Iterator[None]:
    """The workload's server runs and answers while the block lasts."""
    log = setting.directory / f"{workload.name}-{pair.mode}.log"
    told = [word.format(address=pair.server.address) for word in workload.told]
    argv = [*workload.server(setting), *told]
    server = pair.server.serve(argv, user=USER, log=log, stop=workload.stop)
    with server:
        ready = workload.ready(setting, pair.server.address)
        pair.client.finish(pair.client.start(ready), ready, timeout=_READY_SECONDS)
        yield


def measure(workload: Workload, pair: Pair, setting: Setting, round_: int) -> Sample:
    """Run a workload once.

    Raises:
        ProgramFailed: its server or its client failed.
        ValueError: its client printed something else than usual.
    """
    with service(workload, pair, setting):
        argv = workload.client(setting, pair.server.address)
        counters = _counters(pair)
        process = pair.client.start(argv)
        # From here on: the launcher's own time is not the workload's.
        usage = Usage.now(pair)
        output = pair.client.finish(process, argv, timeout=workload.limit(setting))
        used: dict[str, Any] = Usage.now(pair).since(usage)
        used["counters"] = _grown(_counters(pair), counters)
    reading = workload.read(output)
    return Sample(
        workload=workload.name,
        mode=pair.mode,
        round=round_,
        value=reading.value,
        operations=reading.operations,
        usage=used,
        detail=reading.detail,
    )
