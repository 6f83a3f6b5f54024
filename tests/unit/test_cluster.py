# SPDX-License-Identifier: Apache-2.0
"""The words of a cluster over a real store."""

import json
import random
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest
from netaddr import IPAddress, IPNetwork

from slimnet.cluster import Cluster, keys
from slimnet.cluster.own import OwnStore, store_id
from slimnet.cluster.progress import await_hosts
from slimnet.contract import SLIM_ADDRESS_SERVICE
from slimnet.exceptions import (
    AlreadyExists,
    Conflict,
    InUse,
    InvalidValue,
    NotFound,
    PolicyError,
    StoreUnreachable,
)
from slimnet.model import Host, HostState
from slimnet.policy import (
    ClusterNetworkPolicy,
    EgressLimit,
    NetworkPolicy,
    PublishedPort,
    Service,
    load,
)
from slimnet.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path):
    with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as opened:
        yield opened


@pytest.fixture
def cluster(store):
    return Cluster(store)


@pytest.fixture
def prod(cluster):
    return cluster.create_network("prod", "10.1.0.0/29")[0]


def spec(name, **more):
    return {"network": "prod", "name": name, "host": "h1", **more}


def everything(store):
    return store.list("")


def test_networks_get_a_vni_each(cluster):
    assert cluster.create_network("a", ["10.1.0.0/16"])[0].vni == 1000
    assert cluster.create_network("b", ["10.2.0.0/16"], 1001)[0].vni == 1001
    assert cluster.create_network("c", ["10.3.0.0/16", "10.5.0.0/16"])[0].vni == 1002
    assert [each.name for each in cluster.networks()] == ["a", "b", "c"]
    assert cluster.network("b").vni == 1001


@pytest.mark.parametrize(
    ("name", "cidrs", "vni", "error", "said"),
    [
        ("prod", ["10.9.0.0/16"], None, AlreadyExists, "network prod is there"),
        ("x", ["10.9.0.0/16"], 1000, AlreadyExists, "VNI 1000 is that of network prod"),
        ("x", ["10.0.0.0/8"], None, InvalidValue, "apart from network prod's 10.1.0.0/29"),
        ("x", ["10.1.0.4/30"], None, InvalidValue, "apart from network prod"),
        ("x", ["10.9.0.0/16", "10.9.1.0/24"], None, InvalidValue, "do not overlap"),
        ("x", ["240.1.0.0/16"], None, InvalidValue, "inner addresses"),
        ("x", ["0.0.0.0/0"], None, InvalidValue, "network.cidrs"),
        ("x", ["127.1.0.0/16"], None, InvalidValue, "loopback"),
        ("x", ["239.0.0.0/24"], None, InvalidValue, "multicast"),
        ("x", ["169.254.0.0/16"], None, InvalidValue, "link-local"),
        ("x", ["192.0.2.0/24"], None, InvalidValue, "underlay address of host h1"),
        ("x", ["172.30.9.0/24"], None, InvalidValue, "172.30.0.0/16, interface dk0 of host h1"),
        ("x", ["172.16.0.0/12"], None, InvalidValue, "172.30.0.0/16, interface dk0 of host h1"),
        ("x", ["10.255.0.0/16"], None, InvalidValue, "10.255.255.53/32, a name server of host h1"),
        ("x", ["198.51.100.0/24"], None, InvalidValue, "198.51.100.7/32, an address of host h1"),
        ("x", ["10.9.0.1/24"], None, InvalidValue, "10.9.0.0/24, or 10.9.0.1/32 for that"),
        ("x", [IPNetwork("10.9.0.1/24")], None, InvalidValue, "wanted 10.9.0.0/24, or"),
        ("x", "10.2.0.0", None, InvalidValue, "a range such as 10.1.0.0/16, got '10.2.0.0'"),
        ("x", ["10.9.0.0/16", "10.2.0.0"], None, InvalidValue, "got '10.2.0.0'"),
        ("x", ["10.2/16"], None, InvalidValue, "a range such as"),
        ("x", ["10.2.0.0/33"], None, InvalidValue, "a range such as"),
        ("x", [5], None, InvalidValue, "a range such as 10.1.0.0/16, got 5"),
        ("x", ["fd00::/64"], None, InvalidValue, "IPv6 overlays are not carried yet"),
        ("x", ["nonsense"], None, InvalidValue, "network.cidrs"),
        ("x", [], None, InvalidValue, "network.cidrs"),
        ("x", ["10.9.0.0/16"], 2**24, InvalidValue, "network.vni"),
        ("x", ["10.9.0.0/16"], 0, InvalidValue, "network.vni"),
        ("X", ["10.9.0.0/16"], None, InvalidValue, "network.name"),
        ("a/b", ["10.9.0.0/16"], None, InvalidValue, "network.name"),
    ],
)
def test_wrong_network(cluster, store, prod, name, cidrs, vni, error, said):
    """Refused with the reason, and nothing has changed."""
    taken = {"172.30.0.0/16": "interface dk0", "10.255.255.53/32": "a name server"}
    taken |= {"::/0": "interface six"}  # in the way of no range of IPv4
    host = Host("h1", "192.0.2.1", ranges=["198.51.100.7/32"], taken=taken)
    cluster.set_host(host, store.lease(60))
    before = everything(store)
    with pytest.raises(error, match=said):
        cluster.create_network(name, cidrs, vni)
    assert everything(store) == before


