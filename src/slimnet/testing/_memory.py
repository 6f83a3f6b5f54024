# SPDX-License-Identifier: Apache-2.0
"""A backend that enforces nothing and decides everything, for unit tests."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from attrs import define, field
from netaddr import IPAddress

from slimnet import contract
from slimnet.abc import Backend, Context
from slimnet.exceptions import AbiMismatch, BackendError, ConfigError, InUse, InvalidValue
from slimnet.model import (
    Answer,
    Capabilities,
    Connection,
    Decision,
    Direction,
    Endpoint,
    Event,
    EventKind,
    Feature,
    Flow,
    Network,
    Probe,
    Protocol,
    Reason,
    Running,
    Status,
    Verdict,
    Wire,
    WireFormat,
)
from slimnet.place import Life, Part, Place
from slimnet.policy.explain.decision import Affinity, Answerer, pick
from slimnet.tables import Change, ServiceRecord, Tables

__all__ = ["MemoryBackend"]

_REFUSED_MOST = 4096
_CAPABILITIES = Capabilities(
    wires=frozenset({WireFormat(Wire.VXLAN)}),
    features=frozenset({Feature.SERVICES}),
    needs=frozenset({Part.CGROUP}),
)


@define
class _Attached:
    endpoint: Endpoint
    network: Network
    cgroup: Path
    made: bool


@define
class _DataPath:
    """What goes on when a backend is closed: here it lives in this process."""

    backend: str
    cluster: str = ""
    abi: int = contract.SLIM_ABI_VERSION
    tables: Tables | None = None
    attached: dict[int, _Attached] = field(factory=dict)
    affinity: Affinity = field(factory=dict)
    counters: dict[Reason, int] = field(factory=dict)
    refused: list[Event] = field(factory=list)
    news: threading.Condition = field(factory=threading.Condition)


class MemoryBackend(Backend):
    """Keeps the whole contract of :class:`slimnet.abc.Backend` without a kernel.

    Needs no privilege. ``context.cgroup`` may be any directory: an endpoint
    has processes when the file ``cgroup.procs`` in its own is not empty. Its
    data paths outlive :meth:`close` by instance, as a kernel's would, until
    :meth:`teardown`. :meth:`decide` puts a flow to the tables in force.
    """

    name: ClassVar[str] = "memory"
    preference: ClassVar[int] = -1
    unprivileged: ClassVar[bool] = True

    #: The data paths that run, by instance.
    running: ClassVar[dict[str, _DataPath]] = {}

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        for option in context.options:
            raise ConfigError(f"backend.memory.{option}", "no options", option)
        path = self.running.get(context.instance)
        if path is not None and path.abi != contract.SLIM_ABI_VERSION:
            raise AbiMismatch(
                f"instance {context.instance}: wanted a data path of ABI "
                f"{contract.SLIM_ABI_VERSION}, got {path.abi}"
            )
        self._path = self.running.setdefault(context.instance, _DataPath(self.name))
        self._path.cluster = context.cluster
        self._closed = False

    @classmethod
    def probe(cls) -> Probe:
        """Always yes."""
        return Probe(Answer.YES, "needs nothing, enforces nothing", capabilities=_CAPABILITIES)

    @property
    def capabilities(self) -> Capabilities:
        """Services and nothing else."""
        return _CAPABILITIES

    @classmethod
    def find(cls, instance: str, state: Path) -> Running | None:
        """Out of :attr:`running`."""
        del state
        path = cls.running.get(instance)
        if path is None or path.backend != cls.name:
            return None
        cgroups = tuple(each.cgroup for each in path.attached.values())
        return Running(cgroups, path.cluster, tuple(filter(_has_processes, cgroups)))

    @classmethod
    def purge(cls, instance: str, state: Path) -> None:
        """Out of :attr:`running`."""
        del state
        if cls.find(instance, Path()) is not None:
            del cls.running[instance]

    def place(self, name: str, given: Place) -> Place:
        """A directory."""
        if given.netns is not None:
            wanted = "none (the memory backend has no packets for it)"
            raise InvalidValue("endpoint.netns", wanted, str(given.netns))
        return Place(given.cgroup or self.context.cgroup / name)

    def life(self, name: str, place: Place) -> Life:
        """By its directory and the file ``cgroup.procs``."""
        cgroup = place.cgroup or self.context.cgroup / name
        if not cgroup.is_dir():
            return Life.GONE
        return Life.BUSY if _has_processes(cgroup) else Life.IDLE

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """Make a directory."""
        self._work()
        cgroup = self.place(endpoint.full_name, endpoint.place).cgroup
        assert cgroup is not None  # noqa: S101  # for the type checker
        known = self._path.attached.get(endpoint.id)
        if known is not None:
            held = known.network.vni, known.endpoint.address, known.cgroup
            if held != (network.vni, endpoint.address, cgroup):
                raise BackendError(
                    f"endpoint {endpoint.id}: that id is another's, with address {held[1]}"
                    f" and cgroup {held[2]}"
                )
            return Place(known.cgroup)
        made = not cgroup.is_dir()
        try:
            cgroup.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(f"endpoint {endpoint.full_name}: {error}") from error
        self._path.attached[endpoint.id] = _Attached(endpoint, network, cgroup, made)
        return Place(cgroup)

    def detach(self, endpoint: int) -> None:
        """Remove the directory, if :meth:`attach` made it."""
        self._work()
        known = self._path.attached.get(endpoint)
        if known is not None:
            _refuse_if_used(known)
            if known.made:
                with contextlib.suppress(FileNotFoundError):  # a cgroup may go by itself
                    known.cgroup.rmdir()
            del self._path.attached[endpoint]

    def install(self, tables: Tables, change: Change | None = None) -> None:
        """Keep a reference."""
        del change
        self._work()
        self._path.tables = tables

    def status(self) -> Status:
        """Generation, endpoints and counters."""
        self._work()
        return Status(
            generation=self._path.tables.generation if self._path.tables else 0,
            endpoints=frozenset(self._path.attached),
            counters=dict(self._path.counters),
            abi=f"memory-{self._path.abi}",
        )

    def connections(self) -> list[Connection]:
        """None: nothing is carried."""
        self._work()
        return []

    def events(self, timeout: float) -> list[Event]:
        """The refusals of :meth:`decide`."""
        self._work()
        with self._path.news:
            self._path.news.wait_for(lambda: self._path.refused, timeout)
            found, self._path.refused = self._path.refused, []
        return found

    def close(self) -> None:
        """The data path goes on in :attr:`running`."""
        self._closed = True

    def teardown(self) -> None:
        """Forget it all."""
        self._work()
        for known in self._path.attached.values():
            _refuse_if_used(known)
        for endpoint in list(self._path.attached):
            self.detach(endpoint)
        self.running.pop(self.context.instance, None)
        self.close()

    def decide(self, flow: Flow) -> Verdict:
        """What the data path answers to one end of a flow, counted as it would be.

        The endpoint whose policy is asked must be attached here; before the
        first tables, and to what is not attached, the answer is no.
        """
        return self._decide(flow).verdict

    def _decide(self, flow: Flow) -> Decision:
        self._work()
        tables = self._path.tables
        egress = flow.direction is Direction.EGRESS
        subject = self.attached_at(flow.network, flow.source if egress else flow.destination)
        if tables is None or subject is None:
            verdict = Verdict(False, Reason["NO_ENDPOINT" if tables else "NO_TABLES"])
            target = (flow.destination, flow.port)
            decision = Decision(verdict, 0, 0, 0, endpoint=0, service=0, target=target, host=None)
        else:
            decision = self._answer(tables, subject.network.vni, flow, self._path.affinity)
        self._count(
            flow, decision.verdict, subject.endpoint.id if subject else 0, decision.endpoint
        )
        return decision

    def ask(self, flow: Flow, network: Network) -> Decision | None:
        """Out of the tables that :meth:`install` kept; a client of a service keeps its place."""
        self._work()
        tables = self._path.tables
        if tables is None:
            return None
        return self._answer(tables, network.vni, flow, ChainMap({}, self._path.affinity))

    @staticmethod
    def _answer(tables: Tables, vni: int, flow: Flow, affinity: Affinity) -> Decision:
        def serve(record: ServiceRecord, client: int) -> tuple[int, int]:
            return pick(record, client, time.monotonic(), secrets.randbits(32), affinity)

        return Answerer(tables, vni).decision(flow, serve)

    def _count(self, flow: Flow, verdict: Verdict, endpoint: int, peer: int) -> None:
        counters = self._path.counters
        counters[verdict.reason] = counters.get(verdict.reason, 0) + 1
        if not verdict.allowed:
            with self._path.news:
                self._path.refused.append(
                    Event(
                        kind=EventKind.REFUSED,
                        time=time.time(),
                        endpoint=endpoint,
                        peer_endpoint=peer,
                        source=(flow.source, 0),
                        destination=(flow.destination, flow.port),
                        protocol=flow.protocol,
                        direction=flow.direction,
                        reason=verdict.reason,
                        rule=verdict.rule,
                    )
                )
                del self._path.refused[:-_REFUSED_MOST]
                self._path.news.notify_all()

    def attached_at(self, network: str, address: IPAddress) -> _Attached | None:
        """The attached endpoint that has an address, if any."""
        for known in self._path.attached.values():
            if known.network.name == network and known.endpoint.address == address:
                return known
        return None

    def _work(self) -> None:
        if self._closed:
            raise BackendError(f"instance {self.context.instance}: this backend is closed")

    @classmethod
    def reach(
        cls, hosts: Mapping[str, MemoryBackend], source: Endpoint, to: IPAddress, port: int
    ) -> bool:
        """Whether a TCP connection would be: both ends' policies, each asked on its host.

        Args:
            hosts: the backends by the names of their hosts.
            source: the endpoint that connects.
            to: the address that it dials.
            port: the port that it dials.
        """
        flow = Flow(source.network, source.address, to, Protocol.TCP, port, Direction.EGRESS)
        decision = hosts[source.host]._decide(flow)  # noqa: SLF001  # our own
        if not decision.verdict.allowed:
            return False
        to, port = decision.target
        flow = Flow(source.network, source.address, to, Protocol.TCP, port, Direction.INGRESS)
        owners = [host for host in hosts.values() if host.attached_at(source.network, to)]
        return all(owner.decide(flow).allowed for owner in owners)


def _refuse_if_used(known: _Attached) -> None:
    if _has_processes(known.cgroup):
        raise InUse(f"endpoint {known.endpoint.id}: processes in {known.cgroup}")


def _has_processes(cgroup: Path) -> bool:
    processes = cgroup / "cgroup.procs"
    return processes.is_file() and bool(processes.read_text())
