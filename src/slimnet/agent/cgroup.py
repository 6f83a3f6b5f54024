# SPDX-License-Identifier: Apache-2.0
"""An endpoint's cgroup v2 directory: is it there, who is in it, away with it
(Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from slimnet.agent.site import cgroup_mount
from slimnet.exceptions import InUse, InvalidValue

__all__ = ["check", "kill", "of_process", "populated", "remove"]


def populated(cgroup: Path) -> bool:
    """Whether it, or one below it, has processes."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except OSError:
        return False


def check(cgroup: Path) -> None:
    """A cgroup that a user named for an endpoint.

    Raises:
        InvalidValue: it is no cgroup v2 directory, or the root.
    """
    mount = cgroup_mount()
    if not cgroup.is_relative_to(mount) or cgroup == mount or ".." in cgroup.parts:
        raise InvalidValue("endpoint.cgroup", f"a directory below {mount}", str(cgroup))
    if not (cgroup / "cgroup.procs").exists():
        raise InvalidValue("endpoint.cgroup", "a cgroup v2 directory that exists", str(cgroup))


def kill(cgroup: Path, timeout: float = 5.0) -> None:
    """End every process in it and below.

    Raises:
        InUse: some are still there after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    with contextlib.suppress(FileNotFoundError):
        (cgroup / "cgroup.kill").write_text("1")
    while populated(cgroup):
        if time.monotonic() > deadline:
            raise InUse(f"cgroup {cgroup}: processes do not end")
        time.sleep(0.005)


def remove(cgroup: Path) -> None:
    """Remove it and those below, where they are empty; no error where not."""
    with contextlib.suppress(OSError):
        for below in sorted(cgroup.rglob("*/"), key=lambda each: len(each.parts), reverse=True):
            below.rmdir()
        cgroup.rmdir()


def of_process(pid: int) -> Path | None:
    """The cgroup v2 directory of a process; ``None`` when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    below = next((line[4:] for line in lines if line.startswith("0::/")), None)
    return None if below is None else cgroup_mount() / below.removesuffix(" (deleted)")