def test_removed_network_leaves_nothing_but_identities(cluster, store, prod):
    cluster.set_namespace("prod", "shop", {"tier": "a"})
    endpoint, _ = cluster.create_endpoint(spec("web"))
    with pytest.raises(InUse, match="network prod still has endpoints: default/web$"):
        cluster.remove_network("prod")
    cluster.remove_endpoint(endpoint)
    cluster.remove_network("prod")
    kinds = {key.partition("/")[0] for key in everything(store)[0]}
    assert kinds == {"counters", "identities", "ids"}
    with pytest.raises(NotFound, match="network 'prod': there is none"):
        cluster.remove_network("prod")


def test_endpoint_is_given_address_id_and_identity(cluster, prod):
    web, _ = cluster.create_endpoint(spec("web", labels={"app": "web"}))
    web2, _ = cluster.create_endpoint(spec("web2", labels={"app": "web"}))
    db, _ = cluster.create_endpoint(spec("db", labels={"app": "db"}, address="10.1.0.6"))
    elsewhere, _ = cluster.create_endpoint(spec("web", namespace="shop", labels={"app": "web"}))
    assert [str(each.address) for each in (web, web2, db, elsewhere)] == [
        "10.1.0.1",
        "10.1.0.2",
        "10.1.0.6",
        "10.1.0.3",
    ]
    assert len({each.id for each in (web, web2, db, elsewhere)}) == 4
    assert web.identity == web2.identity
    assert len({web.identity, db.identity, elsewhere.identity}) == 3
    assert cluster.endpoint("prod", "default", "db") == db
    assert {each.name for each in cluster.namespaces("prod")} == {"default", "shop"}


def test_an_endpoint_gets_other_labels(cluster, store, prod):
    """And with them the identity of all that have these; id and address are its own. What
    is there already is not written again."""
    web, _ = cluster.create_endpoint(spec("web", labels={"app": "web", "track": "stable"}))
    other, _ = cluster.create_endpoint(spec("other", labels={"app": "web", "quarantine": ""}))
    path = ("prod", "default", "web")
    changed, revision = cluster.label_endpoint(path, {"track": None, "quarantine": "", "x": None})
    assert changed == attrs.evolve(web, labels=other.labels, identity=other.identity)
    assert cluster.endpoint(*path) == changed
    before = everything(store)
    assert cluster.label_endpoint(path, {"app": "web"}) == (changed, revision)
    with pytest.raises(AlreadyExists, match="has the label app=web, and it was not asked to"):
        cluster.label_endpoint(path, {"app": "db", "new": "x"})
    with pytest.raises(NotFound, match="prod/default/none"):
        cluster.label_endpoint(("prod", "default", "none"), {"app": "db"})
    assert everything(store) == before
    assert cluster.label_endpoint(path, {"app": "db"}, overwrite=True)[0].labels["app"] == "db"


def test_labels_from_many_sides(cluster, prod):
    """Six at once, each its own: none is lost."""
    cluster.create_endpoint(spec("web"))
    path = ("prod", "default", "web")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda key: cluster.label_endpoint(path, {key: "x"}), "abcdef"))
    assert cluster.endpoint(*path).labels == dict.fromkeys("abcdef", "x")


def test_an_endpoint_that_goes_meanwhile_is_not_labelled_back(cluster, prod, store, monkeypatch):
    """Removed right behind the look at it: it stays removed."""
    web, _ = cluster.create_endpoint(spec("web"))
    key, look, looked = keys.ENDPOINT.at("prod", "default", "web"), store.get, []

    def get(wanted):
        found = look(wanted)
        if wanted == key and not looked:
            looked.append(wanted)
            cluster.remove_endpoint(web)
        return found

    monkeypatch.setattr(store, "get", get)
    with pytest.raises(NotFound, match="prod/default/web"):
        cluster.label_endpoint(("prod", "default", "web"), {"app": "x"})
    assert cluster.endpoints() == []


