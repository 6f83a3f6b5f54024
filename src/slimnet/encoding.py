# SPDX-License-Identifier: Apache-2.0
"""The tables' records as the bytes that a data path looks up (``slimnet/tables.h``): the same
for each that is written in C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen
from netaddr import IPAddress, IPNetwork

from slimnet import contract
from slimnet.layout import Layout, to_bytes16
from slimnet.model import Wire
from slimnet.tables import (
    Change,
    CidrRecord,
    EndpointRecord,
    PolicyKey,
    PolicyRecord,
    PublishKey,
    PublishRecord,
    ServiceKey,
    ServiceRecord,
    Tables,
)

__all__ = ["ENDPOINT", "Encoding", "cidr_key", "encodings", "u32"]

_ADDRESS_KEY = Layout(contract.slim_address_key)
ENDPOINT = Layout(contract.slim_endpoint)
_CIDR_KEY = Layout(contract.slim_cidr_key)
_CIDR = Layout(contract.slim_cidr)
_POLICY_KEY = Layout(contract.slim_policy_key)
_POLICY = Layout(contract.slim_policy)
_SERVICE_KEY = Layout(contract.slim_service_key)
_SERVICE = Layout(contract.slim_service)
_BACKEND = Layout(contract.slim_backend)
_PUBLISH_KEY = Layout(contract.slim_publish_key)
_PUBLISH = Layout(contract.slim_publish)
_EVERY_ADDRESS = bytes(16)
#: The flag of the wire by which an endpoint is reached. VXLAN carries packets.
_WIRES = {
    None: 0,
    Wire.SYN: contract.SLIM_ENDPOINT_WIRE_SYN,
    Wire.ANNOUNCE: contract.SLIM_ENDPOINT_WIRE_ANNOUNCE,
    Wire.VXLAN: 0,
}


def u32(number: int) -> bytes:
    """A key or a value of four bytes, in the host's order."""
    return number.to_bytes(4, sys.byteorder)


def _address_key(key: tuple[int, IPAddress]) -> bytes:
    return _ADDRESS_KEY.pack(vni=key[0], address=to_bytes16(key[1]))


def cidr_key(key: tuple[int, IPNetwork]) -> bytes:
    """A range of a network, by its VNI; of none with VNI 0."""
    vni, network = key
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return _CIDR_KEY.pack(prefixlen=32 + length, vni=vni, address=to_bytes16(network.network))


def _cidr(record: CidrRecord) -> bytes:
    flags = contract.SLIM_CIDR_OVERLAY if record.overlay else 0
    flags |= contract.SLIM_CIDR_HOST if record.host else 0
    return _CIDR.pack(identity=record.identity, flags=flags)


def _policy_key(key: PolicyKey) -> bytes:
    if key.protocol is None:
        prefixlen = contract.SLIM_PREFIX_ANY_PROTOCOL
    else:
        prefixlen = contract.SLIM_PREFIX_ANY_PORT + key.port_bits
    return _POLICY_KEY.pack(
        prefixlen=prefixlen,
        subject=key.subject,
        peer=key.peer,
        direction=int(key.direction),
        protocol=key.protocol or 0,
        port=key.port,
    )


def _policy(record: PolicyRecord) -> bytes:
    action = contract.SLIM_ALLOW if record.allow else contract.SLIM_DENY
    return _POLICY.pack(action=action, reason=int(record.reason), rule=record.rule)


def _service_key(key: ServiceKey) -> bytes:
    return _SERVICE_KEY.pack(
        vni=key.vni, address=to_bytes16(key.address), port=key.port, protocol=key.protocol
    )


def _service(record: ServiceRecord) -> bytes:
    backends = {
        (endpoint, port): _BACKEND.pack(endpoint=endpoint, port=port)
        for endpoint, port in set(record.slots)
    }
    return _SERVICE.pack(
        id=record.id,
        affinity=record.affinity,
        size=record.size,
        slots=b"".join(backends[slot] for slot in record.slots),
    )


def _publish_key(key: PublishKey) -> bytes:
    address = _EVERY_ADDRESS if key.address is None else to_bytes16(key.address)
    return _PUBLISH_KEY.pack(address=address, port=key.port, protocol=key.protocol)


def _publish(record: PublishRecord) -> bytes:
    return _PUBLISH.pack(endpoint=record.endpoint, port=record.port)


@frozen
class Encoding:
    """How one of the tables is written.

    Attributes:
        table: the field of :class:`~slimnet.tables.Tables`.
        key: a key's bytes.
        value: a record's bytes, for its key.
    """

    table: str
    key: Callable[[Any], bytes]
    value: Callable[[Any, Any], bytes]

    def of(self, tables: Tables) -> Mapping[Any, Any]:
        """The table, out of all."""
        table: Mapping[Any, Any] = getattr(tables, self.table)
        return table

    def records(self, tables: Tables) -> Iterator[bytes]:
        """Key and value, behind one another, of each of its records."""
        for key, record in self.of(tables).items():
            yield self.key(key) + self.value(key, record)

    def gone(self, change: Change) -> frozenset[Any]:
        """The keys that went, out of a change."""
        keys: frozenset[Any] = getattr(change, f"gone_{self.table}")
        return keys


def encodings(indexes: Mapping[int, int], *, judges: bool = False) -> tuple[Encoding, ...]:
    """The tables that are swapped together.

    Args:
        indexes: the inner index of every attached endpoint.
        judges: who connects by wire announce asks the other end's policy too
            (SLIM_ENDPOINT_JUDGED).
    """

    def endpoint(number: int, record: EndpointRecord) -> bytes:
        flags = contract.SLIM_ENDPOINT_LOCAL if record.local else 0
        flags |= _WIRES[record.wire]
        if judges and record.wire is Wire.ANNOUNCE:
            flags |= contract.SLIM_ENDPOINT_JUDGED
        return ENDPOINT.pack(
            address=to_bytes16(record.address),
            host=to_bytes16(record.host),
            vni=record.vni,
            identity=record.identity,
            index=indexes.get(number, 0) if record.local else 0,
            flags=flags,
        )

    return (
        Encoding(
            "addresses",
            _address_key,
            lambda _, number: u32(number),
        ),
        Encoding(
            "endpoints",
            u32,
            endpoint,
        ),
        Encoding(
            "cidrs",
            cidr_key,
            lambda _, record: _cidr(record),
        ),
        Encoding(
            "policy",
            _policy_key,
            lambda _, record: _policy(record),
        ),
        Encoding(
            "services",
            _service_key,
            lambda _, record: _service(record),
        ),
        Encoding(
            "published",
            _publish_key,
            lambda _, record: _publish(record),
        ),
    )
