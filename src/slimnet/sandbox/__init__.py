# SPDX-License-Identifier: Apache-2.0
"""Run a command as an endpoint: what ``slimnet run`` and ``slimnet exec`` do.

The command joins the endpoint's cgroup before anything else, so that no
moment of it is unpoliced, enters its network namespace, and gets its own
mount, PID, IPC, UTS and cgroup namespaces without a way back: no cgroupfs, no
bpffs, no store, no socket of the agent or another daemon, a container
runtime's default capabilities without CAP_NET_RAW, no inherited descriptor
but 0, 1 and 2, and a small system call filter (:mod:`slimnet.sandbox.seccomp`).
Its host name is the endpoint's, ``/etc/hosts`` knows every endpoint, and
``/etc/resolv.conf`` names its resolver; where it has none, none that is on the host's loopback.

Of an ordinary user, and an endpoint that is known by its environment alone, the command
has that environment and nothing else of this: no namespaces, no filter, the user's own host
name and files.

What it does *not* confine are the host's other files: the command sees them,
and writes to them where its user may. Run what must not in a container.

One more command (``beside``) goes into the first one's namespaces and is confined
as that was: it sees its processes and its ``/run``, and ends with it. Only an
abstract Unix socket of the one is out of the other's reach (Landlock knows no
way back into a domain).

Descriptors 0, 1 and 2 may be files, pipes or devices. A socket there (some
supervisors and ``ssh`` without a terminal pass one) is replaced by
``/dev/null``, since a socket belongs to whom created it: put a pipe in
between (``slimnet run ... | cat``).
"""

from __future__ import annotations

import logging
import marshal
import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from slimnet import directories
from slimnet.exceptions import CapabilityMissing, InvalidValue, NotFound
from slimnet.place import Place
from slimnet.sandbox import preloaded, relay
from slimnet.sandbox.inside import REACHED

__all__ = ["HIDDEN", "Attached", "CommandNotFound", "NotExecutable", "run", "secrets", "spawn"]

_log = logging.getLogger(__name__)

#: What no endpoint's process shall see, wherever the caller's own files are.
HIDDEN = tuple(map(str, directories.MACHINE))

# The child imports this package and not slimnet's own index, with all that it
# imports: 10 ms instead of 60.
_BOOT = """\
import sys
from types import ModuleType
for name, path in (("slimnet", {slimnet!r}), ("slimnet.sandbox", {sandbox!r})):
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = [path]
from slimnet.sandbox.inside import main
main({order}, {report})
"""

_File = int | IO[Any] | None


class CommandNotFound(NotFound):
    """There is no such command; a shell exits with 127."""


