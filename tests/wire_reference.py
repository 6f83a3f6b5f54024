# SPDX-License-Identifier: Apache-2.0
"""The SYN's option and its tag, written from the description in wire.h and the paper
on SipHash, not from the data path's code."""

from __future__ import annotations

import socket
import struct

__all__ = ["siphash", "syn_option"]

_MASK = 2**64 - 1


def siphash(key: bytes, message: bytes) -> bytes:
    """SipHash-2-4 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012)."""
    first, second = struct.unpack("<QQ", key)
    v = [
        first ^ 0x736F6D6570736575,
        second ^ 0x646F72616E646F6D,
        first ^ 0x6C7967656E657261,
        second ^ 0x7465646279746573,
    ]

    def turn(value: int, bits: int) -> int:
        return (value << bits | value >> (64 - bits)) & _MASK

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & _MASK
            v[2] = (v[2] + v[3]) & _MASK
            v[1] = turn(v[1], 13) ^ v[0]
            v[3] = turn(v[3], 16) ^ v[2]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[1]) & _MASK
            v[0] = (v[0] + v[3]) & _MASK
            v[1] = turn(v[1], 17) ^ v[2]
            v[3] = turn(v[3], 21) ^ v[0]
            v[2] = turn(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return struct.pack("<Q", v[0] ^ v[1] ^ v[2] ^ v[3])


def syn_option(
    key: bytes,
    source: str,
    destination: str,
    source_port: int,
    sequence: int,
    *,
    port: int,
    called: int,
    calling: int,
    name: int | None = None,
) -> bytes:
    """The option in a SYN from ``source`` to ``destination``: 16 bytes, or 18 where the
    caller goes by another port, ``name``."""
    named = b"" if name is None else struct.pack("!H", name)
    covered = (
        socket.inet_aton(destination)
        + socket.inet_aton(source)
        + struct.pack("!HHIII", port, source_port, sequence, calling, called)
        + named
    )
    head = struct.pack("!BBHII", 253, 16 + len(named), port, called, calling)
    return head + siphash(key, covered)[:4] + named
