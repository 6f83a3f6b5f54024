# SPDX-License-Identifier: Apache-2.0
"""A socket to the kernel module: requests, dumps, and the events of its group.

The messages are pyroute2's, the socket is not: the module knows who holds a data path by the
socket that asked for it, and an agent's threads share that one, where pyroute2 opens a socket
for each thread. The kernel's extended acknowledgement is read whole besides, so that an error
names the attribute.

Source: netlink(7); the kernel's ``Documentation/userspace-api/netlink/intro.rst``.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pyroute2.netlink import (
    CTRL_CMD_GETFAMILY,
    GENL_ID_CTRL,
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_EXT_ACK,
    NETLINK_GENERIC,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
    ctrlmsg,
)

from slimnet.exceptions import BackendError
from slimnet_kmod import contract
from slimnet_kmod.messages import FAMILY, GROUP, decode, encode, named

__all__ = ["Module", "ModuleEvents", "RequestRefused"]

_NETLINK_CAP_ACK = 10  # the acknowledgement repeats the request's header only
_ACK_TLVS = 0x200
_MSG, _OFFSET, _MISSING = 1, 2, 5  # enum nlmsgerr_attrs
_HEADER = struct.Struct("=IHHII")
_ERROR = struct.Struct("=i16x")
#: So much of events waits in the kernel for a reader.
_WAITING = 1 << 22
# So many events one read() hands out, so that it comes back also in a flood.
_AT_ONCE = 4096


class RequestRefused(BackendError):
    """The module refused a request; nothing changed.

    Attributes:
        errno: why, as errno(3).
        attribute: which one, in lower case; empty where it is none in particular.
    """

    def __init__(self, number: int, said: str, attribute: str) -> None:
        self.errno = number
        self.attribute = attribute
        said = said.removeprefix(f"SLIM_ATTR_{attribute.upper()}: ")  # for who has only the text
        where = f"{attribute}: " if attribute else ""
        super().__init__(f"module slimnet: {where}{said or os.strerror(number)}")


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    opened.setsockopt(SOL_NETLINK, _NETLINK_CAP_ACK, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    opened.bind((0, 0))
    return opened


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence number and bytes of each of a datagram's messages."""
    while len(data) >= _HEADER.size:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[:length]
        data = data[(length + 3) & ~3 :]


def _refusal(message: bytes, flags: int, request: bytes) -> RequestRefused | None:
    """What an acknowledgement, or the end of a dump, says; ``None``: done."""
    (number,) = struct.unpack_from("=i", message, _HEADER.size)
    if number >= 0:
        return None
    said, attribute, rest = "", "", b""
    if flags & _ACK_TLVS:
        kind = _HEADER.unpack_from(message)[1]
        rest = message[_HEADER.size + (_ERROR.size if kind == NLMSG_ERROR else 4) :]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        value, rest = rest[4:length], rest[max(4, (length + 3) & ~3) :]
        if kind == _MSG:
            said = value.rstrip(b"\0").decode(errors="replace")
        elif kind == _OFFSET:
            # Where the wrong attribute begins in the request: its length, then its number.
            (at,) = struct.unpack("=I", value)
            (which,) = struct.unpack_from("=H", request, at + 2)
            attribute = named(which & 0x3FFF)
        elif kind == _MISSING:
            attribute = named(*struct.unpack("=I", value))
    return RequestRefused(-number, said, attribute)


