# SPDX-License-Identifier: Apache-2.0
"""Which addresses are this host: what its routes deliver to itself (rtnetlink(7)).

Not the addresses of its interfaces: ``ip route add local 198.51.100.0/24 dev lo``
makes a host answer on a whole range that no interface has. And which are beside it:
what its interfaces have as their ranges; and where it sends what is for nobody else.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator

from netaddr import IPAddress, IPNetwork, cidr_merge

from slimnet.rtnetlink import Rtnetlink

__all__ = [
    "broadcast_addresses",
    "default_interface",
    "interface_addresses",
    "interface_ranges",
    "local_ranges",
]

# include/uapi/linux/rtnetlink.h, fib_rules.h, if_addr.h
_GET_ADDRESS, _GET_ROUTE, _GET_RULE = 22, 26, 34
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_TABLE = 1, 4, 15
_TABLE_MAIN = 254
_FRA_IIFNAME, _FRA_FWMARK, _FRA_TABLE, _FRA_L3MDEV = 3, 10, 15, 19
_FIB_RULE_INVERT = 2
_SELECTING = frozenset({_FRA_IIFNAME, _FRA_FWMARK})
_TYPE_UNICAST, _TYPE_LOCAL, _TYPE_BROADCAST = 1, 2, 3

#: Nobody's own, whatever the routes say: each network namespace has its loopback,
#: link-local addresses (RFC 3927, RFC 4291) are those of one link, and inner ones
#: (design 4.5) are the endpoints'.
_NOBODYS = tuple(
    map(IPNetwork, ("127.0.0.0/8", "169.254.0.0/16", "240.0.0.0/4", "::1/128", "fe80::/10"))
)


def local_ranges(without: Iterable[IPNetwork] = ()) -> frozenset[IPNetwork]:
    """The IPv4 ranges that this network namespace delivers to itself.

    Not those of tables to which only packets with a mark, or from one interface, are
    led (ip-rule(8)): a transparent proxy's say ``local 0.0.0.0/0``.

    Args:
        without: ranges to leave out, with all that lies in them.
    """
    left_out = (*_NOBODYS, *without)
    with Rtnetlink() as route:
        every: set[bytes] = set()
        some: set[bytes] = set()
        vrf = False
        for header, rule in route.dump(_GET_RULE, struct.pack("=B11x", socket.AF_INET)):
            table = rule.get(_FRA_TABLE, bytes(4))
            inverted = header[8] & _FIB_RULE_INVERT
            (some if rule.keys() & _SELECTING and not inverted else every).add(table)
            vrf |= _FRA_L3MDEV in rule  # leads to the table of any VRF (vrf.rst)
        found = [
            to
            for to, table in _routes(route, _TYPE_LOCAL)
            if table in every or (vrf and table not in some)
        ]
    wanted = (each for each in found if not any(each in other for other in left_out))
    return frozenset(cidr_merge(wanted))


def broadcast_addresses() -> frozenset[IPNetwork]:
    """The IPv4 addresses at which this network namespace's links have everybody."""
    with Rtnetlink() as route:
        return frozenset(to for to, _ in _routes(route, _TYPE_BROADCAST))


def interface_addresses() -> list[tuple[str, IPAddress]]:
    """The IPv4 addresses of this network namespace's interfaces, each with the interface's
    name, in the kernel's order."""
    found = []
    with Rtnetlink() as route:
        request = struct.pack("=4BI", socket.AF_INET, 0, 0, 0, 0)
        for header, entry in route.dump(_GET_ADDRESS, request):
            (index,) = struct.unpack_from("=I", header, 4)
            with contextlib.suppress(OSError):  # gone meanwhile
                address = socket.inet_ntop(socket.AF_INET, entry[_IFA_LOCAL])
                found.append((socket.if_indextoname(index), IPAddress(address)))
    return found


def default_interface() -> str | None:
    """By which interface the main table's first default route of IPv4 leads."""
    with Rtnetlink() as route:
        request = struct.pack("=7BBI", socket.AF_INET, *bytes(6), _TYPE_UNICAST, 0)
        for header, entry in route.dump(_GET_ROUTE, request):
            table = struct.unpack("=I", entry[_RTA_TABLE])
            if header[1] == 0 and table == (_TABLE_MAIN,) and _RTA_OIF in entry:
                with contextlib.suppress(OSError):
                    return socket.if_indextoname(*struct.unpack("=I", entry[_RTA_OIF]))
    return None


def interface_ranges() -> dict[IPNetwork, str]:
    """The ranges, of IPv4 and of IPv6, that this network namespace has on its interfaces, or
    at the other end of them, each with the interface's name."""
    found: dict[IPNetwork, str] = {}
    with Rtnetlink() as route:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=4BI", family, 0, 0, 0, 0)
            for header, entry in route.dump(_GET_ADDRESS, request):
                address = socket.inet_ntop(family, entry[_IFA_ADDRESS])
                cidr = IPNetwork(f"{address}/{header[1]}").cidr
                if not any(cidr in other for other in _NOBODYS):
                    (index,) = struct.unpack_from("=I", header, 4)
                    with contextlib.suppress(OSError):  # gone meanwhile
                        found[cidr] = socket.if_indextoname(index)
    return found


def _routes(route: Rtnetlink, kind: int) -> Iterator[tuple[IPNetwork, bytes]]:
    """The IPv4 routes of one type: where to, and the table that has it."""
    request = struct.pack("=7BBI", socket.AF_INET, *bytes(6), kind, 0)
    for header, entry in route.dump(_GET_ROUTE, request):
        if header[7] == kind:
            address = socket.inet_ntop(socket.AF_INET, entry.get(_RTA_DST, bytes(4)))
            yield IPNetwork(f"{address}/{header[1]}"), entry[_RTA_TABLE]
