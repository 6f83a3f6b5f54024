# SPDX-License-Identifier: Apache-2.0
"""32-bit numbers for what tables are made of: rules, ports of services, parts of groups,
classes of ranges.

A number is the hash of a name, so that it follows from the state alone: an agent that was
restarted compiles the tables that are in force already, and a rule's number in an event, an
account or another host's answer means the same rule here. The store cannot give these numbers
as it gives identities to label sets: which parts and classes there are is known only to
whoever has compiled, and each host would have to write before it could enforce.

Hashes of 32 bits collide: among 10,000 names with a probability of 1 % (birthday bound,
n**2 / 2**33), among 50,000 of 25 %. Two things with one number would share a policy, so a
collision is dealt with, by the same rule on every host.
"""

from __future__ import annotations

import hashlib

__all__ = ["Collision", "Numbers"]


class Collision(Exception):
    """The hashes of two names in use collide, or one name of such a pair was released: the
    owner renumbers everything.

    Attributes:
        numbers: which object's names these are.
        names: the pair; or the one that was released.
    """

    def __init__(self, numbers: Numbers, *names: str) -> None:
        super().__init__(*names)
        self.numbers = numbers
        self.names = names


class Numbers:
    """Gives each name the hash of it as its number.

    Of two names with the same hash the later in the alphabet is hashed again, until no two
    names share a number. Which name that concerns depends on all names in use, not on the
    order in which they came. So where such a pair comes, or one of it goes, :class:`Collision`
    is raised: the owner forgets all numbers and takes every name once more, with a new object,
    on which it calls :meth:`separate` for each pair that turns up.

    Args:
        first: the lowest number to give; the highest is 2**32 - 1.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._again: dict[str, int] = {}
        self._shared: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Forget which names are in use, but not which of them are hashed again."""
        self._names: dict[int, str] = {}
        self._taken: dict[str, tuple[int, int]] = {}

    def separate(self, *names: str) -> None:
        """Hash the later of these once more than before, and forget which names are in use."""
        later = max(names)
        self._shared.add(self._hash(later, 0))
        self._again[later] = self._again.get(later, 0) + 1
        self.clear()

    def take(self, name: str) -> int:
        """The name's number, until it was released as often as taken."""
        number, users = self._taken.get(name, (-1, 0))
        if not users:
            number = self._hash(name, self._again.get(name, 0))
            other = self._names.setdefault(number, name)
            if other != name:
                raise Collision(self, name, other)
        self._taken[name] = (number, users + 1)
        return number

    def release(self, name: str) -> int | None:
        """One user less; the number when that was the last."""
        number, users = self._taken[name]
        if users > 1:
            self._taken[name] = (number, users - 1)
            return None
        if self._hash(name, 0) in self._shared:
            raise Collision(self, name)
        del self._taken[name]
        del self._names[number]
        return number

    def _hash(self, name: str, again: int) -> int:
        text = f"{again}:{name}".encode()
        digest = int.from_bytes(hashlib.blake2s(text, digest_size=4).digest(), "big")
        return self._first + digest % (2**32 - self._first)
