# SPDX-License-Identifier: Apache-2.0
"""What is on a machine, as far as a backend could have left it there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from slimnet.linux import mounts, netns

__all__ = ["differences", "snapshot"]

#: Where things bear the instance's name, on the whole machine.
_NAMED = ("/sys/fs/bpf", "/run/netns", "/run/slimnet", "/var/lib/slimnet")
#: Sysctls that only count.
_VOLATILE = ("nf_conntrack_count", "/ipv4/tcp_mem", "/ipv4/udp_mem", "/ipv4/neigh/", "/ipv6/neigh/")
_COMMANDS = {
    "device": "ip -d -o link show",
    "address": "ip -o address show",
    "rule": "ip rule show",
    "route": "ip route show table all",
    "rule6": "ip -6 rule show",
    "route6": "ip -6 route show table all",
    "qdisc": "tc qdisc show",
    "nftables": "nft list ruleset",
    "netns program": "bpftool net show",
}


def snapshot(host: Path | None, cgroup: Path, state: Iterable[Path], mark: str) -> frozenset[str]:
    """One line for each thing.

    Args:
        host: path of the host's network namespace; ``None`` to leave it out.
        cgroup: the directory below which the backend works.
        state: its directories.
        mark: what bears this in its name is the backend's, wherever it is.
    """
    lines = set(_named(mark))
    lines.update(
        f"mount {each.point}" for each in mounts.table() if mark in each.point or mark in each.root
    )
    # The kernel's own files in a cgroup are not worth a line each.
    lines.update(f"path {path}" for path in _below(cgroup) if path.is_dir())
    lines.update(f"path {path}" for top in state for path in _below(top))
    if host is not None:
        with netns.enter(host):
            lines.update(_inside())
            inode = host.stat().st_ino
        lines.update(_links(cgroup, inode))
    return frozenset(lines)


def differences(before: frozenset[str], after: frozenset[str]) -> str:
    """In words; empty when there are none."""
    # A setting that is new is of a module that the kernel has loaded meanwhile, which stays; or
    # of a device, which is told itself.
    there = {line.split()[1] for line in before if line.startswith("sysctl ")}
    left = (
        line
        for line in sorted(after - before)
        if not line.startswith("sysctl ") or line.split()[1] in there
    )
    lines = [f"left behind: {line}" for line in left]
    lines += [f"gone: {line}" for line in sorted(before - after)]
    return "\n".join(lines)


def _named(mark: str) -> Iterator[str]:
    for place in _NAMED:
        for path in _below(Path(place)):
            if mark in str(path):
                yield f"path {path}"


def _below(top: Path) -> Iterator[Path]:
    # os.walk does not mind what others remove meanwhile; rglob does.
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            yield Path(directory) / name


def _run(command: str) -> list[str]:
    try:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def _inside() -> Iterator[str]:
    """In the calling thread's network namespace."""
    for what, command in _COMMANDS.items():
        for line in _run(command):
            # The kernel gives these some time after a device came up.
            if "fe80::" not in line:
                # Lifetimes change by themselves.
                yield f"{what} {line.split(' valid_lft')[0].split(' expires')[0]}"
    devices = [line.split(": ")[1].split("@")[0] for line in _run("ip -o link show")]
    for device in devices:
        for side in ("ingress", "egress"):
            for line in _run(f"tc filter show dev {device} {side}"):
                yield f"filter {device} {side} {line}"
    for path in _below(Path("/proc/sys/net")):
        if path.is_file() and not any(part in str(path) for part in _VOLATILE):
            try:
                yield f"sysctl {path} {path.read_text().strip()}"
            except OSError:
                continue  # may be written only


def _links(cgroup: Path, inode: int) -> Iterator[str]:
    """Programs that hang on the namespace or below the cgroup."""
    for text in _run("bpftool -j link show"):
        for link in json.loads(text):
            if link.get("netns_ino") == inode:
                yield f"link {link.get('type')} on the namespace"
    # Without the root's own: others work on this machine too.
    for text in _run(f"bpftool -j cgroup tree {cgroup}"):
        tree = json.loads(text) if text.startswith(("[", "{")) else []
        for group in tree if isinstance(tree, list) else []:
            for program in group.get("programs", ()):
                yield f"cgroup program {group['cgroup']} {program.get('attach_type')}"
