# SPDX-License-Identifier: Apache-2.0
"""What a cluster's store holds, as a file or on its way to another store.

The file is text: a line of JSON that says what it is, and one for each key, ``["key", "value"]``;
a value that is no UTF-8 is ``{"base64": "..."}``. The first line has the version of the format
and the SHA-256 of all that follows it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import frozen

from slimnet.abc import Revision, Store
from slimnet.cluster import keys
from slimnet.cluster.own import ID_KEY, store_id
from slimnet.exceptions import AlreadyExists, InvalidValue, NotFound

__all__ = ["VERSION", "Archive"]

#: Of the file's format. Another one is refused: what it means is not known here.
VERSION = 1
#: The first line's field that says what the file is.
_MARK = "slimnet-store"
#: Less than every store takes in one transaction.
_KEYS, _BYTES = 500, 1 << 19
#: Seconds that the hosts have to register again with a store that was restored. Until then
#: they count as alive, so that no tables lose them.
_REGISTER = 60.0
_PASSING = frozenset(each.kind for each in keys.KEYS if each.passing)


@frozen
class Archive:
    """All that lasts in a store, at one revision.

    Attributes:
        cluster: the store's id.
        revision: of the store that it was taken from.
        pairs: key to value, without those that pass: tokens, questions, and what each host has
            in force.
    """

    cluster: str
    revision: Revision
    pairs: Mapping[str, bytes]

    @classmethod
    def take(cls, store: Store) -> Archive:
        """Of a store, in one reading.

        Raises:
            NotFound: it holds no cluster.
        """
        pairs, revision = store.list("")
        if ID_KEY not in pairs:
            raise NotFound(
                "the store holds no cluster: neither an agent nor `cluster init` used it"
            )
        lasting = {
            key: value
            for key, (value, _) in sorted(pairs.items())
            if keys.kind_of(key) not in _PASSING
        }
        return cls(store_id(store), revision, lasting)

    @property
    def hosts(self) -> list[str]:
        """The hosts that were alive."""
        return [key.removeprefix(keys.HOST.below()) for key in self.pairs if _is_host(key)]

    @property
    def strange(self) -> list[str]:
        """The keys of kinds that this version does not know. They are kept as they are."""
        return keys.unknown(self.pairs)

    def dump(self) -> bytes:
        """As a file."""
        lines = [_line([key, _text(value)]) for key, value in self.pairs.items()]
        body = b"".join(lines)
        head = {
            _MARK: VERSION,
            "cluster": self.cluster,
            "revision": self.revision,
            "keys": len(lines),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return _line(head) + body

    @classmethod
    def load(cls, data: bytes, name: str) -> Archive:
        """The inverse of :meth:`dump`.

        Args:
            data: of the file.
            name: of the file, for messages.

        Raises:
            InvalidValue: it is none, of a newer version, or not as it was written.
        """
        first, _, body = data.partition(b"\n")
        try:
            head = json.loads(first)
            version = head[_MARK]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidValue(
                name, "a file that `slimnet store backup` wrote", "another"
            ) from error
        if version != VERSION:
            raise InvalidValue(name, f"a backup of version {VERSION}", f"version {version!r}")
        if head.get("sha256") != hashlib.sha256(body).hexdigest():
            got = f"{body.count(bytes([10]))} of {head.get('keys')} keys, or changed ones"
            raise InvalidValue(name, "a backup that is whole", got)
        pairs = {key: _value(text) for key, text in map(json.loads, body.splitlines())}
        return cls(head["cluster"], head["revision"], pairs)

    def put(self, store: Store, *, replace: bool = False) -> None:
        """Write it to a store, the cluster's id last: before that agents take the store for
        none of theirs, and leave their data paths as they are. Where this is cut short, it can
        be done again, with ``replace``.

        Args:
            store: an empty one.
            replace: remove first what it holds.

        Raises:
            AlreadyExists: it is not empty; nothing was changed.
        """
        there = store.list("")[0]
        if there and not replace:
            found = store_id(store)
            what = f"cluster {found}" if found else "what is no whole cluster"
            raise AlreadyExists(f"the store holds {what} ({len(there)} keys): --replace removes it")
        ids = {ID_KEY, *(key for key in there if key.startswith(keys.CLUSTER.below()))}
        store.transact(delete=ids)
        for some in _portions((key, b"") for key in there if key not in ids):
            store.transact(delete=some)
        last = {
            key: value
            for key, value in self.pairs.items()
            if keys.kind_of(key) == keys.CLUSTER.kind
        }
        for some in _portions(item for item in self.pairs.items() if item[0] not in last):
            lease = store.lease(_REGISTER) if any(map(_is_host, some)) else 0
            store.transact(put=some, leases={key: lease for key in some if _is_host(key)})
        store.transact(expect={ID_KEY: None}, put=last)


def _is_host(key: str) -> bool:
    return keys.kind_of(key) == keys.HOST.kind


def _portions(pairs: Iterable[tuple[str, bytes]]) -> Iterator[dict[str, bytes]]:
    """As much at once as a store takes."""
    some: dict[str, bytes] = {}
    size = 0
    for key, value in pairs:
        if some and (len(some) == _KEYS or size + len(key) + len(value) > _BYTES):
            yield some
            some, size = {}, 0
        some[key] = value
        size += len(key) + len(value)
    if some:
        yield some


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _text(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _value(text: Any) -> bytes:
    return text.encode() if isinstance(text, str) else base64.b64decode(text["base64"])
