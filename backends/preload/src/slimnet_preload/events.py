# SPDX-License-Identifier: Apache-2.0
"""What the router tells while it is listened to."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time

from slimnet.answers import events
from slimnet.exceptions import BackendError
from slimnet.layout import Layout
from slimnet.model import Event
from slimnet_preload import contract
from slimnet_preload.control import Control, RouterGone

__all__ = ["ToldEvents"]

_TOLD = Layout(contract.slim_control_event)
#: Seconds until another router may be there, where one has ended.
_AGAIN = 0.1


class ToldEvents:
    """Reads the events of one instance; one reader at a time.

    Args:
        control: of its router.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._reading = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self._from: socket.socket | None = None
        self._listen()

    def read(self, timeout: float) -> list[Event]:
        """See :meth:`slimnet.abc.Backend.events`."""
        with self._reading:
            deadline = time.monotonic() + timeout
            while not self._closed:
                if self._from is None:
                    self._listen()
                found = self._drain()
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                if self._from is None:
                    select.select([self._wake], [], [], min(left, _AGAIN))
                else:
                    select.select([self._from.fileno(), self._wake], [], [], left)
            raise BackendError("the backend is closed")

    def close(self) -> None:
        """Ends a :meth:`read` in another thread. Closing twice is no error."""
        if self._closed:
            return
        self._closed = True
        os.eventfd_write(self._wake, 1)
        with self._reading:
            os.close(self._wake)
            if self._from is not None:
                self._from.close()
                self._from = None

    def _listen(self) -> None:
        with contextlib.suppress(RouterGone):
            self._from = self._control.events()

    def _drain(self) -> list[Event]:
        found: list[Event] = []
        while self._from is not None:
            try:
                data = self._from.recv(_TOLD.size)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if len(data) != _TOLD.size:  # the router's end
                self._from.close()
                self._from = None
                break
            found.extend(events([_TOLD.unpack(data)["event"]], monotonic=False))
        return found
