# SPDX-License-Identifier: Apache-2.0
"""One link of wire announce (``slimnet/announce.h``): greeting, keys, frames and their tags."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slimnet import contract
from slimnet.layout import Layout

__all__ = ["AnnounceLink", "LinkEnd", "siphash"]

_HELLO = Layout(contract.slim_hello)
_FRAME = Layout(contract.slim_frame)
_TAG = 8
_LABEL = b"slimnet announce\0\0"
_FLAGS = contract.SLIM_HELLO_RECORDS | contract.SLIM_HELLO_LISTENERS
#: Bytes that wait for a host that does not read.
_OUT_MAX = 4 << 20
_AT_ONCE = 65536
_MASK = (1 << 64) - 1


def siphash(key: bytes, message: bytes) -> bytes:
    """SipHash-2-4 (Aumasson, Bernstein, INDOCRYPT 2012) of a message, by a key of 16 bytes."""
    first, second = struct.unpack("<QQ", key)
    v0, v1 = first ^ 0x736F6D6570736575, second ^ 0x646F72616E646F6D
    v2, v3 = first ^ 0x6C7967656E657261, second ^ 0x7465646279746573
    size = len(message)
    padded = message + bytes(7 - size % 8) + bytes([size % 256])
    words = struct.unpack(f"<{len(padded) // 8}Q", padded)
    # Two rounds a word; the end is four of a word that changes v2 and not v3.
    for word, count in (*((word, 2) for word in words), (None, 4)):
        if word is None:
            v2 ^= 0xFF
        else:
            v3 ^= word
        for _ in range(count):
            v0 = (v0 + v1) & _MASK
            v1 = ((v1 << 13 | v1 >> 51) & _MASK) ^ v0
            v0 = (v0 << 32 | v0 >> 32) & _MASK
            v2 = (v2 + v3) & _MASK
            v3 = ((v3 << 16 | v3 >> 48) & _MASK) ^ v2
            v0 = (v0 + v3) & _MASK
            v3 = ((v3 << 21 | v3 >> 43) & _MASK) ^ v0
            v2 = (v2 + v1) & _MASK
            v1 = ((v1 << 17 | v1 >> 47) & _MASK) ^ v2
            v2 = (v2 << 32 | v2 >> 32) & _MASK
        if word is not None:
            v0 ^= word
    return struct.pack("<Q", v0 ^ v1 ^ v2 ^ v3)


class LinkEnd(Exception):
    """The link is over: closed, broken, or by somebody who does not know the key."""


class AnnounceLink:
    """One end of a link; whoever holds it waits for its socket.

    Args:
        sock: connected or, of an opener, connecting; does not block. Owned from here on.
        here: this host's underlay address, as the contract holds it.
        host: the other end's.
        keys: the cluster's; the first makes the link, where this end opens it.
        opener: this end opened it.
    """

    def __init__(
        self, sock: socket.socket, here: bytes, host: bytes, keys: Sequence[bytes], *, opener: bool
    ) -> None:
        self.sock = sock
        self.host = host
        self.opener = opener
        self.connecting = opener
        #: The other end has shown that it knows the key.
        self.ready = False
        #: Opener: the other end has told all listeners that it has.
        self.synced = False
        #: When something came last, in seconds of the monotonic clock.
        self.heard = time.monotonic()
        self._here = here
        self._cluster = tuple(keys)
        #: Which of the cluster's keys it is by.
        self.by = self._cluster[0]
        #: When it ends, in seconds of the monotonic clock, since another one follows it.
        self.until: float | None = None
        self._mine = b""
        self._both = b""
        self._keys: tuple[bytes, bytes] | None = None
        self._sent = self._received = 0
        self._in = bytearray()
        self._out = bytearray()

    @property
    def wants_to_write(self) -> bool:
        """Something waits for room in the socket, or for the connection."""
        return self.connecting or bool(self._out)

    def send(self, kind: int, **fields: int | bytes) -> None:
        """Send a frame.

        Raises:
            LinkEnd: the other end does not read.
        """
        if self._keys is None:
            raise LinkEnd("not greeted")
        body = _FRAME.pack(kind=kind, **fields)[:-_TAG]
        self._put(body + siphash(self._keys[0], struct.pack("<Q", self._sent) + body))
        self._sent += 1

    def flush(self) -> None:
        """The socket has room.

        Raises:
            LinkEnd: it has not, for good.
        """
        if self.connecting:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise LinkEnd(os.strerror(error))
            self.connecting = False
            self._greet()
        try:
            while self._out:
                del self._out[: self.sock.send(self._out)]
        except BlockingIOError:
            pass
        except OSError as error:
            raise LinkEnd(str(error)) from error

    def frames(self) -> Iterator[Mapping[str, Any]]:
        """The frames that have come. READY and PING are answered here.

        Raises:
            LinkEnd: the other end closed it, or is not what it says.
        """
        try:
            data = self.sock.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError as error:
            raise LinkEnd(str(error)) from error
        if not data:
            raise LinkEnd("closed")
        self._in += data
        while True:
            size = _HELLO.size if self._keys is None else _FRAME.size
            if len(self._in) < size:
                return
            whole = bytes(self._in[:size])
            del self._in[:size]
            if self._keys is None:
                self._hello(whole)
            elif (frame := self._frame(whole)) is not None:
                yield frame

    def close(self) -> None:
        """Closing twice is no error."""
        self.sock.close()

    def _put(self, data: bytes) -> None:
        if len(self._out) + len(data) > _OUT_MAX:
            raise LinkEnd("does not read")
        self._out += data
        if not self.connecting:
            self.flush()

    def _greet(self) -> None:
        self._mine = _HELLO.pack(
            magic=contract.SLIM_ANNOUNCE_MAGIC,
            version=contract.SLIM_ANNOUNCE_VERSION,
            flags=_FLAGS,
            host=self._here,
            nonce=os.urandom(16),
        )
        self._put(self._mine)

    def _hello(self, theirs: bytes) -> None:
        found = _HELLO.unpack(theirs)
        if (
            found["magic"] != contract.SLIM_ANNOUNCE_MAGIC
            or found["version"] != contract.SLIM_ANNOUNCE_VERSION
            or found["host"] != self.host
        ):
            raise LinkEnd("no router of that host")
        if not self.opener:
            self._greet()
        if theirs[-16:] == self._mine[-16:]:
            raise LinkEnd("an echo")  # which would have our own keys
        self._both = self._mine + theirs if self.opener else theirs + self._mine
        self._take_key(self.by)
        if self.opener:
            self.send(contract.SLIM_FRAME_READY)

    def _take_key(self, key: bytes) -> None:
        from_opener, from_acceptor = (
            b"".join(
                siphash(key, _LABEL + bytes([direction, half, 0, 0, 0, 0]) + self._both)
                for half in (0, 1)
            )
            for direction in (1, 0)
        )
        mine, yours = from_opener, from_acceptor
        self._keys = (mine, yours) if self.opener else (yours, mine)
        self.by = key

    def _frame(self, data: bytes) -> Mapping[str, Any] | None:
        assert self._keys is not None  # noqa: S101  # for the type checker
        number = struct.pack("<Q", self._received)
        self._received += 1
        if not self.opener and not self.ready:
            # Which of the keys it is by, the opener says with its first frame.
            for key in self._cluster:
                if siphash(self._keys[1], number + data[:-_TAG]) != data[-_TAG:]:
                    self._take_key(key)
        if siphash(self._keys[1], number + data[:-_TAG]) != data[-_TAG:]:
            raise LinkEnd("a wrong tag")
        self.heard = time.monotonic()
        frame = _FRAME.unpack(data)
        if not self.ready:
            if frame["kind"] != contract.SLIM_FRAME_READY:
                raise LinkEnd("not ready")
            self.ready = True
            # What the acceptor has to tell at first stands before its answer to a PING.
            self.send(contract.SLIM_FRAME_PING if self.opener else contract.SLIM_FRAME_READY)
            return None
        if frame["kind"] != contract.SLIM_FRAME_PING:
            return frame
        if frame["answer"]:
            self.synced = True
        else:
            with contextlib.suppress(BlockingIOError):
                self.send(contract.SLIM_FRAME_PING, answer=1)
        return None
