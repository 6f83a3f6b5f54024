# SPDX-License-Identifier: Apache-2.0
"""The report as pictures: ratios to host mode, and the churn figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

# Not pyplot: no global state, and no display is looked for.
from matplotlib.figure import Figure

from slimnet.demo.report import BASE, Median, Report, Row
from slimnet.demo.sample import Sample

__all__ = ["churn_figure", "ratio_figure", "save", "svg"]

# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = {
    "host": "#666666",
    "vxlan": "#E69F00",
    "slimnet": "#0072B2",
    "netns": "#56B4E9",
    "preload": "#009E73",
}
_HEIGHT = 0.36


def ratio_figure(report: Report) -> Figure:
    """Bars: every workload's speed by host mode's, and its operations per
    processor time by host mode's. Longer is better, for times too."""
    figure = _figure(11, 1.8 + 0.62 * len(report.rows), columns=2)
    speed, cpu = figure.axes
    _bars(speed, report, [_speeds(row) for row in report.rows])
    speed.set_title("speed (host mode = 1)", fontsize=10)
    speed.set_yticks(range(len(report.rows)), [row.workload.title for row in report.rows])
    speed.invert_yaxis()
    _bars(cpu, report, [row.cpu_ratios for row in report.rows])
    cpu.set_title("operations per processor time (host mode = 1)", fontsize=10)
    for at, row in enumerate(report.rows):
        workload = row.workload
        target = workload.target if workload.higher_is_better else 1 / workload.target
        _target(speed, at, target, label="slimnet's target" if at == 0 else None)
        if workload.cpu_target is not None:
            _target(cpu, at, workload.cpu_target)
    figure.legend(
        *speed.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        frameon=False,
    )
    return figure


def churn_figure(report: Report) -> Figure:
    """Lines: connections per second over time, one panel per order of closing."""
    orders = list(dict.fromkeys(sample.workload for sample in report.churns))
    figure = _figure(11, 4.2, columns=len(orders), sharey=True)
    for axes, order in zip(figure.axes, orders, strict=True):
        mine = [sample for sample in report.churns if sample.workload == order and not sample.error]
        for sample in mine:
            _churn_line(axes, report, sample)
        axes.set_title(f"the {order.removeprefix('churn-')} closes first", fontsize=10)
        axes.set_xlabel("seconds")
        # Below one a second is nothing: symlog keeps zero on the picture.
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8, loc="lower left")
    figure.axes[0].set_ylabel("connections to one service, per second")
    return figure


def save(figure: Figure, path: str) -> None:
    """As PNG."""
    figure.savefig(path, dpi=150)


def svg(figure: Figure) -> str:
    """As an ``<svg>`` element for a page."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]


def _figure(width: float, height: float, **options: Any) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    columns = options.pop("columns")
    figure.subplots(1, columns, **{"sharey": True, **options})
    return figure


def _speeds(row: Row) -> dict[str, Median]:
    """A time's ratio turned around, so that more is better."""
    if row.workload.higher_is_better:
        return dict(row.ratios)
    return {
        mode: Median(1 / ratio.median, 1 / ratio.high, 1 / ratio.low, ratio.count)
        for mode, ratio in row.ratios.items()
    }


def _bars(axes: Axes, report: Report, ratios: Sequence[Mapping[str, Median]]) -> None:
    modes = [mode for mode in report.modes if mode != BASE]
    for nth, mode in enumerate(modes):
        offset = (nth - (len(modes) - 1) / 2) * _HEIGHT
        points = [(at + offset, row[mode]) for at, row in enumerate(ratios) if mode in row]
        axes.barh(
            [place for place, _ in points],
            [ratio.median for _, ratio in points],
            _HEIGHT,
            color=_COLOURS.get(mode),
            label=report.modes[mode],
        )
        for place, ratio in points:
            axes.plot([ratio.low, ratio.high], [place, place], color="#222222", linewidth=0.8)
            axes.text(0.02, place, f"{ratio.median:.2f}", va="center", color="white", fontsize=8)
    axes.axvline(1, color=_COLOURS[BASE], linewidth=1, label=report.modes.get(BASE, BASE))
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)


def _target(axes: Axes, at: int, limit: float, label: str | None = None) -> None:
    places = [at - _HEIGHT, at + _HEIGHT]
    axes.plot([limit, limit], places, color="#D55E00", linewidth=1.5, label=label)


def _churn_line(axes: Axes, report: Report, sample: Sample) -> None:
    whole = int(sample.detail["seconds"])
    rates = [tick["done"] for tick in sample.detail["timeline"][:whole]]
    failed = sum(sample.detail["failed"].values())
    label = report.modes[sample.mode] + (f" ({failed:,} failed)" if failed else "")
    axes.plot(
        range(1, len(rates) + 1),
        rates,
        color=_COLOURS.get(sample.mode),
        # They lie on each other where all is well: the first is the widest.
        linewidth=3.5 - 1.0 * list(report.modes).index(sample.mode),
        label=label,
    )
