# SPDX-License-Identifier: Apache-2.0
"""What the data path tells, out of the ring buffer; and the house kept meanwhile."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

from netaddr import IPAddress

from slimnet import contract
from slimnet.exceptions import BackendError
from slimnet.model import Direction, Event, EventKind, Reason
from slimnet_ebpf.layout import Layout, from_bytes16
from slimnet_ebpf.libbpf import BpfError, SampleFunction, check, library
from slimnet_ebpf.maps import Map
from slimnet_ebpf.sockets import Diagnosis

__all__ = ["Events"]

_log = logging.getLogger(__name__)

_EVENT = Layout(contract.slim_event)

_KINDS = {
    contract.SLIM_EVENT_OPENED: EventKind.OPENED,
    contract.SLIM_EVENT_REFUSED: EventKind.REFUSED,
    contract.SLIM_EVENT_CLOSED: EventKind.CLOSED,
    contract.SLIM_EVENT_DESTROY: EventKind.REFUSED,
}

_HOUSEKEEPING = 10.0


class Events:
    """Reads the events of one instance; one reader at a time.

    Args:
        maps: the contract's maps by number.
        sockets: to destroy what the data path asks for.
        housekeeping: called every ten seconds or so, as long as somebody reads.
    """

    def __init__(
        self, maps: dict[int, Map], sockets: Diagnosis, housekeeping: Callable[[], None]
    ) -> None:
        self._maps = maps
        self._sockets = sockets
        self._housekeeping = housekeeping
        self._kept = time.monotonic()
        self._reading = threading.Lock()
        self._raw: list[bytes] = []
        self._told: list[Event] = []
        self._sample = SampleFunction(self._take)  # must live as long as the ring
        ring = library().ring_buffer__new(
            maps[contract.SLIM_MAP_EVENT].fd, self._sample, None, None
        )
        if ring is None:
            check(None, "open the ring buffer of events")
        self._ring: int | None = ring
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(library().ring_buffer__epoll_fd(ring), select.EPOLLIN)
        self._poll.register(self._wake, select.EPOLLIN)

    def read(self, timeout: float) -> list[Event]:
        """See :meth:`slimnet.abc.Backend.events`."""
        with self._reading:
            deadline = time.monotonic() + timeout
            while True:
                if self._ring is None:
                    raise BackendError("the backend is closed")
                found = self._drain()
                now = time.monotonic()
                if now - self._kept > _HOUSEKEEPING:
                    self._kept = now
                    self._housekeeping()
                left = deadline - now
                if found or left <= 0:
                    return found
                self._poll.poll(min(left, _HOUSEKEEPING))
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
        return 0

    def _drain(self) -> list[Event]:
        check(library().ring_buffer__consume(self._ring), "read the ring buffer of events")
        raw, self._raw[:] = list(self._raw), []
        records = [_EVENT.unpack(data[: _EVENT.size]) for data in raw]
        doomed = {
            record["cookie"]
            for record in records
            if record["kind"] == contract.SLIM_EVENT_DESTROY and record["cookie"]
        }
        if doomed:
            self._destroy(doomed)
        epoch = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        told, self._told = self._told, []
        return told + [_to_event(record, epoch) for record in records if record["kind"] in _KINDS]

    def _destroy(self, cookies: set[int]) -> None:
        try:
            self._sockets.destroy(one for one in self._sockets.sockets() if one.cookie in cookies)
        except BpfError as error:
            _log.error("a connection that must not be stays open: %s", error)


def _to_event(record: dict[str, Any], epoch: int) -> Event:
    def end(which: str) -> tuple[IPAddress, int]:
        return from_bytes16(record[which]), record[f"{which}_port"]

    return Event(
        kind=_KINDS[record["kind"]],
        time=(record["time"] + epoch) / 1e9,
        endpoint=record["endpoint"],
        peer_endpoint=record["peer_endpoint"],
        source=end("source"),
        destination=end("destination"),
        protocol=record["protocol"],
        direction=Direction(record["direction"]),
        reason=Reason(record["reason"]),
        rule=record["rule"],
        sent=record["sent"],
        received=record["received"],
        duration=record["duration"] / 1e9,
    )
