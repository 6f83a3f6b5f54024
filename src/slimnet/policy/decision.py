# SPDX-License-Identifier: Apache-2.0
"""Asking tables in Python what a data path asks them in C: for explaining, not for deciding."""

from __future__ import annotations

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.model import Direction, Reason, Verdict
from slimnet.tables import PolicyKey, PolicyRecord, Tables

__all__ = ["Answerer", "Site"]


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
        endpoint = self._tables.addresses.get((self._vni, address))
        if endpoint is not None:
            return Site(self._tables.endpoints[endpoint].identity, endpoint)
        _, whole = _mapped(address.version, int(address), 32 if address.version == 4 else 128)
        for length in self._lengths:
            record = self._ranges.get((length, whole >> (128 - length) << (128 - length)))
            if record is not None:
                return Site(record.identity, 0, record.overlay, record.host)
        return Site(contract.SLIM_IDENTITY_WORLD)

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


def _mapped(version: int, first: int, length: int) -> tuple[int, int]:
    """Prefix length and first address as struct slim_cidr_key has them: IPv4 is v4-mapped."""
    return (96 + length, 0xFFFF << 32 | first) if version == 4 else (length, first)
