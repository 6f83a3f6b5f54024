# SPDX-License-Identifier: Apache-2.0
"""The sockets of a network namespace, over sock_diag(7): listed and destroyed.

One dump gives each socket's addresses, state, cookie, cgroup (INET_DIAG_CGROUP_ID, Linux
5.9), and what a data path keeps in its storage (INET_DIAG_SK_BPF_STORAGES, Linux 5.6),
which is why this is no library's: pyroute2 does not ask for that, and its import costs
125 ms besides.

Source: ``uapi/linux/inet_diag.h``, ``sock_diag.h``, ``tcp.h`` (struct tcp_info).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator

from attrs import frozen

__all__ = [
    "LISTENING",
    "LIVE",
    "PRESENT",
    "REQUESTS",
    "STATES",
    "UNCONNECTED",
    "Diagnosis",
    "Socket",
]

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_DESTROY = 21
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_REQ_STORAGES = 2
_REQ_STORAGE_MAP = 1
_INFO = 2
_V6ONLY = 11
_STORAGES = 20
_CGROUP = 21
_STORAGE_VALUE = 3
_NESTED = 0x8000
# tcpi_bytes_acked and tcpi_bytes_received of struct tcp_info (Linux 4.1)
_TRAFFIC = struct.Struct("=QQ")
_TRAFFIC_OFFSET = 120

#: TCP states by the kernel's number (net/tcp_states.h), as ``ss`` prints them.
STATES = (
    "UNKNOWN",
    "ESTAB",
    "SYN-SENT",
    "SYN-RECV",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "TIME-WAIT",
    "UNCONN",
    "CLOSE-WAIT",
    "LAST-ACK",
    "LISTEN",
    "CLOSING",
)
_LISTEN = STATES.index("LISTEN")
_EVERY = 0xFFFFFFFF
#: A mask of states: listeners alone.
LISTENING = 1 << _LISTEN
#: A mask of states: of UDP, those that take datagrams of anybody.
UNCONNECTED = 1 << STATES.index("UNCONN")
#: A mask of states: all but TIME_WAIT, of which there may be very many.
PRESENT = _EVERY & ~(1 << STATES.index("TIME-WAIT"))
#: Neither listeners nor anything unconnected.
LIVE = PRESENT & ~sum(1 << STATES.index(name) for name in ("UNCONN", "LISTEN"))
#: Handshakes, of which some are no more than a request yet.
REQUESTS = 1 << STATES.index("SYN-RECV")


@frozen
class Socket:
    """One socket.

    Attributes:
        family: AF_INET or AF_INET6.
        protocol: IPPROTO_TCP or IPPROTO_UDP.
        state: number of its TCP state.
        id: struct inet_diag_sockid: ports, addresses, interface, cookie.
        cgroup: id of the cgroup it was created in (:mod:`slimnet.linux.cgroup`); 0
            where unknown.
        storage: what the map that was asked for holds of it; empty where nothing.
        traffic: bytes that the peer acknowledged and bytes received, where they
            were asked for; SYN and FIN count.
        v6only: a listener, or an unconnected one, that takes no IPv4 (IPV6_V6ONLY).
        inode: of its file, by which processes hold it; 0 where none does.
    """

    family: int
    protocol: int
    state: int
    id: bytes
    cgroup: int
    storage: bytes
    traffic: tuple[int, int] = (0, 0)
    v6only: bool = False
    inode: int = 0

    @property
    def cookie(self) -> int:
        """The kernel's socket cookie."""
        low, high = struct.unpack("=II", self.id[40:48])
        return int(high << 32 | low)

    @property
    def interface(self) -> int:
        """Number of the interface that it is bound to; 0: none."""
        return int(struct.unpack("=I", self.id[36:40])[0])

    @property
    def ports(self) -> tuple[int, int]:
        """Local and remote port, as the kernel has them."""
        local, remote = struct.unpack("!HH", self.id[:4])
        return local, remote

    @property
    def addresses(self) -> tuple[bytes, bytes]:
        """Local and remote address, 4 or 16 bytes."""
        size = 4 if self.family == socket.AF_INET else 16
        return self.id[4 : 4 + size], self.id[20 : 20 + size]


