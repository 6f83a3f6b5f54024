# SPDX-License-Identifier: Apache-2.0
"""nftables, through libnftables, which nft(8) is made of: one call is one transaction, all or
nothing.

In this process, as firewalld does it: a program started for each of the some ten calls that an
endpoint takes would be most of the time that it takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

from slimnet.exceptions import BackendError
from slimnet.linux import netns

__all__ = ["apply", "changes", "is_here", "listing"]

_SONAME = "libnftables.so.1"
# nftables/libnftables.h
_OUTPUT_JSON = 1 << 4
_OUTPUT_TERSE = 1 << 11
# linux/netfilter/nfnetlink.h, nf_tables.h: NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, whose answer
# begins with NFTA_GEN_ID
_NETLINK_NETFILTER = 12
_GET_GENERATION = 10 << 8 | 16
_REQUEST = 1

#: What the library knows of interfaces it knows for the process, not for a context.
_lock = threading.Lock()


@functools.cache
def _library() -> ctypes.CDLL:
    context = ctypes.c_void_p
    library = ctypes.CDLL(_SONAME)
    for name, result, arguments in (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_get_output_buffer", ctypes.c_char_p, [context]),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, [context]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, ctypes.c_char_p]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def is_here() -> bool:
    """Whether the library can be loaded."""
    try:
        _library()
    except OSError:
        return False
    return True


def _run(text: str, where: Path | None, flags: int = 0) -> str:
    """What it answers. Its socket is of the namespace in which the context is made."""
    try:
        library = _library()
    except OSError as error:
        # dlopen(3) has a text alone.
        if os.strerror(errno.ENOENT) not in str(error):
            raise BackendError(f"nft: {error}") from error
        raise BackendError(f"{_SONAME}: not installed (Debian package nftables)") from error
    with _lock, contextlib.nullcontext() if where is None else netns.enter(where):
        _socket().close()  # where none can be opened the library ends the process
        context = library.nft_ctx_new(0)
        try:
            library.nft_ctx_output_set_flags(context, flags)
            library.nft_ctx_buffer_output(context)
            library.nft_ctx_buffer_error(context)
            if library.nft_run_cmd_from_buffer(context, text.encode()) != 0:
                said = library.nft_ctx_get_error_buffer(context).decode(errors="replace")
                raise BackendError(f"nft: {said.strip().splitlines()[0]}")
            return str(library.nft_ctx_get_output_buffer(context).decode())
        finally:
            library.nft_ctx_free(context)


def _socket() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    try:
        return socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
    except OSError as error:
        raise BackendError(f"nft: a socket of netlink's netfilter: {error.strerror}") from error


def apply(text: str, where: Path | None = None) -> None:
    """Run a script as one transaction in a network namespace.

    Raises:
        BackendError: it was refused; nothing of it is in force.
    """
    _run(text, where)


def changes() -> int:
    """A number that changes with every transaction of anybody in the calling thread's network
    namespace. It takes the kernel microseconds, and libnftables more to say more."""
    with _socket() as route:
        route.send(struct.pack("=IHHII4x", 20, _GET_GENERATION, _REQUEST, 0, 0))
        (number,) = struct.unpack_from("!I", route.recv(4096), 24)
    return int(number)


def listing(
    what: str, where: Path | None = None, *, terse: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """``nft -j list <what>`` as (kind, object) pairs; empty when there is no such thing.

    Args:
        what: ``table ip slimnet``, ``counters table ip slimnet``, ...
        where: path of the network namespace; the calling thread's by default.
        terse: leave out the elements of sets and maps.
    """
    flags = _OUTPUT_JSON | (_OUTPUT_TERSE if terse else 0)
    try:
        answer = json.loads(_run(f"list {what}", where, flags))
    except BackendError as error:
        if "No such file or directory" in str(error):
            return []
        raise
    return [
        (kind, value)
        for item in answer["nftables"]
        for kind, value in item.items()
        if kind != "metainfo"
    ]
