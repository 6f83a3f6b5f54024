# SPDX-License-Identifier: Apache-2.0
"""The program of :class:`slimnet.testing.Resident`: socket calls on request.

Started by path, with the interpreter alone: one JSON object a line comes in
on standard input, one goes out for each on standard output.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any


def attempt(to: list[Any], timeout: float, *, datagram: bool = False) -> dict[str, Any]:
    """One connection, or one datagram: until the server's greeting has come."""
    started = time.monotonic()
    answer: dict[str, Any] = {"error": 0, "text": ""}
    connect = _connect_datagrams if datagram else socket.create_connection
    try:
        with connect((to[0], to[1]), timeout) as connection:
            answer["peer"] = connection.getpeername()
            answer["local"] = connection.getsockname()
            if datagram:
                connection.send(b"x")
            answer["greeting"] = json.loads(connection.makefile().readline() or "null")
    except OSError as error:
        answer["error"] = error.errno or -1
        answer["text"] = str(error)
    answer["seconds"] = time.monotonic() - started
    return answer


def _connect_datagrams(to: tuple[str, int], timeout: float) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(timeout)
    made.connect(to)
    return made


class Loop(threading.Thread):
    """Attempts without end, and what came of them."""

    def __init__(self, to: list[Any], every: float) -> None:
        super().__init__(daemon=True)
        self.to, self.every = to, every
        self.stopped = threading.Event()
        self.result: dict[str, Any] = {"succeeded": 0, "failed": 0, "slowest": 0.0, "errors": {}}

    def run(self) -> None:
        result = self.result
        while not self.stopped.wait(self.every):
            answer = attempt(self.to, 3)
            result["slowest"] = max(result["slowest"], answer["seconds"])
            if answer["error"]:
                result["failed"] += 1
                result["errors"][answer["text"]] = result["errors"].get(answer["text"], 0) + 1
            else:
                result["succeeded"] += 1


class _Server(threading.Thread):
    """Greets every connection with both of its ends, then echoes."""

    def __init__(self, at: list[Any]) -> None:
        super().__init__(daemon=True)
        self.socket = socket.create_server((at[0], at[1]), backlog=512)

    def run(self) -> None:
        while True:
            connection, peer = self.socket.accept()
            threading.Thread(target=self.serve, args=(connection, peer), daemon=True).start()

    @staticmethod
    def serve(connection: socket.socket, peer: object) -> None:
        with connection:
            try:
                greeting = json.dumps({"peer": peer, "local": connection.getsockname()})
                connection.sendall(greeting.encode() + b"\n")
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                pass


class _DatagramServer(threading.Thread):
    """Greets whoever sends a datagram."""

    def __init__(self, at: list[Any]) -> None:
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((at[0], at[1]))

    def run(self) -> None:
        while True:
            _, peer = self.socket.recvfrom(4096)
            self.socket.sendto(json.dumps({"peer": peer}).encode() + b"\n", peer)


class _Resident:
    """The requests, by name."""

    def __init__(self) -> None:
        self.loops: dict[str, Loop] = {}
        self.held: dict[str, socket.socket] = {}

    def connect(self, to: list[Any], timeout: float) -> dict[str, Any]:
        return attempt(to, timeout)

    def serve(self, at: list[Any]) -> None:
        _Server(at).start()

    def exchange(self, to: list[Any], timeout: float) -> dict[str, Any]:
        return attempt(to, timeout, datagram=True)

    def serve_datagrams(self, at: list[Any]) -> None:
        _DatagramServer(at).start()

    def hold(self, name: str, to: list[Any]) -> None:
        self.held[name] = socket.create_connection((to[0], to[1]), 3)
        self.held[name].makefile().readline()
        self.held[name].settimeout(3)

    def talk(self, name: str) -> bool:
        connection = self.held[name]
        connection.sendall(b"x")
        return connection.recv(1) == b"x"

    def send(self, to: list[Any], count: int) -> float:
        started = time.monotonic()
        with socket.create_connection((to[0], to[1]), 3) as connection:
            stream = connection.makefile("rb")
            stream.readline()
            sender = threading.Thread(target=connection.sendall, args=(bytes(count),))
            connection.settimeout(30)
            sender.start()
            stream.read(count)
            sender.join()
        return time.monotonic() - started

    def loop(self, name: str, to: list[Any], every: float) -> None:
        self.loops[name] = Loop(to, every)
        self.loops[name].start()

    def stop(self, name: str) -> dict[str, Any]:
        loop = self.loops.pop(name)
        loop.stopped.set()
        loop.join()
        return loop.result


def main() -> None:
    # The network namespace is the starter's already; no socket comes before this.
    if sys.argv[1]:
        (Path(sys.argv[1]) / "cgroup.procs").write_text(str(os.getpid()))
    resident = _Resident()
    print("{}", flush=True)  # noqa: T201  # this is how it answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"answer": getattr(resident, request.pop("do"))(**request)}
        except OSError as error:
            answer = {"errno": error.errno or -1, "text": str(error)}
        print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
