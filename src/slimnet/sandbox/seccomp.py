# SPDX-License-Identifier: Apache-2.0
"""A system call filter for what capabilities and hooks leave open.

Small on purpose: most of what a container runtime's list forbids needs a
capability that an endpoint does not have. Refused here is what gives those
capabilities back or passes by a data path's hooks:

- socket families but Unix, IPv4, IPv6 and netlink: EAFNOSUPPORT, as a kernel
  without them would say (AF_SMC carries TCP past every cgroup hook, AF_VSOCK
  reaches the hypervisor, AF_PACKET the wire);
- new namespaces (a user namespace would give every capability) and entering
  other ones; mounting; clone3(2) is ENOSYS since its flags are in memory, and
  libc then takes clone(2);
- bpf(2), userfaultfd(2), perf_event_open(2), open_by_handle_at(2), kernel
  modules and kexec, and the kernel's keyrings, which no namespace confines;
- device nodes by mknod(2): the filter stands in for a device cgroup;
- SO_ORIGINAL_DST: ENOENT, as for a connection that connection tracking does not know. The
  kernel would write underlay addresses into the caller's memory, and a data path's hook
  comes after it, too late for a second thread that watches;
- TIOCSTI and TIOCLINUX, which type into the terminal that is shared with the host;
- another ABI of the same machine (i386, x32), whose numbers differ: ENOSYS.

io_uring is allowed. It creates sockets without socket(2), so the first item
does not hold there against AF_VSOCK and AF_SMC on a kernel that has them.

Classic BPF as seccomp(2) takes it; a call that is allowed whatever its
arguments costs one bit test (kernel 5.11 and later cache the answer).
"""

from __future__ import annotations

import ctypes
import errno
import stat

from slimnet.linux import libc

__all__ = ["FAMILIES", "MACHINES", "NUMBERS", "PAST_HOOKS", "REFUSED", "install", "program"]

#: What socket(2) may ask for: AF_UNIX, AF_INET, AF_INET6, AF_NETLINK.
FAMILIES = (1, 2, 10, 16)

#: Of the others, those that need no capability: AF_VSOCK, AF_SMC.
PAST_HOOKS = {"AF_VSOCK": 40, "AF_SMC": 43}
#: AUDIT_ARCH_* of the machines whose numbers stand below (include/uapi/linux/audit.h).
MACHINES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}

#: System call numbers: x86_64, aarch64 (asm/unistd_64.h, asm-generic/unistd.h).
#: -1: not there.
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "getsockopt": (55, 209),
    "init_module": (175, 105),
    "ioctl": (16, 29),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "setns": (308, 268),
    "socket": (41, 198),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}

#: Refused with EPERM whatever the arguments.
REFUSED = frozenset(NUMBERS) - {
    "clone",
    "clone3",
    "getsockopt",
    "ioctl",
    "mknod",
    "mknodat",
    "seccomp",
    "socket",
    "unshare",
}

_NAMESPACES = 0x7E02_0000  # every CLONE_NEW* but CLONE_NEWTIME, which wants CAP_SYS_ADMIN anyway
_SOL_IP, _SOL_IPV6, _SO_ORIGINAL_DST = 0, 41, 80
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_X32 = 0x4000_0000

# include/uapi/linux/seccomp.h
_SET_MODE_FILTER = 1
_FLAG_SPEC_ALLOW = 4  # no slower machine for the filter's sake (kernels before 5.16)
_ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000

# include/uapi/linux/bpf_common.h
_LD, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def _load(offset: int) -> _Instruction:
    return (_LD, 0, 0, offset)


def _load_argument(index: int) -> _Instruction:
    return _load(16 + 8 * index)  # struct seccomp_data; the low half, on little endian


def _return(value: int) -> _Instruction:
    return (_RET, 0, 0, value)


def _refuse(number: int) -> _Instruction:
    return _return(_ERRNO | number)


def program(machine: str) -> list[_Instruction]:
    """The filter for ``machine`` (of uname(2)).

    Raises:
        KeyError: a machine whose numbers are not in the table.
    """
    arch = MACHINES[machine]
    column = list(MACHINES).index(machine)
    device = [
        (_AND, 0, 0, 0o170000),
        (_JEQ, 1, 0, stat.S_IFCHR),
        (_JEQ, 0, 1, stat.S_IFBLK),
        _refuse(errno.EPERM),
        _return(_ALLOW),
    ]
    namespaces = [
        _load_argument(0),
        (_JSET, 0, 1, _NAMESPACES),
        _refuse(errno.EPERM),
        _return(_ALLOW),
    ]
    families = [(_JEQ, len(FAMILIES) - index, 0, family) for index, family in enumerate(FAMILIES)]
    bodies: dict[str, list[_Instruction]] = {
        "getsockopt": [  # first: of what programs do often
            _load_argument(2),
            (_JEQ, 0, 4, _SO_ORIGINAL_DST),
            _load_argument(1),
            (_JEQ, 1, 0, _SOL_IP),
            (_JEQ, 0, 1, _SOL_IPV6),
            _refuse(errno.ENOENT),
            _return(_ALLOW),
        ],
        **{name: [_refuse(errno.EPERM)] for name in sorted(REFUSED)},
        "clone3": [_refuse(errno.ENOSYS)],
        "clone": namespaces,
        "unshare": namespaces,
        "socket": [
            _load_argument(0),
            *families,
            _refuse(errno.EAFNOSUPPORT),
            _return(_ALLOW),
        ],
        "mknod": [_load_argument(1), *device],
        "mknodat": [_load_argument(2), *device],
        "ioctl": [
            _load_argument(1),
            (_JEQ, 1, 0, _TIOCSTI),
            (_JEQ, 0, 1, _TIOCLINUX),
            _refuse(errno.EPERM),
            _return(_ALLOW),
        ],
    }
    instructions = [
        _load(4),
        (_JEQ, 1, 0, arch),
        _refuse(errno.ENOSYS),
        _load(0),
        (_JGE, 0, 1, _X32),
        _refuse(errno.ENOSYS),
    ]
    for name, body in bodies.items():
        number = NUMBERS[name][column]
        if number >= 0:
            instructions += [(_JEQ, 0, len(body), number), *body]
    return [*instructions, _return(_ALLOW)]


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Filter)))


def install(machine: str) -> None:
    """Filter the calling process and all that it starts. Needs CAP_SYS_ADMIN
    or no_new_privs at this moment."""
    instructions = program(machine)
    filters = (_Filter * len(instructions))(*(_Filter(*item) for item in instructions))
    number = NUMBERS["seccomp"][list(MACHINES).index(machine)]
    libc.syscall(
        number,
        _SET_MODE_FILTER,
        _FLAG_SPEC_ALLOW,
        ctypes.byref(_Program(len(instructions), filters)),
    )
