# SPDX-License-Identifier: Apache-2.0
"""What users wrote, as the store holds it: policies, services, published ports, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs
from netaddr import IPAddress

from slimnet import records
from slimnet.abc import Revision, Store
from slimnet.cluster import keys, lookup
from slimnet.cluster.addresses import Addresses
from slimnet.cluster.change import retry, ruling
from slimnet.exceptions import InvalidValue, NotFound, PolicyError
from slimnet.model import Network
from slimnet.names import missing
from slimnet.policy.document import (
    ClusterNetworkPolicy,
    Document,
    EgressLimit,
    NetworkPolicy,
    PublishedPort,
    Service,
)

__all__ = ["PREFIXES", "Documents", "key"]

_KEYS: dict[type[Document], keys.Key] = {
    ClusterNetworkPolicy: keys.CLUSTER_POLICY,
    NetworkPolicy: keys.POLICY,
    Service: keys.SERVICE,
    PublishedPort: keys.PUBLISHED_PORT,
    EgressLimit: keys.EGRESS_LIMIT,
}
#: Kind to the first part of its keys, and of the agent's paths.
PREFIXES = {kind: key.kind for kind, key in _KEYS.items()}

_KINDS = {prefix: kind for kind, prefix in PREFIXES.items()}
_Admit = Callable[[Sequence[Document]], object]


class Documents:
    """Changes and reads them. All raise :class:`~slimnet.StoreUnreachable`."""

    def __init__(self, store: Store, addresses: Addresses) -> None:
        self.store = store
        self._addresses = addresses

    def apply(
        self, documents: Iterable[Document], admit: _Admit | None = None
    ) -> tuple[list[Document], Revision]:
        """Put documents in force, all at once; those of the same kind and name are
        replaced. A service without an address keeps its own, or gets a free one.

        Args:
            documents: of any kinds.
            admit: raises where they cannot hold. Until they are written no
                endpoint comes that it has not seen.

        Returns:
            The documents, with the addresses of services, and the store's revision.

        Raises:
            NotFound: one is of a network that is not there.
            PolicyError: one stands there twice.
            AlreadyExists: a service's address is taken.
            InvalidValue: it is not of its network, or the network is full.
        """
        asked = list(documents)

        def change() -> tuple[list[Document], Revision]:
            guard = ruling(self.store)
            made = _Change(self.store, self._addresses, asked)
            if admit is not None:
                admit(made.documents)
            revision = self.store.transact(
                expect={**guard.expect, **made.expect},
                put={**guard.put, **made.put},
                delete=made.gone - made.put.keys(),
            )
            return made.documents, revision

        return retry(change)

    def all(self) -> list[Document]:
        """All documents, kind by kind."""
        return [
            document
            for kind, key in _KEYS.items()
            for document in lookup.everything(self.store, key.below(), kind.from_json)
        ]

    def find(self, places: Iterable[str]) -> list[Document]:
        """What the store holds under these keys (:func:`key`); what is gone is left out.

        Raises:
            InvalidValue: one cannot be read, or is not of a document.
        """
        found = []
        for place in places:
            kind = _KINDS.get(place.partition("/")[0])
            if kind is None:
                raise InvalidValue("applied", f"keys below {', '.join(_KINDS)}", place)
            if (record := self.store.get(place)) is not None:
                found.append(records.load(place, record[0], kind.from_json))
        return found

    def remove(
        self,
        kind: type[Document],
        name: str,
        network: str | None = None,
        namespace: str = "default",
    ) -> Revision:
        """Remove one; a service's address becomes free.

        Args:
            kind: of the five.
            name: its name.
            network: its network; ``None`` for what is the cluster's.
            namespace: its namespace.

        Raises:
            NotFound: there is none, or no such network.
        """
        below = _KEYS[kind].below(*((network, namespace) if network else ()))

        def change() -> Revision:
            place = below + name
            found = self.store.get(place)
            if found is None:
                if network:
                    lookup.network(self.store, network)
                names = [each.removeprefix(below) for each in self.store.list(below)[0]]
                raise missing(kind.__name__, name, names)
            gone = [place]
            if kind is Service and (address := _address(place, found[0])) is not None:
                gone.append(keys.ADDRESS.at(network, address))
            return self.store.transact(expect={place: found[1]}, delete=gone)

        return retry(change)


class _Change:
    """The parts of one transaction that applies documents."""

    def __init__(self, store: Store, addresses: Addresses, asked: Sequence[Document]) -> None:
        self._store = store
        self._addresses = addresses
        self._networks: dict[str, Network] = {}
        self.expect: dict[str, Revision | None] = {}
        self.put: dict[str, bytes] = {}
        self.gone: set[str] = set()
        titles: dict[str, Document] = {}
        # The addresses that services ask for are not given to others meanwhile.
        for document in sorted(asked, key=lambda each: getattr(each, "address", 1) is None):
            place = key(document)
            if place in titles:
                where = document.source.at("") or document.title
                raise PolicyError(where, "each document once", document.title)
            self._check_network(document)
            if isinstance(document, Service):
                document = self._addressed(place, document)  # noqa: PLW2901
            titles[place] = document
            self.put[place] = records.dump(document.to_json())
        self.documents = [titles[key(document)] for document in asked]

    def _check_network(self, document: Document) -> None:
        name = getattr(document, "network", None)
        if name is not None and name not in self._networks:
            try:
                self._networks[name], revision = lookup.network(self._store, name)
            except NotFound as error:
                raise NotFound(f"{document.source.prefix}{document.title}: {error}") from error
            self.expect[keys.NETWORK.at(name)] = revision

    def _addressed(self, place: str, service: Service) -> Service:
        network = self._networks[service.network]
        held = self._store.get(place)
        self.expect[place] = None if held is None else held[1]
        old = None if held is None else _address(place, held[0])
        address = service.address
        if address is None and old is not None and any(old in cidr for cidr in network.cidrs):
            address = old
        prefix = keys.ADDRESS.below(network.name)
        if address is None or address != old:
            field = f"{service.source.prefix}{service.title}: spec.clusterIP"
            meanwhile = {each.removeprefix(prefix) for each in self.put if each.startswith(prefix)}
            address = self._addresses.choose(network, address, field, meanwhile)
            self.expect[f"{prefix}{address}"] = None
            self.put[f"{prefix}{address}"] = records.dump(place)
            if old is not None:
                self.gone.add(f"{prefix}{old}")
        spec = {**service.manifest.get("spec", {}), "clusterIP": str(address)}
        return attrs.evolve(service, address=address, manifest={**service.manifest, "spec": spec})


def key(document: Document) -> str:
    """Under which the store holds it."""
    place = (
        () if isinstance(document, ClusterNetworkPolicy)
        else (getattr(document, "network", ""), getattr(document, "namespace", ""))
    )  # fmt: skip
    return _KEYS[type(document)].at(*place, document.name)


def _address(place: str, data: bytes) -> IPAddress | None:
    """The address of a service of the store; ``None`` where it cannot be read."""
    try:
        return records.load(place, data, Service.from_json).address
    except InvalidValue:
        return None
