# SPDX-License-Identifier: Apache-2.0
"""Control groups, version 2 (kernel: Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["mounted", "populated", "remove"]


def mounted() -> Path | None:
    """Where the cgroup v2 hierarchy is mounted; hybrid machines have it below another."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    return None


def populated(cgroup: Path) -> bool:
    """Whether it, or one below it, has processes. One that is gone has none."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text().splitlines()
    except FileNotFoundError:
        return False


def remove(cgroup: Path) -> None:
    """Remove it and those below it.

    Raises:
        OSError: EBUSY, one of them has processes.
    """
    if cgroup.is_dir():
        for child in sorted(path for path in cgroup.iterdir() if path.is_dir()):
            remove(child)
        with contextlib.suppress(FileNotFoundError):
            cgroup.rmdir()
