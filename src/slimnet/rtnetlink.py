# SPDX-License-Identifier: Apache-2.0
"""Short questions to the kernel about links and routes (rtnetlink(7)), and what goes to the
host itself.

For what is asked again and again, or by everybody: an answer takes some 10 us, and pyroute2,
which can change everything, some milliseconds, and 100 more to be imported. All of it is about
the calling thread's network namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Self

from attrs import frozen
from netaddr import IPAddress, IPNetwork

__all__ = ["Link", "Rtnetlink", "Watch"]

# include/uapi/linux/netlink.h, rtnetlink.h, if_link.h
_REQUEST, _REQUEST_DUMP = 1, 0x301
_ACK, _REPLACE, _CREATE = 4, 0x100, 0x400
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12
_GET_LINK, _GET_ROUTE = 18, 26
_RTA_DST, _RTA_OIF, _RTA_PREFSRC = 1, 4, 7
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_EXT_MASK = 3, 18, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_VXLAN_LINK = 1, 2, 3
_SKIP_STATS = 1 << 3
_FIB_MATCH = 0x2000
_TYPE_LOCAL, _TYPE_BROADCAST = 2, 3
_TABLE_LOCAL, _PROTO_KERNEL = 255, 2
_SCOPE_UNIVERSE, _SCOPE_HOST = 0, 254
_IFF_UP = 1
# Where two fields of struct rtmsg are in a message: behind struct nlmsghdr.
_RTM_DST_LEN, _RTM_TYPE = 16 + 1, 16 + 7

# RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, as bits
_GROUPS = 1 << 4 | 1 << 6 | 1 << 7
_NEW_ROUTE, _DEL_ROUTE = 24, 25
_SO_ATTACH_FILTER = 26


@frozen
class Link:
    """An interface.

    Attributes:
        index: its number.
        is_up: whether it is to be up; its peer or cable may say otherwise.
        lower: index of the one that a VXLAN device was made for, in the namespace where it
            was made; 0: none.
    """

    index: int
    is_up: bool
    lower: int


class Rtnetlink:
    """A socket for questions; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        # With strict checking the kernel filters a dump by table and type; without, it would
        # send all routes of a table with 100,000, to be thrown away here.
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self, kind: int, request: bytes) -> Iterator[tuple[bytes, dict[int, bytes]]]:
        """The messages of a dump: header, which is as long as the request's, and attributes.

        Raises:
            OSError: the kernel refused.
        """
        begin = 16 + len(request)
        self._send(kind, _REQUEST_DUMP, request)
        while True:
            data = self._socket.recv(1 << 16)
            while data:
                length, got, *_ = struct.unpack_from("=IHHII", data)
                if got in (_ERROR, _DONE):
                    _raise(data)
                    return
                yield data[16:begin], dict(_attributes(data[begin:length]))
                data = data[(length + 3) & ~3 :]

    def link(self, name: str) -> Link | None:
        """The interface of that name; ``None`` where there is none."""
        wanted = _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        mask = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))
        self._send(_GET_LINK, _REQUEST, bytes(16) + wanted + mask)
        data = self._answer(errno.ENODEV)
        if data is None:
            return None
        _, index, flags = struct.unpack_from("=HxxiI", data, 16)  # struct ifinfomsg begins so
        # Not IFLA_LINK, which for VXLAN is the device's own index.
        kind = dict(_attributes(dict(_attributes(data[32:])).get(_IFLA_LINKINFO, b"")))
        lower = bytes(4)
        if kind.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") == b"vxlan":
            lower = dict(_attributes(kind[_IFLA_INFO_DATA])).get(_IFLA_VXLAN_LINK, lower)
        return Link(index, bool(flags & _IFF_UP), *struct.unpack("=I", lower))

    def delivers(self, address: IPAddress) -> bool:
        """Whether what is sent to an address is delivered to this host itself."""
        data = self._route(address)
        return data is not None and data[_RTM_TYPE] == _TYPE_LOCAL

    def way(self, address: IPAddress) -> tuple[int, IPAddress | None] | None:
        """By which interface (its number), and with which source, the kernel sends to an IPv4
        address where a socket says neither; ``None``: it has no route."""
        data = self._route(address, 0)
        if data is None:
            return None
        found = dict(_attributes(data[28:]))
        source = found.get(_RTA_PREFSRC)
        (index,) = struct.unpack("=I", found.get(_RTA_OIF, bytes(4)))
        return index, None if source is None else IPAddress(int.from_bytes(source, "big"), 4)

    def deliver(self, network: IPNetwork, *, on: bool) -> None:
        """From now on deliver what is sent to a network to this host itself; or no longer.

        Raises:
            OSError: the kernel refused.
        """
        v4 = network.version == 4
        message = struct.pack(
            "=8BI",
            socket.AF_INET if v4 else socket.AF_INET6,
            network.prefixlen,
            *(0, 0, _TABLE_LOCAL),
            # systemd-networkd removes what is not the kernel's own from every interface
            # (networkd.conf(5), ManageForeignRoutes=), each time that it starts.
            _PROTO_KERNEL if on else 0,
            _SCOPE_HOST if v4 else _SCOPE_UNIVERSE,
            _TYPE_LOCAL,
            0,
        )
        message += _attribute(_RTA_DST, IPAddress(network.first, network.version).packed)
        message += _attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex("lo")))
        how = _REQUEST | _ACK
        self._send(*((_NEW_ROUTE, how | _CREATE | _REPLACE) if on else (_DEL_ROUTE, how)), message)
        _raise(self._socket.recv(1 << 16))

    def leads(self, network: IPNetwork) -> bool:
        """Whether the route to a network's first address is that network's own."""
        data = self._route(IPAddress(network.first, network.version))
        return data is not None and data[_RTM_DST_LEN] == network.prefixlen

    def outgoing(self, address: IPAddress) -> int:
        """Index of the interface by which packets to an address leave; 0: by none."""
        data = self._route(address)
        found = {} if data is None else dict(_attributes(data[28:]))
        (index,) = struct.unpack("=I", found.get(_RTA_OIF, bytes(4)))
        return int(index)

    def _route(self, address: IPAddress, flags: int = _FIB_MATCH) -> bytes | None:
        """The route that the kernel would take: a message with a struct rtmsg."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        raw = address.packed
        header = struct.pack("=8BI", family, 8 * len(raw), *bytes(6), flags)
        self._send(_GET_ROUTE, _REQUEST, header + _attribute(_RTA_DST, raw))
        # EINVAL, EACCES and the like: of a route of type blackhole, prohibit ...
        return self._answer(
            errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.EAFNOSUPPORT
        )

    def _send(self, kind: int, flags: int, request: bytes) -> None:
        self._socket.send(struct.pack("=IHHII", 16 + len(request), kind, flags, 1, 0) + request)

    def _answer(self, *none: int) -> bytes | None:
        """One message; ``None`` where the kernel answers one of these errors."""
        data = self._socket.recv(1 << 16)
        (got,) = struct.unpack_from("=H", data, 4)
        try:
            if got == _ERROR:
                _raise(data)
        except OSError as error:
            if error.errno in none:
                return None
            raise
        return data


class Watch:
    """Says that IPv4 addresses, rules, or routes of the host to itself have changed."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            socket.NETLINK_ROUTE,
        )
        # A router's other routes change thousands of times a second: the kernel drops these
        # messages (networking/filter.rst). Nothing but a route is looked into.
        program = (
            (0x28, 0, 0, 4),  # A = half word at 4, in network order
            (0x15, 2, 0, socket.htons(_NEW_ROUTE)),
            (0x15, 1, 0, socket.htons(_DEL_ROUTE)),
            (0x06, 0, 0, 0xFFFFFFFF),  # pass
            (0x30, 0, 0, _RTM_TYPE),  # A = byte there
            (0x15, 2, 0, _TYPE_LOCAL),
            (0x15, 1, 0, _TYPE_BROADCAST),
            (0x06, 0, 0, 0),  # drop
            (0x06, 0, 0, 0xFFFFFFFF),
        )
        code = b"".join(struct.pack("=HBBI", *each) for each in program)
        kept = ctypes.create_string_buffer(code)
        self._socket.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(program), ctypes.addressof(kept)),
        )
        self._socket.bind((0, _GROUPS))

    def changed(self) -> bool:
        """Whether anything has since the last call; does not wait."""
        found = False
        while True:
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # so much that the kernel dropped some
                    raise
            found = True

    def close(self) -> None:
        """Closing twice is no error."""
        self._socket.close()


def _raise(data: bytes) -> None:
    (number,) = struct.unpack_from("=i", data, 16)
    if number:
        raise OSError(-number, f"rtnetlink: {os.strerror(-number)}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in the tail of a message: type and value."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]
