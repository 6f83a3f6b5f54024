# SPDX-License-Identifier: Apache-2.0
"""Directories as locks (flock(2)), so that no lock file stays behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["hold", "remove_if_idle"]


@contextlib.contextmanager
def hold(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the directory, which is made where it is missing, for the block."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if not _is_still(directory, descriptor):
                continue  # whoever held it before has removed it
            yield
            return
        finally:
            os.close(descriptor)


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
