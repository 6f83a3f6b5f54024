# SPDX-License-Identifier: Apache-2.0
"""Latency and connection rate, with the demo's own programs (see ``programs/``),
which time themselves: no tool in Debian times connect() alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from slimnet.demo.setting import Setting
from slimnet.demo.workload import Reading, Workload

__all__ = ["Connect", "ConnectRequestClose", "RequestResponse"]


class _Load(Workload):
    #: What answer.c and load.c call it.
    answer: ClassVar[str]
    kind: ClassVar[str]
    operation = "connection"

    def server(self, setting: Setting) -> Sequence[str]:
        return setting.as_server(setting.programs / "answer", self.port, self.answer)

    def client(self, setting: Setting, address: str) -> Sequence[str]:
        return setting.as_client(
            setting.programs / "load", self.kind, address, self.port, setting.connections
        )

    def read(self, output: str, setting: Setting) -> Reading:
        said = json.loads(output)
        if said["failed"]:
            raise ValueError(f"failed operations: {said['failed']}")
        return Reading(value=self.value(said), operations=said["operations"], detail=said)

    def value(self, said: dict[str, Any]) -> float:
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
        median: float = said["connect_us"]["p50"]
        return median
