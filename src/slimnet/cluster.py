# SPDX-License-Identifier: Apache-2.0
"""The words of a cluster over a store: networks, hosts, namespaces, endpoints
and policies, each change checked first and then made whole or not at all.

========================================  ===================================
key                                       value
========================================  ===================================
``networks/<network>``                    :class:`~slimnet.model.Network`
``hosts/<host>``                          :class:`~slimnet.model.Host`; leased
``installed/<host>``                      what that host has in force; leased
``namespaces/<network>/<name>``           :class:`~slimnet.model.Namespace`
``endpoints/<network>/<ns>/<name>``       :class:`~slimnet.model.Endpoint`
``addresses/<network>/<address>``         the key of the endpoint that has it
``policies/<network>/<ns>/<name>``        :meth:`slimnet.policy.Policy.to_json`
``clusterpolicies/<name>``                the same
``identities/<network>/<ns>/<labels>``    a number, for ever
``counters/<what>``                       the last number given out
========================================  ===================================
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs
from netaddr import IPAddress, IPNetwork

from slimnet import records
from slimnet.abc import Revision, Store
from slimnet.contract import SLIM_IDENTITY_FIRST
from slimnet.exceptions import AlreadyExists, Conflict, InUse, InvalidValue, NotFound
from slimnet.model import VNI_MAX, Endpoint, Host, Namespace, Network
from slimnet.policy.document import NetworkPolicy, Policy

__all__ = ["Cluster"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_VNI = 1000
_ATTEMPTS = 100
#: What an overlay may not contain (RFC 6890), and why.
_RESERVED = {
    IPNetwork("0.0.0.0/8"): "'this network' (RFC 1122)",
    IPNetwork("127.0.0.0/8"): "loopback",
    IPNetwork("169.254.0.0/16"): "link-local (RFC 3927)",
    IPNetwork("224.0.0.0/4"): "multicast",
    IPNetwork("240.0.0.0/4"): "the inner addresses and broadcast",
}


class Cluster:
    """Changes and reads the desired state.

    Every change answers with the store's revision as well, which
    :meth:`slimnet.Node.wait` takes. All raise :class:`~slimnet.StoreUnreachable`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    # Networks

    def create_network(
        self, name: str, cidrs: Iterable[str | IPNetwork] | str, vni: int | None = None
    ) -> tuple[Network, Revision]:
        """A new network; without ``vni`` it gets the first free one from 1000.

        Raises:
            InvalidValue: a range is no range, overlaps something or is not IPv4.
            AlreadyExists: the name, the VNI or a range is taken.
        """
        ranges = cidrs if isinstance(cidrs, (str, IPNetwork)) else tuple(cidrs)
        asked = Network(name, _FIRST_VNI if vni is None else vni, ranges)
        _check_ranges(asked)

        def change() -> tuple[Network, Revision]:
            guard = self._guard("counters/network")
            networks = self.networks()
            _check_against(asked, networks, self.hosts())
            taken = {each.vni: each.name for each in networks}
            if vni is not None and vni in taken:
                raise AlreadyExists(f"network {name}: VNI {vni} is that of network {taken[vni]}")
            number = vni or next(n for n in range(_FIRST_VNI, VNI_MAX + 1) if n not in taken)
            network = attrs.evolve(asked, vni=number)
            key = f"networks/{name}"
            default = f"namespaces/{name}/default"
            put = {key: records.dump(network), **guard.put}
            if self.store.get(default) is None:
                put[default] = records.dump(Namespace(name, "default"))
            return network, self.store.transact(expect={key: None, **guard.expect}, put=put)

        return _retry(change)

    def networks(self) -> list[Network]:
        """All networks, by name."""
        return self._all("networks/", records.network)

    def network(self, name: str) -> Network:
        """The network of that name.

        Raises:
            NotFound: there is none; says which there are.
        """
        found = self.store.get(f"networks/{name}")
        if found is None:
            raise NotFound(_none("network", name, [each.name for each in self.networks()]))
        return records.load(f"networks/{name}", found[0], records.network)

    def remove_network(self, name: str) -> Revision:
        """Remove a network with its namespaces and policies.

        Raises:
            NotFound: there is none.
            InUse: it has endpoints.
        """

        def change() -> Revision:
            self.network(name)
            # An endpoint that is being added meanwhile bumps the counter too.
            guard = self._guard("counters/endpoint")
            endpoints = self.store.list(f"endpoints/{name}/")[0]
            if endpoints:
                some = ", ".join(key.split("/", 2)[2] for key in list(endpoints)[:3])
                raise InUse(f"network {name} has {len(endpoints)} endpoints ({some} ...)")
            keys = [f"networks/{name}"]
            for kind in ("namespaces", "policies", "addresses"):
                keys += self.store.list(f"{kind}/{name}/")[0]
            return self.store.transact(expect=guard.expect, put=guard.put, delete=keys)

        return _retry(change)

    # Namespaces

    def set_namespace(
        self, network: str, name: str, labels: Mapping[str, str] | None = None
    ) -> tuple[Namespace, Revision]:
        """Make a namespace, or give it these labels instead of those it has."""
        namespace = Namespace(network, name, labels or {})
        self.network(network)
        put = {f"namespaces/{network}/{name}": records.dump(namespace)}
        return namespace, self.store.transact(put=put)

    def namespaces(self, network: str | None = None) -> list[Namespace]:
        """All namespaces, or those of one network."""
        return self._all(_below("namespaces", network), records.namespace)

    def remove_namespace(self, network: str, name: str) -> Revision:
        """Remove a namespace and its policies.

        Raises:
            NotFound: there is none.
            InUse: it has endpoints.
        """

        def change() -> Revision:
            guard = self._guard("counters/endpoint")
            key = f"namespaces/{network}/{name}"
            if self.store.get(key) is None:
                names = [each.name for each in self.namespaces(network)]
                raise NotFound(_none(f"namespace of network {network}", name, names))
            endpoints = self.store.list(f"endpoints/{network}/{name}/")[0]
            if endpoints:
                raise InUse(f"namespace {network}/{name} has {len(endpoints)} endpoints")
            keys = [key, *self.store.list(f"policies/{network}/{name}/")[0]]
            return self.store.transact(expect=guard.expect, put=guard.put, delete=keys)

        return _retry(change)

    # Hosts

    def set_host(self, host: Host, lease: int) -> Revision:
        """Register a host for as long as its lease is renewed.

        Raises:
            AlreadyExists: another live host has its name or address.
            InvalidValue: its address is inside a network's range.
        """

        def change() -> Revision:
            guard = self._guard("counters/network")
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
            self.store.transact(expect=guard.expect, put=guard.put)
            return self.store.transact(put={f"hosts/{host.name}": records.dump(host)}, lease=lease)

        return _retry(change)

    def hosts(self) -> list[Host]:
        """The hosts that are alive."""
        return self._all("hosts/", records.host)

    def set_installed(self, host: str, revision: Revision, lease: int) -> None:
        """Write down that what the store held at ``revision`` is in force there."""
        value = records.dump({"revision": revision})
        try:
            self.store.transact(put={f"installed/{host}": value}, lease=lease)
        except NotFound:
            _log.debug("the lease of host %s ran out", host)

    def installed(self) -> dict[str, Revision]:
        """Live host to the revision that it has in force; 0 before the first."""
        found = {
            key.partition("/")[2]: records.load(key, value, lambda each: int(each["revision"]))
            for key, (value, _) in self.store.list("installed/")[0].items()
        }
        return {each.name: found.get(each.name, 0) for each in self.hosts()}

    def remove_host(self, name: str) -> Revision:
        """Remove the endpoints that a lost host left.

        Raises:
            InUse: it lives.
            NotFound: it left none.
        """
        if any(each.name == name for each in self.hosts()):
            raise InUse(f"host {name} lives: stop its agent first")
        left = [each for each in self.endpoints() if each.host == name]
        if not left:
            raise NotFound(f"host {name!r}: neither alive nor has it left endpoints")
        return max(self.remove_endpoint(each) for each in left)

    # Endpoints

    def create_endpoint(self, asked: Endpoint | Mapping[str, Any]) -> tuple[Endpoint, Revision]:
        """A new endpoint. Its ``id`` and ``identity`` are given, and without
        ``address`` the first free one of its network. Its namespace is made
        when it is new.

        Raises:
            NotFound: no such network.
            AlreadyExists: its name or its address is taken.
            InvalidValue: its address is not of the network, or the network is full.
        """
        spec = dict(asked) if isinstance(asked, Mapping) else attrs.asdict(asked, recurse=False)
        wanted = spec.pop("address", None)
        # Everything but the address is checked before the store is asked.
        plan = Endpoint(address=wanted or "0.0.0.0", **spec)  # noqa: S104  # a stand-in
        Namespace(plan.network, plan.namespace)
        _check_ports(plan)

        def change() -> tuple[Endpoint, Revision]:
            network = self.network(spec["network"])
            guard = self._guard("counters/endpoint")
            address = self._address(network, wanted)
            endpoint = Endpoint(**{**spec, "address": address, "id": guard.number})
            key = _endpoint_key(endpoint.network, endpoint.namespace, endpoint.name)
            held = self.store.get(key)
            if held is not None:
                at = records.load(key, held[0], records.endpoint)
                raise AlreadyExists(f"endpoint {_title(at)} is there, on host {at.host}")
            identity, given = self._identity(endpoint)
            endpoint = attrs.evolve(endpoint, identity=identity)
            place = f"addresses/{network.name}/{address}"
            network_key = f"networks/{network.name}"
            expect = {key: None, place: None, **guard.expect, **given.expect}
            put = {key: records.dump(endpoint), place: records.dump(key), **guard.put, **given.put}
            namespace = f"namespaces/{endpoint.network}/{endpoint.namespace}"
            if self.store.get(namespace) is None:
                put[namespace] = records.dump(Namespace(endpoint.network, endpoint.namespace))
            expect[network_key] = (self.store.get(network_key) or (b"", None))[1]
            return endpoint, self.store.transact(expect=expect, put=put)

        return _retry(change)

    def endpoints(self, network: str | None = None) -> list[Endpoint]:
        """All endpoints, or those of one network."""
        return self._all(_below("endpoints", network), records.endpoint)

    def endpoint(self, network: str, namespace: str, name: str) -> Endpoint:
        """The endpoint of that name.

        Raises:
            NotFound: there is none.
        """
        key = _endpoint_key(network, namespace, name)
        found = self.store.get(key)
        if found is None:
            self.network(network)
            names = [_title(each) for each in self.endpoints(network)]
            raise NotFound(_none("endpoint", f"{network}/{namespace}/{name}", names))
        return records.load(key, found[0], records.endpoint)

    def remove_endpoint(self, endpoint: Endpoint) -> Revision:
        """Remove this endpoint; not one of another id that has its name by now."""

        def change() -> Revision:
            key = _endpoint_key(endpoint.network, endpoint.namespace, endpoint.name)
            found = self.store.get(key)
            if found is None or records.load(key, found[0], records.endpoint).id != endpoint.id:
                return 0
            place = f"addresses/{endpoint.network}/{endpoint.address}"
            return self.store.transact(expect={key: found[1]}, delete=[key, place])

        return _retry(change)

    # Policies

    def set_policies(self, policies: Iterable[Policy]) -> Revision:
        """Put policies in force, all at once; those of the same name are replaced.

        Raises:
            NotFound: one is for a network that is not there.
        """
        put = {}
        for policy in policies:
            if isinstance(policy, NetworkPolicy):
                self.network(policy.network)
            put[_policy_key(policy)] = records.dump(policy.to_json())
        return self.store.transact(put=put)

    def policies(self) -> list[Policy]:
        """All policies, of both kinds."""
        return [
            *self._all("clusterpolicies/", Policy.from_json),
            *self._all("policies/", Policy.from_json),
        ]

    def remove_policy(
        self, name: str, network: str | None = None, namespace: str = "default"
    ) -> Revision:
        """Remove a policy; without ``network`` one of the cluster's.

        Raises:
            NotFound: there is none.
        """
        below = f"policies/{network}/{namespace}/" if network else "clusterpolicies/"
        if self.store.get(below + name) is None:
            names = [key.removeprefix(below) for key in self.store.list(below)[0]]
            raise NotFound(_none("policy", name, names))
        return self.store.transact(delete=[below + name])

    # What they share

    def _all(self, prefix: str, decode: Callable[[Mapping[str, Any]], T]) -> list[T]:
        found = []
        for key, (data, _) in self.store.list(prefix)[0].items():
            try:
                found.append(records.load(key, data, decode))
            except InvalidValue as error:
                _log.warning("%s", error)
        return found

    def _guard(self, key: str) -> _Guard:
        """The next number of a counter; taking it conflicts with whoever else does."""
        found = self.store.get(key)
        number = int(found[0]) + 1 if found else 1
        return _Guard(number, {key: found[1] if found else None}, {key: b"%d" % number})

    def _identity(self, endpoint: Endpoint) -> tuple[int, _Guard]:
        """The number of a label set: for ever the same, on every host."""
        labels = ",".join(f"{key}={value}" for key, value in sorted(endpoint.labels.items()))
        key = f"identities/{endpoint.network}/{endpoint.namespace}/{labels}"
        found = self.store.get(key)
        if found:
            return int(found[0]), _Guard(0, {}, {})
        counter = self._guard("counters/identity")
        number = SLIM_IDENTITY_FIRST + counter.number - 1
        return number, _Guard(
            number, {key: None, **counter.expect}, {key: b"%d" % number, **counter.put}
        )

    def _address(self, network: Network, wanted: Any) -> IPAddress:
        prefix = f"addresses/{network.name}/"
        used = {key.removeprefix(prefix) for key in self.store.list(prefix)[0]}
        if wanted is not None:
            address = IPAddress(str(wanted))
            cidr = next((each for each in network.cidrs if address in each), None)
            if cidr is None:
                ranges = ", ".join(map(str, network.cidrs))
                raise InvalidValue("endpoint.address", f"an address in {ranges}", str(wanted))
            if cidr.prefixlen < 31 and address in (cidr.network, cidr.broadcast):
                raise InvalidValue(
                    "endpoint.address",
                    f"neither network nor broadcast address of {cidr}",
                    str(wanted),
                )
            if str(address) in used:
                holder = self.store.get(prefix + str(address))
                who = json.loads(holder[0]).partition("/")[2] if holder else "another endpoint"
                raise AlreadyExists(f"address {address} is that of {who}")
            return address
        for cidr in network.cidrs:
            edge = 1 if cidr.prefixlen < 31 else 0
            for number in range(cidr.first + edge, cidr.last - edge + 1):
                text = str(IPAddress(number, cidr.version))
                if text not in used:
                    return IPAddress(text)
        raise InvalidValue(
            "endpoint.address", f"room in network {network.name}", f"{len(used)} endpoints in it"
        )


