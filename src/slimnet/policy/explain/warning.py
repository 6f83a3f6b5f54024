# SPDX-License-Identifier: Apache-2.0
"""What is not wrong in a document, but surely not meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from slimnet import contract, wires
from slimnet.model import Direction, Feature, Host, Protocol
from slimnet.policy.compile.applied import AppliedPolicy, RuleIds, question_of
from slimnet.policy.compile.compiler import Compiler
from slimnet.policy.compile.roster import DocumentName
from slimnet.policy.compile.table import PolicyTable
from slimnet.policy.compile.term import Question
from slimnet.policy.document import (
    ClusterNetworkPolicy,
    Document,
    EgressLimit,
    NetworkPolicy,
    PublishedPort,
    Service,
)
from slimnet.policy.rule import Action, Rule
from slimnet.policy.state import State
from slimnet.tables import PolicyKey, PolicyRecord

__all__ = ["PolicyWarning", "check", "uncarried"]


@frozen(order=True)
class PolicyWarning:
    """One thing that was surely not meant.

    Attributes:
        policy: the document's title: ``namespace/name``, ``cluster:name``,
            ``service:namespace/name``, ``port:...`` or ``limit:...``.
        path: the field (``ingress[0]``), or empty for the whole.
        where: ``file:line``, as far as it is known.
        text: what about it.
    """

    policy: str
    path: str
    where: str
    text: str

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        path = f" {self.path}" if self.path else ""
        return f"{where}{self.policy}{path}: {self.text}"


def check(state: State) -> list[PolicyWarning]:
    """Selectors that select nothing, rules that never decide, services that nobody serves,
    and ports that are another's, in this state.

    Raises:
        InvalidValue: two things have what only one may have.
    """
    compiler = Compiler(None)
    deciding = _deciding(compiler.update(state)[0].policy)
    # A cluster's policy is in every network: it is idle where it is idle in all of them.
    placed: dict[int, tuple[list[AppliedPolicy], RuleIds]] = {}
    for applied, ids in compiler.applied_policies():
        placed.setdefault(id(applied.policy), ([], ids))[0].append(applied)
    found: set[PolicyWarning] = set()
    for applied_policies, ids in placed.values():
        policy = applied_policies[0].policy
        if not any(applied.subject.groups for applied in applied_policies):
            found.add(_warning(policy, "", "its subject selects no endpoint"))
            continue
        for direction in Direction:
            for index, rule in enumerate(policy.rules(direction) or ()):
                path = f"{direction.name.lower()}[{index}]"
                idle = {
                    _warning(policy, path, text)
                    for text in _idle(rule, direction, applied_policies)
                }
                decides = ids[direction, index] in deciding
                if not idle and not decides and rule.action is not Action.PASS:
                    text = "never decides: rules that are asked before it decide all of it"
                    idle.add(_warning(policy, path, text))
                found |= idle
    return sorted(
        found.union(
            _misplaced(state),
            _tied(item[0] for item in placed.values()),
            _services(compiler),
            uncarried(state),
            _published(compiler, state),
            _limits(compiler),
        )
    )


def uncarried(state: State) -> list[PolicyWarning]:
    """Services that no host of the cluster has, and ports of services of a protocol that none
    carries to an endpoint behind them, by what the hosts say that they are able to."""
    hosts = {host.name: host for host in state.hosts}
    if not state.services or not all(host.wires for host in hosts.values()):
        return []
    able = [host for host in hosts.values() if Feature.SERVICES in host.features]
    apart = [host for host in able if not host.shares]  # whose endpoints send datagrams
    if not able:
        backends = _backends(hosts.values())
        text = f"no host of the cluster has services ({backends}): nobody reaches it"
        return [_warning(service, "", text) for service in state.services]
    found = []
    for service in state.services:
        ports = {
            index: port.protocol
            for index, port in enumerate(service.ports)
            if port.protocol is not Protocol.TCP
        }
        if not ports:
            continue
        served = {
            endpoint.host
            for endpoint in state.endpoints
            if (endpoint.network, endpoint.namespace) == (service.network, service.namespace)
            and service.selector.matches(endpoint.labels)
        }
        there = [hosts[name] for name in served & hosts.keys()] or list(hosts.values())
        for index, protocol in ports.items():
            if not any(
                wires.choose(one, other, protocol)
                for one in apart
                for other in there
                if not other.shares
            ):
                text = (
                    f"{protocol.name} is carried to it by no host that has services"
                    f" ({_backends(able)}): nobody reaches it"
                )
                found.append(_warning(service, f"ports[{index}]", text))
    return found


def _backends(hosts: Iterable[Host]) -> str:
    return ", ".join(sorted({host.backend for host in hosts}))


def _deciding(table: Mapping[PolicyKey, PolicyRecord]) -> set[int]:
    """The rules that decide something for somebody."""
    if not isinstance(table, PolicyTable):
        return {record.rule for record in table.values()}
    ladders = {id(rungs): rungs for pairs in table.subjects.values() for rungs in pairs.values()}
    return {record.rule for rungs in ladders.values() for _, record in rungs}


def _idle(rule: Rule, direction: Direction, applied_policies: list[AppliedPolicy]) -> Iterator[str]:
    """What of a rule nobody is."""
    for number, peer in enumerate(rule.peers or ()):
        terms = [applied.asked[question_of(peer, applied.policy)] for applied in applied_policies]
        if not any(term.parties for term in terms):
            yield f"peer {number} ({peer}) is nobody"
    for port in rule.ports or ():
        if port.name is None:
            continue
        named = [applied.asked[Question(port=port.name)] for applied in applied_policies]
        if direction is Direction.EGRESS:
            declared = any(term.parties for term in named)
        else:
            declared = any(
                group.declares(port.name)
                for applied in applied_policies
                for group in applied.subject.groups
            )
        if not declared:
            yield f"no endpoint that it is about names a port {port.name!r}"


def _misplaced(state: State) -> Iterator[PolicyWarning]:
    """Documents of networks that do not exist, and rules that ``policyTypes`` switches off."""
    networks = {network.name for network in state.networks}
    namespaced: list[NetworkPolicy | Service | PublishedPort | EgressLimit] = [
        *(policy for policy in state.policies if isinstance(policy, NetworkPolicy)),
        *state.services,
        *state.published,
        *state.limits,
    ]
    for document in namespaced:
        if document.network not in networks:
            yield _warning(document, "", f"there is no network {document.network!r}")
    for policy in state.policies:
        for direction in Direction:
            name = direction.name.lower()
            if policy.rules(direction) is None and policy.manifest.get("spec", {}).get(name):
                text = f"ignored, since policyTypes does not hold {name.title()}"
                yield _warning(policy, name, text)


def _tied(placed: Iterable[list[AppliedPolicy]]) -> Iterator[PolicyWarning]:
    """Cluster policies of one tier and priority about one endpoint: only their names order them."""
    ranked: dict[tuple[object, ...], list[AppliedPolicy]] = {}
    for applied_policies in placed:
        for applied in applied_policies:
            policy = applied.policy
            if not isinstance(policy, ClusterNetworkPolicy):
                continue
            for direction in Direction:
                if policy.rules(direction) is None:
                    continue
                rank = (policy.tier, policy.priority, direction)
                for other in ranked.setdefault(rank, []):
                    if other.policy is not policy and other.subject.groups & applied.subject.groups:
                        first, second = sorted((other.policy, policy), key=lambda item: item.name)
                        text = f"asked after {first.title!r} only because of its name"
                        yield _warning(second, "priority", text)
                ranked[rank].append(applied)


def _services(compiler: Compiler) -> Iterator[PolicyWarning]:
    """Services that are not reached, or that refuse every connect."""
    services = compiler.services
    for name, service in services.documents.items():
        members = services.members(name)
        if service.network not in compiler.networks:
            continue
        if service.address is not None:
            owner = compiler.roster.at(service.network, service.address)
            cidrs = compiler.networks[service.network].cidrs
            if not services.ports(service):
                ranges = ", ".join(map(str, cidrs))
                text = f"{service.address} is not of its network ({ranges}): nobody reaches it"
                yield _warning(service, "clusterIP", text)
            elif owner is not None:
                text = f"{service.address} is the address of {owner.title}"
                yield _warning(service, "clusterIP", text)
        if not members:
            text = "its selector selects no endpoint: every connect is refused"
            yield _warning(service, "selector", text)
            continue
        for index, weight in enumerate(service.weights):
            if not any(weight.selector.matches(endpoint.labels) for endpoint in members):
                yield _warning(service, f"weights[{index}]", "selects none of its endpoints")
        yield from _ports(compiler, name, service)


def _ports(compiler: Compiler, name: DocumentName, service: Service) -> Iterator[PolicyWarning]:
    """Ports of a service with endpoints that nobody serves, or another service."""
    services = compiler.services
    claimed = {port: key for key, port in services.ports(service).items()}
    for index, port in enumerate(service.ports):
        path = f"ports[{index}]"
        targets = services.targets(name, port)
        holder = services.holder(claimed[port]) if port in claimed else name
        if holder not in {None, name}:
            first = services.documents[holder].title
            text = f"{first} has port {port.port} of {service.address} already"
            yield _warning(service, path, text)
        if not targets and not isinstance(port.target, int):
            word = port.protocol.name
            text = f"none of its endpoints with a weight declares a {word} port {port.target!r}"
            yield _warning(service, path, text)
        elif not targets:
            yield _warning(service, path, "all of its endpoints have weight 0")
        elif len(targets) > contract.SLIM_SERVICE_SLOTS:
            most = contract.SLIM_SERVICE_SLOTS
            text = f"of its {len(targets)} endpoints only {most} are ever chosen"
            yield _warning(service, path, text)


def _published(compiler: Compiler, state: State) -> Iterator[PolicyWarning]:
    """Published ports that lead nowhere, that another document has, or that are not on all
    addresses of their host."""
    published = compiler.published
    six = {
        host.name: (cidr, what)
        for host in state.hosts
        for cidr, what in host.taken.items()
        if cidr.version == 6
    }
    for name, port in published.documents.items():
        if port.network not in compiler.networks:
            continue
        endpoint = compiler.roster.named((port.network, port.namespace, port.endpoint))
        if endpoint is None:
            yield _warning(port, "endpoint", f"there is no endpoint {port.endpoint!r}")
        elif published.target(name) is None:
            word = port.protocol.name
            text = f"{port.endpoint!r} declares no {word} port {port.target!r}"
            yield _warning(port, "targetPort", text)
        elif name in published.beaten:
            first = published.documents[published.beaten[name]].title
            text = f"{first} has port {port.port} of host {endpoint.host} already"
            yield _warning(port, "port", text)
        if endpoint is not None and port.address is None and endpoint.host in six:
            cidr, what = six[endpoint.host]
            text = (
                f"on the IPv4 addresses of host {endpoint.host} only,"
                f" which has IPv6 as well ({cidr}, {what})"
            )
            yield _warning(port, "address", text)


def _limits(compiler: Compiler) -> Iterator[PolicyWarning]:
    """Limits of nobody."""
    for name, limit in compiler.limits.documents.items():
        within = compiler.roster.within(name[:2])
        if limit.network in compiler.networks and not any(
            limit.subject.matches(endpoint.labels) for endpoint in within
        ):
            yield _warning(limit, "podSelector", "its subject selects no endpoint")


def _warning(document: Document, path: str, text: str) -> PolicyWarning:
    where = document.source.at(path if path in document.source.lines else "")
    return PolicyWarning(document.title, path, where, text)
