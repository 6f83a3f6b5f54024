# SPDX-License-Identifier: Apache-2.0
"""Remote hands: a process somewhere (a cgroup, a network namespace, a user)
that does what the test says.

>>> hands.call(function, 1, 2)          # a plain function; its source is sent
>>> sock = hands.socket()               # a socket over there
>>> sock.connect(("10.77.0.2", 80))     # its errors are raised here
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from lab import hands_process
from slimnet.linux import cgroup

__all__ = ["PATIENCE", "Hands", "Program", "Remote"]

#: How many times as long a test waits for what has to come: more than once where the processor
#: is emulated (``tests/vm``).
PATIENCE = float(os.environ.get("SLIMNET_PATIENCE", "1"))
#: No step of a test takes longer; what does, hangs.
DEADLINE = 120.0 * PATIENCE


class Remote:
    """An object that lives in the other process. Calling a method of it calls
    it there; ``remote.get("pid")`` reads an attribute."""

    def __init__(self, hands: Hands, number: int, kind: str) -> None:
        self._hands = hands
        self._number = number
        self._kind = kind

    def get(self, name: str) -> Any:
        return self._hands.request("attribute", self, name).result(DEADLINE)

    def start(self, name: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a method and do not wait for it."""
        return self._hands.request("method", self, name, args, kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.start(name, *args, **kwargs).result(DEADLINE)

    def __repr__(self) -> str:
        return f"<{self._kind} {self._number} of {self._hands.name}>"


class Forked:
    """A process that is not our child; for what tests do with it, as subprocess.Popen."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._ended = select.poll()
        self._ended.register(descriptor, select.POLLIN)
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def poll(self) -> int | None:
        """0 when it has ended, whatever its status."""
        return 0 if self._ended.poll(0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return 0

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Mother:
    """A process that has imported some modules, and forks (hands_process.py)."""

    def __init__(self, imports: Sequence[str], variables: Mapping[str, str]) -> None:
        # In one piece each way, for one request at a time.
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, hands_process.__file__, str(theirs.fileno()), *imports],
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    **variables,
                },
            )

    def fork(
        self,
        channel: socket.socket,
        netns: Path | str | None,
        cgroup: Path | None,
        uid: int | None,
        environment: Mapping[str, str],
    ) -> Forked:
        where = None if cgroup is None else str(cgroup)
        request = pickle.dumps((where, uid, environment, sys.path))
        with contextlib.ExitStack() as held, self._lock:
            given = [channel.fileno()]
            if netns is not None:
                given.append(os.open(netns, os.O_RDONLY | os.O_CLOEXEC))
                held.callback(os.close, given[-1])
            socket.send_fds(self._channel, [request], given)
            answer, (descriptor,), _, _ = socket.recv_fds(self._channel, 4, 1)
        return Forked(*struct.unpack("=i", answer), descriptor)

    def close(self) -> None:
        """It ends when nobody can ask it."""
        self._channel.close()
        self._process.wait(DEADLINE)


@functools.cache
def _mother(imports: tuple[str, ...], variables: tuple[tuple[str, str], ...]) -> Mother:
    """One for all that are alike: what is preloaded is so from the start of a program on."""
    return Mother(imports, dict(variables))


class Hands:
    """One such process.

    Args:
        name: for messages.
        netns: path of the network namespace to enter, or ``None``.
        cgroup: the cgroup v2 directory to join, or ``None``.
        uid: user to become, or ``None`` for root.
        directory: for the output of programs.
        variables: what is set in its environment besides.
        imports: modules that it will need; imported once for all that name the same.
    """

    def __init__(
        self,
        name: str,
        *,
        netns: Path | str | None = None,
        cgroup: Path | None = None,
        uid: int | None = None,
        directory: Path | None = None,
        variables: Mapping[str, str] | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.cgroup = cgroup
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        environment = {**os.environ, **(variables or {})}
        environment.pop("PYTHONPATH", None)  # ours, not that of the programs that it starts
        if directory is not None:
            environment["TMPDIR"] = str(directory)
        with theirs:
            mother = _mother(tuple(imports), tuple((variables or {}).items()))
            self.process = mother.fork(theirs, netns, cgroup, uid, environment)
        self._channel = ours
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    # The two ends of the channel

    def _dumps(self, value: object) -> bytes:
        class Pickler(pickle.Pickler):
            def persistent_id(self, item: Any) -> int | None:
                return item._number if isinstance(item, Remote) else None

        buffer = io.BytesIO()
        Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
        return buffer.getvalue()

    def _loads(self, data: bytes) -> Any:
        hands = self

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, pid: Any) -> Remote:
                return Remote(hands, *pid)

        return Unpickler(io.BytesIO(data)).load()

    def _read(self) -> None:
        stream = self._channel.makefile("rb")
        while True:
            try:
                head = stream.read(12)
                if len(head) < 12:
                    break
                number, length = struct.unpack("=QI", head)
                ok, value = self._loads(stream.read(length))
            except (OSError, EOFError, ValueError):
                break
            future = self._waiting.pop(number)
            if ok:
                future.set_result(value)
            else:
                future.set_exception(value)
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(EOFError(f"{self.name} is gone"))

    def request(self, *what: Any) -> Future[Any]:
        future: Future[Any] = Future()
        number = next(self._numbers)
        data = self._dumps(what)
        self._waiting[number] = future
        with self._lock:
            self._channel.sendall(struct.pack("=QI", number, len(data)) + data)
        return future

    # What tests use

    def start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function over there; its source is sent, so it may use its
        arguments and the standard modules that the far end imports."""
        source = textwrap.dedent(inspect.getsource(function))
        while source.startswith("@"):
            source = source.split("\n", 1)[1]
        return self.request("call", source, function.__name__, args, kwargs)

    def call(
        self, function: Callable[..., Any], *args: Any, deadline: float = DEADLINE, **kwargs: Any
    ) -> Any:
        """As :meth:`start`, and wait for the result; what it raises is raised here."""
        return self.start(function, *args, **kwargs).result(deadline)

    def listen(
        self,
        port: int,
        address: str | None = None,
        *,
        family: int = socket.AF_INET,
        backlog: int = 128,
        reuseport: bool = False,
    ) -> Any:
        """A listening socket; ``address`` is the family's wildcard by default."""
        if address is None:
            address = "::" if family == socket.AF_INET6 else "0.0.0.0"
        return self.call(_listen, family, address, port, backlog, reuseport)

    def connect(self, address: str, port: int, *, family: int = socket.AF_INET) -> Any:
        """A connected socket."""
        return self.call(_connect, family, address, port)

    def serve(self, port: int, address: str | None = None, *, family: int = socket.AF_INET) -> Any:
        """A listener that echoes, in threads, until it is closed."""
        listener = self.listen(port, address, family=family, backlog=1024)
        self.call(_echo, listener)
        return listener

    def refused_datagram(self, address: str, port: int, protocol: int = 0) -> int:
        """errno that a datagram (of UDP, or of another protocol) gets which may not go there:
        at once, or out of the network; 0 where nobody says anything."""
        return int(self.call(_refused_datagram, address, port, protocol))

    def spawn(self, argv: Sequence[str | Path], **environment: str) -> Program:
        """Start a program over there; its output goes to a file."""
        return Program(self, [str(word) for word in argv], environment)

    def run(self, argv: Sequence[str | Path], *, timeout: float = 60.0, **environment: str) -> str:
        """Run a program over there to its end; its output.

        Raises:
            RuntimeError: its exit status is not 0; the output is in the message.
        """
        status, output = self.call(
            *(_run, [str(word) for word in argv], environment, timeout * PATIENCE),
            deadline=timeout * PATIENCE + 10,
        )
        if status:
            raise RuntimeError(f"{self.name}: {argv} gave {status}: {output}")
        return str(output)

    def give(self, sock: Any, taker: Hands) -> Any:
        """Pass a socket over SCM_RIGHTS and close it here; the taker's."""
        door, path = taker.call(_open_door)
        taking = taker.start(_take, door)
        self.call(_give, path, sock)
        return taking.result(DEADLINE)

    def disconnect(self, sock: Any) -> None:
        """connect(2) to AF_UNSPEC: the socket is as before it was connected."""
        self.call(_disconnect, sock)

    def close(self) -> None:
        """End the process and everything that it started in its cgroup."""
        self.process.kill()
        if self.cgroup is not None:
            cgroup.kill(self.cgroup)
        self.process.wait()
        self._channel.close()

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> Any:
        """A socket over there."""
        return self.call(_socket, family, kind, protocol)


class Program:
    """A program that was started by :meth:`Hands.spawn`."""

    def __init__(self, hands: Hands, argv: list[str], environment: dict[str, str]) -> None:
        self.hands = hands
        self.process, self.log = hands.call(_spawn, argv, environment)

    def wait(self, timeout: float = DEADLINE) -> int:
        return int(self.process.start("wait", timeout).result(timeout + 5))

    def running(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return Path(self.log).read_text()

    def kill(self, number: int = 15) -> None:
        self.process.send_signal(number)

    def ready(self, text: str, timeout: float = 20.0) -> None:
        """Wait until its output holds ``text``."""
        until = time.monotonic() + timeout * PATIENCE
        while text not in self.output():
            if time.monotonic() > until or not self.running():
                raise AssertionError(f"no {text!r} in: {self.output()}")
            time.sleep(0.02)


# What runs over there. The far end has imported the modules that these use.


def _socket(family: int, kind: int, protocol: int) -> socket.socket:
    return socket.socket(family, kind, protocol)


def _listen(family: int, address: str, port: int, backlog: int, reuseport: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuseport:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((address, port))
    listener.listen(backlog)
    return listener


def _connect(family: int, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect((address, port))
    sock.settimeout(None)
    return sock


def _refused_datagram(address: str, port: int, protocol: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(5)
        try:
            sock.sendto(b"x", (address, port))
            # It went: only a connected socket hears what becomes of it.
            sock.connect((address, port))
            sock.send(b"x")
            sock.recv(1)
        except OSError as error:
            return error.errno or 0
    return 0


def _echo(listener: socket.socket) -> None:
    def talk(sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    sock.sendall(data)
            except OSError:
                pass

    # A thread that sits in accept(2) would keep a closed listener alive.
    listener.settimeout(0.05)

    def accept() -> None:
        while listener.fileno() >= 0:
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            sock.settimeout(None)
            threading.Thread(target=talk, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _disconnect(sock: socket.socket) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), bytes(16), 16):
        number = ctypes.get_errno()
        raise OSError(number, f"connect(AF_UNSPEC): {os.strerror(number)}")


def _open_door() -> tuple[socket.socket, str]:
    import tempfile

    path = tempfile.mktemp(prefix="slt-")
    door = socket.socket(socket.AF_UNIX)
    door.bind(path)
    door.listen()
    return door, path


def _take(door: socket.socket) -> socket.socket:
    channel, _ = door.accept()
    with door, channel:
        _, (descriptor,), _, _ = socket.recv_fds(channel, 1, 1)
        channel.sendall(b"x")
    return socket.socket(fileno=descriptor)


def _give(path: str, sock: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        os.unlink(path)
        socket.send_fds(channel, [b"x"], [sock.fileno()])
        channel.recv(1)
    sock.close()


def _spawn(argv: list[str], environment: dict[str, str]) -> tuple[Any, str]:
    import tempfile

    log, path = tempfile.mkstemp(prefix="slt-", suffix=".log")
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    os.close(log)
    os.chmod(path, 0o644)
    return process, path


def _run(argv: list[str], environment: dict[str, str], timeout: float) -> tuple[int, str]:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=timeout,
    )
    return done.returncode, done.stdout + done.stderr
