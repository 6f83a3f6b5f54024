# SPDX-License-Identifier: Apache-2.0
"""The store of one machine: an SQLite file, shared by all of its processes.

WAL mode, so that readers never wait; ``PRAGMA data_version`` tells a watcher whether
somebody else committed (https://www.sqlite.org/pragma.html#pragma_data_version). Who
commits touches the file, which wakes the watchers (inotify(7)); they sleep until then,
and look now and then, for others do not touch it. Changes stay in a
history table for watchers and are trimmed. A lease lives on the boot clock:
one of an earlier boot has run out, whatever its number says.
"""

from __future__ import annotations

import math
import os
import select
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from slimnet.abc import Revision, Store, StoreEvent
from slimnet.exceptions import ConfigError, Conflict, NotFound, StoreUnreachable
from slimnet.linux import libc, sysctl
from slimnet.store import APART, check_leases, check_prefixes, unmet
from slimnet.trusted import make_trusted

__all__ = ["SqliteStore"]

#: Changes that a watcher may lag behind.
_HISTORY = 10_000
#: Seconds between two looks at data_version, by who is woken and by who cannot be.
_LOOK = 0.25
_POLL = 0.025
#: Seconds that a writer waits for another one.
_BUSY = 5.0
#: Connections that are kept for the next caller.
_IDLE = 8

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('format', 1), ('revision', 0), ('trimmed', 0);
CREATE TABLE IF NOT EXISTS pair (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pair_lease ON pair (lease) WHERE lease IS NOT NULL;
CREATE TABLE IF NOT EXISTS lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, seconds REAL NOT NULL,
    expires REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS history (
    revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, key)
) WITHOUT ROWID;
"""


_Changes = list[tuple[int, str, bytes | None]]


class _Connection(sqlite3.Connection):
    """With a bell, which whoever commits rings."""

    _bell: int | None = None

    def sleep(self, path: Path, seconds: float) -> None:
        """Until somebody rings, or has rung since the last time; or so long at most."""
        try:
            if self._bell is None:
                self._bell = libc.inotify(str(path), libc.IN_ATTRIB | libc.IN_MOVE_SELF)
        except OSError:  # no more of them: fs.inotify.max_user_instances
            time.sleep(min(seconds, _POLL))
            return
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if poll.poll(1000 * min(seconds, _LOOK)):
            os.read(self._bell, 4096)

    def close(self) -> None:
        if self._bell is not None:
            os.close(self._bell)
            self._bell = None
        super().close()


class SqliteStore(Store):
    """``sqlite:///absolute/path.db``; the file and its directory are made.

    Whoever puts another file in its place has to take ``-wal`` and ``-shm``
    beside it away too: SQLite would apply the old log to the new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._boot = sysctl.read("kernel/random/boot_id")
        self._idle: list[_Connection] = []
        self._inode = 0
        self._closed = False
        self._away = False  # since the last failure
        self._lock = threading.Lock()
        try:
            make_trusted(path.parent)
            # Only root's: whoever can open it can hold its writers up.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreUnreachable(f"store {path}: {error.strerror or error}") from error
        with self._connection() as connection:
            self._make(connection)

    @classmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> SqliteStore:
        for option, value in (options or {}).items():
            raise ConfigError(f"store.sqlite.{option}", "no options", value)
        scheme, found, rest = url.partition("://")
        if scheme != "sqlite" or not found or not rest.startswith("/") or not rest.strip("/"):
            raise ConfigError("store", "sqlite:///<absolute path>", url)
        return cls(Path("/" + rest.lstrip("/")))

    def _make(self, connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + _BUSY
        while True:
            try:
                # SQLite does not wait by itself when two switch to WAL at once.
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        try:
            form = _number(connection, "SELECT value FROM meta WHERE name='format'")
        except sqlite3.OperationalError:
            connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
            form = 1
        if form != 1:
            raise ConfigError("store", "a file of format 1", f"{self.path} of format {form}")

    def get(self, key: str) -> tuple[bytes, Revision] | None:
        with self._connection() as connection:
            self._expire(connection)
            row = connection.execute(
                "SELECT value, revision FROM pair WHERE key=?", (key,)
            ).fetchone()
        return None if row is None else (bytes(row[0]), row[1])

    def list(self, prefix: str) -> tuple[dict[str, tuple[bytes, Revision]], Revision]:
        with self._connection() as connection:
            self._expire(connection)
            connection.execute("BEGIN")
            rows = connection.execute(
                "SELECT key, value, revision FROM pair WHERE key>=? AND key<? ORDER BY key",
                _below(prefix),
            ).fetchall()
            revision = _revision(connection)
            connection.execute("COMMIT")
        return {key: (bytes(value), changed) for key, value, changed in rows}, revision

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
        with self._connection() as connection, self._transaction(connection):
            self._purge(connection, time.clock_gettime(time.CLOCK_BOOTTIME))
            for key, wanted in (expect or {}).items():
                row = connection.execute("SELECT revision FROM pair WHERE key=?", (key,)).fetchone()
                found = row[0] if row else None
                if found != wanted:
                    raise unmet(key, wanted, found)
            for lease in leases.values():
                self._need_lease(connection, lease)
            revision = _revision(connection) + 1
            changed = False
            for key in delete:
                if connection.execute("DELETE FROM pair WHERE key=?", (key,)).rowcount:
                    _remember(connection, revision, key, None)
                    changed = True
            for key, value in put.items():
                connection.execute(
                    "INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?)",
                    (key, value, revision, leases.get(key)),
                )
                _remember(connection, revision, key, value)
                changed = True
            if not changed:
                return revision - 1
            _commit_revision(connection, revision)
            return revision

    def watch(
        self, prefix: str, *more: str, after: Revision, timeout: float
    ) -> tuple[Sequence[StoreEvent], Revision]:
        deadline = time.monotonic() + timeout
        check_prefixes((prefix, *more))
        with self._connection() as connection:
            while True:
                version = _number(connection, "PRAGMA data_version")
                self._expire(connection)
                rows, after = self._changes(connection, (prefix, *more), after)
                if rows:
                    break
                due = self._due(connection)
                while _number(connection, "PRAGMA data_version") == version:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return (), after
                    now = time.clock_gettime(time.CLOCK_BOOTTIME)
                    if now >= due:
                        break
                    connection.sleep(self.path, min(left, due - now))
                    self._check()
        events = [
            StoreEvent(key, None if value is None else bytes(value), revision)
            for revision, key, value in rows
        ]
        return events, after

    def lease(self, seconds: float) -> int:
        with self._connection() as connection, self._transaction(connection, durable=False):
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            cursor = connection.execute(
                "INSERT INTO lease (boot, seconds, expires) VALUES (?, ?, ?)",
                (self._boot, seconds, now + seconds),
            )
            return int(cursor.lastrowid or 0)

    def renew(self, lease: int) -> None:
        with self._connection() as connection, self._transaction(connection, durable=False):
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._purge(connection, now)
            self._need_lease(connection, lease)
            connection.execute("UPDATE lease SET expires=?+seconds WHERE id=?", (now, lease))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._close_idle()
        self._ring()

    @staticmethod
    def _changes(
        connection: sqlite3.Connection, prefixes: Sequence[str], after: Revision
    ) -> tuple[_Changes, Revision]:
        """The changes below the prefixes, and the newest revision of all."""
        below = " OR ".join(["key>=? AND key<?"] * len(prefixes))
        bounds = [
            bound for prefix in prefixes for bound in (_below(prefix) if prefix else ("", APART))
        ]
        connection.execute("BEGIN")
        try:
            trimmed = _number(connection, "SELECT value FROM meta WHERE name='trimmed'")
            newest = _revision(connection)
            if not trimmed <= after <= newest:
                raise Conflict(f"the store's history holds {trimmed} to {newest}, not {after}")
            rows = connection.execute(
                "SELECT revision, key, value FROM history"  # noqa: S608  # only places for values
                f" WHERE revision>? AND ({below}) ORDER BY revision, key",
                (after, *bounds),
            ).fetchall()
        finally:
            connection.execute("COMMIT")
        return rows, newest

    def _need_lease(self, connection: sqlite3.Connection, lease: int) -> None:
        if connection.execute("SELECT 1 FROM lease WHERE id=?", (lease,)).fetchone() is None:
            raise NotFound(f"lease {lease} has run out")

    def _expire(self, connection: sqlite3.Connection) -> None:
        """Let the keys of leases that ran out go, if there are any."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        if connection.execute(_EXPIRED, (self._boot, now)).fetchone():
            with self._transaction(connection):
                self._purge(connection, now)

    @staticmethod
    def _due(connection: sqlite3.Connection) -> float:
        """When the next lease runs out, unless it is renewed, in seconds of the boot clock."""
        (due,) = connection.execute("SELECT min(expires) FROM lease").fetchone()
        return math.inf if due is None else float(due)

    def _return(self, connection: sqlite3.Connection) -> None:
        """While the store was away nobody could renew: every lease starts again."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        with self._transaction(connection):
            connection.execute(
                "UPDATE lease SET expires=?+seconds WHERE boot=? AND expires<?+seconds",
                (now, self._boot, now),
            )
        self._away = False

    def _purge(self, connection: sqlite3.Connection, now: float) -> None:
        gone = [row[0] for row in connection.execute(_EXPIRED, (self._boot, now))]
        if not gone:
            return
        revision = _revision(connection) + 1
        changed = False
        for lease in gone:
            keys = connection.execute("SELECT key FROM pair WHERE lease=?", (lease,)).fetchall()
            for (key,) in keys:
                connection.execute("DELETE FROM pair WHERE key=?", (key,))
                _remember(connection, revision, key, None)
                changed = True
            connection.execute("DELETE FROM lease WHERE id=?", (lease,))
        if changed:
            _commit_revision(connection, revision)

    @contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """Borrow a connection; data_version has a meaning within one only."""
        connection = None
        try:
            connection = self._borrow()
            if self._away:
                self._return(connection)
            yield connection
        except (sqlite3.Error, OSError) as error:
            self._away = True
            self._forget()
            if isinstance(error, StoreUnreachable):
                raise
            raise StoreUnreachable(f"store {self.path}: {error}") from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def _borrow(self) -> _Connection:
        if self._closed:
            raise StoreUnreachable(f"store {self.path}: closed")
        inode = self.path.stat().st_ino
        with self._lock:
            if inode != self._inode:  # the first time, or another file has been put there
                self._close_idle()
                self._inode = inode
            if self._idle:
                return self._idle.pop()
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY,
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )

    def _give_back(self, connection: _Connection) -> None:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        with self._lock:
            if not self._closed and not self._away and len(self._idle) < _IDLE:
                self._idle.append(connection)
                return
        connection.close()

    @contextmanager
    def _transaction(
        self, connection: sqlite3.Connection, *, durable: bool = True
    ) -> Iterator[None]:
        """A write transaction; a renewed lease need not survive a power cut, and wakes nobody."""
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        if durable:
            self._ring()

    def _ring(self) -> None:
        with suppress(OSError):  # they look by themselves
            os.utime(self.path)

    def _check(self) -> None:
        """An open connection would go on with a file that was moved away, and when closed."""
        if self._closed:
            raise StoreUnreachable(f"store {self.path}: closed")
        if self.path.stat().st_ino != self._inode:
            raise StoreUnreachable(f"store {self.path}: another file has been put there")

    def _forget(self) -> None:
        with self._lock:
            self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


_EXPIRED = "SELECT id FROM lease WHERE boot<>? OR expires<=?"


def _below(prefix: str) -> tuple[str, str]:
    """A prefix as a range, which the primary key serves; U+10FFFF ends all keys."""
    return prefix, prefix + "\U0010ffff"


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _revision(connection: sqlite3.Connection) -> int:
    return _number(connection, "SELECT value FROM meta WHERE name='revision'")


def _remember(connection: sqlite3.Connection, revision: int, key: str, value: bytes | None) -> None:
    connection.execute("INSERT OR REPLACE INTO history VALUES (?, ?, ?)", (revision, key, value))


def _commit_revision(connection: sqlite3.Connection, revision: int) -> None:
    connection.execute("UPDATE meta SET value=? WHERE name='revision'", (revision,))
    if revision % 256 == 0 and revision > _HISTORY:
        trimmed = revision - _HISTORY
        connection.execute("DELETE FROM history WHERE revision<=?", (trimmed,))
        connection.execute("UPDATE meta SET value=? WHERE name='trimmed'", (trimmed,))
