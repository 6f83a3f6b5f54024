# SPDX-License-Identifier: Apache-2.0
"""Label selectors, with the meaning of Kubernetes' ``metav1.LabelSelector``."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from attrs import frozen

__all__ = ["Operator", "Requirement", "Selector"]


class Operator(enum.StrEnum):
    """What a requirement asks of the label under its key."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@frozen
class Requirement:
    """One line of ``matchExpressions``.

    Attributes:
        key: the label's key.
        operator: what is asked of it.
        values: for In and NotIn, at least one; else none.
    """

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels fulfil it. A missing key fulfils NotIn, as in Kubernetes."""
        value = labels.get(self.key)
        if self.operator is Operator.EXISTS:
            return value is not None
        if self.operator is Operator.DOES_NOT_EXIST:
            return value is None
        return (value in self.values) is (self.operator is Operator.IN)

    def __str__(self) -> str:
        if self.operator is Operator.EXISTS:
            return self.key
        if self.operator is Operator.DOES_NOT_EXIST:
            return f"!{self.key}"
        word = "in" if self.operator is Operator.IN else "notin"
        return f"{self.key} {word} ({','.join(sorted(self.values))})"


@frozen
class Selector:
    """All requirements must hold; an empty selector selects everything.

    Attributes:
        requirements: ``matchLabels`` (as In with one value) and ``matchExpressions``.
    """

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects what carries these labels."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ", ".join(str(requirement) for requirement in self.requirements) or "everything"
