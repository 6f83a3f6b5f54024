# SPDX-License-Identifier: Apache-2.0
"""The agent's copy of the store depends on what the store holds, never on how it got there."""

import tempfile
import threading
import time

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimnet import records
from slimnet.agent.mirror import Mirror
from slimnet.cluster import Cluster
from slimnet.cluster.archive import Archive
from slimnet.cluster.own import OwnStore
from slimnet.exceptions import StoreUnreachable
from slimnet.model import Endpoint, Host, Namespace, Network
from slimnet.policy import EgressLimit, Policy, PublishedPort, parse
from slimnet.store import sqlite
from slimnet.store.sqlite import SqliteStore

HERE = Host("h1", "192.0.2.1")


def document(version, kind, network="prod", **spec):
    annotations = {"slimnet.io/network": network}
    metadata = {"name": "web", "namespace": "default", "annotations": annotations}
    manifest = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    return parse([{"manifest": manifest}])[0].to_json()


RECORDS = {
    "networks/prod": [Network("prod", 1000, "10.1.0.0/24"), Network("prod", 7, "10.2.0.0/24")],
    "hosts/h1": [HERE, attrs.evolve(HERE, labels={"zone": "a"})],
    "hosts/h2": [Host("h2", "192.0.2.2")],
    "namespaces/prod/default": [Namespace("prod", "default", {"a": label}) for label in "xy"],
    "endpoints/prod/default/web": [
        Endpoint("prod", "web", "10.1.0.1", host, id=1, identity=256) for host in ("h1", "h2")
    ],
    "endpoints/prod/default/db": [Endpoint("prod", "db", "10.1.0.2", "h2", id=2, identity=257)],
    "endpoints/gone/default/x": [Endpoint("gone", "x", "10.1.0.2", "h2", id=3, identity=258)],
    "policies/prod/default/p": [{"manifest": 3}, {"kind": "Service", "value": {}}],
    "policies/prod/default/web": [
        document("networking.k8s.io/v1", "NetworkPolicy", podSelector=chosen)
        for chosen in ({}, {"matchLabels": {"app": "x"}})
    ],
    "policies/gone/default/web": [
        document("networking.k8s.io/v1", "NetworkPolicy", "gone", podSelector={})
    ],
    "services/prod/default/shop": [
        document("v1", "Service", selector={"app": app}, ports=[{"port": 80}]) for app in "xy"
    ],
    "services/gone/default/shop": [
        document("v1", "Service", "gone", selector={"app": "x"}, ports=[{"port": 80}])
    ],
    "publishedports/prod/default/web": [
        document("slimnet.io/v1alpha1", "PublishedPort", endpoint="web", port=port)
        for port in (80, 81)
    ],
    "egresslimits/prod/default/web": [document("slimnet.io/v1alpha1", "EgressLimit", rate="1M")],
    "~installed/h1": [{"revision": 3}],
    "counters/endpoint": [3],
}

HELD_NETWORKS = RECORDS["networks/prod"]

change = st.sampled_from(sorted(RECORDS)).flatmap(
    lambda key: st.tuples(
        st.just(key),
        st.one_of(
            st.none(),
            st.sampled_from(RECORDS[key]).map(records.dump),
            st.sampled_from([b"", b"{", b"[]", b"{}", b"\xff", b"null", b'{"name": []}']),
        ),
    )
)


def view(mirror):
    state = mirror.state(HERE)
    parts = {
        field.name: sorted(map(str, getattr(state, field.name)))
        for field in attrs.fields(type(state))
        if field.name != "revision"
    }
    return parts, dict(mirror.problems), sorted(mirror.binding)


def with_changes(parts, changes):
    """What :func:`view` gave, after these changes of documents; networks stay as they are."""
    found = {name: list(each) for name, each in parts.items()}
    networks = {each.name for each in HELD_NETWORKS if str(each) in found["networks"]}
    kinds = {Policy: "policies", PublishedPort: "published", EgressLimit: "limits"}
    for old, new in changes:
        assert old != new
        for document, turn in ((old, list.remove), (new, list.append)):
            for kind, name in kinds.items():
                if isinstance(document, kind) and (kind is Policy or document.network in networks):
                    turn(found[name], str(document))
    return {name: sorted(each) for name, each in found.items()}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(change, min_size=1, max_size=4), max_size=8))
