# SPDX-License-Identifier: Apache-2.0
"""Longest match as disjoint ranges.

A table whose longest prefix wins, as the compiler writes it, says the same as
a list of ranges that do not overlap, as nftables wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["flatten"]

_Value = TypeVar("_Value")


def flatten(prefixes: Iterable[tuple[int, int, _Value]]) -> Iterator[tuple[int, int, _Value]]:
    """Cut nested ranges into disjoint ones, in order; the narrowest wins.

    Args:
        prefixes: (first, last, value); of two that touch, one holds the other.

    Yields:
        (first, last, value). Neighbours that say the same are joined.
    """
    # Outer ranges come before what they hold, so a stack knows what is open.
    ordered = sorted(prefixes, key=lambda item: (item[0], -item[1]))
    pieces: list[tuple[int, int, _Value]] = []
    stack: list[tuple[int, _Value]] = []
    position = 0

    def emit(last: int, value: _Value) -> None:
        nonlocal position
        if last >= position:
            if pieces and pieces[-1][1] == position - 1 and pieces[-1][2] == value:
                pieces[-1] = (pieces[-1][0], last, value)
            else:
                pieces.append((position, last, value))
            position = last + 1

    for first, last, value in ordered:
        while stack and stack[-1][0] < first:
            emit(*stack.pop())
        if stack:
            emit(first - 1, stack[-1][1])
        position = first
        stack.append((last, value))
    while stack:
        emit(*stack.pop())
    yield from pieces
