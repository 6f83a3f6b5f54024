# SPDX-License-Identifier: Apache-2.0
"""Hosts on one switched underlay, out of network namespaces.

::

      host 1          host 2          host N          (namespaces slt-<name>-h1 ...)
      eth0 .1         eth0 .2         eth0 .N         198.18.0.0/15 by default
        |               |               |
     ---+---------------+---------------+---  br0     (namespace slt-<name>-switch)
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from attrs import frozen
from netaddr import IPAddress, IPNetwork
from pyroute2 import IPRoute

from slimnet.linux import netns

__all__ = ["Underlay", "UnderlayHost"]


_numbers = itertools.count(1)


@frozen
class UnderlayHost:
    """One host of an :class:`Underlay`.

    Attributes:
        name: ``h1``, ``h2``, ...
        netns: the path of its network namespace.
        address: its underlay address.
        interface: the name of its underlay interface.
    """

    name: str
    netns: Path
    address: IPAddress
    interface: str


class Underlay:
    """Makes the hosts, and removes them when the block ends.

    Args:
        hosts: how many.
        name: unique on this machine; made of the process id by default.
        network: the underlay's range (RFC 2544's benchmarking range by default).
        mtu: of the hosts' interfaces, in bytes.

    Example::

        with Underlay(hosts=2) as underlay, underlay.enter(0):
            ...  # this thread is on the first host
    """

    def __init__(
        self,
        hosts: int = 2,
        name: str | None = None,
        network: str = "198.18.0.0/15",
        mtu: int = 1500,
    ) -> None:
        self.name = name or f"p{os.getpid()}-{next(_numbers)}"
        self.network = IPNetwork(network)
        self.mtu = mtu
        self.switch = netns.DIRECTORY / f"slt-{self.name}-switch"
        self.hosts = tuple(
            UnderlayHost(
                name=f"h{number}",
                netns=netns.DIRECTORY / f"slt-{self.name}-h{number}",
                address=self.network[number],
                interface="eth0",
            )
            for number in range(1, hosts + 1)
        )

    def up(self) -> None:
        """Make what is missing. On an error nothing is left of what was made now."""
        with contextlib.ExitStack() as undo:
            if not netns.exists(self.switch):
                undo.callback(netns.remove, self.switch)
                netns.create(self.switch)
            with netns.netlink(self.switch) as switch:
                if not switch.link_lookup(ifname="br0"):
                    # No spanning tree delay, and no multicast snooping to wait for.
                    switch.link(
                        "add", ifname="br0", kind="bridge", br_stp_state=0, br_mcast_snooping=0
                    )
                bridge = switch.link_lookup(ifname="br0")[0]
                switch.link("set", index=bridge, mtu=self.mtu, state="up")
                for host in self.hosts:
                    if not netns.exists(host.netns):
                        undo.callback(netns.remove, host.netns)
                        netns.create(host.netns)
                    if not switch.link_lookup(ifname=host.name):
                        self._plug(host, switch, bridge)
            undo.pop_all()

    def _plug(self, host: UnderlayHost, switch: IPRoute, bridge: int) -> None:
        with host.netns.open() as there:
            switch.link(
                "add",
                ifname=host.name,
                kind="veth",
                mtu=self.mtu,
                peer={"ifname": host.interface, "net_ns_fd": there.fileno(), "mtu": self.mtu},
            )
        port = switch.link_lookup(ifname=host.name)[0]
        switch.link("set", index=port, master=bridge, state="up")
        with netns.netlink(host.netns) as route:
            index = route.link_lookup(ifname=host.interface)[0]
            route.addr(
                "add", index=index, address=str(host.address), prefixlen=self.network.prefixlen
            )
            route.link("set", index=index, state="up")

    def join(self, address: IPAddress) -> None:
        """Give the switch an address, for who is in its namespace; again is no error."""
        with netns.netlink(self.switch) as switch:
            for name in ("lo", "br0"):
                switch.link("set", index=switch.link_lookup(ifname=name)[0], state="up")
            switch.addr(
                "replace",
                index=switch.link_lookup(ifname="br0")[0],
                address=str(address),
                prefixlen=self.network.prefixlen,
            )

    def down(self) -> None:
        """Remove it all. Removing what is not there is no error."""
        for path in (*(host.netns for host in self.hosts), self.switch):
            netns.remove(path)

    @contextlib.contextmanager
    def enter(self, host: int) -> Iterator[UnderlayHost]:
        """The calling thread is on the host (by index, from 0) while the block lasts."""
        with netns.enter(self.hosts[host].netns):
            yield self.hosts[host]

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()
