# SPDX-License-Identifier: Apache-2.0
"""The ways in which containers of an engine talk on two hosts.

======== ========================================================================
host     ``--network host``: what the others are compared with
vxlan    the engine's own bridge on each host, the two joined by a VXLAN device
netns    slimnet with the ``ebpf`` backend, each container in its own namespace
======== ========================================================================

Each container runs for the whole of a pair, and programs are started in it by the engine's
``exec``.
"""

from __future__ import annotations

import abc
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from slimnet.demo.engine import BRIDGE, ENGINES, HostEngine
from slimnet.demo.mode import NETWORK, POLICY, RANGE, Mode, Pair
from slimnet.demo.side import ProgramFailed, Side
from slimnet.linux import cgroup
from slimnet.place import Place
from slimnet.plugins import choose_backend, probe
from slimnet.testbed import Testbed
from slimnet.testing import Underlay, UnderlayHost

__all__ = ["contained", "every"]

#: Engines' files. Their sockets' paths have to be short (unix(7)); Podman takes 50 characters.
_ENGINES = Path("/run/slimnet-e")
_ROLES = ("client", "server")
_SUBNET = "10.88.0.0/24"
#: VXLAN's headers are 50 bytes of an underlay's 1500.
_MTU = 1450
_SECONDS = 10.0


@frozen
class _Container:
    """What a side wants to know of its container."""

    name: str
    place: Place

    @property
    def endpoint(self) -> _Container:
        """What has its name."""
        return self


