# SPDX-License-Identifier: Apache-2.0
"""How far it is: a bar on a terminal, plain lines elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import rich.console
import rich.progress

from slimnet.demo.sample import Sample

__all__ = ["BarProgress", "Progress", "progress"]


class Progress:
    """Plain lines.

    Args:
        total: how many measurements there will be.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.at = 0
        self._start = time.monotonic()

    def note(self, text: str) -> None:
        """Say what goes on besides measuring."""
        self._print(f"  {text}")

    def step(self, text: str) -> None:
        """A measurement begins."""
        self.at += 1
        self._text = text

    def done(self, sample: Sample, unit: str) -> None:
        """A measurement is over."""
        result = f"failed: {sample.error}" if sample.error else f"{sample.value:,.1f} {unit}"
        width = len(str(self.total))
        self._print(f"[{self.at:{width}}/{self.total}] {self._text}: {result}")

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class BarProgress(Progress):
    """A bar with the time that is left, and a line for every failure."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self._bar = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.BarColumn(bar_width=30),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.description}"),
            console=rich.console.Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=total)

    def note(self, text: str) -> None:
        """See :meth:`.Progress.note`."""
        self._bar.update(self._task, description=text)

    def step(self, text: str) -> None:
        """See :meth:`.Progress.step`."""
        super().step(text)
        self._bar.update(self._task, description=text)

    def done(self, sample: Sample, unit: str) -> None:
        """See :meth:`.Progress.done`."""
        self._bar.advance(self._task)
        if sample.error:
            super().done(sample, unit)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


def progress(total: int) -> Progress:
    """The one that suits standard error."""
    return BarProgress(total) if sys.stderr.isatty() else Progress(total)
