# SPDX-License-Identifier: Apache-2.0
"""What a host has itself: addresses, and the TCP ports that it listens on (sock_diag(7))."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from netaddr import IPAddress

from slimnet.linux.sock_diag import LISTENING, Diagnosis

__all__ = ["is_own", "listener"]


def is_own(address: IPAddress) -> bool:
    """Whether the host has this address: what it has not, nobody can bind."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def listener(address: IPAddress | None, port: int, endpoints: Iterable[Path]) -> str | None:
    """The address on which a socket of this host stands in the way of a published
    port; ``None`` where none does.

    One on loopback does: a port that is published on all addresses is there too.
    One of an endpoint does not: nothing from outside reaches it. Whose it is says the
    cgroup that created it.

    Args:
        address: of the host; ``None`` for all of them.
        port: of the host.
        endpoints: the cgroups of its endpoints.
    """
    theirs = {each.stat().st_ino for top in endpoints if top.is_dir() for each in _below(top)}
    for found, cgroup in _listeners(port):
        if cgroup not in theirs and (address is None or found == address or not int(found)):
            return str(found)
    return None


def _below(top: Path) -> Iterator[Path]:
    yield top
    yield from top.rglob("*/")


def _listeners(port: int) -> Iterator[tuple[IPAddress, int]]:
    """Address and cgroup id of the sockets that take IPv4 connections to a port."""
    with contextlib.closing(Diagnosis()) as diagnosis:
        for found in diagnosis.sockets(states=LISTENING):
            if found.ports[0] != port or found.v6only:
                continue
            local, _ = found.addresses
            address = IPAddress(int.from_bytes(local, "big"), 4 if len(local) == 4 else 6)
            if address.is_ipv4_mapped():
                address = address.ipv4()
            if address.version == 4 or not int(address):
                yield address, found.cgroup
