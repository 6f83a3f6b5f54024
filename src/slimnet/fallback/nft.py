# SPDX-License-Identifier: Apache-2.0
"""nftables, through nft(8): one call is one transaction, all or nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

from slimnet.exceptions import BackendError
from slimnet.linux import netns

__all__ = ["apply", "changes", "listing"]

# linux/netfilter/nfnetlink.h, nf_tables.h: NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN, whose answer
# begins with NFTA_GEN_ID
_NETLINK_NETFILTER = 12
_GET_GENERATION = 10 << 8 | 16
_REQUEST = 1


def _run(arguments: list[str], where: Path | None, text: str | None = None) -> str:
    try:
        with contextlib.nullcontext() if where is None else netns.enter(where):
            done = subprocess.run(  # a fixed program, no shell
                ["nft", *arguments],  # wherever the distribution puts it
                input=text,
                capture_output=True,
                text=True,
                check=False,
            )
    except FileNotFoundError as error:
        raise BackendError("nft: not installed (Debian package nftables)") from error
    if done.returncode != 0:
        raise BackendError(f"nft: {done.stderr.strip().splitlines()[0]}")
    return done.stdout


def apply(text: str, where: Path | None = None) -> None:
    """Run a script as one transaction in a network namespace.

    Raises:
        BackendError: it was refused; nothing of it is in force.
    """
    _run(["-f", "-"], where, text)


def changes() -> int:
    """A number that changes with every transaction of anybody in the calling thread's network
    namespace. It takes the kernel microseconds, and nft(8) milliseconds to say more."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    ) as route:
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
    options = ["-j", "-t"] if terse else ["-j"]
    try:
        answer = json.loads(_run([*options, "list", *what.split()], where))
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
