# SPDX-License-Identifier: Apache-2.0
"""The words of a cluster over a store: networks, hosts, namespaces, endpoints and
what users write about them, each change checked first and then made whole or not at all.

What they write, and under which keys: :mod:`slimnet.cluster.keys`.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs
from netaddr import IPNetwork

from slimnet import records
from slimnet.abc import Revision, Store
from slimnet.cluster import allocation, keys, lookup, ranges
from slimnet.cluster.addresses import Addresses
from slimnet.cluster.change import arrival, counter, retry, ruling
from slimnet.cluster.documents import Documents
from slimnet.exceptions import AlreadyExists, InUse, InvalidValue, NotFound
from slimnet.model import VNI_MAX, Endpoint, Host, HostState, Namespace, Network
from slimnet.names import missing
from slimnet.policy.document import Service

__all__ = ["Cluster"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_VNI = 1000
#: What goes with the namespace that it belongs to.
_NAMESPACED = (keys.POLICY, keys.SERVICE, keys.PUBLISHED_PORT, keys.EGRESS_LIMIT)


class Cluster:
    """Changes and reads the desired state.

    Every change answers with the store's revision as well, which
    :meth:`slimnet.Node.wait` takes. All raise :class:`~slimnet.StoreUnreachable`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._addresses = Addresses(store)
        self.documents = Documents(store, self._addresses)

    # Networks

    def create_network(
        self, name: str, cidrs: Iterable[str | IPNetwork] | str, vni: int | None = None
    ) -> tuple[Network, Revision]:
        """A new network; without ``vni`` it gets the first free one from 1000.

        Raises:
            InvalidValue: a range is no range, overlaps something or is not IPv4.
            AlreadyExists: the name, the VNI or a range is taken.
        """
        several = cidrs if isinstance(cidrs, (str, IPNetwork)) else tuple(cidrs)
        asked = Network(name, _FIRST_VNI if vni is None else vni, several)
        ranges.check_alone(asked)

        def change() -> tuple[Network, Revision]:
            guard = counter(self.store, "network")
            networks = self.networks()
            ranges.check_beside(asked, networks, self.hosts())
            taken = {each.vni: each.name for each in networks}
            if vni is not None and vni in taken:
                raise AlreadyExists(f"network {name}: VNI {vni} is that of network {taken[vni]}")
            number = vni or next(n for n in range(_FIRST_VNI, VNI_MAX + 1) if n not in taken)
            network = attrs.evolve(asked, vni=number)
            key = keys.NETWORK.at(name)
            default = keys.NAMESPACE.at(name, "default")
            put = {key: records.dump(network), **guard.put}
            if self.store.get(default) is None:
                put[default] = records.dump(Namespace(name, "default"))
            return network, self.store.transact(expect={key: None, **guard.expect}, put=put)

        return retry(change)

    def networks(self) -> list[Network]:
        """All networks, by name."""
        return self._all(keys.NETWORK.below(), records.network)

    def network(self, name: str) -> Network:
        """The network of that name.

        Raises:
            NotFound: there is none; says which there are.
        """
        return lookup.network(self.store, name)[0]

    def remove_network(self, name: str) -> Revision:
        """Remove a network with its namespaces and what was written for them.

        Raises:
            NotFound: there is none.
            InUse: it has endpoints.
        """

        def change() -> Revision:
            self.network(name)
            # No endpoint is added meanwhile.
            guard = ruling(self.store)
            endpoints = self.store.list(keys.ENDPOINT.below(name))[0]
            if endpoints:
                names = [key.split("/", 2)[2] for key in endpoints]
                some = ", ".join(names[:3]) + (", ..." if names[3:] else "")
                raise InUse(f"network {name} still has endpoints: {some}")
            gone = [keys.NETWORK.at(name)]
            for kind in (keys.NAMESPACE, keys.ADDRESS, *_NAMESPACED):
                gone += self.store.list(kind.below(name))[0]
            return self.store.transact(expect=guard.expect, put=guard.put, delete=gone)

        return retry(change)

    # Namespaces

    def set_namespace(
        self, network: str, name: str, labels: Mapping[str, str] | None = None
    ) -> tuple[Namespace, Revision]:
        """Make a namespace, or give it these labels instead of those it has."""
        namespace = Namespace(network, name, labels or {})
        self.network(network)
        put = {keys.NAMESPACE.at(network, name): records.dump(namespace)}
        return namespace, self.store.transact(put=put)

    def namespaces(self, network: str | None = None) -> list[Namespace]:
        """All namespaces, or those of one network."""
        return self._all(_below(keys.NAMESPACE, network), records.namespace)

    def remove_namespace(self, network: str, name: str) -> Revision:
        """Remove a namespace and what was written for it.

        Raises:
            NotFound: there is none.
            InUse: it has endpoints.
        """

        def change() -> Revision:
            guard = ruling(self.store)
            key = keys.NAMESPACE.at(network, name)
            if self.store.get(key) is None:
                self.network(network)
                names = [each.name for each in self.namespaces(network)]
                raise missing(f"namespace of network {network}", name, names)
            endpoints = self.store.list(keys.ENDPOINT.below(network, name))[0]
            if endpoints:
                raise InUse(f"namespace {network}/{name} has {len(endpoints)} endpoints")
            gone = [key]
            for kind in _NAMESPACED:
                gone += self.store.list(kind.below(network, name))[0]
            services = self._all(keys.SERVICE.below(network, name), Service.from_json)
            gone += [keys.ADDRESS.at(network, each.address) for each in services]
            return self.store.transact(expect=guard.expect, put=guard.put, delete=gone)

        return retry(change)

    # Hosts

    def set_host(self, host: Host, lease: int) -> Revision:
        """Register a host for as long as its lease is renewed.

        Raises:
            AlreadyExists: another live host has its name or address.
            InvalidValue: its address is inside a network's range.
        """

        def change() -> Revision:
            guard = counter(self.store, "network")
            for each in self.hosts():
                if each.name == host.name and each.address != host.address:
                    raise AlreadyExists(f"host {host.name} is registered with {each.address}")
                if each.name != host.name and each.address == host.address:
                    raise AlreadyExists(f"underlay address {host.address} is that of {each.name}")
            for network in self.networks():
                for cidr in network.cidrs:
                    if host.address in cidr:
                        wanted = f"an address outside of network {network.name} ({cidr})"
                        raise InvalidValue("underlay.address", wanted, str(host.address))
            key = keys.HOST.at(host.name)
            put = {key: records.dump(host), **guard.put}
            return self.store.transact(expect=guard.expect, put=put, leases={key: lease})

        return retry(change)

    def hosts(self) -> list[Host]:
        """The hosts that are alive."""
        return self._all(keys.HOST.below(), records.host)

    def set_installed(self, host: Host, revision: Revision, lease: int, generation: int) -> None:
        """Write down that what the store held at ``revision`` is in force there, in tables
        of this generation; and that the host was seen."""
        key = keys.INSTALLED.at(host.name)
        put = {key: records.dump({"revision": revision})}
        put |= _seen(host, revision, generation)
        try:
            self.store.transact(put=put, leases={key: lease})
        except NotFound:
            _log.debug("the lease of host %s ran out", host.name)

    def set_seen(self, host: Host, revision: Revision, generation: int) -> None:
        """Write down that a host was seen now, with what is in force there."""
        self.store.transact(put=_seen(host, revision, generation))

    def host_states(self, wanted: Revision) -> list[HostState]:
        """All hosts that are known, by name: those that live, and those that were lost and
        have not been removed.

        Args:
            wanted: see :class:`~slimnet.model.HostState`.
        """
        live = {each.name: each for each in self.hosts()}
        seen = self._all(keys.SEEN.below(), records.host_state)
        known = {each.name: each for each in seen}
        count = Counter(each.host for each in self.endpoints())
        states = []
        for name in sorted({*live, *known, *count}):
            state = known.get(name) or HostState(name, None, lost=True)
            if name in live:
                state = attrs.evolve(state, host=live[name], lost=False, seen=time.time())
            states.append(attrs.evolve(state, wanted=wanted, endpoints=count[name]))
        return states

    def remove_host(self, name: str) -> Revision:
        """Forget a lost host, and remove the endpoints that it left.

        Raises:
            InUse: it lives.
            NotFound: there is none of that name.
        """
        hosts = self.host_states(0)
        found = next((each for each in hosts if each.name == name), None)
        if found is None:
            raise missing("host", name, [each.name for each in hosts])
        if not found.lost:
            raise InUse(f"host {name} lives: stop its agent first")
        for each in self.endpoints():
            if each.host == name:
                self.remove_endpoint(each)
        return self.store.transact(delete=[keys.SEEN.at(name)])

    # Endpoints

    def create_endpoint(
        self,
        asked: Endpoint | Mapping[str, Any],
        admit: Callable[[Endpoint], None] | None = None,
    ) -> tuple[Endpoint, Revision]:
        """A new endpoint. Its ``id`` and ``identity`` are given, and without
        ``address`` the first free one of its network. Its namespace is made
        when it is new.

        Args:
            asked: the endpoint, or its fields.
            admit: raises where it cannot be. Until it is written no document
                comes that it has not seen.

        Raises:
            NotFound: no such network.
            AlreadyExists: its name or its address is taken.
            InvalidValue: its address is not of the network, or the network is full.
        """
        spec = dict(asked) if isinstance(asked, Mapping) else attrs.asdict(asked, recurse=False)
        wanted = spec.pop("address", None)
        for key in spec.keys() - attrs.fields_dict(Endpoint).keys():
            raise InvalidValue(f"endpoint.{key}", "no such field", spec[key])
        # Everything but the address is checked before the store is asked.
        plan = Endpoint(address=wanted or "0.0.0.0", **spec)  # noqa: S104  # a stand-in
        allocation.check(plan)

        attempts = itertools.count()

        def change() -> tuple[Endpoint, Revision]:
            network = self.network(spec["network"])
            guard = arrival(self.store)
            address = self._addresses.choose(network, wanted, turn=next(attempts))
            key = keys.ENDPOINT.at(plan.network, plan.namespace, plan.name)
            drawn = allocation.number(self.store, key)
            endpoint = Endpoint(**{**spec, "address": address, "id": drawn.number})
            held = self.store.get(key)
            if held is not None:
                at = records.load(key, held[0], records.endpoint)
                raise AlreadyExists(f"endpoint {at.path} is there, on host {at.host}")
            if admit is not None:
                admit(endpoint)
            identity, given = allocation.identity(self.store, endpoint)
            endpoint = attrs.evolve(endpoint, identity=identity)
            place = keys.ADDRESS.at(network.name, address)
            network_key = keys.NETWORK.at(network.name)
            expect: dict[str, Revision | None] = {key: None, place: None}
            put = {key: records.dump(endpoint), place: records.dump(key)}
            for each in (guard, drawn, given):
                expect |= each.expect
                put |= each.put
            namespace = keys.NAMESPACE.at(endpoint.network, endpoint.namespace)
            if self.store.get(namespace) is None:
                put[namespace] = records.dump(Namespace(endpoint.network, endpoint.namespace))
            expect[network_key] = (self.store.get(network_key) or (b"", None))[1]
            return endpoint, self.store.transact(expect=expect, put=put)

        return retry(change)

    def label_endpoint(
        self,
        path: tuple[str, str, str],
        labels: Mapping[str, str | None],
        admit: Callable[[Endpoint], object] | None = None,
        *,
        overwrite: bool = False,
    ) -> tuple[Endpoint, Revision]:
        """Change labels of an endpoint, which keeps its id and its address; it gets the
        identity of its new label set. Those that are not named stay.

        Args:
            path: its network, namespace and name.
            labels: name to value; to ``None`` for one that goes, if it is there.
            admit: as of :meth:`create_endpoint`.
            overwrite: change the value of one that is there.

        Raises:
            NotFound: there is no such endpoint.
            AlreadyExists: a label is there with another value; nothing was changed.
            InvalidValue: a name or a value is none of a label.
        """
        key = keys.ENDPOINT.at(*path)

        def change() -> tuple[Endpoint, Revision]:
            guard = arrival(self.store)
            there, revision = self._known_endpoint(*path)
            for name, value in labels.items():
                held = there.labels.get(name, value)
                if not overwrite and value is not None and held != value:
                    raise AlreadyExists(
                        f"endpoint {there.path} has the label {name}={held}, and it was not asked"
                        f" to overwrite it with {value!r}"
                    )
            merged = {**there.labels, **labels}
            kept = {name: value for name, value in merged.items() if value is not None}
            endpoint = attrs.evolve(there, labels=kept)
            if endpoint == there:
                return there, revision
            if admit is not None:
                admit(endpoint)
            identity, given = allocation.identity(self.store, endpoint)
            endpoint = attrs.evolve(endpoint, identity=identity)
            return endpoint, self.store.transact(
                expect={key: revision, **guard.expect, **given.expect},
                put={key: records.dump(endpoint), **guard.put, **given.put},
            )

        return retry(change)

    def endpoints(self, network: str | None = None) -> list[Endpoint]:
        """All endpoints, or those of one network."""
        return self._all(_below(keys.ENDPOINT, network), records.endpoint)

    def find_endpoint(self, network: str, namespace: str, name: str) -> Endpoint | None:
        """The endpoint of that name, if there is one."""
        found = self._endpoint(network, namespace, name)
        return None if found is None else found[0]

    def endpoint(self, network: str, namespace: str, name: str) -> Endpoint:
        """The endpoint of that name.

        Raises:
            NotFound: there is none.
        """
        return self._known_endpoint(network, namespace, name)[0]

    def remove_endpoint(self, endpoint: Endpoint) -> Revision:
        """Remove this endpoint; not one of another id that has its name by now."""

        def change() -> Revision:
            path = (endpoint.network, endpoint.namespace, endpoint.name)
            key, found = keys.ENDPOINT.at(*path), self._endpoint(*path)
            if found is None or found[0].id != endpoint.id:
                return 0
            place = keys.ADDRESS.at(endpoint.network, endpoint.address)
            gone = [key, place, keys.ID.at(endpoint.id)]
            return self.store.transact(expect={key: found[1]}, delete=gone)

        return retry(change)

    # What they share

    def _endpoint(self, *path: str) -> tuple[Endpoint, Revision] | None:
        """An endpoint and its revision, of one look: what is written for it is to be refused
        where it has changed since."""
        key = keys.ENDPOINT.at(*path)
        found = self.store.get(key)
        return None if found is None else (records.load(key, found[0], records.endpoint), found[1])

    def _known_endpoint(self, *path: str) -> tuple[Endpoint, Revision]:
        """Likewise; that there is none is an error."""
        found = self._endpoint(*path)
        if found is None:
            network = path[0]
            self.network(network)
            names = [each.path for each in self.endpoints(network)]
            raise missing("endpoint", "/".join(path), names)
        return found

    def _all(self, prefix: str, decode: Callable[[Mapping[str, Any]], T]) -> list[T]:
        return lookup.everything(self.store, prefix, decode)


def _seen(host: Host, revision: Revision, generation: int) -> dict[str, bytes]:
    state = HostState(
        host.name, host, lost=True, seen=time.time(), installed=revision, generation=generation
    )
    return {keys.SEEN.at(host.name): records.dump(state)}


def _below(kind: keys.Key, network: str | None) -> str:
    return kind.below(network) if network else kind.below()
