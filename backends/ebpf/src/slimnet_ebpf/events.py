# SPDX-License-Identifier: Apache-2.0
"""What the data path tells, out of the ring buffer; and the house kept meanwhile."""

from __future__ import annotations

import ctypes
import errno
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
from slimnet_ebpf.sockets import PRESENT, Diagnosis, Socket

__all__ = ["Events"]

_log = logging.getLogger(__name__)

_EVENT = Layout(contract.slim_event)
_SOCKET = Layout(contract.slim_socket)

_KINDS = {
    contract.SLIM_EVENT_OPENED: EventKind.OPENED,
    contract.SLIM_EVENT_REFUSED: EventKind.REFUSED,
    contract.SLIM_EVENT_CLOSED: EventKind.CLOSED,
}

_SWEEPING = 2.0
_HOUSEKEEPING = 10.0
# What a flood of events holds up the rest of this for.
_AT_ONCE = 4096
# Looking at all sockets takes at most a fifth of one processor.
_BREATH = 4
_RETRY = 1.0


class Events:
    """Reads the events of one instance; one reader at a time.

    Args:
        maps: the contract's maps by number.
        sockets: to destroy what the data path asks for.
        housekeeping: called every two seconds or so, as long as somebody reads; with
            true every ten.
    """

    def __init__(
        self, maps: dict[int, Map], sockets: Diagnosis, housekeeping: Callable[[bool], None]
    ) -> None:
        self._maps = maps
        self._sockets = sockets
        self._housekeeping = housekeeping
        self._kept = self._swept = time.monotonic()
        self._reading = threading.Lock()
        self._raw: list[bytes] = []
        self._told: list[Event] = []
        # Sockets may have been doomed while nobody read.
        self._doomed = True
        self._look_at = 0.0
        # These must live as long as the rings.
        self._samples = SampleFunction(self._take_doom), SampleFunction(self._take)
        ring = library().ring_buffer__new(
            maps[contract.SLIM_MAP_DOOM].fd, self._samples[0], None, None
        )
        if ring is None:
            check(None, "open the ring buffer of doomed sockets")
        self._ring: int | None = ring
        check(
            library().ring_buffer__add(
                ring, maps[contract.SLIM_MAP_EVENT].fd, self._samples[1], None
            ),
            "open the ring buffer of events",
        )
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
                if self._doomed and now >= self._look_at:
                    self._destroy()
                everything = now - self._kept > _HOUSEKEEPING
                if everything or now - self._swept > _SWEEPING:
                    self._swept = now
                    self._kept = now if everything else self._kept
                    self._housekeeping(everything)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                next_look = self._look_at - now if self._doomed else left
                self._poll.poll(max(0, min(left, next_look, _SWEEPING)))
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

    def _take_doom(self, _: Any, _data: int, _size: int) -> int:
        self._doomed = True
        return 0

    def _take(self, _: Any, data: int, size: int) -> int:
        self._raw.append(ctypes.string_at(data, size))
        return -errno.EAGAIN if len(self._raw) >= _AT_ONCE else 0

    def _drain(self) -> list[Event]:
        result = library().ring_buffer__consume(self._ring)
        if result != -errno.EAGAIN:
            check(result, "read the ring buffers")
        raw, self._raw[:] = list(self._raw), []
        records = [_EVENT.unpack(data[: _EVENT.size]) for data in raw]
        epoch = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        told, self._told = self._told, []
        return told + [_to_event(record, epoch) for record in records if record["kind"] in _KINDS]

    def _destroy(self) -> None:
        """Destroy every socket that the data path has doomed (sockops.h)."""
        started = time.monotonic()
        self._doomed = False
        try:
            self._sockets.destroy(filter(_is_doomed, self._sockets.sockets(states=PRESENT)))
        except BpfError as error:
            _log.error("a socket that must not be, and is cut off, stays open: %s", error)
            self._doomed = True
            self._look_at = started + _RETRY
            return
        now = time.monotonic()
        self._look_at = now + _BREATH * (now - started)


def _is_doomed(one: Socket) -> bool:
    return one.interface == contract.SLIM_NOWHERE or bool(
        one.storage and _SOCKET.unpack(one.storage)["flags"] & contract.SLIM_SOCKET_DOOMED
    )


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
        omitted=record["omitted"],
    )
