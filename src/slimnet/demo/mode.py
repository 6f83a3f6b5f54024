# SPDX-License-Identifier: Apache-2.0
"""The ways in which two hosts talk, each on the same kind of underlay.

======== ========================================================================
host     processes directly on the two hosts: no overlay at all
vxlan    slimnet with the ``noop`` backend: endpoints in namespaces, over VXLAN
slimnet  slimnet with the ``ebpf`` backend
netns    the same, endpoints in network namespaces of their own; only where it is asked for
kmod     slimnet with the ``kmod`` backend; only where it is asked for
preload  slimnet with the ``preload`` backend; only where it is asked for
======== ========================================================================

A pair is two hosts made afresh: nothing of an earlier round, least of all its
sockets in TIME_WAIT, is left in it.
"""

from __future__ import annotations

import abc
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from attrs import frozen

from slimnet.demo.side import Side
from slimnet.linux import cgroup
from slimnet.place import HOSTS, Place
from slimnet.plugins import choose_backend, probe
from slimnet.testbed import Testbed
from slimnet.testing import Underlay, UnderlayHost

__all__ = ["MODES", "NETWORK", "POLICY", "RANGE", "Mode", "Pair", "sweep"]

# A file per pair: what the next run removes, should this one be killed.
_RECORDS = Path("/run/slimnet-demo")

#: The overlay, and its addresses.
NETWORK, RANGE = "demo", "10.77.0.0/16"

#: Both ends' connections are decided by rules: nothing is measured without policy.
POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]
"""

_numbers = itertools.count(1)


@frozen
class Pair:
    """Two places that can talk.

    Attributes:
        mode: the name of the mode.
        client: on the first host.
        server: on the second host.
        instances: the names of the hosts' data paths, where there are some.
    """

    mode: str
    client: Side
    server: Side
    instances: tuple[str, ...] = ()


class Mode(abc.ABC):
    """One way in which two hosts talk."""

    #: What ``--modes`` calls it.
    name: ClassVar[str]
    #: What the report calls it.
    title: ClassVar[str]
    #: Whether connections to one service go on when a host's source ports are used up.
    unbounded: ClassVar[bool] = False
    #: Whether BPF programs do the work, which the kernel can count.
    counted: ClassVar[bool] = False
    #: Whether it is measured without being asked for.
    usual: ClassVar[bool] = True

    @property
    def key(self) -> str:
        """What the names of its pairs end with."""
        return self.name

    def check(self) -> None:
        """Can it work on this machine?

        Raises:
            BackendUnavailable: says why not.
        """

    @abc.abstractmethod
    def make(self, name: str) -> Pair:
        """Make a pair.

        Args:
            name: unique on this machine.
        """

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove all of a pair, its programs too; one that is half made, or not
        there, is no error."""

    @contextmanager
    def pair(self) -> Iterator[Pair]:
        """A fresh pair while the block lasts."""
        name = f"demo{os.getpid()}-{next(_numbers)}-{self.key}"
        _RECORDS.mkdir(exist_ok=True)
        record = _RECORDS / name
        record.touch()
        try:
            yield self.make(name)
        finally:
            self.remove(name)
            record.unlink()
            with suppress(OSError):  # another demo's are in it
                _RECORDS.rmdir()


class HostMode(Mode):
    """No overlay: what the others are compared with."""

    name = "host"
    title = "host mode"

    def make(self, name: str) -> Pair:
        """See :meth:`Mode.make`."""
        underlay = Underlay(hosts=2, name=name)
        underlay.up()
        client, server = (self._side(name, host) for host in underlay.hosts)
        return Pair(self.name, client, server)

    def remove(self, name: str) -> None:
        """See :meth:`Mode.remove`."""
        underlay = Underlay(hosts=2, name=name)
        for host in underlay.hosts:
            side = self._side(name, host)
            side.kill()
            side.cgroup.rmdir()
        with suppress(OSError):  # another demo's are in it
            _cgroups().rmdir()
        underlay.down()

    @staticmethod
    def _side(name: str, host: UnderlayHost) -> Side:
        cgroup = _cgroups() / f"{name}-{host.name}"
        cgroup.mkdir(parents=True, exist_ok=True)
        inside = Place(cgroup, host.netns, mounts={HOSTS: Path(HOSTS)})
        return Side(str(host.address), _Host(host, inside))


class OverlayMode(Mode):
    """Slimnet with one of its backends; with a policy, as real clusters have."""

    backend: ClassVar[str]
    #: Of ``[backend.NAME]``.
    options: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def check(self) -> None:
        """See :meth:`Mode.check`."""
        choose_backend(self.backend, probe)

    def make(self, name: str) -> Pair:
        """See :meth:`Mode.make`."""
        testbed = Testbed(name, hosts=2, backend=self.backend, options=self.options)
        testbed.up()
        first, second = testbed.hosts
        with first.node() as node:
            node.create_network(NETWORK, RANGE)
            client = node.attach(NETWORK, "client", labels={"app": "client"})
        with second.node() as node:
            server = node.attach(NETWORK, "server", labels={"app": "server"})
            node.apply_policy(POLICY, network=NETWORK)
            node.wait()
        return Pair(
            self.name,
            Side(str(client.endpoint.address), client),
            Side(str(server.endpoint.address), server),
            (first.instance, second.instance),
        )

    def remove(self, name: str) -> None:
        """See :meth:`Mode.remove`."""
        Testbed(name, hosts=2, backend=self.backend).down()


class VxlanMode(OverlayMode):
    """The ordinary overlay: a namespace per endpoint, packets in packets."""

    name = "vxlan"
    title = "VXLAN"
    backend = "noop"


class SlimnetMode(OverlayMode):
    """Connections, not packets."""

    name = "slimnet"
    title = "slimnet"
    backend = "ebpf"
    unbounded = True
    counted = True


class NetnsMode(SlimnetMode):
    """Connections, not packets, of endpoints with a network namespace of their own."""

    name = "netns"
    title = "slimnet, netns"
    options = MappingProxyType({"placement": "netns"})
    usual = False
    unbounded = False


class KmodMode(OverlayMode):
    """The sockets of endpoints with a network namespace of their own are the host's."""

    name = "kmod"
    title = "kernel module"
    backend = "kmod"
    usual = False
    unbounded = True


class PreloadMode(OverlayMode):
    """Connections, not packets, and nothing in the kernel."""

    name = "preload"
    title = "preload"
    backend = "preload"
    usual = False


@frozen
class _Host:
    """What the sandbox wants to know of an endpoint, of a whole host."""

    endpoint: UnderlayHost
    place: Place


def _cgroups() -> Path:
    return cgroup.mount() / "slimnet-demo"


#: In the order in which they are shown; the first is what the others are compared with.
MODES: tuple[Mode, ...] = (
    HostMode(),
    VxlanMode(),
    SlimnetMode(),
    NetnsMode(),
    KmodMode(),
    PreloadMode(),
)


def sweep(others: Iterable[Mode] = ()) -> None:
    """Remove the pairs of demos that were killed.

    Args:
        others: modes beside :data:`MODES` that there may be pairs of.
    """
    modes = {mode.key: mode for mode in (*MODES, *others)}
    for record in _RECORDS.glob("demo*-*-*"):
        process, _, mode = record.name.split("-")
        if not Path("/proc", process.removeprefix("demo")).exists():
            modes[mode].remove(record.name)
            record.unlink()
