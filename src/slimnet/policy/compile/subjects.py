# SPDX-License-Identifier: Apache-2.0
"""The records of the endpoints that live on this host, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakValueDictionary

from attrs import define

from slimnet.model import Direction
from slimnet.policy.compile.applied import AppliedPolicy
from slimnet.policy.compile.ladder import Ladder
from slimnet.policy.compile.rulebook import Rulebook
from slimnet.policy.compile.term import Party, Term

__all__ = ["Subjects"]

_Pairs = dict[tuple[Direction, int], Ladder]


@define(eq=False)
class _Subject:
    rulebooks: dict[Direction, Rulebook]
    terms: dict[Direction, set[Term]]


class Subjects:
    """Keeps for every local party its records for every peer.

    Args:
        parties: all parties of the network by identity; the owner keeps it.
        names: the terms of named ports by name; likewise.
        outside: the term that all parties fulfil that are no endpoints.
    """

    def __init__(
        self, parties: Mapping[int, Party], names: Mapping[str, Term], outside: Term
    ) -> None:
        self._outside = outside
        self._parties = parties
        self._names = names
        self._subjects: dict[int, _Subject] = {}
        self._rulebooks: WeakValueDictionary[tuple[object, ...], Rulebook] = WeakValueDictionary()
        self._stale: set[int] = set()
        self._moved: dict[int, set[int]] = {}
        #: Subject to its pairs; a settled subject's mapping is never changed, but replaced.
        self.pairs: dict[int, _Pairs] = {}

    def renew(self, identity: int) -> None:
        """This subject comes, goes, or has other rules."""
        self._stale.add(identity)

    def peer_changed(self, party: Party, terms: Iterable[Term]) -> None:
        """A peer came, went, or fulfils these terms no more or only now."""
        for term in terms:
            for subject, _ in term.uses:
                self._moved.setdefault(subject, set()).add(party.identity)

    def settle(self, local: Mapping[int, Party]) -> set[int]:
        """Take the changes in.

        Args:
            local: the parties with members on this host.

        Returns:
            The subjects whose pairs may have changed.
        """
        for identity in self._stale:
            self._forget(identity)
            party = local.get(identity)
            if party is None:
                self.pairs.pop(identity, None)
            else:
                self.pairs[identity] = self._build(identity, party)
        for identity, peers in self._moved.items():
            if identity in self._stale or identity not in self._subjects:
                continue
            pairs = dict(self.pairs[identity])
            for direction, rulebook in self._subjects[identity].rulebooks.items():
                for peer in peers:
                    party = self._parties.get(peer)
                    rungs = None if party is None else rulebook.ask(party)
                    if rungs is None:
                        pairs.pop((direction, peer), None)
                    else:
                        pairs[direction, peer] = rungs
            self.pairs[identity] = pairs
        changed = self._stale | self._moved.keys()
        self._stale, self._moved = set(), {}
        return changed

    def _forget(self, identity: int) -> None:
        subject = self._subjects.pop(identity, None)
        if subject is not None:
            for direction, terms in subject.terms.items():
                for term in terms:
                    term.uses.discard((identity, direction))

    def _build(self, identity: int, party: Party) -> _Pairs:
        selecting = {
            applied
            for term in (party.group.terms if party.group else ())
            for applied in term.selects
            if isinstance(applied, AppliedPolicy)
        }
        ordered = sorted(selecting, key=lambda applied: applied.order)
        subject = _Subject({}, {})
        pairs: _Pairs = {}
        for direction in Direction:
            applied_policies = tuple(item for item in ordered if direction in item.lines)
            if not applied_policies:
                continue
            rulebook = self._rulebook(applied_policies, direction, party)
            terms = {
                *rulebook.terms(self._outside),
                *(self._names[name] for name in rulebook.names),
            }
            subject.rulebooks[direction] = rulebook
            subject.terms[direction] = terms
            for term in terms:
                term.uses.add((identity, direction))
            if rulebook.default is not None:
                pairs[direction, 0] = rulebook.default
            for peer in set().union(*(term.parties for term in terms)):
                rungs = rulebook.ask(self._parties[peer])
                if rungs is not None:
                    pairs[direction, peer] = rungs
        self._subjects[identity] = subject
        return pairs

    def _rulebook(
        self, applied_policies: tuple[AppliedPolicy, ...], direction: Direction, party: Party
    ) -> Rulebook:
        declared = party.mark[1] if party.mark and direction is Direction.INGRESS else ()
        key = (direction, declared, applied_policies)
        rulebook = self._rulebooks.get(key)
        if rulebook is None:
            rulebook = Rulebook(
                tuple(line for item in applied_policies for line in item.lines[direction]),
                isolated=any(item.isolates for item in applied_policies),
                direction=direction,
                declared=dict(declared),
            )
            self._rulebooks[key] = rulebook
        return rulebook
