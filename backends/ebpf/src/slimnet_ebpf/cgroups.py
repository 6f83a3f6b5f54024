# SPDX-License-Identifier: Apache-2.0
"""cgroup v2 directories, by path and by id.

The id of a cgroup is the inode number of its directory, and the file handle
by which the kernel finds it again (kernfs, Linux 5.5 and newer).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from slimnet.exceptions import CapabilityMissing

__all__ = [
    "descendants",
    "find_mount",
    "is_cgroup",
    "number",
    "opened",
    "path_of",
    "populated",
    "remove",
]

_FILEID_KERNFS = 0xFE


class _Handle(ctypes.Structure):
    """struct file_handle of a kernfs node, open_by_handle_at(2)."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("id", ctypes.c_uint32 * 2),
    )


def find_mount() -> Path:
    """Where cgroup v2 is mounted, hybrid hierarchies included.

    Raises:
        CapabilityMissing: nowhere.
    """
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise CapabilityMissing(
        "no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a cgroup's directory while the block lasts."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def is_cgroup(path: Path) -> bool:
    """Whether a directory is, or made there would be, a cgroup v2."""
    there = next(one for one in (path, *path.parents) if one.exists())
    return (there / "cgroup.controllers").exists()


def number(path: Path) -> int:
    """The id of a cgroup."""
    return path.stat().st_ino


def path_of(root: Path, identity: int) -> Path | None:
    """The directory of a cgroup by its id, ``None`` when it is gone.

    Args:
        root: a directory of the same mount.
        identity: the cgroup's id.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = _Handle(8, _FILEID_KERNFS, (identity & 0xFFFFFFFF, identity >> 32))
    mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY | os.O_CLOEXEC)
        if fd < 0:
            code = ctypes.get_errno()
            if code in (errno.ESTALE, errno.ENOENT):
                return None
            raise OSError(code, os.strerror(code), str(root))
        try:
            return Path(f"/proc/self/fd/{fd}").readlink()
        finally:
            os.close(fd)
    finally:
        os.close(mount)


def populated(path: Path) -> bool:
    """Whether it or any cgroup below it has processes."""
    events = (path / "cgroup.events").read_text().split()
    return events[events.index("populated") + 1] == "1"


def descendants(path: Path) -> Iterator[Path]:
    """The cgroups below, and itself last."""
    for directory, _, _ in os.walk(path, topdown=False):
        yield Path(directory)


def remove(path: Path) -> bool:
    """Remove it and the empty ones below; whether it could be: the kernel
    refuses, atomically, when there is a process in it."""
    try:
        for directory in descendants(path):
            directory.rmdir()
    except FileNotFoundError:
        return not path.exists()
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise
    return True
