# SPDX-License-Identifier: Apache-2.0
"""The system calls that Python 3.11 has no function for, over ctypes.

Each raises :class:`OSError` with the kernel's number and what was tried. Only the
standard library is imported here and in what else the processes of the sandbox use:
every import is start-up time.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

__all__ = [
    "CLONE_FS",
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUTS",
    "IN_ATTRIB",
    "IN_MOVE_SELF",
    "MNT_DETACH",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "MS_SHARED",
    "capset",
    "inotify",
    "membarrier",
    "mount",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "pidfd_getfd",
    "prctl",
    "setfsid",
    "sethostname",
    "setns",
    "syscall",
    "umount",
    "unshare",
]

# include/uapi/linux/sched.h
CLONE_FS = 0x0000_0200
CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

# include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MS_SHARED = 0x10_0000
MNT_DETACH = 0x2
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4

# include/uapi/linux/inotify.h
IN_ATTRIB = 0x4  # an unlink as well, since it changes the number of links
IN_MOVE_SELF = 0x800

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_SYS_MEMBARRIER = 324 if os.uname().machine == "x86_64" else 283
_MEMBARRIER_CMD_GLOBAL = 1  # include/uapi/linux/membarrier.h
# include/uapi/asm-generic/unistd.h; the same on every machine
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_PIDFD_GETFD = 438
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.sethostname.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_libc.syscall.restype = ctypes.c_long


class _Handle(ctypes.Structure):
    """struct file_handle of open_by_handle_at(2), with room for eight bytes."""

    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * 8),
    )


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def setns(where: str | int, kind: int) -> None:
    """Move the calling thread to a namespace (setns(2)).

    Args:
        where: a path of it, or a descriptor.
        kind: its CLONE_NEW*.
    """
    if isinstance(where, int):
        _check(_libc.setns(where, kind), "setns")
        return
    descriptor = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(descriptor, kind), f"setns {where}")
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, data.encode()),
        f"mount {kind or source} on {target}",
    )


def umount(target: str) -> None:
    """Lazily take away what is mounted at ``target`` and below (umount2(2))."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def setfsid(user: int, group: int) -> None:
    """See setfsuid(2): whose files the calling thread makes, and alone."""
    # Neither tells of an error; both answer what was before.
    for call, wanted in ((_libc.setfsgid, group), (_libc.setfsuid, user)):
        call(wanted)
        if call(-1) != wanted:
            raise OSError(errno.EPERM, f"setfsid {wanted}: {os.strerror(errno.EPERM)}")


def sethostname(name: str) -> None:
    """sethostname(2)."""
    _check(_libc.sethostname(name.encode(), len(name.encode())), "sethostname")


def prctl(option: int, second: int = 0, third: int = 0, fourth: int = 0, fifth: int = 0) -> int:
    """prctl(2)."""
    return _check(_libc.prctl(option, second, third, fourth, fifth), f"prctl {option}")


def capset(header: ctypes.Array[ctypes.c_uint32], data: ctypes.Array[ctypes.c_uint32]) -> None:
    """capset(2)."""
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def syscall(number: int, *arguments: object) -> int:
    """syscall(2), for what libc has no function for."""
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def inotify(path: str, events: int) -> int:
    """A descriptor that is ready when one of the events has come over a file (inotify(7));
    it does not block."""
    descriptor = _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
    try:
        _check(_libc.inotify_add_watch(descriptor, os.fsencode(path), events), f"watch {path}")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def membarrier() -> None:
    """Wait until whatever the kernel is in the midst of doing without a lock is done
    (membarrier(2): MEMBARRIER_CMD_GLOBAL waits for a grace period of RCU). That is every
    packet on its way through a filter, among others: some tens of milliseconds."""
    try:
        syscall(_SYS_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL, 0, 0)
    except OSError:  # a kernel with nohz_full: many times what a packet takes
        time.sleep(0.2)


def open_tree(path: str) -> int:
    """A descriptor of a copy of the mount at ``path``, in no namespace yet (open_tree(2))."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return syscall(_SYS_OPEN_TREE, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), flags)


def move_mount(tree: int, target: str) -> None:
    """Mount what :func:`open_tree` gave (move_mount(2))."""
    where = ctypes.c_char_p(os.fsencode(target))
    syscall(_SYS_MOVE_MOUNT, tree, ctypes.c_char_p(b""), _AT_FDCWD, where, _MOVE_MOUNT_F_EMPTY_PATH)


def pidfd_getfd(process: int, descriptor: int) -> int:
    """A copy of another process' descriptor (pidfd_getfd(2), Linux 5.6).

    Args:
        process: a descriptor of it, from :func:`os.pidfd_open`.
        descriptor: its own number for it.
    """
    return syscall(_SYS_PIDFD_GETFD, process, descriptor, 0)


def open_by_handle_at(mount: int, kind: int, handle: bytes) -> int:
    """A descriptor, for reading, of the file that has a handle (open_by_handle_at(2)).

    Args:
        mount: a descriptor of anything on the file's mount.
        kind: type of the handle, FILEID_* of include/linux/exportfs.h.
        handle: at most eight bytes.
    """
    known = _Handle(len(handle), kind, (ctypes.c_ubyte * 8)(*handle))
    flags = os.O_RDONLY | os.O_CLOEXEC
    return _check(
        _libc.open_by_handle_at(mount, ctypes.byref(known), flags), "open a file by its handle"
    )
