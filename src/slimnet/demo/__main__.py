# SPDX-License-Identifier: Apache-2.0
"""``testbed/demo``: run everything, print the table, draw the pictures."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import attrs
import click
from click.core import ParameterSource

from slimnet.demo.contained import contained
from slimnet.demo.engine import ENGINES
from slimnet.demo.machine import describe
from slimnet.demo.mode import MODES
from slimnet.demo.page import html
from slimnet.demo.picture import churn_figure, ratio_figure, save
from slimnet.demo.profile import Cost
from slimnet.demo.progress import progress
from slimnet.demo.report import Report, Row
from slimnet.demo.sample import Sample
from slimnet.demo.schedule import Plan
from slimnet.demo.setting import Setting
from slimnet.demo.table import lines
from slimnet.demo.workloads import CHURNS, SOAKS, WORKLOADS
from slimnet.exceptions import SlimnetError

__all__ = ["main"]

_LONG = ("soak", "churn")
#: What ``--only`` can name.
_CHOICES = tuple(
    dict.fromkeys((*(workload.group or workload.name for workload in WORKLOADS), *_LONG))
)
#: What runs without it.
_USUAL = (*(workload.name for workload in WORKLOADS if not workload.group), *_LONG)
#: The modes of backend ebpf.
_PLACEMENTS = {"host": "slimnet", "netns": "netns"}
#: What runs in an engine's containers without it.
_CONTAINED = ("memcached", "redis", "nginx", "nginx-close", "postgresql")
_QUICK: dict[str, Any] = {
    "rounds": 2,
    "seconds": 1,
    "connections": 4000,
    "requests": 50_000,
    "soak": 20_000,
    "churn": 2,
    "apart": False,
}


def _listed(every: tuple[str, ...]) -> Callable[[Any, Any, str], tuple[str, ...]]:
    def parse(_context: object, _parameter: object, value: str) -> tuple[str, ...]:
        wanted = [word.strip() for word in value.split(",") if word.strip()]
        for word in wanted:
            if word not in every:
                raise click.BadParameter(f"wanted some of {', '.join(every)}; got {word!r}")
        return tuple(name for name in every if name in wanted)

    return parse


@click.command(context_settings={"max_content_width": 100})
@click.option("--quick", is_flag=True, help="Less of everything: under two minutes.")
@click.option("--rounds", type=click.IntRange(1), help="How often each workload runs per mode.")
@click.option("--seconds", type=click.IntRange(1), help="How long one measurement takes.")
@click.option("--soak", type=click.IntRange(1), help="How many connections the soak makes.")
@click.option("--churn", type=click.IntRange(1), help="Seconds of the churn figure, per line.")
@click.option(
    "--only",
    callback=_listed(_CHOICES),
    default="",
    metavar="NAME,...",
    help=f"Only these: {', '.join(_USUAL)}; or what is fetched first, and not part of all: "
    f"{', '.join(name for name in _CHOICES if name not in _USUAL)}.",
)
@click.option(
    "--modes",
    callback=_listed(tuple(mode.name for mode in MODES)),
    default=",".join(mode.name for mode in MODES if mode.usual),
    metavar="NAME,...",
    help=f"Only these modes: {', '.join(mode.name for mode in MODES)}.",
)
@click.option(
    "--placement",
    callback=_listed(tuple(_PLACEMENTS)),
    default="",
    metavar="NAME,...",
    help="Where the endpoints of backend ebpf are, in place of that in --modes: "
    f"{', '.join(_PLACEMENTS)}.",
)
@click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    help="Run it in containers of this engine: in the hosts' network, over the engine's own "
    f"bridge and VXLAN, over slimnet. Without --only: {', '.join(_CONTAINED)}.",
)
@click.option(
    "--profile", is_flag=True, help="Afterwards, count the time of slimnet's BPF programs."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-results"),
    show_default=True,
    help="Where report.json, report.html and the pictures go.",
)
@click.option("--verbose", is_flag=True, help="Log what slimnet does.")
def main(
    only: tuple[str, ...],
    modes: tuple[str, ...],
    placement: tuple[str, ...],
    engine: str | None,
    output: Path,
    *,
    quick: bool,
    as_json: bool,
    profile: bool,
    verbose: bool,
    **limits: int | None,
) -> None:
    """Run real programs between two hosts in host mode, over VXLAN and over
    slimnet, and compare.

    The hosts are network namespaces of this machine; everything that is made
    is removed again, also after Ctrl-C. Needs root.
    """
    source = click.get_current_context().get_parameter_source
    for name in ("modes", "placement"):
        if engine and source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--engine has modes of its own: leave --{name} out")
    logging.basicConfig()
    if verbose:
        logging.getLogger("slimnet").setLevel(logging.DEBUG)
    if os.geteuid() != 0:
        raise _Refused("the demo makes network namespaces and cgroups: run it as root")
    signal.signal(signal.SIGTERM, _interrupt)
    chosen = {name: value for name, value in limits.items() if value is not None}
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"slimnet-demo{os.getpid()}-") as directory:
        Path(directory).chmod(0o755)  # the servers, which are not root, look in
        setting = Setting(
            Path(directory), engine=engine or "", **{**(_QUICK if quick else {}), **chosen}
        )
        names = _placed(modes, placement)
        chosen_modes = [mode for mode in MODES if mode.name in names]
        if engine:
            chosen_modes = contained(engine, setting.directory)
        only = only or (_CONTAINED if engine else _USUAL)
        plan = Plan(setting, chosen_modes, frozenset(only), counting=profile)
        try:
            report = _run(plan)
        except SlimnetError as error:
            raise _Refused(str(error)) from error
    _write(report, output)
    if as_json:
        print(json.dumps(report.to_json(), indent=1, allow_nan=False))
    else:
        print("\n".join(lines(report)))
        print(f"\nPictures and numbers: {output}/report.html, report.json, *.png")
    sys.exit(1 if report.failures or report.stopped else 0)


def _placed(modes: tuple[str, ...], placements: tuple[str, ...]) -> set[str]:
    """The modes' names, those of backend ebpf by its placements if some are named."""
    if not placements:
        return set(modes)
    return set(modes) - set(_PLACEMENTS.values()) | {_PLACEMENTS[each] for each in placements}


