# SPDX-License-Identifier: Apache-2.0
"""Where :func:`slimnet.testing.check_backend` plays: hosts, endpoints, tables.

::

    h1: client 10.99.0.1, stranger 10.99.0.3,      h2: server 10.99.0.2     h3: no host of
        neighbour 10.99.0.4                                                     the cluster

    server and neighbour:  from client to port 8080; nothing else comes in
    stranger:              not to client
    service 10.99.0.250:   port 80 is port 8080 of whoever is behind it
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import evolve
from netaddr import IPAddress, IPNetwork

from slimnet import contract, wires
from slimnet.abc import Backend, Context
from slimnet.exceptions import SlimnetError
from slimnet.linux import cgroup, netns
from slimnet.model import (
    Direction,
    Endpoint,
    Host,
    Network,
    Probe,
    Reason,
    Running,
)
from slimnet.place import Part, Place
from slimnet.tables import (
    CidrRecord,
    EndpointRecord,
    HostRecord,
    LimitRecord,
    PolicyKey,
    PolicyRecord,
    PublishKey,
    PublishRecord,
    ServiceKey,
    ServiceRecord,
    Tables,
)
from slimnet.testing._resident import Reached, Resident
from slimnet.testing._snapshot import snapshot
from slimnet.testing._underlay import Underlay

__all__ = ["ALLOWED", "CAST", "FORBIDDEN", "NETWORK", "SERVICE", "Reach", "Stage", "probed"]

NETWORK = Network("check", 99, "10.99.0.0/16")
#: Ports of server and neighbour: the first is client's by policy, the second nobody's.
ALLOWED, FORBIDDEN = 8080, 8081
SERVICE = NETWORK.cidrs[0][250]
_CLIENT, _SERVER, _STRANGER = range(contract.SLIM_IDENTITY_FIRST, contract.SLIM_IDENTITY_FIRST + 3)
_TCP = 6


def _endpoint(name: str, number: int, host: str, identity: int) -> Endpoint:
    return Endpoint(
        network=NETWORK.name,
        name=name,
        address=NETWORK.cidrs[0][number],
        host=host,
        # A store draws ids at random from 31 bits; the largest show what cuts them off.
        id=contract.SLIM_ADDRESS_SERVICE - number,
        identity=identity,
    )


CAST = {
    "client": _endpoint("client", 1, "h1", _CLIENT),
    "server": _endpoint("server", 2, "h2", _SERVER),
    "stranger": _endpoint("stranger", 3, "h1", _STRANGER),
    "neighbour": _endpoint("neighbour", 4, "h1", _SERVER),
}

#: How a backend without sockets says whether a connection would be made: its
#: hosts by name, the endpoint that connects, the address and the port it dials.
Reach = Callable[[Mapping[str, Any], Endpoint, IPAddress, int], bool]

_stages = itertools.count(1)


@functools.cache  # a stage for each clause: a probe may take as long as one
def probed(backend: type[Backend]) -> Probe:
    """What its probe says, asked once."""
    return backend.probe()


class _Placed:
    """A backend whose methods run in its host's network namespace."""

    def __init__(self, backend: Backend, where: Path | None) -> None:
        self.backend = backend
        self._where = where

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.backend, name)
        if not callable(value):
            return value

        def call(*arguments: object, **options: object) -> object:
            with contextlib.nullcontext() if self._where is None else netns.enter(self._where):
                answer = value(*arguments, **options)
                return list(answer) if name in {"accounts", "connections"} else answer

        return call


