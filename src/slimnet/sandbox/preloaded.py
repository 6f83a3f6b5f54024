# SPDX-License-Identifier: Apache-2.0
"""Whether a program takes in a library that is preloaded (ld.so(8), LD_PRELOAD).

Where an endpoint is known by such a library, a program that does not take it in is a process
of the host like any other: better no such process than one that looks like an endpoint's.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from attrs import frozen

from slimnet.exceptions import CapabilityMissing

__all__ = ["VARIABLE", "check", "joined", "libraries"]

#: Of the environment (ld.so(8)); its libraries are divided by colons or spaces.
VARIABLE = "LD_PRELOAD"

_INTERPRETERS_MAX = 5  # fs/exec.c, exec_binprm()
_REMEDY = "take a program that is linked dynamically, or a backend that preloads nothing"

# Numbers of elf(5).
_PT_INTERP = 3
_HEADERS = {1: "HHIIIIIHHHHHH", 2: "HHIQQQIHHHHHH"}
_SECTION = {1: "IIIIIIIIII", 2: "IIQQQQIIQQ"}


@frozen
class _Elf:
    """What of an executable decides.

    Attributes:
        machine: its class and instruction set; two that differ do not load one another.
        dynamic: a dynamic linker starts it.
        go: the Go tool chain made it, whose programs make system calls themselves.
    """

    machine: tuple[int, int]
    dynamic: bool
    go: bool


def joined(environment: Mapping[str, str], place: Mapping[str, str]) -> dict[str, str]:
    """A command's environment with a place's; a library that the command preloads itself
    comes behind the place's."""
    both = {**environment, **place}
    if VARIABLE in place and environment.get(VARIABLE):
        both[VARIABLE] = f"{place[VARIABLE]}:{environment[VARIABLE]}"
    return both


def libraries(environment: Mapping[str, str]) -> list[str]:
    """Those that are preloaded in an environment."""
    return environment.get(VARIABLE, "").replace(":", " ").split()


def check(
    command: str,
    environment: Mapping[str, str],
    *,
    directory: str | os.PathLike[str] | None = None,
    user: int | None = None,
) -> None:
    """Refuse what would not be the endpoint's process. A command that is not there is for
    whoever starts it to tell.

    Args:
        command: as the caller named it; looked up in the environment's PATH.
        environment: the command's, with the libraries that are preloaded.
        directory: in which it starts.
        user: by number, who runs it; the caller by default.

    Raises:
        CapabilityMissing: it takes in no library that is preloaded; says why.
    """
    user = os.geteuid() if user is None else user
    file = _find(command, environment, directory)
    every = [_read(Path(each)) for each in libraries(environment)]
    for _ in range(_INTERPRETERS_MAX):
        if file is None:
            return
        why = _privileged(file, user) or _foreign(file, every)
        if why:
            raise CapabilityMissing(f"cannot run {file} as an endpoint: {why}: {_REMEDY}")
        file = _interpreter(file)


def _find(
    command: str, environment: Mapping[str, str], directory: str | os.PathLike[str] | None
) -> Path | None:
    if "/" in command:
        return Path(directory or "", command)
    found = shutil.which(command, path=environment.get("PATH", os.defpath))
    return None if found is None else Path(found)


def _privileged(file: Path, user: int) -> str:
    """Of a program that gains privilege the dynamic linker takes in nothing of the caller's
    (getauxval(3), AT_SECURE)."""
    try:
        found = file.stat()
    except OSError:
        return ""
    try:
        capable = "security.capability" in os.listxattr(file)
    except OSError:  # a file system that has none
        capable = False
    if found.st_mode & stat.S_ISUID and found.st_uid != user:
        return "it is set-user-ID, and takes in no library that is preloaded"
    if found.st_mode & stat.S_ISGID and found.st_mode & stat.S_IXGRP and user != 0:
        return "it is set-group-ID, and takes in no library that is preloaded"
    if capable and user != 0:
        return "it has file capabilities, and takes in no library that is preloaded"
    return ""


def _foreign(file: Path, preloaded: list[_Elf | None]) -> str:
    program = _read(file)
    if program is None:
        return ""
    if program.go:
        return "it is a Go program, which makes system calls past every library"
    if not program.dynamic:
        return "it is linked statically, and takes in no library that is preloaded"
    if any(each is not None and each.machine != program.machine for each in preloaded):
        return "it is for another machine than the library that is to be preloaded"
    return ""


def _interpreter(file: Path) -> Path | None:
    """Of a script (execve(2))."""
    try:
        with file.open("rb") as script:
            first = script.readline(256)
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    words = os.fsdecode(first[2:]).split()
    return Path(words[0]) if words else None


def _read(file: Path) -> _Elf | None:
    """``None``: it cannot be read, or is none."""
    try:
        with file.open("rb") as opened:
            return _parse(opened)
    except (OSError, struct.error, KeyError, IndexError):
        return None


def _parse(file: BinaryIO) -> _Elf | None:
    ident = file.read(16)
    if not ident.startswith(b"\x7fELF"):
        return None
    kind, order = ident[4], "<>"[ident[5] - 1]
    header = struct.Struct(order + _HEADERS[kind])
    (_, machine, _, _, segments, sections, _, _, size, count, section_size, number, names) = (
        header.unpack(file.read(header.size))
    )
    file.seek(segments)
    table = file.read(size * count)
    types = {struct.unpack_from(order + "I", table, at * size)[0] for at in range(count)}
    go = False
    if number:
        file.seek(sections + names * section_size)
        section = struct.Struct(order + _SECTION[kind])
        where = section.unpack(file.read(section.size))
        file.seek(where[4])
        go = b".go.buildinfo\0" in file.read(min(where[5], 1 << 20))
    return _Elf((kind, machine), _PT_INTERP in types, go)
