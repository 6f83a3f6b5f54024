# SPDX-License-Identifier: Apache-2.0
"""A store has an id of its own, and whoever follows one changes no other."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slimnet import records
from slimnet.abc import Revision, Store, StoreEvent
from slimnet.cluster import keys
from slimnet.exceptions import Conflict, StoreUnreachable

__all__ = ["FORMAT", "FORMAT_KEY", "ID_KEY", "OwnStore", "check_format", "check_id", "store_id"]

#: Where the id is: 128 bits in hexadecimal digits, as a JSON string. There is also a key
#: ``cluster/<id>``: a transaction can expect a key, and no value.
ID_KEY = keys.CLUSTER.at()


#: Of what the store holds. A later version that writes what this one would misunderstand counts
#: it up, and writes ``cluster/<id>`` again in the same transaction: every change that this version
#: had in mind is a :class:`~slimnet.Conflict` then.
FORMAT = 1
FORMAT_KEY = keys.FORMAT.at()


def check_format(value: bytes | None) -> None:
    """Whether this version understands what the store holds.

    Args:
        value: what it has under :data:`FORMAT_KEY`; ``None``: it is of the first format.

    Raises:
        StoreUnreachable: it does not: nothing of it may be read, or changed.
    """
    if value is None:
        return
    try:
        found = int(value)
    except ValueError:
        found = 0
    if not 1 <= found <= FORMAT:
        got = _text(value)[:20]
        raise StoreUnreachable(
            f"the store is of format {got!r}, and this version of slimnet knows none after"
            f" {FORMAT}: upgrade slimnet on this host"
        )


def store_id(store: Store) -> str:
    """A store's id; empty when it has none yet."""
    found = store.get(ID_KEY)
    return "" if found is None else _text(found[0])


def check_id(value: bytes | None, wanted: str) -> None:
    """Whether a store is the one with the id ``wanted``.

    Args:
        value: what it has under :data:`ID_KEY`.
        wanted: the id.

    Raises:
        StoreUnreachable: it is another one.
    """
    found = "" if value is None else _text(value)
    if found != wanted:
        what = f"that of cluster {found}" if found else "a new one"
        raise StoreUnreachable(f"the store is {what}, not that of cluster {wanted}: restore it")


def _text(value: bytes) -> str:
    return value.decode(errors="replace").strip('"')


class OwnStore(Store):
    """A store with an id, which it is given here where it has none.

    Another one that takes its place (a file that was removed and made anew) is read,
    and not changed: :meth:`transact` raises :class:`~slimnet.StoreUnreachable`.

    Args:
        store: closed with this one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._check_format()
        if not store_id(store):
            with contextlib.suppress(Conflict):  # somebody else was quicker
                fresh = secrets.token_hex(16)
                put = {ID_KEY: records.dump(fresh), keys.CLUSTER_ID.at(fresh): b"{}"}
                store.transact(expect={ID_KEY: None}, put=put)
        self.id = store_id(store)
        self._key = keys.CLUSTER_ID.at(self.id)
        self._revision: Revision | None = None
        self.look()

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> Store:
        """No URL is one of this class."""
        raise NotImplementedError(url, options)

    def look(self) -> None:
        """Whether it is there, and still the same.

        Raises:
            StoreUnreachable: it is not.
        """
        self._check_format()
        found, own = self._store.get(ID_KEY), self._store.get(self._key)
        check_id(found[0] if found else None, self.id)
        self._revision = own[1] if own else None

    def _check_format(self) -> None:
        found = self._store.get(FORMAT_KEY)
        check_format(found[0] if found else None)

    def transact(
        self,
        *,
        expect: Mapping[str, Revision | None] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Iterable[str] = (),
        leases: Mapping[str, int] | None = None,
    ) -> Revision:
        expected = {**(expect or {}), self._key: self._revision}
        try:
            return self._store.transact(expect=expected, put=put, delete=delete, leases=leases)
        except Conflict:
            self.look()
            raise

    def get(self, key: str) -> tuple[bytes, Revision] | None:
        return self._store.get(key)

    def list(self, prefix: str) -> tuple[dict[str, tuple[bytes, Revision]], Revision]:
        return self._store.list(prefix)

    def watch(
        self, prefix: str, *more: str, after: Revision, timeout: float
    ) -> tuple[Sequence[StoreEvent], Revision]:
        return self._store.watch(prefix, *more, after=after, timeout=timeout)

    def lease(self, seconds: float) -> int:
        return self._store.lease(seconds)

    def renew(self, lease: int) -> None:
        self._store.renew(lease)

    def close(self) -> None:
        self._store.close()
