# SPDX-License-Identifier: Apache-2.0
"""Puts tables in force: two slots, one active, the other being written.

A program reads ACTIVE once, then looks everything up in that slot; so a slot
may be written only when no program reads it any more. The kernel says when:
an update of an array of maps returns after an RCU grace period.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from slimnet import contract
from slimnet.encoding import ENDPOINT, Encoding, encodings, u32
from slimnet.exceptions import BackendError
from slimnet.tables import Change, Tables
from slimnet_ebpf import contract as private
from slimnet_ebpf.maps import Map

__all__ = ["MAPS", "Writer"]

#: The number of the pair of maps that holds each of the tables.
MAPS = {
    "addresses": private.SLIM_MAP_ADDRESS,
    "endpoints": private.SLIM_MAP_ENDPOINT,
    "cidrs": private.SLIM_MAP_CIDR,
    "policy": private.SLIM_MAP_POLICY,
    "services": private.SLIM_MAP_SERVICE,
    "published": private.SLIM_MAP_PUBLISH,
}

_ACTIVE = u32(0)
_MARGIN = 2


class Writer:
    """Writes the pairs of tables of one instance.

    Args:
        maps: the contract's maps by number.
    """

    def __init__(self, maps: dict[int, Map]) -> None:
        self._maps = maps
        # The value of ACTIVE that this process wrote last, and the keys in which the two slots
        # differ since then; None: not known, so the next install writes everything.
        self._known: int | None = None
        self._differ: dict[int, set[Any]] | None = None

    @property
    def generation(self) -> int:
        """Of the tables in force; 0 before the first."""
        return self._active() >> 1

    def install(self, tables: Tables, change: Change | None, indexes: Mapping[int, int]) -> bool:
        """See :meth:`slimnet.abc.Backend.install`; whether that generation was not in force.

        Args:
            tables: all of them.
            change: what differs from the ones in force, if that is known.
            indexes: the inner index of every attached endpoint.
        """
        active = self._active()
        if active and active >> 1 == tables.generation:
            return False
        slot = (active & 1) ^ 1
        differ = self._differ if active == self._known else None
        every = encodings(indexes, judges=True)
        follows = change is not None and active and change.base == active >> 1
        changed = _changed(every, change) if change is not None and follows else None
        # Until the last write, nobody can say what the inactive slot holds.
        self._differ = None
        self.settle()
        for kind in every:
            if changed is None or differ is None:
                self._write_whole(kind, slot, kind.of(tables))
            else:
                keys = changed[MAPS[kind.table]] | differ[MAPS[kind.table]]
                self._write_some(kind, slot, kind.of(tables), keys)
        self._known = tables.generation << 1 | slot
        self._maps[private.SLIM_MAP_ACTIVE].set(_ACTIVE, self._known.to_bytes(8, sys.byteorder))
        self._differ = changed
        return True

    def set_index(self, endpoint: int, index: int) -> None:
        """Set the inner index of a local endpoint in both slots. An update of
        one entry is atomic for who looks it up."""
        for slot in (0, 1):
            table = self._inner(private.SLIM_MAP_ENDPOINT, slot)
            found = table.get(u32(endpoint))
            if found is None:
                continue
            record = ENDPOINT.unpack(found)
            wanted = index if record["flags"] & contract.SLIM_ENDPOINT_LOCAL else 0
            if record["index"] != wanted:
                table.set(u32(endpoint), ENDPOINT.pack(**(record | {"index": wanted})))

    def _active(self) -> int:
        value = self._maps[private.SLIM_MAP_ACTIVE].get(_ACTIVE) or b""
        return int.from_bytes(value, sys.byteorder)

    def _inner(self, number: int, slot: int) -> Map:
        inner = self._maps[number].inner(slot)
        if inner is None:
            raise BackendError(f"{private.MAPS[number]}: no table in slot {slot}")
        return inner

    def settle(self) -> None:
        """Wait until every program that began with the inactive slot has ended."""
        self._maps[private.SLIM_MAP_ADDRESS].set_inner(0, self._inner(private.SLIM_MAP_ADDRESS, 0))

    def _write_whole(self, kind: Encoding, slot: int, table: Any) -> None:
        wanted = {kind.key(key): kind.value(key, record) for key, record in table.items()}
        inner = self._inner(MAPS[kind.table], slot)
        if len(wanted) >= inner.max_entries:
            self._replace(kind, slot, inner, wanted.items())
            return
        held = dict(inner.items())
        inner.remove(held.keys() - wanted.keys())
        inner.update((key, value) for key, value in wanted.items() if held.get(key) != value)

    def _write_some(self, kind: Encoding, slot: int, table: Any, keys: set[Any]) -> None:
        if not keys:
            return
        inner = self._inner(MAPS[kind.table], slot)
        if len(table) >= inner.max_entries:
            self._write_whole(kind, slot, table)
            return
        inner.remove(kind.key(key) for key in keys if key not in table)
        inner.update((kind.key(key), kind.value(key, table[key])) for key in keys if key in table)

    def _replace(
        self, kind: Encoding, slot: int, inner: Map, items: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """A bigger table in the slot."""
        todo = list(items)
        bigger = inner.like(1 << (_MARGIN * len(todo)).bit_length())
        bigger.update(todo)
        self._maps[MAPS[kind.table]].set_inner(slot, bigger)


def _changed(every: Iterable[Encoding], change: Change) -> dict[int, set[Any]]:
    return {MAPS[kind.table]: set(kind.of(change.set)) | kind.gone(change) for kind in every}