class Stage:
    """Sets itself up, and clears away whatever is left when the block ends."""

    def __init__(
        self, backend: type[Backend], options: Mapping[str, object], reach: Reach | None
    ) -> None:
        self._backend = backend
        self._options = options
        self._capabilities = probed(backend).capabilities
        alike = Host("alike", IPAddress(0), self._capabilities.wires)
        self._wire = wires.choose(alike, alike)
        self._simulated = reach
        self.name = f"slt-{os.getpid()}-{next(_stages)}"
        self.underlay = None if reach else Underlay(hosts=3, name=self.name.removeprefix("slt-"))
        self.backends: dict[int, Any] = {}
        self.places: dict[str, Place] = {}
        self.mismatch: Callable[[Context], contextlib.AbstractContextManager[object]] | None = None
        self._residents: dict[str, Resident] = {}
        self._undo = contextlib.ExitStack()
        self._directory = Path()
        self._cgroup = Path()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
            undo.callback(shutil.rmtree, self._directory)
            if self.underlay is None:
                self._cgroup = self._directory / "cgroup"
                self._cgroup.mkdir()
            else:
                self._cgroup = cgroup.mount() / self.name
                self._cgroup.mkdir()
                undo.callback(cgroup.remove, self._cgroup)
                undo.enter_context(self.underlay)
            undo.callback(self._tear_down)
            self._undo = undo.pop_all()
        return self

    def _tear_down(self) -> None:
        for name in list(self._residents):
            self.leave(name)
        for host in list(self.backends):
            with contextlib.suppress(SlimnetError):
                self.backends[host].close()
            with contextlib.suppress(SlimnetError):
                self.open(host).teardown()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    # Hosts and backends

    def context(
        self, host: int, options: Mapping[str, object] | None = None, cluster: str = ""
    ) -> Context:
        """Of the host by its index."""
        return Context(
            instance=f"{self.name}-h{host + 1}",
            host=Host(f"h{host + 1}", self.address(host), self._capabilities.wires),
            interface="eth0",
            cgroup=self._cgroup / f"h{host + 1}",
            state=self._directory / f"h{host + 1}",
            key=b"slimnet conforms"[:16],
            options=self._options if options is None else options,
            cluster=cluster,
        )

    def address(self, host: int) -> IPAddress:
        """A host's underlay address."""
        return (
            self.underlay.hosts[host].address
            if self.underlay
            else IPAddress(f"198.18.0.{host + 1}")
        )

    def _netns(self, host: int) -> Path | None:
        return self.underlay.hosts[host].netns if self.underlay else None

    def on(self, host: int) -> contextlib.AbstractContextManager[None]:
        """The calling thread is on the host while the block lasts."""
        where = self._netns(host)
        return contextlib.nullcontext() if where is None else netns.enter(where)

    def open(
        self, host: int, options: Mapping[str, object] | None = None, cluster: str = ""
    ) -> Any:
        """Start the data path, or adopt it."""
        with self.on(host):
            backend = self._backend(self.context(host, options, cluster))
        self.backends[host] = _Placed(backend, self._netns(host))
        return self.backends[host]

    def probe(self) -> Probe:
        """Ask the backend's class, on the first host."""
        with self.on(0):
            return self._backend.probe()

    def find(self, host: int) -> Running | None:
        """Ask the backend's class what there is of the host's instance."""
        context = self.context(host)
        with self.on(host):
            return self._backend.find(context.instance, context.state)

    def purge(self, host: int) -> None:
        """Have the backend's class remove the host's instance, and then its cgroups."""
        context = self.context(host)
        with self.on(host):
            self._backend.purge(context.instance, context.state)
        cgroup.remove(context.cgroup)

    def attach(self, *names: str) -> None:
        """Attach endpoints, each at its host."""
        for name in names:
            self.attach_as(CAST[name])

    def attach_as(self, endpoint: Endpoint) -> None:
        """Attach one of the cast in a place that its record says."""
        backend = self.backends[self._host(endpoint.name)]
        self.places[endpoint.name] = backend.attach(endpoint, NETWORK)

    @staticmethod
    def _host(name: str) -> int:
        return int(CAST[name].host.removeprefix("h")) - 1

    def tables(
        self,
        host: int,
        generation: int,
        *,
        both: bool = False,
        service: Sequence[str] | None = None,
        published: Mapping[PublishKey, PublishRecord] | None = None,
        limits: Mapping[int, LimitRecord] | None = None,
    ) -> Tables:
        """What a host's agent would install.

        Args:
            host: by index.
            generation: of the tables.
            both: the forbidden port is allowed as well.
            service: the endpoints behind the service; ``None``: there is none.
            published: for endpoints of the first host.
            limits: likewise.
        """
        everyone = contract.SLIM_IDENTITY_ANY
        ingress, egress = Direction.INGRESS, Direction.EGRESS
        policy = {
            PolicyKey(_SERVER, everyone, ingress): PolicyRecord(False, Reason["DEFAULT_DENY"]),
            PolicyKey(_SERVER, _CLIENT, ingress, _TCP, ALLOWED, 16): PolicyRecord(
                True, Reason["RULE_ALLOW"], 1
            ),
            PolicyKey(_STRANGER, _CLIENT, egress): PolicyRecord(False, Reason["RULE_DENY"], 2),
        }
        if both:
            key = PolicyKey(_SERVER, _CLIENT, ingress, _TCP, FORBIDDEN, 16)
            policy[key] = PolicyRecord(True, Reason["RULE_ALLOW"], 3)
        vni = NETWORK.vni
        world = contract.SLIM_IDENTITY_WORLD
        cidrs = {
            (vni, NETWORK.cidrs[0]): CidrRecord(world, overlay=True),
            (vni, IPNetwork("0.0.0.0/0")): CidrRecord(world),
        }
        for member in (0, 1):
            network = IPNetwork(f"{self.address(member)}/32")
            cidrs[vni, network] = CidrRecord(contract.SLIM_IDENTITY_HOST, host=True)
        addresses = {(vni, endpoint.address): endpoint.id for endpoint in CAST.values()}
        services = {}
        if service is not None:
            addresses[vni, SERVICE] = contract.SLIM_ADDRESS_SERVICE
            slots = [(CAST[name].id, ALLOWED) for name in service]
            services[ServiceKey(vni, SERVICE, _TCP, 80)] = ServiceRecord(
                id=1,
                affinity=0,
                slots=tuple(itertools.islice(itertools.cycle(slots), contract.SLIM_SERVICE_SLOTS)),
                size=len(slots),
            )
        return Tables(
            generation=generation,
            addresses=addresses,
            endpoints={
                endpoint.id: EndpointRecord(
                    address=endpoint.address,
                    host=self.address(self._host(name)),
                    vni=vni,
                    identity=endpoint.identity,
                    local=self._host(name) == host,
                    wire=self._wire,
                )
                for name, endpoint in CAST.items()
            },
            cidrs=cidrs,
            policy=policy,
            rules={1: "check[0]", 2: "check[1]", 3: "check[2]"},
            services=services,
            published=published or {} if host == 0 else {},
            limits=limits or {} if host == 0 else {},
            hosts={
                self.address(member): HostRecord(f"h{member + 1}", self._capabilities.wires)
                for member in (0, 1)
            },
        )

    def install(self, generation: int, **content: Any) -> None:
        """Put tables in force on every open host."""
        for host, backend in self.backends.items():
            backend.install(self.tables(host, generation, **content))

    # Processes

    @property
    def simulated(self) -> bool:
        """There are no sockets: connections are asked for."""
        return self._simulated is not None

    def resident(self, name: str, within: Collection[Part] = (Part.CGROUP, Part.NETNS)) -> Resident:
        """The process in an endpoint or on host ``h1``, ``h2``, ``h3``; started when asked for."""
        if name not in self._residents:
            if self.underlay is None:
                raise RuntimeError("a simulated stage has no processes")
            if name in CAST:
                place = self.places[name]
                host = self.underlay.hosts[self._host(name)].netns
                cgroup, there = (
                    getattr(place, part) if part in within else None
                    for part in (Part.CGROUP, Part.NETNS)
                )
                self._residents[name] = Resident(cgroup, host, there, place.environment)
            else:
                own = self._cgroup / f"user-{name}"
                own.mkdir(exist_ok=True)
                host = self.underlay.hosts[int(name.removeprefix("h")) - 1].netns
                self._residents[name] = Resident(own, host)
        return self._residents[name]

    def cgroup(self, name: str) -> Path:
        """Of an attached endpoint that has one."""
        cgroup = self.places[name].cgroup
        assert cgroup is not None  # noqa: S101  # for the type checker
        return cgroup

    def serve(self, name: str, *ports: int) -> None:
        """Listen in an endpoint or on a host."""
        for port in ports if not self.simulated else ():
            self.resident(name).serve(port)

    @contextlib.contextmanager
    def occupied(
        self, name: str, within: Collection[Part] = (Part.CGROUP, Part.NETNS)
    ) -> Iterator[None]:
        """The endpoint has a process while the block lasts.

        Args:
            name: which.
            within: the parts of its place that the process enters.
        """
        if self.simulated:
            processes = self.cgroup(name) / "cgroup.procs"
            processes.write_text("1\n")
            yield
            processes.unlink()
        else:
            self.resident(name, within)
            yield
            self.leave(name)

    def leave(self, name: str) -> None:
        """End the process in an endpoint."""
        resident = self._residents.pop(name, None)
        if resident is not None:
            resident.close()

    def reach(self, source: str, to: str | IPAddress, port: int) -> Reached:
        """Connect from an endpoint to one, or to an address."""
        address = CAST[to].address if isinstance(to, str) and to in CAST else IPAddress(to)
        if self._simulated is None:
            return self.resident(source).connect(str(address), port)
        hosts = {f"h{host + 1}": placed.backend for host, placed in self.backends.items()}
        made = self._simulated(hosts, CAST[source], address, port)
        return Reached(0 if made else -1, "" if made else "refused", 0.0)

    # What is left

    def snapshot(self, host: int = 0) -> frozenset[str]:
        """What a host's backend could have left behind."""
        context = self.context(host)
        return snapshot(self._netns(host), context.cgroup, [context.state], context.instance)

    def given(self, name: str, *parts: Part) -> Endpoint:
        """An endpoint, with parts of its place that somebody else has made."""
        cgroup, there = self._cgroup / "given", netns.DIRECTORY / f"{self.name}-given"
        if Part.CGROUP in parts:
            cgroup.mkdir(exist_ok=True)
        if Part.NETNS in parts and not self.simulated:
            netns.create(there)
            self._undo.callback(netns.remove, there)
        return evolve(
            CAST[name],
            cgroup=str(cgroup) if Part.CGROUP in parts else "",
            netns=str(there) if Part.NETNS in parts else "",
        )

    def snapshot_of_given(self) -> frozenset[str]:
        """What :meth:`given` made, and what is in it."""
        there = netns.DIRECTORY / f"{self.name}-given"
        inside = there if netns.exists(there) else None
        return snapshot(inside, self._cgroup / "given", [], there.name)

    def take_back(self) -> None:
        """Remove what :meth:`given` made."""
        netns.remove(netns.DIRECTORY / f"{self.name}-given")
        with contextlib.suppress(FileNotFoundError):
            (self._cgroup / "given").rmdir()
