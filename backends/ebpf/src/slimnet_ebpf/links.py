# SPDX-License-Identifier: Apache-2.0
"""Programs where they run: on cgroups, the network namespace, the interface.

Everything is attached by program, target and attach type, never through libbpf's
objects, so that a process that adopts pinned programs does it the same way.

A network namespace and the underlay interface get links, which are pinned. A cgroup
keeps its programs itself (BPF_PROG_ATTACH): they need no pin, and stay until the
cgroup's last socket has gone, long after its directory. So do devices of ours, as long
as they are there: at TCX, and a netkit at what its other end sends.

Source: ``uapi/linux/bpf.h`` (BPF_LINK_CREATE, struct bpf_link_info, BPF_PROG_ATTACH).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from slimnet_ebpf.libbpf import AttachOptions, BpfError, check, library

__all__ = [
    "attach",
    "attached",
    "end",
    "iterate",
    "keep",
    "keep_on_device",
    "program_id",
    "program_name",
    "program_type",
    "renew",
    "replace",
    "take_off",
    "target_of",
]

# enum bpf_prog_type
SCHED_CLS = 3
CGROUP_SOCK = 9
SOCK_OPS = 13
CGROUP_SOCK_ADDR = 18
CGROUP_SOCKOPT = 25
SK_LOOKUP = 30
ON_CGROUP = frozenset({CGROUP_SOCK, SOCK_OPS, CGROUP_SOCK_ADDR, CGROUP_SOCKOPT})

# enum bpf_attach_type
ATTACH_CGROUP_INGRESS = 0
ATTACH_CGROUP_EGRESS = 1
ATTACH_SK_LOOKUP = 36
ATTACH_LSM_CGROUP = 43
ATTACH_TCX_INGRESS = 46
ATTACH_TCX_EGRESS = 47
ATTACH_NETKIT_PEER = 55

# Of a TCX link: before all others, which may end the chain.
FIRST = 1 << 3

# Of a program that is kept on a cgroup: it gives way to any that a descendant has,
# or it runs beside them (BPF_F_ALLOW_OVERRIDE, BPF_F_ALLOW_MULTI).
OVERRIDE = 1 << 0
MULTI = 1 << 1
# Of a program on a device: behind those that are there (kernel/bpf/mprog.c).
LAST = 0
# Instead of another one, at once (BPF_F_REPLACE, Linux 5.6).
_REPLACE = 1 << 2

# All points of a cgroup that are about sockets and their packets (enum bpf_attach_type): a data
# path of another version may be at more of them than ours.
CGROUP_POINTS = (*range(4), *range(8, 16), *range(19, 23), *range(29, 33), 34)

# What the names of our programs begin with, in every version.
_OURS = "slim_"

_QUERY_EFFECTIVE = 1 << 0


class _ProgramInfo(ctypes.Structure):
    """The start of struct bpf_prog_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


class _LinkInfo(ctypes.Structure):
    """The start of struct bpf_link_info, with the netns member of its union; the
    tcx member has an ifindex where that has an inode number."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("netns_ino", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
    )


def _program(fd: int) -> _ProgramInfo:
    info = _ProgramInfo()
    _ask(fd, info)
    return info


def _ask(fd: int, info: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    check(
        library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
        "ask about a BPF object",
    )


def program_type(fd: int) -> int:
    """The type (enum bpf_prog_type) of an open program."""
    return int(_program(fd).type)


def program_id(fd: int) -> int:
    """The kernel's number of an open program."""
    return int(_program(fd).id)


def program_name(number: int) -> str:
    """The name of the program with that number (15 characters at most)."""
    fd = check(library().bpf_prog_get_fd_by_id(number), f"open program id {number}")
    try:
        return str(_program(fd).name.decode())
    finally:
        os.close(fd)


