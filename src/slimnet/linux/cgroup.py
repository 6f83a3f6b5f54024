# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2 (cgroups(7), Documentation/admin-guide/cgroup-v2.rst).

A cgroup is a directory of the file system ``cgroup2``. Its id is that directory's
inode number, by which the kernel finds it again (kernfs, Linux 5.5), as
``bpf_get_current_cgroup_id()`` and INET_DIAG_CGROUP_ID say it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from slimnet.exceptions import CapabilityMissing, InUse, InvalidValue
from slimnet.linux import libc, mounts

__all__ = [
    "check",
    "descendants",
    "is_cgroup",
    "kill",
    "mount",
    "mounted",
    "number",
    "of_process",
    "opened",
    "path_of",
    "populated",
    "remove",
]

_KIND = "cgroup2"
# open_by_handle_at(2): the handle of a kernfs node is its 64-bit id
# (include/linux/exportfs.h, FILEID_KERNFS).
_FILEID_KERNFS = 0xFE
# What the kernel says of a cgroup that was removed: to a path, to a handle, and to
# a file of it that was open before.
_GONE = (errno.ENOENT, errno.ESTALE, errno.ENODEV)


def mount() -> Path:
    """Where the hierarchy is mounted: ``/sys/fs/cgroup`` on most machines,
    ``/sys/fs/cgroup/unified`` on hybrid ones, where version 1 has the controllers.

    Raises:
        CapabilityMissing: nowhere.
    """
    return Path(_hierarchy().point)


def mounted() -> bool:
    """Whether there is one: not on every machine."""
    return bool(mounts.in_sight(_KIND))


def _hierarchy() -> mounts.Mount:
    found = mounts.in_sight(_KIND)
    if not found:
        raise CapabilityMissing("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
    # A container's runtime may show it a part of the hierarchy beside the whole.
    return next((each for each in found if each.root == "/"), found[0])


def check(cgroup: Path, field: str) -> None:
    """A cgroup that a user named.

    Args:
        cgroup: what was named.
        field: where, for the message.

    Raises:
        InvalidValue: it is no cgroup v2 directory, or the root.
        CapabilityMissing: cgroup v2 is not mounted.
    """
    top = mount()
    if not cgroup.is_relative_to(top) or cgroup == top or ".." in cgroup.parts:
        raise InvalidValue(field, f"a directory below {top}", str(cgroup))
    if not (cgroup / "cgroup.procs").exists():
        raise InvalidValue(field, "a cgroup v2 directory that exists", str(cgroup))


def is_cgroup(path: Path) -> bool:
    """Whether a directory is, or made there would be, a cgroup v2."""
    there = next(one for one in (path, *path.parents) if one.exists())
    return (there / "cgroup.controllers").exists()


def number(cgroup: Path) -> int:
    """The id of a cgroup.

    Raises:
        FileNotFoundError: it is gone.
    """
    return cgroup.stat().st_ino


@contextlib.contextmanager
def opened(cgroup: Path) -> Iterator[int]:
    """A descriptor of a cgroup's directory while the block lasts.

    Raises:
        FileNotFoundError: it is gone.
    """
    descriptor = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def path_of(top: Path, identity: int) -> Path | None:
    """The directory of a cgroup by its id; ``None`` when it is gone. Needs
    CAP_DAC_READ_SEARCH, as open_by_handle_at(2) does.

    Args:
        top: a directory of the same mount.
        identity: the cgroup's id.
    """
    with opened(top) as there:
        try:
            handle = identity.to_bytes(8, sys.byteorder)
            descriptor = libc.open_by_handle_at(there, _FILEID_KERNFS, handle)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    finally:
        os.close(descriptor)


def of_process(pid: int) -> Path | None:
    """The directory of a process's cgroup; ``None`` when the process has ended.

    Where only a part of the hierarchy is mounted, that of a process outside of it is a
    path that leads out of the mount by ``..``.
    """
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    # cgroups(7), /proc/pid/cgroup: version 2's line has id 0 and no controllers.
    place = next((line[3:] for line in lines if line.startswith("0::/")), None)
    if place is None:
        return None
    place, top = place.removesuffix(" (deleted)"), _hierarchy()
    # relpath would take the ".." away that a place outside of our cgroup namespace begins with.
    below = place[1:] if top.root == "/" else os.path.relpath(place, top.root)
    return Path(top.point) / below


def populated(cgroup: Path) -> bool:
    """Whether it, or one below it, has processes (``cgroup.events``). One that is
    gone has none; the root, which has no such file, is never asked."""
    try:
        lines = (cgroup / "cgroup.events").read_text().splitlines()
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return "populated 1" in lines


def kill(cgroup: Path, timeout: float = 5.0) -> None:
    """End every process in it and below (``cgroup.kill``, Linux 5.14): none can fork
    its way out. Killing in one that is gone is no error.

    Args:
        cgroup: its directory.
        timeout: seconds to wait for their end.

    Raises:
        InUse: some are still there after ``timeout``.
    """
    deadline = time.monotonic() + timeout
    with contextlib.suppress(FileNotFoundError):
        (cgroup / "cgroup.kill").write_text("1")
    while populated(cgroup):
        if time.monotonic() > deadline:
            raise InUse(f"cgroup {cgroup}: processes do not end")
        time.sleep(0.005)


def descendants(cgroup: Path) -> Iterator[Path]:
    """The cgroups below, each before the one that it is in, and itself last."""
    for directory, _, _ in os.walk(cgroup, topdown=False):
        yield Path(directory)


def remove(cgroup: Path) -> bool:
    """Remove it and those below it; whether it is gone. The kernel refuses, atomically,
    to remove one with a process in it, and those above it stay with it.

    Raises:
        OSError: the kernel refused for another reason.
    """
    for each in descendants(cgroup):
        try:
            each.rmdir()
        except FileNotFoundError:
            continue  # somebody else was quicker
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise
    return True
