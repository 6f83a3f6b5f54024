# SPDX-License-Identifier: Apache-2.0
"""Ordered rules for one pair of parties, as records for longest-prefix look-up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from slimnet.model import Reason
from slimnet.policy.rule import Action
from slimnet.tables import PolicyRecord

__all__ = ["Ladder", "Rung", "Step", "Width", "ladder"]

#: Protocol (``None``: any), first port of the range, leading bits that are matched.
Width = tuple[int | None, int, int]
Rung = tuple[Width, PolicyRecord]
#: All records for one pair, the widest first. Equal meaning is equal value.
Ladder = tuple[Rung, ...]

#: Protocol, first and last port.
Span = tuple[int, int, int]

DEFAULT_ALLOW = PolicyRecord(True, Reason["DEFAULT_ALLOW"])
DEFAULT_DENY = PolicyRecord(False, Reason["DEFAULT_DENY"])
HOST_DENY = PolicyRecord(False, Reason["HOST_DENY"])

ADMIN, NAMESPACED, BASELINE = range(3)


@frozen
class Step:
    """One rule, reduced to what matters once its peer is known to match.

    Attributes:
        stage: ADMIN, NAMESPACED or BASELINE.
        action: what it does.
        record: the answer, for ACCEPT and DENY.
        spans: the ports; ``None`` for every protocol and port.
        exact: it names the peer, as a host must be named.
    """

    stage: int
    action: Action
    record: PolicyRecord
    spans: tuple[Span, ...] | None
    exact: bool = False


def ladder(steps: Sequence[Step], *, isolated: bool, host: bool) -> Ladder:
    """The records that answer as these steps do, asked in order.

    Args:
        steps: ordered by stage, then as they are asked.
        isolated: a NetworkPolicy selects the subject, so that its stage is final.
        host: the peer is a host of the cluster that is dialled: denied unless a step names it that
            accepts it, or that passes it on as if it were any other address.
    """
    spans: dict[int, set[int]] = {}
    for step in steps:
        for protocol, first, last in step.spans or ():
            spans.setdefault(protocol, {0}).update((first, last + 1))
    widest = _first(steps, None, 0, isolated=isolated, host=host)
    rungs: list[Rung] = [((None, 0, 0), widest)]
    for protocol, cuts in sorted(spans.items()):
        segments: list[tuple[int, int, PolicyRecord]] = []
        edges = sorted(cuts - {65536})
        for first, end in zip(edges, [*edges[1:], 65536], strict=True):
            record = _first(steps, protocol, first, isolated=isolated, host=host)
            if segments and segments[-1][2] == record:
                segments[-1] = (segments[-1][0], end, record)
            else:
                segments.append((first, end, record))
        sizes: dict[PolicyRecord, int] = {}
        for first, end, record in segments:
            sizes[record] = sizes.get(record, 0) + end - first
        wide = max(sizes, key=lambda record: sizes[record])
        if wide != widest:
            rungs.append(((protocol, 0, 0), wide))
        for first, end, record in segments:
            if record != wide:
                rungs += [((protocol, port, bits), record) for port, bits in _prefixes(first, end)]
    return tuple(rungs)


def _first(
    steps: Sequence[Step], protocol: int | None, port: int, *, isolated: bool, host: bool
) -> PolicyRecord:
    guarded, passed = host, -1
    for step in steps:
        if step.stage == passed:
            continue
        if isolated and step.stage == BASELINE:
            break
        if step.spans is not None and not any(
            kind == protocol and first <= port <= last for kind, first, last in step.spans
        ):
            continue
        if step.action is Action.PASS:
            passed = step.stage
            guarded = guarded and not step.exact
        elif step.action is Action.DENY or step.exact or not guarded:
            return step.record
    return HOST_DENY if guarded else DEFAULT_DENY if isolated else DEFAULT_ALLOW


def _prefixes(first: int, end: int) -> Iterator[tuple[int, int]]:
    """The fewest (port, leading bits) that cover first to end - 1."""
    while first < end:
        size = first & -first or 65536
        while size > end - first:
            size //= 2
        yield first, 17 - size.bit_length()
        first += size
