# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: named ones, as ``ip netns`` keeps them (ip-netns(8)), and the
calling thread's (network_namespaces(7)).

A namespace lives as long as something refers to it. A bind mount of its file
on ``/run/netns/<name>`` is such a reference, and lets ``ip netns exec``,
``nsenter --net=`` and every other process find it.

setns(2) moves the calling thread and no other. What it starts is there too, threads
and processes; what was opened there stays there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slimnet.linux import libc

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = [
    "DIRECTORY",
    "Netns",
    "apart",
    "create",
    "enter",
    "exists",
    "netlink",
    "number",
    "own",
    "remove",
]

#: Where ``ip netns`` looks.
DIRECTORY = Path("/run/netns")

_CURRENT = "/proc/thread-self/ns/net"
_SO_NETNS_COOKIE = 71  # Linux 5.14, asm-generic/socket.h
_NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)


def own() -> Path:
    """The path of the calling thread's namespace, good in every thread of this process."""
    return Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net")


def exists(path: Path) -> bool:
    """Whether a namespace is mounted there."""
    # A bind-mounted namespace file is on nsfs, whose device is not its directory's.
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


def number(path: Path) -> int:
    """The inode number by which the kernel knows the network namespace at ``path``;
    0 where there is none: namespaces(7)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_ino if fcntl.ioctl(fd, _NS_GET_NSTYPE) == libc.CLONE_NEWNET else 0
    except OSError:  # no file of nsfs
        return 0
    finally:
        os.close(fd)


def apart(action: Callable[[], None], kind: int = libc.CLONE_NEWNET) -> None:
    """Run ``action`` in a namespace of its own, which goes when nothing holds it.

    Args:
        action: what to do there.
        kind: CLONE_NEW* of the namespace, an empty network by default; or CLONE_FS, a root and
            a working directory of its own.

    Raises:
        OSError: the kernel refused a new namespace; or what ``action`` raises.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            libc.unshare(kind)
            action()
        except BaseException as error:  # noqa: BLE001  # carried to the caller
            failure.append(error)

    # In a thread of its own: unshare(2) moves the calling thread for good.
    thread = threading.Thread(target=run, name="slimnet-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def create(path: Path) -> None:
    """Make an empty namespace, its loopback up, and mount it on ``path``.

    Raises:
        OSError: the kernel refused; nothing is left behind.
    """

    def mount() -> None:
        with netlink() as route:
            route.link("set", index=1, state="up")
        libc.mount(str(own()), str(path), "none", libc.MS_BIND)

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.parent == DIRECTORY:
            _share(DIRECTORY)
        path.touch(exist_ok=False)
        try:
            apart(mount)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        what = f"network namespace {path}: {error.strerror}"
        raise OSError(error.errno, what) from error


def remove(path: Path) -> None:
    """Drop the name, however often it is mounted. The namespace goes with the last
    process in it. Removing what is not there is no error."""
    while exists(path):
        libc.umount(str(path))
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        apart(lambda: _uncover(path), libc.CLONE_NEWNS)


def _share(directory: Path) -> None:
    """Make the directory a shared mount of its own, as ``ip netns`` does before its first
    namespace: done later, it would cover the mounts that are there with copies of them."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # ip-netns(8) takes this lock too: two at once would mount it twice.
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            libc.mount("", str(directory), "none", libc.MS_SHARED | libc.MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it is no mount
                raise
            libc.mount(str(directory), str(directory), "none", libc.MS_BIND | libc.MS_REC)
            libc.mount("", str(directory), "none", libc.MS_SHARED | libc.MS_REC)
    finally:
        os.close(held)


def _uncover(path: Path) -> None:
    """Remove what is a mount point also below another mount of its directory, in a mount
    namespace of the calling thread's own.

    Where the directory was bound over itself with what was mounted in it, the mount below
    has no path any more. Here the upper one can go, and nobody else misses it. A file that
    is no mount point in the caller's mount namespace can be removed, and with it the kernel
    takes away what is mounted on it in every other.
    """
    libc.mount("", "/", "none", libc.MS_PRIVATE | libc.MS_REC)
    while True:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            libc.umount(str(path if exists(path) else path.parent))
        else:
            return


@contextlib.contextmanager
def enter(where: Path | int) -> Iterator[None]:
    """The calling thread is in the namespace for as long as the block lasts.

    Args:
        where: its path, or a descriptor of it.

    Raises:
        OSError: there is none, or the kernel refused.
    """
    before = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.setns(where if isinstance(where, int) else str(where), libc.CLONE_NEWNET)
        try:
            yield
        finally:
            libc.setns(before, libc.CLONE_NEWNET)
    finally:
        os.close(before)


def netlink(path: Path | None = None) -> IPRoute:
    """A route netlink socket of the namespace (the calling thread's by default)."""
    from pyroute2 import IPRoute  # noqa: PLC0415  # 125 ms that only its users need

    with contextlib.nullcontext() if path is None else enter(path):
        return IPRoute()


class Netns:
    """The calling thread's network namespace, held open.

    Attributes:
        fd: a descriptor of it.
        inode: by which the kernel shows it to users (``netns_ino`` of a BPF link).
    """

    def __init__(self) -> None:
        self.fd = os.open(_CURRENT, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.fd).st_ino

    @functools.cached_property
    def cookie(self) -> int:
        """By which BPF programs know it (bpf_get_netns_cookie()); never used again.

        Raises:
            OSError: a kernel before 5.14.
        """
        with self.entered(), socket.socket(socket.AF_UNIX) as one:
            raw = one.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return int.from_bytes(raw, sys.byteorder)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Work in it, whatever namespace this thread is in by now."""
        if Path(_CURRENT).stat().st_ino == self.inode:
            yield
            return
        with enter(self.fd):
            yield

    def close(self) -> None:
        """Closing twice is no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
