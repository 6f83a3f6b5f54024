# SPDX-License-Identifier: Apache-2.0
"""The SQLite store: the contract, and what is its own."""

import errno
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from slimnet.exceptions import ConfigError, Conflict, InvalidValue, StoreUnreachable
from slimnet.plugins import open_store
from slimnet.store import sqlite
from slimnet.store.sqlite import SqliteStore
from slimnet.testing import check_store


@pytest.fixture(autouse=True)
def on_however_slow_a_machine(monkeypatch):
    """SQLite's writers do not queue: one may wait for many seconds where there are many."""
    monkeypatch.setattr(sqlite, "_BUSY", 120)


@pytest.fixture
def url(tmp_path):
    return f"sqlite://{tmp_path}/deep/store.db"


@pytest.fixture
def store(url):
    with SqliteStore.open(url) as opened:
        yield opened


@pytest.fixture
def away(url):
    """Takes the file of the store away for a while."""

    @contextmanager
    def moved():
        path = Path(url.removeprefix("sqlite://"))
        hidden = path.parent.with_name("hidden")
        path.parent.rename(hidden)
        path.parent.write_text("a file, so that no new store is made there")
        try:
            yield
        finally:
            path.parent.unlink()
            hidden.rename(path.parent)

    return moved


@pytest.fixture
def forget(url):
    """Has the store lose its history."""

    def lose():
        file = url.removeprefix("sqlite://")
        with closing(sqlite3.connect(file, timeout=120)) as connection, connection:
            connection.execute("DELETE FROM history")
            connection.execute(
                "UPDATE meta SET value=(SELECT value FROM meta WHERE name='revision')"
                " WHERE name='trimmed'"
            )

    return lose


def test_contract_of_what_cannot_be_taken_away(url):
    """What is only tried with a store that is away, or forgets, is left out, and not told."""
    told = check_store(url, SqliteStore.open)
    assert len(told) > 20
    assert not {"unreachable_when_away", "history_that_was_compacted"} & set(told)


class Slow(SqliteStore):
    """Once takes longer for what it ties to a lease than the lease takes."""

    tied = 0

    def transact(self, *, expect=None, put=None, delete=(), leases=None):
        Slow.tied += bool(leases)
        if leases and Slow.tied == 1:
            time.sleep(0.6)
        return super().transact(expect=expect, put=put, delete=delete, leases=leases)


def test_contract_has_time_for_a_slow_store(url):
    """It is the lease that is too short then."""
    check_store(url, Slow.open)
    assert Slow.tied > 5


class Forgetful(SqliteStore):
    """Has no expectations."""

    def transact(self, *, expect=None, put=None, delete=(), leases=None):
        return super().transact(put=put, delete=delete, leases=leases)


class OneLease(SqliteStore):
    """Ties all that is put to one lease, or nothing."""

    def transact(self, *, expect=None, put=None, delete=(), leases=None):
        lease = next(iter((leases or {}).values()), None)
        every = {} if lease is None else dict.fromkeys(put or {}, lease)
        return super().transact(expect=expect, put=put, delete=delete, leases=every)


class Deaf(SqliteStore):
    """Watches the first prefix only."""

    def watch(self, prefix, *more, after, timeout):
        return super().watch(prefix, after=after, timeout=timeout)


class Nervous(SqliteStore):
    """Wakes up for everything, and tells only what is wanted."""

    def watch(self, prefix, *more, after, timeout):
        events, reached = super().watch("", after=after, timeout=timeout)
        return [each for each in events if each.key.startswith((prefix, *more))], reached


class Forward(SqliteStore):
    """Says that it holds as far as the last change that it tells of."""

    def watch(self, prefix, *more, after, timeout):
        events, _ = super().watch(prefix, *more, after=after, timeout=timeout)
        return events, events[-1].revision if events else after


class Plain(SqliteStore):
    """Lets out what a driver below it raises."""

    def renew(self, lease):
        try:
            super().renew(lease)
        except StoreUnreachable as error:
            raise ConnectionResetError(str(error)) from error


class InPieces(SqliteStore):
    """Divides what is large."""

    def transact(self, *, expect=None, put=None, delete=(), leases=None):
        every = list((put or {}).items())
        for at in range(128, len(every), 128):
            piece = dict(every[at : at + 128])
            some = {key: lease for key, lease in (leases or {}).items() if key in piece}
            super().transact(expect=expect, put=piece, leases=some)
        first = dict(every[:128])
        leases = {key: lease for key, lease in (leases or {}).items() if key in first}
        return super().transact(expect=expect, put=first, delete=delete, leases=leases)


class Clipped(SqliteStore):
    """Keeps what it has room for."""

    def transact(self, *, expect=None, put=None, delete=(), leases=None):
        put = {key: value[: 2**20] for key, value in (put or {}).items()}
        return super().transact(expect=expect, put=put, delete=delete, leases=leases)