def test_ids_are_never_used_again_and_identities_always(cluster, prod):
    first, _ = cluster.create_endpoint(spec("web", labels={"app": "web"}))
    cluster.remove_endpoint(first)
    again, _ = cluster.create_endpoint(spec("web", labels={"app": "web"}))
    assert again.id != first.id
    assert again.identity == first.identity
    assert again.address == first.address


def test_ids_are_not_counted(tmp_path):
    """What was given out after a backup, or in the store before, is not given out again."""
    given = set()
    for name in ("first", "restored", "anew"):
        with SqliteStore.open(f"sqlite://{tmp_path}/{name}.db") as store:
            cluster = Cluster(store)
            cluster.create_network("prod", "10.1.0.0/24")
            given |= {cluster.create_endpoint(spec(f"e{each}"))[0].id for each in range(8)}
            held = {json.loads(value) for value, _ in store.list("ids/")[0].values()}
            labels = {"identities/prod/default/"}  # for ever
            assert held == labels | {f"endpoints/prod/default/e{each}" for each in range(8)}
            for each in cluster.endpoints():
                cluster.remove_endpoint(each)
            held = {json.loads(value) for value, _ in store.list("ids/")[0].values()}
            assert held == labels
    assert len(given) == 24
    # Earlier versions counted from 1.
    assert min(given) >= 1 << 24
    assert max(given) < SLIM_ADDRESS_SERVICE


def test_a_store_has_one_id(tmp_path):
    """Whoever is first makes it; what follows it changes no other store."""
    url = f"sqlite://{tmp_path}/store.db"

    def found(_number):
        with SqliteStore.open(url) as store:
            return OwnStore(store).id

    with ThreadPoolExecutor(8) as pool:
        (own,) = set(pool.map(found, range(16)))
    assert len(bytes.fromhex(own)) == 16
    with SqliteStore.open(url) as store:
        following = OwnStore(store)
        Cluster(following).create_network("prod", "10.1.0.0/24")
        for each in tmp_path.glob("store.db*"):
            each.unlink()
        with SqliteStore.open(url) as young:
            with pytest.raises(StoreUnreachable, match=f"a new one, not that of cluster {own}"):
                Cluster(following).create_network("more", "10.2.0.0/24")
            assert young.list("")[0] == {}
            other = OwnStore(young).id
            with pytest.raises(StoreUnreachable, match=f"is that of cluster {other}, not"):
                Cluster(following).create_network("more", "10.2.0.0/24")
            assert store_id(young) == other
            assert young.list("networks/")[0] == {}


def test_removing_an_endpoint_spares_its_successor(cluster, prod):
    first, _ = cluster.create_endpoint(spec("web"))
    cluster.remove_endpoint(first)
    second, _ = cluster.create_endpoint(spec("web"))
    cluster.remove_endpoint(first)
    assert cluster.endpoint("prod", "default", "web") == second


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"name": "web"}, AlreadyExists, "endpoint prod/default/web is there, on host h1"),
        ({"address": "10.1.0.1"}, AlreadyExists, "10.1.0.1 is that of prod/default/web"),
        ({"address": "10.2.0.1"}, InvalidValue, "an address in 10.1.0.0/29"),
        ({"address": "10.1.0.0"}, InvalidValue, "neither network nor broadcast"),
        ({"address": "10.1.0.7"}, InvalidValue, "neither network nor broadcast"),
        ({"address": "fd00::1"}, InvalidValue, "an address in 10.1.0.0/29"),
        ({"address": "x"}, InvalidValue, "endpoint.address"),
        ({"network": "none"}, NotFound, "network 'none': there is none; there are: prod"),
        ({"name": "a/b"}, InvalidValue, "endpoint.name"),
        ({"namespace": "../x"}, InvalidValue, "endpoint.namespace"),
        ({"labels": {"a": "b c"}}, InvalidValue, "endpoint.labels"),
        ({"labels": ["a"]}, InvalidValue, "endpoint.labels"),
        ({"ports": {"http": ("tpc", 80)}}, InvalidValue, "endpoint.ports.http"),
        ({"ports": {"http": ("tcp", 0)}}, InvalidValue, "endpoint.ports.http"),
        ({"ports": {"http": 80}}, InvalidValue, "endpoint.ports.http"),
        ({"ports": ["http"]}, InvalidValue, "endpoint.ports"),
        ({"colour": "red"}, InvalidValue, "colour"),
    ],
)
def test_wrong_endpoint(cluster, store, prod, more, error, said):
    cluster.create_endpoint(spec("web"))
    before = everything(store)
    with pytest.raises(error, match=said):
        cluster.create_endpoint({**spec("other"), **more})
    assert everything(store) == before


