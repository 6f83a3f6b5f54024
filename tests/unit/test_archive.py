# SPDX-License-Identifier: Apache-2.0
"""A store's backup: what is in the file, what is not, and which files are refused."""

import contextlib
import json
import sqlite3

import pytest
from click.testing import CliRunner

from slimnet.cli import slimnet
from slimnet.cluster import Cluster, keys
from slimnet.cluster.archive import VERSION, Archive
from slimnet.cluster.own import OwnStore, store_id
from slimnet.exceptions import AlreadyExists, InvalidValue, NotFound
from slimnet.model import Host
from slimnet.store.sqlite import SqliteStore
from slimnet.testing import MemoryStore


@pytest.fixture
def store(tmp_path):
    with OwnStore(SqliteStore.open(f"sqlite://{tmp_path}/store.db")) as opened:
        cluster = Cluster(opened)
        cluster.create_network("prod", "10.1.0.0/16")
        cluster.set_host(Host("h1", "192.0.2.1"), opened.lease(60))
        opened.transact(put={"later/key": b"of a newer version", "later/raw": b"\xff\n\x00"})
        yield opened


@pytest.fixture
def empty(tmp_path):
    with SqliteStore.open(f"sqlite://{tmp_path}/empty.db") as opened:
        yield opened


def held(store):
    return {key: value for key, (value, _) in store.list("")[0].items()}


def test_there_and_back(store, empty):
    """Also keys that this version does not know, and values that are no text."""
    archive = Archive.take(store)
    again = Archive.load(archive.dump(), "it")
    assert again == archive
    assert again.strange == ["later/key", "later/raw"]
    again.put(empty)
    assert held(empty) == held(store)
    assert store_id(empty) == store_id(store)


def test_copied_by_command(store, tmp_path):
    """They are named, in one line, and are in the copy."""
    target = tmp_path / "copy.db"
    words = ["store", "copy", "--live", f"sqlite://{tmp_path}/store.db", f"sqlite://{target}"]
    done = CliRunner().invoke(slimnet, words)
    assert done.exit_code == 0, done.output
    assert done.stderr == (
        "warning: kept as they are, as this version of slimnet does not know them:"
        " later/key, later/raw\n"
    )
    with SqliteStore.open(f"sqlite://{target}") as other:
        assert held(other) == held(store)


def test_what_passes_is_left_out(store):
    """What somebody's lease holds means nothing to another store; hosts are known until they
    register again."""
    lease = store.lease(60)
    put = {each.at(*["x"] * each.pattern.count("<")): b"{}" for each in keys.KEYS if each.passing}
    assert {each.partition("/")[0] for each in put} >= {"~installed", "~inquiries", "~answers"}
    store.transact(put=put, leases=dict.fromkeys(put, lease))
    archive = Archive.take(store)
    assert not put.keys() & archive.pairs.keys()
    assert archive.hosts == ["h1"]


def test_restored_hosts_pass_as_well(store, empty):
    """A host that does not come back is lost."""
    Archive.take(store).put(empty)
    assert keys.HOST.at("h1") in held(empty)
    with contextlib.closing(sqlite3.connect(empty.path)) as connection, connection:
        connection.execute("UPDATE lease SET expires=0")
    assert keys.HOST.at("h1") not in held(empty)


def test_a_store_with_more_than_a_transaction_takes(empty):
    """In portions, and the id last: who follows by it sees all or nothing."""
    name = "archive-test"
    MemoryStore.running.pop(name, None)
    with OwnStore(MemoryStore.open(f"memory://{name}")) as many:
        for part in range(4):
            many.transact(put={f"networks/{part}-{n}": b"x" * 900 for n in range(500)})
        many.transact(put={"networks/large": b"x" * (1 << 20)})
        archive = Archive.take(many)
    archive.put(empty)
    assert held(empty) == archive.pairs
    listed, revision = empty.list("")
    assert revision > 4
    assert {key for key, (_, at) in listed.items() if at == revision} == {
        keys.CLUSTER.at(),
        keys.CLUSTER_ID.at(archive.cluster),
    }


def test_a_store_that_is_not_empty(store, empty):
    """Refused and not changed, unless it is to be replaced; then nothing of it remains."""
    with OwnStore(empty) as other:
        Cluster(other).create_network("other", "10.2.0.0/16")
        before, archive = held(other), Archive.take(store)
        with pytest.raises(AlreadyExists, match=rf"holds cluster {other.id} \(.* keys\): --repl"):
            archive.put(empty)
        assert held(empty) == before
        archive.put(empty, replace=True)
        assert held(empty) == held(store)


def test_a_restore_that_was_cut_short(store, empty):
    """It has no id, so that no agent follows it; it is done again with `replace`."""
    archive = Archive.take(store)
    empty.transact(put={"networks/half": b"{}"})
    with pytest.raises(AlreadyExists, match="what is no whole cluster"):
        archive.put(empty)
    archive.put(empty, replace=True)
    assert held(empty) == archive.pairs


def test_a_store_without_a_cluster(empty):
    with pytest.raises(NotFound, match="^the store holds no cluster"):
        Archive.take(empty)


def test_files_that_are_refused(store):
    """One line that names the file: one of something else, of a newer version, cut, changed."""
    data = Archive.take(store).dump()
    head, _, body = data.partition(b"\n")
    newer = json.dumps({**json.loads(head), "slimnet-store": VERSION + 1}).encode()
    for wrong, said in (
        (b"", "wanted a file that `slimnet store backup` wrote, got 'another'"),
        (b"[]\n", "wanted a file that `slimnet store backup` wrote"),
        (b"\xff\xfe\n", "wanted a file that `slimnet store backup` wrote"),
        (head[:20], "wanted a file that `slimnet store backup` wrote"),
        (newer + b"\n" + body, "wanted a backup of version 1, got 'version 2'"),
        (head, f"wanted a backup that is whole, got '0 of {len(body.splitlines())} keys"),
        (data[:-1], "wanted a backup that is whole"),
        (data.replace(b"10.1.0.0", b"10.9.0.0"), "wanted a backup that is whole"),
    ):
        with pytest.raises(InvalidValue, match="^it: " + said) as caught:
            Archive.load(wrong, "it")
        assert "\n" not in str(caught.value)
