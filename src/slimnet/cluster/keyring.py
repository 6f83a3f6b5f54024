# SPDX-License-Identifier: Apache-2.0
"""The cluster's keys, as the store says which they are: one, or two while one follows another.

========  =============  ===================================================================
state     signs          each host takes
========  =============  ===================================================================
at rest   ``key``        ``key``
prepared  ``key``        both. Once all do:
switched  ``next``       both. Once all sign with it, ``next`` is the ``key`` of a state at rest
========  =============  ===================================================================

Only fingerprints stand there, and the new key, sealed with the old one. What a host has to do
it knows from the state, however many it missed on the way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Self

import attrs
from attrs import frozen

from slimnet import records
from slimnet.abc import Revision, Store
from slimnet.cluster import keys, sealed
from slimnet.exceptions import InvalidValue

__all__ = ["Keyring", "fingerprint", "held_keys"]


def fingerprint(key: bytes) -> str:
    """What tells one key from another and is no way back: 8 bytes of BLAKE2s
    (RFC 7693) over it, personalized so that it is no other hash of slimnet's."""
    return hashlib.blake2s(key, digest_size=8, person=b"slim-key").hexdigest()


@frozen
class Keyring:
    """The state of a cluster's keys.

    Attributes:
        key: fingerprint of the cluster's key, until another one has followed it everywhere.
        next: of the one that is to follow; empty: none is.
        signs: which of the two hosts sign with.
        sealed: the one that follows, sealed with ``key``, in hexadecimal digits.
    """

    key: str
    next: str
    signs: str
    sealed: str = ""

    def __attrs_post_init__(self) -> None:
        bytes.fromhex(self.sealed)
        if self.signs not in {self.key, self.next or self.key}:
            raise ValueError("signs with neither key")

    @classmethod
    def rest(cls, key: str) -> Self:
        """At rest with a key of this fingerprint."""
        return cls(key, "", key)

    @classmethod
    def prepare(cls, key: bytes, fresh: bytes) -> Self:
        """``fresh`` is to follow ``key``."""
        old, new = fingerprint(key), fingerprint(fresh)
        return cls(old, new, old, sealed.seal(key, f"{old}/{new}", fresh).hex())

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Out of the store.

        Raises:
            InvalidValue: it is none that this version understands.
        """
        return records.load(keys.KEYRING.at(), data, lambda record: cls(**record))

    @classmethod
    def read(cls, store: Store) -> tuple[Self | None, Revision | None]:
        """What the store says, and its revision; ``None``: it has never rotated."""
        found = store.get(keys.KEYRING.at())
        return (None, None) if found is None else (cls.load(found[0]), found[1])

    def signing(self, which: str) -> Self:
        """The same, with which hosts sign."""
        return attrs.evolve(self, signs=which)

    def choose(self, held: Iterable[bytes]) -> tuple[bytes, ...]:
        """The keys that a host has to take by now, that which it signs with first.

        Args:
            held: those that it has.

        Raises:
            InvalidValue: it lacks the one to sign with.
        """
        known = {fingerprint(each): each for each in held}
        if self.next and self.next not in known and self.key in known:
            about = f"{self.key}/{self.next}"
            found = sealed.unseal(known[self.key], about, bytes.fromhex(self.sealed))
            if found is not None and fingerprint(found) == self.next:
                known[self.next] = found
        if self.signs not in known:
            raise InvalidValue(
                "key_file",
                f"the cluster's key, {self.signs}: `slimnet cluster token create` on a host that"
                " has it, then `slimnet cluster join --again TOKEN` here",
                f"{', '.join(known)}: the key was changed while this host was away",
            )
        other = self.key if self.signs == self.next else self.next
        return (known[self.signs], *([known[other]] if other in known else []))


def held_keys(store: Store) -> dict[str, Sequence[str]]:
    """Live host to the fingerprints of the keys that it takes, that which it signs with first."""
    found = store.list(keys.HELD.below())[0]
    return {
        key.partition("/")[2]: records.load(key, value, lambda each: list(map(str, each["keys"])))
        for key, (value, _) in found.items()
    }