def test_following_equals_reading(batches):
    """After every sequence of changes, the copy that followed them equals one that is new; and
    where it says that only documents changed, those are all that changed."""
    with (
        tempfile.TemporaryDirectory() as directory,
        SqliteStore.open(f"sqlite://{directory}/store.db") as store,
    ):
        store.transact(put={"counters/start": b"1"})
        follower = Mirror(store)
        follower.catch_up()
        assert follower.changes() is None
        for batch in batches:
            before = view(follower)
            store.transact(
                put={key: value for key, value in batch if value is not None},
                delete=[key for key, value in batch if value is None],
            )
            changed = follower.catch_up()
            reader = Mirror(store)
            assert reader.catch_up()
            assert view(follower) == view(reader)
            assert follower.revision == reader.revision
            assert changed or view(follower) == before
            only = follower.changes()
            assert only is None or with_changes(before[0], only) == view(follower)[0]
            assert only is not None or changed
            assert not (only and before[1:] != view(follower)[1:])


def test_a_document_of_another_kind_is_none(tmp_path):
    """What stands under services is a service; the rest is left out, and said."""
    (limit,) = RECORDS["egresslimits/prod/default/web"]
    (port, _) = RECORDS["publishedports/prod/default/web"]
    with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as store:
        store.transact(
            put={
                "networks/prod": records.dump(RECORDS["networks/prod"][0]),
                "services/prod/default/web": records.dump(limit),
                "egresslimits/prod/default/web": records.dump(limit),
                "publishedports/prod/default/web": records.dump(port),
            }
        )
        mirror = Mirror(store)
        mirror.catch_up()
        state = mirror.state(HERE)
        assert state.services == ()
        assert [each.title for each in (*state.published, *state.limits)] == [
            "port:default/web",
            "limit:default/web",
        ]
        assert "a Service" in mirror.problems["services/prod/default/web"]
        assert mirror.binding == []


def test_keys_that_nobody_knows(tmp_path):
    """Of a later version, or of an earlier one: named, and no problem."""
    known = {"networks/prod": records.dump(RECORDS["networks/prod"][0]), "~seen/h1": b"{}"}
    strange = {f"{kind}/h1": b"{}" for kind in ("seen", "keys", "installed", "gateways")}
    with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as store:
        store.transact(put=known)
        mirror = Mirror(store)
        mirror.catch_up()
        assert mirror.unknown == []
        store.transact(put=strange)
        mirror.forget()
        mirror.catch_up()
        assert mirror.unknown == sorted(strange)
        assert (mirror.problems, mirror.networks()) == ({}, [RECORDS["networks/prod"][0]])


class Counted(SqliteStore):
    """Counts what watchers are told, and how often the whole store is read."""

    told = 0
    read = 0

    def watch(self, prefix, *more, after, timeout):
        events, reached = super().watch(prefix, *more, after=after, timeout=timeout)
        self.told += len(events)
        return events, reached

    def list(self, prefix):
        self.read += 1
        return super().list(prefix)


@pytest.fixture
def store(tmp_path):
    with Counted.open(f"sqlite://{tmp_path}/store.db") as opened:
        yield opened


def test_what_hosts_report_wakes_no_other(store):
    """A change is told once to each of N hosts, and what they write because of it to none:
    N events, where N squared would be more with every host."""
    cluster = Cluster(store)
    leases = {f"h{number}": store.lease(60) for number in range(12)}
    hosts = {name: Host(name, f"192.0.2.{number}") for number, name in enumerate(leases, start=1)}
    for name, host in hosts.items():
        cluster.set_host(host, leases[name])
    mirrors = {name: Mirror(store) for name in leases}
    for mirror in mirrors.values():
        mirror.catch_up()
    store.told = 0
    store.transact(put={"namespaces/prod/default": records.dump(Namespace("prod", "default"))})
    for _ in range(3):
        for name, mirror in mirrors.items():
            mirror.catch_up()
            cluster.set_installed(hosts[name], mirror.followed, leases[name], 1)
            cluster.set_seen(hosts[name], mirror.followed, 1)
    store.transact(put={f"~inquiries/{name}/1": b"{}" for name in mirrors})
    mirrors["h0"].catch_up()
    assert store.told == len(mirrors)
    assert all(mirror.followed == mirrors["h0"].followed for mirror in mirrors.values())


