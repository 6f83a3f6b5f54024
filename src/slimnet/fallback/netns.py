# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, as ``ip netns`` keeps them (ip-netns(8)).

A namespace lives as long as something refers to it. A bind mount of its file
on ``/run/netns/<name>`` is such a reference, and lets ``ip netns exec``,
``nsenter --net=`` and every other process find it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pyroute2 import IPRoute

from slimnet.exceptions import BackendError

__all__ = ["DIRECTORY", "apart", "create", "enter", "exists", "netlink", "own", "remove"]

#: Where ``ip netns`` looks.
DIRECTORY = Path("/run/netns")

# linux/sched.h, linux/mount.h: os.unshare and os.setns come with Python 3.12.
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


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


def apart(action: Callable[[], None]) -> None:
    """Run ``action`` in an empty namespace, which goes when nothing holds it.

    Raises:
        OSError: the kernel refused a new namespace; or what ``action`` raises.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _call("unshare", _CLONE_NEWNET)
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
        BackendError: the kernel refused; nothing is left behind.
    """

    def mount() -> None:
        with IPRoute() as route:
            route.link("set", index=1, state="up")
        _call("mount", os.fsencode(own()), os.fsencode(path), b"none", _MS_BIND, None)

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)
        try:
            apart(mount)
        except BaseException:
            path.unlink()
            raise
    except OSError as error:
        raise BackendError(f"network namespace {path}: {error}") from error


def remove(path: Path) -> None:
    """Drop the name. The namespace goes with the last process in it. Removing
    what is not there is no error."""
    if exists(path):
        _call("umount2", os.fsencode(path), _MNT_DETACH)
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def enter(path: Path) -> Iterator[None]:
    """The calling thread is in the namespace for as long as the block lasts.

    Processes and threads that are started in it are there too; sockets that
    were made in it stay there.
    """
    before = os.open(own(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", there, _CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def netlink(path: Path | None = None) -> IPRoute:
    """A route netlink socket of the namespace (the calling thread's by default)."""
    with contextlib.nullcontext() if path is None else enter(path):
        return IPRoute()