class _LinkOptions(ctypes.Structure):
    """The start of struct bpf_link_create_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


def attach(program: int, target: int, attach_type: int, pin: Path, *, flags: int = 0) -> None:
    """Attach a program and pin the link.

    Args:
        program: descriptor of the program.
        target: descriptor of a network namespace, or the index of an interface.
        attach_type: enum bpf_attach_type.
        pin: where; not there yet.
        flags: BPF_F_*, for TCX.

    Raises:
        BpfError: the kernel refused; nothing is attached.
    """
    options = _LinkOptions(sz=ctypes.sizeof(_LinkOptions), flags=flags)
    link = check(
        library().bpf_link_create(program, target, attach_type, ctypes.byref(options)),
        f"attach {pin.name}",
    )
    try:
        check(library().bpf_obj_pin(link, bytes(pin)), f"pin {pin}")
    finally:
        os.close(link)  # without a pin this was the last one: the link goes


def end(pin: Path) -> None:
    """Detach what a pinned link serves and remove the pin; what is not there is no error.
    Without its pin alone, the kernel detaches it some time later."""
    if pin.exists():
        link = check(library().bpf_obj_get(bytes(pin)), f"open {pin}")
        try:
            library().bpf_link_detach(link)  # fails where the interface is gone
        finally:
            os.close(link)
        pin.unlink()


def iterate(program: int, attach_type: int) -> None:
    """Run an iterator's program once over everything that it iterates over.

    Source: the kernel's ``Documentation/bpf/bpf_iterators.rst``.

    Args:
        program: descriptor of the program.
        attach_type: enum bpf_attach_type.
    """
    link = check(library().bpf_link_create(program, 0, attach_type, None), "make an iterator")
    try:
        fd = check(library().bpf_iter_create(link), "start an iterator")
    finally:
        os.close(link)
    with os.fdopen(fd, "rb", buffering=0) as stream:
        while stream.read(4096):
            pass


def keep(program: int, cgroup: int, attach_type: int, flags: int = MULTI) -> None:
    """Attach a program to a cgroup, which keeps it; once there it is there.

    Args:
        program: descriptor of the program.
        cgroup: descriptor of the cgroup's directory; or the index of a device.
        attach_type: enum bpf_attach_type.
        flags: OVERRIDE, MULTI or LAST.

    Raises:
        BpfError: the kernel refused; nothing is attached.
    """
    there = attached(cgroup, attach_type)
    if not there or program_id(program) not in there:
        check(
            library().bpf_prog_attach(program, cgroup, attach_type, flags),
            f"attach {_program(program).name.decode()}",
        )


def replace(
    cgroup: int, attach_type: int, successors: Mapping[str, int], flags: int = MULTI
) -> None:
    """Put programs where those of another load are, which are known by their names: at no
    moment neither of the two runs, and at none both. One without a successor is taken off.

    Args:
        cgroup: descriptor of the cgroup's directory; or the index of a device.
        attach_type: enum bpf_attach_type.
        successors: descriptors of programs, by name as :func:`program_name` has it.
        flags: OVERRIDE, MULTI or LAST, as they were attached.

    Raises:
        BpfError: the kernel refused.
    """
    there = attached(cgroup, attach_type)
    ours = {program_id(program) for program in successors.values()}
    for number in there:
        name = program_name(number)
        if number in ours or not name.startswith(_OURS):
            continue
        fd = check(library().bpf_prog_get_fd_by_id(number), f"open program id {number}")
        try:
            program = successors.get(name)
            if program is None or program_id(program) in there:
                result = library().bpf_prog_detach2(fd, cgroup, attach_type)
            elif flags != OVERRIDE:
                options = AttachOptions(
                    sz=ctypes.sizeof(AttachOptions), flags=flags | _REPLACE, replace_prog_fd=fd
                )
                result = library().bpf_prog_attach_opts(
                    program, cgroup, attach_type, ctypes.byref(options)
                )
            else:  # there is room for one
                result = library().bpf_prog_attach(program, cgroup, attach_type, flags)
            check(result, f"replace {name}")
        finally:
            os.close(fd)


def renew(pin: Path, program: int) -> None:
    """Let a pinned link run another program from now on; what is not there, or serves nothing
    any more, is no error.

    Raises:
        BpfError: the kernel refused.
    """
    if not pin.exists() or not target_of(pin):
        return
    link = check(library().bpf_obj_get(bytes(pin)), f"open {pin}")
    try:
        info = _LinkInfo()
        _ask(link, info)
        if info.prog_id != program_id(program):
            check(library().bpf_link_update(link, program, None), f"replace {pin.name}")
    finally:
        os.close(link)


def keep_on_device(program: int, device: int, attach_type: int) -> bool:
    """Attach a program to a device, in place of the one of its name that an earlier load has
    there. To what the other end of a netkit sends (ATTACH_NETKIT_PEER) only from this end, which
    is the primary one, it is attached and taken off again.

    Args:
        program: descriptor of the program.
        device: its index, in the calling thread's network namespace.
        attach_type: ATTACH_TCX_INGRESS, ATTACH_TCX_EGRESS or ATTACH_NETKIT_PEER.

    Returns:
        False where the kernel has no such point, or the device is no netkit; nothing is attached
        then.

    Raises:
        BpfError: the kernel refused.
    """
    try:
        attached(device, attach_type)
    except BpfError as error:
        if error.errno in (errno.ENXIO, errno.EINVAL):  # no netkit; such a kernel
            return False
        raise
    name = program_name(program_id(program))
    replace(device, attach_type, {name: program}, LAST)
    keep(program, device, attach_type, LAST)
    return True


def take_off(program: int, cgroup: int, attach_type: int) -> None:
    """The inverse of :func:`keep`; what is not there is no error."""
    there = attached(cgroup, attach_type)
    if there and program_id(program) in there:
        check(
            library().bpf_prog_detach2(program, cgroup, attach_type),
            f"detach {_program(program).name.decode()}",
        )


def attached(target: int, attach_type: int) -> list[int]:
    """The ids of the programs that are attached there; of a security module's also those
    of the cgroups above, for the kernel tells no less where it is not asked for flags."""
    ids = (ctypes.c_uint32 * 64)()
    count = ctypes.c_uint32(len(ids))
    flags = ctypes.c_uint32()
    how = _QUERY_EFFECTIVE if attach_type == ATTACH_LSM_CGROUP else 0
    check(
        library().bpf_prog_query(
            target, attach_type, how, ctypes.byref(flags), ids, ctypes.byref(count)
        ),
        "ask what is attached",
    )
    return list(ids[: count.value])


def target_of(pin: Path) -> int:
    """The inode number of the network namespace, or the index of the interface,
    that a pinned link serves; 0 when that is gone."""
    fd = check(library().bpf_obj_get(bytes(pin)), f"open {pin}")
    try:
        info = _LinkInfo()
        _ask(fd, info)
        return int(info.netns_ino)
    finally:
        os.close(fd)
