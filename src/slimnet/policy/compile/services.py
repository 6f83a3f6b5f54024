# SPDX-License-Identifier: Apache-2.0
"""Services as records: for each port of each, the endpoints that serve it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from attrs import frozen
from netaddr import IPAddress

from slimnet.model import Endpoint, Network
from slimnet.policy.compile.follower import Follower
from slimnet.policy.compile.maglev import table
from slimnet.policy.compile.number import Numbers
from slimnet.policy.compile.roster import DocumentName, Roster, Space
from slimnet.policy.document import PublishedPort, Service, ServicePort
from slimnet.tables import ServiceKey, ServiceRecord

__all__ = ["ServiceTarget", "Services", "target_port"]


@frozen
class ServiceTarget:
    """An endpoint that serves a port of a service.

    Attributes:
        endpoint: which.
        port: its own port.
        weight: how often it is chosen, above 0.
    """

    endpoint: Endpoint
    port: int
    weight: int


class Services(Follower[Service]):
    """Keeps the services' records, with work in proportion to what a change touches.

    Left out are services whose address is not their network's, or is an endpoint's. Of
    two with one address and port the first by name has it. Whoever goes without is told
    by :mod:`slimnet.policy.explain.warning`.

    Args:
        networks: by name.
        roster: the endpoints; the owner keeps it.
        numbers: gives the ports of services their ids.

    Attributes:
        records: a new mapping after each change.
        addresses: how many records there are for each (vni, address).
    """

    what: ClassVar[str] = "services"

    def __init__(self, networks: Mapping[str, Network], roster: Roster, numbers: Numbers) -> None:
        super().__init__(roster)
        self._networks = networks
        self._numbers = numbers
        self.records: dict[ServiceKey, ServiceRecord] = {}
        self.addresses: Counter[tuple[int, IPAddress]] = Counter()
        self._by_space: dict[Space, set[DocumentName]] = {}
        self._members: dict[DocumentName, dict[str, Endpoint]] = {}
        self._claims: dict[ServiceKey, dict[DocumentName, ServicePort]] = {}
        self._by_address: dict[tuple[str, IPAddress], set[ServiceKey]] = {}
        self._stale: set[ServiceKey] = set()

    def set_document(self, name: DocumentName, service: Service | None) -> None:
        if name in self.documents:
            for key in self.ports(self.documents[name]):
                self._withdraw(key, name)
            del self.documents[name], self._members[name]
            self._by_space[name[:2]].remove(name)
        if service is None:
            return
        self.documents[name] = service
        self._by_space.setdefault(name[:2], set()).add(name)
        self._members[name] = {
            endpoint.name: endpoint
            for endpoint in self.roster.within(name[:2])
            if service.selector.matches(endpoint.labels)
        }
        for key, port in self.ports(service).items():
            self._claims.setdefault(key, {})[name] = port
            self._by_address.setdefault((service.network, key.address), set()).add(key)
            self._stale.add(key)

    def set_endpoint(self, endpoint: Endpoint) -> None:
        self._stale |= self._by_address.get((endpoint.network, endpoint.address), set())
        for name in self._by_space.get((endpoint.network, endpoint.namespace), ()):
            service = self.documents[name]
            if service.selector.matches(endpoint.labels):
                self._members[name][endpoint.name] = endpoint
                self._stale |= self.ports(service).keys()

    def drop_endpoint(self, endpoint: Endpoint) -> None:
        self._stale |= self._by_address.get((endpoint.network, endpoint.address), set())
        for name in self._by_space.get((endpoint.network, endpoint.namespace), ()):
            if self._members[name].pop(endpoint.name, None) is not None:
                self._stale |= self.ports(self.documents[name]).keys()

    def settle(self) -> set[ServiceKey]:
        """Take the changes in; the keys whose records may differ."""
        stale, self._stale = self._stale, set()
        if stale:
            self.records = dict(self.records)
        for key in stale:
            old, name = self.records.pop(key, None), self.holder(key)
            place = (key.vni, key.address)
            if name is not None:
                self.records[key] = self._record(key, name)
                self.addresses[place] += 1
            if old is not None:
                self._numbers.release(_words(key))
                self.addresses[place] -= 1
            if not self.addresses[place]:
                del self.addresses[place]
        return stale

    def ports(self, service: Service) -> dict[ServiceKey, ServicePort]:
        """What a service asks for: nothing while it has no address of its network's."""
        network, address = self._networks.get(service.network), service.address
        if network is None or address is None or not any(address in c for c in network.cidrs):
            return {}
        return {
            ServiceKey(network.vni, address, port.protocol, port.port): port
            for port in reversed(service.ports)
        }

    def holder(self, key: ServiceKey) -> DocumentName | None:
        """The service that has this address and port, if any has."""
        name = min(self._claims.get(key, ()), default=None)
        if name is None or self.roster.at(name[0], key.address) is not None:
            return None
        return name

    def members(self, name: DocumentName) -> list[Endpoint]:
        """The endpoints that a service selects, by name."""
        return [endpoint for _, endpoint in sorted(self._members[name].items())]

    def targets(self, name: DocumentName, port: ServicePort) -> list[ServiceTarget]:
        """Those of them that serve one of its ports."""
        service, found = self.documents[name], []
        for endpoint in self.members(name):
            target, weight = target_port(endpoint, port), _weight(service, endpoint)
            if target is not None and weight:
                found.append(ServiceTarget(endpoint, target, weight))
        return found

    def _withdraw(self, key: ServiceKey, name: DocumentName) -> None:
        self._stale.add(key)
        del self._claims[key][name]
        if not self._claims[key]:
            del self._claims[key]
            place = (name[0], key.address)
            self._by_address[place].remove(key)
            if not self._by_address[place]:
                del self._by_address[place]

    def _record(self, key: ServiceKey, name: DocumentName) -> ServiceRecord:
        targets = self.targets(name, self._claims[key][name])
        weights = tuple(
            ("/".join((*name[:2], item.endpoint.name)), item.weight) for item in targets
        )
        pairs = [(item.endpoint.id, item.port) for item in targets]
        return ServiceRecord(
            self._numbers.take(_words(key)),
            self.documents[name].affinity,
            tuple(pairs[position] for position in table(weights)) if pairs else (),
            len(pairs),
        )


def target_port(endpoint: Endpoint, port: ServicePort | PublishedPort) -> int | None:
    """The endpoint's port that is meant; ``None`` where it declares none of that name and
    protocol."""
    if isinstance(port.target, int):
        return port.target
    word, number = endpoint.ports.get(port.target, ("", 0))
    return number if word.upper() == port.protocol.name else None


def _weight(service: Service, endpoint: Endpoint) -> int:
    matching = (item for item in service.weights if item.selector.matches(endpoint.labels))
    return next((item.weight for item in matching), 1)


def _words(key: ServiceKey) -> str:
    """What a port's id is made from."""
    return f"{key.vni} {key.address} {key.protocol} {key.port}"
