# SPDX-License-Identifier: Apache-2.0
"""What the data path tells, out of the ring buffer."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import threading
import time
from typing import Any

from slimnet.answers import events
from slimnet.exceptions import BackendError
from slimnet.model import Event
from slimnet_ebpf.libbpf import SampleFunction, check, library
from slimnet_ebpf.maps import Map

__all__ = ["Events"]

# So many events one read() hands out, so that it comes back also in a flood.
_AT_ONCE = 4096


class Events:
    """Reads the events of one instance; one reader at a time.

    Args:
        ring: the ring buffer of events.
    """

    def __init__(self, ring: Map) -> None:
        self._reading = threading.Lock()
        self._raw: list[bytes] = []
        self._told: list[Event] = []
        self._sample = SampleFunction(self._take)  # has to live as long as the ring
        self._ring: int | None = library().ring_buffer__new(ring.fd, self._sample, None, None)
        if self._ring is None:
            check(None, "open the ring buffer of events")
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(library().ring_buffer__epoll_fd(self._ring), select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)

    def read(self, timeout: float) -> list[Event]:
        """See :meth:`slimnet.abc.Backend.events`."""
        with self._reading:
            deadline = time.monotonic() + timeout
            while True:
                if self._ring is None:
                    raise BackendError("the backend is closed")
                found = self._drain()
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                self._poll.poll(left)
                if self._woken():
                    return self._drain()

    def tell(self, events: list[Event]) -> None:
        """What did not come from the data path, to whoever reads next."""
        self._told += events
        if events and self._ring is not None:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Ends a :meth:`read` in another thread. Closing twice is no error."""
        if self._ring is None:
            return
        os.eventfd_write(self._wake, 1)
        with self._reading:
            if self._ring is not None:
                library().ring_buffer__free(self._ring)
                self._ring = None
                self._poll.close()
                os.close(self._wake)

    def _woken(self) -> bool:
        try:
            return os.eventfd_read(self._wake) > 0
        except BlockingIOError:
            return False

    def _take(self, _: Any, data: int, size: int) -> int:
        self._raw.append(ctypes.string_at(data, size))
        return -errno.EAGAIN if len(self._raw) >= _AT_ONCE else 0

    def _drain(self) -> list[Event]:
        result = library().ring_buffer__consume(self._ring)
        if result != -errno.EAGAIN:
            check(result, "read the ring of events")
        raw, self._raw[:] = list(self._raw), []
        told, self._told = self._told, []
        return [*told, *events(raw)]
