# SPDX-License-Identifier: Apache-2.0
"""Where a program of the demo runs: an endpoint, or a host that stands in for one.

Every mode starts its programs in the same way, with :mod:`slimnet.sandbox` as
``slimnet run`` does, so that what is compared is the network and nothing else.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from slimnet import sandbox
from slimnet.exceptions import InUse, SlimnetError
from slimnet.linux import cgroup

__all__ = ["COUNTERS", "ProgramFailed", "Side"]

#: What the report shows of /proc/net/netstat (TcpExt), by the kernel's names.
COUNTERS = (
    "TCPSynRetrans",
    "TCPTimeouts",
    "TCPLostRetransmit",
    "TCPTimeWaitOverflow",
    "ListenOverflows",
    "ListenDrops",
    "TW",
    "TWRecycled",
    "PAWSEstab",
)

_STOP_SECONDS = 10.0


class ProgramFailed(Exception):
    """A program of the demo ended with an error, or not at all."""


@frozen
class Side:
    """One side of a pair.

    Attributes:
        address: the IPv4 address that the other side dials.
        attached: where its programs belong.
    """

    address: str
    attached: sandbox.Attached

    def start(
        self, argv: Sequence[str], *, user: str | None = None, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program here; it runs when this returns.

        Args:
            argv: the program and its arguments.
            user: whom it runs as; root by default.
            log: the file that takes its output; without it, pipes do.

        Raises:
            ProgramFailed: it cannot be started.
        """
        try:
            if log is None:
                return self._spawn(argv, user, subprocess.PIPE, subprocess.PIPE)
            with log.open("w") as out:
                return self._spawn(argv, user, out.fileno(), subprocess.STDOUT)
        except SlimnetError as error:
            raise ProgramFailed(str(error)) from error

    def finish(
        self, process: subprocess.Popen[bytes], argv: Sequence[str], *, timeout: float
    ) -> str:
        """Wait for the program's end and return what it printed.

        Args:
            process: from :meth:`start`.
            argv: what was started, for the message.
            timeout: seconds after which it is killed.

        Raises:
            ProgramFailed: its exit status is not 0, or it took too long.
        """
        try:
            out, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{_brief(argv)}: not done after {timeout:.0f} s") from None
        finally:
            if process.poll() is None:
                self.kill()
                process.communicate()
        if process.returncode:
            raise _failure(argv, process.returncode, (errors or out).decode(errors="replace"))
        return out.decode(errors="replace")

    @contextmanager
    def serve(
        self, argv: Sequence[str], *, user: str, log: Path, stop: signal.Signals
    ) -> Iterator[None]:
        """Run in the background until the block is left.

        Args:
            argv: the program and its arguments.
            user: whom it runs as.
            log: the file that takes its output.
            stop: the signal that asks it to end.

        Raises:
            ProgramFailed: it ended before the block did.
        """
        process = self.start(argv, user=user, log=log)
        try:
            try:
                yield
            except ProgramFailed as error:
                # Its own last words say more than the client's "connection refused".
                if process.poll() is not None:
                    said = log.read_text(errors="replace")
                    raise _failure(argv, process.returncode, said) from error
                raise
        finally:
            self._ask_to_end(process, stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            self.kill()
            process.wait()

    @property
    def cgroup(self) -> Path:
        """Of its programs; each mode gives them one."""
        cgroup = self.attached.place.cgroup
        assert cgroup is not None  # noqa: S101  # for the type checker
        return cgroup

    def cpu_us(self) -> int:
        """Processor time of this cgroup since it was made, in microseconds
        (cgroup-v2.rst, ``cpu.stat``: there without the cpu controller too)."""
        text = (self.cgroup / "cpu.stat").read_text()
        return int(dict(line.split() for line in text.splitlines())["usage_usec"])

    def counters(self) -> dict[str, int]:
        """:data:`COUNTERS` of this network namespace."""
        text = subprocess.run(
            ["nsenter", f"--net={self.attached.place.netns}", "cat", "/proc/net/netstat"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        lines = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
        every = dict(zip(lines[0][1:], map(int, lines[1][1:]), strict=True))
        return {name: every.get(name, 0) for name in COUNTERS}

    def kill(self) -> None:
        """End whatever still runs here."""
        try:
            cgroup.kill(self.cgroup, _STOP_SECONDS)
        except InUse as error:
            raise ProgramFailed(str(error)) from error

    def _ask_to_end(self, process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
        process.send_signal(stop)

    def _spawn(
        self, argv: Sequence[str], user: str | None, stdout: int, stderr: int
    ) -> subprocess.Popen[bytes]:
        return sandbox.spawn(
            self.attached,
            argv,
            user=user,
            environment={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            directory="/",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )


def _failure(argv: Sequence[str], status: int, said: str) -> ProgramFailed:
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    return ProgramFailed(f"{_brief(argv)}: exit status {status}: {last[0]}")


def _brief(argv: Sequence[str]) -> str:
    return " ".join(argv[:8])
