# SPDX-License-Identifier: Apache-2.0
"""Reading the ``spec`` of a ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2)."""

from __future__ import annotations

from typing import Any

from slimnet.model import Protocol
from slimnet.names import PORT_NAME
from slimnet.policy.language.node import ManifestNode
from slimnet.policy.language.schema import Field
from slimnet.policy.language.selectorspec import SELECTOR, cidr, selector
from slimnet.policy.rule import Action, Block, Peer, Port, Rule, Tier

__all__ = ["SCHEMA", "read"]

_MOST = 25  # entries of any list, by Kubernetes' schema

_PODS = {
    "namespaceSelector": Field("their namespaces; empty: all", SELECTOR),
    "podSelector": Field("their own labels; empty: all", SELECTOR),
}
_ENDPOINTS = {
    "namespaces": Field("all endpoints of these namespaces", SELECTOR),
    "pods": Field("some of their endpoints", _PODS),
}
_TO = {
    **_ENDPOINTS,
    "nodes": Field("hosts of the cluster, by their labels", SELECTOR),
    "networks": Field("ranges of addresses", many=True),
    "domainNames": Field(
        "slimnet sees addresses, not names; use networks", many=True, refused=True
    ),
}
_PEERS = {"from": _ENDPOINTS, "to": _TO}
_RANGE = {"start": Field("the first"), "end": Field("the last")}
_NUMBERS = {"number": Field("one port"), "range": Field("several", _RANGE)}
_PROTOCOL = {"destinationPort": Field("``number`` or ``range``", _NUMBERS)}
_PROTOCOLS = {
    "tcp": Field("of TCP", _PROTOCOL),
    "udp": Field("of UDP", _PROTOCOL),
    "sctp": Field("of SCTP", _PROTOCOL),
    "destinationNamedPort": Field("a name that endpoints declare"),
}


def _rule_schema(peers: str, whom: str) -> dict[str, Field]:
    return {
        "name": Field("what messages call the rule; at most 100 characters"),
        "action": Field("``Accept``, ``Deny``, or ``Pass``: on to what comes after this tier"),
        peers: Field(f"{whom}; each entry one of these", _PEERS[peers], many=True),
        "protocols": Field(
            "to which ports, each entry one of these; none: every port", _PROTOCOLS, many=True
        ),
    }


_RULES = {"from": _rule_schema("from", "who comes in"), "to": _rule_schema("to", "where to")}
SCHEMA = {
    "tier": Field(
        "``Admin``: before the NetworkPolicies; ``Baseline``: where no NetworkPolicy selects the "
        "endpoint in that direction"
    ),
    "priority": Field("0 to 1000; the lower is asked first, equal ones by name"),
    "subject": Field("whose connections it is about, in every network; one of these", _ENDPOINTS),
    "ingress": Field(
        "in order, the first that matches decides; at most 25", _RULES["from"], many=True
    ),
    "egress": Field("likewise", _RULES["to"], many=True),
    "mandatory": Field("(slimnet's own) as that of a NetworkPolicy"),
}


def read(spec: ManifestNode) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.ClusterNetworkPolicy` that a ``spec`` gives."""
    spec.fields(SCHEMA)
    mandatory = spec.get("mandatory")
    return {
        "tier": Tier(spec.need("tier").choice([str(tier) for tier in Tier])),
        "priority": spec.need("priority").number(0, 1000, "a priority"),
        "subject": _subject(spec.need("subject")),
        "ingress": _rules(spec.get("ingress"), "from"),
        "egress": _rules(spec.get("egress"), "to"),
        "mandatory": not mandatory.absent and mandatory.truth(),
    }


def _subject(node: ManifestNode) -> Peer:
    kind, value = node.only(_ENDPOINTS)
    return _endpoints(kind, value)


def _endpoints(kind: str, node: ManifestNode) -> Peer:
    if kind == "namespaces":
        return Peer(namespaces=selector(node))
    node.fields(_PODS)
    return Peer(
        namespaces=selector(node.get("namespaceSelector")),
        pods=selector(node.get("podSelector")),
    )


def _rules(node: ManifestNode, peers: str) -> tuple[Rule, ...] | None:
    if node.absent or not node.items():
        return None
    return tuple(_rule(item, peers) for item in node.items(most=_MOST))


def _rule(node: ManifestNode, peers: str) -> Rule:
    node.fields(_RULES[peers])
    name, protocols = node.get("name"), node.get("protocols")
    whom = [_peers(item, peers) for item in node.need(peers).items(least=1, most=_MOST)]
    rule = Rule(
        action=Action(node.need("action").choice([str(action) for action in Action])),
        peers=tuple(peer for several in whom for peer in several),
        ports=None
        if protocols.absent
        else tuple(_port(item) for item in protocols.items(least=1, most=_MOST)),
        name="" if name.absent else name.text("at most 100 characters", lambda t: len(t) <= 100),
    )
    named = any(port.name for port in rule.ports or ())
    if named and any(peer.block or peer.nodes for peer in rule.peers or ()):
        protocols.fail(
            "no destinationNamedPort with nodes or networks, which name no ports",
            "destinationNamedPort",
        )
    return rule


def _peers(node: ManifestNode, peers: str) -> tuple[Peer, ...]:
    kind, value = node.only(_PEERS[peers])
    if kind == "nodes":
        return (Peer(nodes=selector(value)),)
    if kind == "networks":
        return tuple(Peer(block=Block(cidr(item))) for item in value.items(least=1, most=_MOST))
    return (_endpoints(kind, value),)


def _port(node: ManifestNode) -> Port:
    kind, value = node.only(_PROTOCOLS)
    if kind == "destinationNamedPort":
        name = value.text("a port's name of at most 15 letters", PORT_NAME.fullmatch)
        return Port(None, name=name)
    protocol = Protocol[kind.upper()]
    value.fields(_PROTOCOL)
    which, port = value.need("destinationPort").only(_NUMBERS)
    if which == "number":
        number = port.number(1, 65535, "a port's number")
        return Port(protocol, number, number)
    port.fields(_RANGE)
    first = port.need("start").number(1, 65534, "the range's first port")
    last = port.need("end").number(first + 1, 65535, "the range's last port")
    return Port(protocol, first, last)
