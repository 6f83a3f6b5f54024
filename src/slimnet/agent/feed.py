# SPDX-License-Identifier: Apache-2.0
"""Events of the data path, to everybody who asks for them."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from slimnet.abc import Backend
from slimnet.model import Event, EventKind

__all__ = ["Feed"]

_log = logging.getLogger(__name__)
#: Events that a slow reader may lag behind before it loses some.
_ROOM = 8192


class Feed:
    """Reads the backend's events in a thread of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._readers: set[queue.Queue[Event]] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        #: The last refusals, for status and bug reports.
        self.refusals: deque[Event] = deque(maxlen=256)
        self._thread = threading.Thread(target=self._run, name="slimnet-events", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._backend.observe(enabled=False)
        self._thread.start()

    def close(self) -> None:
        """Stop reading; a second time is no error."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    @contextmanager
    def reader(self) -> Iterator[queue.Queue[Event]]:
        """A queue that gets every event while the block lasts."""
        mine: queue.Queue[Event] = queue.Queue(_ROOM)
        with self._lock:
            self._readers.add(mine)
            if len(self._readers) == 1:
                self._backend.observe(enabled=True)
        try:
            yield mine
        finally:
            with self._lock:
                self._readers.discard(mine)
                if not self._readers and not self._stop.is_set():
                    self._backend.observe(enabled=False)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                events = self._backend.events(0.5)
            except Exception:  # noqa: BLE001  # whatever a plugin does
                _log.exception("reading events failed")
                self._stop.wait(1)
                continue
            if events:
                self._hand_out(events)

    def _hand_out(self, events: list[Event]) -> None:
        self.refusals.extend(each for each in events if each.kind is EventKind.REFUSED)
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            for event in events:
                try:
                    reader.put_nowait(event)
                except queue.Full:  # a slow reader loses events, nobody waits for it
                    break
