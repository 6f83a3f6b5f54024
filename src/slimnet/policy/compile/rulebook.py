# SPDX-License-Identifier: Apache-2.0
"""One subject's rules in one direction, ready to be asked about any peer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from slimnet.model import Direction, Protocol
from slimnet.policy.compile.applied import Line
from slimnet.policy.compile.ladder import DEFAULT_ALLOW, HOST_DENY, Ladder, Span, Step, ladder
from slimnet.policy.compile.term import Party, Term
from slimnet.policy.rule import Port

__all__ = ["Rulebook"]


def _spans(ports: tuple[Port, ...], declared: Mapping[str, tuple[str, int]]) -> tuple[Span, ...]:
    spans: list[Span] = []
    for port in ports:
        if port.name is None:
            if port.protocol is not None:
                spans.append((port.protocol, port.first, port.last))
        elif port.name in declared:
            word, number = declared[port.name]
            protocol = Protocol.__members__.get(word.upper())
            if protocol is not None and port.protocol in {None, protocol}:
                spans.append((protocol, number, number))
    return tuple(spans)


class Rulebook:
    """The lines in the order in which they are asked.

    It compresses: tables have one wildcard entry (peer 0) for all endpoints that match only
    the selectors that match every endpoint (:attr:`.Term.typical`), such as "from all
    namespaces". Another peer has an entry of its own only where its answer differs from
    that one. What is outside of the overlay matches no such selector and has its own too.

    Args:
        lines: ordered.
        isolated: whether a NetworkPolicy selects the subject for this direction.
        direction: the subject's.
        declared: the subject's named ports.
    """

    def __init__(
        self,
        lines: tuple[Line, ...],
        *,
        isolated: bool,
        direction: Direction,
        declared: Mapping[str, tuple[str, int]],
    ) -> None:
        self._lines = lines
        self._isolated = isolated
        # Hosts of the cluster are guarded against what leaves the overlay.
        self._guards = direction is Direction.EGRESS
        # A named port is the destination's: the subject's own or, outgoing, the peer's.
        self._names: tuple[str, ...] = ()
        self._declared = declared
        if direction is Direction.EGRESS:
            self._declared = {}
            self._names = tuple(
                sorted({port.name for line in lines for port in line.ports or () if port.name})
            )
        self._ladders: dict[tuple[object, ...], Ladder | None] = {}
        self._typical = False
        everybody = []
        for index, line in enumerate(lines):
            typical = line.terms is not None and any(term.typical for term in line.terms)
            self._typical |= typical
            if typical or line.terms is None:
                everybody.append((index, False))
        self.any = self._ladder(tuple(everybody), (), host=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the peer's ports that it asks for."""
        return self._names

    def terms(self, outside: Term) -> Iterator[Term]:
        """The terms of the peers for whom it may say something else than for any.

        Args:
            outside: the term of whoever is no endpoint, and so lacks the typical terms.
        """
        for line in self._lines:
            yield from (term for term in line.terms or () if not term.typical)
        if self._typical:
            yield outside

    @property
    def default(self) -> Ladder | None:
        """What holds for any peer; ``None`` where nothing is to be written for that."""
        if len(self.any) == 1 and self.any[0][1] == DEFAULT_ALLOW:
            return None
        return self.any

    def ask(self, party: Party) -> Ladder | None:
        """The records for one peer; ``None`` where those for any peer say the same."""
        host = party.host and self._guards
        matched = []
        for index, line in enumerate(self._lines):
            if line.terms is None:
                matched.append((index, False))
            elif not line.terms.isdisjoint(party.terms):
                exact = host and any(term.question.exact for term in line.terms & party.terms)
                matched.append((index, exact))
        ports = tuple(party.port(name) for name in self._names)
        key = (host, ports, *matched)
        if key not in self._ladders:
            rungs = self._ladder(tuple(matched), ports, host=host)
            nothing = ((((None, 0, 0), HOST_DENY)),) if host else self.any
            self._ladders[key] = None if rungs == nothing else rungs
        return self._ladders[key]

    def _ladder(
        self,
        matched: tuple[tuple[int, bool], ...],
        ports: tuple[tuple[str, int] | None, ...],
        *,
        host: bool,
    ) -> Ladder:
        declared = {
            name: port for name, port in zip(self._names, ports, strict=False) if port is not None
        } or self._declared
        steps = []
        for index, exact in matched:
            line = self._lines[index]
            spans = None if line.ports is None else _spans(line.ports, declared)
            if spans is None or spans:
                steps.append(Step(line.stage, line.action, line.record, spans, exact))
        return ladder(steps, isolated=self._isolated, host=host)