def test_full_network(cluster, prod):
    for number in range(6):
        cluster.create_endpoint(spec(f"e{number}"))
    with pytest.raises(InvalidValue, match="room in network prod, got '6 addresses"):
        cluster.create_endpoint(spec("one-too-many"))


def test_a_network_of_two_addresses(cluster):
    cluster.create_network("tiny", "10.9.0.0/31")
    given = [cluster.create_endpoint({**spec(n), "network": "tiny"})[0].address for n in "ab"]
    assert given == [IPAddress("10.9.0.0"), IPAddress("10.9.0.1")]


class Counted(SqliteStore):
    """Counts the calls that read, and what they are answered."""

    calls = rows = 0

    def get(self, key):
        found = super().get(key)
        return self._count(found, found is not None)

    def list(self, prefix):
        pairs, revision = super().list(prefix)
        return self._count((pairs, revision), len(pairs))

    def watch(self, prefix, *more, after, timeout):
        events, reached = super().watch(prefix, *more, after=after, timeout=timeout)
        return self._count((events, reached), len(events))

    def _count(self, answer, rows):
        self.calls += 1
        self.rows += rows
        return answer


def test_an_endpoint_costs_the_same_in_every_network(tmp_path):
    """What is read of the store for one does not grow with those that are there."""
    costs = {}
    with Counted.open(f"sqlite://{tmp_path}/store.db") as store:
        cluster = Cluster(store)
        cluster.create_network("prod", "10.1.0.0/16")
        cluster.create_endpoint(spec("first"))
        cluster.documents.apply([service("first")])
        for there in (0, 10, 3000):
            others = {
                f"addresses/prod/10.1.{each // 200 + 1}.{each % 200}": b'"endpoints/prod/a/x"'
                for each in range(there)
            }
            store.transact(put=others)
            cluster.create_endpoint(spec(f"before-{there}"))  # that it learns of these
            store.calls = store.rows = 0
            made, _ = cluster.create_endpoint(spec(f"web-{there}"))
            cluster.remove_endpoint(made)
            cluster.create_endpoint(spec(f"asked-{there}", address=f"10.1.200.{len(costs) + 1}"))
            cluster.documents.apply([service(f"shop-{there}")])
            costs[there] = store.calls, store.rows
    assert costs[0] == costs[10] == costs[3000]
    assert max(costs[0]) < 50


def test_hosts_that_attach_at_once_soon_never_meet(store):
    """All of them choose before any has what it chose, with label sets that are new: in each
    round they do it anew, and those that lost go where no other is."""
    hosts = [Cluster(store) for _ in range(8)]
    hosts[0].create_network("prod", "10.1.0.0/20")
    attempts, lost = [], []

    def attach(number, more):
        def admit(endpoint):
            attempts.append(endpoint)
            if waiting:
                attach(waiting.pop(), waiting)

        waiting = more
        name = f"e{number}-{len(lost)}"
        hosts[number].create_endpoint(spec(name, host=f"h{number}", labels={"app": name}), admit)

    for _ in range(40):
        attempts.clear()
        waiting = list(range(1, len(hosts)))
        attach(0, waiting)
        lost.append(len(attempts) - len(hosts))
    assert lost[0] >= len(hosts) - 1
    assert lost[20:] == [0] * 20
    every = hosts[0].endpoints()
    assert len({each.address for each in every}) == len({each.identity for each in every}) == 320


