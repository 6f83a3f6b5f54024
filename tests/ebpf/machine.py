# SPDX-License-Identifier: Apache-2.0
"""A host for the eBPF backend: a namespace with an interface, and its own cgroup."""

import contextlib
import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from attrs import evolve

from slimnet import model
from slimnet.abc import Context
from slimnet.linux import sysctl
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.linux.netns import enter
from slimnet_ebpf import EbpfBackend, links, requirements
from slimnet_ebpf.pins import BPFFS

_numbers = itertools.count()

NETWORK = model.Network("prod", 7, "10.1.0.0/16")


def run(command):
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


class Machine:
    """One host."""

    def __init__(self):
        self.name = f"slt-e{os.getpid()}-{next(_numbers)}"
        self.netns = Path("/run/netns") / self.name
        self.cgroup = cgroup_mount() / self.name
        self.pins = BPFFS / "slimnet" / self.name
        self.undo = contextlib.ExitStack()
        run(f"ip netns add {self.name}")
        self.undo.callback(run, f"ip netns del {self.name}")
        self.ip("link set lo up")
        self.ip("link add eth0 type veth peer name peer0")
        self.ip("address add 192.0.2.1/24 dev eth0")
        self.ip("link set eth0 up")
        self.ip("link set peer0 up")
        wait_for(lambda: "linkdown" not in self.ip("route show table local"))
        self.cgroup.mkdir()
        self.undo.callback(self.sweep)
        self.context = Context(
            instance=self.name,
            host=model.Host("h1", "192.0.2.1", {"syn"}, "ebpf"),
            interface="eth0",
            cgroup=self.cgroup / "slimnet" / self.name,
            state=Path("/nonexistent"),
            key=bytes(range(16)),
        )

    def ip(self, arguments):
        return run(f"ip -n {self.name} {arguments}")

    def tc(self, arguments):
        return run(f"tc -n {self.name} {arguments}")

    def sysctl(self, name):
        return run(f"nsenter --net={self.netns} sysctl -n {name}").strip()

    def set_sysctl(self, name, value):
        run(f"nsenter --net={self.netns} sysctl -qw {name}={value}")

    def start(self, **changes):
        """Start or adopt, in the namespace."""
        with enter(self.netns):
            backend = EbpfBackend(evolve(self.context, **changes))
        self.undo.callback(backend.close)
        return backend

    def process(self, cgroup, program="import time; time.sleep(600)"):
        """A Python program in a cgroup of this host."""
        shell = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
        process = subprocess.Popen(
            ["nsenter", f"--net={self.netns}", "sh", "-c", shell, "sh", sys.executable]
            + ["-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.undo.callback(reap, process)
        wait_for(lambda: str(process.pid) in (cgroup / "cgroup.procs").read_text().split())
        return process

    def left(self):
        """What a data path leaves on the host."""
        return {
            "pins": sorted(str(path) for path in self.pins.rglob("*")),
            "qdisc": self.tc("qdisc show dev eth0"),
            "ingress": self.tc("filter show dev eth0 ingress"),
            "egress": self.tc("filter show dev eth0 egress"),
            "tcx": self.tcx(),
            "routes": self.ip("route show table local"),
            "routes6": [
                line
                for line in self.ip("-6 route show table local").splitlines()
                if not line.startswith(("local fe80", "multicast ff00", "anycast fe80"))
            ],
            "arp_announce": self.sysctl("net.ipv4.conf.eth0.arp_announce"),
            "tstamp_allow_data": self.tstamp_allow_data(),
            "reserved": self.sysctl("net.ipv4.ip_local_reserved_ports"),
            "lookups": self.lookups(),
            "cgroups": sorted(str(path) for path in self.cgroup.rglob("*") if path.is_dir()),
        }

    def tstamp_allow_data(self):
        """None where it is not the namespace's (before Linux 6.18)."""
        with enter(self.netns):
            if not sysctl.exists(requirements.TSTAMP):
                return None
        return self.sysctl("net.core.tstamp_allow_data")

    def tcx(self):
        """The programs on the interface's TCX hooks, which Linux has from 6.6 on;
        ingress, then egress."""
        if not requirements.knows("tcx_prog_attach"):
            return []
        with enter(self.netns):
            ifindex = socket.if_nametoindex("eth0")
            return [
                links.program_name(number)
                for hook in (links.ATTACH_TCX_INGRESS, links.ATTACH_TCX_EGRESS)
                for number in links.attached(ifindex, hook)
            ]

    def lookups(self):
        """How many sk_lookup programs serve the namespace."""
        fd = os.open(self.netns, os.O_RDONLY)
        try:
            return len(links.attached(fd, links.ATTACH_SK_LOOKUP))
        finally:
            os.close(fd)

    def sweep(self):
        for path in sorted(self.cgroup.rglob("cgroup.procs"), reverse=True):
            for number in path.read_text().split():
                os.kill(int(number), signal.SIGKILL)
        for root in (self.pins, self.cgroup):
            for directory, _, files in os.walk(root, topdown=False):
                if root == self.pins:
                    for name in files:
                        (Path(directory) / name).unlink()
                wait_for(functools.partial(rmdir, directory))


def rmdir(path):
    try:
        os.rmdir(path)
    except OSError:
        return False
    return True


def reap(process):
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        stream.close()


def wait_for(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.01)


def endpoint(number=1, **changes):
    fields = {
        "network": "prod",
        "name": f"e{number}",
        "address": f"10.1.0.{number}",
        "host": "h1",
        "id": 100 + number,
        "identity": 256 + number,
    }
    return model.Endpoint(**(fields | changes))
