# SPDX-License-Identifier: Apache-2.0
"""Reads a backend's events and tends it all the time, as the agent does."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from slimnet.exceptions import BackendError

__all__ = ["Watcher"]

_log = logging.getLogger(__name__)


class Watcher:
    """Keeps the events until a test takes them."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._events: list[Any] = []
        self._changed = threading.Condition()
        self._trouble = ""
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._tend, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                events = self._backend.events(1.0)
            except BackendError as error:
                if "closed" in str(error):
                    return
                _log.exception("reading events failed")
                time.sleep(1)
                continue
            with self._changed:
                self._events += events
                self._changed.notify_all()

    def _tend(self) -> None:
        while True:
            try:
                self._backend.tend()
            except BackendError as error:
                if "closed" in str(error):
                    return
                self._trouble = str(error)
            else:
                self._trouble = ""
            time.sleep(0.05)

    def trouble(self) -> str:
        """Why the last housekeeping failed; empty when it did not."""
        return self._trouble

    def take(self, count: int, timeout: float) -> list[Any]:
        """The next ``count`` events; fewer where no more come in time."""
        until = time.monotonic() + timeout
        with self._changed:
            while len(self._events) < count and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            found, self._events = self._events[:count], self._events[count:]
        return found

    def forget(self) -> None:
        """Drop what came until now."""
        time.sleep(0.05)
        with self._changed:
            self._events.clear()
