# SPDX-License-Identifier: Apache-2.0
"""One host of a testbed: a network namespace with an agent in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen
from netaddr import IPAddress

from slimnet.exceptions import SlimnetError
from slimnet.linux import netns
from slimnet.testbed import daemon

if TYPE_CHECKING:
    from slimnet.node import Node

__all__ = ["TestbedHost"]

#: Of one that ended it is known at once; an emulated processor takes more than half a minute.
_READY_SECONDS = 180.0


@frozen
class TestbedHost:
    """One host.

    Attributes:
        name: ``h1``, ``h2``, ...: its name in the cluster.
        instance: what its agent's data path is named on this machine.
        netns: the path of its network namespace.
        address: its underlay address.
        interface: the name of its underlay interface.
        directory: of its configuration, pid file and log.
        agent: its agent's Unix socket.
    """

    __test__ = False  # pytest shall not take it for a test class

    name: str
    instance: str
    netns: Path
    address: IPAddress
    interface: str
    directory: Path
    agent: Path

    @property
    def config(self) -> Path:
        """Its agent's configuration file."""
        return self.directory / "slimnet.toml"

    @property
    def log(self) -> Path:
        """What its agent wrote."""
        return self.directory / "agent.log"

    @property
    def pid_file(self) -> Path:
        """Its agent's process id and start time."""
        return self.directory / "agent.pid"

    @property
    def pid(self) -> int | None:
        """Its agent's process id; ``None`` when it does not run."""
        return daemon.running(self.pid_file)

    def node(self) -> Node:
        """A :class:`slimnet.Node` of this host, to be used as a context manager."""
        from slimnet.node import open_node  # noqa: PLC0415  # only where it is wanted

        return open_node(agent=self.agent)

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """The calling thread, and what it starts, is in this host's network
        namespace while the block lasts."""
        with netns.enter(self.netns):
            yield

    def environment(self) -> dict[str, str]:
        """The caller's environment, with SLIMNET_AGENT pointing here."""
        return {**os.environ, "SLIMNET_AGENT": str(self.agent)}

    def start_agent(self) -> Starting:
        """Start its agent, unless it runs; :meth:`Starting.wait` says when it is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return Starting(self)

    def stop_agent(self) -> None:
        """Stop its agent; the data path goes on."""
        daemon.stop(self.pid_file)

    def kill_agent(self) -> None:
        """Kill its agent with SIGKILL."""
        daemon.stop(self.pid_file, patience=0)

    def clear(self) -> None:
        """Remove its directory and what its agent left in /run."""
        for directory in (self.directory, self.agent.parent):
            shutil.rmtree(directory, ignore_errors=True)


class Starting:
    """An agent on its way up: it reports as it would to systemd (sd_notify(3))."""

    def __init__(self, host: TestbedHost) -> None:
        self.host = host
        self._socket: socket.socket | None = None
        if host.pid is not None:
            return
        path = host.directory / "notify.sock"
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLIMNET_")}
        environment["NOTIFY_SOCKET"] = str(path)
        environment.pop("WATCHDOG_USEC", None)
        argv = [sys.executable, "-m", "slimnet.cli", "agent", "--config", str(host.config)]
        with host.enter():
            daemon.start(argv, host.pid_file, host.log, environment)

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            SlimnetError: it ended, or takes too long; with the last line of its log.
        """
        if self._socket is None:
            return
        deadline = time.monotonic() + _READY_SECONDS
        self._socket.settimeout(0.1)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in self._socket.recv(4096).split(b"\n"):
                        return
                if self.host.pid is None:
                    raise SlimnetError(f"agent of {self.host.instance}: {self._last_words()}")
                if time.monotonic() > deadline:
                    raise SlimnetError(
                        f"agent of {self.host.instance} is not ready after {_READY_SECONDS:g} s:"
                        f" {self._last_words('it has said nothing yet')}"
                    )
        finally:
            self._socket.close()
            (self.host.directory / "notify.sock").unlink(missing_ok=True)

    def _last_words(self, none: str = "it ended without a word") -> str:
        lines = self.host.log.read_text().splitlines() if self.host.log.exists() else []
        return lines[-1] if lines else none
