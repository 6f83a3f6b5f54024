# SPDX-License-Identifier: Apache-2.0
"""The three ways in which two hosts talk, each on the same kind of underlay.

======== ========================================================================
host     processes directly on the two hosts: no overlay at all
vxlan    slimnet with the ``noop`` backend: endpoints in namespaces, over VXLAN
slimnet  slimnet with the ``ebpf`` backend
======== ========================================================================

A site is a fresh pair of hosts: nothing of an earlier round, least of all its
sockets in TIME_WAIT, is left in it.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from attrs import frozen

from slimnet.demo.place import Place
from slimnet.testing import Underlay, UnderlayHost

__all__ = ["MODES", "Mode", "Site", "site_name"]


@frozen
class Site:
    """Two places that can talk.

    Attributes:
        mode: the name of the mode.
        client: on the first host.
        server: on the second host.
    """

    mode: str
    client: Place
    server: Place


class Mode(abc.ABC):
    """One way in which two hosts talk."""

    #: What ``--modes`` calls it.
    name: ClassVar[str]
    #: What the report calls it.
    title: ClassVar[str]
    #: Whether connections to one service go on when a host's source ports are used up.
    unbounded: ClassVar[bool] = False

    @abc.abstractmethod
    def site(self, name: str) -> AbstractContextManager[Site]:
        """A context manager that makes a fresh site, and removes it.

        Args:
            name: unique on this machine.
        """


class HostMode(Mode):
    """No overlay: what the others are compared with."""

    name = "host"
    title = "host mode"

    @contextmanager
    def site(self, name: str) -> Iterator[Site]:
        with ExitStack() as undo:
            hosts = undo.enter_context(Underlay(hosts=2, name=name)).hosts
            client, server = (self._place(undo, name, host) for host in hosts)
            yield Site(self.name, client, server)

    def _place(self, undo: ExitStack, name: str, host: UnderlayHost) -> Place:
        cgroup = _cgroup_mount() / "slimnet-demo" / f"{name}-{host.name}"
        cgroup.mkdir(parents=True)
        undo.callback(_remove_cgroup, cgroup)
        place = Place(str(host.address), _Host(host, cgroup, host.netns))
        undo.callback(place.kill)
        return place


@frozen
class _Host:
    """What the sandbox wants to know of an endpoint, of a whole host."""

    endpoint: UnderlayHost
    cgroup: Path
    netns: Path
    hosts: Path = Path("/etc/hosts")


def _cgroup_mount() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise FileNotFoundError("cgroup v2: not mounted")


def _remove_cgroup(cgroup: Path) -> None:
    cgroup.rmdir()
    with suppress(OSError):  # another demo's are in it
        cgroup.parent.rmdir()


#: In the order in which they are shown; the first is what the others are compared with.
MODES: tuple[Mode, ...] = (HostMode(),)


def site_name(mode: Mode, number: int) -> str:
    """A name for a site: no other demo on this machine uses it."""
    return f"demo{os.getpid()}-{number}-{mode.name}"
