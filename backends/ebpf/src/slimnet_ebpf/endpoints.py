# SPDX-License-Identifier: Apache-2.0
"""Endpoints: a cgroup, an inner index, and the programs that are attached there."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import evolve, frozen

from slimnet import contract
from slimnet.exceptions import BackendError, InUse, InvalidValue
from slimnet.model import Attachment, Endpoint, Network
from slimnet.policy.difference import altered
from slimnet.tables import LimitRecord
from slimnet_ebpf import cgroups, links
from slimnet_ebpf.layout import Layout, to_bytes16
from slimnet_ebpf.limits import Limits
from slimnet_ebpf.maps import Map
from slimnet_ebpf.objects import Program
from slimnet_ebpf.pins import INDEX_ENTRY, Pins
from slimnet_ebpf.records import u32
from slimnet_ebpf.sockets import Diagnosis

__all__ = ["Endpoints"]

_LOCAL = Layout(contract.slim_local)
_USAGE = Layout(contract.slim_usage)
_ACCOUNT_KEY = Layout(contract.slim_account_key)
_LISTENER_KEY = Layout(contract.slim_listener_key)
_SOCKET = Layout(contract.slim_socket)
_ENTRY = struct.Struct(INDEX_ENTRY)

_NEVER = bytes(_ENTRY.size)

_MADE = 1  # the cgroup is ours to remove
_READY = 2  # everything is attached and the cgroup knows who it is

# A TIME_WAIT socket of the endpoint before may live this long (ns).
_QUARANTINE = 60 * 10**9


@frozen
class _Entry:
    """Who has an index, in maps/index.

    Attributes:
        endpoint: its id; 0: free.
        flags: _MADE, _READY.
        cgroup: id of its cgroup.
        freed: when the index was last given back, CLOCK_MONOTONIC in ns.
    """

    endpoint: int = 0
    flags: int = 0
    cgroup: int = 0
    freed: int = 0

    def pack(self) -> bytes:
        return _ENTRY.pack(self.endpoint, self.flags, self.cgroup, self.freed)


class Endpoints:
    """The endpoints of one instance. Its caller holds the instance's lock.

    Args:
        pins: of the instance.
        programs: all; those for cgroups are attached to each endpoint.
        maps: the contract's maps by number.
        below: the directory in which endpoints' cgroups are made.
        sockets: to find and destroy what a detached endpoint leaves.
        limits: what each may send.
        on_index: called with (endpoint, index) when one gets or loses its index.
    """

    def __init__(
        self,
        pins: Pins,
        programs: list[Program],
        maps: dict[int, Map],
        below: Path,
        sockets: Diagnosis,
        limits: Limits,
        on_index: Callable[[int, int], None],
    ) -> None:
        self._pins = pins
        self._programs = [program for program in programs if program.type in links.ON_CGROUP]
        self._maps = maps
        self._below = below
        self._sockets = sockets
        self._limits = limits
        self._on_index = on_index
        self._indexes = pins.open_map("index")
        self._mount = cgroups.find_mount()

    def indexes(self) -> dict[int, int]:
        """The inner index of every attached endpoint."""
        return {
            entry.endpoint: index
            for index, entry in self._entries().items()
            if entry.flags & _READY
        }

    def owners(self) -> dict[int, int]:
        """Cgroup id, of those below an endpoint's too, to the endpoint's id."""
        found = {}
        for entry in self._entries().values():
            path = self._path(entry) if entry.endpoint else None
            if path is not None:
                found[entry.cgroup] = entry.endpoint
                found |= dict.fromkeys(
                    map(cgroups.number, cgroups.descendants(path)), entry.endpoint
                )
        return found

    def limit(self, wanted: Mapping[int, LimitRecord]) -> None:
        """Put limits in force, for those that are attached and those to come. The
        calling thread is in the underlay's network namespace.

        Args:
            wanted: endpoint id to its limit.
        """
        before, self._limits.wanted = self._limits.wanted, wanted
        # At first nobody knows what those that were adopted are held to.
        changed = None if before is None else altered(before, wanted)
        for index, entry in self._entries().items() if changed != set() else ():
            path = None
            if entry.endpoint and (changed is None or entry.endpoint in changed):
                path = self._path(entry)
            if path is not None and entry.flags & _READY:
                self._limits.apply(entry.endpoint, index, path, self._links(entry.endpoint))
        if changed != set():
            self._limits.repace()

    def attach(self, endpoint: Endpoint, network: Network) -> Attachment:
        """See :meth:`slimnet.abc.Backend.attach`."""
        if endpoint.id == 0:
            raise InvalidValue("endpoint.id", "an id that the store has given", endpoint.id)
        if endpoint.address.version != 4:
            raise InvalidValue(
                "endpoint.address",
                "an IPv4 address (the ebpf backend carries no IPv6 overlay addresses yet)",
                str(endpoint.address),
            )
        entries = self._entries()
        index = _find(entries, endpoint.id)
        if index is not None:
            path = self._path(entries[index])
            if path is not None:
                self._refuse_another(endpoint, network, path)
                # Whoever began to attach it may have died before the end.
                self._finish(endpoint, network, index, path, entries[index])
                return Attachment(endpoint=endpoint.id, cgroup=path)
            self.detach(endpoint.id)  # somebody removed its cgroup
            entries = self._entries()
        path, made = self._make_cgroup(endpoint)
        try:
            self._refuse_overlap(entries, path)
            index = _free(entries)
            entry = _Entry(endpoint.id, _MADE if made else 0, cgroups.number(path))
            self._write(index, entry)
            try:
                self._finish(endpoint, network, index, path, entry)
            except BaseException:
                self._let_go(index, entry)
                raise
        except BaseException:
            if made:
                cgroups.remove(path)
            raise
        return Attachment(endpoint=endpoint.id, cgroup=path)

    def detach(self, endpoint: int) -> None:
        """See :meth:`slimnet.abc.Backend.detach`."""
        entries = self._entries()
        index = _find(entries, endpoint)
        if index is None:
            return
        entry = entries[index]
        path = self._path(entry)
        cgroup_ids = {entry.cgroup}
        if path is not None:
            if cgroups.populated(path):
                raise InUse(f"endpoint {endpoint}: its cgroup {path} has processes")
            cgroup_ids |= {cgroups.number(below) for below in cgroups.descendants(path)}
            # The kernel's answer leaves no moment in which a process could enter.
            if entry.flags & _MADE and not cgroups.remove(path):
                raise InUse(f"endpoint {endpoint}: its cgroup {path} has processes")
        # The programs of a removed cgroup still see its sockets go.
        self._destroy_sockets(endpoint, cgroup_ids)
        self._let_go(index, entry)

    def every(self) -> list[int]:
        """The endpoints, half attached ones included."""
        return [entry.endpoint for entry in self._entries().values() if entry.endpoint]

    def populated(self) -> list[int]:
        """The endpoints that have processes."""
        found = []
        for entry in self._entries().values():
            path = self._path(entry) if entry.endpoint else None
            if path is not None and cgroups.populated(path):
                found.append(entry.endpoint)
        return found

    def reap(self) -> None:
        """Detach the endpoints whose cgroup somebody has removed."""
        for entry in self._entries().values():
            if entry.endpoint and self._path(entry) is None:
                self.detach(entry.endpoint)

    def _entries(self) -> dict[int, _Entry]:
        """All indexes that are or were in use."""
        return {
            int.from_bytes(key, sys.byteorder): _Entry(*_ENTRY.unpack(value))
            for key, value in self._indexes.items()
            if value != _NEVER
        }

    def _write(self, index: int, entry: _Entry) -> None:
        self._indexes.set(u32(index), entry.pack())

    def _path(self, entry: _Entry) -> Path | None:
        return cgroups.path_of(self._mount, entry.cgroup)

    def _make_cgroup(self, endpoint: Endpoint) -> tuple[Path, bool]:
        """Its cgroup, and whether it is ours to remove."""
        if endpoint.cgroup:
            path = Path(endpoint.cgroup)
            ours = not path.exists()
        else:
            name = f"{endpoint.network}.{endpoint.namespace}.{endpoint.name}"
            path = self._below / name
            ours = True  # also one that was left by somebody who died right here
            self._note_missing()
        try:
            if not cgroups.is_cgroup(path):
                raise BackendError(f"{path} is no directory of cgroup v2")
            path.mkdir(parents=True, exist_ok=True)
            path = path.resolve(strict=True)
        except OSError as error:
            raise BackendError(
                f"endpoint {endpoint.id}: cgroup {path}: {error.strerror or error}"
            ) from error
        return path, ours

    def _note_missing(self) -> None:
        """Write down the directories that we are about to make, for teardown."""
        every = [self._below, *self._below.parents]
        missing = [str(directory) for directory in every if not directory.exists()]
        noted = self._pins.record().get("cgroups", [])
        if set(missing) - set(noted):
            self._pins.write_record(cgroups=missing)

    def _refuse_another(self, endpoint: Endpoint, network: Network, path: Path) -> None:
        """What only has an attached endpoint's id is not that endpoint."""
        name = f"{endpoint.network}.{endpoint.namespace}.{endpoint.name}"
        wanted = Path(endpoint.cgroup) if endpoint.cgroup else self._below / name
        key = cgroups.number(path).to_bytes(8, sys.byteorder)
        found = self._maps[contract.SLIM_MAP_CGROUP].get(key)
        held = _LOCAL.unpack(found) if found else None  # none of a half attached one
        says = network.vni, to_bytes16(endpoint.address)
        if wanted.resolve() != path or (
            held is not None and (held["vni"], held["address"]) != says
        ):
            raise BackendError(f"endpoint {endpoint.id}: that id is another's, with cgroup {path}")

    def _refuse_overlap(self, entries: dict[int, _Entry], path: Path) -> None:
        """Within each other, both endpoints' programs would run."""
        for entry in entries.values():
            other = self._path(entry) if entry.endpoint else None
            if other is not None and (other.is_relative_to(path) or path.is_relative_to(other)):
                raise BackendError(
                    f"cgroup {path} overlaps {other}, which is endpoint {entry.endpoint}'s"
                )

    def _finish(
        self, endpoint: Endpoint, network: Network, index: int, path: Path, entry: _Entry
    ) -> None:
        if entry.flags & _READY:
            return
        self._put_in_force(endpoint, network, index, path)
        self._write(index, evolve(entry, flags=entry.flags | _READY))
        self._on_index(endpoint.id, index)

    def _put_in_force(self, endpoint: Endpoint, network: Network, index: int, path: Path) -> None:
        directory = self._links(endpoint.id)
        directory.mkdir(exist_ok=True)
        self._maps[contract.SLIM_MAP_LOCAL].set(u32(index), _USAGE.pack(waiting=b""))
        with cgroups.opened(path) as fd:
            for program in self._programs:
                pin = directory / program.name
                if not pin.exists():
                    links.attach(program.fd, fd, program.attach_type, pin)
        self._limits.apply(endpoint.id, index, path, directory)
        # Last: until the cgroup knows who it is, everything is refused.
        self._maps[contract.SLIM_MAP_CGROUP].set(
            cgroups.number(path).to_bytes(8, sys.byteorder),
            _LOCAL.pack(
                endpoint=endpoint.id,
                index=index,
                vni=network.vni,
                address=to_bytes16(endpoint.address),
            ),
        )

    def _let_go(self, index: int, entry: _Entry) -> None:
        """Take the programs off and give the index back."""
        directory = self._links(entry.endpoint)
        with contextlib.suppress(FileNotFoundError):
            for pin in directory.iterdir():
                pin.unlink()
            directory.rmdir()
        held = self._maps[contract.SLIM_MAP_HELD]
        held.remove(
            key
            for key, _ in held.items()
            if _LISTENER_KEY.unpack(key)["inner"] >> 16 & 0x7FF == index
        )
        # Records of its connections stay for a while; they are given back when they go.
        local = self._maps[contract.SLIM_MAP_LOCAL]
        usage = _USAGE.unpack(local.get(u32(index)) or b"")
        local.set(u32(index), _USAGE.pack(waiting=b"", flows=usage["flows"], bound=usage["bound"]))
        accounts = self._maps[contract.SLIM_MAP_ACCOUNT]
        accounts.remove(
            key
            for key, _ in accounts.items()
            if _ACCOUNT_KEY.unpack(key)["endpoint"] == entry.endpoint
        )
        self._on_index(entry.endpoint, 0)
        self._write(index, _Entry(freed=time.monotonic_ns()))

    def _links(self, endpoint: int) -> Path:
        return self._pins.links / str(endpoint)

    def _destroy_sockets(self, endpoint: int, cgroup_ids: set[int]) -> None:
        """The endpoint's sockets, wherever their descriptors have gone."""
        every = self._sockets.sockets(socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        self._sockets.destroy(
            one
            for one in every
            if one.cgroup in cgroup_ids
            or (one.storage and _SOCKET.unpack(one.storage)["endpoint"] == endpoint)
        )


def _find(entries: dict[int, _Entry], endpoint: int) -> int | None:
    return next((index for index, entry in entries.items() if entry.endpoint == endpoint), None)


def _free(entries: dict[int, _Entry]) -> int:
    """The index that has been free for the longest time.

    Raises:
        BackendError: none.
    """
    for index in range(1, contract.SLIM_INDEX_MAX + 1):
        if index not in entries:
            return index
    freed, index = min(
        ((entry.freed, index) for index, entry in entries.items() if not entry.endpoint),
        default=(0, 0),
    )
    if not index or time.monotonic_ns() - freed < _QUARANTINE:
        raise BackendError(
            f"all {contract.SLIM_INDEX_MAX} endpoints of a host are taken, or went a moment ago"
        )
    return index
