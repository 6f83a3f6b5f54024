# SPDX-License-Identifier: Apache-2.0
"""How long, how often and on which processors a run of the demo measures."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

__all__ = ["CPUS", "Setting"]

#: The processors that this process may use.
CPUS = tuple(sorted(os.sched_getaffinity(0)))


@frozen
class Setting:
    """What every workload is given.

    Attributes:
        directory: files of this run; gone after it.
        rounds: how often each workload runs in each mode.
        seconds: how long one measurement takes; whole, as iperf3 and wrk want it.
        connections: how many connections one measurement of connects makes. Few
            on purpose: above some 12,000 a minute, host mode measures its search
            for a free source port (design, section 12).
        requests: how many requests redis-benchmark and memcaslap send.
        soak: how many connections the soak makes.
        churn: seconds of the churn figure, per mode and order of closing.
        apart: whether each soak and each churn has fresh hosts of its own; else
            those of a mode share them, and share their limits on TIME_WAIT.
        engine: the one whose containers everything runs in; empty: none.
    """

    directory: Path
    rounds: int = 5
    seconds: int = 3
    connections: int = 5000
    requests: int = 200_000
    soak: int = 200_000
    churn: int = 60
    apart: bool = True
    engine: str = ""

    @property
    def scratch(self) -> Path:
        """Where servers, which are not root, keep files."""
        return self.directory / "scratch"

    @property
    def programs(self) -> Path:
        """Where the demo's own programs were built."""
        return self.directory / "programs"

    def as_server(self, *argv: object) -> list[str]:
        """``argv`` on the server's processor."""
        return [*_pinned(0), *map(str, argv)]

    def as_client(self, *argv: object) -> list[str]:
        """``argv`` on the client's processor."""
        return [*_pinned(1), *map(str, argv)]


def _pinned(which: int) -> list[str]:
    # With one processor there is nothing to choose.
    return ["taskset", "--cpu-list", str(CPUS[which])] if len(CPUS) > 1 else []
