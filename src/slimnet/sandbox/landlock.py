# SPDX-License-Identifier: Apache-2.0
"""Keep abstract Unix sockets of the host out of reach (Landlock, Linux 6.12).

They belong to a network namespace, so in placement ``host`` an endpoint would
see the host's; no cgroup hook sees them (design, section 11).
"""

from __future__ import annotations

import ctypes

from slimnet.linux import libc

__all__ = ["scope_abstract_sockets", "scopes"]

# include/uapi/linux/landlock.h; the numbers are the same on every machine
_SYS_CREATE_RULESET = 444
_SYS_RESTRICT_SELF = 446
_CREATE_RULESET_VERSION = 1
_SCOPE_ABSTRACT_UNIX_SOCKET = 1
_FIRST_ABI_WITH_SCOPES = 6


def scopes() -> bool:
    """Whether this kernel can do it."""
    try:
        abi = libc.syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    except OSError:
        return False
    return abi >= _FIRST_ABI_WITH_SCOPES


def scope_abstract_sockets() -> bool:
    """The calling process and what it starts reach only abstract sockets that
    they made themselves. False where the kernel cannot."""
    if not scopes():
        return False
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    attributes = (ctypes.c_uint64 * 3)(0, 0, _SCOPE_ABSTRACT_UNIX_SOCKET)
    ruleset = libc.syscall(
        _SYS_CREATE_RULESET,
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        0,
    )
    libc.syscall(_SYS_RESTRICT_SELF, ruleset, 0)
    return True
