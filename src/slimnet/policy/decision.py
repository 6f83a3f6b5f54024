# SPDX-License-Identifier: Apache-2.0
"""Asking tables in Python what a data path asks them in C: for explaining, not for deciding."""

from __future__ import annotations

from collections.abc import MutableMapping

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.model import Direction, Reason, Verdict
from slimnet.tables import PolicyKey, PolicyRecord, ServiceKey, ServiceRecord, Tables

__all__ = ["Affinity", "Answerer", "Site", "pick"]

#: (id of a service's port, client) to when it connected last, in seconds, and to whom.
Affinity = MutableMapping[tuple[int, int], tuple[float, int]]


@frozen
class Site:
    """What tables know of an address.

    Attributes:
        identity: by which policy knows it.
        endpoint: the id of the endpoint that has it, or 0.
        overlay: inside of the overlay's ranges.
        host: an underlay address of a host of the cluster.
    """

    identity: int
    endpoint: int = 0
    overlay: bool = False
    host: bool = False


class Answerer:
    """Looks things up in one host's tables, in the order of ``slim_decide()`` (decide.h);
    a test holds the two together.

    Args:
        tables: of the host whose endpoint's policy is asked.
        vni: the network.
    """

    def __init__(self, tables: Tables, vni: int) -> None:
        self._tables = tables
        self._vni = vni
        self._ranges = {
            _mapped(cidr.version, cidr.first, cidr.prefixlen): record
            for (of, cidr), record in tables.cidrs.items()
            if of == vni
        }
        self._lengths = sorted({length for length, _ in self._ranges}, reverse=True)

    def site(self, address: IPAddress) -> Site:
        """What the tables know of an address: an endpoint's, or its longest range."""
        endpoint = self._tables.addresses.get((self._vni, address), 0)
        owner = self._tables.endpoints.get(endpoint)
        if owner is not None:
            return Site(owner.identity, endpoint)
        _, whole = _mapped(address.version, int(address), 32 if address.version == 4 else 128)
        for length in self._lengths:
            record = self._ranges.get((length, whole >> (128 - length) << (128 - length)))
            if record is not None:
                return Site(record.identity, 0, record.overlay, record.host)
        return Site(contract.SLIM_IDENTITY_WORLD)

    def service(
        self, address: IPAddress, protocol: int, port: int
    ) -> ServiceRecord | Verdict | None:
        """The port of a service, or the refusal where it has no such port or nobody serves
        it; ``None`` where the address is no service's."""
        owner = self._tables.addresses.get((self._vni, address))
        if owner != contract.SLIM_ADDRESS_SERVICE:
            return None
        record = self._tables.services.get(ServiceKey(self._vni, address, protocol, port))
        if record is None:
            return Verdict(False, Reason["NO_SERVICE_PORT"])
        return record if record.size else Verdict(False, Reason["NO_BACKEND"])

    def verdict(
        self, subject: Site, peer: Site, direction: Direction, protocol: int, port: int
    ) -> Verdict:
        """The decision for one direction."""
        if subject.endpoint and subject.endpoint == peer.endpoint:
            return Verdict(True, Reason["SELF"])
        record = self._longest(subject.identity, peer.identity, direction, protocol, port)
        if record is None:
            if peer.host and direction is Direction.EGRESS:
                return Verdict(False, Reason["HOST_DENY"])
            record = self._longest(
                subject.identity, contract.SLIM_IDENTITY_ANY, direction, protocol, port
            )
        if record is None:
            return Verdict(True, Reason["DEFAULT_ALLOW"])
        return Verdict(record.allow, record.reason, record.rule)

    def _longest(
        self, subject: int, peer: int, direction: Direction, protocol: int, port: int
    ) -> PolicyRecord | None:
        policy = self._tables.policy
        for bits in range(16, -1, -1):
            first = port >> (16 - bits) << (16 - bits)
            record = policy.get(PolicyKey(subject, peer, direction, protocol, first, bits))
            if record is not None:
                return record
        return policy.get(PolicyKey(subject, peer, direction))


def pick(
    record: ServiceRecord, client: int, now: float, chance: int, affinity: Affinity
) -> tuple[int, int]:
    """Who serves a client, as endpoint id and port: any by weight, or with affinity the one
    that served it last.

    Not the slot that ``slim_service_pick()`` (service.h) would find, but one of the same.

    Args:
        record: with at least one endpoint.
        client: the id of the endpoint that connects.
        now: seconds of a clock that never steps.
        chance: a random number.
        affinity: who served whom; what is answered is added.
    """
    backend = record.slots[(client if record.affinity else chance) % len(record.slots)]
    if record.affinity:
        time, last = affinity.get((record.id, client), (now, backend[0]))
        if time + record.affinity >= now:
            backend = next((item for item in record.slots if item[0] == last), backend)
        affinity[record.id, client] = (now, backend[0])
    return backend


def _mapped(version: int, first: int, length: int) -> tuple[int, int]:
    """Prefix length and first address as struct slim_cidr_key has them: IPv4 is v4-mapped."""
    return (96 + length, 0xFFFF << 32 | first) if version == 4 else (length, first)
