# SPDX-License-Identifier: Apache-2.0
"""The quick packing equals ctypes', for every struct of the contract."""

import ctypes
import random

import pytest
from netaddr import IPAddress, IPNetwork

from slimnet import contract
from slimnet.encoding import encodings
from slimnet.layout import Layout, from_bytes16, to_bytes16
from slimnet.model import Direction, Reason, Wire
from slimnet.tables import (
    CidrRecord,
    EndpointRecord,
    PolicyKey,
    PolicyRecord,
    PublishKey,
    PublishRecord,
    ServiceKey,
    ServiceRecord,
)
from slimnet_ebpf import contract as private

ADDRESS, ENDPOINT, CIDR, POLICY, SERVICE, PUBLISH = encodings({5: 77})


@pytest.mark.parametrize(
    ("of", "name"), [(of, name) for of in (contract, private) for name in of.BIG_ENDIAN]
)
def test_bytes_are_those_of_ctypes(of, name):
    structure = getattr(of, name)
    data = random.Random(name).randbytes(ctypes.sizeof(structure))
    record = structure.from_buffer_copy(data)
    fields = Layout(structure).unpack(data)
    for field, kind in structure._fields_:
        expected = getattr(record, field)
        if issubclass(kind, (ctypes.Array, ctypes.Structure)):
            assert bytes(expected) == fields[field]
        elif field in of.BIG_ENDIAN[name]:
            assert bytes(kind(expected)) == fields[field].to_bytes(ctypes.sizeof(kind), "big")
        else:
            assert expected == fields[field]
    assert data == Layout(structure).pack(**fields)


def test_a_field_that_is_not_there_is_refused():
    with pytest.raises(TypeError, match="slim_cidr has no field identiy"):
        Layout(contract.slim_cidr).pack(identiy=1)


@pytest.mark.parametrize("address", ["10.1.2.3", "0.0.0.0", "fd00::1", "::"])
def test_addresses_come_back(address):
    data = to_bytes16(IPAddress(address))
    assert len(data) == 16
    assert IPAddress(address) == from_bytes16(data)


def test_address_key():
    key = contract.slim_address_key.from_buffer_copy(ADDRESS.key((7, IPAddress("10.1.0.1"))))
    assert key.vni == 7
    assert bytes(key.address) == bytes(10) + b"\xff\xff\x0a\x01\x00\x01"


def test_only_a_local_endpoint_has_an_index():
    record = EndpointRecord(IPAddress("10.1.0.1"), IPAddress("192.0.2.1"), 7, 300, True, Wire.SYN)
    local = contract.slim_endpoint.from_buffer_copy(ENDPOINT.value(5, record))
    assert (local.index, local.vni, local.identity) == (77, 7, 300)
    assert local.flags == contract.SLIM_ENDPOINT_LOCAL | contract.SLIM_ENDPOINT_WIRE_SYN
    assert bytes(local.host) == to_bytes16(IPAddress("192.0.2.1"))
    away = EndpointRecord(IPAddress("10.1.0.1"), IPAddress("192.0.2.1"), 7, 300, False, None)
    remote = contract.slim_endpoint.from_buffer_copy(ENDPOINT.value(5, away))
    assert (remote.index, remote.flags) == (0, 0)


def test_cidr():
    key = contract.slim_cidr_key.from_buffer_copy(CIDR.key((7, IPNetwork("10.1.0.0/16"))))
    assert key.prefixlen == 32 + 96 + 16
    assert bytes(ctypes.c_uint32(key.vni)) == b"\0\0\0\7"
    six = contract.slim_cidr_key.from_buffer_copy(CIDR.key((7, IPNetwork("fd00::/8"))))
    assert six.prefixlen == 32 + 8
    value = contract.slim_cidr.from_buffer_copy(CIDR.value(None, CidrRecord(2, host=True)))
    assert (value.identity, value.flags) == (2, contract.SLIM_CIDR_HOST)


@pytest.mark.parametrize(
    ("key", "prefixlen"),
    [
        (PolicyKey(300, 0, Direction.INGRESS), contract.SLIM_PREFIX_ANY_PROTOCOL),
        (PolicyKey(300, 0, Direction.INGRESS, 6), contract.SLIM_PREFIX_ANY_PORT),
        (PolicyKey(300, 0, Direction.INGRESS, 6, 0x8000, 1), 81),
        (PolicyKey(300, 0, Direction.INGRESS, 6, 80, 16), contract.SLIM_PREFIX_PORT),
    ],
)
def test_policy_key(key, prefixlen):
    record = contract.slim_policy_key.from_buffer_copy(POLICY.key(key))
    assert record.prefixlen == prefixlen
    assert bytes(ctypes.c_uint32(record.subject)) == b"\0\0\1\x2c"
    assert bytes(ctypes.c_uint16(record.port)) == key.port.to_bytes(2, "big")


def test_policy_record():
    data = POLICY.value(None, PolicyRecord(True, Reason.RULE_ALLOW, 9))
    record = contract.slim_policy.from_buffer_copy(data)
    assert (record.action, record.reason, record.rule) == (contract.SLIM_ALLOW, 1, 9)


def test_service():
    key = SERVICE.key(ServiceKey(7, IPAddress("10.1.0.9"), 6, 5432))
    record = contract.slim_service_key.from_buffer_copy(key)
    assert (record.vni, record.protocol) == (7, 6)
    assert bytes(ctypes.c_uint16(record.port)) == (5432).to_bytes(2, "big")
    slots = tuple((5 + number % 2, 80) for number in range(contract.SLIM_SERVICE_SLOTS))
    value = contract.slim_service.from_buffer_copy(
        SERVICE.value(None, ServiceRecord(44, 3600, slots, 2))
    )
    assert (value.id, value.affinity, value.size) == (44, 3600, 2)
    assert [slot.endpoint for slot in value.slots] == [endpoint for endpoint, _ in slots]
    assert bytes(ctypes.c_uint16(value.slots[0].port)) == b"\0\x50"
    nobody = contract.slim_service.from_buffer_copy(
        SERVICE.value(None, ServiceRecord(44, 0, (), 0))
    )
    assert not nobody.size
    assert not any(slot.endpoint for slot in nobody.slots)


@pytest.mark.parametrize(
    ("address", "expected"), [(None, bytes(16)), (IPAddress("192.0.2.1"), None)]
)
def test_published_port(address, expected):
    key = PUBLISH.key(PublishKey(address, 6, 8080))
    record = contract.slim_publish_key.from_buffer_copy(key)
    assert bytes(record.address) == (expected or to_bytes16(address))
    assert bytes(ctypes.c_uint16(record.port)) == (8080).to_bytes(2, "big")
    value = contract.slim_publish.from_buffer_copy(PUBLISH.value(None, PublishRecord(5, 80)))
    assert (value.endpoint, bytes(ctypes.c_uint16(value.port))) == (5, b"\0\x50")
