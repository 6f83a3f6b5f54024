# SPDX-License-Identifier: Apache-2.0
"""One measurement: a workload, in a mode, in a round."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from slimnet.demo.mode import Site
from slimnet.demo.setting import Setting
from slimnet.demo.workload import Workload

__all__ = ["Sample", "Usage", "measure", "service"]

_READY_SECONDS = 20.0
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

    @property
    def cpu_us(self) -> float:
        """Processor time per operation, client's and server's, in microseconds."""
        used: float = self.usage["client_us"] + self.usage["server_us"]
        return used / self.operations if self.operations else float("nan")


@define
class Usage:
    """What a site and the machine used while the client ran.

    Processor time is that of the two cgroups (``cpu.stat``): it includes the
    softirqs that interrupted their processes, which on a veth are nearly all,
    but neither those that interrupted an idle processor nor ksoftirqd. The
    machine's busy time (/proc/stat, 10 ms ticks) includes these, and whatever
    else runs: the difference tells how quiet the machine was.
    """

    site: Site
    before: dict[str, Any]

    @classmethod
    def start(cls, site: Site) -> Usage:
        return cls(site, cls._now(site))

    def stop(self) -> dict[str, Any]:
        """The difference since :meth:`start`."""
        after = self._now(self.site)
        used = {
            key: after[key] - self.before[key] for key in after if not isinstance(after[key], dict)
        }
        counters = {
            side: {
                name: after[side][name] - count
                for name, count in self.before[side].items()
                if after[side][name] != count
            }
            for side in ("client", "server")
        }
        return {**used, "counters": counters}

    @staticmethod
    def _now(site: Site) -> dict[str, Any]:
        return {
            "client_us": site.client.cpu_us(),
            "server_us": site.server.cpu_us(),
            **_machine(),
            "client": site.client.counters(),
            "server": site.server.counters(),
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
def service(workload: Workload, site: Site, setting: Setting) -> Iterator[None]:
    """The workload's server runs and answers while the block lasts."""
    log = setting.directory / f"{workload.name}-{site.mode}.log"
    with site.server.serve(workload.server(setting), log=log, stop=workload.stop):
        ready = [str(setting.programs / "load"), "wait", site.server.address, str(workload.port)]
        site.client.run(ready, timeout=_READY_SECONDS)
        yield


def measure(workload: Workload, site: Site, setting: Setting, round_: int) -> Sample:
    """Run a workload once.

    Raises:
        ProgramFailed: its server or its client failed.
        ValueError: its client printed something else than usual.
    """
    with service(workload, site, setting):
        usage = Usage.start(site)
        output = site.client.run(
            workload.client(setting, site.server.address), timeout=workload.limit(setting)
        )
        used = usage.stop()
    reading = workload.read(output, setting)
    return Sample(
        workload=workload.name,
        mode=site.mode,
        round=round_,
        value=reading.value,
        operations=reading.operations,
        usage=used,
        detail=reading.detail,
    )
