# SPDX-License-Identifier: Apache-2.0
"""The mount table of the calling thread's mount namespace (proc_pid_mountinfo(5)).

Where something is mounted differs from machine to machine: it is looked for here, by
its type, and no path is taken for granted.
"""
# pathlib and typing would be start-up time:
# ruff: noqa: PTH116,PTH123

from __future__ import annotations

import os

__all__ = ["TABLE", "Mount", "in_sight", "table"]

#: Where the kernel lists the mounts.
TABLE = "/proc/thread-self/mountinfo"

# What would end a field, or begin a comment, is written in octal.
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\043", "#"), ("\\134", "\\"))


class Mount:
    """One line of the table.

    Attributes:
        kind: type of the file system (``cgroup2``).
        point: where it is mounted, as a path of this process.
        root: the directory of the file system that is seen there; ``/`` when all of it is.
        device: ``major:minor`` of the files on it, st_dev of stat(2).
    """

    __slots__ = ("device", "kind", "point", "root")

    def __init__(self, kind: str, point: str, root: str, device: str) -> None:
        self.kind = kind
        self.point = point
        self.root = root
        self.device = device


def table(*kinds: str) -> list[Mount]:
    """The mounts of file systems of these types, of all types when none is named; in
    the kernel's order: what is mounted over another comes after it.

    Raises:
        OSError: /proc is not mounted.
    """
    found = []
    # A path need not be UTF-8.
    with open(TABLE, errors="surrogateescape") as lines:
        for line in lines:
            # 36 35 98:0 /root /point rw master:1 - ext3 /dev/sda1 rw
            before, _, after = line.partition(" - ")
            kind = after.split(" ", 1)[0]
            if not kinds or kind in kinds:
                device, root, point = before.split(" ")[2:5]
                found.append(Mount(kind, _plain(point), _plain(root), device))
    return found


def in_sight(*kinds: str) -> list[Mount]:
    """As :func:`table`, without those that something else is mounted over."""
    return [each for each in table(*kinds) if _device(each.point) == each.device]


def _plain(field: str) -> str:
    for escape, character in _ESCAPES:
        field = field.replace(escape, character)
    return field


def _device(path: str) -> str:
    try:
        number = os.stat(path).st_dev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}"
