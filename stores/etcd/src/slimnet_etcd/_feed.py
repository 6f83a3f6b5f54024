# SPDX-License-Identifier: Apache-2.0
"""The changes in a range of the store's keys, as etcd tells them, kept for whoever asks.

One watcher follows all keys that do not lie apart: what one watcher is told comes in the order of
the revisions, a revision whole. Of several, even of one stream, nobody knows which has told how
far: up to 3.4.24 and 3.5.7 a progress notification may overtake the events before it
(https://github.com/etcd-io/etcd/issues/15220).
"""

from __future__ import annotations

import bisect
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from slimnet.abc import Revision, StoreEvent
from slimnet.exceptions import Conflict
from slimnet_etcd import _messages
from slimnet_etcd._client import Client, words

__all__ = ["Cut", "Feed"]

#: Changes, and bytes of their values, that are kept for who asks again from an older revision.
_KEPT = 4096
_KEPT_BYTES = 16 * 2**20


class Cut(Exception):  # by what happened, as slimnet's own
    """The stream ended; another one tells what this one did not."""


class Feed:
    """Follows the store from a revision on, in a thread of its own, until it is cut.

    Args:
        client: that asks.
        prefix: of the store's keys.
        bounds: the first key that it follows, and the first behind them.
        hidden: the key, without the prefix, that is nobody's business.
        after: the revision.
    """

    def __init__(
        self,
        client: Client,
        prefix: bytes,
        bounds: tuple[bytes, bytes],
        hidden: str,
        after: Revision,
    ) -> None:
        self.server = client.server
        self.floor = after
        self.seen = after
        #: How far the store was, when somebody looked last.
        self.now = after
        self._prefix = prefix
        self._hidden = hidden
        self._events: list[StoreEvent] = []
        #: What each of those who wait knows already.
        self._waiting: dict[object, Revision] = {}
        self._bytes = 0
        self._error: Exception | None = None
        self._news = threading.Condition()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        create = _messages.new(
            "WatchCreateRequest", key=bounds[0], range_end=bounds[1], start_revision=after + 1
        )
        self._requests.put(_messages.new("WatchRequest", create_request=create))
        self._stream = client.stream(self._said())
        threading.Thread(target=self._follow, name="slimnet-etcd-watch", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether it was not cut yet."""
        return self._error is None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self._waiting)

    def wait(
        self, prefixes: Sequence[str], after: Revision, deadline: float
    ) -> tuple[list[StoreEvent], Revision]:
        """What :meth:`slimnet.abc.Store.watch` tells, once there is something.

        Args:
            prefixes: of the keys.
            after: the revision that is known.
            deadline: of the monotonic clock.

        Raises:
            Cut: try again.
            Conflict: the history is gone.
        """
        return self._look(prefixes, after, None, deadline) or ([], after)

    def reach(
        self, prefixes: Sequence[str], after: Revision, until: Revision, deadline: float
    ) -> tuple[list[StoreEvent], Revision] | None:
        """What :meth:`wait` tells, with all there is up to the revision ``until``; ``None``
        where that was not told in time."""
        return self._look(prefixes, after, until, deadline)

    def _look(
        self, prefixes: Sequence[str], after: Revision, until: Revision | None, deadline: float
    ) -> tuple[list[StoreEvent], Revision] | None:
        wanted = tuple(prefixes)
        me = object()
        with self._news:
            if self.floor > after:
                raise Cut("it has forgotten")
            self._waiting[me] = after
            try:
                while True:
                    first = bisect.bisect_right(self._events, self._waiting[me], key=_revision)
                    events = [each for each in self._events[first:] if each.key.startswith(wanted)]
                    if self.seen >= until if until is not None else events:
                        return events, max(after, self.seen)
                    if self._error is not None:
                        raise self._error
                    if not events:  # what is others' need not be kept for this one
                        self._waiting[me] = max(after, self.seen)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        # Said with the lock held: what comes later is not passed over.
                        return None if until is not None else ([], max(after, self.seen))
                    self._news.wait(left)
            finally:
                del self._waiting[me]

    def end(self) -> None:
        """Cut it."""
        self._requests.put(None)
        self._stream.cancel()

    def _said(self) -> Iterator[Any]:
        """What the client says: one thing, and then nothing while it listens."""
        while (request := self._requests.get()) is not None:
            yield request

    def _follow(self) -> None:
        error: Exception = Cut("its server ended the watch")
        try:
            for response in self._stream:
                if response.canceled:
                    if response.compact_revision:
                        begin = response.compact_revision
                        error = Conflict(f"the store's history begins at {begin}")
                    elif response.cancel_reason:
                        error = Cut(response.cancel_reason)
                    break
                self._take(response)
        except grpc.RpcError as cut:
            error = Cut(words(cut))
        except ValueError as closed:  # gRPC's, of a channel that was closed
            error = Cut(str(closed))
        finally:
            with self._news:
                self._error = error
                self._news.notify_all()
            self.end()

    def _take(self, response: Any) -> None:
        events = []
        for each in response.events:
            key = each.kv.key.removeprefix(self._prefix).decode(errors="replace")
            value = None if each.type == _messages.DELETED else each.kv.value
            if key != self._hidden:
                events.append(StoreEvent(key, value, each.kv.mod_revision))
        if not response.events:
            return
        with self._news:
            self.seen = max(self.seen, response.events[-1].kv.mod_revision)
            self._events += events
            self._bytes += sum(len(each.value or b"") for each in events)
            self._forget()
            self._news.notify_all()

    def _forget(self) -> None:
        """What is too much, revision by revision, and that nobody waits for."""
        known = min(self._waiting.values(), default=self.seen)
        gone = 0
        while len(self._events) - gone > _KEPT or self._bytes > _KEPT_BYTES:
            revision = self._events[gone].revision
            if revision > known:
                break
            while gone < len(self._events) and self._events[gone].revision == revision:
                self._bytes -= len(self._events[gone].value or b"")
                gone += 1
            self.floor = revision
        del self._events[:gone]


def _revision(event: StoreEvent) -> Revision:
    return event.revision
