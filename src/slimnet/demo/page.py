# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from slimnet.demo.picture import churn_figure, ratio_figure, svg
from slimnet.demo.report import Report
from slimnet.demo.table import lines, verdict

__all__ = ["html"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: 12px; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem; text-align: left; }
tr.missed td:last-child { color: #b03000; font-weight: bold; }
tr.met td:last-child { color: #006040; }
"""

_CAVEATS = """
The hosts are network namespaces of one machine, joined by veth pairs and a bridge: there is no
network card, and both hosts share the processors.
--
Processor time is that of the client's and the server's cgroups. It includes softirqs that
interrupted their processes, but not those that interrupted an idle processor, nor ksoftirqd's.
--
A ratio is that of two medians; its range is that of the rounds' own ratios.
--
Measurements of connects are short and in fresh namespaces: above some 12,000 connections a minute,
host mode searches long for a free source port, which would flatter the others.
"""


def html(report: Report) -> str:
    """The page."""
    return "\n".join(_parts(report))


def _parts(report: Report) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield f"<title>slimnet: the demo's report</title><style>{_STYLE}</style></head><body>"
    yield "<h1>slimnet beside host mode and VXLAN</h1>"
    machine = report.machine
    yield f"<p>{escape(str(machine['time']))}; {escape(str(machine['cpu']))},"
    yield f"{machine['cpus']} processors, Linux {escape(str(machine['kernel']))}.</p>"
    if report.rows:
        yield svg(ratio_figure(report))
    if report.targets:
        yield "<h2>Targets</h2><table><tr><th><th>wanted<th>ratio<th>rounds<th></tr>"
        for target in report.targets:
            yield (
                f'<tr class="{"met" if target.met else "missed"}"><td>{escape(target.title)}'
                f"<td>{escape(target.wanted)}<td>{target.ratio:.3f}"
                f"<td>{target.low:.2f} to {target.high:.2f}<td>{verdict(target)}</tr>"
            )
        yield "</table>"
    if report.churns:
        yield "<h2>Connections to one service at full speed</h2>"
        yield svg(churn_figure(report))
    yield "<h2>All of it</h2><pre>"
    yield from (escape(line) for line in lines(report))
    yield "</pre><h2>How to read it</h2><ul>"
    yield from (f"<li>{escape(caveat)}</li>" for caveat in _CAVEATS.split("--"))
    yield "</ul></body></html>"
