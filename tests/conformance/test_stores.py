# SPDX-License-Identifier: Apache-2.0
"""Every store holds every clause: those that come with slimnet, whatever is below them."""

import contextlib
import itertools
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from slimnet.plugins import open_store, store_names
from slimnet.store import sqlite
from slimnet.testbed.etcd import Etcd
from slimnet.testing import MemoryStore, check_store

#: Of the store's contract, what is only tried where the store can be taken away, or made to forget.
ASKED_FOR = {"unreachable_when_away", "watch_that_is_cut", "history_that_was_compacted"}

_ports = itertools.count(3379, 10)


class Memory:
    def __init__(self, directory):
        self.url = f"memory://{directory}"
        self.opened = MemoryStore.open
        self.forget = MemoryStore.open(self.url).forget

    @contextlib.contextmanager
    def away(self):
        store = MemoryStore.open(self.url)
        store.cut(away=True)
        yield
        store.cut(away=False)

    def remove(self):
        del MemoryStore.running[self.url.removeprefix("memory://")]


class Sqlite:
    def __init__(self, directory):
        self.path = directory / "deep/store.db"
        self.url = f"sqlite://{self.path}"
        self.opened = open_store

    @contextlib.contextmanager
    def away(self):
        hidden = self.path.parent.with_name("hidden")
        self.path.parent.rename(hidden)
        self.path.parent.write_text("a file, so that no new store is made there")
        yield
        self.path.parent.unlink()
        hidden.rename(self.path.parent)

    def forget(self):
        with contextlib.closing(sqlite3.connect(self.path, timeout=120)) as connection, connection:
            connection.execute("DELETE FROM history")
            connection.execute(
                "UPDATE meta SET value=(SELECT value FROM meta WHERE name='revision')"
                " WHERE name='trimmed'"
            )

    def remove(self):
        pass


class Servers:
    def __init__(self, directory):
        number = 0x7F400000 + os.getpid() % 0x3FFFFF
        address = ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
        self.etcd = Etcd(directory / "etcd", address, port=next(_ports))
        self.etcd.start()
        self.url = self.etcd.url
        self.opened = open_store

    @contextlib.contextmanager
    def away(self):
        self.etcd.kill(0)
        yield
        self.etcd.start()

    def forget(self):
        with open_store(self.url) as store:
            _, revision = store.list("")
        subprocess.run(
            ["etcdctl", f"--endpoints={self.etcd.endpoints[0]}", "compact", str(revision)],
            env={**os.environ, "ETCDCTL_API": "3"},
            check=True,
            capture_output=True,
        )

    def remove(self):
        self.etcd.remove()


STORES = {"memory": Memory, "sqlite": Sqlite, "etcd": Servers}


@pytest.fixture(params=STORES)
def place(request, tmp_path: Path, monkeypatch):
    # SQLite's writers do not queue: one may wait for many seconds where there are many.
    monkeypatch.setattr(sqlite, "_BUSY", 120)
    made = STORES[request.param](tmp_path)
    yield made
    made.remove()


def test_contract(place):
    """Every clause of slimnet.abc.Store holds."""
    told = check_store(place.url, place.opened, patience=20, away=place.away, forget=place.forget)
    assert len(told) > 28
    assert set(told) >= ASKED_FOR


def test_every_store_of_ours_is_held_to_it():
    assert set(store_names()) <= set(STORES)
