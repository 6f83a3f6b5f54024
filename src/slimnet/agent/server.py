# SPDX-License-Identifier: Apache-2.0
"""The agent's API: HTTP/1.1 and JSON over a Unix socket, for the agent's user and root outside
of endpoints."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from slimnet.agent import failure
from slimnet.exceptions import CapabilityMissing, InvalidValue, SlimnetError
from slimnet.linux import cgroup
from slimnet.place import Place
from slimnet.trusted import make_trusted

__all__ = ["Caller", "Reply", "Server", "Stream"]

_log = logging.getLogger(__name__)

_SO_PEERPIDFD = 77  # Linux 6.5, asm-generic/socket.h
_BODY_MAX = 16 * 2**20
_LENGTH = re.compile("[0-9]{1,9}")

#: What a route answers: a JSON value, or lines of JSON for as long as it lasts.
Reply = Any


class Stream:
    """Lines of JSON; ``None`` is an empty line, which finds out whether anybody reads."""

    def __init__(self, lines: Iterable[Any]) -> None:
        self.lines = lines


class Caller:
    """Who is at the other end (unix(7), SO_PEERCRED)."""

    def __init__(self, connection: socket.socket) -> None:
        size = struct.calcsize("iII")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        self.pid, self.uid, _ = struct.unpack("iII", credentials)
        self._pidfd = _pidfd(connection)

    def check(self, endpoints: Iterable[Place]) -> None:
        """Let nobody in but root and the agent's own user, and no process of an endpoint.

        Raises:
            CapabilityMissing: says who may.
        """
        closed = list(endpoints)
        try:
            # Where no endpoint has a cgroup the machine may have none (cgroup version 1), and an
            # ordinary user's agent may not look at the namespaces of others' processes.
            grouped = any(each.cgroup is not None for each in closed)
            apart = any(each.netns is not None for each in closed)
            place = cgroup.of_process(self.pid) if grouped else Path("/")
            namespace = _inode(Path(f"/proc/{self.pid}/ns/net")) if apart else None
            # They are those of this process only while it has not ended.
            if self._pidfd is not None and select.select([self._pidfd], [], [], 0)[0]:
                place = None
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None
        if self.uid not in (0, os.geteuid()):
            owner = "root only" if os.geteuid() == 0 else f"user {os.geteuid()} and root only"
            raise CapabilityMissing(f"the agent answers to {owner}, not to user {self.uid}")
        if place is None or namespace == 0:
            raise CapabilityMissing("the agent cannot tell who asks: that process has ended")
        for endpoint in closed:
            inside = endpoint.cgroup is not None and place.is_relative_to(endpoint.cgroup)
            if inside or (endpoint.netns is not None and _inode(endpoint.netns) == namespace):
                raise CapabilityMissing("the agent answers to no process of an endpoint")


def _inode(path: Path) -> int:
    """0 where it is gone."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _pidfd(connection: socket.socket) -> int | None:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # before 6.5, or the process has ended and was waited for
        return None


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves ``route`` on a Unix socket that only the agent's user, and root, may open.

    Args:
        path: of the socket; what an earlier agent left there is replaced.
        route: called with method, path segments, body and peer.
        closed: called for the places whose processes are not let in.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        path: Path,
        route: Callable[[str, list[str], dict[str, Any], Caller], Reply],
        closed: Callable[[], Iterable[Place]],
    ) -> None:
        self.route = route
        self.closed = closed
        self._path = path
        make_trusted(path.parent)
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            super().__init__(str(fresh), _Handler)
        finally:
            os.umask(before)
        fresh.rename(path)
        self._inode = path.stat().st_ino
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.1,), name="slimnet-api", daemon=True
        )

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that hangs up is no error of ours."""
        _log.debug("a client hung up", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 600

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # its name there
        _log.debug(format, *arguments)

    def setup(self) -> None:
        super().setup()
        self._peer = Caller(self.connection)
        self._refused: SlimnetError | None = None
        try:
            self._peer.check(self.server.closed())
        except SlimnetError as error:
            self._refused = error

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815  # their names there

    def _serve(self) -> None:
        try:
            if self._refused is not None:
                self.close_connection = True
                raise self._refused
            body = self._body()
            reply = self.server.route(self.command, self._segments(), body, self._peer)
        except SlimnetError as error:
            self._send(failure.http_status(error), failure.to_json(error))
        except Exception as error:  # noqa: BLE001  # told to the client, and logged
            _log.exception("%s %s", self.command, self.path)
            wrapped = SlimnetError(f"the agent failed: {type(error).__name__}: {error}")
            self._send(500, failure.to_json(wrapped))
        else:
            if isinstance(reply, Stream):
                self._stream(reply)
            else:
                self._send(200, reply)

    def _segments(self) -> list[str]:
        try:
            parts = urlsplit(self.path).path.split("/")
            segments = [unquote(part, errors="strict") for part in parts if part]
        except ValueError as error:
            raise InvalidValue("path", "a path of UTF-8 (RFC 3986)", self.path) from error
        for segment in segments:
            if not segment.isprintable():
                raise InvalidValue("path", "printable characters", segment)
        return segments

    def _body(self) -> dict[str, Any]:
        coding = self.headers.get("Transfer-Encoding")
        lengths = self.headers.get_all("Content-Length", ["0"])
        length = lengths[0]
        # What is not read as the body would be read as the next request.
        if coding is not None:
            self.close_connection = True
            raise InvalidValue("Transfer-Encoding", "none, but a Content-Length", coding)
        if len(lengths) > 1 or not _LENGTH.fullmatch(length) or int(length) > _BODY_MAX:
            self.close_connection = True
            raise InvalidValue("Content-Length", f"one, at most {_BODY_MAX}", ", ".join(lengths))
        if not int(length):
            return {}
        try:
            body = json.loads(self.rfile.read(int(length)), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidValue("body", "JSON", str(error)) from error
        if not isinstance(body, dict):
            raise InvalidValue("body", "a JSON object", body)
        return body

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, stream: Stream) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in stream.lines:
            data = b"\n" if line is None else json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON's (RFC 8259)")
