# SPDX-License-Identifier: Apache-2.0
"""The report as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slimnet.demo.profile import Cost
from slimnet.demo.report import BASE, OURS, Report, Row, Target, soak_json
from slimnet.demo.sample import Sample

__all__ = ["lines", "number", "soak_words", "verdict"]

_NOISY = 0.15
# Part of a workload's cost below which a program is not shown.
_SMALL = 0.01

_CHURN_HEAD = (
    *("", "connections", "first second", "last second", "worst second"),
    *("failed", "above 1 s", "TCPTimeWaitOverflow"),
)

_COST_HEAD = ("", "runs per operation", "ns per run", "us per operation")


def lines(report: Report) -> Iterator[str]:
    """The whole report, line by line."""
    machine = report.machine
    yield (
        f"{machine['cpu']}, {machine['cpus']} processors, Linux {machine['kernel']},"
        f" TCP {machine['congestion_control']}"
    )
    if report.rows:
        yield ""
        yield from _grid(_head(report), [_cells(report, row) for row in report.rows])
        yield ""
        yield f"Processor time per operation (us), client and server; in () {BASE} by it:"
        rows = [_cpu_cells(report, row) for row in report.rows]
        yield from _grid(["", *report.modes.values()], rows)
    if report.targets:
        yield ""
        yield "Targets (ratio of medians, in [] the rounds' range):"
        grid = [
            [target.title, target.wanted, f"{target.ratio:.3f}", _range(target), verdict(target)]
            for target in report.targets
        ]
        yield from _grid(None, grid)
    for sample in report.soaks:
        yield ""
        yield from soak_words(sample)
    if report.churns:
        yield ""
        yield f"Connections to one service at full speed, {report.setting['churn']} s:"
        good = [sample for sample in report.churns if not sample.error]
        yield from _grid(_CHURN_HEAD, [_churn_cells(report, sample) for sample in good])
    if report.costs:
        yield ""
        yield "What slimnet's BPF programs take, both hosts (counting adds some 90 ns to a run):"
        yield from _grid(_COST_HEAD, _cost_rows(report.costs))
    yield ""
    yield (
        f"Other work on the machine: {report.noise:.0%} of its busy time; steal {report.steal:.1%}."
    )
    if report.noise > _NOISY:
        yield "The machine was not quiet: do not trust these numbers to a few per cent."
    if machine["bpf_stats"]:
        yield "kernel.bpf_stats_enabled is 1, which slows slimnet down: set it to 0."
    if report.stopped:
        yield f"STOPPED EARLY: {report.stopped}"
    for sample in report.failures:
        yield f"FAILED: {sample.workload}, {sample.mode}, round {sample.round}: {sample.error}"


def number(value: float) -> str:
    """Three figures at least, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def verdict(target: Target) -> str:
    """One word, or three."""
    if target.met:
        return "met"
    return "missed, within spread" if target.within else "MISSED"


def soak_words(sample: Sample) -> Iterator[str]:
    """What came of a soak."""
    if sample.error:
        return
    found = soak_json(sample)
    order = sample.workload.removeprefix("soak-")
    yield (
        f"{sample.operations:,.0f} connections in a row, {sample.mode}, the {order} closes first:"
        f" {'met' if found['met'] else 'MISSED'}"
    )
    yield (
        f"  {found['syn_retransmissions']} SYN retransmissions,"
        f" {found['slow_connects']} connects above 1 s, longest"
        f" {found['longest_connect_us'] / 1000:.1f} ms, {_failed(sample)},"
        f" {sample.value:,.0f} connections/s, TCPTimeWaitOverflow {_overflow(sample)}"
    )


def _churn_cells(report: Report, sample: Sample) -> list[str]:
    # The last tick is only as long as the program needed to see that time is up.
    rates = [tick["done"] for tick in sample.detail["timeline"][: int(sample.detail["seconds"])]]
    order = sample.workload.removeprefix("churn-")
    return [
        f"{report.modes[sample.mode]}, the {order} closes first",
        *(f"{number:,.0f}" for number in (sample.operations, rates[0], rates[-1], min(rates))),
        _failed(sample),
        str(sample.detail["slow_connects"]),
        _overflow(sample),
    ]


def _cost_rows(costs: Sequence[Cost]) -> list[list[str]]:
    total: dict[str, float] = {}
    for cost in costs:
        total[cost.workload] = total.get(cost.workload, 0) + cost.us
    return [
        [f"{cost.workload}: {cost.program}", number(cost.runs), number(cost.ns), f"{cost.us:.2f}"]
        for cost in costs
        if cost.us > _SMALL * total[cost.workload]
    ]


def _failed(sample: Sample) -> str:
    failed = sample.detail["failed"]
    return ", ".join(f"{count:,} {name}" for name, count in failed.items()) or "none failed"


def _overflow(sample: Sample) -> str:
    counters = sample.usage["counters"]
    return ", ".join(
        f"{side} {counters[side].get('TCPTimeWaitOverflow', 0):,}" for side in ("client", "server")
    )


def _head(report: Report) -> list[str]:
    versus = [f"{OURS}/{BASE}", "target", ""] if OURS in report.modes else []
    return ["", *report.modes.values(), *versus]


def _cells(report: Report, row: Row) -> list[str]:
    cells = [f"{row.workload.title} ({row.workload.unit})"]
    for mode in report.modes:
        if mode not in row.values:
            cells.append("-")
            continue
        value = row.values[mode]
        spread = (value.high - value.low) / 2 / value.median if value.median else 0
        ratio = f" ({row.ratios[mode].median:.2f})" if mode in row.ratios else ""
        cells.append(f"{number(value.median)} ±{spread:.0%}{ratio}")
    if OURS in row.ratios:
        target = row.targets()[0]
        cells += [f"{target.ratio:.2f}", target.wanted, verdict(target)]
    return cells


def _cpu_cells(report: Report, row: Row) -> list[str]:
    cells = [f"{row.workload.title} (per {row.workload.operation})"]
    for mode in report.modes:
        ratio = f" ({row.cpu_ratios[mode].median:.2f})" if mode in row.cpu_ratios else ""
        cells.append(number(row.cpu[mode].median) + ratio if mode in row.cpu else "-")
    return cells


def _range(target: Target) -> str:
    return f"[{target.low:.2f} .. {target.high:.2f}]"


def _grid(head: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as they must be; the first to the left, the others to the right."""
    every = [head, *rows] if head else list(rows)
    count = max(map(len, every))
    widths = [max(len(row[i]) for row in every if i < len(row)) for i in range(count)]
    for row in every:
        cells = [
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        yield "  ".join(cells).rstrip()
