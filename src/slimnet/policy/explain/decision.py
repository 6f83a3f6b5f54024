# SPDX-License-Identifier: Apache-2.0
"""Asking tables in Python what a data path asks them in C: for explaining, not for deciding."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.model import Decision, Direction, Flow, Reason, Verdict
from slimnet.tables import PolicyKey, PolicyRecord, ServiceKey, ServiceRecord, Tables

__all__ = ["AddressRecord", "Affinity", "Answerer", "pick"]

#: (id of a service's port, client) to when it connected last, in seconds, and to whom.
Affinity = MutableMapping[tuple[int, int], tuple[float, int]]


@frozen
class AddressRecord:
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

    def address_record(self, address: IPAddress) -> AddressRecord:
        """What the tables know of an address: an endpoint's, or its longest range."""
        endpoint = self._tables.addresses.get((self._vni, address), 0)
        owner = self._tables.endpoints.get(endpoint)
        if owner is not None:
            return AddressRecord(owner.identity, endpoint)
        _, whole = _mapped(address.version, int(address), 32 if address.version == 4 else 128)
        for length in self._lengths:
            record = self._ranges.get((length, whole >> (128 - length) << (128 - length)))
            if record is not None:
                return AddressRecord(record.identity, 0, record.overlay, record.host)
        return AddressRecord(contract.SLIM_IDENTITY_WORLD)

    def serves(self, address: IPAddress) -> bool:
        """Whether an address is a service's."""
        owner = self._tables.addresses.get((self._vni, address))
        return owner == contract.SLIM_ADDRESS_SERVICE

    def service(self, address: IPAddress, protocol: int, port: int) -> ServiceRecord | None:
        """The port of a service, if there is one."""
        return self._tables.services.get(ServiceKey(self._vni, address, protocol, port))

    def decision(
        self, flow: Flow, serve: Callable[[ServiceRecord, int], tuple[int, int]]
    ) -> Decision:
        """What the data path answers to a flow at the end that its direction says.

        Args:
            flow: as it is dialled.
            serve: chooses who of a service's endpoints (id, port) serves a client.
        """
        egress = flow.direction is Direction.EGRESS
        here, there = (flow.source, flow.destination) if egress else (flow.destination, flow.source)
        subject = self.address_record(here)
        address, port, record, refusal = there, flow.port, None, None
        if egress and self.serves(there):
            record = self.service(there, flow.protocol, port)
            if record is None or not record.size:
                refusal = Reason["NO_BACKEND" if record else "NO_SERVICE_PORT"]
            else:
                endpoint, port = serve(record, subject.endpoint)
                address = self._tables.endpoints[endpoint].address
        peer = self.address_record(address)
        if refusal is None and (not subject.endpoint or (peer.overlay and not peer.endpoint)):
            refusal = Reason["NO_ENDPOINT"]
        if refusal is not None:
            verdict = Verdict(False, refusal)
        else:
            verdict = self.verdict(subject, peer, flow.direction, flow.protocol, port)
        owner = self._tables.endpoints.get(peer.endpoint)
        return Decision(
            verdict,
            self._tables.generation,
            subject=subject.identity,
            peer=peer.identity,
            endpoint=peer.endpoint,
            service=record.id if record else 0,
            target=(address if egress else here, port),
            host=owner.host if owner else None,
        )

    def verdict(
        self,
        subject: AddressRecord,
        peer: AddressRecord,
        direction: Direction,
        protocol: int,
        port: int,
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
