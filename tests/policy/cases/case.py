# SPDX-License-Identifier: Apache-2.0
"""What a case is made of."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from attrs import evolve, field, frozen

from slimnet.model import Endpoint, Host, Namespace, Network
from slimnet.policy import State, parse

#: Names of two endpoints ("x/a"), or of an endpoint and a host ("host/h1").
Pair = tuple[str, str]


@frozen
class World:
    """Endpoints of one network, spread over two hosts so that each namespace is on both.

    Attributes:
        namespaces: name to labels.
        endpoints: "namespace/name" to labels.
        ports: named ports of every endpoint.
    """

    namespaces: Mapping[str, Mapping[str, str]]
    endpoints: Mapping[str, Mapping[str, str]]
    ports: Mapping[str, tuple[str, int]]

    network: str = "default"
    hosts: tuple[str, str] = ("h1", "h2")

    def address(self, name: str) -> str:
        """An endpoint's overlay address, or a host's underlay address."""
        if name.startswith("host/"):
            return f"192.0.2.{1 + self.hosts.index(name[5:])}"
        return f"10.1.0.{1 + list(self.endpoints).index(name)}"

    def host(self, name: str) -> str:
        """The host that an endpoint lives on."""
        return self.hosts[list(self.endpoints).index(name) % 2]

    def state(self, step: Step, revision: int = 1) -> State:
        """The desired state at a step."""
        identities: dict[Any, int] = {}
        endpoints = []
        for number, (name, own) in enumerate(self.endpoints.items(), 1):
            namespace, _, short = name.partition("/")
            labels = step.labels.get(name, own)
            key = (namespace, *sorted(labels.items()))
            endpoints.append(
                Endpoint(
                    self.network,
                    short,
                    self.address(name),
                    self.host(name),
                    namespace=namespace,
                    id=number,
                    labels=labels,
                    ports=self.ports,
                    identity=identities.setdefault(key, 256 + len(identities)),
                )
            )
        namespaces = {**self.namespaces, **step.namespaces}
        return State(
            networks=[Network(self.network, 1, "10.1.0.0/16")],
            hosts=[Host(name, self.address(f"host/{name}")) for name in self.hosts],
            namespaces=[
                Namespace(self.network, name, labels) for name, labels in namespaces.items()
            ],
            endpoints=endpoints,
            policies=parse([{"manifest": item} for item in step.policies]),
            revision=revision,
        )


@frozen
class Probe:
    """Who reaches whom on one port.

    Attributes:
        protocol: "tcp", "udp" or "sctp".
        port: destination port.
        table: every pair that is judged; an endpoint to itself never is.
    """

    protocol: str
    port: int
    table: Mapping[Pair, bool]

    @property
    def title(self) -> str:
        return f"{self.protocol}/{self.port}"


@frozen
class Step:
    """A state of the world and what must be seen in it.

    Attributes:
        name: what the original says of it.
        policies: all manifests that are in force.
        probes: what is asked.
        namespaces: labels of namespaces that differ from the world's.
        labels: labels of endpoints that differ from the world's.
    """

    name: str
    policies: tuple[Mapping[str, Any], ...] = field(converter=tuple)
    probes: tuple[Probe, ...] = field(converter=tuple)
    namespaces: Mapping[str, Mapping[str, str]] = field(factory=dict)
    labels: Mapping[str, Mapping[str, str]] = field(factory=dict)


@frozen
class Case:
    """One test of a suite.

    Attributes:
        name: the original's.
        world: where it happens.
        steps: in order; each builds on the world, not on the step before.
    """

    name: str
    world: World
    steps: tuple[Step, ...] = field(converter=tuple)

    @property
    def protocols(self) -> set[str]:
        """What it needs to be carried."""
        return {probe.protocol for step in self.steps for probe in step.probes}


@frozen
class Reach:
    """A table as its exceptions, the later the stronger; patterns as of a shell.

    ``Reach(world).deny("*", "x/*").allow("x/b", "x/a")``
    """

    world: World
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    rules: tuple[tuple[str, str, bool], ...] = ()

    @classmethod
    def of(cls, world: World, *, hosts: bool = False) -> Reach:
        """Everything reachable from every endpoint: all endpoints, or all hosts."""
        names = tuple(world.endpoints)
        return cls(world, names, tuple(f"host/{host}" for host in world.hosts) if hosts else names)

    def deny(self, source: str, destination: str) -> Reach:
        return evolve(self, rules=(*self.rules, (source, destination, False)))

    def allow(self, source: str, destination: str) -> Reach:
        return evolve(self, rules=(*self.rules, (source, destination, True)))

    def on(self, protocol: str, port: int) -> Probe:
        """The table, for one port."""
        table = {}
        for source, destination in product(self.sources, self.destinations):
            if source == destination:
                continue
            allowed = True
            for one, other, verdict in self.rules:
                if fnmatchcase(source, one) and fnmatchcase(destination, other):
                    allowed = verdict
            table[source, destination] = allowed
        return Probe(protocol, port, table)
