# SPDX-License-Identifier: Apache-2.0
"""What rules ask of a party, each question once, with who fulfils it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from attrs import define, field, frozen
from netaddr import IPNetwork

from slimnet.model import Direction
from slimnet.policy.rule import Block, Peer
from slimnet.policy.selector import Selector

__all__ = ["Group", "Mark", "Party", "Question", "Term"]

#: A use of a term: (subject identity, direction).
Use = tuple[int, Direction]


@frozen
class Question:
    """A term's meaning.

    Attributes:
        peer: as a rule says it; empty for ``port``.
        namespace: the policy's, where the peer's own says nothing.
        port: endpoints that declare a port of this name.
    """

    peer: Peer = Peer()
    namespace: str = ""
    port: str = ""

    def typical(self, overlay: Iterable[IPNetwork]) -> bool:
        """Whether every endpoint in these ranges fulfils it, whatever its labels."""
        if self.port or self.nodes is not None:
            return False
        block, spaces, pods = self.block, self.peer.namespaces, self.peer.pods
        if block is None:
            return (
                spaces is not None and not spaces.requirements and not (pods or spaces).requirements
            )
        holes = [hole for hole in block.excepts if any(_meet(hole, cidr) for cidr in overlay)]
        return not holes and all(cidr in block.cidr for cidr in overlay)

    @property
    def block(self) -> Block | None:
        """The range, where it asks for one."""
        return self.peer.block

    @property
    def nodes(self) -> Selector | None:
        """What it selects hosts by, where it does."""
        return self.peer.nodes

    @property
    def exact(self) -> bool:
        """Whether it names hosts: by selecting nodes, or as one single address."""
        block = self.peer.block
        return self.peer.nodes is not None or (block is not None and block.cidr.size == 1)


def _meet(one: IPNetwork, other: IPNetwork) -> bool:
    return one in other or other in one


@define(eq=False)
class Term:
    """A question and who fulfils it at the moment.

    Attributes:
        question: what is asked.
        typical: every endpoint of the network fulfils it, now and ever.
        references: how many rules and subjects of policies ask it.
        groups: for questions about labels, who fulfils it.
        parties: the identities of the parties that fulfil it.
        uses: the subjects whose rules ask it.
        selects: the applied policies whose subject it is.
    """

    question: Question
    typical: bool = False
    references: int = 0
    groups: set[Group] = field(factory=set)
    parties: set[int] = field(factory=set)
    uses: set[Use] = field(factory=set)
    selects: set[object] = field(factory=set)


#: What divides a group: the terms of its members' addresses, and their named ports.
Mark = tuple[frozenset[Term], tuple[tuple[str, tuple[str, int]], ...]]


@define(eq=False)
class Group:
    """Endpoints with one store identity: same namespace, same labels.

    Attributes:
        identity: given by the store.
        namespace: its namespace's name.
        labels: the endpoints' labels.
        terms: the questions about labels that it fulfils.
        members: endpoint ids in order, by what divides them.
        local: how many of them live on this host, likewise.
        parties: the parties that it is divided into, likewise.
    """

    identity: int
    namespace: str
    labels: Mapping[str, str]
    terms: set[Term] = field(factory=set)
    members: dict[Mark, list[int]] = field(factory=dict)
    local: Counter[Mark] = field(factory=Counter)
    parties: dict[Mark, Party] = field(factory=dict)

    def declares(self, name: str) -> bool:
        """Whether any member has a port of this name, as far as a rule uses it."""
        return any(name in dict(ports) for _, ports in self.members)


@define(eq=False)
class Party:
    """What policy cannot tell apart: part of a group, or ranges, or hosts.

    Attributes:
        identity: its number in the tables.
        terms: all questions that it fulfils.
        group: whose part it is; ``None`` for ranges and hosts.
        mark: which part.
        host: an underlay address of a host of the cluster.
        name: what its number was made from; empty where it is a store identity.
    """

    identity: int
    terms: set[Term]
    group: Group | None = None
    mark: Mark | None = None
    host: bool = False
    name: str = ""

    def port(self, name: str) -> tuple[str, int] | None:
        """Protocol and number of a port that it declares by this name."""
        for known, port in self.mark[1] if self.mark else ():
            if known == name:
                return port
        return None
