# SPDX-License-Identifier: Apache-2.0
"""Who holds an ephemeral endpoint: files ``<run>/holders/<endpoint id>``, each
with a process's id and start time, since ids are used again."""

from __future__ import annotations

from pathlib import Path

__all__ = ["Holders"]


class Holders:
    """The holders of one host's endpoints."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, endpoint: int, pid: int) -> None:
        """From now on the endpoint goes with this process."""
        self._file(endpoint).write_text(f"{pid} {_started(pid)}\n")

    def lives(self, endpoint: int) -> bool | None:
        """Whether its holder runs; ``None`` when the endpoint has none."""
        try:
            pid, started = self._file(endpoint).read_text().split()
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return False
        return started != "0" and str(_started(int(pid))) == started

    def drop(self, endpoint: int) -> None:
        """The endpoint is gone; no error when it had no holder."""
        self._file(endpoint).unlink(missing_ok=True)

    def _file(self, endpoint: int) -> Path:
        return self._directory / str(endpoint)


def _started(pid: int) -> int:
    """When a process started, in ticks since boot (proc_pid_stat(5)); 0: it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *rest = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(rest[18])