@frozen
class ContainerSide(Side):
    """A container that runs.

    Attributes:
        engine: its own.
        name: the engine's, of the container.
        first: the container's first process, which stays.
    """

    engine: HostEngine
    name: str
    first: int

    @classmethod
    def of(cls, engine: HostEngine, name: str, first: int, address: str) -> ContainerSide:
        """The container whose first process that is."""
        place = Place(cgroup.of_process(first), Path(f"/proc/{first}/ns/net"))
        return cls(address, _Container(name, place), engine, name, first)

    def kill(self) -> None:
        """See :meth:`.Side.kill`."""
        deadline = time.monotonic() + _SECONDS
        while self._tell(signal.SIGKILL):
            if time.monotonic() > deadline:
                raise ProgramFailed(f"container {self.name}: its programs do not end")
            time.sleep(0.01)

    def _ask_to_end(self, process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
        # The engine's client would keep the signal for itself.
        del process
        self._tell(stop)

    def _tell(self, number: signal.Signals) -> bool:
        """Send it to whatever was started here; was there anything?"""
        found = set(map(int, (self.cgroup / "cgroup.procs").read_text().split())) - {self.first}
        for each in found:
            with suppress(ProcessLookupError):
                os.kill(each, number)
        return bool(found)

    def _spawn(
        self, argv: Sequence[str], user: str | None, stdout: int, stderr: int
    ) -> subprocess.Popen[bytes]:
        entry = pwd.getpwnam(user or "root")
        options = ("--user", f"{entry.pw_uid}:{entry.pw_gid}", "--env=LC_ALL=C.UTF-8")
        return subprocess.Popen(
            self.engine.command("exec", *options, f"--env=PATH={os.environ['PATH']}",
                                self.name, *argv),
            env=self.engine.environment,
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        )  # fmt: skip


class ContainerMode(Mode):
    """One way in which an engine's containers talk.

    Args:
        engine: as ``--engine`` calls it.
        shared: a directory that containers see.
    """

    def __init__(self, engine: str, shared: Path) -> None:
        self.engine = engine
        self.shared = shared

    @property
    def key(self) -> str:
        """See :meth:`.Mode.key`."""
        return f"{self.engine}{self.name}"

    def check(self) -> None:
        """See :meth:`.Mode.check`."""
        ENGINES[self.engine].check()

    def remove(self, name: str) -> None:
        """See :meth:`.Mode.remove`."""
        underlay = Underlay(hosts=2, name=name)
        for host, role in zip(underlay.hosts, _ROLES, strict=True):
            self._engine(name, host.netns, role).end()
        for each in (_ENGINES / name, _ENGINES):
            with suppress(OSError):  # another demo's are in it
                each.rmdir()
        self._remove_hosts(name)

    def _engine(self, name: str, netns: Path, role: str) -> HostEngine:
        return ENGINES[self.engine](_ENGINES / name / role[0], netns)

    def _started(self, name: str, hosts: Sequence[Path]) -> list[HostEngine]:
        engines = [
            self._engine(name, netns, role) for netns, role in zip(hosts, _ROLES, strict=True)
        ]
        for each in engines:
            each.start()
        return engines

    def _remove_hosts(self, name: str) -> None:
        Underlay(hosts=2, name=name).down()


class _UnderlayMode(ContainerMode):
    """On two hosts without slimnet."""

    def make(self, name: str) -> Pair:
        """See :meth:`.Mode.make`."""
        underlay = Underlay(hosts=2, name=name)
        underlay.up()
        engines = self._started(name, [host.netns for host in underlay.hosts])
        client, server = self._sides(engines, underlay.hosts)
        return Pair(self.name, client, server)

    @abc.abstractmethod
    def _sides(
        self, engines: list[HostEngine], hosts: Sequence[UnderlayHost]
    ) -> list[ContainerSide]:
        """Start a container on each."""


class HostNetwork(_UnderlayMode):
    """No overlay."""

    name = "host"
    title = "host network"

    def _sides(
        self, engines: list[HostEngine], hosts: Sequence[UnderlayHost]
    ) -> list[ContainerSide]:
        return [
            ContainerSide.of(engine, role, engine.run(role, "host", self.shared), str(host.address))
            for engine, host, role in zip(engines, hosts, _ROLES, strict=True)
        ]


class BridgeNetwork(_UnderlayMode):
    """The engine's own network, and packets in packets."""

    name = "vxlan"
    title = "bridge, VXLAN"

    def _sides(
        self, engines: list[HostEngine], hosts: Sequence[UnderlayHost]
    ) -> list[ContainerSide]:
        sides = []
        for number, (engine, role) in enumerate(zip(engines, _ROLES, strict=True), 1):
            engine.bridge(_SUBNET, f"10.88.0.{250 + number}", _MTU)
            address = f"10.88.0.{number}"
            first = engine.run(role, "demo", self.shared, "--ip", address)
            own, other = hosts[number - 1], hosts[2 - number]
            ip = ("nsenter", f"--net={own.netns}", "ip", "link")
            device = ("add", "vxlan-demo", "mtu", str(_MTU), "master", BRIDGE, "type", "vxlan")
            ends = ("local", str(own.address), "remote", str(other.address))
            subprocess.run([*ip, *device, "id", "88", *ends, "dstport", "4789"], check=True)
            subprocess.run([*ip, "set", "vxlan-demo", "up"], check=True)
            sides.append(ContainerSide.of(engine, role, first, address))
        return sides


class OverlayNetwork(ContainerMode):
    """Connections, not packets; with a policy, as real clusters have."""

    name = "netns"
    title = "slimnet"
    counted = True

    def check(self) -> None:
        """See :meth:`.Mode.check`."""
        super().check()
        choose_backend("ebpf", probe)

    def make(self, name: str) -> Pair:
        """See :meth:`.Mode.make`."""
        testbed = Testbed(name, hosts=2, backend="ebpf")
        testbed.up()
        engines = self._started(name, [host.netns for host in testbed.hosts])
        with testbed.hosts[0].node() as node:
            node.create_network(NETWORK, RANGE)
            node.wait()
        sides = []
        for host, engine, role in zip(testbed.hosts, engines, _ROLES, strict=True):
            engine.overlay(NETWORK, host.agent, RANGE, role)
            first = engine.run(role, "demo", self.shared)
            with host.node() as node:
                address = str(node.endpoint(NETWORK, role).endpoint.address)
            sides.append(ContainerSide.of(engine, role, first, address))
        with testbed.hosts[1].node() as node:
            node.apply_policy(POLICY, network=NETWORK)
            node.wait()
        instances = tuple(host.instance for host in testbed.hosts)
        return Pair(self.name, sides[0], sides[1], instances)

    def _remove_hosts(self, name: str) -> None:
        Testbed(name, hosts=2, backend="ebpf").down()


_MODES: tuple[Callable[[str, Path], ContainerMode], ...] = (
    HostNetwork,
    BridgeNetwork,
    OverlayNetwork,
)


def contained(engine: str, shared: Path) -> list[Mode]:
    """The modes of an engine's containers, in the order in which they are shown.

    Args:
        engine: one of :data:`.ENGINES`.
        shared: a directory that containers see.
    """
    return [kind(engine, shared) for kind in _MODES]


def every() -> list[Mode]:
    """Those of all engines, to remove what they left."""
    return [mode for engine in ENGINES for mode in contained(engine, Path("/"))]
