# SPDX-License-Identifier: Apache-2.0
"""In which order everything is measured.

The modes take turns at every workload, each round begins with another mode,
and each round has fresh hosts: what changes on the machine in the meantime
changes it for all three. The churn figure and the soak, which fill the hosts
with sockets in TIME_WAIT, come last, on hosts of their own.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen

from slimnet.demo.contained import every
from slimnet.demo.mode import Mode, Pair, sweep
from slimnet.demo.profile import Cost, profile
from slimnet.demo.progress import Progress
from slimnet.demo.sample import Sample, measure
from slimnet.demo.setting import Setting
from slimnet.demo.side import ProgramFailed
from slimnet.demo.workload import USER, Workload
from slimnet.demo.workloads import CHURNS, SOAKS, WORKLOADS
from slimnet.exceptions import CapabilityMissing

__all__ = ["Plan"]

_LOG = logging.getLogger(__name__)
_SOURCES = Path(__file__).with_name("programs")


@frozen
class Plan:
    """What a run of the demo does.

    Attributes:
        setting: how long and how often.
        modes: which modes.
        names: which workloads, by name or group, and ``soak`` and ``churn``.
        counting: whether :meth:`profile` is wanted too.
    """

    setting: Setting
    modes: Sequence[Mode]
    names: frozenset[str]
    counting: bool = False

    @property
    def workloads(self) -> list[Workload]:
        """The rows of the report."""
        return [each for each in WORKLOADS if self.names & {each.name, each.group}]

    def steps(self) -> int:
        """How many measurements it makes."""
        rows = self.setting.rounds * len(self.workloads) * len(self.modes)
        return rows + sum(len(workloads) for _, workloads in self._long())

    def check(self) -> None:
        """Can this machine do it?

        Raises:
            CapabilityMissing: a program is not there; says which Debian package has it.
            BackendUnavailable: a mode's backend cannot work here; says why.
        """
        for mode in self.modes:
            mode.check()
        needs = {"gcc": "gcc", "make": "make", "nsenter": "util-linux", "taskset": "util-linux"}
        if self.counting:
            needs["bpftool"] = "bpftool"
        for workload in self.workloads:
            needs |= workload.needs
        for program, package in needs.items():
            if not shutil.which(program):
                raise CapabilityMissing(f"{program}: not found; apt install {package}")

    def run(self, progress: Progress) -> Iterator[Sample]:
        """Measure everything, and yield every sample as it comes."""
        self._prepare(progress)
        for round_ in range(1, self.setting.rounds + 1) if self.workloads else ():
            shift = (round_ - 1) % len(self.modes)
            modes = [*self.modes[shift:], *self.modes[:shift]]
            with ExitStack() as undo:
                progress.note(f"round {round_} of {self.setting.rounds}: making fresh hosts")
                pairs = [undo.enter_context(mode.pair()) for mode in modes]
                for workload, pair in itertools.product(self.workloads, pairs):
                    yield self._measure(progress, workload, pair, round_)
        for mode, workloads in self._long():
            progress.note(f"making fresh hosts, {mode.title}")
            with mode.pair() as pair:
                for workload in workloads:
                    yield self._measure(progress, workload, pair, 1)

    def profile(self, progress: Progress) -> Iterator[Cost]:
        """What slimnet's programs take in each workload; after :meth:`run`."""
        for mode in self.modes:
            if not mode.counted:
                continue
            with mode.pair() as pair:
                for workload in self.workloads:
                    progress.note(f"counting: {workload.title}")
                    yield from profile(workload, pair, self.setting)

    def _prepare(self, progress: Progress) -> None:
        sweep(every())
        progress.note("building the load programs, filling the database")
        self.setting.programs.mkdir()
        self.setting.scratch.mkdir(mode=0o700)
        shutil.chown(self.setting.scratch, USER)
        subprocess.run(
            ["make", "--silent", f"--directory={_SOURCES}", f"OUT={self.setting.programs}"],
            check=True,
        )
        for workload in self.workloads:
            workload.prepare(self.setting)

    def _long(self) -> Iterator[tuple[Mode, Sequence[Workload]]]:
        """The soaks and the churns, by the pair that they run on."""
        for mode in self.modes:
            # The others run out of source ports long before: the churn figure shows it.
            soaks = SOAKS if "soak" in self.names and mode.unbounded else ()
            workloads = (*soaks, *(CHURNS if "churn" in self.names else ()))
            if self.setting.apart:
                yield from ((mode, [workload]) for workload in workloads)
            elif workloads:
                yield mode, workloads

    def _measure(self, progress: Progress, workload: Workload, pair: Pair, round_: int) -> Sample:
        progress.step(f"round {round_}: {workload.title}, {pair.mode}")
        try:
            sample = measure(workload, pair, self.setting, round_)
        except (ProgramFailed, ValueError, KeyError, json.JSONDecodeError) as error:
            _LOG.debug("%s in %s", workload.name, pair.mode, exc_info=True)
            sample = Sample.failure(workload, pair, round_, str(error))
        progress.done(sample, workload.unit)
        return sample
