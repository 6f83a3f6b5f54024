# SPDX-License-Identifier: Apache-2.0
"""The network namespace that a backend was started in, kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Netns", "enter"]

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71  # Linux 5.14, asm-generic/socket.h
_CURRENT = "/proc/thread-self/ns/net"


class Netns:
    """The calling thread's network namespace, held open."""

    def __init__(self) -> None:
        self.fd = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.fd).st_ino
        with socket.socket(socket.AF_UNIX) as one:
            raw = one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        #: What BPF programs know it by (bpf_get_netns_cookie); never used again.
        self.cookie = int.from_bytes(raw, sys.byteorder)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Work in it, whatever namespace this thread is in by now."""
        if Path(_CURRENT).stat().st_ino == self.inode:
            yield
            return
        with enter(Path(f"/proc/self/fd/{self.fd}")):
            yield

    def close(self) -> None:
        """Closing twice is no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextlib.contextmanager
def enter(path: Path) -> Iterator[None]:
    """Be in another network namespace, with this thread only."""
    before = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(fd)
        finally:
            os.close(fd)
        try:
            yield
        finally:
            _setns(before)
    finally:
        os.close(before)


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
