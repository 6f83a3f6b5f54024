# SPDX-License-Identifier: Apache-2.0
"""The compiled policy and placement: what a backend installs.

The records are those of ``kernel/uapi/slimnet/contract.h``, as Python values;
:mod:`slimnet.policy` makes them and a backend writes them where its data path
looks them up.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from netaddr import IPAddress, IPNetwork

from slimnet.model import Direction, Reason

__all__ = [
    "Change",
    "CidrRecord",
    "EndpointRecord",
    "PolicyKey",
    "PolicyRecord",
    "Tables",
]


@frozen
class EndpointRecord:
    """Where an endpoint is and what policy knows it by (struct slim_endpoint)."""

    address: IPAddress
    host: IPAddress
    vni: int
    identity: int
    local: bool
    wire_syn: bool


@frozen
class CidrRecord:
    """The identity of a range (struct slim_cidr)."""

    identity: int
    overlay: bool = False
    host: bool = False


@frozen
class PolicyKey:
    """What a policy record answers for (struct slim_policy_key).

    Attributes:
        subject: identity of the endpoint whose policy this is.
        peer: identity of the other end; 0 for any that has no record of its own.
        direction: of the subject.
        protocol: IP protocol number, or ``None`` for any.
        port: the first port of the range, 0 where ``port_bits`` is 0.
        port_bits: how many leading bits of the port are matched, 0 to 16.
    """

    subject: int
    peer: int
    direction: Direction
    protocol: int | None = None
    port: int = 0
    port_bits: int = 0


@frozen
class PolicyRecord:
    """The answer (struct slim_policy)."""

    allow: bool
    reason: Reason
    rule: int = 0


@frozen
class Tables:
    """Everything that a host's data path decides by, at one generation.

    Attributes:
        generation: the store's revision that these were compiled from; at least 1.
        addresses: (vni, overlay address) to endpoint id.
        endpoints: endpoint id to record.
        cidrs: (vni, range) to record; the longest match is the answer.
        policy: key to record; the longest match is the answer.
        rules: rule id to the words that name it (``default/web-in ingress[0]``).
    """

    generation: int
    addresses: Mapping[tuple[int, IPAddress], int] = field(factory=dict, hash=False)
    endpoints: Mapping[int, EndpointRecord] = field(factory=dict, hash=False)
    cidrs: Mapping[tuple[int, IPNetwork], CidrRecord] = field(factory=dict, hash=False)
    policy: Mapping[PolicyKey, PolicyRecord] = field(factory=dict, hash=False)
    rules: Mapping[int, str] = field(factory=dict, hash=False)


@frozen
class Change:
    """What differs from the tables of generation ``base``: per table, the
    records that were set and the keys that went."""

    base: int
    set: Tables
    gone_addresses: frozenset[tuple[int, IPAddress]] = frozenset()
    gone_endpoints: frozenset[int] = frozenset()
    gone_cidrs: frozenset[tuple[int, IPNetwork]] = frozenset()
    gone_policy: frozenset[PolicyKey] = frozenset()
