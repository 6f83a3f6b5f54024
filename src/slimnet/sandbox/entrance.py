# SPDX-License-Identifier: Apache-2.0
"""Into a sandbox that runs: the namespaces of its init, and what that was held to.

Nothing inside can pass for an init: it is the first process of a PID namespace right below
the caller's, and who could make one of these is outside.
"""
# pathlib would be start-up time of `slimnet run`:
# ruff: noqa: PTH123

from __future__ import annotations

import errno
import os
import signal

from slimnet.linux import libc

__all__ = ["enter"]

_NAMESPACES = (
    libc.CLONE_NEWPID
    | libc.CLONE_NEWNS
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)


def enter(cgroup: str) -> tuple[bool, bool]:
    """Move the calling process, and its children in the case of the PID namespace, to the
    namespaces of the oldest sandbox whose init is in ``cgroup``. Its working directory is
    ``/`` then.

    Returns:
        Whether a system call filter is on it, and whether set-user-id programs give it
        nothing.

    Raises:
        ProcessLookupError: there is none, or it has just ended.
    """
    from slimnet.linux import process  # noqa: PLC0415  # pathlib, which `run` does without

    found = []
    for pid in _members(cgroup):
        try:
            handle = os.pidfd_open(pid)
            status = _status(pid)
        except OSError:
            continue
        if status["NSpid"].split()[1:] == ["1"]:
            found.append((process.started(pid), pid, handle, status))
        else:
            os.close(handle)
    if not found:
        raise ProcessLookupError(errno.ESRCH, "it has no sandbox")
    _, pid, handle, status = min(found, key=lambda each: each[0])
    # The number was the same process all the time, and one of this cgroup.
    if pid not in _members(cgroup):
        raise ProcessLookupError(errno.ESRCH, "its sandbox has ended")
    signal.pidfd_send_signal(handle, 0)
    libc.setns(handle, _NAMESPACES)
    for _, _, each, _ in found:
        os.close(each)
    return status["Seccomp"].strip() == "2", status["NoNewPrivs"].strip() == "1"


def _members(cgroup: str) -> list[int]:
    with open(f"{cgroup}/cgroup.procs") as lines:
        return [int(line) for line in lines]


def _status(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status", errors="surrogateescape") as lines:
        return {key: value for key, _, value in (line.partition(":") for line in lines)}
