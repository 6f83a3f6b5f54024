# SPDX-License-Identifier: Apache-2.0
"""A process inside an endpoint that does socket calls on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import frozen

from slimnet.linux import netns

__all__ = ["Reached", "Resident"]

_PROGRAM = Path(__file__).with_name("_resident_process.py")


@frozen
class Reached:
    """How one connection went.

    Attributes:
        error: the errno, 0 when it was made.
        text: the error in words.
        seconds: from the call to the server's greeting, or to the error.
        local: own address and port, as getsockname says.
        peer: the other's, as getpeername says.
        seen: what the server's getpeername says of this end.
    """

    error: int
    text: str
    seconds: float
    local: tuple[str, int] | None = None
    peer: tuple[str, int] | None = None
    seen: tuple[str, int] | None = None

    def __bool__(self) -> bool:
        return self.error == 0


class Resident:
    """Starts the process in a cgroup and a network namespace; ends it with the block.

    Args:
        cgroup: a cgroup v2 directory, ``None`` to stay.
        host: the network namespace of its host.
        netns: its own, ``None`` for the host's.
        environment: what is set in its environment besides.
    """

    def __init__(
        self,
        cgroup: Path | None,
        host: Path,
        netns_: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with netns.enter(netns_ or host):
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), str(cgroup or "")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        self._read()  # the first line says that it is in its cgroup and namespaces

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101  # for the type checker
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the resident process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, do: str, **request: object) -> Any:
        assert self._process.stdin is not None  # noqa: S101  # for the type checker
        self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        if "errno" in answer:
            raise OSError(answer["errno"], answer["text"])
        return answer["answer"]

    def connect(self, address: str, port: int, timeout: float = 3) -> Reached:
        """Connect, wait for the greeting of :meth:`serve`, close."""
        return self._reach("connect", address, port, timeout)

    def exchange(self, address: str, port: int, timeout: float = 3) -> Reached:
        """Send a datagram, wait for the greeting of :meth:`serve_datagrams`."""
        return self._reach("exchange", address, port, timeout)

    def _reach(self, do: str, address: str, port: int, timeout: float) -> Reached:
        answer = self._ask(do, to=(address, port), timeout=timeout)
        greeting = answer.get("greeting")
        return Reached(
            error=answer["error"],
            text=answer["text"],
            seconds=answer["seconds"],
            local=_end(answer.get("local")),
            peer=_end(answer.get("peer")),
            seen=_end(greeting["peer"]) if greeting else None,
        )

    def serve(self, port: int, address: str = "0.0.0.0") -> None:  # noqa: S104  # in its endpoint
        """Listen; greet and echo for ever."""
        self._ask("serve", at=(address, port))

    def serve_datagrams(self, port: int, address: str = "0.0.0.0") -> None:  # noqa: S104
        """Greet whoever sends a datagram, for ever."""
        self._ask("serve_datagrams", at=(address, port))

    def hold(self, name: str, address: str, port: int) -> None:
        """Open a connection that stays."""
        self._ask("hold", name=name, to=(address, port))

    def talk(self, name: str) -> bool:
        """Send one byte on a held connection and get it back.

        Raises:
            OSError: the connection is over.
        """
        return bool(self._ask("talk", name=name))

    def send(self, address: str, port: int, count: int) -> float:
        """Send this many bytes and get them back; how many seconds that took."""
        return float(self._ask("send", to=(address, port), count=count))

    def loop(self, name: str, address: str, port: int, every: float = 0.005) -> None:
        """Begin to connect again and again."""
        self._ask("loop", name=name, to=(address, port), every=every)

    def stop(self, name: str) -> dict[str, Any]:
        """End a loop: ``succeeded``, ``failed``, ``slowest`` (seconds), ``errors`` (by text)."""
        result: dict[str, Any] = self._ask("stop", name=name)
        return result

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _end(pair: list[Any] | None) -> tuple[str, int] | None:
    return (pair[0], pair[1]) if pair else None
