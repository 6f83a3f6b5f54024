# SPDX-License-Identifier: Apache-2.0
"""The router as a process: started, watched, ended. It outlives the agent that started it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from netaddr import IPAddress

from slimnet.exceptions import BackendError
from slimnet.linux import netns
from slimnet_preload.control import Control, RouterGone
from slimnet_preload.options import PreloadOptions
from slimnet_preload.record import replace

__all__ = ["PROGRAM", "SHIM", "RouterProcess", "remove"]

PROGRAM = Path(__file__).with_name("slimnet-router")
SHIM = Path(__file__).with_name("libslimnet-shim.so")

#: Seconds that a start may take, on a busy machine too.
_START = 10.0
#: Seconds between one that died at once and the next.
_PAUSE = 1.0
_FILES = ("arguments", "control", "key", "router", "router.log")


class RouterProcess:
    """Of one instance, in the network namespace in which the object is made.

    Args:
        state: the instance's directory.
        host: its host's underlay address.
        keys: the cluster's secret, and another that is good as well.
        options: of the backend.
    """

    def __init__(
        self, state: Path, host: IPAddress, keys: tuple[bytes, bytes], options: PreloadOptions
    ) -> None:
        self.control = Control(state / "control")
        self._state = state
        self._keys = keys
        self._argv = [
            *(str(PROGRAM), "--control", str(self.control.path)),
            *("--state", str(state / "router"), "--host", str(host)),
            *("--listen", f"{host}:{options.port}", "--key", str(state / "key")),
            *("--ports", options.ports),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._watched: socket.socket | None = None
        self._started = float("-inf")
        self._namespace = os.open(netns.own(), os.O_RDONLY | os.O_CLOEXEC)

    def runs(self) -> bool:
        """Whether one does: the one that was started or adopted last."""
        if self._watched is None:
            return False
        if select.select([self._watched], [], [], 0)[0]:  # it says nothing: that is its end
            self._watched.close()
            self._watched = None
            if self._process is not None:
                self._process.wait()
                self._process = None
        return self._watched is not None

    def start(self) -> bool:
        """Start it, or adopt the one that runs with the same arguments; whether it is
        another one than before, to be told of endpoints and tables.

        Raises:
            BackendError: it does not run; says why.
        """
        if self.runs():
            return False
        with contextlib.suppress(RouterGone):
            watched = self.control.watch()
            if self._is_as_wanted() and self._takes_keys():
                self._watched = watched
                return True
            watched.close()
            self.control.stop()  # what it knows, and live connections, stay
        if time.monotonic() - self._started < _PAUSE:
            raise RouterGone(f"the router has ended: {self._said()}")
        self._started = time.monotonic()
        self._write_keys()
        replace(self._state / "arguments", self._arguments)
        with (self._state / "router.log").open("wb") as log, self._inside():
            try:
                # Not this process's group or session: it is not to end with it.
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env={"LC_ALL": "C.UTF-8"},
                    start_new_session=True,
                )
            except OSError as error:
                raise BackendError(f"{PROGRAM}: {error.strerror}") from error
        self._watched = self._answering(self._process)
        return True

    @property
    def _arguments(self) -> bytes:
        return "\0".join(self._argv).encode()

    def _is_as_wanted(self) -> bool:
        """Whether the one that runs was started as this one would be."""
        try:
            return (self._state / "arguments").read_bytes() == self._arguments
        except FileNotFoundError:
            return False

    def rekey(self, keys: tuple[bytes, bytes]) -> None:
        """Other keys; one that does not run has them when it is started.

        Raises:
            BackendError: it does not take them.
        """
        self._keys = keys
        self._write_keys()
        with contextlib.suppress(RouterGone):
            self.control.rekey(self._state / "key")

    def _takes_keys(self) -> bool:
        """Whether the one that runs does: one of an older version has the one that it began
        with."""
        self._write_keys()
        try:
            self.control.rekey(self._state / "key")
        except RouterGone:
            raise
        except BackendError:
            return False
        return True

    def _write_keys(self) -> None:
        replace(self._state / "key", "".join(f"{key.hex()}\n" for key in self._keys).encode())

    def _answering(self, process: subprocess.Popen[bytes]) -> socket.socket:
        deadline = time.monotonic() + _START
        while True:
            with contextlib.suppress(RouterGone):
                return self.control.watch()
            if process.poll() is not None:
                raise BackendError(f"the router does not start: {self._said()}")
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise BackendError(f"the router does not answer after {_START:g} s: {self._said()}")
            time.sleep(0.005)

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self._state / "router.log").read_text(errors="replace").splitlines()
            return lines[-1] if lines else "it said nothing"
        return "it said nothing"

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """In the host's network namespace; an ordinary user's threads are in no other."""
        if os.fstat(self._namespace).st_ino == Path("/proc/thread-self/ns/net").stat().st_ino:
            yield
        else:
            with netns.enter(self._namespace):
                yield

    def stop(self) -> None:
        """End it, and remove its files."""
        if self._process is not None:
            _stop(self.control)
            self._process.wait()
        self.close()
        remove(self._state)

    def close(self) -> None:
        """Let go of it. Closing twice is no error."""
        if self._watched is not None:
            self._watched.close()
            self._watched = None
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1


def remove(state: Path) -> None:
    """End the router of an instance, if it has one, and remove its files."""
    _stop(Control(state / "control"))
    for name in _FILES:
        (state / name).unlink(missing_ok=True)


def _stop(control: Control) -> None:
    with contextlib.suppress(RouterGone):
        control.stop()
