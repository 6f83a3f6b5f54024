# SPDX-License-Identifier: Apache-2.0
"""Medians, spreads, ratios to host mode, and which targets are met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from attrs import field, frozen

from slimnet.demo.profile import Cost
from slimnet.demo.sample import Sample
from slimnet.demo.workload import Workload

__all__ = ["BASE", "Median", "Report", "Row", "Target"]

#: The mode that the others are compared with, and the two that are compared.
BASE, OTHER, OURS = "host", "vxlan", "slimnet"
#: What another mode is to reach where it is measured: of rates and of processor time per
#: operation at least, of a time at most.
_LIMITS = {"kmod": (0.95, 1.4)}


@frozen
class Median:
    """The middle of several values, and how far they spread."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Median | None:
        """``None`` when there is none that is a number."""
        numbers = sorted(value for value in values if math.isfinite(value))
        if not numbers:
            return None
        return cls(statistics.median(numbers), numbers[0], numbers[-1], len(numbers))


@frozen
class Target:
    """A ratio to reach.

    Attributes:
        title: of what.
        wanted: ``>= 0.97`` or ``<= 1.25``.
        ratio: the ratio of the medians.
        low, high: the least and the greatest ratio of one round.
        met: whether the ratio of the medians does it.
        within: missed, but the rounds spread across it: more rounds would tell.
    """

    title: str
    wanted: str
    ratio: float
    low: float
    high: float
    met: bool
    within: bool

    @classmethod
    def of(cls, title: str, ratio: Median, limit: float, *, at_least: bool) -> Target:
        """Compare a ratio with its limit."""
        met = ratio.median >= limit if at_least else ratio.median <= limit
        return cls(
            title=title,
            wanted=f"{'>=' if at_least else '<='} {limit:.2f}",
            ratio=ratio.median,
            low=ratio.low,
            high=ratio.high,
            met=met,
            within=not met and ratio.low <= limit <= ratio.high,
        )


@frozen
class Row:
    """One workload in every mode.

    Attributes:
        workload: which.
        values: by mode, in the workload's unit.
        cpu: by mode: processor time per operation, microseconds.
        ratios: by mode: to host mode; the range is that of the rounds' own ratios.
        cpu_ratios: host mode's processor time per operation by the mode's.
        versus: slimnet by VXLAN.
    """

    workload: Workload
    values: Mapping[str, Median]
    cpu: Mapping[str, Median]
    ratios: Mapping[str, Median]
    cpu_ratios: Mapping[str, Median]
    versus: Median | None

    @classmethod
    def of(cls, workload: Workload, samples: Sequence[Sample]) -> Row:
        """What the samples of this workload say."""
        mine = [sample for sample in samples if sample.workload == workload.name]
        values = _by_mode(mine, "value")
        cpu = _by_mode(mine, "cpu_us")
        return cls(
            workload=workload,
            values=_medians(values),
            cpu=_medians(cpu),
            ratios=_ratios(values, BASE),
            cpu_ratios=_ratios(cpu, BASE, inverse=True),
            versus=_ratio(values.get(OURS, {}), values.get(OTHER, {})),
        )

    def targets(self) -> list[Target]:
        """What is to be reached here, by the modes that were measured."""
        workload, up = self.workload, self.workload.higher_is_better
        found = []
        if OURS in self.ratios:
            ratio = self.ratios[OURS]
            found.append(Target.of(workload.title, ratio, workload.target, at_least=up))
        if OURS in self.cpu_ratios and workload.cpu_target is not None:
            title = f"{workload.title}: processor time per {workload.operation}"
            ratio = self.cpu_ratios[OURS]
            found.append(Target.of(title, ratio, workload.cpu_target, at_least=True))
        if self.versus:
            title = f"{workload.title}: never slower than VXLAN"
            found.append(Target.of(title, self.versus, 1.0, at_least=up))
        for mode, (least, most) in _LIMITS.items():
            if mode in self.ratios:
                limit = least if up else most
                title = f"{workload.title}, {mode}"
                found.append(Target.of(title, self.ratios[mode], limit, at_least=up))
            if mode in self.cpu_ratios and workload.cpu_target is not None:
                title = f"{workload.title}, {mode}: processor time per {workload.operation}"
                found.append(Target.of(title, self.cpu_ratios[mode], least, at_least=True))
        return found


