# SPDX-License-Identifier: Apache-2.0
"""The policy table as the compiler keeps it: shared, not copied, between generations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from slimnet.model import Direction
from slimnet.policy.compile.ladder import Ladder
from slimnet.tables import PolicyKey, PolicyRecord

__all__ = ["Pairs", "PolicyTable"]

#: (direction, peer identity) to that pair's records.
Pairs = Mapping[tuple[Direction, int], Ladder]


class PolicyTable(Mapping[PolicyKey, PolicyRecord]):
    """Reads as the mapping that :class:`~slimnet.tables.Tables` promises.

    Most pairs of identities have the same records as many others: the compiler keeps
    each such ladder once, and each subject's pairs as one mapping, which a new
    generation takes over unless it changed.

    Args:
        subjects: subject identity to its pairs; not changed any more.
    """

    def __init__(self, subjects: Mapping[int, Pairs]) -> None:
        self.subjects = subjects
        self._length = -1

    def __getitem__(self, key: PolicyKey) -> PolicyRecord:
        wanted = (key.protocol, key.port, key.port_bits)
        for width, record in self.subjects[key.subject][key.direction, key.peer]:
            if width == wanted:
                return record
        raise KeyError(key)

    def __iter__(self) -> Iterator[PolicyKey]:
        for subject, pairs in self.subjects.items():
            for (direction, peer), rungs in pairs.items():
                for (protocol, port, bits), _ in rungs:
                    yield PolicyKey(subject, peer, direction, protocol, port, bits)

    def __len__(self) -> int:
        if self._length < 0:
            self._length = sum(
                len(rungs) for pairs in self.subjects.values() for rungs in pairs.values()
            )
        return self._length

    def __repr__(self) -> str:
        return f"<PolicyTable of {len(self)} records>"
