# SPDX-License-Identifier: Apache-2.0
"""The driver: :class:`slimnet.abc.Store` on etcd's revisions, transactions and leases, which
are what that contract was made after."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc

from slimnet.abc import Revision, Store, StoreEvent
from slimnet.exceptions import ConfigError, Conflict, InvalidValue, NotFound, StoreUnreachable
from slimnet.store import APART, check_leases, check_prefixes, unmet
from slimnet_etcd._client import Client, Doubt, Refused
from slimnet_etcd._feed import Cut, Feed
from slimnet_etcd._messages import MOD, VERSION, new
from slimnet_etcd._settings import Settings

__all__ = ["EtcdStore"]

#: Operations of a transaction, etcd's ``--max-txn-ops``.
_OPERATIONS = 128
#: Written by every transaction that changes what all are told of, whose last revision it has so:
#: who has been told that revision knows all, whatever others change in the same etcd. No key of a
#: user's is so.
_TICK = "\0tick"
#: Seconds that a watch of keys that lie apart is kept for the next call.
_IDLE = 10.0
#: Seconds between two watches where the first was cut.
_PAUSE = 0.1

_CODE = grpc.StatusCode


class EtcdStore(Store):
    """``etcd://host:port,host:port/prefix``; the options are those of ``[store.etcd]``.

    A lease has whole seconds, rounded up, and no less than one and a half election timeouts of
    the servers: two seconds, as etcd comes. A transaction may have 1.5 MiB and any number of
    keys, of which 127 at most with an expectation: unless the servers were started with other
    limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = Client(settings)
        self._prefix = settings.prefix.encode()
        self._end = _end(self._prefix)
        self._feed: Feed | None = None
        #: Prefix of keys that lie apart to what tells them, and to when it was asked last.
        self._apart: dict[str, tuple[Feed, float]] = {}
        self._lock = threading.Lock()
        try:
            self._check()
        except BaseException:
            self._client.close()
            raise

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> EtcdStore:
        return cls(Settings.read(url, options or {}))

    def get(self, key: str) -> tuple[bytes, Revision] | None:
        found = self._range(key=self._prefix + key.encode()).kvs
        return (found[0].value, found[0].mod_revision) if found else None

    def list(self, prefix: str) -> tuple[dict[str, tuple[bytes, Revision]], Revision]:
        raw = self._prefix + prefix.encode()
        answer = self._range(key=raw, range_end=_end(raw))
        pairs = {
            each.key.removeprefix(self._prefix).decode(errors="replace"): each
            for each in answer.kvs
        }
        pairs.pop(_TICK, None)
        return {
            key: (each.value, each.mod_revision) for key, each in pairs.items()
        }, answer.header.revision

    def transact(
        self,
        *,
        expect: Mapping[str, Revision | None] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Iterable[str] = (),
        leases: Mapping[str, int] | None = None,
    ) -> Revision:
        expect, put, leases = expect or {}, put or {}, leases or {}
        check_leases(leases, put)
        if len(expect) >= _OPERATIONS:
            raise InvalidValue(
                "store transaction", f"at most {_OPERATIONS - 1} expectations", len(expect)
            )
        # etcd refuses a transaction that changes a key twice.
        gone = [key for key in dict.fromkeys(delete) if key not in put]
        operations = [self._delete(key) for key in gone]
        operations += [self._put(key, value, leases.get(key, 0)) for key, value in put.items()]
        if not all(key.startswith(APART) for key in (*put, *gone)):
            operations.append(self._put(_TICK, b"", 0))
        request = new(
            "TxnRequest",
            compare=[
                new("Compare", target=MOD, key=self._prefix + key.encode(), mod_revision=wanted)
                for key, wanted in expect.items()
            ],
            success=_pack(operations, _OPERATIONS, len(expect)),
            failure=[self._get(key) for key in expect],
        )
        guarded = any(
            key in put or (wanted is not None and key in gone) for key, wanted in expect.items()
        )
        try:
            answer, doubt = self._once(request, guarded=guarded)
        except Refused as error:
            if "lease not found" in error.text:
                named = ", ".join(map(str, sorted(set(leases.values()))))
                raise NotFound(f"lease {named} has run out") from error
            if "too large" in error.text or "larger than max" in error.text:
                raise _too_large(put) from error
            if "too many operations" in error.text:
                count = len(expect) + len(operations)
                wanted = "fewer expectations and keys (etcd's --max-txn-ops)"
                raise InvalidValue("store transaction", wanted, count) from error
            raise self._outage(error) from error
        if not answer.succeeded:
            if doubt is not None:  # what changed the expected key may have been this
                raise doubt
            raise self._conflict(expect, answer)
        revision: Revision = answer.header.revision
        return revision

    def watch(
        self, prefix: str, *more: str, after: Revision, timeout: float
    ) -> tuple[Sequence[StoreEvent], Revision]:
        begun = time.monotonic()
        apart = prefix if check_prefixes((prefix, *more)) else None
        while True:
            feed, now = self._follow(after, apart), None
            if feed is None or after > max(feed.seen, feed.now) or (timeout <= 0 and apart is None):
                now, last = self._now()
                if after > now:
                    raise Conflict(f"the store's history ends at {now}, before {after}")
                # Where another server was asked now, it is that one which is watched.
                feed = self._follow(after, apart) or self._begin(after, apart)
                feed.now = now
            try:
                if now is None or timeout > 0 or apart is not None:
                    return feed.wait((prefix, *more), after, begun + timeout)
                patient = time.monotonic() + self._settings.timeout / 2
                found = feed.reach((prefix, *more), after, last, patient)
                if found is not None:
                    return found
                why = "its server told nothing"
                feed.end()
            except Cut as error:
                why = str(error)
            finally:
                if not self._keeps(feed):
                    feed.end()
            if time.monotonic() > begun + timeout + self._settings.timeout:
                raise self._client.unreachable(f"the watch was cut: {why}")
            time.sleep(_PAUSE)

    def lease(self, seconds: float) -> int:
        request = new("LeaseGrantRequest", TTL=max(1, math.ceil(seconds)))
        number: int = self._ask("Lease/LeaseGrant", request, "LeaseGrantResponse").ID
        return number

    def renew(self, lease: int) -> None:
        try:
            answer = self._client.keep_alive(lease)
        except Refused as error:
            raise self._outage(error) from error
        if answer is None:
            raise self._client.unreachable("its server ended the stream")
        if answer.TTL <= 0:
            raise NotFound(f"lease {lease} has run out")

    def close(self) -> None:
        with self._lock:
            if self._feed is not None:
                self._feed.end()
            for feed, _ in self._apart.values():
                feed.end()
        self._client.close()

    def _check(self) -> None:
        """Ask for what will be wanted: a transaction that never holds, whose permissions etcd
        looks at all the same.

        Raises:
            ConfigError: names the option that is wrong.
            StoreUnreachable: nobody answers.
        """
        whole = {"key": self._prefix, "range_end": self._end}
        request = new(
            "TxnRequest",
            # A version is never negative.
            compare=[new("Compare", target=VERSION, key=self._tick, version=-1)],
            success=[
                new("RequestOp", request_range=new("RangeRequest", **whole)),
                new("RequestOp", request_delete_range=new("DeleteRangeRequest", **whole)),
            ],
        )
        settings = self._settings
        try:
            self._client.ask("KV/Txn", request, "TxnResponse")
        except StoreUnreachable as error:
            explained = self._client.explain()
            if explained is None:
                raise
            raise explained from error
        except Refused as error:
            if "authentication failed" in error.text:
                wanted = f"the password of user {settings.user}"
                got: object = f"another ({error.text})"
                raise ConfigError("store.etcd.password_file", wanted, got) from error
            if "not enabled" in error.text:
                wanted = "nothing, as the servers know no users"
                raise ConfigError("store.etcd.user", wanted, settings.user) from error
            if "user name is empty" in error.text:
                wanted = "a user, as the servers know some"
                raise ConfigError("store.etcd.user", wanted, None) from error
            if error.code is _CODE.PERMISSION_DENIED:
                who = f"user {settings.user}" if settings.user else "the certificate's user"
                wanted = f"a prefix that {who} may read and write"
                got = settings.prefix.removesuffix("/")
                raise ConfigError("store.etcd.prefix", wanted, got) from error
            raise self._outage(error) from error

    @property
    def _tick(self) -> bytes:
        return self._prefix + _TICK.encode()

    def _follow(self, after: Revision, apart: str | None) -> Feed | None:
        """What tells the changes, if it knows those since ``after``.

        Args:
            after: the revision.
            apart: the prefix, of keys that lie apart.
        """
        with self._lock:
            feed = self._feed
            if apart is not None:
                feed = self._apart[apart][0] if apart in self._apart else None
                if feed is not None:
                    self._apart[apart] = (feed, time.monotonic())
                self._tidy()
        return feed if feed is not None and self._serves(feed) and feed.floor <= after else None

    def _begin(self, after: Revision, apart: str | None) -> Feed:
        """Another one: everybody's, where there is none, or for one who lags behind."""
        with self._lock:
            if apart is not None:
                raw = self._prefix + apart.encode()
                fresh = Feed(self._client, self._prefix, (raw, _end(raw)), _TICK, after)
                if apart in self._apart:
                    self._apart[apart][0].end()
                self._apart[apart] = (fresh, time.monotonic())
                return fresh
            bounds = (self._prefix, self._prefix + APART.encode())
            fresh = Feed(self._client, self._prefix, bounds, _TICK, after)
            if self._feed is None or not self._serves(self._feed):
                if self._feed is not None:
                    self._feed.end()
                self._feed = fresh
            return fresh

    def _tidy(self) -> None:
        """End what tells keys that nobody asks for any more; called with the lock held."""
        now = time.monotonic()
        for prefix, (feed, asked) in list(self._apart.items()):
            if now - asked > _IDLE and not feed.awaited:
                feed.end()
                del self._apart[prefix]

    def _keeps(self, feed: Feed) -> bool:
        with self._lock:
            return feed is self._feed or any(feed is each for each, _ in self._apart.values())

    def _serves(self, feed: Feed) -> bool:
        return feed.alive and feed.server == self._client.server

    def _now(self) -> tuple[Revision, Revision]:
        """The store's revision, which a quorum agrees on, and the last one that all are told of."""
        answer = self._range(key=self._tick, keys_only=True)
        last: Revision = answer.kvs[0].mod_revision if answer.kvs else 0
        return answer.header.revision, last

    def _once(self, request: Any, *, guarded: bool) -> tuple[Any, Doubt | None]:
        """Send a transaction, and its answer. One that changes a key that it has an expectation
        of can be done once only, however often it is sent: where nobody says whether it was,
        as when a leader was killed, it is sent again.

        Returns:
            with the answer whether, and why, it was sent twice.

        Raises:
            Doubt: it may have been done.
        """
        deadline = time.monotonic() + self._settings.timeout
        doubt = None
        while True:
            try:
                return self._client.ask("KV/Txn", request, "TxnResponse", once=True), doubt
            except Doubt as error:
                if not guarded or time.monotonic() > deadline:
                    raise
                doubt = error

    def _range(self, **fields: Any) -> Any:
        return self._ask("KV/Range", new("RangeRequest", **fields), "RangeResponse")

    def _ask(self, method: str, request: Any, answer: str) -> Any:
        try:
            return self._client.ask(method, request, answer)
        except Refused as error:
            raise self._outage(error) from error

    def _outage(self, error: Refused) -> StoreUnreachable:
        return self._client.unreachable(error.text)

    def _get(self, key: str) -> Any:
        request = new("RangeRequest", key=self._prefix + key.encode(), keys_only=True)
        return new("RequestOp", request_range=request)

    def _put(self, key: str, value: bytes, lease: int) -> Any:
        request = new("PutRequest", key=self._prefix + key.encode(), value=value, lease=lease)
        return new("RequestOp", request_put=request)

    def _delete(self, key: str) -> Any:
        request = new("DeleteRangeRequest", key=self._prefix + key.encode())
        return new("RequestOp", request_delete_range=request)

    @staticmethod
    def _conflict(expect: Mapping[str, Revision | None], answer: Any) -> Conflict:
        for (key, wanted), each in zip(expect.items(), answer.responses, strict=True):
            kvs = each.response_range.kvs
            found = kvs[0].mod_revision if kvs else None
            if found != wanted:
                return unmet(key, wanted, found)
        raise AssertionError(answer)


def _end(prefix: bytes) -> bytes:
    """The first key behind all that begin so; no byte of UTF-8 is 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _pack(operations: Sequence[Any], most: int, beside: int = 0) -> Sequence[Any]:
    """Operations as etcd takes them, however many: it counts, along each way down the
    transactions within transactions, the longest list of each, and refuses more than ``most``.

    Args:
        operations: of type ``RequestOp``.
        most: that there may be.
        beside: how long another list of the transaction is.
    """
    if len(operations) <= most or most < 2:
        return operations
    groups = max(beside, most // 2)
    size = -(-len(operations) // groups)
    return [
        new(
            "RequestOp",
            request_txn=new("TxnRequest", success=_pack(operations[at : at + size], most - groups)),
        )
        for at in range(0, len(operations), size)
    ]


def _too_large(put: Mapping[str, bytes]) -> InvalidValue:
    size = sum(map(len, put.values()))
    largest = max(put, key=lambda key: len(put[key]), default="")
    return InvalidValue(
        f"value of store key {largest}",
        "at most 1.5 MiB in one transaction (etcd's --max-request-bytes)",
        f"{len(put.get(largest, b''))} bytes of {size}",
    )
