# SPDX-License-Identifier: Apache-2.0
"""The process at the far end of :class:`lab.hands.Hands`.

Run as ``python hands_process.py CHANNEL_FD MODULE...``, this imports the modules and forks
such a process for each request on the channel: Python starts once, not thousands of times.
A process joins its cgroup before it makes any socket, then does what it is told over a
channel of its own, each request in a thread of its own. Objects that cannot travel (sockets,
processes, a backend) stay here and go over the channel as numbers.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import itertools
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from typing import Any

_CLONE_NEWNET = 0x40000000

#: What functions that tests send may use.
_MODULES = """
import array, collections, contextlib, ctypes, errno, fcntl, json, os, select
import signal, socket, struct, subprocess, sys, threading, time
from pathlib import Path
from typing import Any
"""


class Reference:
    """Wraps what must stay in this process although it could be pickled."""

    def __init__(self, value: object) -> None:
        self.value = value


def _stays(value: object) -> bool:
    return isinstance(value, (socket.socket, subprocess.Popen, io.IOBase)) or (
        type(value).__name__ == "Reference"
        or type(value).__module__ in {"select", "_thread", "threading"}
    )


class Process:
    """Objects by number, functions by source."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.objects: dict[int, Any] = {}
        self.functions: dict[str, Any] = {}
        self.namespace: dict[str, Any] = {"__name__": "hands"}
        exec(_MODULES, self.namespace)

    def dumps(self, value: object) -> bytes:
        process = self

        class Pickler(pickle.Pickler):
            def persistent_id(self, item: Any) -> tuple[int, str] | None:
                if not _stays(item):
                    return None
                if type(item).__name__ == "Reference":
                    item = item.value
                number = next(process.numbers)
                process.objects[number] = item
                return number, type(item).__name__

        buffer = io.BytesIO()
        Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return buffer.getvalue()

    def loads(self, data: bytes) -> Any:
        process = self

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, number: Any) -> object:
                return process.objects[number]

        return Unpickler(io.BytesIO(data)).load()

    def function(self, source: str, name: str) -> Any:
        """Compile what the test wrote; functions share their globals."""
        if source not in self.functions:
            exec(compile(source, f"<{name}>", "exec"), self.namespace)
            self.functions[source] = self.namespace[name]
        return self.functions[source]

    def answer(self, number: int, data: bytes) -> None:
        try:
            what, *rest = self.loads(data)
            if what == "call":
                source, name, args, kwargs = rest
                result = self.function(source, name)(*args, **kwargs)
            elif what == "method":
                target, name, args, kwargs = rest
                result = getattr(target, name)(*args, **kwargs)
            elif what == "attribute":
                target, name = rest
                result = getattr(target, name)
            else:
                raise ValueError(what)
            reply = self.dumps((True, result))
        except BaseException as error:  # noqa: BLE001  # all of them travel
            error.add_note("".join(traceback.format_exception(error)))
            error.__traceback__ = None
            try:
                reply = self.dumps((False, error))
            except Exception:  # noqa: BLE001
                reply = self.dumps((False, RuntimeError("".join(error.__notes__))))
        with self.lock:
            self.channel.sendall(struct.pack("=QI", number, len(reply)) + reply)

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.channel.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def serve(self) -> None:
        while True:
            number, length = struct.unpack("=QI", self.read(12))
            data = self.read(length)
            threading.Thread(target=self.answer, args=(number, data), daemon=True).start()


def _enter(cgroup: str | None, uid: int | None) -> None:
    if cgroup is not None:
        with open(os.path.join(cgroup, "cgroup.procs"), "w") as file:
            file.write("0")
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def _begin(channel: int, cgroup: str | None, uid: int | None) -> None:
    """Be the hands, to the end."""
    _enter(cgroup, uid)
    process = Process(socket.socket(fileno=channel))
    try:
        process.serve()
    except (EOFError, ConnectionError):
        if cgroup is not None:  # the test is gone: take the children along
            try:
                with open(os.path.join(cgroup, "cgroup.kill"), "w") as file:
                    file.write("1")
            except OSError:
                pass


def _child(request: bytes, descriptors: list[int]) -> None:
    cgroup, uid, environment, path = pickle.loads(request)
    channel, *namespace = descriptors
    for descriptor in namespace:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    _begin(channel, cgroup, uid)


def _reap(*_: object) -> None:
    """Nobody waits for the children but by a pidfd."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> None:
    number, *modules = sys.argv[1:]
    with socket.socket(fileno=int(number)) as channel:
        exec(_MODULES, {})
        for module in modules:
            importlib.import_module(module)
        signal.signal(signal.SIGCHLD, _reap)
        gc.freeze()
        while True:
            request, descriptors, *_ = socket.recv_fds(channel, 1 << 18, 2)
            if not request:
                return
            # One that ends at once is reaped later: what has no process any more has no pidfd.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
            pid = os.fork()
            if pid == 0:
                try:
                    channel.close()
                    _child(request, descriptors)
                except BaseException:  # noqa: BLE001  # said, as by any program
                    traceback.print_exc()
                finally:
                    os._exit(0)
            pidfd = os.pidfd_open(pid)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            socket.send_fds(channel, [struct.pack("=i", pid)], [pidfd])
            for descriptor in (pidfd, *descriptors):
                os.close(descriptor)


if __name__ == "__main__":
    main()
