# SPDX-License-Identifier: Apache-2.0
"""32-bit numbers for things that have names: the same on every host, whatever came before."""

from __future__ import annotations

import hashlib

__all__ = ["Collision", "Numbers"]


class Collision(Exception):
    """Two live names want one number, or one of two such names went: number all anew.

    Attributes:
        numbers: whose.
        names: the two; one and the same where it went.
    """

    def __init__(self, numbers: Numbers, *names: str) -> None:
        super().__init__(*names)
        self.numbers = numbers
        self.names = names


class Numbers:
    """Gives each name the hash of it as its number.

    Of two names with the same hash the later in the alphabet is hashed again. Whether
    a name has such a twin depends on all live names, so that coming and going of twins
    raises :class:`Collision`; the owner then starts from nothing, with a new object and,
    as long as twins turn up, with :meth:`separate`.

    Args:
        first: the lowest number to give; the highest is 2**32 - 1.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._again: dict[str, int] = {}
        self._shared: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Forget all names, but not which of them to hash again."""
        self._names: dict[int, str] = {}
        self._taken: dict[str, tuple[int, int]] = {}

    def separate(self, *names: str) -> None:
        """Number these apart from now on, and forget all names."""
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
