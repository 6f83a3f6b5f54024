# SPDX-License-Identifier: Apache-2.0
"""Whether the data path can run here: by looking, then by loading it."""

from __future__ import annotations

import platform
from pathlib import Path

from slimnet.exceptions import BackendUnavailable, CapabilityMissing
from slimnet.fallback import DevicePair
from slimnet.model import Answer, Probe
from slimnet_ebpf import requirements
from slimnet_ebpf.libbpf import BpfError, library
from slimnet_ebpf.objects import AbiStamp, Object
from slimnet_ebpf.options import NETKIT_NEEDS

__all__ = ["probe", "refused"]


def probe(path: Path, *, load: bool = True) -> Probe:
    """See :meth:`slimnet.abc.Backend.probe`. What is loaded goes again.

    Args:
        path: of the object file.
        load: whether it is tried, too.
    """
    try:
        requirements.check()
        with Object(path) as loaded:
            ours = AbiStamp.ours()
            if loaded.stamp() != ours:
                return Probe(
                    Answer.NO,
                    f"{path.name} was built from contract {loaded.stamp()}, not {ours}",
                    "build it again: make -C backends/ebpf",
                )
            if load:
                loaded.load()
    except (CapabilityMissing, BackendUnavailable) as error:
        reason, _, remedy = str(error).partition(": ")
        return Probe(Answer.NO, reason, remedy)
    except BpfError as error:
        return refused(error)
    version = library().libbpf_version_string().decode()
    found = f"Linux {platform.release()}, libbpf {version}"
    if load:
        found += f", {_device()}"
    gaps = requirements.gaps()
    return Probe(
        Answer.YES,
        "; ".join([found, *(f"but {gap.what}" for gap in gaps)]),
        "; ".join(gap.remedy for gap in gaps),
        requirements.capabilities(),
    )


def _device() -> str:
    """What containers get (:attr:`slimnet_ebpf.options.Options.device`)."""
    if DevicePair.NETKIT.is_known():
        return f"{DevicePair.NETKIT} for containers"
    return f"{DevicePair.VETH} for containers ({DevicePair.NETKIT} needs {NETKIT_NEEDS})"


def refused(error: BpfError) -> Probe:
    """What there is to say where the kernel does not take the data path."""
    return Probe(
        Answer.NO,
        f"Linux {platform.release()} does not take the data path: {error}",
        "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_ACT",
    )
