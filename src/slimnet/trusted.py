# SPDX-License-Identifier: Apache-2.0
"""Directories that nobody else could have made first, or can change."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from slimnet.exceptions import CapabilityMissing

__all__ = ["make_trusted", "open_trusted"]

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_LINKS_MAX = 40  # as path_resolution(7)


def open_trusted(path: Path, *, mode: int | None = None) -> int:
    """Open a directory that only root (and this user) could have made and can write to.

    Every directory on the way is opened and looked at before the next, so that none
    can be changed for another in between. One that others may write to is in order on
    the way if it has the sticky bit, as /tmp has: what lies in it then is its owner's.

    Args:
        path: of the directory.
        mode: make it, with those above it, where it is missing.

    Raises:
        CapabilityMissing: one is another's, or others may write to it; says which.
        FileNotFoundError: it is not there, and was not to be made.
    """
    return _open(path, path.absolute(), mode, _LINKS_MAX)


def make_trusted(path: Path, mode: int = 0o755) -> None:
    """Like :func:`open_trusted`, and closes it again: the directory is there, and trusted."""
    os.close(open_trusted(path, mode=mode))


def _open(wanted: Path, path: Path, mode: int | None, links: int) -> int:
    parts = path.parts[1:]
    fd = os.open("/", _FLAGS)
    try:
        for index, part in enumerate(parts):
            at = Path("/", *parts[: index + 1])
            if mode is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, mode, dir_fd=fd)
            found = os.stat(part, dir_fd=fd, follow_symlinks=False)
            _check_owner(wanted, at, found)
            if stat.S_ISLNK(found.st_mode) and links:
                target = Path(at.parent, os.readlink(part, dir_fd=fd), *parts[index + 1 :])
                return _open(wanted, target, mode, links - 1)
            below = os.open(part, _FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
            _check(wanted, at, os.fstat(fd), last=index == len(parts) - 1)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(wanted: Path, at: Path, found: os.stat_result, *, last: bool) -> None:
    _check_owner(wanted, at, found)
    others = found.st_mode & stat.S_IWOTH or (
        found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid())
    )
    shared = found.st_mode & stat.S_ISVTX
    if others and (last or not shared):
        # What everybody uses stays everybody's: who would take our word broke the machine.
        mend = f"take a directory of its own in {at}" if shared else f"chmod go-w {at}"
        raise CapabilityMissing(
            f"{wanted} is not safe: others may write to {at}"
            f" (mode {stat.S_IMODE(found.st_mode):04o}): {mend}"
        )


def _check_owner(wanted: Path, at: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise CapabilityMissing(
            f"{wanted} is not safe: {at} belongs to user {found.st_uid}: see what that user"
            " put there, and remove it or give it to root"
        )