@pytest.mark.parametrize("seed", range(5))
def test_the_first_free_address_is_given(store, seed):
    """Whoever added or removed the others, and however much of the history is gone."""
    chance = random.Random(seed)
    clusters = [Cluster(store), Cluster(store)]
    ranges = ["10.1.0.8/29", "10.1.0.0/30", "10.1.0.5/32"]
    network, _ = clusters[0].create_network("prod", ranges)
    hosts = [
        str(IPAddress(number))
        for cidr in network.cidrs
        for number in range(
            cidr.first + (cidr.prefixlen < 31), cidr.last + 1 - (cidr.prefixlen < 31)
        )
    ]
    full = 0
    for step in range(150):
        cluster = chance.choice(clusters)
        used = {key.rpartition("/")[2] for key in store.list("addresses/")[0]}
        free = [each for each in hosts if each not in used]
        if chance.random() < 0.4 and used:
            cluster.remove_endpoint(chance.choice(cluster.endpoints()))
        elif not free:
            full += 1
            with pytest.raises(InvalidValue, match=f"got '{len(hosts)} addresses in use'"):
                cluster.create_endpoint(spec(f"e{step}"))
        else:
            wanted = chance.choice(free) if chance.random() < 0.2 else None
            made, _ = cluster.create_endpoint(spec(f"e{step}", address=wanted))
            assert str(made.address) == (wanted or free[0])
        if chance.random() < 0.05:
            connection = sqlite3.connect(store.path)
            with connection:
                revision = "SELECT value FROM meta WHERE name='revision'"
                connection.execute(f"UPDATE meta SET value=({revision}) WHERE name='trimmed'")
                connection.execute("DELETE FROM history")
            connection.close()
    assert full


def test_another_store_in_its_place(tmp_path):
    """A backup that is restored has others' addresses: none is given out twice."""
    path = tmp_path / "store.db"
    with SqliteStore.open(f"sqlite://{path}") as store:
        cluster = Cluster(store)
        cluster.create_network("prod", "10.1.0.0/24")
        cluster.create_endpoint(spec("web"))
        path.rename(tmp_path / "old.db")
        for left in ("-wal", "-shm"):
            (tmp_path / f"store.db{left}").unlink(missing_ok=True)
        with SqliteStore.open(f"sqlite://{path}") as other:
            restored = Cluster(other)
            restored.create_network("prod", "10.1.0.0/24")
            there = {restored.create_endpoint(spec(f"e{each}"))[0].address for each in range(9)}
        made, _ = cluster.create_endpoint(spec("db"))
        assert made.address not in there


def test_everybody_at_once(tmp_path):
    """Many hosts add endpoints at the same time: every id and address once."""
    url = f"sqlite://{tmp_path}/store.db"
    with SqliteStore.open(url) as store:
        Cluster(store).create_network("prod", "10.1.0.0/24")
    made, failed = [], []

    def work(host):
        try:
            with SqliteStore.open(url) as store:
                mine = Cluster(store)
                for number in range(10):
                    asked = {**spec(f"{host}-{number}"), "host": host, "labels": {"n": str(number)}}
                    made.append(mine.create_endpoint(asked)[0])
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f"h{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({each.id for each in made}) == 60
    assert len({each.address for each in made}) == 60
    assert len({each.identity for each in made}) == 10


def meanwhile(cluster, monkeypatch, what):
    """Does something just before the next transaction of a cluster; what comes of each is told."""
    told, transact, once = [], cluster.store.transact, [what]

    def change(**asked):
        while once:
            once.pop()()
        try:
            revision = transact(**asked)
        except Conflict:
            told.append("conflict")
            raise
        told.append("done")
        return revision

    monkeypatch.setattr(cluster.store, "transact", change)
    return told


def test_two_attaches_do_not_hinder_each_other(cluster, store, prod, monkeypatch):
    """On two hosts at the same moment, in one namespace, each with an address of its own."""
    with SqliteStore.open(f"sqlite://{store.path}") as elsewhere:
        there = Cluster(elsewhere)
        there.create_endpoint(spec("first"))  # its labels have their number
        asked = [
            {**spec(name), "address": f"10.1.0.{number}"} for number, name in ((3, "a"), (4, "b"))
        ]
        told = meanwhile(cluster, monkeypatch, lambda: there.create_endpoint(asked[0]))
        cluster.create_endpoint(asked[1])
        assert told == ["done"]
        told = meanwhile(
            cluster, monkeypatch, lambda: there.label_endpoint(("prod", "default", "a"), {})
        )
        cluster.create_endpoint(spec("c"))
        assert told == ["done"]
        # The same first free address for both: one has to take another, once.
        told = meanwhile(cluster, monkeypatch, lambda: there.create_endpoint(spec("d")))
        cluster.create_endpoint(spec("e"))
        assert told == ["conflict", "done"]