class NotExecutable(InvalidValue):
    """It is there and cannot be executed; a shell exits with 126."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class Attached(Protocol):
    """What an attached endpoint has (:class:`slimnet.AttachedEndpoint`)."""

    @property
    def endpoint(self) -> _Named:
        """The endpoint; its name becomes the host name."""

    @property
    def place(self) -> Place:
        """Where its processes belong."""


class _Node(Protocol):
    @property
    def agent(self) -> Path: ...

    def status(self) -> Mapping[str, Any]: ...


def run(attached: Attached, argv: Sequence[str], **options: Any) -> int:
    """Run ``argv`` as the endpoint ``attached`` and return its exit status.

    Signals that the caller gets meanwhile are passed on (from the main thread
    only, as Python does); a terminal is the command's while it runs. A command
    that died of signal n gives 128 + n. When the calling thread ends, so does
    the command.

    Args:
        attached: where to run it.
        argv: the command; ``argv[0]`` is looked up in its PATH.
        options: as for :func:`spawn`.

    Raises:
        NotFound: ``beside``, and no command runs there.
        CommandNotFound: no such command.
        NotExecutable: the file is there and is no program.
        InvalidValue: no such user, or a directory that cannot be entered.
        CapabilityMissing: the kernel refused a step; the message says which.
    """
    terminal = options.get("stdin") is None and _owns_terminal()
    if threading.current_thread() is not threading.main_thread():
        process = spawn(attached, argv, terminal=terminal, **options)
        return _status(process.wait())
    before = relay.block()
    try:
        process = spawn(attached, argv, terminal=terminal, **options)
        if _is_bare(attached.place):
            process.returncode = relay.wait(process.pid, suspend=True, ours=False)
            return process.returncode
        # A command that leads the terminal cannot be stopped: nothing would continue it.
        alone = len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208  # it starts sooner
        status = relay.wait(process.pid, suspend=not terminal, alone=alone)
        process.returncode = status  # the relay has taken it in
        return status
    finally:
        if terminal:
            _take_terminal_back()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn(
    attached: Attached,
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] | None = None,
    user: str | None = None,
    hidden: Iterable[str | os.PathLike[str]] = (),
    stdin: _File = None,
    stdout: _File = None,
    stderr: _File = None,
    no_new_privileges: bool = False,
    seccomp: bool = True,
    terminal: bool = False,
    outlive: bool = False,
    beside: bool = False,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` as the endpoint ``attached``; it runs when this returns.

    The process returned is the command's outermost parent: a signal that is
    sent to it reaches the command, killing it kills all of the command's
    processes, and its return code is the command's (128 + n for signal n).

    Args:
        attached: where to run it.
        argv: the command; ``argv[0]`` is looked up in its PATH.
        environment: of the command; by default the caller's without SLIMNET_*.
        directory: to start in; by default the caller's, or ``/``.
        user: to run as, by name; by default the caller.
        hidden: more files and directories that shall not be in sight,
            besides :data:`HIDDEN`.
        stdin: as for :class:`subprocess.Popen`.
        stdout: likewise.
        stderr: likewise.
        no_new_privileges: set-user-id programs give nothing (PR_SET_NO_NEW_PRIVS).
        seccomp: False leaves the system call filter out.
        terminal: make the command the terminal's foreground process group.
        outlive: False ends the command when the calling thread ends; True also has it in a
            session of its own, so that the caller's terminal does not end it either.
        beside: enter the sandbox of the command that runs there already, of the oldest
            where there are several, and do not make one. ``hidden`` and ``seccomp`` are
            its own then, and it is over with that one.

    Raises:
        NotFound: ``beside``, and no command of :func:`run` or :func:`spawn` runs there.
        CommandNotFound: no such command.
        NotExecutable: the file is there and is no program.
        InvalidValue: no such user, or a directory that cannot be entered.
        CapabilityMissing: the kernel refused a step; the message says which.
    """
    if not argv:
        raise InvalidValue("argv", "a command", list(argv))
    place = attached.place
    bare = _is_bare(place)
    if bare and user is not None:
        raise CapabilityMissing(f"running as user {user} needs root: use sudo")
    if environment is None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLIMNET_")}
        if "HOSTNAME" in environment and not bare:
            environment["HOSTNAME"] = attached.endpoint.name
    environment = preloaded.joined(environment, place.environment)
    who = None if user is None else _user(user)
    if preloaded.VARIABLE in place.environment:
        number = None if who is None else who[0]
        preloaded.check(os.fspath(argv[0]), environment, directory=directory, user=number)
    order = {
        "argv": [os.fspath(word) for word in argv],
        "environment": environment,
        "directory": None if directory is None else os.fspath(directory),
        "user": who,
        "hidden": [*HIDDEN, *(str(Path(path).absolute()) for path in hidden)],
        "cgroup": str(place.cgroup or ""),
        "netns": str(place.netns or ""),
        "mounts": {seen: str(file) for seen, file in place.mounts.items()},
        "hostname": attached.endpoint.name,
        "no_new_privileges": no_new_privileges,
        "seccomp": seccomp,
        "preloaded": preloaded.libraries(place.environment),
        "terminal": terminal and not bare,
        "parent": 0 if outlive else os.getpid(),
        "beside": beside,
        "bare": bare,
    }
    process, report = _start(order, _file(stdin, 0), _file(stdout, 1), _file(stderr, 2))
    if report == REACHED:
        return process
    status = process.wait()
    told = report.removeprefix(REACHED)
    if not told:
        raise _failure(order, "", None, f"the child ended with status {status}")
    stage, number, text = marshal.loads(told)  # noqa: S302  # our own child's
    if stage == "sandbox":
        raise NotFound(f"endpoint {attached.endpoint.name}: no command of `slimnet run` runs in it")
    raise _failure(order, stage, number, text)


