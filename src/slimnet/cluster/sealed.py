# SPDX-License-Identifier: Apache-2.0
"""A key that only who has a secret can take out again.

Encrypt-then-MAC with keyed BLAKE2b (RFC 7693), personalized so that its two uses are two
functions. A secret seals no two keys about the same.
"""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["seal", "unseal"]

_KEY = 16


def seal(secret: bytes, about: str, key: bytes) -> bytes:
    """``key``, of 128 bits, as anybody may see it.

    Args:
        secret: what takes it out again.
        about: what it is sealed for: it comes out for nothing else.
        key: what is sealed.
    """
    hidden = bytes(a ^ b for a, b in zip(key, _derive(secret, b"hide", about, b""), strict=True))
    return hidden + _derive(secret, b"tag", about, hidden)


def unseal(secret: bytes, about: str, sealed: bytes) -> bytes | None:
    """The inverse of :func:`seal`; ``None`` where another secret sealed it, or it was changed."""
    hidden, tag = sealed[:_KEY], sealed[_KEY:]
    right = _derive(secret, b"tag", about, hidden)
    if len(hidden) != _KEY or not hmac.compare_digest(right, tag):
        return None
    return bytes(a ^ b for a, b in zip(hidden, _derive(secret, b"hide", about, b""), strict=True))


def _derive(secret: bytes, purpose: bytes, about: str, data: bytes) -> bytes:
    person = b"slim-token-" + purpose
    text = about.encode() + data
    return hashlib.blake2b(text, digest_size=_KEY, key=secret, person=person).digest()