@pytest.mark.parametrize("first", ["endpoint", "document"])
def test_an_attach_and_a_document_hinder_each_other(cluster, store, prod, monkeypatch, first):
    """Whoever comes second has seen the other: neither is admitted by what is no more."""
    policies = load(POLICIES, network="prod")
    seen = []
    with SqliteStore.open(f"sqlite://{store.path}") as elsewhere:
        there = Cluster(elsewhere)
        if first == "endpoint":
            told = meanwhile(cluster, monkeypatch, lambda: there.create_endpoint(spec("web")))
            cluster.documents.apply(policies, lambda _: seen.append(len(cluster.endpoints())))
        else:
            told = meanwhile(cluster, monkeypatch, lambda: there.documents.apply(policies))
            cluster.create_endpoint(
                spec("web"), lambda _: seen.append(len(cluster.documents.all()))
            )
    assert told == ["conflict", "done"]
    assert seen == [0, 1 if first == "endpoint" else len(policies)]


def test_hosts_live_as_long_as_their_lease(cluster, store, run_out):
    lease, host = store.lease(60), Host("h1", "192.0.2.1")
    cluster.set_host(host, lease)
    cluster.set_installed(host, 7, lease, 3)
    assert await_hosts(store, 0, 0) == {"h1": 7}
    store.renew(lease)
    assert [each.name for each in cluster.hosts()] == ["h1"]
    run_out()
    assert cluster.hosts() == []
    assert await_hosts(store, 0, 0) == {}
    cluster.set_installed(host, 8, lease, 4)
    assert store.list("~installed/")[0] == {}


def test_a_host_is_registered_in_one_transaction(cluster, store, run_out):
    """With a lease of its own, and the counter that guards it without one: no moment in
    which the place is taken and nobody there."""
    before = store.list("")[1]
    assert cluster.set_host(Host("h1", "192.0.2.1"), store.lease(60)) == before + 1
    assert sorted(store.list("")[0]) == ["counters/network", "hosts/h1"]
    run_out()
    assert sorted(store.list("")[0]) == ["counters/network"]


@pytest.mark.parametrize(
    ("host", "error", "said"),
    [
        (Host("h1", "192.0.2.9"), AlreadyExists, "h1 is registered with 192.0.2.1"),
        (Host("h2", "192.0.2.1"), AlreadyExists, "192.0.2.1 is that of h1"),
        (Host("h2", "10.1.0.3"), InvalidValue, "outside of network prod"),
    ],
)
def test_wrong_host(cluster, store, prod, host, error, said):
    first = Host("h1", "192.0.2.1")
    cluster.set_host(first, store.lease(60))
    cluster.set_host(attrs.evolve(first, labels={"zone": "a"}), store.lease(60))
    with pytest.raises(error, match=said):
        cluster.set_host(host, store.lease(60))
    assert [each.labels for each in cluster.hosts()] == [{"zone": "a"}]


def test_what_a_lost_host_left(cluster, store, prod):
    lease = store.lease(60)
    cluster.set_host(Host("h1", "192.0.2.1"), lease)
    cluster.create_endpoint(spec("web"))
    with pytest.raises(InUse, match="h1 lives"):
        cluster.remove_host("h1")
    store.transact(delete=["hosts/h1"])
    cluster.remove_host("h1")
    assert cluster.endpoints() == []
    with pytest.raises(NotFound, match="host 'h1': there is none; there are: none at all"):
        cluster.remove_host("h1")


def test_a_lost_host_is_known_until_it_is_removed(cluster, store, prod):
    """What it was, when it said so last, what was in force there, and what it left."""
    hosts = [Host(f"h{number}", f"192.0.2.{number}", version="1.2") for number in (1, 2, 3)]
    leases = [store.lease(60) for _ in hosts]
    for host, lease in zip(hosts, leases, strict=True):
        cluster.set_host(host, lease)
    begin = time.time()
    cluster.set_installed(hosts[0], 9, leases[0], 4)
    cluster.set_installed(hosts[1], 7, leases[1], 5)
    cluster.create_endpoint({"network": "prod", "name": "web", "host": "h2"})
    store.transact(delete=["hosts/h2", "~installed/h2"])
    one, two, three = cluster.host_states(8)
    assert (one.name, one.host, one.lost, one.installed, one.generation) == (
        "h1", hosts[0], False, 9, 4,
    )  # fmt: skip
    assert (two.name, two.host, two.lost, two.installed, two.generation) == (
        "h2", hosts[1], True, 7, 5,
    )  # fmt: skip
    assert begin <= two.seen <= one.seen <= time.time()
    assert [each.endpoints for each in (one, two, three)] == [0, 1, 0]
    assert [each.behind for each in (one, two, three)] == [False, True, True]
    assert (three.host, three.lost, three.installed) == (hosts[2], False, 0)
    cluster.set_seen(hosts[1], 8, 6)
    assert [each.installed for each in cluster.host_states(8)] == [9, 8, 0]
    cluster.remove_host("h2")
    assert [each.name for each in cluster.host_states(8)] == ["h1", "h3"]
    assert cluster.endpoints() == []