class Silent(SqliteStore):
    """Refuses what is large, and does not say what that is."""

    def transact(self, *, expect=None, put=None, delete=(), leases=None):
        if any(len(value) > 2**20 for value in (put or {}).values()):
            raise InvalidValue("value", "less", "much")
        return super().transact(expect=expect, put=put, delete=delete, leases=leases)


class Careless(SqliteStore):
    """Goes on after an outage with what is new by then."""

    lost = False

    def watch(self, prefix, *more, after, timeout):
        try:
            if self.lost:
                _, after = self.list("none")
            self.lost = False
            return super().watch(prefix, *more, after=after, timeout=timeout)
        except StoreUnreachable:
            self.lost = True
            raise


class Polite(SqliteStore):
    """Does not say that it has forgotten."""

    def watch(self, prefix, *more, after, timeout):
        try:
            return super().watch(prefix, *more, after=after, timeout=timeout)
        except Conflict:
            return [], self.list("none")[1]


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (InPieces, "transaction_of_many_keys"),
        (Clipped, "too_much_is_refused"),
        (Silent, "too_much_is_refused"),
        (Careless, "watch_that_is_cut"),
        (Polite, "history_that_was_compacted"),
        (Forgetful, "expectations"),
        (OneLease, "lease_of_each_key"),
        (Deaf, "watch_takes_prefixes"),
        (Nervous, "watch_is_woken_by_its_own_only"),
        (Forward, "watch_passes_over_the_rest"),
        (Plain, "unreachable_when_closed: .* renew wants StoreUnreachable, got ConnectionReset"),
    ],
)
def test_contract_finds_a_broken_store(url, broken, clause, away, forget):
    """The suite is able to fail, and says at which clause."""
    with pytest.raises(AssertionError, match=f"^{clause}"):
        check_store(url, broken.open, away=away, forget=forget)


def test_open_by_url(url):
    """The scheme of a URL is the driver's name."""
    with open_store(url) as opened:
        assert isinstance(opened, SqliteStore)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:relative", "sqlite://host/x"])
def test_wrong_url(url):
    with pytest.raises(ConfigError) as caught:
        SqliteStore.open(url).close()
    assert "sqlite:///<absolute path>" in str(caught.value)


def test_only_root_may_read_it(store):
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnreachable, match="file"):
        SqliteStore.open(f"sqlite://{tmp_path}/file/store.db")


def test_file_that_is_no_database(tmp_path):
    (tmp_path / "store.db").write_text("no database at all, but long enough to be looked at" * 99)
    with pytest.raises(StoreUnreachable, match="not a database"):
        SqliteStore.open(f"sqlite://{tmp_path}/store.db")


def test_other_format(store, url):
    connection = sqlite3.connect(store.path)
    with connection:
        connection.execute("UPDATE meta SET value=2 WHERE name='format'")
    connection.close()
    with pytest.raises(ConfigError, match="format 1, got .* of format 2"):
        SqliteStore.open(url)


def test_history_is_trimmed(store, monkeypatch):
    """A watcher that lags too far is told to list again; a near one is not."""
    monkeypatch.setattr(sqlite, "_HISTORY", 100)
    first = store.transact(put={"key": b"0"})
    for number in range(600):
        last = store.transact(put={"key": b"%d" % number})
    with pytest.raises(Conflict, match="history"):
        store.watch("", after=first, timeout=0)
    events, reached = store.watch("", after=last - 50, timeout=0)
    assert [event.revision for event in events] == list(range(last - 49, last + 1))
    assert reached == last
    connection = sqlite3.connect(store.path)
    kept = connection.execute("SELECT count(*) FROM history").fetchone()[0]
    connection.close()
    assert kept < 100 + 256


def test_file_moved_away_and_back(store):
    """A store that is gone is unreachable, and is what it was when it is back."""
    store.transact(put={"key": b"1"})
    hidden = store.path.with_suffix(".hidden")
    store.path.rename(hidden)
    for call in (
        lambda: store.get("key"),
        lambda: store.transact(put={"key": b"2"}),
        lambda: store.watch("", after=0, timeout=0),
        lambda: store.lease(1),
    ):
        with pytest.raises(ConnectionError, match="No such file"):
            call()
    hidden.rename(store.path)
    assert store.get("key")[0] == b"1"


def test_moved_away_while_watching(store):
    revision = store.transact(put={"key": b"1"})
    timer = threading.Timer(0.1, lambda: store.path.rename(store.path.with_suffix(".hidden")))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(StoreUnreachable):
        store.watch("", after=revision, timeout=10)
    timer.join()
    assert time.monotonic() - begin < 5


