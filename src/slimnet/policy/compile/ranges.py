# SPDX-License-Identifier: Apache-2.0
"""Which address ranges the rules divide a network's world into."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from netaddr import IPAddress, IPNetwork

from slimnet.policy.compile.term import Term
from slimnet.policy.rule import Block

__all__ = ["Prefix", "Ranges", "above", "inside", "network_of", "prefix_of"]

#: IP version, first address as a number, prefix length.
Prefix = tuple[int, int, int]

_WIDTH = {4: 32, 6: 128}
_MAPPED = IPNetwork("::ffff:0:0/96")


def prefix_of(network: IPNetwork) -> Prefix:
    """A range as the numbers that this module works with."""
    return network.version, network.first, network.prefixlen


def network_of(prefix: Prefix) -> IPNetwork:
    """The range that :func:`prefix_of` made this of."""
    version, first, length = prefix
    return IPNetwork((first, length), 4 if version == 4 else 6)


def inside(prefix: Prefix, other: Prefix) -> bool:
    """Whether the whole first prefix is in the second."""
    return prefix[0] == other[0] and other in above(prefix, (other[2],))


def above(prefix: Prefix, lengths: Iterable[int]) -> Iterator[Prefix]:
    """The prefixes of these lengths that this one lies in, itself included."""
    version, value, own = prefix
    width = _WIDTH[version]
    for length in lengths:
        if length <= own:
            yield version, value >> (width - length) << (width - length), length


def _ends(block: Block) -> Iterator[IPNetwork]:
    """The ranges at whose ends a block begins, ends or is interrupted."""
    yield block.cidr
    yield from block.excepts
    if block.cidr.version == 6 and _MAPPED in block.cidr:
        # In the tables IPv4 lies inside of IPv6 (v4-mapped); in the rules it does not.
        yield IPNetwork("0.0.0.0/0")


class Ranges:
    """All prefixes that any range ends at; each is inside the same blocks throughout.

    An address therefore fulfils the terms of its longest prefix here.

    Args:
        fixed: ranges that are told apart whatever the rules say: the overlay's, the hosts'.
    """

    def __init__(self, fixed: Iterable[IPNetwork]) -> None:
        self._count: dict[Prefix, int] = {}
        self._lengths: dict[int, list[int]] = {4: [], 6: []}
        self._per_length: dict[tuple[int, int], int] = {}
        self._blocks: dict[Prefix, list[tuple[Block, Term]]] = {}
        self._terms: dict[Prefix, frozenset[Term]] = {}
        self._addresses: dict[int, list[int]] = {4: [], 6: []}
        self._changed: set[Prefix] = set()
        for network in fixed:
            self._count_up(network)

    def add_block(self, term: Term, block: Block) -> None:
        """A rule's block joins."""
        for network in _ends(block):
            self._count_up(network)
        prefix = prefix_of(block.cidr)
        self._blocks.setdefault(prefix, []).append((block, term))
        self._changed.add(prefix)

    def drop_block(self, term: Term, block: Block) -> None:
        """A rule's block goes."""
        for network in _ends(block):
            self._count_down(network)
        prefix = prefix_of(block.cidr)
        self._blocks[prefix].remove((block, term))
        if not self._blocks[prefix]:
            del self._blocks[prefix]
        self._changed.add(prefix)

    def add_address(self, address: IPAddress) -> None:
        """An endpoint's address, to be named by :meth:`settle` when its terms change."""
        insort(self._addresses[address.version], int(address))

    def drop_address(self, address: IPAddress) -> None:
        """Forget one."""
        known = self._addresses[address.version]
        del known[bisect_left(known, int(address))]

    def settle(self) -> tuple[bool, set[tuple[int, int]]]:
        """Take the changes in.

        Returns:
            Whether any prefix or its terms changed, and the (version, number) of each
            known address whose terms may have changed.
        """
        if not self._changed:
            return False, set()
        touched: set[tuple[int, int]] = set()
        for version, first, length in self._changed:
            known = self._addresses[version]
            end = first + (1 << (_WIDTH[version] - length))
            touched |= {
                (version, value)
                for value in known[bisect_left(known, first) : bisect_left(known, end)]
            }
        for prefix in list(self._terms):
            if prefix not in self._count:
                del self._terms[prefix]
        # A length of a prefix that went may be in use no more.
        lengths = {
            version: sorted({prefix[2] for prefix in self._changed if prefix[0] == version})
            for version in _WIDTH
        }
        for prefix in self._count:
            wider = above(prefix, lengths[prefix[0]])
            if prefix not in self._terms or not self._changed.isdisjoint(wider):
                self._terms[prefix] = self._inside(prefix)
        self._changed.clear()
        return True, touched

    def terms(self, version: int, value: int) -> frozenset[Term]:
        """The blocks' terms that an address fulfils."""
        width = _WIDTH[version]
        for length in reversed(self._lengths[version]):
            prefix = (version, value >> (width - length) << (width - length), length)
            found = self._terms.get(prefix)
            if found is not None:
                return found
        return frozenset()

    def __iter__(self) -> Iterator[tuple[Prefix, frozenset[Term]]]:
        return iter(self._terms.items())

    def _inside(self, prefix: Prefix) -> frozenset[Term]:
        wider = set(above(prefix, self._lengths[prefix[0]]))
        found = []
        for cidr in wider:
            for block, term in self._blocks.get(cidr, ()):
                if not any(prefix_of(hole) in wider for hole in block.excepts):
                    found.append(term)
        return frozenset(found)

    def _count_up(self, network: IPNetwork) -> None:
        prefix = version, _, length = prefix_of(network)
        users = self._count.get(prefix, 0)
        self._count[prefix] = users + 1
        if users:
            return
        self._changed.add(prefix)
        alike = self._per_length.get((version, length), 0)
        self._per_length[version, length] = alike + 1
        if not alike:
            insort(self._lengths[version], length)

    def _count_down(self, network: IPNetwork) -> None:
        prefix = version, _, length = prefix_of(network)
        self._count[prefix] -= 1
        if self._count[prefix]:
            return
        del self._count[prefix]
        self._changed.add(prefix)
        self._per_length[version, length] -= 1
        if not self._per_length[version, length]:
            self._lengths[version].remove(length)
