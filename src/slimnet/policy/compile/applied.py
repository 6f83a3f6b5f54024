# SPDX-License-Identifier: Apache-2.0
"""A policy where it applies: its rules as ordered lines over terms."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from slimnet.model import Direction, Reason
from slimnet.policy.compile.ladder import ADMIN, BASELINE, NAMESPACED
from slimnet.policy.compile.term import Question, Term
from slimnet.policy.document import ClusterNetworkPolicy, NetworkPolicy, Policy
from slimnet.policy.rule import Action, Peer, Port, Tier
from slimnet.tables import PolicyRecord

__all__ = ["AppliedPolicy", "Line", "RuleIds", "place", "question_of", "questions"]

#: (direction, index of the rule) to the rule's id.
RuleIds = Mapping[tuple[Direction, int], int]


@frozen
class Line:
    """One rule with its peers as terms.

    Attributes:
        stage: see :mod:`slimnet.policy.compile.ladder`.
        action: what it does.
        record: the answer, for ACCEPT and DENY.
        terms: any of which must hold of the peer; ``None``: everybody.
        ports: as in the rule.
    """

    stage: int
    action: Action
    record: PolicyRecord
    terms: frozenset[Term] | None
    ports: tuple[Port, ...] | None


@frozen(eq=False)
class AppliedPolicy:
    """A policy in a network: its rules with their peers as terms.

    Attributes:
        policy: as the user wrote it.
        subject: whom it selects.
        lines: its rules, in order, by direction; a direction of which it says
            nothing is not there.
        asked: everything that it asks, its subject too.
    """

    policy: Policy
    subject: Term
    lines: Mapping[Direction, tuple[Line, ...]]
    asked: Mapping[Question, Term]

    @property
    def order(self) -> tuple[int, int, str, str]:
        """Where it stands among all: stage, priority, then names."""
        policy = self.policy
        priority = policy.priority if isinstance(policy, ClusterNetworkPolicy) else 0
        return _stage(policy), priority, _namespace(policy), policy.name

    @property
    def isolates(self) -> bool:
        """Whether its subject is denied what nothing allows."""
        return isinstance(self.policy, NetworkPolicy)


def questions(policy: Policy) -> list[Question]:
    """Everything that a policy asks, each once; whom it selects comes first."""
    subject = Peer()
    if isinstance(policy, ClusterNetworkPolicy):
        subject = policy.subject
    elif isinstance(policy, NetworkPolicy):
        subject = Peer(pods=policy.subject)
    asked = {question_of(subject, policy): None}
    for direction in Direction:
        for rule in policy.rules(direction) or ():
            for peer in rule.peers or ():
                asked[question_of(peer, policy)] = None
            for port in rule.ports or ():
                if port.name:
                    asked[Question(port=port.name)] = None
    return list(asked)


def place(policy: Policy, terms: Mapping[Question, Term], ids: RuleIds) -> AppliedPolicy:
    """A policy with its questions answered by these terms."""
    lines = {}
    for direction in Direction:
        rules = policy.rules(direction)
        if rules is None:
            continue
        lines[direction] = tuple(
            Line(
                _stage(policy),
                rule.action,
                _record(rule.action, ids[direction, index]),
                None
                if rule.peers is None
                else frozenset(terms[question_of(peer, policy)] for peer in rule.peers),
                rule.ports,
            )
            for index, rule in enumerate(rules)
        )
    asked = {question: terms[question] for question in questions(policy)}
    return AppliedPolicy(policy, next(iter(asked.values())), lines, asked)


def question_of(peer: Peer, policy: Policy) -> Question:
    """What a peer of a policy's rule asks."""
    own = peer.namespaces is None and peer.pods is not None
    return Question(peer, _namespace(policy) if own else "")


def _namespace(policy: Policy) -> str:
    return policy.namespace if isinstance(policy, NetworkPolicy) else ""


def _record(action: Action, rule: int) -> PolicyRecord:
    allow = action is Action.ACCEPT
    return PolicyRecord(allow, Reason["RULE_ALLOW" if allow else "RULE_DENY"], rule)


def _stage(policy: Policy) -> int:
    if isinstance(policy, ClusterNetworkPolicy):
        return ADMIN if policy.tier is Tier.ADMIN else BASELINE
    return NAMESPACED
