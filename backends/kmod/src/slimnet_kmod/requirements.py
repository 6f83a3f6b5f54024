# SPDX-License-Identifier: Apache-2.0
"""What the machine must have, and what to say where it has not."""

from __future__ import annotations

import contextlib
import errno
import gzip
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from slimnet import contract, fallback
from slimnet.linux import sysctl
from slimnet.model import Answer, Capabilities, Feature, Probe, Wire, WireFormat
from slimnet.place import Part
from slimnet_kmod import contract as private
from slimnet_kmod.messages import FAMILY
from slimnet_kmod.module import Module, RequestRefused

__all__ = ["CAPABILITIES", "ModuleStamp", "absence", "probe"]

CAPABILITIES = Capabilities(
    enforcing=True,
    wires=frozenset({WireFormat(Wire.SYN, contract.SLIM_WIRE_VERSION), WireFormat(Wire.VXLAN)}),
    features=frozenset({Feature.SERVICES, Feature.PUBLISHED_PORTS, Feature.PUBLISHED_DATAGRAMS}),
    needs=frozenset({Part.CGROUP, Part.NETNS}),
)

#: What the module stands on: alternatives of options that a kernel is built with.
_OPTIONS = (
    ("MODULES",),
    ("NET_NS",),
    ("NETFILTER",),
    ("IPV6",),
    ("DYNAMIC_FTRACE",),
    ("DYNAMIC_FTRACE_WITH_REGS", "DYNAMIC_FTRACE_WITH_ARGS"),
)
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_ENFORCED = Path("/sys/module/module/parameters/sig_enforce")
_DISABLED = "kernel/modules_disabled"
_FTRACE = "kernel/ftrace_enabled"
_TOOLS = "/usr/sbin:/sbin:/usr/bin:/bin"


@frozen
class ModuleStamp:
    """Which contracts a module was built from.

    Attributes:
        version: of the one that all data paths share.
        fingerprint: of its layouts.
        family: of the netlink family.
    """

    version: int
    fingerprint: int
    family: int

    @classmethod
    def ours(cls) -> ModuleStamp:
        """What this distribution is built for."""
        return cls(contract.SLIM_ABI_VERSION, contract.FINGERPRINT, private.SLIM_NL_VERSION)

    def __str__(self) -> str:
        return f"{self.version}/{self.fingerprint:016x}.{self.family}"

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> ModuleStamp:
        """What a module says (SLIM_CMD_INFO)."""
        return cls(*(info.get(name, 0) for name in ("ABI_VERSION", "FINGERPRINT", "NL_VERSION")))


def probe() -> Probe:
    """See :meth:`slimnet.abc.Backend.probe`. The kernel loads the module where it is
    installed, as any other that is asked for."""
    beneath = fallback.probe()
    if not beneath:
        return evolve(beneath, capabilities=Capabilities())
    release = platform.release()
    try:
        with contextlib.closing(Module()) as module:
            info = module.request(private.SLIM_CMD_INFO)
    except RequestRefused as error:
        if error.errno == errno.ENOENT:
            reason, remedy = absence(release)
            return Probe(Answer.NO, reason, remedy)
        if error.errno == errno.EPERM:
            return Probe(
                Answer.NO,
                "CAP_NET_ADMIN is missing in the machine's own user namespace",
                "run the agent as root, in no user namespace",
            )
        raise
    ours, theirs = ModuleStamp.ours(), ModuleStamp.of(info)
    if theirs != ours:
        return Probe(
            Answer.NO,
            f"the module slimnet that is loaded was built from contract {theirs}, not {ours}",
            "build the module of this version, then: modprobe -r slimnet && modprobe slimnet",
        )
    if sysctl.exists(_FTRACE) and sysctl.read(_FTRACE) == "0":
        return Probe(
            Answer.NO,
            "the kernel's function tracing is off, and with it the module's hooks",
            "sysctl -w kernel.ftrace_enabled=1",
        )
    found = f"Linux {release}, module slimnet {info.get('MODULE_VERSION', '')}".rstrip()
    return Probe(Answer.YES, found, capabilities=CAPABILITIES)


def absence(release: str) -> tuple[str, str]:
    """Why there is no module, and what to do.

    Args:
        release: of the running kernel (``uname -r``).
    """
    if not Path("/proc/modules").exists():
        return (
            f"Linux {release} loads no modules: it is built without CONFIG_MODULES",
            "use another kernel, or another backend",
        )
    lacking = _lacking(_configuration(release))
    if lacking:
        return (
            f"Linux {release} is built without CONFIG_{lacking}",
            f"use a kernel with CONFIG_{lacking}=y, or another backend",
        )
    if sysctl.exists(_DISABLED) and sysctl.read(_DISABLED) != "0":
        return (
            "the kernel loads no modules any more (kernel.modules_disabled)",
            f"modprobe {FAMILY} before that is set; it ends with the next boot",
        )
    if not _installed(release, "filename"):
        return (
            f"no module {FAMILY} for Linux {release}",
            "build and install it: dkms install slimnet/<version>, or make -C kernel/module",
        )
    if _signed_only() and not _installed(release, "signer"):
        return (
            f"the kernel takes signed modules only (lockdown), and {FAMILY} has no signature",
            "sign it with a key that the machine knows: mokutil --import, then dkms install again",
        )
    return f"the module {FAMILY} is installed and does not load", f"modprobe {FAMILY}; dmesg"


def _configuration(release: str) -> str:
    """The running kernel's options, as far as it says them anywhere."""
    packed = Path("/proc/config.gz")
    if packed.exists():
        return gzip.decompress(packed.read_bytes()).decode()
    for path in (f"/boot/config-{release}", f"/lib/modules/{release}/build/.config"):
        if Path(path).exists():
            return Path(path).read_text()
    return ""


def _lacking(configuration: str) -> str:
    """The first option that is not there; empty where all are, or nobody knows."""
    there = set(re.findall(r"^CONFIG_(\w+)=[ym]$", configuration, re.MULTILINE))
    missing = [names for names in _OPTIONS if not there.intersection(names)]
    return missing[0][0] if there and missing else ""


def _installed(release: str, field: str) -> str:
    """What modinfo(8) says of the module for a kernel; empty where there is none."""
    modinfo = shutil.which("modinfo", path=_TOOLS)
    if modinfo is None:
        return ""
    done = subprocess.run(
        [modinfo, "-k", release, "-F", field, FAMILY], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _signed_only() -> bool:
    """kernel_lockdown(7), or the kernel's module.sig_enforce."""
    locked = _LOCKDOWN.read_text() if _LOCKDOWN.exists() else "[none]"
    enforced = _ENFORCED.read_text().strip() if _ENFORCED.exists() else "N"
    return "[none]" not in locked or enforced == "Y"
