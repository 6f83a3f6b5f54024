# SPDX-License-Identifier: Apache-2.0
"""The core, compiled by gcc, over tables of the compiler."""

from __future__ import annotations

import ctypes
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve
from netaddr import IPAddress, IPNetwork

from slimnet import contract
from slimnet.encoding import cidr_key, encodings
from slimnet.layout import to_bytes16
from slimnet.model import Direction, Flow, Protocol, Reason, Verdict
from slimnet.policy.explain.decision import AddressRecord, Answerer
from slimnet.tables import ServiceKey, ServiceRecord, Tables

#: The fields of struct slim_test_way.
WAY = ("kind", "reason", "error", "direction", "rule", "peer_rule", "endpoint", "port", "later")

KERNEL = Path(__file__).parents[2] / "kernel"


class Library:
    """The shared library, built from ``kernel/test/core.c`` and a directory of headers."""

    def __init__(
        self,
        directory: Path,
        headers: Path = KERNEL / "uapi",
        *options: str,
        compiler: Sequence[str] = ("gcc",),
    ) -> None:
        target = directory / "libslimcore.so"
        subprocess.run(
            [*compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
            + [*options, f"-I{headers}", "-o", target, KERNEL / "test" / "core.c"],
            check=True,
        )
        self.c = ctypes.CDLL(str(target))
        self.c.slim_test_open.restype = ctypes.c_void_p
        self.c.slim_test_open.argtypes = [ctypes.c_size_t]
        self.c.slim_test_close.argtypes = [ctypes.c_void_p]
        self.c.slim_test_close.restype = None
        numbers = [ctypes.c_uint32] * 3 + [ctypes.c_uint8] * 2 + [ctypes.c_uint16]
        self.c.slim_test_set.argtypes = [
            *(ctypes.c_void_p, *numbers, ctypes.c_uint8, ctypes.c_uint8, ctypes.c_uint32)
        ]
        self.c.slim_test_decide.argtypes = [ctypes.c_void_p, *numbers[1:]]
        self.c.slim_test_decide.argtypes += [ctypes.c_uint8] * 2
        self.c.slim_test_decide.argtypes += [ctypes.POINTER(contract.slim_verdict)]
        self.c.slim_test_decide.restype = None
        self.c.slim_test_pick.argtypes = [
            *(ctypes.c_void_p, ctypes.POINTER(contract.slim_service)),
            *(ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32),
            ctypes.POINTER(contract.slim_backend),
        ]
        for function, records in (("place", 1), ("service", 0), ("range", 0)):
            middle = [ctypes.c_uint32] * records
            arguments = [ctypes.c_void_p, ctypes.c_char_p, *middle, ctypes.c_char_p]
            getattr(self.c, f"slim_test_{function}").argtypes = arguments
        self.c.slim_test_way.argtypes = [
            *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p),
            *(ctypes.c_uint16, ctypes.c_uint8, ctypes.c_uint8, ctypes.c_uint8, ctypes.c_uint32),
            ctypes.c_void_p,
        ]
        self.c.slim_test_way.restype = None
        self.c.slim_test_admit.argtypes = [
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32),
            *(ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p),
        ]


def two_keys(key: bytes, other: bytes, signs: int = 0) -> bytes:
    """``struct slim_keys``."""
    halves = (struct.unpack("<2Q", each) for each in (key, other))
    return struct.pack("=4QII", *(half for each in halves for half in each), signs, 0)


def prefix_length(protocol: int | None, port_bits: int) -> int:
    """``prefixlen`` of struct slim_policy_key."""
    if protocol is None:
        return contract.SLIM_PREFIX_ANY_PROTOCOL
    return contract.SLIM_PREFIX_ANY_PORT + port_bits


def service(record: ServiceRecord) -> contract.slim_service:
    """The record as C has it."""
    backends = {
        item: struct.pack("=IHH", item[0], socket.htons(item[1]), 0) for item in set(record.slots)
    }
    found = contract.slim_service(id=record.id, affinity=record.affinity, size=record.size)
    slots = b"".join(backends[item] for item in record.slots)
    ctypes.memmove(found.slots, slots, len(slots))
    return found


