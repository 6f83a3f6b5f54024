# SPDX-License-Identifier: Apache-2.0
"""Which addresses are this host: what its routes deliver to itself (rtnetlink(7)).

Not the addresses of its interfaces: ``ip route add local 198.51.100.0/24 dev lo``
makes a host answer on a whole range that no interface has. And which are beside it:
what its interfaces have as their ranges.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator

from netaddr import IPNetwork, cidr_merge

__all__ = ["broadcast_addresses", "interface_ranges", "local_ranges"]

# include/uapi/linux/netlink.h, rtnetlink.h, fib_rules.h
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_GET_ADDRESS, _GET_ROUTE, _GET_RULE = 22, 26, 34
_IFA_ADDRESS = 1
_RTA_DST, _RTA_TABLE = 1, 15
_FRA_IIFNAME, _FRA_FWMARK, _FRA_TABLE, _FRA_L3MDEV = 3, 10, 15, 19
_FIB_RULE_INVERT = 2
_SELECTING = frozenset({_FRA_IIFNAME, _FRA_FWMARK})
_TYPE_LOCAL, _TYPE_BROADCAST = 2, 3

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
    with _netlink() as route:
        every: set[bytes] = set()
        some: set[bytes] = set()
        vrf = False
        for header, rule in _dump(route, _GET_RULE, struct.pack("=B11x", socket.AF_INET)):
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
    with _netlink() as route:
        return frozenset(to for to, _ in _routes(route, _TYPE_BROADCAST))


def interface_ranges() -> dict[IPNetwork, str]:
    """The ranges, of IPv4 and of IPv6, that this network namespace has on its interfaces, or
    at the other end of them, each with the interface's name."""
    found: dict[IPNetwork, str] = {}
    with _netlink() as route:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=4BI", family, 0, 0, 0, 0)
            for header, entry in _dump(route, _GET_ADDRESS, request):
                address = socket.inet_ntop(family, entry[_IFA_ADDRESS])
                cidr = IPNetwork(f"{address}/{header[1]}").cidr
                if not any(cidr in other for other in _NOBODYS):
                    (index,) = struct.unpack_from("=I", header, 4)
                    with contextlib.suppress(OSError):  # gone meanwhile
                        found[cidr] = socket.if_indextoname(index)
    return found


def _netlink() -> socket.socket:
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    # With strict checking the kernel filters a dump by table and type; without, it would
    # send all routes of a table with 100,000, to be thrown away here.
    route.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
    return route


def _routes(route: socket.socket, kind: int) -> Iterator[tuple[IPNetwork, bytes]]:
    """The IPv4 routes of one type: where to, and the table that has it."""
    request = struct.pack("=7BBI", socket.AF_INET, *bytes(6), kind, 0)
    for header, entry in _dump(route, _GET_ROUTE, request):
        if header[7] == kind:
            address = socket.inet_ntop(socket.AF_INET, entry.get(_RTA_DST, bytes(4)))
            yield IPNetwork(f"{address}/{header[1]}"), entry[_RTA_TABLE]


def _dump(
    route: socket.socket, kind: int, request: bytes
) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    """The messages of a dump: header, which is as long as the request's, and attributes."""
    begin = 16 + len(request)
    route.send(struct.pack("=IHHII", 16 + len(request), kind, _REQUEST_DUMP, 1, 0) + request)
    while True:
        data = route.recv(1 << 16)
        while data:
            length, got, *_ = struct.unpack_from("=IHHII", data)
            if got in (_ERROR, _DONE):
                (number,) = struct.unpack_from("=i", data, 16)
                if number:
                    raise OSError(-number, f"rtnetlink: {os.strerror(-number)}")
                return
            yield data[16:begin], dict(_attributes(data[begin:length]))
            data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]