@contextmanager
def woken(function):
    """A moment after the block began it runs in a thread of its own, and the block ends long
    before what it waits for would be over."""
    timer = threading.Timer(0.1, function)
    begin = time.monotonic()
    timer.start()
    yield
    timer.join()
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("how", ["commits", "runs out", "is moved", "is closed"])
def test_a_watcher_sleeps_until_it_is_woken(store, url, monkeypatch, how):
    monkeypatch.setattr(sqlite, "_LOOK", 60)
    lease = store.lease(0.1 if how == "runs out" else 3600)
    revision = store.transact(put={"key": b"1"}, leases={"key": lease})
    with SqliteStore.open(url) as other:
        happens = {
            "commits": lambda: other.transact(put={"key": b"2"}),
            "runs out": lambda: None,
            "is moved": lambda: store.path.rename(store.path.with_suffix(".hidden")),
            "is closed": store.close,
        }
        with woken(happens[how]):
            if how in {"commits", "runs out"}:
                events, _ = store.watch("", after=revision, timeout=60)
                assert [event.value for event in events] == [b"2" if how == "commits" else None]
            else:
                with pytest.raises(StoreUnreachable):
                    store.watch("", after=revision, timeout=60)


def test_a_watcher_that_nobody_wakes_looks_by_itself(store, monkeypatch):
    """Another program commits; or there are no more inotify instances."""
    revision = store.transact(put={"key": b"1"})

    def commit():
        with closing(sqlite3.connect(store.path)) as connection, connection:
            connection.execute("INSERT INTO history VALUES (?, 'key', x'32')", (revision + 1,))
            connection.execute("UPDATE meta SET value=? WHERE name='revision'", (revision + 1,))

    with woken(commit):
        events, reached = store.watch("", after=revision, timeout=60)
    assert [event.value for event in events] == [b"2"]

    def none(*_):
        raise OSError(errno.EMFILE, "no more")

    monkeypatch.setattr(sqlite.libc, "inotify", none)
    monkeypatch.setattr(sqlite, "_LOOK", 60)
    with SqliteStore(store.path) as fresh, woken(lambda: store.transact(put={"key": b"3"})):
        events, _ = fresh.watch("", after=reached, timeout=60)
    assert [event.value for event in events] == [b"3"]


def test_a_watcher_that_sleeps_looks_at_nothing(store, monkeypatch):
    looks = []
    number = sqlite._number
    monkeypatch.setattr(sqlite, "_number", lambda *args: looks.append(args) or number(*args))
    revision = store.transact(put={"key": b"1"})
    looks.clear()
    store.watch("", after=revision, timeout=0.5)
    assert len(looks) < 10


def test_leases_start_again_after_the_store_was_away(store, run_out):
    """While nobody could renew, nobody is lost."""
    lease = store.lease(3600)
    store.transact(put={"host": b"1"}, leases={"host": lease})
    run_out()
    hidden = store.path.with_suffix(".hidden")
    store.path.rename(hidden)
    with pytest.raises(StoreUnreachable):
        store.get("host")
    hidden.rename(store.path)
    assert store.get("host") is not None
    run_out()
    assert store.get("host") is None


def test_lease_of_an_earlier_boot_has_run_out(store):
    lease = store.lease(3600)
    store.transact(put={"host": b"1"}, leases={"host": lease})
    connection = sqlite3.connect(store.path)
    with connection:
        connection.execute("UPDATE lease SET boot='another'")
    connection.close()
    assert store.get("host") is None


_CHILD = """
import sys
from slimnet.store import sqlite
from slimnet.store.sqlite import SqliteStore
sqlite._BUSY = 120
with SqliteStore.open(sys.argv[1]) as store:
    for number in range(50):
        store.transact(put={f"{sys.argv[2]}/{number}": b"x"})
"""


def test_many_processes_at_once(url):
    """Eight processes make the file and write to it, from nothing."""
    children = [
        subprocess.Popen([sys.executable, "-c", _CHILD, url, str(number)]) for number in range(8)
    ]
    assert [child.wait(300) for child in children] == [0] * 8
    with SqliteStore.open(url) as store:
        pairs, revision = store.list("")
    assert (len(pairs), revision) == (400, 400)


_WRITER = """
import sys
from slimnet.store.sqlite import SqliteStore
with SqliteStore.open(sys.argv[1]) as store:
    number = 0
    while True:
        number += 1
        store.transact(put={"a": b"%d" % number, "b": b"%d" % number})
        print(number, flush=True)
"""


def test_killed_writer_leaves_whole_transactions(url):
    """What was acknowledged is there, and no transaction is half there."""
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE, text=True
    )
    for _ in range(20):
        child.stdout.readline()
    child.kill()
    acknowledged = [int(line) for line in child.stdout.read().split()]
    child.stdout.close()
    child.wait(10)
    with SqliteStore.open(url) as store:
        pairs, _ = store.list("")
    assert pairs["a"] == pairs["b"]
    assert int(pairs["a"][0]) >= max(acknowledged, default=20)
