# SPDX-License-Identifier: Apache-2.0
"""Directories as locks (flock(2)), so that no lock file stays behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from slimnet.trusted import open_trusted

__all__ = ["hold", "holder", "remove_if_idle"]


@contextlib.contextmanager
def hold(directory: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold the directory, which is made where it is missing, for the block. The
    kernel lets go of it with the process, however that ends.

    Args:
        directory: what to hold.
        shared: others may hold it too, if they share it.
        wait: for who holds it.

    Raises:
        BlockingIOError: somebody holds it, and ``wait`` is false.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        try:
            descriptor = open_trusted(directory, mode=0o755)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, how)
            if not _is_still(directory, descriptor):
                continue  # whoever held it before has removed it
            yield
            return
        finally:
            os.close(descriptor)


def holder(directory: Path) -> int | None:
    """The process that holds the directory (proc_locks(5)); ``None`` where the
    kernel does not say: it has let go, or is of a PID namespace apart from ours."""
    try:
        status = directory.stat()
    except FileNotFoundError:
        return None
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        # 1: FLOCK  ADVISORY  WRITE 4711 00:19:8154 0 EOF; waiting ones begin "1: ->".
        _, kind, _, _, pid, where, *_ = line.split()
        if kind == "FLOCK" and where == wanted:
            return int(pid)
    return None


def remove_if_idle(directory: Path, *also: Path) -> None:
    """Remove the directory and ``also``, as far as they are empty, unless
    somebody holds it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for each in (*also, directory):
                with contextlib.suppress(OSError):
                    each.rmdir()
        finally:
            os.close(descriptor)


def _is_still(directory: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(directory.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
