# SPDX-License-Identifier: Apache-2.0
"""The processes between the caller and the command.

::

    caller            slimnet run, or a program that uses the library
      outside         joins the cgroup, enters the network namespace, relays
        init          process 1 of the PID namespace: mounts, drops, reaps
          command

    caller            slimnet exec, likewise
      outside         the same, and enters the namespaces of that init
        between       drops, relays
          command     ends with it, and with the init as all that it started

    caller            slimnet run or exec of an ordinary user
      command         has the endpoint's environment, and nothing else

Started by :mod:`slimnet.sandbox` as a fresh interpreter that imports nothing
but the standard library and this package; what to do arrives marshalled on a
pipe. An error goes back on another pipe, which the command's execve closes.
"""
# pathlib would be start-up time:
# ruff: noqa: PTH109,PTH116,PTH123

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import signal

from slimnet.linux import libc
from slimnet.sandbox import capabilities, entrance, landlock, mounts, relay, seccomp

TYPE_CHECKING = False  # typing's own is 4 ms of start-up
if TYPE_CHECKING:
    from typing import Any

__all__ = ["REACHED", "main"]

#: The report of a child that came as far as the command's execve.
REACHED = b"."

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38


def main(order: int, report: int) -> None:
    """Carry out what the pipe ``order`` says; never returns.

    Args:
        order: descriptor with the marshalled arguments of :func:`slimnet.sandbox.spawn`.
        report: descriptor to tell the caller why it failed.
    """
    with os.fdopen(order, "rb") as pipe:
        spec: dict[str, Any] = marshal.load(pipe)  # noqa: S302  # our own caller's
    os.set_inheritable(report, False)
    try:
        if spec["parent"] and not _die_with(spec["parent"]):
            os._exit(128 + signal.SIGKILL)
        if spec["bare"]:
            _start(spec, report)
        if spec["cgroup"]:
            _join(spec["cgroup"])
        if spec["netns"] and not _same_file(spec["netns"], "/proc/self/ns/net"):
            libc.setns(spec["netns"], libc.CLONE_NEWNET)
        spec["here"] = _current_directory()
        if spec["beside"]:
            _enter(spec, report)
        else:
            libc.unshare(libc.CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            (_between if spec["beside"] else _init)(spec, report)
        os.close(report)
        os._exit(relay.wait(child))
    except BaseException as error:  # noqa: BLE001  # reported to the caller
        _fail(report, error)


def _start(spec: dict[str, Any], report: int) -> None:
    """Become the command, where the endpoint is known by nothing but its environment."""
    try:
        _change_directory(_current_directory(), spec["directory"])
    except OSError as error:
        _fail(report, error, "directory")
    if spec["no_new_privileges"]:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _command(spec, report, os.getppid())


def _enter(spec: dict[str, Any], report: int) -> None:
    """Go where the endpoint's first command is; its init says how it was confined."""
    console = libc.open_tree(os.ttyname(0)) if spec["terminal"] else None
    try:
        filtered, without_privileges = entrance.enter(spec["cgroup"])
    except ProcessLookupError as error:
        _fail(report, error, "sandbox")
    spec["seccomp"] = filtered
    spec["no_new_privileges"] |= without_privileges
    if console is not None:
        libc.unshare(libc.CLONE_NEWNS)  # the first command's console is another
        mounts.put_console(console)


def _between(spec: dict[str, Any], report: int) -> None:
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _call_oneself(b"slimnet-exec")
        _confine(spec, report)
    except BaseException as error:  # noqa: BLE001  # reported to the caller
        _fail(report, error)


def _init(spec: dict[str, Any], report: int) -> None:
    try:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getpid() != 1:
            raise OSError(errno.EINVAL, "not the first process of its PID namespace")
        _call_oneself(b"slimnet-init")
        terminal = os.ttyname(0) if spec["terminal"] else None
        libc.unshare(
            libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWCGROUP
        )
        libc.sethostname(spec["hostname"])
        mounts.arrange(
            files=spec["mounts"],
            hostname=spec["hostname"],
            hidden=spec["hidden"],
            terminal=terminal,
        )
        _confine(spec, report)
    except BaseException as error:  # noqa: BLE001  # reported to the caller
        _fail(report, error)


def _confine(spec: dict[str, Any], report: int) -> None:
    """Give up what no process of an endpoint has, start the command, and wait for it."""
    try:
        _change_directory(spec["here"], spec["directory"])
    except OSError as error:
        _fail(report, error, "directory")
    landlock.scope_abstract_sockets()
    if spec["seccomp"]:
        seccomp.install(os.uname().machine)
    capabilities.drop()
    if spec["no_new_privileges"]:
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    parent = os.getpid()
    apart_read, apart_write = os.pipe()
    command = os.fork()
    if command == 0:
        os.close(apart_write)
        os.read(apart_read, 1)
        _command(spec, report, parent)
    os.close(report)
    # With this process in another session, the process group of a command that leads the
    # terminal is orphaned (setpgid(2)): the kernel does not stop such a group by ^Z, and
    # nobody would be there to continue it.
    os.setsid()
    os.close(apart_write)
    os.close(apart_read)
    # Held open here, a pipe from the command would not end when the command does.
    for descriptor in (0, 1, 2):
        os.close(descriptor)
    os._exit(relay.wait(command, reap=True))


def _command(spec: dict[str, Any], report: int, parent: int) -> None:
    try:
        if spec["terminal"]:
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            os.tcsetpgrp(0, os.getpid())
        if spec["user"] is not None:
            user, group, groups = spec["user"]
            os.setgroups(groups)
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
        # After the user is another one, which would undo it.
        if spec["beside"] and not spec["bare"] and not _die_with(parent):
            os._exit(128 + signal.SIGKILL)
        # The linker starts a program also without a library that this user may not read.
        for library in spec["preloaded"]:
            os.close(os.open(library, os.O_RDONLY | os.O_CLOEXEC))
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; exec keeps that
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
    except BaseException as error:  # noqa: BLE001  # reported to the caller
        _fail(report, error)
    os.write(report, REACHED)
    try:
        os.execvpe(spec["argv"][0], spec["argv"], spec["environment"])  # noqa: S606
    except (OSError, ValueError) as error:
        _fail(report, error, "command")


def _fail(report: int, error: BaseException, stage: str = "") -> None:
    number, text = None, f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        number, text = error.errno, error.strerror or str(error)
        text = f"{error.filename}: {text}" if error.filename and not stage else text
    os.write(report, marshal.dumps((stage, number, text)))
    os._exit(127)


def _die_with(parent: int) -> bool:
    """Have the kernel end this process when the caller's thread ends; False
    when it is gone already."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def _join(cgroup: str) -> None:
    with open(f"{cgroup}/cgroup.procs", "wb", buffering=0) as procs:
        procs.write(b"0")


def _call_oneself(name: bytes) -> None:
    text = ctypes.create_string_buffer(name)
    libc.prctl(_PR_SET_NAME, ctypes.addressof(text))


def _current_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _change_directory(here: str, wanted: str | None) -> None:
    if wanted is not None:
        os.chdir(os.path.join(here, wanted))  # noqa: PTH118
        return
    try:
        os.chdir(here)  # the same path, in the new mounts
    except OSError:
        os.chdir("/")


def _same_file(one: str, other: str) -> bool:
    return os.path.samestat(os.stat(one), os.stat(other))