def _family(opened: socket.socket) -> tuple[int, int]:
    """The numbers of the family and of its group. Asking has the kernel load the module, where
    it is installed.

    Raises:
        RequestRefused: ENOENT: there is none.
    """
    message = ctrlmsg()
    message["cmd"] = CTRL_CMD_GETFAMILY
    message["version"] = 1
    message["attrs"] = [("CTRL_ATTR_FAMILY_NAME", FAMILY)]
    message["header"]["type"] = GENL_ID_CTRL
    message["header"]["flags"] = NLM_F_REQUEST
    message.encode()
    opened.send(message.data)
    for kind, flags, _, data in _messages(opened.recv(1 << 16)):
        if kind == NLMSG_ERROR:
            raise _refusal(data, flags, b"") or RequestRefused(errno.EPROTO, "no family", "")
        answer = ctrlmsg(data)
        answer.decode()
        groups = {
            each.get_attr("CTRL_ATTR_MCAST_GRP_NAME"): each.get_attr("CTRL_ATTR_MCAST_GRP_ID")
            for each in answer.get_attr("CTRL_ATTR_MCAST_GROUPS") or ()
        }
        return int(answer.get_attr("CTRL_ATTR_FAMILY_ID")), int(groups.get(GROUP, 0))
    raise RequestRefused(errno.EPROTO, "the kernel did not answer", "")


class Module:
    """A socket in the calling thread's network namespace; threads may share it.

    Raises:
        RequestRefused: ENOENT: the module is not there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self._socket = _open()
        try:
            self._number, self._group = _family(self._socket)
        except BaseException:
            self._socket.close()
            raise

    def request(self, command: int, **attributes: Any) -> dict[str, Any]:
        """The attributes of the answer, by their names without SLIM_ATTR_; none where the
        command is only acknowledged.

        Args:
            command: enum slim_nl_command.
            attributes: of the request; those that are ``None`` are left out, and a flag
                is ``True``.

        Raises:
            RequestRefused: the module said no.
        """
        answers = self._talk(command, NLM_F_ACK, attributes)
        return answers[0] if answers else {}

    def dump(self, command: int) -> list[dict[str, Any]]:
        """The attributes of each record."""
        return self._talk(command, NLM_F_DUMP, {})

    def listen(self) -> ModuleEvents:
        """A reader of this network namespace's events."""
        return ModuleEvents(self._number, self._group)

    def close(self) -> None:
        """Lets go of what it holds. Closing twice is no error."""
        self._socket.close()

    def _talk(self, command: int, flags: int, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        attributes = {
            name: None if value is True else value
            for name, value in given.items()
            if value is not None and value is not False
        }
        with self._lock:
            self._sequence += 1
            request = encode(
                self._number, command, NLM_F_REQUEST | flags, self._sequence, attributes
            )
            self._socket.send(request)
            answers: list[dict[str, Any]] = []
            while True:
                for kind, flag, sequence, data in _messages(self._socket.recv(1 << 18)):
                    if sequence != self._sequence:
                        continue  # an answer to a request that was given up half-way
                    if kind in (NLMSG_ERROR, NLMSG_DONE):
                        refusal = _refusal(data, flag, request)
                        if refusal is not None:
                            raise refusal
                        return answers
                    answers.append(dict(decode(data)))


class ModuleEvents:
    """The family's group, in the network namespace that it was made in; one reader at a time.

    Args:
        family: the family's number.
        group: its group's.
    """

    def __init__(self, family: int, group: int) -> None:
        self._family = family
        self._reading = threading.Lock()
        self._socket = _open()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WAITING)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def read(self, timeout: float) -> list[bytes]:
        """What came since the last call, each a struct slim_event; waits for the first.

        Raises:
            BackendError: it is closed.
        """
        with self._reading:
            if self._closed:
                raise BackendError("the backend is closed")
            deadline = time.monotonic() + timeout
            while True:
                found = self._drain()
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                ready = dict(self._poll.poll(left * 1000))
                if self._wake in ready:
                    return self._drain()

    def close(self) -> None:
        """Ends a :meth:`read` in another thread. Closing twice is no error."""
        if self._closed:
            return
        os.eventfd_write(self._wake, 1)
        with self._reading:
            if not self._closed:
                self._closed = True
                self._socket.close()
                os.close(self._wake)

    def _drain(self) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < _AT_ONCE:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost, as may be
                    raise
                continue
            for kind, _, _, message in _messages(data):
                if kind == self._family and message[_HEADER.size] == contract.SLIM_CMD_EVENT:
                    found += [value for name, value in decode(message) if name == "EVENT"]
        return found
