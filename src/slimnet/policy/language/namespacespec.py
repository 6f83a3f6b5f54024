# SPDX-License-Identifier: Apache-2.0
"""Reading the ``spec`` of a NetworkPolicy (networking/v1).

What is absent and what is empty mean what they mean in Kubernetes: no ``ingress``
or an empty one allows nothing, an empty rule allows everything; no ``from``
or an empty one is everybody, no ``ports`` or an empty list every port.
"""

from __future__ import annotations

from typing import Any

from slimnet.model import Direction
from slimnet.policy.language.node import ManifestNode
from slimnet.policy.language.schema import Field
from slimnet.policy.language.selectorspec import SELECTOR, cidr, port, protocol, selector
from slimnet.policy.rule import Block, Peer, Port, Rule

__all__ = ["SCHEMA", "read"]

_BLOCK = {
    "cidr": Field("a range of addresses"),
    "except": Field("parts of it that are not meant", many=True),
}
_PEER = {
    "podSelector": Field(
        "endpoints, by their labels; of this namespace, where it stands alone", SELECTOR
    ),
    "namespaceSelector": Field(
        "endpoints of these namespaces; all of them, where it stands alone", SELECTOR
    ),
    "ipBlock": Field("addresses inside or outside of the overlays; stands alone", _BLOCK),
}
_PORT = {
    "protocol": Field("``TCP``, ``UDP`` or ``SCTP``; TCP by default"),
    "port": Field("a number, or a name that endpoints declare; none: every port"),
    "endPort": Field("the last port of a range that begins at ``port``"),
}


def _rule_schema(peers: str, whom: str) -> dict[str, Field]:
    return {
        peers: Field(whom, _PEER, many=True),
        "ports": Field("to which ports; none: every protocol and port", _PORT, many=True),
    }


_RULES = {
    "from": _rule_schema("from", "who may come in; none: everybody"),
    "to": _rule_schema("to", "where to; none: anywhere"),
}
SCHEMA = {
    "podSelector": Field("the endpoints that it selects; empty: all of the namespace", SELECTOR),
    "policyTypes": Field(
        "``Ingress``, ``Egress``; without it Ingress, and Egress where ``egress`` is written",
        many=True,
    ),
    "ingress": Field("what may come in; none: nothing", _RULES["from"], many=True),
    "egress": Field("what may go out; none: nothing", _RULES["to"], many=True),
    "mandatory": Field(
        "(slimnet's own) refused where a host of an endpoint that it selects has a backend that "
        "cannot hold it against a hostile process: :exc:`slimnet.CannotEnforce`"
    ),
}

_LISTS = {Direction.INGRESS: ("ingress", "from"), Direction.EGRESS: ("egress", "to")}


def read(spec: ManifestNode) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.NetworkPolicy` that a ``spec`` gives."""
    spec.fields(SCHEMA)
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


def _directions(spec: ManifestNode) -> set[Direction]:
    types = spec.get("policyTypes")
    if types.absent or not types.items():
        # Kubernetes' default: Ingress always, Egress where rules for it are written.
        egress = spec.get("egress")
        return {Direction.INGRESS} | (
            set() if egress.absent or not egress.items() else {Direction.EGRESS}
        )
    return {Direction[item.choice(("Ingress", "Egress")).upper()] for item in types.items()}


def _rule(node: ManifestNode, peers: str) -> Rule:
    node.fields(_RULES[peers])
    whom, ports = node.get(peers), node.get("ports")
    return Rule(
        peers=None if whom.absent or not whom.items() else tuple(map(_peer, whom.items())),
        ports=None if ports.absent or not ports.items() else tuple(map(_port, ports.items())),
    )


def _peer(node: ManifestNode) -> Peer:
    node.fields(_PEER)
    pods, namespaces, block = (node.get(key) for key in _PEER)
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


def _block(node: ManifestNode) -> Block:
    node.fields(_BLOCK)
    whole = cidr(node.need("cidr"))
    holes = []
    listed = node.get("except")
    for item in () if listed.absent else listed.items():
        hole = cidr(item)
        if hole not in whole or hole == whole:
            item.fail(f"a part of {whole}")
        holes.append(hole)
    return Block(whole, tuple(holes))


def _port(node: ManifestNode) -> Port:
    node.fields(_PORT)
    kind, written, end = (node.get(key) for key in _PORT)
    if written.absent:
        if not end.absent:
            end.fail("a port beside it, where the range begins")
        return Port(protocol(kind))
    first = port(written)
    if isinstance(first, str):
        if not end.absent:
            end.fail("no endPort behind a named port")
        return Port(protocol(kind), name=first)
    last = first if end.absent else end.number(first, 65535, "the range's last port")
    return Port(protocol(kind), first, last)