def test_it_answers_while_the_store_does_not(store, monkeypatch):
    """A store that hangs keeps nobody from what is known."""
    store.transact(put={"hosts/h1": records.dump(HERE)})
    mirror = Mirror(store)
    mirror.catch_up()
    asked, free = threading.Event(), threading.Event()
    watch = store.watch

    def hang(*arguments, **named):
        asked.set()
        assert free.wait(10)
        return watch(*arguments, **named)

    monkeypatch.setattr(store, "watch", hang)
    follower = threading.Thread(target=mirror.catch_up)
    follower.start()
    try:
        assert asked.wait(10)
        found = []
        reader = threading.Thread(
            target=lambda: found.extend([mirror.hosts(), mirror.all("hosts"), mirror.state(HERE)])
        )
        reader.start()
        reader.join(5)
        assert found[:2] == [[HERE], [HERE]]
    finally:
        free.set()
        follower.join()
        reader.join()


def test_waiting_for_ones_own(store):
    """What others write ends no wait; a record of tables does, or somebody who waits."""
    mirror = Mirror(store)
    mirror.catch_up()

    def wait(key, timeout):
        timer = threading.Timer(0.05, lambda: store.transact(put={key: b"{}"}))
        timer.start()
        begin = time.monotonic()
        mirror.wait(timeout)
        timer.join()
        return time.monotonic() - begin

    store.transact(put={"counters/start": b"1"})
    mirror.catch_up()
    for key in ("~installed/h2", "~inquiries/h1/1", "~answers/1", "counters/x"):
        before = mirror.revision
        assert wait(key, 0.3) >= 0.29, key
        assert mirror.take_told() is False, key
        assert mirror.revision > before, key
    for key in ("networks/prod", "wanted"):
        before = mirror.revision
        assert wait(key, 30) < 15, key
        mirror.take_told()
        assert mirror.revision > before, key


def test_others_changes_do_not_outrun_it(store, monkeypatch):
    """When history is trimmed, only a watcher that did not ask for long reads all again."""
    monkeypatch.setattr(sqlite, "_HISTORY", 100)
    store.transact(put={"hosts/h1": records.dump(HERE)})
    mirror = Mirror(store)
    mirror.catch_up()
    followed, store.read = mirror.followed, 0
    for number in range(600):
        store.transact(put={"~installed/h2": b"%d" % number})
        if number % 50 == 0:
            mirror.wait(0)
            mirror.take_told()
    assert mirror.catch_up() is False
    assert (store.read, mirror.followed) == (0, followed)


def test_a_store_that_is_to_be_read_anew_is(store):
    """Waiting does not stand for reading."""
    mirror = Mirror(store)
    store.transact(put={"hosts/h1": records.dump(HERE)})
    mirror.catch_up()
    mirror.forget()
    mirror.wait(0)
    store.read = 0
    assert mirror.take_told()
    assert store.read == 1


def test_what_it_was_told_is_taken_without_asking(store):
    """Once, in order, and not where the store was asked meanwhile, which says more."""
    store.transact(put={"counters/start": b"1"})
    mirror = Mirror(store)
    mirror.catch_up()
    asked = []
    for number in (1, 2, 3):
        store.transact(put={"hosts/h1": records.dump(Host(f"h{number}", "192.0.2.1"))})
        mirror.wait(30)
        if number == 2:
            store.transact(put={"hosts/h1": records.dump(Host("h9", "192.0.2.1"))})
            mirror.catch_up()
        before, told = store.read, store.told
        asked.append((mirror.take_told(), mirror.hosts()[0].name))
        assert (store.read, store.told) == (before, told)
    assert asked == [(True, "h1"), (False, "h9"), (True, "h3")]
    assert mirror.take_told() is False


@pytest.mark.parametrize("at_once", [True, False])
def test_a_store_that_is_wiped_and_restored(tmp_path, at_once):
    """What was known stays until all of it is back; then the host has to register again."""
    with OwnStore(SqliteStore.open(f"sqlite://{tmp_path}/store.db")) as store:
        Cluster(store).create_network("prod", "10.1.0.0/16")
        mirror = Mirror(store, store.id)
        mirror.catch_up()
        before = mirror.state(HERE).networks
        archive = Archive.take(store)
        with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as same:
            same.transact(delete=same.list("")[0])
            if not at_once:
                for _ in range(2):
                    with pytest.raises(StoreUnreachable, match="restore it"):
                        mirror.catch_up()
                assert not mirror.remade
            assert mirror.state(HERE).networks == before
            archive.put(same)
        mirror.catch_up()
        assert mirror.state(HERE).networks == before
        assert mirror.remade