class Decider:
    """One host's tables in the library: asks as that host's data path does."""

    def __init__(self, library: Library, tables: Tables) -> None:
        self._c = library.c
        self.tables = tables
        self._answerers: dict[int, Answerer] = {}
        self._services: dict[int, contract.slim_service] = {}
        self._env = self._c.slim_test_open(len(tables.policy))
        self._fill()
        for key, record in tables.policy.items():
            failed = self._c.slim_test_set(
                self._env,
                prefix_length(key.protocol, key.port_bits),
                key.subject,
                key.peer,
                key.direction,
                key.protocol or 0,
                key.port,
                record.allow,
                record.reason,
                record.rule,
            )
            assert not failed

    def _fill(self) -> None:
        """The tables but the policy, in the bytes that a data path gets; the inner
        index of an endpoint is its id."""
        indexes = {each: each for each in self.tables.endpoints}
        every = {kind.table: kind for kind in encodings(indexes, judges=True)}
        endpoint = every["endpoints"].value
        nobody = bytes(ctypes.sizeof(contract.slim_endpoint))
        kind = every["addresses"]
        for key, number in self.tables.addresses.items():
            owner = self.tables.endpoints.get(number)
            value = endpoint(number, owner) if owner else nobody
            assert not self._c.slim_test_place(self._env, kind.key(key), number, value)
        for function, kind in (
            (self._c.slim_test_service, every["services"]),
            (self._c.slim_test_range, every["cidrs"]),
        ):
            for key, record in kind.of(self.tables).items():
                assert not function(self._env, kind.key(key), kind.value(key, record))

    def add_range(self, vni: int, cidr: IPNetwork, *, identity: int, flags: int) -> None:
        """A range that no tables have: only the kernel's routes say it."""
        value = struct.pack("=II", identity, flags)
        assert not self._c.slim_test_range(self._env, cidr_key((vni, cidr)), value)

    def way(
        self,
        vni: int,
        client: int,
        destination: IPAddress,
        port: int,
        *,
        stream: bool = True,
        source: int = 0,
        random: int = 0,
    ) -> dict[str, int]:
        """What becomes of a connect, or of a datagram: struct slim_test_way."""
        answer = (ctypes.c_uint32 * len(WAY))()
        protocol = Protocol.TCP if stream else Protocol.UDP
        self._c.slim_test_way(
            *(self._env, vni, client, to_bytes16(destination), port, protocol, stream, source),
            *(random, ctypes.byref(answer)),
        )
        return dict(zip(WAY, answer, strict=True))

    def admit(
        self,
        key: bytes,
        syn: tuple[IPAddress, IPAddress, int, int],
        sequence: int,
        option: bytes,
        other: bytes | None = None,
    ) -> tuple[int, Reason, int]:
        """Whether a SYN (source, destination, both ports) may come in, by either key: enum
        slim_admit_answer, reason, rule."""
        reason, rule = ctypes.c_uint32(), ctypes.c_uint32()
        source, destination, *ports = syn
        answer = self._c.slim_test_admit(
            self._env,
            two_keys(key, key if other is None else other),
            to_bytes16(source) + to_bytes16(destination) + struct.pack("!2H", *ports),
            socket.htonl(sequence),
            option,
            ctypes.byref(reason),
            ctypes.byref(rule),
        )
        return answer, Reason(reason.value), rule.value

    def close(self) -> None:
        self._c.slim_test_close(self._env)

    def decide(self, subject: int, peer: int, flow: Flow, *, own: bool, host: bool) -> Verdict:
        """The C function's answer for two identities."""
        verdict = contract.slim_verdict()
        self._c.slim_test_decide(
            self._env,
            subject,
            peer,
            flow.direction,
            flow.protocol,
            flow.port,
            own,
            host,
            ctypes.byref(verdict),
        )
        return Verdict(bool(verdict.action), Reason(verdict.reason), verdict.rule)

    def pick(
        self, record: ServiceRecord, client: int, now: float = 0, random: int = 0
    ) -> tuple[int, int] | None:
        """The C function's choice, as endpoint and port."""
        if record.id not in self._services:
            self._services[record.id] = service(record)
        backend = contract.slim_backend()
        found = self._c.slim_test_pick(
            self._env,
            ctypes.byref(self._services[record.id]),
            client,
            int(now * 1_000_000_000),
            random,
            ctypes.byref(backend),
        )
        return (backend.endpoint, socket.ntohs(backend.port)) if found else None

    def change(self, record: ServiceRecord) -> None:
        """From now on this record counts for its id."""
        self._services[record.id] = service(record)

    def resolve(self, vni: int, flow: Flow, random: int = 0) -> Flow | Reason:
        """A flow with its destination behind a service, or why it is refused; a flow to
        anybody else as it is."""
        if self.tables.addresses.get((vni, flow.destination)) != contract.SLIM_ADDRESS_SERVICE:
            return flow
        key = ServiceKey(vni, flow.destination, flow.protocol, flow.port)
        if key not in self.tables.services:
            return Reason["NO_SERVICE_PORT"]
        client = self.tables.addresses[vni, flow.source]
        backend = self.pick(self.tables.services[key], client, random=random)
        if backend is None:
            return Reason["NO_BACKEND"]
        address = self.tables.endpoints[backend[0]].address
        return evolve(flow, destination=address, port=backend[1])

    def answerer(self, vni: int) -> Answerer:
        """The same tables, asked in Python."""
        if vni not in self._answerers:
            self._answerers[vni] = Answerer(self.tables, vni)
        return self._answerers[vni]

    def sites(self, vni: int, flow: Flow) -> tuple[AddressRecord, AddressRecord]:
        """The asked end and its peer."""
        answerer = self.answerer(vni)
        here, there = flow.source, flow.destination
        if flow.direction is Direction.INGRESS:
            here, there = there, here
        return answerer.address_record(here), answerer.address_record(there)

    def verdict(self, vni: int, flow: Flow) -> Verdict | None:
        """A flow's, at the end that its direction says; ``None`` where that is no endpoint."""
        subject, peer = self.sites(vni, flow)
        if not subject.endpoint:
            return None
        if peer.overlay and not peer.endpoint:
            # Said by the data path before it asks the policy.
            return Verdict(False, Reason["NO_ENDPOINT"])
        own = subject.endpoint == peer.endpoint
        return self.decide(subject.identity, peer.identity, flow, own=own, host=peer.host)


def flow(
    network: str, source: IPAddress, destination: IPAddress, protocol: Protocol, port: int
) -> tuple[Flow, Flow]:
    """Both questions that a connection is put to: at its source, at its destination."""
    egress, ingress = (
        Flow(network, source, destination, protocol, port, direction)
        for direction in (Direction.EGRESS, Direction.INGRESS)
    )
    return egress, ingress
