# SPDX-License-Identifier: Apache-2.0
"""Which ranges a network may have."""

from __future__ import annotations

from netaddr import IPNetwork

from slimnet.exceptions import AlreadyExists, InvalidValue
from slimnet.model import Host, Network

__all__ = ["check_alone", "check_beside", "overlapped"]

#: What an overlay may not contain (RFC 6890), and why.
_RESERVED = {
    IPNetwork("0.0.0.0/8"): "'this network' (RFC 1122)",
    IPNetwork("127.0.0.0/8"): "loopback",
    IPNetwork("169.254.0.0/16"): "link-local (RFC 3927)",
    IPNetwork("224.0.0.0/4"): "multicast",
    IPNetwork("240.0.0.0/4"): "the inner addresses and broadcast",
}


def check_alone(network: Network) -> None:
    """The ranges by themselves.

    Raises:
        InvalidValue: one is not IPv4, reserved, or overlaps another of them.
    """
    for index, cidr in enumerate(network.cidrs):
        if cidr.version != 4:
            raise InvalidValue(
                "network.cidrs", "IPv4 ranges (IPv6 overlays are not carried yet)", str(cidr)
            )
        for reserved, what in _RESERVED.items():
            if cidr.first <= reserved.last and reserved.first <= cidr.last:
                raise InvalidValue(
                    "network.cidrs", f"a range without {reserved}, {what}", str(cidr)
                )
        for other in network.cidrs[:index]:
            if cidr.first <= other.last and other.first <= cidr.last:
                raise InvalidValue(
                    "network.cidrs", f"ranges that do not overlap ({other})", str(cidr)
                )


def check_beside(network: Network, networks: list[Network], hosts: list[Host]) -> None:
    """The ranges beside what the cluster has.

    Raises:
        AlreadyExists: the name is taken.
        InvalidValue: one overlaps another network, or what a host is or has beside it.
    """
    for other in networks:
        if other.name == network.name:
            raise AlreadyExists(f"network {network.name} is there: VNI {other.vni}")
        for cidr in network.cidrs:
            for theirs in other.cidrs:
                if cidr.first <= theirs.last and theirs.first <= cidr.last:
                    wanted = f"a range apart from network {other.name}'s {theirs}"
                    raise InvalidValue("network.cidrs", wanted, str(cidr))
    for host in hosts:
        for cidr in network.cidrs:
            if found := overlapped(cidr, host):
                raise InvalidValue("network.cidrs", f"a range without {found}", str(cidr))


def overlapped(cidr: IPNetwork, host: Host) -> str:
    """What of a host a range overlaps, in words; empty where it is apart."""
    there = {IPNetwork(host.address): "the underlay address"}
    for each, what in (*host.taken.items(), *((own, "an address") for own in host.ranges)):
        there.setdefault(each, what)
    for each, what in there.items():
        if each.version != cidr.version:
            continue
        if cidr.first <= each.last and each.first <= cidr.last:
            return f"{each}, {what} of host {host.name}"
    return ""
