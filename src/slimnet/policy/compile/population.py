# SPDX-License-Identifier: Apache-2.0
"""Who lives in a network: namespaces, groups, and the questions about their labels."""

from __future__ import annotations

from collections.abc import Mapping

from slimnet.exceptions import InvalidValue
from slimnet.model import Endpoint
from slimnet.policy.compile.labels import LabelIndex
from slimnet.policy.compile.term import Group, Term
from slimnet.policy.state import namespace_labels

__all__ = ["Population"]


class Population:
    """Keeps for every group and every question about labels whether they match."""

    def __init__(self) -> None:
        self._labels: dict[str, Mapping[str, str]] = {}
        self._groups: dict[int, Group] = {}
        self._by_namespace: dict[str, set[Group]] = {}
        self._index = LabelIndex()
        self._terms: set[Term] = set()

    def __contains__(self, identity: int) -> bool:
        return identity in self._groups

    def group(self, endpoint: Endpoint) -> Group:
        """The endpoint's group, a new one where there is none.

        Raises:
            InvalidValue: its identity belongs to other labels.
        """
        group = self._groups.get(endpoint.identity)
        if group is not None:
            if (group.namespace, group.labels) != (endpoint.namespace, endpoint.labels):
                raise InvalidValue(
                    f"endpoints.{endpoint.full_name}.identity",
                    "a number that no other labels or namespace have",
                    endpoint.identity,
                )
            return group
        group = Group(endpoint.identity, endpoint.namespace, endpoint.labels)
        self._groups[group.identity] = group
        self._by_namespace.setdefault(group.namespace, set()).add(group)
        self._index.add(group)
        for term in self._terms:
            if self._holds(term, group):
                term.groups.add(group)
                group.terms.add(term)
        return group

    def drop_group(self, group: Group) -> None:
        """Forget a group without members."""
        del self._groups[group.identity]
        self._by_namespace[group.namespace].remove(group)
        if not self._by_namespace[group.namespace]:
            del self._by_namespace[group.namespace]
        self._index.drop(group)
        for term in group.terms:
            term.groups.remove(group)

    def add_term(self, term: Term) -> None:
        """A new question about labels; says who fulfils it."""
        self._terms.add(term)
        peer = term.question.peer
        if peer.namespaces is None:
            within = self._by_namespace.get(term.question.namespace, set())
            term.groups = (
                {group for group in within if peer.pods.matches(group.labels)}
                if peer.pods is not None
                else set(within)
            )
        elif peer.namespaces.requirements:
            chosen = [
                groups
                for name, groups in self._by_namespace.items()
                if peer.namespaces.matches(self.labels(name))
            ]
            term.groups = set().union(*chosen)
            if peer.pods is not None and peer.pods.requirements:
                term.groups &= self._index.select(peer.pods)
        else:
            term.groups = self._index.select(peer.pods or peer.namespaces)
        for group in term.groups:
            group.terms.add(term)

    def drop_term(self, term: Term) -> None:
        """Nobody asks any more."""
        self._terms.remove(term)
        for group in term.groups:
            group.terms.remove(term)

    def set_labels(self, namespace: str, labels: Mapping[str, str]) -> list[tuple[Group, Term]]:
        """A namespace has these labels from now on; what changed by that."""
        self._labels[namespace] = namespace_labels(namespace, labels)
        if not labels:
            del self._labels[namespace]
        changed = []
        for group in self._by_namespace.get(namespace, ()):
            for term in self._terms:
                held, holds = term in group.terms, self._holds(term, group)
                if held == holds:
                    continue
                changed.append((group, term))
                if holds:
                    group.terms.add(term)
                    term.groups.add(group)
                else:
                    group.terms.remove(term)
                    term.groups.remove(group)
        return changed

    def labels(self, namespace: str) -> Mapping[str, str]:
        """A namespace's labels."""
        return self._labels.get(namespace) or namespace_labels(namespace)

    def _holds(self, term: Term, group: Group) -> bool:
        peer = term.question.peer
        if peer.namespaces is None:
            if group.namespace != term.question.namespace:
                return False
        elif not peer.namespaces.matches(self.labels(group.namespace)):
            return False
        return peer.pods is None or peer.pods.matches(group.labels)