def test_a_host_of_which_only_endpoints_are_left(cluster, prod):
    """By a version that wrote down no more."""
    cluster.create_endpoint({"network": "prod", "name": "web", "host": "h9"})
    assert cluster.host_states(1) == [HostState("h9", None, lost=True, wanted=1, endpoints=1)]
    cluster.remove_host("h9")
    assert cluster.host_states(1) == []


def test_namespaces(cluster, store, prod):
    cluster.set_namespace("prod", "shop", {"tier": "a"})
    cluster.set_namespace("prod", "shop", {"tier": "b"})
    assert {each.name: dict(each.labels) for each in cluster.namespaces()} == {
        "default": {},
        "shop": {"tier": "b"},
    }
    with pytest.raises(NotFound, match="network 'none'"):
        cluster.set_namespace("none", "shop", {})
    endpoint, _ = cluster.create_endpoint(spec("web", namespace="shop"))
    with pytest.raises(InUse, match="prod/shop has 1 endpoint"):
        cluster.remove_namespace("prod", "shop")
    cluster.remove_endpoint(endpoint)
    cluster.remove_namespace("prod", "shop")
    with pytest.raises(NotFound, match="'shop': there is none; there are: default"):
        cluster.remove_namespace("prod", "shop")


POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-in, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {}}]}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: nobody}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {}}
  ingress: [{name: none, action: Deny, from: [{namespaces: {}}]}]
