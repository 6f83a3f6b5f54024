# SPDX-License-Identifier: Apache-2.0
"""Telling systemd: sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["notify", "watchdog_interval"]


def notify(*lines: str) -> None:
    """Send e.g. ``READY=1``; nothing where no service manager asked."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
    ):
        out.sendto("\n".join(lines).encode(), address)


def watchdog_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1``: half of what the manager allows."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) else None
