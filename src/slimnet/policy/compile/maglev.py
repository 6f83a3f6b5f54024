# SPDX-License-Identifier: Apache-2.0
"""Consistent choice: which slot of a service's table is whose.

Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
Balancer", NSDI 2016, section 3.4): each backend has a preference list of slots of its
own, and in turns each takes the first free one of its list. Weights give the turns, as
the paper proposes: a backend's turns come at times that depend on its own weight only,
so that a backend that leaves takes its turns with it and changes no other's.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from heapq import heapreplace

from slimnet import contract

__all__ = ["table"]


@lru_cache(maxsize=1024)
def table(weights: tuple[tuple[str, int], ...]) -> tuple[int, ...]:
    """The slots, each with the position in ``weights`` of whose it is.

    Every backend has at least one as long as there are enough; beyond that they have them
    in proportion to their weights.

    Args:
        weights: (a name that stays the same, its weight above 0), sorted; at least one.
    """
    size = contract.SLIM_SERVICE_SLOTS
    lists = [_preferences(name, size) for name, _ in weights]
    slots = [-1] * size
    turns = [0] * len(weights)
    heap = [(0.0, position) for position in range(len(weights))]
    for _ in range(size):
        position = heap[0][1]
        slot, skip = lists[position]
        while slots[slot] >= 0:
            slot = (slot + skip) % size
        slots[slot] = position
        lists[position] = (slot + skip) % size, skip
        turns[position] += 1
        heapreplace(heap, ((turns[position] + 0.5) / weights[position][1], position))
    return tuple(slots)


def _preferences(name: str, size: int) -> tuple[int, int]:
    """The first slot that it likes, and how far it is to the next one."""
    digest = hashlib.blake2s(name.encode(), digest_size=16).digest()
    offset, skip = (int.from_bytes(half, "big") for half in (digest[:8], digest[8:]))
    return offset % size, skip % (size - 1) + 1
