# SPDX-License-Identifier: Apache-2.0
"""What policies mean, evaluated the slow and obvious way.

Written from the specifications (networking/v1 NetworkPolicy, and ClusterNetworkPolicy of
policy.networking.k8s.io/v1alpha2) and sharing no code with the compiler, so that each
proves the other. What slimnet adds:

- A service is its endpoints: a flow to its address is one to the endpoint that serves it,
  at that endpoint's port, and is judged as such.
- An endpoint always reaches itself.
- A host of the cluster is at its underlay address, and where it says that it is: outside
  of the overlay, no other's underlay address, and in ranges of /8 or less.
- To a host of the cluster is denied unless a rule allows it by name: one that selects
  it as a node, or whose range is its one address. A range that it merely lies in
  may deny it, but does not allow it. A rule that passes it on by name makes it an
  address like any other for the tiers that follow, as a host always is for ingress.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from attrs import define, evolve, frozen
from netaddr import IPAddress, IPNetwork

from slimnet.model import Direction, Endpoint, Flow, Host, Protocol, Reason
from slimnet.policy.compile.hosts import WIDEST
from slimnet.policy.document import ClusterNetworkPolicy, NetworkPolicy, Policy, Service
from slimnet.policy.rule import Action, Peer, Port, Rule, Tier
from slimnet.policy.selector import Operator, Selector
from slimnet.policy.state import State, host_labels, namespace_labels

__all__ = ["Backing", "Judgement", "Oracle"]


@frozen
class Judgement:
    """The oracle's answer.

    Attributes:
        allowed: whether the flow may exist, as far as this direction is asked.
        reason: why.
        policy: whose rule decided; ``None`` where no rule did.
        index: which of its rules of that direction.
    """

    allowed: bool
    reason: Reason
    policy: Policy | None = None
    index: int = 0


@frozen
class Backing:
    """Who serves a flow to a service's address.

    Attributes:
        reason: why it is refused, where nobody may serve it: no such port, or no
            endpoint; else ``None``.
        flows: the flow as it is to each endpoint that may serve it, with the share of
            such flows that this endpoint gets.
        service: whose port it is; ``None`` where it is none's.
    """

    reason: Reason | None
    flows: Mapping[Flow, Fraction]
    service: Service | None = None


@define
class _Question:
    """One subject, one peer: what every rule is asked. ``guarded``: only by name."""

    subject: Endpoint
    address: IPAddress
    peer: Endpoint | None
    host: Host | None
    direction: Direction
    protocol: Protocol
    port: int
    guarded: bool


class Oracle:
    """Judges flows by a state.

    Args:
        state: the desired state.

    Attributes:
        state: that.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        hosts = {host.name for host in state.hosts}
        self._endpoints = {
            (item.network, item.address): item for item in state.endpoints if item.host in hosts
        }
        self._labels = {
            (item.network, item.name): namespace_labels(item.name, item.labels)
            for item in state.namespaces
        }

    def judge(self, flow: Flow) -> Judgement | None:
        """Whether the policy of the flow's one end (its ``direction`` says which) allows it.

        A flow to a service's address must have been resolved by :meth:`backing`; as it is,
        nobody has its destination.

        Returns:
            ``None`` where that end is no endpoint, so that nobody's policy is asked.
        """
        egress = flow.direction is Direction.EGRESS
        here, there = (flow.source, flow.destination) if egress else (flow.destination, flow.source)
        subject = self.endpoint(flow.network, here)
        if subject is None:
            return None
        if here == there:
            return Judgement(True, Reason["SELF"])
        peer = self.endpoint(flow.network, there)
        host = None
        if peer is None:
            host = self.host(flow.network, there, subject.host)
            if host is None and any(there in cidr for cidr in self._overlay(flow.network)):
                return Judgement(False, Reason["NO_ENDPOINT"])
        guarded = egress and host is not None
        question = _Question(
            subject, there, peer, host, flow.direction, flow.protocol, flow.port, guarded
        )
        return (
            self._ordered(question, Tier.ADMIN)
            or self._namespaced(question)
            or (self._ordered(question, Tier.BASELINE) or _default(question, isolated=False))
        )

    def backing(self, flow: Flow) -> Backing | None:
        """Who may serve a flow; ``None`` where its destination is no service's address."""
        services = [
            service
            for service in self.state.services
            if (service.network, service.address) == (flow.network, flow.destination)
            and any(flow.destination in cidr for cidr in self._overlay(flow.network))
        ]
        if not services or self.endpoint(flow.network, flow.destination) is not None:
            return None
        for service in sorted(services, key=lambda item: (item.namespace, item.name)):
            for port in service.ports:
                if (port.protocol, port.port) == (flow.protocol, flow.port):
                    flows = self._served(flow, service, port.target)
                    reason = None if flows else Reason["NO_BACKEND"]
                    return Backing(reason, flows, service)
        return Backing(Reason["NO_SERVICE_PORT"], {})

    def _served(self, flow: Flow, service: Service, target: int | str) -> dict[Flow, Fraction]:
        weights: dict[Flow, int] = {}
        for endpoint in self.state.endpoints:
            if (endpoint.network, endpoint.namespace) != (service.network, service.namespace):
                continue
            if not _selects(service.selector, endpoint.labels):
                continue
            if self.endpoint(endpoint.network, endpoint.address) is not endpoint:
                continue  # its host is gone, or its address is not the network's
            if isinstance(target, int):
                port = target
            elif endpoint.ports.get(target, ("",))[0] == flow.protocol.name.lower():
                port = endpoint.ports[target][1]
            else:
                continue
            weight = 1
            for rule in reversed(service.weights):
                if _selects(rule.selector, endpoint.labels):
                    weight = rule.weight
            if weight:
                weights[evolve(flow, destination=endpoint.address, port=port)] = weight
        return {one: Fraction(weight, sum(weights.values())) for one, weight in weights.items()}

    # The three tiers

    def _ordered(self, question: _Question, tier: Tier) -> Judgement | None:
        """A tier of cluster rules: the first rule that matches decides or passes."""
        policies = [
            policy
            for policy in self.state.policies
            if isinstance(policy, ClusterNetworkPolicy)
            and policy.tier is tier
            and self._is_endpoint(policy.subject, question.subject, None)
        ]
        for policy in sorted(policies, key=lambda item: (item.priority, item.name)):
            for index, rule in enumerate(policy.rules(question.direction) or ()):
                if not self._matches(rule, question, None):
                    continue
                if rule.action is Action.PASS:
                    if any(_names_host(peer, question) for peer in rule.peers or ()):
                        question.guarded = False
                    return None
                if rule.action is Action.ACCEPT:
                    return Judgement(True, Reason["RULE_ALLOW"], policy, index)
                return Judgement(False, Reason["RULE_DENY"], policy, index)
        return None

    def _namespaced(self, question: _Question) -> Judgement | None:
        """The NetworkPolicies: any that selects the subject isolates it, any rule allows."""
        subject = question.subject
        policies = [
            policy
            for policy in self.state.policies
            if isinstance(policy, NetworkPolicy)
            and policy.network == subject.network
            and policy.namespace == subject.namespace
            and policy.rules(question.direction) is not None
            and _selects(policy.subject, subject.labels)
        ]
        if not policies:
            return None
        for policy in sorted(policies, key=lambda item: item.name):
            for index, rule in enumerate(policy.rules(question.direction) or ()):
                if self._matches(rule, question, policy.namespace):
                    return Judgement(True, Reason["RULE_ALLOW"], policy, index)
        return _default(question, isolated=True)

    # Rules

    def _matches(self, rule: Rule, question: _Question, namespace: str | None) -> bool:
        if rule.ports is not None and not any(_is_port(port, question) for port in rule.ports):
            return False
        if rule.peers is None:
            return not question.guarded
        return any(self._is_peer(peer, question, rule, namespace) for peer in rule.peers)

    def _is_peer(self, peer: Peer, question: _Question, rule: Rule, namespace: str | None) -> bool:
        if peer.nodes is not None:
            return _names_host(peer, question)
        if peer.block is not None:
            if question.address not in peer.block.cidr:
                return False
            if any(question.address in hole for hole in peer.block.excepts):
                return False
            return (
                not question.guarded
                or rule.action is not Action.ACCEPT
                or _names_host(peer, question)
            )
        return question.peer is not None and self._is_endpoint(peer, question.peer, namespace)

    def _is_endpoint(self, peer: Peer, endpoint: Endpoint, namespace: str | None) -> bool:
        if peer.namespaces is None:
            if endpoint.namespace != namespace:
                return False
        else:
            place = (endpoint.network, endpoint.namespace)
            labels = self._labels.get(place, namespace_labels(endpoint.namespace))
            if not _selects(peer.namespaces, labels):
                return False
        return peer.pods is None or _selects(peer.pods, endpoint.labels)

    # The world

    def endpoint(self, network: str, address: IPAddress) -> Endpoint | None:
        """The endpoint that has an address: one of its network, on a host that lives."""
        if not any(address in cidr for cidr in self._overlay(network)):
            return None
        return self._endpoints.get((network, address))

    def host(self, network: str, address: IPAddress, near: str = "") -> Host | None:
        """The host of the cluster that has an address: as its underlay address, else the
        first that says so, ``near`` before all others."""
        for host in self.state.hosts:
            if host.address == address:
                return host
        if any(address in cidr for cidr in self._overlay(network)):
            return None
        claims = [
            host
            for host in self.state.hosts
            if any(address in each and each.prefixlen >= WIDEST for each in host.ranges)
        ]
        return min(claims, key=lambda host: (host.name != near, host.name), default=None)

    def _overlay(self, network: str) -> tuple[IPNetwork, ...]:
        return next(item.cidrs for item in self.state.networks if item.name == network)


