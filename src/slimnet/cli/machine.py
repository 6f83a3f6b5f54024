# SPDX-License-Identifier: Apache-2.0
"""What this machine lacks or leaves open, whatever the backend
(design, sections 4.5, 10 and 11)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.agent.listening import cut_off
from slimnet.agent.obstacles import firewall, obstacles
from slimnet.agent.site import underlay
from slimnet.cluster import Cluster
from slimnet.cluster.which import open_configured
from slimnet.config import Config, load_config
from slimnet.exceptions import (
    BackendError,
    BackendUnavailable,
    CapabilityMissing,
    ConfigError,
    SlimnetError,
)
from slimnet.linux import cgroup, sysctl
from slimnet.model import Host, Protocol, Wire
from slimnet.place import Part
from slimnet.plugins import backend_class, backend_names
from slimnet.sandbox import landlock, seccomp
from slimnet.wires import choose

__all__ = ["Finding", "findings"]


@frozen
class Finding:
    """One thing about the machine.

    Attributes:
        subject: what it is about.
        answer: ``yes`` where all is well, ``warning`` where something is left
            open, or keeps some backends from working.
        reason: one line: what was found.
        remedy: one line: what to do; empty where nothing can or need be done.
    """

    subject: str
    answer: str
    reason: str
    remedy: str = ""


def findings() -> Iterator[Finding]:
    """Look at everything; changes nothing."""
    yield _root()
    yield _cgroup()
    yield _low_ports()
    yield _abstract_sockets()
    yield _packet_sockets()
    yield _host_network()
    yield _other_families()
    yield _other_calls()
    yield _filter()
    yield from _ports()
    yield from _between()


def _read(name: str) -> str:
    try:
        return sysctl.read(name)
    except OSError:
        return ""


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", "yes", "running as root")
    reason = f"running as user {os.geteuid()}: only backends that need no privilege work"
    return Finding("root", "warning", reason, "use sudo for the others")


def _cgroup() -> Finding:
    try:
        return Finding("cgroup v2", "yes", f"mounted on {cgroup.mount()}")
    except CapabilityMissing as error:
        reason, _, remedy = str(error).partition(": ")
        return Finding("cgroup v2", "warning", f"{reason}: only backends without", remedy)


def _low_ports() -> Finding:
    """The real port of every endpoint's listener has to be out of users' reach."""
    first = int(_read("net/ipv4/ip_unprivileged_port_start") or 1024)
    if first > contract.SLIM_INNER_PORT:
        return Finding("low ports", "yes", f"unprivileged users start at port {first}")
    return Finding(
        "low ports",
        "warning",
        f"unprivileged users may bind port {contract.SLIM_INNER_PORT}, which carries every"
        " endpoint's listeners",
        "sysctl net.ipv4.ip_unprivileged_port_start=1024",
    )


def _abstract_sockets() -> Finding:
    if landlock.scopes():
        reason = "`slimnet run` keeps the host's out of reach (Landlock)"
        return Finding("abstract Unix sockets", "yes", reason)
    return Finding(
        "abstract Unix sockets",
        "warning",
        "not enforced: an endpoint in the host's network namespace reaches the host's",
        "Linux 6.12 with Landlock (boot with lsm=landlock,...), or endpoints with namespaces",
    )


def _packet_sockets() -> Finding:
    return Finding(
        "packet and raw sockets",
        "warning",
        "`slimnet run` takes CAP_NET_RAW away; not enforced where an endpoint's runtime leaves it",
        "drop CAP_NET_RAW in the container runtime",
    )


def _host_network() -> Finding:
    """Whether a backend closes what somebody else starts in the host's network namespace."""
    subject = "containers of --network host"
    for name in backend_names():
        try:
            takes = backend_class(name).look().capabilities.takes
        except (BackendUnavailable, ConfigError):
            continue
        if Part.CLOSED in takes:
            return Finding(subject, "yes", f"{name} closes them as `slimnet run` would (BPF LSM)")
    return Finding(
        subject,
        "warning",
        "not closed: refused, where their engine leaves them what `slimnet run` would not",
        "Linux 6.1 with the BPF LSM (boot with lsm=...,bpf), or drop that in the engine",
    )


