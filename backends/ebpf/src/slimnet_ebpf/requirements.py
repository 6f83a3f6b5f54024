# SPDX-License-Identifier: Apache-2.0
"""What the machine must have, each with what to do where it has not."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from attrs import frozen

from slimnet import contract
from slimnet.exceptions import CapabilityMissing
from slimnet.fallback import nft
from slimnet.linux import cgroup, sysctl
from slimnet.model import Capabilities, Feature, Wire, WireFormat
from slimnet.place import Part
from slimnet_ebpf import closing
from slimnet_ebpf.libbpf import library

__all__ = ["CASTS", "OBJECT", "TSTAMP", "Gap", "capabilities", "check", "gaps", "knows"]

OBJECT = Path(__file__).with_name("slimnet.bpf.o")
# bpf_set_retval(): before it every refusal would be EPERM, and nothing tells them apart.
_KERNEL = (5, 19)
#: How a program comes to what its hook's context does not say (Linux 6.2).
CASTS = "bpf_cast_to_kern_ctx"
#: Whether a process without CAP_NET_RAW gets frames back with their time stamps. Linux 6.18
#: has it in each network namespace, 6.12 one for the machine, in its first namespace.
TSTAMP = "net/core/tstamp_allow_data"
_UNPRIVILEGED = "net/ipv4/ip_unprivileged_port_start"
_CAP_NET_ADMIN = 12
_CAP_SYS_ADMIN = 21
_CAP_BPF = 39
_BTF = Path("/sys/kernel/btf/vmlinux")


def check() -> None:
    """Everything that can be seen without loading.

    Raises:
        CapabilityMissing: the first thing that is not there; the message is
            "<what is missing>: <what to do>".
    """
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    if numbers and tuple(map(int, numbers.groups())) < _KERNEL:
        wanted = ".".join(map(str, _KERNEL))
        raise CapabilityMissing(
            f"Linux {platform.release()} is too old: use {wanted} or newer (bpf_set_retval)"
        )
    _check_privilege()
    cgroup.mount()
    if not _BTF.exists():
        raise CapabilityMissing(
            f"{_BTF} is missing: use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y"
        )
    library()


def capabilities() -> Capabilities:
    """What the data path can do on this kernel."""
    # Without nftables there is no fallback overlay, and so no endpoint in a namespace of its own.
    apart = nft.is_here()
    takes = ({Part.NETNS} if apart else set()) | ({Part.CLOSED} if closing.closes() else set())
    wires = {
        WireFormat(Wire.SYN, contract.SLIM_WIRE_VERSION),
        WireFormat(Wire.ANNOUNCE, contract.SLIM_ANNOUNCE_VERSION),
    }
    return Capabilities(
        enforcing=True,
        wires=frozenset(wires | {WireFormat(Wire.VXLAN)} if apart else wires),
        features=frozenset(Feature) - (set() if apart else {Feature.PUBLISHED_DATAGRAMS}),
        needs=frozenset({Part.CGROUP}),
        takes=frozenset(takes),
    )


@frozen
class Gap:
    """What a hostile endpoint is not held to here, though elsewhere it is.

    Attributes:
        what: in one clause, for operators.
        remedy: what closes it.
    """

    what: str
    remedy: str


def gaps() -> tuple[Gap, ...]:
    """What this kernel and its settings leave open, in this network namespace."""
    found = []
    if not knows(CASTS):
        found.append(
            Gap(
                "a datagram's control data may name the device that it leaves by (IP_PKTINFO)",
                "use Linux 6.2 or newer (bpf_cast_to_kern_ctx)",
            )
        )
    if not sysctl.exists(TSTAMP):
        found.append(
            Gap(
                "whether sent frames come back with time stamps is only for the machine's own"
                " network namespace to say",
                "there: sysctl -w net.core.tstamp_allow_data=0",
            )
        )
    if int(sysctl.read(_UNPRIVILEGED)) <= contract.SLIM_INNER_PORT:
        found.append(
            Gap(
                f"any local user can take port {contract.SLIM_INNER_PORT} from endpoints",
                f"sysctl -w net.ipv4.ip_unprivileged_port_start={contract.SLIM_INNER_PORT + 1}",
            )
        )
    return tuple(found)


def knows(name: str) -> bool:
    """Whether the running kernel's types (BTF) have something of that name: a function
    that programs may call, say."""
    return b"\0%s\0" % name.encode() in _BTF.read_bytes()


def _check_privilege() -> None:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    capabilities = int(found[1], 16) if found else 0

    def has(number: int) -> bool:
        return bool(capabilities >> number & 1)

    missing = []
    if not has(_CAP_BPF) and not has(_CAP_SYS_ADMIN):
        missing.append("CAP_BPF")
    if not has(_CAP_NET_ADMIN):
        missing.append("CAP_NET_ADMIN")
    if missing or os.geteuid() != 0:
        lacks = " and ".join(missing) or "root"
        verb = "are" if len(missing) > 1 else "is"
        raise CapabilityMissing(f"{lacks} {verb} missing: run it as root")