class Diagnosis:
    """A netlink socket in the network namespace that it was made in.

    Args:
        storage_map: descriptor of the socket storage map (BPF_MAP_TYPE_SK_STORAGE)
            whose values to list; ``None`` for none.
    """

    def __init__(self, storage_map: int | None = None) -> None:
        self._storages = b"" if storage_map is None else _asked(storage_map)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sequence = 0
        self._lock = threading.Lock()

    def sockets(self, *protocols: int, traffic: bool = False, states: int = _EVERY) -> list[Socket]:
        """All sockets of these protocols in these states, IPv4's and IPv6's.

        Args:
            protocols: IPPROTO_TCP, IPPROTO_UDP; TCP if none is named.
            traffic: fill :attr:`Socket.traffic`.
            states: a mask of TCP states.

        Raises:
            OSError: the kernel refused, or knows no such storage map.
        """
        found: list[Socket] = []
        for protocol in protocols or (socket.IPPROTO_TCP,):
            for family in (socket.AF_INET, socket.AF_INET6):
                more = 1 << (_INFO - 1) if traffic else 0
                request = struct.pack("=BBBBI48x", family, protocol, more, 0, states)
                request += self._storages
                found += [_parse(one, protocol) for one in self._talk(_BY_FAMILY, _DUMP, request)]
        return found

    def destroy(self, victims: Iterable[Socket]) -> int:
        """Close sockets under their owners, who see ECONNABORTED; how many.

        Raises:
            OSError: the kernel cannot (CONFIG_INET_DIAG_DESTROY), or the caller may not
                (CAP_NET_ADMIN).
        """
        count, pending = 0, list(victims)
        while pending:
            left = [victim for victim in pending if not self._destroy(victim)]
            if len(left) == len(pending):
                break
            count += len(pending) - len(left)
            # SOCK_DESTROY looks a listener up by its address, and of a reuseport group finds
            # one member; when that is destroyed it finds another. So as long as some went.
            pending = [victim for victim in left if victim.state == _LISTEN]
        return count

    def close(self) -> None:
        """Closing twice is no error."""
        self._socket.close()

    def _destroy(self, victim: Socket) -> bool:
        request = struct.pack("=BBBBI", victim.family, victim.protocol, 0, 0, 0xFFFFFFFF)
        try:
            self._talk(_DESTROY, _ACK, request + victim.id)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False  # gone by itself
            raise
        return True

    def _talk(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        with self._lock:
            return self._exchange(kind, flags, payload)

    def _exchange(self, kind: int, flags: int, payload: bytes) -> list[bytes]:
        self._sequence += 1
        answers: list[bytes] = []
        header = struct.pack("=IHHII", 16 + len(payload), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            data = memoryview(self._socket.recv(1 << 16))
            while data:
                length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
                body = bytes(data[16:length])
                data = data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue  # an answer to an earlier request that was given up half-way
                if kind in (_ERROR, _DONE):
                    number = -struct.unpack_from("=i", body)[0]
                    if number > 0:
                        raise OSError(number, os.strerror(number))
                    return answers
                answers.append(body)


def _asked(storage_map: int) -> bytes:
    """The attribute of a request that asks for a map's values."""
    which = _attribute(_REQ_STORAGE_MAP, struct.pack("=I", storage_map))
    return _attribute(_REQ_STORAGES | _NESTED, which)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & ~_NESTED, data[4:length]
        data = data[(length + 3) & ~3 :]


def _parse(payload: bytes, protocol: int) -> Socket:
    family, state = payload[0], payload[1]
    cgroup, storage, traffic, v6only = 0, b"", (0, 0), False
    for kind, value in _attributes(payload[72:]):
        if kind == _CGROUP:
            cgroup = struct.unpack("=Q", value)[0]
        elif kind == _V6ONLY:
            v6only = bool(value[0])
        elif kind == _INFO and len(value) >= _TRAFFIC_OFFSET + _TRAFFIC.size:
            traffic = _TRAFFIC.unpack_from(value, _TRAFFIC_OFFSET)
        elif kind == _STORAGES:
            for _, entry in _attributes(value):
                with contextlib.suppress(KeyError):
                    storage = dict(_attributes(entry))[_STORAGE_VALUE]
    (inode,) = struct.unpack_from("=I", payload, 68)
    return Socket(family, protocol, state, payload[4:52], cgroup, storage, traffic, v6only, inode)
