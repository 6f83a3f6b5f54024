# SPDX-License-Identifier: Apache-2.0
"""Talking to an agent: HTTP over its Unix socket, errors as exceptions."""

from __future__ import annotations

import http.client
import json
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from slimnet.agent import failure
from slimnet.exceptions import AgentUnreachable, InvalidValue, SlimnetError

__all__ = ["Client", "UnixConnection"]

#: Seconds: a day. More would not fit into a socket's timeout for ever.
_PATIENCE_MAX = 86400.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket.

    Args:
        path: of the socket.
        timeout: seconds that an answer may take; ``None`` for any.
    """

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._timeout = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout)
        self.sock.connect(str(self._path))


class Client:
    """Requests to the agent behind one socket; threads may share it."""

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        self.path = path
        self.timeout = timeout

    def request(self, method: str, *segments: str, patience: float = 0.0, **body: Any) -> Any:
        """One request under ``/v1``.

        Args:
            method: of HTTP.
            segments: of the path.
            patience: seconds that the agent may take more than usual.
            body: its fields.

        Raises:
            AgentUnreachable: nobody answers on the socket.
            InvalidValue: a field is infinite, or no number, which JSON cannot say.
            SlimnetError: what the agent answered with.
        """
        for name, value in body.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidValue(name, "a finite number", value)
        # What is out of all bounds is for the agent to refuse, which takes no time.
        connection = UnixConnection(self.path, self.timeout + min(max(patience, 0), _PATIENCE_MAX))
        try:
            with self._send(connection, method, segments, body) as response:
                value = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise failure.from_json(value)
        return value

    def lines(self, *segments: str) -> Iterator[Any]:
        """What the agent streams; ``None`` now and then while nothing happens.

        Raises:
            AgentUnreachable: nobody answers on the socket, or no more: it has no end.
        """
        connection = UnixConnection(self.path, self.timeout)
        try:
            with self._send(connection, "GET", segments, {}) as response:
                if response.status >= 400:
                    raise failure.from_json(json.loads(response.read()))
                while line := response.readline():
                    yield json.loads(line) if line.strip() else None
                raise AgentUnreachable(f"agent on {self.path}: it has ended")
        except SlimnetError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    @staticmethod
    def _send(
        connection: UnixConnection, method: str, segments: tuple[str, ...], body: dict[str, Any]
    ) -> http.client.HTTPResponse:
        path = "/".join(["/v1", *(quote(segment, safe="") for segment in segments)])
        data = json.dumps(body).encode() if body else None
        connection.request(method, path, data, {"Content-Type": "application/json"})
        return connection.getresponse()

    def _unreachable(self, error: Exception) -> AgentUnreachable:
        if isinstance(error, FileNotFoundError):
            return AgentUnreachable(
                f"no agent on {self.path}: start one with 'slimnet agent', or name its socket"
            )
        if isinstance(error, PermissionError):
            return AgentUnreachable(f"agent on {self.path}: only root, or its user, may talk to it")
        if isinstance(error, TimeoutError):
            return AgentUnreachable(f"agent on {self.path}: no answer in {self.timeout:g} s")
        if isinstance(error, ConnectionRefusedError):
            return AgentUnreachable(f"agent on {self.path}: it is not running")
        return AgentUnreachable(f"agent on {self.path}: {type(error).__name__}: {error}")