def _names_host(peer: Peer, question: _Question) -> bool:
    if question.host is None:
        return False
    if peer.nodes is not None:
        return _selects(peer.nodes, host_labels(question.host))
    return peer.block is not None and peer.block.cidr == IPNetwork(question.address)


def _default(question: _Question, *, isolated: bool) -> Judgement:
    if question.guarded:
        return Judgement(False, Reason["HOST_DENY"])
    if isolated:
        return Judgement(False, Reason["DEFAULT_DENY"])
    return Judgement(True, Reason["DEFAULT_ALLOW"])


def _is_port(port: Port, question: _Question) -> bool:
    if port.name is None:
        return port.protocol is question.protocol and port.first <= question.port <= port.last
    destination = question.subject if question.direction is Direction.INGRESS else question.peer
    declared = destination.ports.get(port.name) if destination is not None else None
    if declared is None:
        return False
    protocol, number = Protocol.__members__.get(declared[0].upper()), declared[1]
    return (
        protocol is not None
        and (port.protocol is None or port.protocol is protocol)
        and question.protocol is protocol
        and question.port == number
    )


def _selects(selector: Selector, labels: Mapping[str, str]) -> bool:
    for requirement in selector.requirements:
        present = requirement.key in labels
        listed = present and labels[requirement.key] in requirement.values
        fulfilled = {
            Operator.EXISTS: present,
            Operator.DOES_NOT_EXIST: not present,
            Operator.IN: listed,
            Operator.NOT_IN: not listed,
        }[requirement.operator]
        if not fulfilled:
            return False
    return True
