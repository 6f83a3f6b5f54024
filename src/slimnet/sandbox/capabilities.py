# SPDX-License-Identifier: Apache-2.0
"""What root may still do inside an endpoint (capabilities(7)).

Docker's default set without CAP_NET_RAW: raw and packet sockets pass by every
hook that a data path has. Inheritable and ambient are empty, as in current
runtimes (CVE-2022-24769).
"""

from __future__ import annotations

import ctypes

from slimnet.linux import libc

__all__ = ["AROUND", "KEPT", "LEADING_OUT", "drop", "mask"]

#: Name to number (include/uapi/linux/capability.h).
KEPT = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SYS_CHROOT": 18,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}

#: Those with which a process is past a data path's hooks. A closed endpoint has none of them;
#: the others that are not kept are its engine's to give, which needs CAP_SYS_ADMIN among them
#: to start a container.
AROUND = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_RAWIO": 17,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}

#: What its engine must not give where nothing closes it: CAP_SYS_ADMIN mounts cgroupfs anew.
LEADING_OUT = {**AROUND, "CAP_SYS_ADMIN": 21}

_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_LINUX_CAPABILITY_VERSION_3 = 0x2008_0522


def mask() -> int:
    """The kept set as the bit mask that /proc/PID/status shows."""
    return sum(1 << number for number in KEPT.values())


def drop() -> None:
    """Leave the calling process and what it starts with the kept set at most."""
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(64):
        try:
            held = libc.prctl(_PR_CAPBSET_READ, number)
        except OSError:  # EINVAL: above the last that this kernel knows
            break
        if held and number not in KEPT.values():
            libc.prctl(_PR_CAPBSET_DROP, number)
    permitted = mask() & _permitted()
    low, high = permitted & 0xFFFF_FFFF, permitted >> 32
    libc.capset(
        (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0),
        # struct __user_cap_data_struct[2]: effective, permitted, inheritable
        (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0),
    )


def _permitted() -> int:
    with open("/proc/self/status") as status:  # noqa: PTH123  # pathlib is start-up time
        for line in status:
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    return 0
