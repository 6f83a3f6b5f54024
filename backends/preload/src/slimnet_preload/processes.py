# SPDX-License-Identifier: Apache-2.0
"""Which processes are an endpoint's, where no cgroup says so: those whose environment names its
socket (proc_pid_environ(5)), and those that talk to it. A server that writes a title over its
environment, as PostgreSQL does, is known by the latter only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from slimnet.exceptions import InUse

__all__ = ["SOCKET", "kill", "populated", "processes"]

#: SLIM_SHIM_SOCKET of preload/shim.h.
SOCKET = "SLIMNET_SOCKET"
_CONNECTED = "03"  # SS_CONNECTED (include/uapi/linux/net.h), as /proc/net/unix has it


def processes(path: Path) -> list[int]:
    """Those whose environment names a socket."""
    wanted = os.fsencode(f"{SOCKET}={path}")
    return [pid for pid, variables in _environments() if wanted in variables]


def populated(path: Path, router: int) -> bool:
    """Whether an endpoint has processes.

    Args:
        path: of its socket.
        router: the process that listens there, in whose network namespace the socket is.
    """
    return _is_connected(path, router) or bool(processes(path))


def kill(path: Path, timeout: float = 5.0) -> None:
    """End the processes whose environment names a socket, and those that they start meanwhile.

    Args:
        path: of the socket.
        timeout: seconds to wait for their end.

    Raises:
        InUse: some are still there after ``timeout``.
    """
    deadline = time.monotonic() + timeout
    while found := processes(path):
        if time.monotonic() > deadline:
            raise InUse(f"processes do not end: {', '.join(map(str, found))}")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def sockets(pid: int) -> frozenset[int]:
    """Inodes of the sockets that a process has; none of one that has ended."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since
                kind, _, inode = str(descriptor.readlink()).partition(":[")
                if kind == "socket":
                    found.add(int(inode.rstrip("]")))
    return frozenset(found)


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Of the processes that may be seen; one that has ended, and was not waited for, has none."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(directory.name), (directory / "environ").read_bytes().split(b"\0")


def _is_connected(path: Path, router: int) -> bool:
    """A socket that was accepted has the path of the one that listens."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{router}/net/unix").read_text(errors="replace").splitlines():
            words = line.split(maxsplit=7)
            if words[-1] == str(path) and words[5] == _CONNECTED:
                return True
    return False
