# SPDX-License-Identifier: Apache-2.0
"""Who holds an ephemeral endpoint: files ``<run>/holders/<endpoint id>``, each
with the mark of a process (:mod:`slimnet.linux.process`)."""

from __future__ import annotations

from pathlib import Path

from slimnet.linux import process

__all__ = ["Holders"]


class Holders:
    """The holders of one host's endpoints."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, endpoint: int, pid: int) -> None:
        """From now on the endpoint goes with this process."""
        self._file(endpoint).write_text(f"{process.mark(pid)}\n")

    def lives(self, endpoint: int) -> bool | None:
        """Whether its holder runs; ``None`` when the endpoint has none."""
        try:
            mark = self._file(endpoint).read_text()
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return False
        return process.alive(mark) is not None

    def drop(self, endpoint: int) -> None:
        """The endpoint is gone; no error when it had no holder."""
        self._file(endpoint).unlink(missing_ok=True)

    def _file(self, endpoint: int) -> Path:
        return self._directory / str(endpoint)
