# SPDX-License-Identifier: Apache-2.0
"""One network's share of the tables, kept up to date change by change.

What a change touches is noted; :meth:`NetworkCompiler.settle` then works on that only::

    policies -> terms -> ranges -> endpoints -> groups -> parties -> subjects -> pairs
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Mapping

from attrs import define, field
from netaddr import IPNetwork

from slimnet import contract, wires
from slimnet.model import Endpoint, Host, Namespace, Network, Wire
from slimnet.policy.compile.applied import AppliedPolicy, RuleIds, place, questions
from slimnet.policy.compile.hosts import HostRanges
from slimnet.policy.compile.number import Numbers
from slimnet.policy.compile.population import Population
from slimnet.policy.compile.ranges import Prefix, Ranges, inside, network_of, prefix_of
from slimnet.policy.compile.subjects import Subjects
from slimnet.policy.compile.term import Group, Mark, Party, Question, Term
from slimnet.policy.document import Policy
from slimnet.policy.state import host_labels
from slimnet.tables import CidrRecord

__all__ = ["NetworkCompiler", "PolicyName", "Settled"]

#: Network and namespace, both empty for a cluster's policy, and name.
PolicyName = tuple[str, str, str]


@define
class Settled:
    """What :meth:`NetworkCompiler.settle` changed: ids of endpoints, subjects; whether ranges."""

    endpoints: set[int] = field(factory=set)
    subjects: set[int] = field(factory=set)
    ranges: bool = False


class NetworkCompiler:
    """What policy means in one network, seen from one host.

    Args:
        network: which.
        hosts: the cluster's.
        host: the name of the host whose endpoints' records are wanted; ``None``: all.
        numbers: gives the identities of parties that are no whole group.

    Attributes:
        identity: endpoint id to identity in the tables.
        cidrs: range to record.
        subjects: the policy records.
        applied_policies: the policies that apply here, by name.
    """

    def __init__(
        self, network: Network, hosts: Collection[Host], host: str | None, numbers: Numbers
    ) -> None:
        self.network = network
        self._judged = _judged(hosts, host)
        self._numbers = numbers
        self._hosts = HostRanges(hosts, network.cidrs, host)
        self._ranges = Ranges([*network.cidrs, *self._hosts.networks()])
        self._overlay = [prefix_of(cidr) for cidr in network.cidrs]
        self._written: dict[Prefix, IPNetwork] = {}
        self._population = Population()
        self._terms: dict[Question, Term] = {}
        self._names: dict[str, Term] = {}
        self._unused: set[Term] = set()
        self.applied_policies: dict[PolicyName, AppliedPolicy] = {}
        self._endpoints: dict[int, Endpoint] = {}
        self._by_address: dict[tuple[int, int], int] = {}
        self._declaring: dict[str, set[int]] = {}
        self._places: dict[int, tuple[Group, Mark]] = {}
        self._parties: dict[int, Party] = {}
        self._local: dict[int, Party] = {}
        self._outside: dict[int, Party] = {}
        self._outer = Term(Question())
        self._dirty: set[int] = set()
        self._dirty_groups: set[Group] = set()
        self._dirty_nodes = True
        self.identity: dict[int, int] = {}
        self.cidrs: dict[tuple[int, IPNetwork], CidrRecord] = {}
        self.subjects = Subjects(self._parties, self._names, self._outer)

    def __contains__(self, identity: int) -> bool:
        """Whether a store identity is one of this network's."""
        return identity in self._population

    def set_namespace(self, name: str, namespace: Namespace | None) -> None:
        """A namespace has other labels, or (``None``) none but its name."""
        for group, term in self._population.set_labels(name, namespace.labels if namespace else {}):
            for party in group.parties.values():
                self._toggle(party, term)
                if term.selects:
                    self.subjects.renew(party.identity)

    def set_endpoint(self, endpoint: Endpoint) -> None:
        """A new endpoint."""
        address = endpoint.address
        self._endpoints[endpoint.id] = endpoint
        self._by_address[address.version, int(address)] = endpoint.id
        self._ranges.add_address(address)
        for name in endpoint.ports:
            self._declaring.setdefault(name, set()).add(endpoint.id)
        self._dirty.add(endpoint.id)
        self._dirty_groups.add(self._population.group(endpoint))

    def drop_endpoint(self, identifier: int) -> None:
        """An endpoint goes. (One that changes goes and comes.)"""
        endpoint = self._endpoints.pop(identifier)
        address = endpoint.address
        del self._by_address[address.version, int(address)]
        self._ranges.drop_address(address)
        for name in endpoint.ports:
            self._declaring[name].remove(identifier)
            if not self._declaring[name]:
                del self._declaring[name]
        self._dirty.discard(identifier)
        self._unplace(endpoint)
        self.identity.pop(identifier, None)

    def set_policy(self, name: PolicyName, policy: Policy | None, ids: RuleIds) -> None:
        """A policy comes, changes, or (``None``) goes."""
        old = self.applied_policies.pop(name, None)
        if policy is not None:
            for question in questions(policy):
                self._take(question)
            applied = self.applied_policies[name] = place(policy, self._terms, ids)
            applied.subject.selects.add(applied)
            self._renew_selected(applied)
        if old is not None:
            old.subject.selects.remove(old)
            self._renew_selected(old)
            for term in old.asked.values():
                self._release(term)

    def settle(self) -> Settled:
        """Take the changes in."""
        settled = Settled()
        self._drop_unused()
        moved, touched = self._ranges.settle()
        self._dirty |= {self._by_address[place] for place in touched}
        self._settle_endpoints()
        settled.endpoints = self._dirty
        self._dirty = set()
        for group in self._dirty_groups:
            settled.endpoints |= self._settle_group(group)
        for identifier in settled.endpoints:
            group, mark = self._places[identifier]
            self.identity[identifier] = group.parties[mark].identity
        self._dirty_groups = set()
        if moved or self._dirty_nodes:
            self._settle_outside()
            settled.ranges = True
            self._dirty_nodes = False
        settled.subjects = self.subjects.settle(self._local)
        return settled

    # Terms

    def _take(self, question: Question) -> None:
        term = self._terms.get(question)
        if term is not None:
            term.references += 1
            return
        term = self._terms[question] = Term(question, question.typical(self.network.cidrs), 1)
        if question.port:
            self._names[question.port] = term
            self._dirty.update(self._declaring.get(question.port, ()))
        elif question.block is not None:
            self._ranges.add_block(term, question.block)
        elif question.nodes is not None:
            self._dirty_nodes = True
        else:
            self._population.add_term(term)
            for group in term.groups:
                for party in group.parties.values():
                    self._toggle(party, term)

    def _release(self, term: Term) -> None:
        term.references -= 1
        if not term.references:
            self._unused.add(term)

    def _drop_unused(self) -> None:
        """Terms that one policy let go of and another took up meanwhile stay as they are."""
        for term in self._unused:
            if not term.references:
                self._drop(term)
        self._unused = set()

    def _drop(self, term: Term) -> None:
        question = term.question
        del self._terms[question]
        if question.port:
            del self._names[question.port]
            self._dirty.update(self._declaring.get(question.port, ()))
        elif question.block is not None:
            self._ranges.drop_block(term, question.block)
        elif question.nodes is not None:
            self._dirty_nodes = True
        else:
            self._population.drop_term(term)
            for group in term.groups:
                for party in group.parties.values():
                    self._toggle(party, term)

    def _renew_selected(self, applied: AppliedPolicy) -> None:
        for group in applied.subject.groups:
            for party in group.parties.values():
                self.subjects.renew(party.identity)

    # Endpoints and groups

    def _settle_endpoints(self) -> None:
        for identifier in self._dirty:
            endpoint = self._endpoints[identifier]
            address = endpoint.address
            ports = tuple(
                (name, (kind, number))
                for name, (kind, number) in sorted(endpoint.ports.items())
                if name in self._names
            )
            mark = (self._ranges.terms(address.version, int(address)), ports)
            old = self._places.get(identifier)
            if old is not None:
                if old[1] == mark:
                    continue
                self._unplace(endpoint)
            group = self._population.group(endpoint)
            self._places[identifier] = (group, mark)
            members = group.members.setdefault(mark, [])
            insort(members, identifier)
            group.local[mark] += endpoint.host in self._judged
            self._dirty_groups.add(group)

    def _unplace(self, endpoint: Endpoint) -> None:
        place = self._places.pop(endpoint.id, None)
        if place is None:
            return
        group, mark = place
        group.members[mark].remove(endpoint.id)
        group.local[mark] -= endpoint.host in self._judged
        if not group.members[mark]:
            del group.members[mark], group.local[mark]
        self._dirty_groups.add(group)

    def _settle_group(self, group: Group) -> set[int]:
        """Divide a group anew; which of its members have a new identity."""
        old, new = group.parties, {}
        renumbered: set[int] = set()
        lowest = min((members[0] for members in group.members.values()), default=0)
        for mark, members in group.members.items():
            # The part with the oldest member keeps the store's number.
            name = "" if members[0] == lowest else f"part/{group.identity}/{members[0]}"
            number = self._numbers.take(name) if name else group.identity
            party = old.get(mark)
            if party is None or party.identity != number:
                ports = {self._names[port] for port, _ in mark[1]}
                party = Party(number, {*group.terms, *mark[0], *ports}, group, mark, name=name)
                renumbered.update(members)
            new[mark] = party
        group.parties = new
        for mark, party in old.items():
            if party.name:
                self._numbers.release(party.name)
            if new.get(mark) is not party:
                self._leave(party)
        for mark, party in new.items():
            if old.get(mark) is not party:
                self._join(party)
            if bool(group.local[mark]) != (party.identity in self._local):
                self.subjects.renew(party.identity)
                if group.local[mark]:
                    self._local[party.identity] = party
                else:
                    del self._local[party.identity]
        if not new:
            self._population.drop_group(group)
        return renumbered

    # Parties

    def _join(self, party: Party) -> None:
        self._parties[party.identity] = party
        for term in party.terms:
            term.parties.add(party.identity)
        self.subjects.peer_changed(party, party.terms)

    def _leave(self, party: Party) -> None:
        del self._parties[party.identity]
        if self._local.pop(party.identity, None) is not None:
            self.subjects.renew(party.identity)
        for term in party.terms:
            term.parties.discard(party.identity)
        self.subjects.peer_changed(party, party.terms)

    def _toggle(self, party: Party, term: Term) -> None:
        """A party fulfils a term only now, or no more."""
        party.terms ^= {term}
        term.parties ^= {party.identity}
        self.subjects.peer_changed(party, (term,))

    def _settle_outside(self) -> None:
        """Ranges and hosts: what falls into the same blocks is one party."""
        nodes = [term for term in self._terms.values() if term.question.nodes is not None]
        classes: dict[tuple[frozenset[Term], bool], list[Prefix]] = {}
        for prefix, terms in self._ranges:
            host = self._hosts.find(prefix)
            if host is not None:
                labels = host_labels(host)
                terms |= {term for term in nodes if _selects(term, labels)}
            classes.setdefault((terms, host is not None), []).append(prefix)
        # Even where no range is named, there is a world outside.
        classes.setdefault((frozenset(), False), [])
        old, self._outside, cidrs = self._outside, {}, {}
        written: dict[Prefix, IPNetwork] = {}
        for (terms, is_host), prefixes in classes.items():
            name = ""
            number = contract.SLIM_IDENTITY_HOST if is_host else contract.SLIM_IDENTITY_WORLD
            if terms:
                name = f"range/{self.network.vni}/{min(prefixes)}"
                number = self._numbers.take(name)
            known = old.get(number)
            if known is None or known.terms != {*terms, self._outer} or known.host is not is_host:
                known = Party(number, {*terms, self._outer}, host=is_host, name=name)
            self._outside[number] = known
            for prefix in prefixes:
                written[prefix] = self._written.get(prefix) or network_of(prefix)
                key = (self.network.vni, written[prefix])
                overlay = any(inside(prefix, cidr) for cidr in self._overlay)
                cidrs[key] = CidrRecord(number, overlay, is_host)
        self.cidrs, self._written = cidrs, written
        for party in old.values():
            if party.name:
                self._numbers.release(party.name)
            if self._outside.get(party.identity) is not party:
                self._leave(party)
        for party in self._outside.values():
            if old.get(party.identity) is not party:
                self._join(party)


def _selects(term: Term, labels: Mapping[str, str]) -> bool:
    nodes = term.question.nodes
    return nodes is not None and nodes.matches(labels)


def _judged(hosts: Collection[Host], here: str | None) -> set[str]:
    """Those whose endpoints' policies stand in the tables: the host's own, and, of one that
    speaks wire syn, of those that only hear of connections when they are made."""
    own = next((host for host in hosts if host.name == here), None)
    names = {host.name for host in hosts if here in {None, host.name}}
    if own is None or not any(each.wire is Wire.SYN for each in own.wires):
        return names
    return names | {host.name for host in hosts if wires.choose(own, host) is Wire.ANNOUNCE}
