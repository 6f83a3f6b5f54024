# SPDX-License-Identifier: Apache-2.0
"""What the agent says to its router, and hears from it (``preload/control.h``)."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from slimnet.answers import FlowQuestion
from slimnet.exceptions import BackendError
from slimnet.layout import Layout, from_bytes16
from slimnet.linux.sock_diag import STATES
from slimnet.model import Connection, Direction, Reason, WayKind, Wire
from slimnet_preload import contract

__all__ = ["Control", "RouterGone", "RouterStatus"]

_REQUEST = Layout(contract.slim_control_request)
_ANSWER = Layout(contract.slim_control_answer)
_STATUS = Layout(contract.slim_control_status)
_CONNECTION = Layout(contract.slim_control_connection)
_ASKED = Layout(contract.slim_control_asked)
#: Seconds that an answer may take. Only tables take more than an instant.
_PATIENCE = 10.0
_PATIENCE_TABLES = 60.0


class RouterGone(BackendError):
    """No router answers."""


@frozen
class RouterStatus:
    """What a router says of itself (struct slim_control_status).

    Attributes:
        generation: of the tables in force; 0: none yet.
        endpoints: ids of those that it knows.
        counters: how often each reason was given.
        versions: of the shared contract, and of what it speaks with shims and routers.
        pid: its process.
        links: how many other hosts it is connected to.
        connections: how many it knows.
        trouble: published ports that are not to be had, in one line; empty without.
    """

    generation: int
    endpoints: frozenset[int]
    counters: dict[Reason, int]
    versions: tuple[int, int, int]
    pid: int
    links: int
    connections: int
    trouble: str


class Control:
    """Calls the router behind a socket, each on a connection of its own: it may be another
    router every time.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def status(self) -> RouterStatus:
        """What is in force.

        Raises:
            RouterGone: nobody answers; so of every method here.
        """
        data = self._call(contract.SLIM_CONTROL_STATUS)
        found = _STATUS.unpack(data.ljust(_STATUS.size, b"\0"))
        counters: dict[Reason, int] = {}
        for table in ("refused", "allowed"):
            # By direction, and then by reason.
            counts = struct.unpack(f"={len(found[table]) // 8}Q", found[table])
            for at, count in enumerate(counts):
                number = at % (len(counts) // 2)
                if count and number:
                    counters[Reason(number)] = counters.get(Reason(number), 0) + count
        ids = struct.unpack_from(f"={found['count']}I", found["endpoints"])
        return RouterStatus(
            generation=found["generation"],
            endpoints=frozenset(ids),
            counters=counters,
            versions=(found["abi"], found["shim_version"], found["announce_version"]),
            pid=found["pid"],
            links=found["links"],
            connections=found["connections"],
            trouble=_text(found["trouble"]),
        )

    def attach(self, endpoint: int, vni: int, address: bytes, path: Path, user: int | None) -> None:
        """Listen for an endpoint's processes.

        Args:
            endpoint: its id.
            vni: its network's.
            address: its overlay address, 16 bytes.
            path: of the socket that the router makes.
            user: whose processes are it; ``None``: anybody's.
        """
        self._call(
            contract.SLIM_CONTROL_ATTACH,
            endpoint=endpoint,
            vni=vni,
            address=address,
            path=os.fsencode(path),
            uid=0xFFFFFFFF if user is None else user,
        )

    def detach(self, endpoint: int) -> None:
        """Forget an endpoint."""
        self._call(contract.SLIM_CONTROL_DETACH, endpoint=endpoint)

    def install(self, tables: Path) -> None:
        """Put the tables of a file in force."""
        self._call(
            contract.SLIM_CONTROL_TABLES, patience=_PATIENCE_TABLES, path=os.fsencode(tables)
        )

    def rekey(self, keys: Path) -> None:
        """Take the keys of a file.

        Raises:
            BackendError: it does not.
        """
        self._call(contract.SLIM_CONTROL_KEYS, path=os.fsencode(keys))

    def ask(self, question: FlowQuestion) -> bytes:
        """The question's bytes, answered."""
        data = self._call(contract.SLIM_CONTROL_ASK, question=question.pack())
        answered: bytes = _ASKED.unpack(data)["question"]
        return answered

    def observe(self, *, enabled: bool) -> None:
        """Whether opened and closed connections make events."""
        self._call(contract.SLIM_CONTROL_OBSERVE, number=int(enabled))

    def stop(self) -> None:
        """End the router, and wait until it has."""
        with self._connected() as sock:
            self._send(sock, contract.SLIM_CONTROL_STOP)
            while sock.recv(_ANSWER.size):
                pass

    def connections(self) -> Iterator[Connection]:
        """Live connections of local endpoints."""
        with self._connected() as sock:
            self._send(sock, contract.SLIM_CONTROL_CONNECTIONS)
            while True:
                found = _CONNECTION.unpack(self._receive(sock).ljust(_CONNECTION.size, b"\0"))
                if found["end"]:
                    return
                yield _to_connection(found)

    def events(self) -> socket.socket:
        """A connection on which events come from now on (struct slim_control_event), without
        waiting."""
        sock = self._connect(_PATIENCE)
        try:
            self._send(sock, contract.SLIM_CONTROL_EVENTS)
            self._receive(sock)
        except OSError as error:
            sock.close()
            raise self._gone(error) from error
        sock.setblocking(False)
        return sock

    def watch(self) -> socket.socket:
        """A connection that ends when the router does."""
        return self._connect(_PATIENCE)

    def _call(self, call: int, *, patience: float = _PATIENCE, **fields: Any) -> bytes:
        with self._connected(patience) as sock:
            self._send(sock, call, **fields)
            return self._receive(sock)

    @contextlib.contextmanager
    def _connected(self, patience: float = _PATIENCE) -> Iterator[socket.socket]:
        with self._connect(patience) as sock:
            try:
                yield sock
            except OSError as error:
                raise self._gone(error) from error

    def _connect(self, patience: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(patience)
        try:
            sock.connect(os.fspath(self.path))
        except OSError as error:
            sock.close()
            raise self._gone(error) from error
        return sock

    def _gone(self, error: OSError) -> RouterGone:
        if isinstance(error, TimeoutError):
            return RouterGone(f"the router on {self.path} does not answer")
        return RouterGone(f"no router on {self.path}: {error.strerror or error}")

    @staticmethod
    def _send(sock: socket.socket, call: int, **fields: Any) -> None:
        nothing = {"question": b""} | fields
        sock.sendall(_REQUEST.pack(version=contract.SLIM_CONTROL_VERSION, call=call, **nothing))

    def _receive(self, sock: socket.socket) -> bytes:
        data = sock.recv(_STATUS.size)
        if not data:
            raise RouterGone(f"the router on {self.path} has ended")
        answer = _ANSWER.unpack(data[: _ANSWER.size])
        if answer["error"]:
            raise BackendError(_text(answer["text"]) or os.strerror(answer["error"]))
        return data


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _to_connection(found: dict[str, Any]) -> Connection:
    def end(which: str) -> tuple[Any, int]:
        return from_bytes16(found[which]), found[f"{which}_port"]

    state = found["state"]
    return Connection(
        endpoint=found["endpoint"],
        peer_endpoint=found["peer_endpoint"],
        local=end("local"),
        peer=end("peer"),
        direction=Direction(found["direction"]),
        wire=Wire.ANNOUNCE if found["wire"] == WayKind.WIRE else None,
        state=STATES[state] if state < len(STATES) else STATES[0],
        opened=found["opened"] / 1e9,
        cookie=found["cookie"],
    )
