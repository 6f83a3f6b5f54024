# SPDX-License-Identifier: Apache-2.0
"""The cluster's keys as the data path has them (``slimnet/keys.h``), and how they change."""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["steps"]

_KEYS = struct.Struct("=16s16sII")


def steps(held: bytes, key: bytes, other: bytes) -> Iterator[bytes]:
    """What to write, one after the other, until ``key`` signs and ``other`` is good as well.

    A map's value is not written at one stroke: no step changes the key that signs, or which
    one it is and that one itself, so that no SYN is ever signed with half of one.

    Args:
        held: ``struct slim_keys`` as it is.
        key: 16 bytes, as in the cluster's file.
        other: likewise.
    """
    *both, signs, pad = _KEYS.unpack(held)
    if both[signs] != (wanted := _native(key)):
        if both[1 - signs] != wanted:
            both[1 - signs] = wanted
            yield _KEYS.pack(*both, signs, pad)
        signs = 1 - signs
        yield _KEYS.pack(*both, signs, pad)
    both[1 - signs] = _native(other)
    yield _KEYS.pack(*both, signs, pad)


def _native(key: bytes) -> bytes:
    """Two little-endian numbers, as SipHash reads a key, in this machine's order."""
    return struct.pack("=2Q", *struct.unpack("<2Q", key))