"""


def test_policies_are_all_or_nothing(cluster, store, prod):
    policies = load(POLICIES, network="prod")
    cluster.documents.apply(policies)
    assert {each.title for each in cluster.documents.all()} == {each.title for each in policies}
    assert sorted(map(str, cluster.documents.all())) == sorted(map(str, policies))
    before = everything(store)
    with pytest.raises(NotFound, match="network 'none'"):
        cluster.documents.apply([*policies, *load(POLICIES, network="none")])
    assert everything(store) == before
    cluster.documents.remove(NetworkPolicy, "web-in", "prod")
    cluster.documents.remove(ClusterNetworkPolicy, "nobody")
    assert cluster.documents.all() == []
    with pytest.raises(NotFound, match="NetworkPolicy 'web-in'"):
        cluster.documents.remove(NetworkPolicy, "web-in", "prod")


def test_an_unreadable_record_hides_no_other(cluster, store, prod, caplog):
    cluster.create_endpoint(spec("web"))
    store.transact(put={"endpoints/prod/default/bad": b"{", "networks/bad": b"[]"})
    assert [each.name for each in cluster.endpoints()] == ["web"]
    assert [each.name for each in cluster.networks()] == ["prod"]
    assert "endpoints/prod/default/bad" in caplog.text


# Services, published ports, limits


def service(name="shop", **spec):
    (made,) = load(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name},
                "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec},
            }
        ),
        network="prod",
    )
    return made


OTHERS = """\
kind: PublishedPort
apiVersion: slimnet.io/v1alpha1
metadata: {name: web}
spec: {endpoint: web, port: 80}
---
kind: EgressLimit
apiVersion: slimnet.io/v1alpha1
metadata: {name: web}
spec: {rate: 1M}
"""


def addresses(cluster, *documents):
    return [str(each.address) for each in cluster.documents.apply(documents)[0]]


def test_a_service_gets_an_address_and_keeps_it(cluster, store, prod):
    cluster.create_endpoint(spec("web"))
    assert addresses(cluster, service()) == ["10.1.0.2"]
    (held,) = cluster.documents.all()
    assert str(held.address) == held.manifest["spec"]["clusterIP"] == "10.1.0.2"
    assert cluster.create_endpoint(spec("db"))[0].address == IPAddress("10.1.0.3")
    assert addresses(cluster, service(sessionAffinity="ClientIP")) == ["10.1.0.2"]
    assert cluster.documents.all()[0].affinity == 10800
    assert addresses(cluster, service(clusterIP="10.1.0.2")) == ["10.1.0.2"]
    cluster.documents.remove(Service, "shop", "prod")
    assert cluster.create_endpoint(spec("again"))[0].address == IPAddress("10.1.0.2")
    assert sorted(store.list("addresses/")[0]) == [
        f"addresses/prod/10.1.0.{number}" for number in (1, 2, 3)
    ]


def test_a_service_moves(cluster, store, prod):
    """Another address in the manifest: it has that one, and the old one is free."""
    assert addresses(cluster, service()) == ["10.1.0.1"]
    assert addresses(cluster, service(clusterIP="10.1.0.5")) == ["10.1.0.5"]
    assert list(store.list("addresses/")[0]) == ["addresses/prod/10.1.0.5"]
    assert json.loads(store.get("addresses/prod/10.1.0.5")[0]) == "services/prod/default/shop"


def test_several_services_at_once(cluster, prod):
    """One that asks for the first free address gets it, whatever stands before it."""
    several = [service("a"), service("b", clusterIP="10.1.0.1"), service("c")]
    assert addresses(cluster, *several) == ["10.1.0.2", "10.1.0.1", "10.1.0.3"]
    assert [each.name for each in cluster.documents.apply(several)[0]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("10.1.0.1", AlreadyExists, "address 10.1.0.1 is that of prod/default/web"),
        ("10.1.0.2", AlreadyExists, "address 10.1.0.2 is that of service prod/default/shop"),
        ("10.2.0.1", InvalidValue, "service:default/x: spec.clusterIP: wanted an address in"),
        ("10.1.0.7", InvalidValue, "spec.clusterIP: wanted neither network nor broadcast"),
    ],
)
def test_wrong_address_of_a_service(cluster, store, prod, address, error, said):
    cluster.create_endpoint(spec("web"))
    cluster.documents.apply([service()])
    before = everything(store)
    with pytest.raises(error, match=said):
        cluster.documents.apply([*load(OTHERS, network="prod"), service("x", clusterIP=address)])
    assert everything(store) == before
    with pytest.raises(AlreadyExists, match=r"10\.1\.0\.2 is that of service prod/default/shop"):
        cluster.create_endpoint(spec("y", address="10.1.0.2"))


def test_services_fill_a_network(cluster, prod):
    cluster.documents.apply([service(f"s{number}") for number in range(6)])
    with pytest.raises(InvalidValue, match=r"service:default/one: spec\.clusterIP: wanted room in"):
        cluster.documents.apply([service("one")])
    with pytest.raises(InvalidValue, match=r"endpoint\.address: wanted room in"):
        cluster.create_endpoint(spec("web"))


def test_one_document_twice(cluster, store, prod):
    before = everything(store)
    with pytest.raises(PolicyError, match="each document once, got 'service:default/shop'"):
        cluster.documents.apply([service(), service()])
    assert everything(store) == before


def test_documents_of_every_kind(cluster, store, prod):
    every = [*load(OTHERS, network="prod"), service(), *load(POLICIES, network="prod")]
    cluster.documents.apply(every)
    assert {each.title for each in cluster.documents.all()} == {each.title for each in every}
    for each in every:
        cluster.documents.remove(
            type(each), each.name, getattr(each, "network", None), getattr(each, "namespace", "")
        )
    assert cluster.documents.all() == []
    assert store.list("addresses/")[0] == {}
    for kind in (Service, PublishedPort, EgressLimit):
        with pytest.raises(NotFound, match=f"{kind.__name__} 'x': there is none"):
            cluster.documents.remove(kind, "x", "prod")


@pytest.mark.parametrize("remove", ["namespace", "network"])
def test_documents_go_with_where_they_live(cluster, store, prod, remove):
    cluster.create_network("other", "10.2.0.0/24")
    cluster.set_namespace("prod", "default")
    cluster.documents.apply([*load(OTHERS, network="prod"), service()])
    if remove == "namespace":
        cluster.remove_namespace("prod", "default")
    else:
        cluster.remove_network("prod")
    assert cluster.documents.all() == []
    assert store.list("addresses/")[0] == {}


def test_admission_sees_what_comes_meanwhile(cluster, prod):
    """Between what is looked at and what is written nothing slips in: the one that
    is second looks again."""
    seen = []

    def late(endpoint):
        if not seen:
            cluster.documents.apply([service()])
        seen.append([each.title for each in cluster.documents.all()])

    cluster.create_endpoint(spec("web"), late)
    assert seen == [["service:default/shop"], ["service:default/shop"]]
    names = []

    def early(documents):
        if not names:
            cluster.create_endpoint(spec("db"))
        names.append(len(cluster.endpoints()))

    cluster.documents.apply(load(OTHERS, network="prod"), early)
    assert names == [2, 2]


def test_services_from_many_sides(cluster, store, prod):
    """Six threads, six addresses, none twice."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: cluster.documents.apply([service(f"s{number}")]), range(6)))
    assert len({each.address for each in cluster.documents.all()}) == 6