def _other_families() -> Finding:
    """AF_VSOCK and AF_SMC pass by the cgroup hooks; io_uring passes by seccomp."""
    protocols = Path("/proc/net/protocols").read_text()
    there = [name for name, mark in (("AF_VSOCK", "VSOCK"), ("AF_SMC", "SMC")) if mark in protocols]
    if not there:
        return Finding("other socket families", "yes", "the kernel has neither AF_VSOCK nor AF_SMC")
    names = " and ".join(there)
    if _read("kernel/io_uring_disabled") == "2":
        reason = f"`slimnet run` refuses {names} (seccomp)"
        return Finding("other socket families", "yes", reason)
    return Finding(
        "other socket families",
        "warning",
        f"`slimnet run` refuses {names} (seccomp); not enforced through io_uring",
        "sysctl kernel.io_uring_disabled=2, where nothing uses io_uring",
    )


def _other_calls() -> Finding:
    """The kernel runs no hook for a socket option that is set or read by a system call of
    another ABI of the same machine (net/socket.c, in_compat_syscall())."""
    subject = "32-bit system calls"
    if os.uname().machine == "x86_64" and not _read("abi/vsyscall32"):
        return Finding(subject, "yes", "the kernel has none (CONFIG_IA32_EMULATION)")
    return Finding(
        subject,
        "warning",
        "`slimnet run` refuses them (seccomp); else socket options pass by the hooks",
        "refuse other ABIs in the container runtime's seccomp filter",
    )


def _filter() -> Finding:
    machine = os.uname().machine
    if machine in seccomp.MACHINES:
        return Finding("system call filter", "yes", f"there is one for {machine}")
    return Finding(
        "system call filter", "warning", f"none for {machine}", "slimnet run --no-seccomp"
    )


def _ports() -> Iterator[Finding]:
    """Services of the host that a data path would cut off, by backend."""
    try:
        options = load_config().options
    except ConfigError:  # the agent says it
        options = {}
    for name in backend_names():
        try:
            claimed = backend_class(name).ports(options.get(name, {}))
        except (BackendUnavailable, ConfigError):
            continue
        for option, ports in claimed.items():
            where = f"TCP ports {ports[0]} to {ports[-1]}"
            try:
                there = cut_off(ports, [cgroup.mount() / "slimnet"], None)
            except (CapabilityMissing, OSError) as error:
                yield Finding(f"ports of {name}", "warning", f"cannot be looked at: {error}")
                continue
            if there:
                reason = f"nothing from outside would reach {there}: {name} has {where} for itself"
                remedy = f"end it, move it, or set backend.{name}.{option} on every host"
                yield Finding(f"ports of {name}", "warning", reason, remedy)
            else:
                yield Finding(f"ports of {name}", "yes", f"nothing listens on {where}")


def _between() -> Iterator[Finding]:
    """What on this host keeps others out, by backend: those that the store has, or anybody."""
    try:
        config = load_config()
        interface, address = underlay(config)
    except (ConfigError, OSError):  # the agent says it
        return
    own, others = _hosts(config)
    backend = config.backend if own is None else own.backend
    rules = functools.cache(firewall)  # once, however many hosts there are; never, where none
    for name in backend_names():
        if backend not in ("auto", name):
            continue
        try:
            openings = backend_class(name).openings(config.options.get(name, {}))
            # In their order, and each once: TCP and UDP may have the same one.
            ways: dict[tuple[IPAddress | None, Wire | None], None] = dict.fromkeys(
                (each.address, choose(own, each, protocol))
                for each in others
                if own is not None
                for protocol in (Protocol.TCP, Protocol.UDP)
            )
            found = {
                str(each): each
                for peer, wire in ways or {(None, next(iter(openings), None)): None}
                if wire is not None
                for each in obstacles(
                    rules(), interface, address, peer, wire, openings.get(wire, ())
                )
            }
        except ConfigError:
            continue
        except (BackendUnavailable, BackendError, OSError) as error:
            yield Finding(f"way of {name}", "warning", f"cannot be looked at: {error}")
            continue
        for each in found.values():
            yield Finding(f"way of {name}", "warning", each.text, each.remedy)
        if openings and not found:
            reason = f"no rule here drops what other hosts send by {interface}"
            yield Finding(f"way of {name}", "yes", reason)


def _hosts(config: Config) -> tuple[Host | None, list[Host]]:
    """What the store has of this host, and the others; nothing where it cannot be read."""
    try:
        with open_configured(config) as store:
            hosts = Cluster(store).hosts()
    except SlimnetError:
        hosts = []
    own = next((each for each in hosts if each.name == config.host), None)
    return own, [each for each in hosts if each.name != config.host]
