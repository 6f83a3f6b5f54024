# SPDX-License-Identifier: Apache-2.0
"""Latency and connection rate, with the demo's own programs (see ``programs/``),
which time themselves: no tool in Debian times connect() alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from slimnet.demo.setting import Setting
from slimnet.demo.workload import Reading, Workload

__all__ = ["Accept", "Churn", "Connect", "ConnectRequestClose", "RequestResponse", "Soak"]


class _Load(Workload):
    #: What answer.c and load.c call it.
    answer: str
    kind: str
    operation = "connection"

    def server(self, setting: Setting) -> Sequence[str]:
        """See :meth:`.Workload.server`."""
        return setting.as_server(setting.programs / "answer", self.port, self.answer)

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            setting.programs / "load", self.kind, address, self.port, setting.connections
        )

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        said = json.loads(output)
        if said["failed"]:
            raise ValueError(f"failed operations: {said['failed']}")
        return Reading(value=self.value(said), operations=said["operations"], detail=said)

    def value(self, said: dict[str, Any]) -> float:
        """What counts of all that the program says; operations a second by default."""
        rate: float = said["operations"] / said["seconds"]
        return rate


class RequestResponse(_Load):
    """A byte each way on one connection, again and again."""

    name = "request-response"
    title = "request and response, 1 byte"
    unit = "exchanges/s"
    operation = "exchange"
    target = 0.97
    port = 7001
    answer = "client"
    kind = "exchange"

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return setting.as_client(
            setting.programs / "load", self.kind, address, self.port, 0, setting.seconds
        )


class ConnectRequestClose(_Load):
    """connect(), a byte each way, close(); the client closes first."""

    name = "connect-request-close"
    title = "connect, request, close"
    unit = "connections/s"
    target = 0.95
    port = 7002
    answer = "client"
    kind = "client"


class Connect(_Load):
    """connect() alone: its median time. The server closes at once."""

    name = "connect"
    title = "connect(), median"
    unit = "us"
    higher_is_better = False
    target = 1.25
    cpu_target = None
    port = 7003
    answer = "accept"
    kind = "connect"

    def value(self, said: dict[str, Any]) -> float:
        """Microseconds."""
        median: float = said["connect_us"]["p50"]
        return median


class Accept(_Load):
    """accept() from a full queue, by one process on one processor: what a client does
    meanwhile is not in it."""

    name = "accept"
    title = "accepted connections, one core"
    unit = "connections/s"
    target = 0.97
    cpu_target = None
    port = 7008
    answer = "queue"
    kind = "accept"


class Churn(_Load):
    """connect, request, close at full speed for a time: what happens when source
    ports run out is the point, so failed connections are counted and it goes on.

    Args:
        first: who closes first, and keeps TIME_WAIT: ``client`` or ``server``.
        port: its own, so that it finds no TIME_WAIT of another.
    """

    unit = "connections/s"
    target = 1.0
    cpu_target = None

    def __init__(self, first: str, port: int) -> None:
        self.port = port
        self.first = self.answer = self.kind = first
        self.name = f"churn-{first}"
        self.title = f"churn, the {first} closes first"

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return self._client(setting, address, 0, setting.churn)

    def _client(self, setting: Setting, address: str, *limits: int) -> Sequence[str]:
        return setting.as_client(setting.programs / "load", self.kind, address, self.port, *limits)

    def read(self, output: str) -> Reading:
        """See :meth:`.Workload.read`."""
        said = json.loads(output)
        return Reading(value=self.value(said), operations=said["operations"], detail=said)

    def limit(self, setting: Setting) -> float:
        """See :meth:`.Workload.limit`."""
        return 60.0 + 2 * setting.churn


class Soak(Churn):
    """Like :class:`Churn`, but as many connections as the setting says instead of as long:
    none may be slow, and nothing retransmitted."""

    def __init__(self, first: str, port: int) -> None:
        super().__init__(first, port)
        self.name = f"soak-{first}"
        self.title = f"soak, the {first} closes first"

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        """See :meth:`.Workload.client`."""
        return self._client(setting, address, setting.soak)

    def limit(self, setting: Setting) -> float:
        """See :meth:`.Workload.limit`."""
        return 60.0 + setting.soak / 1000
