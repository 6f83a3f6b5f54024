# SPDX-License-Identifier: Apache-2.0
"""A process that goes on when its starter ends, and is found again safely.

Its pid file holds the process's mark (:mod:`slimnet.linux.process`), so that a number
which the kernel gave to somebody else is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from slimnet.exceptions import SlimnetError
from slimnet.linux import process

__all__ = ["running", "start", "stop"]


def start(argv: Sequence[str], pid_file: Path, log: Path, environment: Mapping[str, str]) -> int:
    """Start ``argv`` in a session of its own, in the calling thread's
    namespaces, its output at the end of ``log``.

    Returns:
        its process id.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE],
    )
    pid_file.write_text(f"{process.mark(pid)}\n")
    return pid


def running(pid_file: Path) -> int | None:
    """The process id, or ``None`` where that process is no more."""
    try:
        return process.alive(pid_file.read_text())
    except (OSError, ValueError):
        return None


def stop(pid_file: Path, *, patience: float = 10.0) -> None:
    """End the process and remove its pid file. Stopping what does not run is no error.

    Args:
        pid_file: of :func:`start`.
        patience: seconds between SIGTERM and SIGKILL; 0: SIGKILL at once.

    Raises:
        SlimnetError: not even SIGKILL ended it.
    """
    pid = running(pid_file)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                # Now that the descriptor holds the process, look again whose it is.
                if running(pid_file) == pid and not _end(descriptor, patience):
                    raise SlimnetError(f"process {pid} of {pid_file} does not end")
            finally:
                os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # where it was started by this process
    pid_file.unlink(missing_ok=True)


def _end(descriptor: int, patience: float) -> bool:
    # One that waits for a busy disk ends when that has answered.
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 60.0)):
        if seconds:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], seconds)[0]:
                return True
    return False
