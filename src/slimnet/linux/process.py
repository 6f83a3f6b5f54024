# SPDX-License-Identifier: Apache-2.0
"""Processes, by more than their number: the kernel gives that to somebody else.

A mark, ``<pid> <start>``, names a process and no other of the same boot: when it started
is field 22 of proc_pid_stat(5), in ticks since then.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["alive", "mark", "started"]


def started(pid: int) -> int:
    """When a process started, in ticks since boot; 0: it does not run, though it may not
    have been waited for yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
    except OSError:
        return 0
    # Field 2, the program's name, is in parentheses and may hold some itself.
    state, *rest = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(rest[18])


def mark(pid: int) -> str:
    """The mark of a process that runs."""
    return f"{pid} {started(pid)}"


def alive(text: str) -> int | None:
    """The process id in a mark, as :func:`mark` made it; ``None`` where that process
    is no more, or the text is no mark."""
    try:
        pid, start = map(int, text.split())
    except ValueError:
        return None
    return pid if start and started(pid) == start else None
