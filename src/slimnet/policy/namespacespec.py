# SPDX-License-Identifier: Apache-2.0
"""Reading the ``spec`` of a NetworkPolicy (networking/v1).

What is absent and what is empty mean what they mean in Kubernetes: no ``ingress``
or an empty one allows nothing, an empty rule allows everything; no ``from``
or an empty one is everybody, no ``ports`` or an empty list every port.
"""

from __future__ import annotations

import re
from typing import Any

from slimnet.model import Direction, Protocol
from slimnet.policy.node import Node
from slimnet.policy.rule import Block, Peer, Port, Rule
from slimnet.policy.selectorspec import cidr, selector

__all__ = ["PORT_NAME", "read"]

#: IANA service names (RFC 6335 section 5.1), as Kubernetes checks them.
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")

_PROTOCOLS = ("TCP", "UDP", "SCTP")
_LISTS = {Direction.INGRESS: ("ingress", "from"), Direction.EGRESS: ("egress", "to")}


def read(spec: Node) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.NetworkPolicy` that a ``spec`` gives."""
    spec.fields({"podSelector", "policyTypes", "ingress", "egress", "mandatory"})
    directions = _directions(spec)
    rules: dict[str, Any] = {}
    for direction, (name, peers) in _LISTS.items():
        listed = spec.get(name)
        read_rules = () if listed.absent else tuple(_rule(node, peers) for node in listed.items())
        rules[name] = read_rules if direction in directions else None
    mandatory = spec.get("mandatory")
    return {
        "subject": selector(spec.get("podSelector")),
        "mandatory": not mandatory.absent and mandatory.truth(),
        **rules,
    }


def _directions(spec: Node) -> set[Direction]:
    types = spec.get("policyTypes")
    if types.absent or not types.items():
        # Kubernetes' default: Ingress always, Egress where rules for it are written.
        egress = spec.get("egress")
        return {Direction.INGRESS} | (
            set() if egress.absent or not egress.items() else {Direction.EGRESS}
        )
    return {Direction[item.choice(("Ingress", "Egress")).upper()] for item in types.items()}


def _rule(node: Node, peers: str) -> Rule:
    node.fields({peers, "ports"})
    whom, ports = node.get(peers), node.get("ports")
    return Rule(
        peers=None if whom.absent or not whom.items() else tuple(map(_peer, whom.items())),
        ports=None if ports.absent or not ports.items() else tuple(map(_port, ports.items())),
    )


def _peer(node: Node) -> Peer:
    node.fields({"podSelector", "namespaceSelector", "ipBlock"})
    pods, namespaces, block = (
        node.get(key) for key in ("podSelector", "namespaceSelector", "ipBlock")
    )
    if not block.absent:
        if not pods.absent or not namespaces.absent:
            node.fail("ipBlock alone, or podSelector and namespaceSelector", "both")
        return Peer(block=_block(block))
    if pods.absent and namespaces.absent:
        node.fail("podSelector, namespaceSelector or ipBlock")
    return Peer(
        namespaces=None if namespaces.absent else selector(namespaces),
        pods=None if pods.absent else selector(pods),
    )


def _block(node: Node) -> Block:
    node.fields({"cidr", "except"})
    whole = cidr(node.need("cidr"))
    holes = []
    listed = node.get("except")
    for item in () if listed.absent else listed.items():
        hole = cidr(item)
        if hole not in whole or hole == whole:
            item.fail(f"a part of {whole}")
        holes.append(hole)
    return Block(whole, tuple(holes))


def _port(node: Node) -> Port:
    node.fields({"protocol", "port", "endPort"})
    kind, port, end = node.get("protocol"), node.get("port"), node.get("endPort")
    protocol = Protocol[kind.choice(_PROTOCOLS)] if not kind.absent else Protocol.TCP
    if port.absent:
        if not end.absent:
            end.fail("a port beside it, where the range begins")
        return Port(protocol)
    if isinstance(port.value, str):
        if not end.absent:
            end.fail("no endPort behind a named port")
        name = port.text("a port's number, or its name of at most 15 letters", PORT_NAME.fullmatch)
        return Port(protocol, name=name)
    first = port.number(1, 65535, "a port's number or name")
    last = first if end.absent else end.number(first, 65535, "the range's last port")
    return Port(protocol, first, last)
