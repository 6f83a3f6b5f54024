# SPDX-License-Identifier: Apache-2.0
"""Reading the ``spec`` of a ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2)."""

from __future__ import annotations

from typing import Any

from slimnet.model import Protocol
from slimnet.policy.namespacespec import PORT_NAME
from slimnet.policy.node import Node
from slimnet.policy.rule import Action, Block, Peer, Port, Rule, Tier
from slimnet.policy.selectorspec import cidr, selector

__all__ = ["read"]

_MOST = 25  # entries of any list, by Kubernetes' schema
_REFUSED = {"domainNames": "slimnet sees addresses, not names; use networks"}


def read(spec: Node) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.ClusterNetworkPolicy` that a ``spec`` gives."""
    spec.fields({"tier", "priority", "subject", "ingress", "egress", "mandatory"})
    mandatory = spec.get("mandatory")
    return {
        "tier": Tier(spec.need("tier").choice([str(tier) for tier in Tier])),
        "priority": spec.need("priority").number(0, 1000, "a priority"),
        "subject": _subject(spec.need("subject")),
        "ingress": _rules(spec.get("ingress"), "from"),
        "egress": _rules(spec.get("egress"), "to"),
        "mandatory": not mandatory.absent and mandatory.truth(),
    }


def _subject(node: Node) -> Peer:
    kind, value = node.only({"namespaces", "pods"})
    return _endpoints(kind, value)


def _endpoints(kind: str, node: Node) -> Peer:
    if kind == "namespaces":
        return Peer(namespaces=selector(node))
    node.fields({"namespaceSelector", "podSelector"})
    return Peer(
        namespaces=selector(node.get("namespaceSelector")),
        pods=selector(node.get("podSelector")),
    )


def _rules(node: Node, peers: str) -> tuple[Rule, ...] | None:
    if node.absent or not node.items():
        return None
    return tuple(_rule(item, peers) for item in node.items(most=_MOST))


def _rule(node: Node, peers: str) -> Rule:
    node.fields({"name", "action", peers, "protocols"})
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


def _peers(node: Node, peers: str) -> tuple[Peer, ...]:
    known = {"namespaces", "pods"} | ({"nodes", "networks"} if peers == "to" else set())
    node.fields(known, refused=_REFUSED if peers == "to" else None)
    kind, value = node.only(known)
    if kind == "nodes":
        return (Peer(nodes=selector(value)),)
    if kind == "networks":
        return tuple(Peer(block=Block(cidr(item))) for item in value.items(least=1, most=_MOST))
    return (_endpoints(kind, value),)


def _port(node: Node) -> Port:
    kind, value = node.only({"tcp", "udp", "sctp", "destinationNamedPort"})
    if kind == "destinationNamedPort":
        name = value.text("a port's name of at most 15 letters", PORT_NAME.fullmatch)
        return Port(None, name=name)
    protocol = Protocol[kind.upper()]
    value.fields({"destinationPort"})
    which, port = value.need("destinationPort").only({"number", "range"})
    if which == "number":
        number = port.number(1, 65535, "a port's number")
        return Port(protocol, number, number)
    port.fields({"start", "end"})
    first = port.need("start").number(1, 65534, "the range's first port")
    last = port.need("end").number(first + 1, 65535, "the range's last port")
    return Port(protocol, first, last)
