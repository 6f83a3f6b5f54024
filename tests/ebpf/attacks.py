# SPDX-License-Identifier: Apache-2.0
"""A process of root's with all capabilities, in an endpoint's cgroup and in the host's network
namespace, tries what leads past the data path; what became of each is printed, as JSON.

Arguments: a cgroup that is not the endpoint's, from the hierarchy's root, and the names of a
stream and of a datagram socket of the host's, which are abstract.
"""

import ctypes
import errno
import json
import os
import socket
import struct
import sys
import tempfile
from pathlib import Path

foreign, stream, datagram = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def mounted(kind):
    """The file system, as whoever may mount it sees all of it."""
    directory = tempfile.mkdtemp(dir="/tmp")
    check(libc.mount(kind.encode(), directory.encode(), kind.encode(), 0, None))
    return Path(directory)


def make(family, kind, protocol=0):
    socket.socket(family, kind, protocol).close()


def reach(kind, name):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(f"\0{name}")


def send():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", f"\0{datagram}")


def reach_own(kind):
    with socket.socket(socket.AF_UNIX, kind) as one, socket.socket(socket.AF_UNIX, kind) as other:
        one.bind(f"\0slt-own-{os.getpid()}")
        if kind == socket.SOCK_STREAM:
            one.listen()
        other.connect(one.getsockname())


def clone():
    """clone3(2) with CLONE_INTO_CGROUP, by a descriptor that no hook of opening hears of."""
    descriptor = os.open(CGROUPS / foreign, os.O_PATH)
    arguments = struct.pack("=11Q", 1 << 33, 0, 0, 0, 17, 0, 0, 0, 0, 0, descriptor)
    child = check(libc.syscall(435, arguments, len(arguments)))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def make_map():
    attributes = struct.pack("=IIII", 2, 4, 4, 1).ljust(128, b"\0")
    os.close(check(libc.syscall(BPF, 0, attributes, len(attributes))))


def mark():
    """What CAP_NET_ADMIN is asked for, and no hook of slimnet's refuses."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 20)  # SO_RCVBUFFORCE


def original():
    """ENOPROTOOPT, where no connection is tracked, is the kernel's own answer."""
    with socket.socket() as sock:
        try:
            sock.getsockopt(socket.SOL_IP, 80, 16)
        except OSError as error:
            if error.errno not in (errno.ENOPROTOOPT, errno.ENOTCONN):
                raise


def leave():
    (CGROUPS / foreign / "cgroup.procs").write_text("0")


check(libc.unshare(CLONE_NEWNS))
check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
CGROUPS, PINS = mounted("cgroup2"), mounted("bpf")
TRIES = {
    "packet socket": lambda: make(socket.AF_PACKET, socket.SOCK_RAW),
    "vsock": lambda: make(40, socket.SOCK_STREAM),
    "abstract stream": lambda: reach(socket.SOCK_STREAM, stream),
    "abstract datagrams": lambda: reach(socket.SOCK_DGRAM, datagram),
    "abstract datagram": send,
    "CAP_NET_ADMIN": mark,
    "bpf": make_map,
    "bpffs": lambda: os.listdir(PINS),
    "cgroup by clone3": clone,
    # What is held, closed or not.
    "raw socket": lambda: make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    # What goes on, closed or not.
    "TCP": lambda: make(socket.AF_INET, socket.SOCK_STREAM),
    "netlink": lambda: make(socket.AF_NETLINK, socket.SOCK_RAW),
    "a pair": lambda: [each.close() for each in socket.socketpair()],
    "own abstract stream": lambda: reach_own(socket.SOCK_STREAM),
    "own abstract datagrams": lambda: reach_own(socket.SOCK_DGRAM),
    "reading cgroupfs": (CGROUPS / foreign / "cgroup.procs").read_text,
    # Last: whoever may is outside then.
    "original destination": original,
    "cgroup by writing": leave,
}
answers = {}
for name, attempt in TRIES.items():
    try:
        attempt()
        answers[name] = ""
    except OSError as error:
        answers[name] = errno.errorcode[error.errno]
print(json.dumps(answers), flush=True)
