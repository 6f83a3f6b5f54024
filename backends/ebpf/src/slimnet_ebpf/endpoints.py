# SPDX-License-Identifier: Apache-2.0
"""Endpoints: a cgroup, an inner index, and the programs that are attached there.

The life of an index, by the flags of its entry in maps/index:

==============  ======================================================================
none            an attach that is under way, or whose process died: it is taken back
READY           an attached endpoint
DEAD            a detach that is under way, or whose process died: it is done again
DEAD, BURIED    a detached endpoint: everything is refused to its sockets, which may
                live on in other processes
(no endpoint)   free again: the kernel has dropped the cgroup, with its last socket
==============  ======================================================================

A descriptor that went to another process by SCM_RIGHTS outlives its endpoint, and a
socket that was never bound is in none of the kernel's tables, so that nobody can find
it. What holds it is that its cgroup keeps its programs (links.py), and that these refuse
everything to endpoint 0.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from slimnet import contract
from slimnet.encoding import u32
from slimnet.exceptions import BackendError, InUse, InvalidValue
from slimnet.layout import Layout, to_bytes16
from slimnet.linux import cgroup as cgroups
from slimnet.model import Endpoint, Network
from slimnet.place import Place
from slimnet.policy.compile.difference import altered
from slimnet.tables import LimitRecord
from slimnet_ebpf import closing, links
from slimnet_ebpf import contract as private
from slimnet_ebpf.closing import Closing
from slimnet_ebpf.libbpf import BpfError
from slimnet_ebpf.limits import Limits
from slimnet_ebpf.maps import Map
from slimnet_ebpf.objects import Program
from slimnet_ebpf.pins import INDEX_DEAD, INDEX_ENTRY, Pins
from slimnet_ebpf.sockets import SocketDiagnosis

__all__ = ["EndpointAttachments", "cgroups_of"]

_LOCAL = Layout(private.slim_local)
_USAGE = Layout(private.slim_usage)
_ACCOUNT_KEY = Layout(contract.slim_account_key)
_LISTENER_KEY = Layout(private.slim_listener_key)
_SOCKET = Layout(private.slim_socket)
_ENTRY = struct.Struct(INDEX_ENTRY)
_INDEX_MASK = (1 << contract.SLIM_INNER_INDEX_BITS) - 1

_NEVER = bytes(_ENTRY.size)

_MADE = 1  # the cgroup is ours to remove
_READY = 2  # everything is attached and the cgroup knows who it is
_DEAD = INDEX_DEAD
_BURIED = 8  # dead, and all of detach is done: sockets destroyed, accounts dropped
_SILENT = 16  # no packet of its sockets passes
_CLOSED = 32  # its processes are kept from what closing.py says

_GUARD, _SILENCE = "slim_guard", "slim_silence"
# How many cgroups of endpoints one look is at.
_AT_ONCE = 32
_BOTH_WAYS = (links.ATTACH_CGROUP_INGRESS, links.ATTACH_CGROUP_EGRESS)

# An inner index is given to no other endpoint for this long (ns) after its last one: flow
# records of handshakes with that one may live as long, and TIME_WAIT sockets less.
_QUARANTINE = private.SLIM_HANDSHAKE_SECONDS * 10**9


@frozen
class _Entry:
    """Who has an index, in maps/index.

    Attributes:
        endpoint: its id; 0: free.
        flags: _MADE, _READY, _DEAD, _BURIED, _SILENT, _CLOSED.
        cgroup: id of its cgroup.
        freed: when the index was last given back, CLOCK_MONOTONIC in ns.
    """

    endpoint: int = 0
    flags: int = 0
    cgroup: int = 0
    freed: int = 0

    def pack(self) -> bytes:
        return _ENTRY.pack(self.endpoint, self.flags, self.cgroup, self.freed)


class EndpointAttachments:
    """The endpoints of one instance. Its caller holds the instance's lock.

    Args:
        pins: of the instance.
        programs: all; those for cgroups are attached to each endpoint.
        maps: the contract's maps by number.
        below: the directory in which endpoints' cgroups are made.
        sockets: to find and destroy what a detached endpoint leaves.
        limits: what each may send.
        on_index: called with (endpoint, index) when one gets or loses its index.
        closing: what closes those that are to be closed.
    """

    def __init__(
        self,
        pins: Pins,
        programs: list[Program],
        maps: dict[int, Map],
        below: Path,
        sockets: SocketDiagnosis,
        limits: Limits,
        on_index: Callable[[int, int], None],
        closing: Closing,
    ) -> None:
        self._pins = pins
        self._programs = [
            program
            for program in programs
            if program.type in links.ON_CGROUP or program.name == _GUARD
        ]
        (self._silence,) = (program for program in programs if program.name == _SILENCE)
        self._every = programs
        self._maps = maps
        self._below = below
        self._sockets = sockets
        self._limits = limits
        self._on_index = on_index
        self._closing = closing
        self._indexes = pins.open_map("index")
        self._mount = cgroups.mount()
        self._sheltered = 0  # id of the cgroup that shelter() has seen
        self._numbers = {program.fd: links.program_id(program.fd) for program in self._programs}
        self._round: list[tuple[int, _Entry]] = []  # those that mend() has still to look at

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
        for entry in self._living():
            path = self._path(entry)
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
        # The first call after a start applies every limit: which ones the adopted endpoints
        # have is not known.
        changed = None if before is None else altered(before, wanted)
        for index, entry in self._entries().items() if changed != set() else ():
            path = None
            if entry.flags & _READY and (changed is None or entry.endpoint in changed):
                path = self._path(entry)
            if path is not None:
                self._limits.apply(entry.endpoint, index, path)
        if changed != set():
            self._limits.repace()

    def shelter(self) -> None:
        """Refuse everything to every cgroup below the directory that has not all of
        an endpoint's programs: one that is half attached or nobody's.

        They are the same programs, with a cgroup of no endpoint, and give way to
        those of a descendant one by one (BPF_F_ALLOW_OVERRIDE).
        """
        self._note_missing()
        self._below.mkdir(parents=True, exist_ok=True)
        with cgroups.opened(self._below) as fd:
            for program in self._programs:
                links.keep(program.fd, fd, program.attach_type, links.OVERRIDE)
        self._sheltered = cgroups.number(self._below)

    def renew(self) -> None:
        """Put our programs where those of another load are: on the directory's cgroup and on
        endpoints', the detached ones' too."""
        with contextlib.suppress(FileNotFoundError):
            self._renew(self._below, links.OVERRIDE)
        for entry in self._entries().values():
            path = self._path(entry) if entry.endpoint else None
            if path is not None:
                self._renew(path, links.MULTI)
                if entry.flags & _READY:
                    with cgroups.opened(path) as fd:
                        for program in self._programs:
                            links.keep(program.fd, fd, program.attach_type)

    def _renew(self, path: Path, flags: int) -> None:
        with cgroups.opened(path) as fd:
            for point in links.CGROUP_POINTS:
                links.replace(
                    fd,
                    point,
                    {
                        links.program_name(links.program_id(program.fd)): program.fd
                        for program in self._every
                        if program.attach_type == point or program is self._silence
                    },
                    flags,
                )

    def mend(self) -> list[str]:
        """Put back the programs that somebody has taken off the directory's cgroup, or off
        those of endpoints, and detach endpoints whose cgroup somebody has removed (systemd
        does, and makes another of that name, when a service starts again): of some at a
        time, for each takes some 50 us.

        Returns:
            Whose they are.
        """
        found = []
        if not self._below.exists() or self._lacks(self._below):
            self.shelter()
            found.append(f"programs of {self._below}")
        if not self._round:
            self._round = [each for each in self._entries().items() if each[1].flags & _READY]
        looked, self._round = self._round[:_AT_ONCE], self._round[_AT_ONCE:]
        for index, entry in looked:
            path = self._path(entry)
            if path is None:
                if self._entries().get(index) == entry:  # and not detached meanwhile
                    self._leave(index, entry)
            # Of one that was detached meanwhile they may be missing.
            elif self._local(entry)["endpoint"] == entry.endpoint and (
                self._lacks(path) or (entry.flags & _CLOSED and self._closing.lacks(path))
            ):
                self._keep(path, entry)
                found.append(f"programs of {path}")
        return found

    def _lacks(self, path: Path) -> bool:
        """Whether one of the programs is not on a cgroup."""
        with cgroups.opened(path) as fd:
            return any(
                self._numbers[program.fd] not in links.attached(fd, program.attach_type)
                for program in self._programs
            )

    def unshelter(self) -> None:
        """Take that back."""
        with contextlib.suppress(FileNotFoundError), cgroups.opened(self._below) as fd:
            for program in self._programs:
                links.take_off(program.fd, fd, program.attach_type)

    def place(self, name: str, given: Place) -> Place:
        """See :meth:`slimnet.abc.Backend.place`."""
        if given.netns is not None:
            raise InvalidValue(
                "endpoint.netns",
                "none (the ebpf backend knows an endpoint by its cgroup, and its processes"
                " are in the host's network namespace)",
                str(given.netns),
            )
        if given.closed:
            closing.check()
        return Place(given.cgroup or self._below / name, closed=given.closed)

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """See :meth:`slimnet.abc.Backend.attach`."""
        if endpoint.id == 0:
            raise InvalidValue("endpoint.id", "an id that the store has given", endpoint.id)
        if endpoint.address.version != 4:
            raise InvalidValue(
                "endpoint.address",
                "an IPv4 address (the ebpf backend carries no IPv6 overlay addresses yet)",
                str(endpoint.address),
            )
        wanted = self.place(endpoint.full_name, endpoint.place).cgroup
        assert wanted is not None  # noqa: S101  # for the type checker
        entries = self._bury_the_dying()
        index = _find(entries, endpoint.id)
        if index is not None:
            path = self._path(entries[index])
            if path is not None:
                self._refuse_another(endpoint, network, wanted, path, entries[index])
                # Again, for the process that began to attach it may have been killed half-way.
                self._finish(endpoint, network, index, path, entries[index])
                return Place(path, closed=endpoint.closed)
            self.detach(endpoint.id)  # somebody removed its cgroup
            entries = self._entries()
        path, made = self._make_cgroup(endpoint.id, wanted)
        try:
            self._refuse_overlap(entries, path)
            flags = (_MADE if made else 0) | (_CLOSED if endpoint.closed else 0)
            fresh = _Entry(endpoint.id, flags, cgroups.number(path))
            index, entry = self._take_index(entries, fresh, path, endpoint, network)
            try:
                self._finish(endpoint, network, index, path, entry)
            except BaseException:
                if entry.flags & _DEAD:
                    self._tell(entry, self._local(entry) | {"endpoint": 0})
                else:
                    self._take_back(index, entry, path)
                raise
        except BaseException:
            if made:
                cgroups.remove(path)
            raise
        return Place(path, closed=endpoint.closed)

    def detach(self, endpoint: int) -> None:
        """See :meth:`slimnet.abc.Backend.detach`."""
        entries = self._entries()
        index = _find(entries, endpoint)
        if index is not None:
            self._leave(index, entries[index])

    def every(self) -> list[int]:
        """The endpoints, half attached and half detached ones included."""
        return [entry.endpoint for entry in self._living()]

    def populated(self) -> list[int]:
        """The endpoints that have processes."""
        found = []
        for entry in self._living():
            path = self._path(entry)
            if path is not None and cgroups.populated(path):
                found.append(entry.endpoint)
        return found

    def kept(self) -> list[Path]:
        """The cgroups of detached endpoints that their makers have not removed."""
        dead = [entry for entry in self._entries().values() if entry.flags & _DEAD]
        return [path for entry in dead if (path := self._path(entry)) is not None]

    def reap(self) -> None:
        """Detach the endpoints whose cgroup somebody has removed, and give the indexes
        back of those that the kernel has nothing of any more."""
        heard = set()
        for index, entry in self._bury_the_dying().items():
            if entry.flags & _BURIED:
                if not self._free_if_gone(index, entry) and not entry.flags & _SILENT:
                    heard.add(entry.cgroup)
            elif entry.endpoint and self._path(entry) is None:
                self._leave(index, entry)
        if heard:
            self._destroy_sockets(0, heard)

    def _entries(self) -> dict[int, _Entry]:
        """All indexes that are or were in use."""
        return _read(self._indexes)

    def _living(self) -> list[_Entry]:
        """The entries of endpoints, half attached and half detached ones included."""
        return [
            entry
            for entry in self._entries().values()
            if entry.endpoint and not entry.flags & _BURIED
        ]

    def _write(self, index: int, entry: _Entry) -> None:
        self._indexes.set(u32(index), entry.pack())

    def _path(self, entry: _Entry) -> Path | None:
        return cgroups.path_of(self._mount, entry.cgroup)

    def _make_cgroup(self, endpoint: int, path: Path) -> tuple[Path, bool]:
        """Its cgroup, and whether it is ours to remove."""
        # Ours also where it exists already in our own directory: a process that was killed
        # between this mkdir and the entry in the table left it.
        ours = path.parent == self._below or not path.exists()
        try:
            if not cgroups.is_cgroup(path):
                raise BackendError(f"{path} is no directory of cgroup v2")
            if not self._below.exists() or cgroups.number(self._below) != self._sheltered:
                self.shelter()
            if ours and path.exists() and self._is_foreign(path):
                # Programs of a data path that was torn down or replaced are still on it, and
                # would decide beside ours: the cgroup is removed and made anew.
                if cgroups.populated(path):
                    raise _used(path)
                self._silence_cgroup(path)
                cgroups.remove(path)
            path.mkdir(parents=True, exist_ok=True)
            path = path.resolve(strict=True)
        except OSError as error:
            raise BackendError(
                f"endpoint {endpoint}: cgroup {path}: {error.strerror or error}"
            ) from error
        return path, ours

    def _note_missing(self) -> None:
        """Write down the directories that we are about to make, for teardown."""
        every = [self._below, *self._below.parents]
        missing = [str(directory) for directory in every if not directory.exists()]
        noted = self._pins.record().get("cgroups", [])
        if set(missing) - set(noted):
            self._pins.write_record(cgroups=missing)

    def _refuse_another(
        self, endpoint: Endpoint, network: Network, wanted: Path, path: Path, entry: _Entry
    ) -> None:
        """What only has an attached endpoint's id is not that endpoint."""
        half = not entry.flags & (_READY | _DEAD) or self._is_unknown(entry)
        if wanted.resolve() != path or not (half or self._is_same(endpoint, network, entry)):
            raise BackendError(f"endpoint {endpoint.id}: that id is another's, with cgroup {path}")

    def _is_unknown(self, entry: _Entry) -> bool:
        """Whether an attached endpoint's cgroup does not know whose it is: the data path was
        replaced, and could not go on with what the one before had written there."""
        return bool(entry.flags & _READY) and not self._local(entry)["endpoint"]

    def _is_same(self, endpoint: Endpoint, network: Network, entry: _Entry) -> bool:
        """Whether a cgroup is, or was, this endpoint's."""
        held = self._local(entry)
        was = held["vni"], held["address"], bool(entry.flags & _CLOSED)
        says = network.vni, to_bytes16(endpoint.address), endpoint.closed
        return entry.endpoint == endpoint.id and was == says

    def _refuse_overlap(self, entries: dict[int, _Entry], path: Path) -> None:
        """Within each other, both endpoints' programs would run."""
        if self._below.resolve().is_relative_to(path):
            raise BackendError(f"cgroup {path} holds the cgroups of endpoints")
        for entry in entries.values():
            other = self._path(entry) if entry.endpoint else None
            if other is None or (other == path and entry.flags & _DEAD):
                continue
            if other.is_relative_to(path) or path.is_relative_to(other):
                verb = "was" if entry.flags & _DEAD else "is"
                raise BackendError(
                    f"cgroup {path} overlaps {other}, which {verb} endpoint {entry.endpoint}'s"
                )

    def _take_index(
        self,
        entries: dict[int, _Entry],
        fresh: _Entry,
        path: Path,
        endpoint: Endpoint,
        network: Network,
    ) -> tuple[int, _Entry]:
        """An index of its own, or the one that the endpoint had in this cgroup.

        Raises:
            BackendError: there is none, or the cgroup was another endpoint's.
        """
        for index, old in entries.items():
            if old.endpoint and old.cgroup == fresh.cgroup:
                # Other processes may have sockets of the endpoint that this cgroup was; for
                # another endpoint they would count as the new one's.
                if not self._is_same(endpoint, network, old):
                    raise _used(path)
                # Still dead, and no longer buried: if this attach fails, detach has its work
                # to do again.
                dying = evolve(old, flags=old.flags & ~(_BURIED | _SILENT))
                self._write(index, dying)
                return index, dying
        if self._is_foreign(path):
            raise _used(path)
        try:
            index = _free(entries)
        except BackendError:
            self.reap()
            index = _free(self._entries())
        self._write(index, fresh)
        return index, fresh

    def _finish(
        self, endpoint: Endpoint, network: Network, index: int, path: Path, entry: _Entry
    ) -> None:
        if entry.flags & _READY and not self._is_unknown(entry):
            return
        if entry.flags & _DEAD:
            self._unsilence_cgroup(path)
        self._put_in_force(endpoint, network, index, path, entry)
        self._write(index, evolve(entry, flags=entry.flags & ~_DEAD | _READY))
        self._on_index(endpoint.id, index)

    def _keep(self, path: Path, entry: _Entry) -> None:
        """Put all of its programs on a cgroup."""
        with cgroups.opened(path) as fd:
            for program in self._programs:
                links.keep(program.fd, fd, program.attach_type)
        if entry.flags & _CLOSED:
            self._closing.put(path)

    def _put_in_force(
        self, endpoint: Endpoint, network: Network, index: int, path: Path, entry: _Entry
    ) -> None:
        self._keep(path, entry)
        self._limits.apply(endpoint.id, index, path)
        # Last: the attached programs refuse everything until the cgroup's storage names an
        # endpoint.
        self._maps[private.SLIM_MAP_CGROUP].set(
            _key(cgroups.number(path)),
            _LOCAL.pack(
                endpoint=endpoint.id,
                index=index,
                vni=network.vni,
                address=to_bytes16(endpoint.address),
            ),
        )

    def _is_foreign(self, path: Path) -> bool:
        """Whether it has programs of a data path whose pins are gone, or of another
        instance."""
        first, *_ = self._programs
        ours = links.program_id(first.fd)
        with cgroups.opened(path) as fd:
            return any(
                number != ours and links.program_name(number) == first.name[:15]
                for number in links.attached(fd, first.attach_type)
            )

    def _local(self, entry: _Entry) -> dict[str, Any]:
        """What a cgroup knows of itself."""
        found = self._maps[private.SLIM_MAP_CGROUP].get(_key(entry.cgroup))
        return _LOCAL.unpack(found or bytes(_LOCAL.size))

    def _leave(self, index: int, entry: _Entry) -> None:
        """Detach, whoever has done whatever part of that before."""
        path = self._path(entry)
        if path is not None and cgroups.populated(path):
            raise InUse(f"endpoint {entry.endpoint}: its cgroup {path} has processes")
        if entry.flags & (_READY | _DEAD) or self._local(entry)["endpoint"]:
            self._bury(index, entry, path)
        else:
            # The attach failed before the cgroup's storage named the endpoint, so there are no
            # sockets of it to destroy.
            self._take_back(index, entry, path)

    def _take_back(self, index: int, entry: _Entry, path: Path | None) -> None:
        if path is not None:
            with cgroups.opened(path) as fd:
                for program in self._programs:
                    links.take_off(program.fd, fd, program.attach_type)
            if entry.flags & _CLOSED:
                self._closing.take_off(path)
            if entry.flags & _MADE:
                cgroups.remove(path)
        self._write(index, _Entry(freed=time.monotonic_ns()))

    def _bury(self, index: int, entry: _Entry, path: Path | None) -> None:
        """Refuse everything to what is left of an endpoint, for ever."""
        dead = evolve(entry, flags=entry.flags & ~(_READY | _SILENT) | _DEAD)
        self._write(index, dead)
        local = self._local(entry)
        self._tell(entry, local | {"endpoint": 0})
        cgroup_ids = {entry.cgroup}
        if path is not None:
            cgroup_ids |= {cgroups.number(below) for below in cgroups.descendants(path)}
        # Before slim_silence, which drops every packet: the peers are to get a RST.
        self._destroy_sockets(entry.endpoint, cgroup_ids)
        if path is not None:
            silent = self._silence_cgroup(path)
            dead = evolve(dead, flags=dead.flags | (_SILENT if silent else 0))
            # rmdir(2) fails with EBUSY while there are processes. To look first and remove then
            # would leave a moment in which one could enter.
            if entry.flags & _MADE and not cgroups.remove(path):
                self._unsilence_cgroup(path)
                self._tell(entry, local | {"endpoint": entry.endpoint})
                self._write(index, evolve(entry, flags=entry.flags & ~_DEAD | _READY))
                raise InUse(f"endpoint {entry.endpoint}: its cgroup {path} has processes")
        self._drop_accounts(entry.endpoint)
        self._on_index(entry.endpoint, 0)
        dead = evolve(dead, flags=dead.flags | _BURIED)
        self._write(index, dead)
        self._free_if_gone(index, dead)

    def _bury_the_dying(self) -> dict[int, _Entry]:
        """Go on where somebody died who was detaching; all entries, after that."""
        entries = self._entries()
        dying = [
            (index, entry)
            for index, entry in entries.items()
            if entry.flags & (_DEAD | _BURIED) == _DEAD
        ]
        for index, entry in dying:
            with contextlib.suppress(InUse):
                self._leave(index, entry)
        return self._entries() if dying else entries

    def _tell(self, entry: _Entry, local: dict[str, Any]) -> None:
        try:
            self._maps[private.SLIM_MAP_CGROUP].set(_key(entry.cgroup), _LOCAL.pack(**local))
        except BpfError as error:
            if error.errno != errno.ENOENT:  # the kernel has dropped the cgroup
                raise

    def _silence_cgroup(self, path: Path) -> bool:
        """Drop every packet of its sockets, for what passes no hook; whether it could be."""
        with cgroups.opened(path) as fd:
            try:
                for way in _BOTH_WAYS:
                    links.keep(self._silence.fd, fd, way)
            except BpfError as error:
                if error.errno != errno.EPERM:
                    raise
                return False  # a program of somebody else is there, without BPF_F_ALLOW_MULTI
        return True

    def _unsilence_cgroup(self, path: Path) -> None:
        with cgroups.opened(path) as fd:
            for way in _BOTH_WAYS:
                links.take_off(self._silence.fd, fd, way)

    def _free_if_gone(self, index: int, entry: _Entry) -> bool:
        """Give an index back once the kernel has dropped the cgroup (cgroup_bpf_release()),
        which its last socket keeps; its storage goes with it. Whether it has."""
        if self._maps[private.SLIM_MAP_CGROUP].get(_key(entry.cgroup)) is not None:
            return False
        held = self._maps[private.SLIM_MAP_HELD]
        held.remove(
            key
            for key, _ in held.items()
            if _LISTENER_KEY.unpack(key)["inner"] >> contract.SLIM_INNER_PORT_BITS & _INDEX_MASK
            == index
        )
        # Flow and source-bound records outlive the endpoint (TIME_WAIT). Their counts stay with
        # the index, and the sweep that removes the records takes them off.
        local = self._maps[private.SLIM_MAP_LOCAL]
        usage = _USAGE.unpack(local.get(u32(index)) or b"")
        local.set(u32(index), _USAGE.pack(waiting=b"", flows=usage["flows"], bound=usage["bound"]))
        if entry.endpoint not in self.indexes():
            self._drop_accounts(entry.endpoint)
        self._write(index, _Entry(freed=time.monotonic_ns()))
        return True

    def _drop_accounts(self, endpoint: int) -> None:
        accounts = self._maps[private.SLIM_MAP_ACCOUNT]
        accounts.remove(
            key for key, _ in accounts.items() if _ACCOUNT_KEY.unpack(key)["endpoint"] == endpoint
        )

    def _destroy_sockets(self, endpoint: int, cgroup_ids: set[int]) -> None:
        """The endpoint's sockets, wherever their descriptors have gone."""
        every = self._sockets.sockets(socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        self._sockets.destroy(
            one
            for one in every
            if one.cgroup in cgroup_ids
            or (endpoint and one.storage and _SOCKET.unpack(one.storage)["endpoint"] == endpoint)
        )


def cgroups_of(pins: Pins) -> set[int]:
    """Ids of the cgroups of an instance's endpoints, detached ones too, and of those below."""
    with contextlib.closing(pins.open_map("index")) as indexes:
        found = {entry.cgroup for entry in _read(indexes).values() if entry.endpoint}
    mount = cgroups.mount()
    paths = [path for each in found if (path := cgroups.path_of(mount, each)) is not None]
    return found | {cgroups.number(below) for path in paths for below in cgroups.descendants(path)}


def _read(indexes: Map) -> dict[int, _Entry]:
    return {
        int.from_bytes(key, sys.byteorder): _Entry(*_ENTRY.unpack(value))
        for key, value in indexes.items(without=_NEVER)
    }


def _find(entries: dict[int, _Entry], endpoint: int) -> int | None:
    """The index of an endpoint, which is not its last one's, if it was detached."""
    found = (
        index
        for index, entry in entries.items()
        if entry.endpoint == endpoint and not entry.flags & _BURIED
    )
    return next(found, None)


def _used(path: Path) -> BackendError:
    return BackendError(
        f"cgroup {path} was another endpoint's: remove the directory and make it anew"
    )


def _key(cgroup: int) -> bytes:
    return cgroup.to_bytes(8, sys.byteorder)


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
            f"all {contract.SLIM_INDEX_MAX} endpoints of a host are taken, went a moment ago,"
            " or have sockets in other processes"
        )
    return index
