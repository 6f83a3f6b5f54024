# SPDX-License-Identifier: Apache-2.0
"""What a host has itself: addresses, and the ports that it listens on (sock_diag(7))."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from netaddr import IPAddress

from slimnet.linux.process import holder
from slimnet.linux.sock_diag import LISTENING, UNCONNECTED, Diagnosis, Socket
from slimnet.model import Protocol

__all__ = ["cut_off", "is_own", "listener", "listeners"]


def is_own(address: IPAddress) -> bool:
    """Whether the host has this address: what it has not, nobody can bind."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def cut_off(ports: range, endpoints: Iterable[Path], address: IPAddress | None) -> str:
    """Who of this host listens where nothing from outside would reach it, as
    ``4848 of java (process 812)``; empty where nobody does.

    Args:
        ports: those that a data path takes for itself.
        endpoints: the cgroups of its endpoints.
        address: of the host, where the data path does; ``None`` where that is not known.
    """
    theirs = _cgroups(endpoints)
    found = {
        one.ports[0]: one.inode
        for at, one in listeners()
        if one.ports[0] in ports
        and one.cgroup not in theirs
        and (not int(at) or at == address or (address is None and not at.is_loopback()))
    }
    return ", ".join(
        f"{port} of {holder(inode) or 'somebody'}" for port, inode in sorted(found.items())
    )


def listener(
    address: IPAddress | None,
    port: int,
    endpoints: Iterable[Path],
    held: Container[int] = frozenset(),
    protocol: Protocol = Protocol.TCP,
) -> str | None:
    """The address on which a socket of this host stands in the way of a published
    port; ``None`` where none does.

    One on loopback does: a port that is published on all addresses is there too.
    One of an endpoint does not: nothing from outside reaches it. Whose it is says the
    cgroup that created it.

    Args:
        address: of the host; ``None`` for all of them.
        port: of the host.
        endpoints: the cgroups of its endpoints.
        held: inodes of sockets that are in nobody's way: the data path's own
            (:meth:`slimnet.abc.Backend.holds`), and those that keep the port for an endpoint.
        protocol: TCP or UDP.
    """
    theirs = _cgroups(endpoints)
    for found, one in listeners(protocol):
        if one.ports[0] != port or one.cgroup in theirs or one.inode in held:
            continue
        if address is None or found == address or not int(found):
            return str(found)
    return None


def _cgroups(endpoints: Iterable[Path]) -> set[int]:
    """Their ids, and those of what is below them."""
    return {each.stat().st_ino for top in endpoints if top.is_dir() for each in _below(top)}


def _below(top: Path) -> Iterator[Path]:
    yield top
    yield from top.rglob("*/")


def listeners(protocol: Protocol = Protocol.TCP) -> Iterator[tuple[IPAddress, Socket]]:
    """The sockets that take IPv4 connections, or datagrams of anybody, and at which address."""
    states = LISTENING if protocol is Protocol.TCP else UNCONNECTED
    with contextlib.closing(Diagnosis()) as diagnosis:
        for found in diagnosis.sockets(protocol, states=states):
            if found.v6only:
                continue
            local, _ = found.addresses
            address = IPAddress(int.from_bytes(local, "big"), 4 if len(local) == 4 else 6)
            if address.is_ipv4_mapped():
                address = address.ipv4()
            if address.version == 4 or not int(address):
                yield address, found
