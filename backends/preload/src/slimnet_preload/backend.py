# SPDX-License-Identifier: Apache-2.0
"""The backend: a router that it supervises, and endpoints that are known by their environment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from slimnet.abc import Backend, Context
from slimnet.answers import FlowQuestion, decision
from slimnet.exceptions import AbiMismatch, BackendError, InUse, InvalidValue
from slimnet.layout import to_bytes16
from slimnet.linux import cgroup
from slimnet.mending import Mending
from slimnet.model import (
    Capabilities,
    Connection,
    Decision,
    Endpoint,
    Event,
    Flow,
    Network,
    Opening,
    Probe,
    Running,
    Status,
    Wire,
)
from slimnet.place import Life, Part, Place
from slimnet.tables import Change, Tables
from slimnet_preload import probe as probing
from slimnet_preload import processes, router, tables
from slimnet_preload.control import Control, RouterGone
from slimnet_preload.events import ToldEvents
from slimnet_preload.options import PreloadOptions
from slimnet_preload.record import ABI, AttachedRecord, InstanceRecord
from slimnet_preload.router import SHIM, RouterProcess

__all__ = ["PreloadBackend"]

_TABLES = "tables-"
#: Seconds between two looks at what the router cannot do.
_LOOK = 1.0


class PreloadBackend(Backend):
    """A library preloaded into processes, and a router: no privilege, no kernel's support.

    Options (``[backend.preload]``):
        port: TCP port at which the host's router hears those of other hosts, 4789 by default.
        ports: ports of the host that endpoints' ports are, ``"20000-31999"`` by default.

    Policy holds for processes that keep the library, and for no other.
    """

    name: ClassVar[str] = "preload"
    #: Above ``noop``, which carries more and slower; below all that enforce.
    preference: ClassVar[int] = -1
    unprivileged: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options = PreloadOptions.parse(context.options)
        self._state = context.state
        self._capabilities = attrs.evolve(
            probing.capabilities(), control=f"{context.host.address}:{self._options.port}"
        )
        there = InstanceRecord.read(self._state)
        if there is not None and there.abi != ABI:
            raise AbiMismatch(
                f"instance {context.instance}: wanted a data path of ABI {ABI}, got {there.abi}"
                ": it cannot be replaced with endpoints running: stop them, then run"
                " slimnet agent --teardown"
            )
        self._lock = threading.RLock()
        self._closed = False
        self._trouble = ""
        self._look = 0.0
        self._state.mkdir(parents=True, exist_ok=True)
        self._router = RouterProcess(self._state, context.host.address, context.keys, self._options)
        try:
            self._bring_up()
            InstanceRecord(ABI, context.cluster).write(self._state)
            self._events = ToldEvents(self._router.control)
        except BaseException:
            self._router.close()
            raise

    # What it is

    @property
    def capabilities(self) -> Capabilities:
        """Of this user on this machine, and where its router is heard."""
        return self._capabilities

    @classmethod
    def probe(cls) -> Probe:
        """The router's program and the library, and nothing else."""
        return probing.probe()

    @classmethod
    def find(cls, instance: str, state: Path) -> Running | None:
        """By the records of the state directory."""
        del instance
        there = InstanceRecord.read(state)
        if there is None:
            return None
        every = list(AttachedRecord.all(state))
        pid = _pid(Control(state / "control"))
        return Running(
            tuple(Path(each.title) for each in every),
            there.cluster,
            tuple(Path(each.title) for each in every if _is_used(each, state, pid)),
        )

    @classmethod
    def purge(cls, instance: str, state: Path) -> None:
        """By the same; the router first."""
        del instance
        router.remove(state)
        for record in AttachedRecord.all(state):
            if record.made and record.directory is not None:
                cgroup.remove(record.directory)
            record.remove(state)
        _remove_files(state)

    def rekey(self, key: bytes, other: bytes | None = None) -> None:
        """The router takes them; links by others are made again."""
        with self._lock:
            self.context = attrs.evolve(self.context, key=key, other_key=other)
            self._router.rekey(self.context.keys)

    @classmethod
    def openings(cls, options: Mapping[str, Any]) -> Mapping[Wire, Sequence[Opening]]:
        """See :meth:`slimnet.abc.Backend.openings`."""
        parsed = PreloadOptions.parse(options)
        routers = Opening("tcp", range(parsed.port, parsed.port + 1))
        return {Wire.ANNOUNCE: [routers, Opening("tcp", parsed.range)]}

    def claims(self, port: int) -> bool:
        """What its router hears others at, and what endpoints' ports are."""
        return port == self._options.port or port in self._options.range

    def holds(self) -> frozenset[int]:
        """All of its router's sockets: it listens on published ports as anybody would."""
        with self._working():
            return processes.sockets(self._router.control.status().pid)

    # Endpoints

    def place(self, name: str, given: Place) -> Place:
        """An environment; of root also a cgroup, which may be the caller's."""
        if given.netns is not None:
            wanted = "none (the preload backend has endpoints' sockets in the host's)"
            raise InvalidValue("endpoint.netns", wanted, str(given.netns))
        grouped = Part.CGROUP in self._capabilities.needs
        if given.cgroup is not None and not grouped:
            wanted = "none (an ordinary user's endpoint is known by its environment)"
            raise InvalidValue("endpoint.cgroup", wanted, str(given.cgroup))
        path = _socket(self._state, name)
        return Place(
            given.cgroup or self.context.cgroup / name if grouped else None,
            environment={"LD_PRELOAD": str(SHIM), processes.SOCKET: str(path)},
            mounts={str(path.parent): path.parent},
        )

    def life(self, name: str, place: Place) -> Life:
        """By the cgroup; without one by the environment and the connections of processes."""
        if Part.CGROUP in self._capabilities.needs:
            path = place.cgroup or self.context.cgroup / name
            if not path.is_dir():
                return Life.GONE
            return Life.BUSY if cgroup.populated(path) else Life.IDLE
        record = next((each for each in AttachedRecord.all(self._state) if each.name == name), None)
        if record is None:
            return Life.GONE
        pid = _pid(self._router.control)
        return Life.BUSY if _is_used(record, self._state, pid) else Life.IDLE

    def kill(self, name: str) -> None:
        """By the environment of processes."""
        processes.kill(_socket(self._state, name))

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """Have the router listen at a socket of the endpoint's own."""
        with self._working():
            place = self.place(endpoint.full_name, endpoint.place)
            every = {each.endpoint: each for each in AttachedRecord.all(self._state)}
            known = every.pop(endpoint.id, None)
            wanted = AttachedRecord(
                endpoint=endpoint.id,
                name=endpoint.full_name,
                vni=network.vni,
                address=str(endpoint.address),
                cgroup=str(place.cgroup or ""),
                made=place.cgroup is not None and not place.cgroup.is_dir(),
                title=str(place.cgroup or self.context.cgroup / endpoint.full_name),
            )
            if known is not None and known.is_there():
                if _identity(known) != _identity(wanted):
                    raise BackendError(
                        f"endpoint {endpoint.id}: that id is another's, with address"
                        f" {known.address} and cgroup {known.cgroup or 'none'}"
                    )
                if known.whole:
                    return place
                wanted = attrs.evolve(wanted, made=known.made)
            for other in every.values():
                if other.name == wanted.name or (wanted.cgroup and other.cgroup == wanted.cgroup):
                    raise BackendError(f"{wanted.title} is endpoint {other.endpoint}'s")
            try:
                self._make(wanted)
            except BaseException as error:
                with contextlib.suppress(BackendError, OSError):
                    self._remove(wanted)
                if isinstance(error, OSError):
                    raise BackendError(f"endpoint {endpoint.full_name}: {error}") from error
                raise
            return place

    def _make(self, record: AttachedRecord) -> None:
        record.write(self._state)
        if record.directory is not None:
            record.directory.mkdir(parents=True, exist_ok=True)
        _socket(self._state, record.name).parent.mkdir(parents=True, exist_ok=True)
        self._announce(record)
        attrs.evolve(record, whole=True).write(self._state)

    def _announce(self, record: AttachedRecord) -> None:
        self._router.control.attach(
            record.endpoint,
            record.vni,
            to_bytes16(record.overlay),
            _socket(self._state, record.name),
            None if os.geteuid() == 0 else os.geteuid(),
        )

    def detach(self, endpoint: int) -> None:
        """The router refuses from now on what its sockets try that live on."""
        with self._working():
            for record in AttachedRecord.all(self._state):
                if record.endpoint == endpoint:
                    self._refuse_if_used(record)
                    self._remove(record)

    def _refuse_if_used(self, record: AttachedRecord) -> None:
        if _is_used(record, self._state, _pid(self._router.control)):
            raise InUse(f"endpoint {record.endpoint}: processes in {record.title}")

    def _remove(self, record: AttachedRecord) -> None:
        # The kernel's answer leaves no moment in which a process could enter.
        if record.made and record.directory is not None and not cgroup.remove(record.directory):
            raise InUse(f"endpoint {record.endpoint}: processes in {record.title}")
        self._router.control.detach(record.endpoint)
        shutil.rmtree(_socket(self._state, record.name).parent, ignore_errors=True)
        record.remove(self._state)

    # Tables

    def install(self, tables_: Tables, change: Change | None = None) -> None:
        """Everything, whatever ``change`` says."""
        del change
        with self._working():
            if self._router.control.status().generation == tables_.generation:
                return
            file = self._state / f"{_TABLES}{tables_.generation}"
            try:
                tables.write(tables_, file)
                self._router.control.install(file)
            except OSError as error:
                raise BackendError(f"{file}: {error.strerror or error}") from error
            for other in self._state.glob(f"{_TABLES}*"):
                if other != file:
                    other.unlink(missing_ok=True)

    def status(self) -> Status:
        """As the router says."""
        with self._working():
            found = self._router.control.status()
            return Status(
                generation=found.generation,
                endpoints=found.endpoints,
                counters=found.counters,
                abi=ABI,
                detail={
                    "router": found.pid,
                    "links": found.links,
                    "connections": found.connections,
                    "control": self._capabilities.control,
                },
            )

    def ask(self, flow: Flow, network: Network) -> Decision | None:
        """See :meth:`slimnet.abc.Backend.ask`."""
        with self._working():
            if not self._router.control.status().generation:
                return None
            return decision(self._router.control.ask(FlowQuestion.of(flow, network)))

    def connections(self) -> Iterable[Connection]:
        """As the router knows them."""
        with self._working():
            return list(self._router.control.connections())

    def events(self, timeout: float) -> list[Event]:
        """What the router told since the last call."""
        if self._closed:
            raise BackendError(f"instance {self.context.instance}: this backend is closed")
        return self._events.read(timeout)

    def observe(self, *, enabled: bool) -> None:
        """See :meth:`slimnet.abc.Backend.observe`."""
        with self._working():
            self._router.control.observe(enabled=enabled)

    # Life of the router

    def tend(self) -> None:
        """Start a router where the last one has ended; say whether the interface is there."""
        with self._working(start=False):
            self._bring_up()
            mending = Mending()
            mending.attempt(self._look_at_router)
            try:
                socket.if_nametoindex(self.context.interface)
            except OSError:
                mending.lacks_interface(self.context.interface)
            if lacking := mending.end():
                raise BackendError(lacking)

    def _look_at_router(self) -> None:
        """A published port that somebody else has, connections that it cannot close: it tries
        again by itself."""
        if time.monotonic() >= self._look:
            self._trouble = self._router.control.status().trouble
            self._look = time.monotonic() + _LOOK
        if self._trouble:
            raise BackendError(self._trouble)

    def _bring_up(self) -> None:
        """A router runs, and knows what this instance has."""
        if not self._router.start():
            return
        found = self._router.control.status()
        for record in AttachedRecord.all(self._state):
            if record.whole and record.endpoint not in found.endpoints:
                self._announce(record)
        if not found.generation:
            for file in self._state.glob(f"{_TABLES}*[0-9]"):
                self._router.control.install(file)

    @contextlib.contextmanager
    def _working(self, *, start: bool = True) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise BackendError(f"instance {self.context.instance}: this backend is closed")
            if start and not self._router.runs():
                self._bring_up()
            yield

    # The end

    def close(self) -> None:
        """The router goes on."""
        if not self._closed:
            self._events.close()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._router.close()

    def teardown(self) -> None:
        """Endpoints, then the router, then its files."""
        with self._working():
            every = list(AttachedRecord.all(self._state))
            for record in every:
                self._refuse_if_used(record)
            for record in every:
                self._remove(record)
            self._events.close()
            self._closed = True
            self._router.stop()
            _remove_files(self._state)
            with contextlib.suppress(OSError):  # the caller's, or it has others
                self.context.cgroup.rmdir()


def _identity(record: AttachedRecord) -> tuple[int, str, str, str]:
    return record.vni, record.address, record.cgroup, record.name


def _socket(state: Path, name: str) -> Path:
    """Of the endpoint of a full name: short, as unix(7) wants it, in a directory of its own,
    which a sandbox can show."""
    short = hashlib.blake2s(name.encode(), digest_size=5).hexdigest()
    return state / "sockets" / short / "s"


def _pid(control: Control) -> int:
    """The router's process; 0 where none answers."""
    try:
        return control.status().pid
    except RouterGone:
        return 0


def _is_used(record: AttachedRecord, state: Path, pid: int) -> bool:
    if record.directory is not None:
        return cgroup.populated(record.directory)
    return processes.populated(_socket(state, record.name), pid)


def _remove_files(state: Path) -> None:
    for file in state.glob(f"{_TABLES}*"):
        file.unlink(missing_ok=True)
    (state / "preload.json").unlink(missing_ok=True)
    shutil.rmtree(state / "sockets", ignore_errors=True)
