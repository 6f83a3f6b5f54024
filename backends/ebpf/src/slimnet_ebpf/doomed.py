# SPDX-License-Identifier: Apache-2.0
"""Destroys the sockets that the data path has doomed (sockops.h). They are inert
already: no packet of theirs passes; what is done here gives their memory back and
tells who waits on them."""

from __future__ import annotations

import logging
import time
from typing import Any

from slimnet.layout import Layout
from slimnet.linux.sock_diag import PRESENT, Socket
from slimnet_ebpf import contract as private
from slimnet_ebpf.libbpf import BpfError, SampleFunction, check, library
from slimnet_ebpf.maps import Map
from slimnet_ebpf.sockets import SocketDiagnosis

__all__ = ["Doomed"]

_log = logging.getLogger(__name__)

_SOCKET = Layout(private.slim_socket)
# Looking at all sockets takes at most a fifth of one processor.
_BREATH = 4
_RETRY = 1.0


class Doomed:
    """The doomed sockets of one instance.

    Args:
        ring: the ring buffer in which the data path says that there are some.
        sockets: to find and destroy them.
    """

    def __init__(self, ring: Map, sockets: SocketDiagnosis) -> None:
        self._sockets = sockets
        # Some may have been doomed while nobody looked.
        self._some = True
        self._look_at = 0.0
        self._sample = SampleFunction(self._take)  # has to live as long as the ring
        self._ring = library().ring_buffer__new(ring.fd, self._sample, None, None)
        if self._ring is None:
            check(None, "open the ring buffer of doomed sockets")

    def destroy(self) -> None:
        """Destroy those that there are, unless that was done a moment ago."""
        check(library().ring_buffer__consume(self._ring), "read the ring of doomed sockets")
        started = time.monotonic()
        if not self._some or started < self._look_at:
            return
        self._some = False
        try:
            self._sockets.destroy(filter(_is_doomed, self._sockets.sockets(states=PRESENT)))
        except BpfError as error:
            _log.error("a socket that must not be, and is cut off, stays open: %s", error)
            self._some = True
            self._look_at = started + _RETRY
            return
        now = time.monotonic()
        self._look_at = now + _BREATH * (now - started)

    def close(self) -> None:
        """Closing twice is no error."""
        if self._ring is not None:
            library().ring_buffer__free(self._ring)
            self._ring = None

    def _take(self, _: Any, _data: int, _size: int) -> int:
        self._some = True
        return 0


def _is_doomed(one: Socket) -> bool:
    return one.interface == private.SLIM_NOWHERE or bool(
        one.storage and _SOCKET.unpack(one.storage)["flags"] & private.SLIM_SOCKET_DOOMED
    )
