# SPDX-License-Identifier: Apache-2.0
"""Groups by their labels: a selector costs what it selects, not what there is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from slimnet.policy.compile.term import Group
from slimnet.policy.selector import Operator, Requirement, Selector

__all__ = ["LabelIndex"]

_Key = TypeVar("_Key", bound=Hashable)


class LabelIndex:
    """Finds the groups that a selector selects."""

    def __init__(self) -> None:
        self._all: set[Group] = set()
        self._by_key: dict[str, set[Group]] = {}
        self._by_label: dict[tuple[str, str], set[Group]] = {}

    def add(self, group: Group) -> None:
        """A new group."""
        self._all.add(group)
        for key, value in group.labels.items():
            self._by_key.setdefault(key, set()).add(group)
            self._by_label.setdefault((key, value), set()).add(group)

    def drop(self, group: Group) -> None:
        """A group that goes."""
        self._all.remove(group)
        for key, value in group.labels.items():
            _remove(self._by_key, key, group)
            _remove(self._by_label, (key, value), group)

    def select(self, selector: Selector) -> set[Group]:
        """All groups that it selects, as a new set."""
        found: set[Group] | None = None
        without: list[Requirement] = []
        for requirement in selector.requirements:
            if requirement.operator in {Operator.NOT_IN, Operator.DOES_NOT_EXIST}:
                without.append(requirement)
                continue
            some = self._with(requirement)
            found = some if found is None else found & some
        if found is None:
            found = set(self._all)
        for requirement in without:
            found -= self._with(requirement)
        return found

    def _with(self, requirement: Requirement) -> set[Group]:
        """Those that have the key, or the key with one of the values."""
        if not requirement.values:
            return set(self._by_key.get(requirement.key, ()))
        return set().union(
            *(self._by_label.get((requirement.key, value), ()) for value in requirement.values)
        )


def _remove(index: dict[_Key, set[Group]], key: _Key, group: Group) -> None:
    """Take a group out; nothing is kept for labels that nobody carries any more."""
    index[key].remove(group)
    if not index[key]:
        del index[key]
