# SPDX-License-Identifier: Apache-2.0
"""What a host needs to join a cluster, as one word.

A token says where the store is, which cluster it holds, and has a secret of 256 bits. The
cluster's key is not in it: the store has that, sealed with the secret, until the token expires
or has been used as often as was said. Who has only one of the two has no key.

It is ``slimnet1.`` and base64url (RFC 4648, section 5) of 8 bytes that tell a cut one, and of
JSON, compressed (RFC 1950). Each secret seals one key, once (:mod:`.sealed`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import zlib
from collections.abc import Mapping
from typing import Any, Self

from attrs import field, frozen

from slimnet.cluster import sealed
from slimnet.exceptions import InvalidValue
from slimnet.names import NAME

__all__ = ["CARRIED", "PUBLIC", "Token"]

#: The options of a store that name files which everybody may know, and every host needs.
PUBLIC = frozenset({"ca"})
#: Those whose files a token may have: of a store that slimnet itself started, all hosts have one
#: certificate.
CARRIED = PUBLIC | {"cert", "key"}

_FORM = "slimnet1."
_WANTED = "what `slimnet cluster init` or `slimnet cluster token create` printed"
_CHECK = 8
#: No token is as long; what is would be a way to fill the memory.
_LONGEST = 1 << 16


@frozen
class Token:
    """What a token says.

    Attributes:
        cluster: the store's id.
        store: its URL.
        options: of its driver.
        files: option to the content of the file that it names: the certificate of an
            authority; those in :data:`CARRIED` where slimnet made them.
        id: of the token.
        secret: what the key is sealed with.
    """

    cluster: str
    store: str
    options: Mapping[str, Any] = field(factory=dict, hash=False)
    files: Mapping[str, str] = field(factory=dict, hash=False, repr=False)
    id: str = field(factory=lambda: secrets.token_hex(4))
    secret: bytes = field(factory=lambda: secrets.token_bytes(32), repr=False)

    def __str__(self) -> str:
        values = [self.cluster, self.store, self.options, self.files, self.id, self.secret.hex()]
        body = zlib.compress(json.dumps(values, separators=(",", ":")).encode(), 9)
        return _FORM + base64.urlsafe_b64encode(_check(body) + body).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of :class:`str`.

        Raises:
            InvalidValue: it is none, or is not whole. Says nothing of what it holds.
        """
        form, dot, rest = text.partition(".")
        if not dot or not form.startswith("slimnet"):
            raise InvalidValue("token", _WANTED, "something else")
        if form + dot != _FORM:
            raise InvalidValue("token", f"one of version 1, {_FORM}...", form + dot)
        try:
            raw = base64.b64decode(rest + "=" * (-len(rest) % 4), b"-_", validate=True)
            body = raw[_CHECK:]
            if not hmac.compare_digest(_check(body), raw[:_CHECK]):
                raise ValueError("not what was made")
            cluster, store, options, files, number, secret = json.loads(_unpack(body))
            if not all(isinstance(each, str) for each in (cluster, store, number, secret)):
                raise ValueError("not what was made")
            if not isinstance(options, dict) or set(files) - CARRIED or not NAME.fullmatch(number):
                raise ValueError("not what was made")
            return cls(cluster, store, options, files, number, bytes.fromhex(secret))
        except (ValueError, TypeError, zlib.error) as error:
            got = f"{len(text)} characters, cut or changed"
            raise InvalidValue("token", f"a whole one, {_WANTED}", got) from error

    def seal(self, key: bytes) -> bytes:
        """The cluster's key as the store may have it."""
        return sealed.seal(self.secret, self._about, key)

    def unseal(self, found: bytes) -> bytes:
        """The inverse of :meth:`seal`.

        Raises:
            InvalidValue: another secret sealed it, or it was changed.
        """
        key = sealed.unseal(self.secret, self._about, found)
        if key is None:
            wanted = f"the one that sealed the key which the store has for token {self.id}"
            raise InvalidValue("token", wanted, "another")
        return key

    @property
    def _about(self) -> str:
        return f"{self.cluster}/{self.id}/"


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECK, person=b"slim-token").digest()


def _unpack(body: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(body, _LONGEST)
    if not unpacking.eof:
        raise ValueError("more than a token has")
    return found