@attrs.frozen
class _Guard:
    """Part of a transaction that two of the same kind cannot both do."""

    number: int
    expect: dict[str, Revision | None]
    put: dict[str, bytes]


def _retry(change: Callable[[], T]) -> T:
    """Do it again, from reading on, while others are quicker."""
    for attempt in range(_ATTEMPTS):
        try:
            return change()
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, 0.002 * min(attempt + 1, 10)))  # noqa: S311
    raise AssertionError


def _check_ranges(network: Network) -> None:
    for index, cidr in enumerate(network.cidrs):
        if cidr.version != 4:
            raise InvalidValue(
                "network.cidrs", "IPv4 ranges (IPv6 overlays are not carried yet)", str(cidr)
            )
        for reserved, what in _RESERVED.items():
            if cidr.first <= reserved.last and reserved.first <= cidr.last:
                raise InvalidValue(
                    "network.cidrs", f"a range without {reserved}, {what}", str(cidr)
                )
        for other in network.cidrs[:index]:
            if cidr.first <= other.last and other.first <= cidr.last:
                raise InvalidValue(
                    "network.cidrs", f"ranges that do not overlap ({other})", str(cidr)
                )


def _check_against(network: Network, networks: list[Network], hosts: list[Host]) -> None:
    for other in networks:
        if other.name == network.name:
            raise AlreadyExists(f"network {network.name} is there: VNI {other.vni}")
        for cidr in network.cidrs:
            for theirs in other.cidrs:
                if cidr.first <= theirs.last and theirs.first <= cidr.last:
                    wanted = f"a range apart from network {other.name}'s {theirs}"
                    raise InvalidValue("network.cidrs", wanted, str(cidr))
    for host in hosts:
        for cidr in network.cidrs:
            if host.address in cidr:
                wanted = f"a range without {host.address}, the underlay address of {host.name}"
                raise InvalidValue("network.cidrs", wanted, str(cidr))


def _check_ports(endpoint: Endpoint) -> None:
    for name, port in endpoint.ports.items():
        kind, number = port if isinstance(port, tuple) and len(port) == 2 else (None, None)
        if (
            kind not in ("tcp", "udp", "sctp")
            or isinstance(number, bool)
            or not isinstance(number, int)
            or not 0 < number < 65536
        ):
            raise InvalidValue(f"endpoint.ports.{name}", 'such as ("tcp", 80)', port)


def _below(kind: str, network: str | None) -> str:
    return f"{kind}/{network}/" if network else f"{kind}/"


def _endpoint_key(network: str, namespace: str, name: str) -> str:
    return f"endpoints/{network}/{namespace}/{name}"


def _policy_key(policy: Policy) -> str:
    if isinstance(policy, NetworkPolicy):
        return f"policies/{policy.network}/{policy.namespace}/{policy.name}"
    return f"clusterpolicies/{policy.name}"


def _title(endpoint: Endpoint) -> str:
    return f"{endpoint.network}/{endpoint.namespace}/{endpoint.name}"


def _none(kind: str, name: str, names: list[str]) -> str:
    there = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    return f"{kind} {name!r}: there is none; there are: {there or 'none at all'}"
