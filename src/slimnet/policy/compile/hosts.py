# SPDX-License-Identifier: Apache-2.0
"""Which addresses are a host of the cluster, as far as a host is believed.

Its underlay address always is. What else it says that it is (:attr:`.Host.ranges`)
is believed of addresses outside of the overlay, that are no other host's underlay
address, in ranges of /8 or less: so it can hide no endpoint and no other host, nor
declare the world its own. Where several claim an address, it is the host's whose
tables these are, else the first by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from netaddr import IPNetwork, IPSet

from slimnet.model import Host
from slimnet.policy.compile.ranges import Prefix, above, network_of, prefix_of

__all__ = ["WIDEST", "HostRanges"]

#: The shortest prefix that is believed.
WIDEST = 8


class HostRanges:
    """Address to host, as one network's tables say it.

    Args:
        hosts: the cluster's.
        overlay: the network's ranges.
        here: the name of the host whose tables they are.
    """

    def __init__(
        self, hosts: Collection[Host], overlay: Iterable[IPNetwork], here: str | None
    ) -> None:
        cidrs = IPSet(overlay)
        self._hosts: dict[Prefix, tuple[int, Host]] = {}
        for host in hosts:
            self._hosts[prefix_of(IPNetwork(host.address))] = (-1, host)
        for rank, host in enumerate(sorted(hosts, key=lambda one: (one.name != here, one.name))):
            claimed = IPSet(each for each in host.ranges if each.prefixlen >= WIDEST)
            for each in (claimed - cidrs).iter_cidrs():
                self._hosts.setdefault(prefix_of(each), (rank, host))
        self._lengths = {prefix[2] for prefix in self._hosts}

    def networks(self) -> list[IPNetwork]:
        """Every range in which an address is a host."""
        return [network_of(prefix) for prefix in self._hosts]

    def find(self, prefix: Prefix) -> Host | None:
        """The host that all addresses of a range are, of those that are told apart."""
        found = [self._hosts[each] for each in above(prefix, self._lengths) if each in self._hosts]
        return min(found, key=lambda one: one[0])[1] if found else None
