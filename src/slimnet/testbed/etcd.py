# SPDX-License-Identifier: Apache-2.0
"""etcd servers that slimnet starts: Debian's ``etcd-server``, and no service of the machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from slimnet.exceptions import CapabilityMissing, SlimnetError
from slimnet.linux import netns
from slimnet.testbed import daemon

__all__ = ["Etcd", "found"]

_READY_SECONDS = 60.0


class Etcd:
    """Some servers that form one cluster, each a process that goes on when its starter ends.

    Args:
        directory: for their data, pid files and logs.
        address: of this machine, or of the namespace; all of them listen there.
        members: how many.
        port: of the first; each takes two.
        namespace: the path of the network namespace to be in; ``None``: the caller's.
        options: for each server's command line.
        scheme: ``https`` where the options say so.
        peers: ``address:port`` at which a single one hears other members, which it has none of;
            ``None``: at the same address.
        durable: wait for the disk; else nothing of them survives a power cut.
    """

    def __init__(
        self,
        directory: Path,
        address: str,
        members: int = 1,
        *,
        port: int = 2379,
        namespace: Path | None = None,
        options: Sequence[str] = (),
        scheme: str = "http",
        peers: str | None = None,
        durable: bool = False,
    ) -> None:
        self.directory = directory
        self.endpoints = tuple(f"{address}:{port + 2 * each}" for each in range(members))
        self._peers = (
            tuple(f"http://{address}:{port + 2 * each + 1}" for each in range(members))
            if peers is None
            else (f"http://{peers}",)
        )
        self._namespace = namespace
        self._options = tuple(options) if durable else ("--unsafe-no-fsync", *options)
        self._scheme = scheme

    @property
    def url(self) -> str:
        """Of the store."""
        return f"etcd://{','.join(self.endpoints)}/slimnet"

    def pid(self, member: int) -> int | None:
        """A server's process id; ``None`` when it does not run."""
        return daemon.running(self._pid_file(member))

    def log(self, member: int) -> Path:
        """What a server wrote."""
        return self.directory / f"{member}.log"

    def start(self) -> None:
        """Start those that do not run, and wait until they serve.

        Raises:
            CapabilityMissing: there is no etcd on this machine.
            SlimnetError: one does not start; with the last line of its log.
        """
        program = found()
        self.directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            if self._namespace is not None:
                held.enter_context(netns.enter(self._namespace))
            started = [
                (member, held.enter_context(contextlib.closing(self._start(program, member))))
                for member in range(len(self.endpoints))
                if self.pid(member) is None
            ]
            for member, notices in started:
                self._wait(member, notices)

    def stop(self) -> None:
        """Stop them all. What does not run is no error."""
        for member in range(len(self.endpoints)):
            daemon.stop(self._pid_file(member), patience=3)

    def kill(self, member: int) -> None:
        """Kill one with SIGKILL."""
        daemon.stop(self._pid_file(member), patience=0)

    def remove(self) -> None:
        """Kill them all, and their data goes."""
        for member in range(len(self.endpoints)):
            self.kill(member)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _pid_file(self, member: int) -> Path:
        return self.directory / f"{member}.pid"

    def _start(self, program: str, member: int) -> socket.socket:
        """The socket on which it says that it serves (sd_notify(3))."""
        path = self.directory / f"{member}.sock"
        path.unlink(missing_ok=True)
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        notices.bind(str(path))
        argv = self.command(program, member)
        # The machine's own etcd may be told things by its environment.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ETCD_")}
        environment["NOTIFY_SOCKET"] = str(path)
        daemon.start(argv, self._pid_file(member), self.log(member), environment)
        return notices

    def command(self, program: str, member: int) -> list[str]:
        """A server's command line."""
        client = f"{self._scheme}://{self.endpoints[member]}"
        cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(self._peers))
        return [
            program,
            f"--name=m{member}",
            f"--data-dir={self.directory / str(member)}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={self._peers[member]}",
            f"--initial-advertise-peer-urls={self._peers[member]}",
            f"--initial-cluster={cluster}",
            f"--initial-cluster-token={self.directory}",
            "--logger=zap",
            *self._options,
        ]

    def _wait(self, member: int, notices: socket.socket) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        notices.settimeout(0.1)
        while True:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notices.recv(4096):
                    return
            if self.pid(member) is None or time.monotonic() > deadline:
                lines = self.log(member).read_text(errors="replace").splitlines() or ["nothing"]
                raise SlimnetError(f"etcd {self.endpoints[member]} does not start: {lines[-1]}")


def found() -> str:
    """The program.

    Raises:
        CapabilityMissing: there is none on this machine.
    """
    program = shutil.which("etcd", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin")
    if program is None:
        raise CapabilityMissing("no etcd: install it (Debian: apt install etcd-server)")
    return program
