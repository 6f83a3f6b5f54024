# SPDX-License-Identifier: Apache-2.0
"""What a policy is made of: actions, peers, ports and rules."""

from __future__ import annotations

import enum

from attrs import frozen
from netaddr import IPAddress, IPNetwork

from slimnet.model import Protocol
from slimnet.policy.selector import Selector

__all__ = ["Action", "Block", "Peer", "Port", "Rule", "Tier"]


class Action(enum.StrEnum):
    """What a rule does with the flows that it matches."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"  # noqa: S105  # on to the next tier


class Tier(enum.StrEnum):
    """Where a cluster rule stands: before or behind the namespaces' own policies."""

    ADMIN = "Admin"
    BASELINE = "Baseline"


@frozen
class Block:
    """A range of addresses with holes."""

    cidr: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()

    def __contains__(self, address: IPAddress) -> bool:
        return address in self.cidr and not any(address in hole for hole in self.excepts)

    def __str__(self) -> str:
        holes = ", ".join(str(hole) for hole in self.excepts)
        return f"{self.cidr} except {holes}" if holes else str(self.cidr)


@frozen
class Peer:
    """Whom a rule is about. Either endpoints, or a block, or hosts.

    Attributes:
        namespaces: selects the endpoints' namespaces; ``None`` with ``pods``
            set means the policy's own namespace.
        pods: selects endpoints by their own labels; ``None`` selects all of them.
        block: a range of addresses, inside or outside of the overlay.
        nodes: selects hosts of the cluster.
    """

    namespaces: Selector | None = None
    pods: Selector | None = None
    block: Block | None = None
    nodes: Selector | None = None

    def __str__(self) -> str:
        if self.block is not None:
            return str(self.block)
        if self.nodes is not None:
            return f"hosts with {self.nodes}"
        where = "its own namespace" if self.namespaces is None else f"namespaces {self.namespaces}"
        return f"endpoints {self.pods or 'everything'} in {where}"


@frozen
class Port:
    """Which destination ports a rule is about.

    Attributes:
        protocol: ``None`` only with ``name``: the protocol that the name stands for.
        first: first port, 0 for all ports of the protocol.
        last: last port, inclusive.
        name: a port's name as the destination endpoint declares it; then
            ``first`` and ``last`` mean nothing.
    """

    protocol: Protocol | None
    first: int = 0
    last: int = 65535
    name: str | None = None


@frozen
class Rule:
    """One entry of ``ingress`` or ``egress``.

    Attributes:
        action: always ACCEPT in a NetworkPolicy.
        peers: whom it is about; ``None`` is everybody.
        ports: which ports; ``None`` is every protocol and port.
        name: as the author named it, or empty.
    """

    action: Action = Action.ACCEPT
    peers: tuple[Peer, ...] | None = None
    ports: tuple[Port, ...] | None = None
    name: str = ""
