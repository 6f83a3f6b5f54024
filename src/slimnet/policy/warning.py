# SPDX-License-Identifier: Apache-2.0
"""What is not wrong in a policy, but surely not meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from slimnet.model import Direction
from slimnet.policy.compiler import Compiler
from slimnet.policy.document import ClusterNetworkPolicy, NetworkPolicy, Policy
from slimnet.policy.placement import Placement, RuleIds, question_of
from slimnet.policy.rule import Action, Rule
from slimnet.policy.state import State
from slimnet.policy.table import PolicyTable
from slimnet.policy.term import Question
from slimnet.tables import PolicyKey, PolicyRecord

__all__ = ["PolicyWarning", "check"]


@frozen(order=True)
class PolicyWarning:
    """One thing that was surely not meant.

    Attributes:
        policy: ``namespace/name``, or ``cluster:name``.
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
    """Selectors that select nothing and rules that never decide, in this state.

    Raises:
        InvalidValue: two things have what only one may have.
    """
    compiler = Compiler(None)
    deciding = _deciding(compiler.update(state)[0].policy)
    # A cluster's policy is in every network: it is idle where it is idle in all of them.
    placed: dict[int, tuple[list[Placement], RuleIds]] = {}
    for placement, ids in compiler.placements():
        placed.setdefault(id(placement.policy), ([], ids))[0].append(placement)
    found: set[PolicyWarning] = set()
    for placements, ids in placed.values():
        policy = placements[0].policy
        if not any(placement.subject.groups for placement in placements):
            found.add(_warning(policy, "", "its subject selects no endpoint"))
            continue
        for direction in Direction:
            for index, rule in enumerate(policy.rules(direction) or ()):
                path = f"{direction.name.lower()}[{index}]"
                idle = {_warning(policy, path, text) for text in _idle(rule, direction, placements)}
                decides = ids[direction, index] in deciding
                if not idle and not decides and rule.action is not Action.PASS:
                    text = "never decides: rules that are asked before it decide all of it"
                    idle.add(_warning(policy, path, text))
                found |= idle
    return sorted(found.union(_misplaced(state), _tied(item[0] for item in placed.values())))


def _deciding(table: Mapping[PolicyKey, PolicyRecord]) -> set[int]:
    """The rules that decide something for somebody."""
    if not isinstance(table, PolicyTable):
        return {record.rule for record in table.values()}
    ladders = {id(rungs): rungs for pairs in table.subjects.values() for rungs in pairs.values()}
    return {record.rule for rungs in ladders.values() for _, record in rungs}


def _idle(rule: Rule, direction: Direction, placements: list[Placement]) -> Iterator[str]:
    """What of a rule nobody is."""
    for number, peer in enumerate(rule.peers or ()):
        terms = [placement.asked[question_of(peer, placement.policy)] for placement in placements]
        if not any(term.parties for term in terms):
            yield f"peer {number} ({peer}) is nobody"
    for port in rule.ports or ():
        if port.name is None:
            continue
        named = [placement.asked[Question(port=port.name)] for placement in placements]
        if direction is Direction.EGRESS:
            declared = any(term.parties for term in named)
        else:
            declared = any(
                group.declares(port.name)
                for placement in placements
                for group in placement.subject.groups
            )
        if not declared:
            yield f"no endpoint that it is about names a port {port.name!r}"


def _misplaced(state: State) -> Iterator[PolicyWarning]:
    """Policies of networks that do not exist, and rules that ``policyTypes`` switches off."""
    networks = {network.name for network in state.networks}
    for policy in state.policies:
        if isinstance(policy, NetworkPolicy) and policy.network not in networks:
            yield _warning(policy, "", f"there is no network {policy.network!r}")
        for direction in Direction:
            name = direction.name.lower()
            if policy.rules(direction) is None and policy.manifest.get("spec", {}).get(name):
                text = f"ignored, since policyTypes does not hold {name.title()}"
                yield _warning(policy, name, text)


def _tied(placed: Iterable[list[Placement]]) -> Iterator[PolicyWarning]:
    """Cluster policies of one tier and priority about one endpoint: only their names order them."""
    ranked: dict[tuple[object, ...], list[Placement]] = {}
    for placements in placed:
        for placement in placements:
            policy = placement.policy
            if not isinstance(policy, ClusterNetworkPolicy):
                continue
            for direction in Direction:
                if policy.rules(direction) is None:
                    continue
                rank = (policy.tier, policy.priority, direction)
                for other in ranked.setdefault(rank, []):
                    if (
                        other.policy is not policy
                        and other.subject.groups & placement.subject.groups
                    ):
                        first, second = sorted((other.policy, policy), key=lambda item: item.name)
                        text = f"asked after {first.title!r} only because of its name"
                        yield _warning(second, "priority", text)
                ranked[rank].append(placement)


def _warning(policy: Policy, path: str, text: str) -> PolicyWarning:
    where = policy.source.at(path if path in policy.source.lines else "")
    return PolicyWarning(policy.title, path, where, text)