@frozen
class Report:
    """All that a run of the demo found.

    Attributes:
        machine: what it ran on.
        setting: how long and how often.
        modes: the modes' titles by name, in the order of the report.
        rows: one per workload.
        soaks: the samples of the soak.
        churns: the samples of the churn figure.
        samples: every sample.
        costs: what slimnet's programs take, where that was asked for.
        stopped: why it ended before it was done; empty when it did not.
    """

    machine: Mapping[str, Any]
    setting: Mapping[str, Any]
    modes: Mapping[str, str]
    rows: Sequence[Row]
    soaks: Sequence[Sample]
    churns: Sequence[Sample]
    samples: Sequence[Sample] = field(repr=False)
    costs: Sequence[Cost] = ()
    stopped: str = ""

    @property
    def targets(self) -> list[Target]:
        """Every target of every row."""
        return [target for row in self.rows for target in row.targets()]

    @property
    def failures(self) -> list[Sample]:
        """The measurements that failed."""
        return [sample for sample in self.samples if sample.error]

    @property
    def noise(self) -> float:
        """The part of the machine's busy time that no program of the demo had:
        ksoftirqd, the agents, and above all whatever else ran."""
        good = [sample.usage for sample in self.samples if not sample.error]
        busy = sum(usage["machine_us"] for usage in good)
        ours = sum(usage["client_us"] + usage["server_us"] for usage in good)
        return max(0.0, 1 - ours / busy) if busy else 0.0

    @property
    def steal(self) -> float:
        """Time that the hypervisor gave to others, by busy time."""
        good = [sample.usage for sample in self.samples if not sample.error]
        busy = sum(usage["machine_us"] for usage in good)
        stolen: int = sum(usage["steal_us"] for usage in good)
        return stolen / busy if busy else 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values; NaN is null."""
        return {
            "version": 1,
            "machine": dict(self.machine),
            "setting": dict(self.setting),
            "modes": dict(self.modes),
            "stopped": self.stopped,
            "noise": self.noise,
            "steal": self.steal,
            "results": [_row_json(row) for row in self.rows],
            "targets": [attrs.asdict(target) for target in self.targets],
            "soak": [soak_json(sample) for sample in self.soaks],
            "costs": [attrs.asdict(cost) for cost in self.costs],
            "churn": [_sample_json(sample) for sample in self.churns],
            "samples": [_sample_json(sample) for sample in self.samples],
        }


def soak_json(sample: Sample) -> dict[str, Any]:
    """A soak's answer: whether it was without a flaw, and the numbers that say so."""
    counters = sample.usage.get("counters", {}).values()
    retransmits = sum(side.get("TCPSynRetrans", 0) for side in counters)
    slow = sample.detail.get("slow_connects")
    failed = sample.detail.get("failed")
    return {
        "workload": sample.workload,
        "mode": sample.mode,
        "connections": sample.operations,
        "seconds": sample.detail.get("seconds"),
        "syn_retransmissions": retransmits,
        "slow_connects": slow,
        "longest_connect_us": sample.detail.get("connect_us", {}).get("max"),
        "failed": failed,
        "counters": sample.usage.get("counters", {}),
        "error": sample.error,
        "met": not sample.error and not retransmits and slow == 0 and not failed,
    }


def _by_mode(samples: Sequence[Sample], what: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for sample in samples:
        value = getattr(sample, what)
        if math.isfinite(value):
            found.setdefault(sample.mode, {})[sample.round] = value
    return found


def _medians(values: Mapping[str, Mapping[int, float]]) -> dict[str, Median]:
    every = {mode: Median.of(rounds.values()) for mode, rounds in values.items()}
    return {mode: median for mode, median in every.items() if median}


def _ratio(over: Mapping[int, float], under: Mapping[int, float]) -> Median | None:
    """The medians' ratio; its range is that of the ratios of single rounds."""
    pairs = Median.of(over[round_] / under[round_] for round_ in over if under.get(round_))
    top, bottom = Median.of(over.values()), Median.of(under.values())
    if not pairs or not top or not bottom:
        return None
    return attrs.evolve(pairs, median=top.median / bottom.median)


def _ratios(
    values: Mapping[str, Mapping[int, float]], base: str, *, inverse: bool = False
) -> dict[str, Median]:
    under = values.get(base, {})
    every = {
        mode: _ratio(under, rounds) if inverse else _ratio(rounds, under)
        for mode, rounds in values.items()
        if mode != base
    }
    return {mode: ratio for mode, ratio in every.items() if ratio}


def _row_json(row: Row) -> dict[str, Any]:
    workload = row.workload
    return {
        "workload": workload.name,
        "title": workload.title,
        "unit": workload.unit,
        "higher_is_better": workload.higher_is_better,
        "operation": workload.operation,
        "values": {mode: attrs.asdict(value) for mode, value in row.values.items()},
        "ratios": {mode: attrs.asdict(value) for mode, value in row.ratios.items()},
        "cpu_us_per_operation": {mode: attrs.asdict(value) for mode, value in row.cpu.items()},
        "cpu_ratios": {mode: attrs.asdict(value) for mode, value in row.cpu_ratios.items()},
    }


def _sample_json(sample: Sample) -> dict[str, Any]:
    plain = attrs.asdict(sample)
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in plain.items()
    }