def secrets(node: _Node) -> list[Path]:
    """What the endpoints of this node's host must not see, wherever it is: the
    agent's socket, the cluster's key and the files of an embedded store."""
    status = node.status()
    scheme, _, path = str(status["store"]).partition(":///")
    files = [path + suffix for suffix in ("", "-wal", "-shm")] if scheme == "sqlite" else []
    return [node.agent, *map(Path, (status["key_file"], *files))]


def _start(
    order: dict[str, Any], stdin: _File, stdout: _File, stderr: _File
) -> tuple[subprocess.Popen[bytes], bytes]:
    """Start the child; what it reports is empty once the command runs."""
    here = Path(__file__).parent
    order_read, order_write = os.pipe()
    report_read, report_write = os.pipe()
    boot = _BOOT.format(
        slimnet=str(here.parent), sandbox=str(here), order=order_read, report=report_write
    )
    before = relay.block()  # the child must lose no signal before it waits for them
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", boot],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(order_read, report_write),
            start_new_session=not order["parent"] and not order["terminal"],
            env={"LC_ALL": "C.UTF-8"},
        )
    except BaseException:
        os.close(order_write)
        os.close(report_read)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(order_read)
        os.close(report_write)
    with os.fdopen(order_write, "wb") as pipe:
        pipe.write(marshal.dumps(order))
    with os.fdopen(report_read, "rb") as pipe:
        return process, pipe.read()


def _file(given: _File, number: int) -> _File:
    """What the command gets as descriptor ``number``: a file, a pipe or a
    device; nothing else, since a socket would be one of the host, and a
    directory a way around the mounts."""
    if given in (subprocess.STDOUT, subprocess.PIPE, subprocess.DEVNULL):
        return given
    try:
        descriptor = (
            number if given is None else given if isinstance(given, int) else given.fileno()
        )
        mode = os.fstat(descriptor).st_mode
    except OSError:  # closed
        return subprocess.DEVNULL
    usable = stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
    return given if usable else subprocess.DEVNULL


def _failure(order: dict[str, Any], stage: str, number: int | None, text: str) -> Exception:
    cause: Exception = OSError(number, text) if number is not None else RuntimeError(text)
    command = order["argv"][0]
    error: Exception
    if stage == "directory":
        error = InvalidValue("directory", "one that can be entered", order["directory"])
    elif stage == "command" and isinstance(cause, FileNotFoundError):
        error = CommandNotFound(f"command not found: {command}")
    elif stage == "command":
        error = NotExecutable("command", f"an executable ({text})", command)
    else:
        error = CapabilityMissing(f"cannot run {command} as an endpoint: {text}")
    error.__cause__ = cause
    return error


def _is_bare(place: Place) -> bool:
    """Whether the caller is an ordinary user, who can give a command an environment, but no
    cgroup, namespaces nor mounts.

    Raises:
        CapabilityMissing: the endpoint needs what only root can give.
    """
    if os.geteuid() == 0:
        return False
    elsewhere = place.netns is not None and not _is_here(place.netns)
    if place.cgroup is not None or elsewhere or not place.environment:
        raise CapabilityMissing("running as an endpoint needs root: use sudo")
    return True


def _is_here(namespace: Path) -> bool:
    """Whether this process is in a network namespace."""
    try:
        return namespace.samefile("/proc/self/ns/net")
    except OSError:
        return False


def _user(name: str) -> tuple[int, int, list[int]]:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise InvalidValue("user", "a user of this machine", name) from None
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(name, entry.pw_gid)


def _status(code: int) -> int:
    return code if code >= 0 else 128 - code


def _owns_terminal() -> bool:
    """Whether standard input is a terminal that this process may read now."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _take_terminal_back() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(0, os.getpgrp())
    except OSError as error:
        _log.debug("terminal not taken back: %s", error)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
