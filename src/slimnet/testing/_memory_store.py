# SPDX-License-Identifier: Apache-2.0
"""A store without a file, of one process: for tests and for many agents in one process."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from attrs import define, field

from slimnet.abc import Revision, Store, StoreEvent
from slimnet.exceptions import ConfigError, Conflict, NotFound, StoreUnreachable
from slimnet.store import APART, check_leases, check_prefixes, unmet

__all__ = ["MemoryStore"]


#: Changes that a watcher may lag behind.
_HISTORY = 10_000


@define
class _Pair:
    value: bytes
    revision: Revision
    lease: int | None


@define(eq=False)
class _State:
    """What all openers of one name share.

    Attributes:
        leases: number to seconds and to when they are over, of the monotonic clock.
        trimmed: the history begins after it.
        away: nobody reaches it.
    """

    pairs: dict[str, _Pair] = field(factory=dict)
    history: list[StoreEvent] = field(factory=list)
    leases: dict[int, tuple[float, float]] = field(factory=dict)
    revision: Revision = 0
    trimmed: Revision = 0
    lent: int = 0
    away: bool = False
    changed: threading.Condition = field(factory=threading.Condition)

    def expire(self) -> None:
        """Called with :attr:`changed` held, as everything here is changed."""
        now = time.monotonic()
        over = {number for number, (_, end) in self.leases.items() if end <= now}
        gone = [key for key, pair in self.pairs.items() if pair.lease in over]
        for number in over:
            del self.leases[number]
        self.change({}, gone, {})

    def change(
        self, put: Mapping[str, bytes], delete: Iterable[str], leases: Mapping[str, int]
    ) -> None:
        """One revision, if it changes anything."""
        gone = [key for key in dict.fromkeys(delete) if key in self.pairs and key not in put]
        if not put and not gone:
            return
        self.revision += 1
        for key in gone:
            del self.pairs[key]
            self.history.append(StoreEvent(key, None, self.revision))
        for key, value in put.items():
            self.pairs[key] = _Pair(value, self.revision, leases.get(key))
            self.history.append(StoreEvent(key, value, self.revision))
        if len(self.history) > 2 * _HISTORY:
            self.trimmed = self.history[-_HISTORY].revision
            del self.history[: bisect.bisect_right(self.history, self.trimmed, key=_revision)]
        self.changed.notify_all()


def _revision(event: StoreEvent) -> Revision:
    return event.revision


class MemoryStore(Store):
    """``memory://name``: every opener of a name in this process has the same.

    What it holds stays in :attr:`running` when all have closed it, as a file's would.
    """

    #: The stores there are, by name.
    running: ClassVar[dict[str, _State]] = {}

    def __init__(self, name: str) -> None:
        self.name = name
        self._state = self.running.setdefault(name, _State())
        self._closed = False
        self._reach()

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> MemoryStore:
        for option, value in (options or {}).items():
            raise ConfigError(f"store.memory.{option}", "no options", value)
        scheme, found, name = url.partition("://")
        if scheme != "memory" or not found or not name:
            raise ConfigError("store", "memory://<name>", url)
        return cls(name)

    def get(self, key: str) -> tuple[bytes, Revision] | None:
        with self._held() as state:
            pair = state.pairs.get(key)
            return None if pair is None else (pair.value, pair.revision)

    def list(self, prefix: str) -> tuple[dict[str, tuple[bytes, Revision]], Revision]:
        with self._held() as state:
            found = {
                key: (pair.value, pair.revision)
                for key, pair in sorted(state.pairs.items())
                if key.startswith(prefix)
            }
            return found, state.revision

    def transact(
        self,
        *,
        expect: Mapping[str, Revision | None] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Iterable[str] = (),
        leases: Mapping[str, int] | None = None,
    ) -> Revision:
        leases, put = leases or {}, put or {}
        check_leases(leases, put)
        with self._held() as state:
            for key, wanted in (expect or {}).items():
                found = state.pairs[key].revision if key in state.pairs else None
                if found != wanted:
                    raise unmet(key, wanted, found)
            for lease in leases.values():
                self._need_lease(lease)
            state.change(put, delete, leases)
            return state.revision

    def watch(
        self, prefix: str, *more: str, after: Revision, timeout: float
    ) -> tuple[Sequence[StoreEvent], Revision]:
        deadline = time.monotonic() + timeout
        apart = check_prefixes((prefix, *more))
        with self._held() as state:
            while True:
                if not state.trimmed <= after <= state.revision:
                    raise Conflict(
                        f"the store's history holds {state.trimmed} to {state.revision},"
                        f" not {after}"
                    )
                first = bisect.bisect_right(state.history, after, key=_revision)
                events = [
                    each
                    for each in state.history[first:]
                    if each.key.startswith((prefix, *more)) and each.key.startswith(APART) == apart
                ]
                after = state.revision
                left = deadline - time.monotonic()
                if events or left <= 0:
                    return events, after
                # A lease that runs out is nobody's call.
                ends = [end - time.monotonic() for _, end in state.leases.values()]
                state.changed.wait(max(0.0, min([left, *ends])))
                self._reach()
                state.expire()

    def lease(self, seconds: float) -> int:
        with self._held() as state:
            state.lent += 1
            state.leases[state.lent] = (seconds, time.monotonic() + seconds)
            state.changed.notify_all()
            return state.lent

    def renew(self, lease: int) -> None:
        with self._held() as state:
            self._need_lease(lease)
            seconds, _ = state.leases[lease]
            state.leases[lease] = (seconds, time.monotonic() + seconds)

    def close(self) -> None:
        with self._state.changed:
            self._closed = True
            self._state.changed.notify_all()

    def forget(self) -> None:
        """Lose the history."""
        with self._held() as state:
            state.history.clear()
            state.trimmed = state.revision

    def cut(self, *, away: bool) -> None:
        """Whether nobody reaches the store."""
        with self._state.changed:
            self._state.away = away
            self._state.changed.notify_all()

    @contextmanager
    def _held(self) -> Iterator[_State]:
        with self._state.changed:
            self._reach()
            self._state.expire()
            yield self._state

    def _need_lease(self, lease: int) -> None:
        if lease not in self._state.leases:
            raise NotFound(f"lease {lease} has run out")

    def _reach(self) -> None:
        if self._closed or self._state.away:
            why = "closed" if self._closed else "away"
            raise StoreUnreachable(f"store memory://{self.name}: {why}")
