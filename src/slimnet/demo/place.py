# SPDX-License-Identifier: Apache-2.0
"""Where a program of the demo runs: a cgroup, a network namespace, an address.

Every mode starts its programs in the same way, so that what is measured is
the network and not the launcher.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

__all__ = ["COUNTERS", "Place", "ProgramFailed"]

# Joins the cgroup last, so that the launcher's own time is not counted there.
_JOIN = 'echo 0 >"$0/cgroup.procs" && exec "$@"'

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
class Place:
    """One side of a site.

    Attributes:
        name: for messages: ``host server``.
        address: the IPv4 address that the other side dials.
        cgroup: the cgroup v2 directory of its programs; exists.
        netns: path of the network namespace of its programs.
    """

    name: str
    address: str
    cgroup: Path
    netns: Path

    def argv(self, argv: Sequence[str]) -> list[str]:
        """``argv`` preceded by what brings it here."""
        # nsenter, not `ip netns exec`, which would mount another /sys.
        return ["nsenter", f"--net={self.netns}", "sh", "-c", _JOIN, str(self.cgroup), *argv]

    def run(self, argv: Sequence[str], *, timeout: float) -> str:
        """Run to the end and return what it printed.

        Args:
            argv: the program and its arguments.
            timeout: seconds after which it is killed.

        Raises:
            ProgramFailed: its exit status is not 0, or it took too long.
        """
        process = self._popen(argv, stdout=subprocess.PIPE)
        try:
            out, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{argv[0]}: not done after {timeout:.0f} s") from None
        finally:
            if process.poll() is None:
                self.kill()
                process.communicate()
        if process.returncode:
            raise ProgramFailed(_story(argv, process.returncode, errors or out))
        return out

    @contextmanager
    def serve(
        self, argv: Sequence[str], *, log: Path, stop: signal.Signals = signal.SIGTERM
    ) -> Iterator[None]:
        """Run in the background until the block is left.

        Args:
            argv: the program and its arguments.
            log: the file that takes its output.
            stop: the signal that asks it to end.

        Raises:
            ProgramFailed: it ended before the block did.
        """
        with log.open("w") as out:
            process = self._popen(argv, stdout=out.fileno())
        try:
            try:
                yield
            finally:
                # Its last words say more than the client's "connection refused".
                if process.poll() is not None:
                    raise ProgramFailed(_story(argv, process.returncode, log.read_text()))
        finally:
            process.send_signal(stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            self.kill()
            process.wait()

    def cpu_us(self) -> int:
        """Processor time of this cgroup since it was made, in microseconds
        (cgroup-v2.rst, ``cpu.stat``: there without the cpu controller too)."""
        for line in (self.cgroup / "cpu.stat").read_text().splitlines():
            key, value = line.split()
            if key == "usage_usec":
                return int(value)
        raise ProgramFailed(f"{self.cgroup}/cpu.stat: no usage_usec")

    def counters(self) -> dict[str, int]:
        """:data:`COUNTERS` of this network namespace."""
        text = subprocess.run(
            ["nsenter", f"--net={self.netns}", "cat", "/proc/net/netstat"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        lines = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
        every = dict(zip(lines[0][1:], map(int, lines[1][1:]), strict=True))
        return {name: every.get(name, 0) for name in COUNTERS}

    def kill(self) -> None:
        """End whatever still runs here (cgroup-v2.rst, ``cgroup.kill``)."""
        (self.cgroup / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + _STOP_SECONDS
        while "populated 1" in (self.cgroup / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{self.cgroup}: processes survive a kill")
            time.sleep(0.005)

    def _popen(self, argv: Sequence[str], *, stdout: int) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C reaches the demo, which ends them in order.
        return subprocess.Popen(
            self.argv(argv),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if stdout != subprocess.PIPE else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def _story(argv: Sequence[str], status: int, said: str) -> str:
    last = said.strip().splitlines()[-1:] or ["it said nothing"]
    return f"{' '.join(argv[:8])}: exit status {status}: {last[0]}"
