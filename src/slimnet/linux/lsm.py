# SPDX-License-Identifier: Apache-2.0
"""The kernel's security modules (Documentation/admin-guide/LSM)."""

from __future__ import annotations

import os

from slimnet.linux import libc

__all__ = ["active"]

# The same numbers on every machine (asm-generic/unistd.h).
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1


def active() -> frozenset[str]:
    """Those that the kernel was booted with, by name; none where that cannot be told.

    securityfs says so, which is mounted for nobody else to see, for not every machine has it
    mounted, and lsm_list_modules(2) is of Linux 6.8. Needs CAP_SYS_ADMIN.
    """
    opened = []
    try:
        opened.append(libc.syscall(_SYS_FSOPEN, b"securityfs", _CLOEXEC))
        libc.syscall(_SYS_FSCONFIG, opened[-1], _FSCONFIG_CMD_CREATE, None, None, 0)
        opened.append(libc.syscall(_SYS_FSMOUNT, opened[-1], _CLOEXEC, 0))
        opened.append(os.open("lsm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=opened[-1]))
        return frozenset(os.read(opened[-1], 4096).decode().strip().split(","))
    except OSError:
        return frozenset()
    finally:
        for descriptor in opened:
            os.close(descriptor)