class _Refused(click.ClickException):
    exit_code = 2


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sweep() -> None:
    """Remove the files of demos that were killed."""
    for left in Path(tempfile.gettempdir()).glob("slimnet-demo*-*"):
        process = left.name.removeprefix("slimnet-demo").partition("-")[0]
        if not Path("/proc", process).exists():
            shutil.rmtree(left)


def _run(plan: Plan) -> Report:
    plan.check()
    machine = describe()
    samples: list[Sample] = []
    costs: list[Cost] = []
    stopped = ""
    with progress(plan.steps()) as bar:
        try:
            for sample in plan.run(bar):
                samples.append(sample)  # noqa: PERF402  # what is there so far counts
            if plan.counting:
                costs.extend(plan.profile(bar))
        except (KeyboardInterrupt, SlimnetError) as error:
            if not samples:
                raise
            stopped = str(error) or "interrupted"
    soaks, churns = (
        [sample for work in works for sample in samples if sample.workload == work.name]
        for works in (SOAKS, CHURNS)
    )
    return Report(
        machine=machine,
        setting=attrs.asdict(plan.setting, filter=lambda field, _: field.name != "directory"),
        modes={mode.name: mode.title for mode in plan.modes},
        rows=[Row.of(workload, samples) for workload in plan.workloads],
        soaks=soaks,
        churns=churns,
        samples=samples,
        costs=costs,
        stopped=stopped,
    )


def _write(report: Report, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(report.to_json(), indent=1, allow_nan=False))
    (output / "report.html").write_text(html(report))
    if report.rows:
        save(ratio_figure(report), str(output / "ratios.png"))
    if report.churns:
        save(churn_figure(report), str(output / "churn.png"))
    user, group = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if user and group:
        for path in (output, *output.iterdir()):
            shutil.chown(path, int(user), int(group))


if __name__ == "__main__":
    main()
