# SPDX-License-Identifier: Apache-2.0
"""Processes, by more than their number: the kernel gives that to somebody else.

A mark, ``<pid> <start>``, names a process and no other of the same boot: when it started
is field 22 of proc_pid_stat(5), in ticks since then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["alive", "ancestors", "holder", "mark", "sockets", "started"]


def _stat(pid: int) -> list[str]:
    """The fields of a process behind its name; none: it is not there."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
    except OSError:
        return []
    # Field 2, the program's name, is in parentheses and may hold some itself.
    return stat.rpartition(")")[2].split()


def started(pid: int) -> int:
    """When a process started, in ticks since boot; 0: it does not run, though it may not
    have been waited for yet."""
    match _stat(pid):
        case [state, *rest] if state not in "ZX":
            return int(rest[18])
    return 0


def ancestors(pid: int) -> Iterator[int]:
    """Who started a process, who started that one, and so on."""
    while len(fields := _stat(pid)) > 1 and (pid := int(fields[1])):
        yield pid


def mark(pid: int) -> str:
    """The mark of a process that runs."""
    return f"{pid} {started(pid)}"


def holder(inode: int) -> str:
    """Who has a socket open, as ``nginx (process 812)``: one of those that do; empty where
    nobody can be seen to."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if inode in sockets(int(process.name)):
                name = (process / "comm").read_text(errors="replace").strip()
                return f"{name} (process {process.name})"
    return ""


def sockets(pid: int) -> set[int]:
    """The inode numbers of the sockets that a process has open, as far as can be seen."""
    found = set()
    with contextlib.suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            kind, _, inode = _target(each).partition(":")
            if kind == "socket":
                found.add(int(inode.strip("[]")))
    return found


def _target(file: Path) -> str:
    try:
        return os.readlink(file)  # noqa: PTH115  # what a Path makes of it costs more
    except OSError:
        return ""


def alive(text: str) -> int | None:
    """The process id in a mark, as :func:`mark` made it; ``None`` where that process
    is no more, or the text is no mark."""
    try:
        pid, start = map(int, text.split())
    except ValueError:
        return None
    return pid if start and started(pid) == start else None
