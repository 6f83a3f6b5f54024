# SPDX-License-Identifier: Apache-2.0
"""tc programs: on the underlay interface, and on devices of ours.

At TCX where the kernel has it (Linux 6.6): every packet passes here, and that costs it
half of what a filter does. Before that, direct-action filters on a clsact qdisc; a
filter is known as ours by its program's id.

Source: libbpf.h, section "TC related API"; tc-bpf(8).
"""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

from slimnet_ebpf import links
from slimnet_ebpf.libbpf import BpfError, TcHook, TcOptions, check, library

__all__ = [
    "EGRESS",
    "INGRESS",
    "attach",
    "create_clsact",
    "destroy_clsact",
    "detach",
    "is_attached",
    "is_linked",
    "keep",
    "link",
]

INGRESS = 1
EGRESS = 2

_TCX = {INGRESS: links.ATTACH_TCX_INGRESS, EGRESS: links.ATTACH_TCX_EGRESS}

# Before every other filter: those may end the chain.
_PRIORITY = 1
# BPF_TC_F_REPLACE
_REPLACE = 1
_HANDLES = range(1, 9)


def _hook(ifindex: int, point: int) -> TcHook:
    return TcHook(sz=ctypes.sizeof(TcHook), ifindex=ifindex, attach_point=point)


def create_clsact(ifindex: int) -> bool:
    """Make the qdisc; whether it was not there."""
    result = library().bpf_tc_hook_create(ctypes.byref(_hook(ifindex, INGRESS | EGRESS)))
    if result == -errno.EEXIST:
        return False
    check(result, "create the clsact qdisc on the underlay interface")
    return True


def destroy_clsact(ifindex: int) -> None:
    """Remove the qdisc, with all filters on it."""
    result = library().bpf_tc_hook_destroy(ctypes.byref(_hook(ifindex, INGRESS | EGRESS)))
    if result not in (-errno.ENOENT, -errno.EINVAL, -errno.ENODEV):
        check(result, "remove the clsact qdisc from the underlay interface")


def is_linked(ifindex: int, pin: Path) -> bool:
    """Whether a pinned TCX link serves that interface."""
    return pin.exists() and links.target_of(pin) == ifindex


def link(ifindex: int, point: int, program: int, pin: Path) -> bool:
    """Attach a program with a pinned TCX link unless it is so already.

    Returns:
        False when this kernel has no TCX; nothing is attached then.

    Raises:
        BpfError: the kernel refused.
    """
    if is_linked(ifindex, pin):
        return True
    pin.unlink(missing_ok=True)  # of an interface that is gone, or detached by somebody
    try:
        links.attach(program, ifindex, _TCX[point], pin, flags=links.FIRST)
    except BpfError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def keep(device: int, point: int, program: int) -> None:
    """Attach a program to a device of ours, which keeps it, in place of the one of its name
    that an earlier load has there.

    Args:
        device: its index, in the calling thread's network namespace.
        point: INGRESS or EGRESS.
        program: its descriptor.

    Raises:
        BpfError: the kernel refused.
    """
    if links.keep_on_device(program, device, _TCX[point]):
        return
    create_clsact(device)
    attach(device, point, program, links.program_id(program))


def _program(ifindex: int, point: int, handle: int) -> int | None:
    options = TcOptions(sz=ctypes.sizeof(TcOptions), handle=handle, priority=_PRIORITY)
    result = library().bpf_tc_query(ctypes.byref(_hook(ifindex, point)), ctypes.byref(options))
    return int(options.prog_id) if result == 0 else None


def is_attached(ifindex: int, point: int, number: int) -> bool:
    """Whether a filter there runs the program with that id."""
    return any(_program(ifindex, point, handle) == number for handle in _HANDLES)


def attach(ifindex: int, point: int, program: int, number: int) -> None:
    """Attach a program unless it is attached already, in place of the one of its name that an
    earlier load has there.

    Args:
        ifindex: of the interface; it has a clsact qdisc.
        point: INGRESS or EGRESS.
        program: its descriptor.
        number: its id.

    Raises:
        BpfError: the kernel refused.
    """
    found = {handle: _program(ifindex, point, handle) for handle in _HANDLES}
    if number in found.values():
        return
    name = links.program_name(number)
    before = [
        handle
        for handle, its in found.items()
        if its is not None and links.program_name(its) == name
    ]
    free = [handle for handle, its in found.items() if its is None]
    options = TcOptions(
        sz=ctypes.sizeof(TcOptions),
        prog_fd=program,
        flags=_REPLACE if before else 0,
        handle=next(iter([*before, *free]), 0),
        priority=_PRIORITY,
    )
    check(
        library().bpf_tc_attach(ctypes.byref(_hook(ifindex, point)), ctypes.byref(options)),
        f"attach a tc filter with priority {_PRIORITY} to the underlay interface",
    )


def detach(ifindex: int, point: int, number: int) -> None:
    """Remove the filter that runs that program, if there is one."""
    for handle in _HANDLES:
        if _program(ifindex, point, handle) == number:
            options = TcOptions(sz=ctypes.sizeof(TcOptions), handle=handle, priority=_PRIORITY)
            result = library().bpf_tc_detach(
                ctypes.byref(_hook(ifindex, point)), ctypes.byref(options)
            )
            if result not in (0, -errno.ENOENT):
                raise BpfError(-result, "remove a tc filter from the underlay interface")
