# SPDX-License-Identifier: Apache-2.0
"""The store on real etcd: the contract, and what is its own."""

import contextlib
import re
import socket
import threading
import time
import urllib.request
from contextlib import closing, contextmanager

import pytest
from servers import away, etcdctl, leader, own_address

from slimnet.abc import StoreEvent
from slimnet.exceptions import ConfigError, Conflict, InvalidValue, StoreUnreachable
from slimnet.plugins import open_store
from slimnet.testing import check_store
from slimnet_etcd import EtcdStore, _feed, _store


def test_contract_of_a_cluster(serve):
    """Every clause of slimnet.abc.Store holds, whichever of three servers is asked; with one it
    is held to it in tests/conformance."""
    server = serve(3)

    def forget():
        with EtcdStore.open(server.url) as store:
            _, revision = store.list("")
        etcdctl(server, "compact", str(revision))

    told = check_store(
        server.url, EtcdStore.open, patience=20, away=lambda: away(server), forget=forget
    )
    assert len(told) > 28


def test_open_by_url(server):
    with open_store(server.url) as opened:
        assert isinstance(opened, EtcdStore)


class Follower(threading.Thread):
    """Watches until it is told to stop, as an agent does."""

    def __init__(self, store, after):
        super().__init__(daemon=True)
        self.store, self.after = store, after
        self.told, self.error, self.outages = [], None, 0
        self.over = threading.Event()
        self.start()

    def run(self):
        after = self.after
        while not self.over.is_set():
            try:
                events, after = self.store.watch("count/", after=after, timeout=0.5)
            except StoreUnreachable:
                self.outages += 1
            except Exception as error:  # noqa: BLE001  # told below, in the right thread
                self.error = error
                return
            else:
                self.told += events

    def wait_for(self, revision):
        deadline = time.monotonic() + 60
        while not (self.told and self.told[-1].revision >= revision):
            assert self.error is None
            assert time.monotonic() < deadline, revision
            time.sleep(0.01)
        self.over.set()
        self.join()


def test_leader_is_killed(serve):
    """Whoever asked the leader asks another server; nothing acknowledged is lost, and a
    watcher is told of every change once, in order. A lease that nobody could renew goes on."""
    server = serve(3)
    first = leader(server)
    order = [server.endpoints[first], *(each for each in server.endpoints)]
    with EtcdStore.open(f"etcd://{','.join(dict.fromkeys(order))}/slimnet") as store:
        lease = store.lease(5)
        start = store.transact(put={"host": b"1"}, leases={"host": lease})
        follower = Follower(store, start)
        done, unsure = [], 0
        for number in range(120):
            if number == 40:
                server.kill(first)
            try:
                done.append((store.transact(put={"count/a": b"%d" % number}), b"%d" % number))
            except StoreUnreachable as error:
                assert re.search("may have been done", str(error)), error
                unsure += 1
            store.renew(lease)
        follower.wait_for(done[-1][0])
        told = [(each.revision, each.value) for each in follower.told]
        assert set(told) >= set(done)
        assert told == sorted(set(told))
        assert len(told) <= len(done) + unsure
        assert (unsure <= 3, follower.outages) == (True, 0)
        assert store.get("host") is not None
        assert store.get("count/a")[0] == done[-1][1]


def test_quorum_is_lost_and_back(serve):
    """One of three answers nothing; with two of three all goes on."""
    server = serve(3)
    with EtcdStore.open(server.url, {"timeout": 2}) as store:
        revision = store.transact(put={"count/a": b"1"})
        follower = Follower(store, revision)
        server.kill(0)
        server.kill(1)
        for call in (lambda: store.get("count/a"), lambda: store.transact(put={"b": b""})):
            begin = time.monotonic()
            with pytest.raises(StoreUnreachable):
                call()
            assert time.monotonic() - begin < 20
        server.start()
        deadline = time.monotonic() + 60
        while True:
            try:
                last = store.transact(put={"count/a": b"2"})
                break
            except StoreUnreachable:
                assert time.monotonic() < deadline
        follower.wait_for(last)
        assert follower.told[-1].value == b"2"


def test_other_servers_are_asked(server):
    """One that refuses and one that says nothing stand first."""
    with closing(socket.socket()) as silent:
        silent.bind((own_address(), 0))
        silent.listen()
        host, port = silent.getsockname()
        first = f"etcd://{own_address()}:1,{host}:{port},{server.endpoints[0]}/slimnet"
        with EtcdStore.open(first) as store:
            revision = store.transact(put={"a": b"1"})
            begin = time.monotonic()
            assert store.get("a") == (b"1", revision)
            events, _ = store.watch("", after=revision - 1, timeout=5)
            assert [each.key for each in events] == ["a"]
            assert time.monotonic() - begin < 1, "it stays with the one that answered"


@pytest.mark.parametrize(
    ("endpoint", "why"), [("{own}:1", "Connection refused"), ("no-such-host.invalid:1", ".*")]
)
def test_nobody_is_there(endpoint, why):
    url = f"etcd://{endpoint.format(own=own_address())}/slimnet"
    begin = time.monotonic()
    with pytest.raises(StoreUnreachable, match=f"^store {url}: .*: {why}$") as caught:
        EtcdStore.open(url)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 15


def test_silent_server():
    with closing(socket.socket()) as silent:
        silent.bind((own_address(), 0))
        silent.listen()
        host, port = silent.getsockname()
        with pytest.raises(StoreUnreachable, match=f"^store etcd://{host}:{port}/slimnet: "):
            EtcdStore.open(f"etcd://{host}:{port}", {"timeout": 0.5})


def test_closed_while_watching(store):
    """Whoever waits is told at once."""
    _, start = store.list("")
    threading.Timer(0.2, store.close).start()
    begin = time.monotonic()
    with pytest.raises(StoreUnreachable, match="closed"):
        store.watch("a/", after=start, timeout=60)
    assert time.monotonic() - begin < 10


def test_prefixes_are_worlds_of_their_own(server):
    """Two clusters on one etcd; the revisions alone are common to them."""
    one, other = (f"etcd://{server.endpoints[0]}/{name}" for name in ("one", "one1"))
    with EtcdStore.open(one) as store, EtcdStore.open(other) as neighbour:
        _, start = store.list("")
        revision = neighbour.transact(put={"a": b"1"})
        assert store.get("a") is None
        assert store.list("") == ({}, revision)
        for _ in range(3):
            assert store.watch("", after=start, timeout=0)[0] == []
        mine = store.transact(put={"a": b"2"})
        events, _ = store.watch("", after=start, timeout=0)
        assert [(each.key, each.value, each.revision) for each in events] == [("a", b"2", mine)]
        assert list(store.list("")[0]) == ["a"]
    keys = etcdctl(server, "get", "--prefix", "--keys-only", "").split()
    assert keys == ["one/\0tick", "one/a", "one1/\0tick", "one1/a"]


def requests(server):
    """How many calls the server was ever asked for, by method."""
    with urllib.request.urlopen(f"http://{server.endpoints[0]}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(
        r'^grpc_server_started_total{grpc_method="(\w+)".*} (\d+)', text, re.MULTILINE
    )
    return {name: int(count) for name, count in found}


def metric(server, name):
    with urllib.request.urlopen(f"http://{server.endpoints[0]}/metrics", timeout=10) as answer:
        (number,) = re.findall(rf"^{name} (\S+)", answer.read().decode(), re.MULTILINE)
    return float(number)


def events_sent(server):
    """How many changes the server told to all watchers, ever."""
    return metric(server, "etcd_debugging_mvcc_events_total")


def watchers(server):
    return metric(server, "etcd_debugging_mvcc_watcher_total")


def test_waiting_asks_nothing(server, store):
    """No polling: one stream, and nothing on it until something changes. Those who are woken
    ask once for how far it goes; whoever waits for another key is told nothing, and asks
    nothing, of what changes beside it."""
    _, start = store.list("")
    store.watch("a/", after=start, timeout=0.1)
    before = requests(server)
    threads = [
        threading.Thread(target=store.watch, args=(f"{name}/",), kwargs=wait)
        for name, wait in (("a", {"after": start, "timeout": 2}),) * 2
    ]
    for thread in threads:
        thread.start()
    with EtcdStore.open(server.url) as writer:
        for _ in range(5):
            writer.transact(put={"b/1": b""})
    for thread in threads:
        thread.join()
    after = requests(server)
    asked = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert asked == {"Txn": 6}, "the writer's own"
    store.watch("a/", after=start, timeout=0)
    assert requests(server)["Range"] == after["Range"] + 1


def test_to_look_writes_nothing(server):
    """Neither for what others write in the same etcd, nor for what lies apart: the store's last
    revision may be no change of ours, and whoever looks asks once for ours, and knows it then."""
    with EtcdStore.open(server.url) as writer, contextlib.ExitStack() as held:
        _, start = writer.list("")
        stores = [held.enter_context(EtcdStore.open(server.url)) for _ in range(5)]
        mine = writer.transact(put={"a": b"1"})
        etcdctl(server, "put", "foreign", "1")
        last = writer.transact(put={"~a": b"1"})
        before = requests(server)
        for store in stores:
            events, reached = store.watch("", after=start, timeout=0)
            assert ([each.key for each in events], reached) == (["a"], mine)
        after = requests(server)
        assert (after["Range"] - before["Range"], after["Txn"]) == (5, before["Txn"])
        assert writer.get("~a") == (b"1", last)


def test_what_lies_apart_reaches_none_but_its_watchers(server):
    """No stream of another carries a byte of it, and one who no longer asks has none."""
    with EtcdStore.open(server.url) as store, EtcdStore.open(server.url) as writer:
        start = writer.transact(put={"a": b""})
        store.watch("", after=start, timeout=0)
        told = events_sent(server)
        for number in range(20):
            last = writer.transact(put={f"~b/{number}": b""})
        assert events_sent(server) == told
        assert store.watch("~b/", after=last - 1, timeout=5) == (
            [StoreEvent("~b/19", b"", last)],
            last,
        )
        assert watchers(server) == 2
        mine = writer.transact(put={"a": b"", "~b/1": b""})
        events, _ = store.watch("", after=start, timeout=5)
        assert [(each.key, each.revision) for each in events] == [("a", mine)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_store, "_IDLE", 0)
            store.watch("~c/", after=mine, timeout=0.1)
        deadline = time.monotonic() + 30
        while watchers(server) != 2:  # that of "~b/" went, that of "~c/" came
            assert time.monotonic() < deadline
        assert list(store._apart) == ["~c/"]


def test_a_watcher_that_lags(store, monkeypatch):
    """Whoever asks from before what is kept here is told by the server."""
    monkeypatch.setattr(_feed, "_KEPT", 10)
    _, start = store.list("")
    wanted = []
    for number in range(30):
        wanted.append(store.transact(put={"a": b"%d" % number}))
        events, _ = store.watch("a", after=wanted[-1] - 1, timeout=5)
        assert [each.revision for each in events] == wanted[-1:]
    assert store._feed.floor > start
    events, _ = store.watch("a", after=start, timeout=0)
    assert [each.revision for each in events] == wanted
    many = store.transact(put={f"many/{number}": b"" for number in range(50)})
    events, reached = store.watch("many/", after=many - 1, timeout=5)
    assert (len(events), reached) == (50, many), "more at once than are kept"


def test_values_that_are_kept_are_bounded(store, monkeypatch):
    monkeypatch.setattr(_feed, "_KEPT_BYTES", 1000)
    _, after = store.list("")
    for _ in range(20):
        store.transact(put={"a": bytes(300)})
        events, after = store.watch("a", after=after, timeout=5)
        assert len(events) == 1
    assert store._feed._bytes <= 1300


def test_store_that_was_made_anew(serve):
    """Another etcd in its place has another history: list again."""
    server = serve()
    with EtcdStore.open(server.url) as store:
        for _ in range(5):
            revision = store.transact(put={"a": b"1"})
        store.watch("a", after=revision - 1, timeout=5)
        server.remove()
        with pytest.raises(StoreUnreachable):
            store.watch("a", after=revision, timeout=5)
        server.start()
        with pytest.raises(Conflict, match="history ends at"):
            store.watch("a", after=revision, timeout=5)
        assert store.list("")[0] == {}


def test_what_is_too_large_is_named(store):
    with pytest.raises(
        InvalidValue, match="^value of store key big: wanted at most 1.5 MiB .*2097152 bytes"
    ):
        store.transact(put={"small": b"1", "big": bytes(2**21)})
    with pytest.raises(InvalidValue, match="at most 127 expectations, got 128"):
        store.transact(expect={f"{number}": None for number in range(128)}, put={"a": b""})


def test_server_with_other_limits(serve):
    server = serve(options=["--max-txn-ops=8"])
    with EtcdStore.open(server.url) as store:
        with pytest.raises(InvalidValue, match="etcd's --max-txn-ops"):
            store.transact(put={f"{number}": b"" for number in range(20)})
        assert store.list("")[0] == {}
        store.transact(put={"a": b"1"}, expect={"a": None})


@pytest.mark.parametrize("count", [1, 128, 129, 4096, 4097, 20000])
@pytest.mark.parametrize("beside", [0, 64, 100])
def test_operations_are_packed(count, beside):
    """However many: along no way down are there more than etcd allows."""
    operations = [_store.new("RequestOp") for _ in range(count)]

    def worst(packed):
        inner = [each.request_txn.success for each in packed if each.HasField("request_txn")]
        return len(packed) + max((worst(each) for each in inner if each), default=0)

    def leaves(packed):
        return sum(
            leaves(each.request_txn.success) if each.HasField("request_txn") else 1
            for each in packed
        )

    packed = _store._pack(operations, 128, beside)
    assert leaves(packed) == count
    if len(packed) != count or count <= 128:
        inner = [each.request_txn.success for each in packed if each.HasField("request_txn")]
        assert max(len(packed), beside) + max(map(worst, inner), default=0) <= 128


class Relay(threading.Thread):
    """Stands before a server, and can keep its answers back."""

    def __init__(self, server):
        super().__init__(daemon=True)
        host, port = server.endpoints[0].split(":")
        self.target = (host, int(port))
        self.listener = socket.create_server((own_address(), 0))
        self.endpoint = "{}:{}".format(*self.listener.getsockname())
        self.deaf = self.mute = False
        self.pairs = []
        self.start()

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            self.pairs.append((client, server))
            for one, other, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self.carry, args=(one, other, answers), daemon=True).start()

    def carry(self, one, other, answers):
        try:
            while data := one.recv(65536):
                if not (self.deaf if answers else self.mute):
                    other.sendall(data)
        except OSError:
            pass
        finally:
            other.close()

    def cut(self):
        for client, _ in self.pairs:
            client.shutdown(socket.SHUT_RDWR)
        self.pairs.clear()

    def close(self):
        self.listener.close()


@contextmanager
def relayed(server):
    with closing(Relay(server)) as relay:
        yield relay


def test_what_may_have_been_done_is_not_done_again(server, store):
    """The connection goes after a transaction was sent: it is not sent to another server."""
    with relayed(server) as relay:
        url = f"etcd://{relay.endpoint},{server.endpoints[0]}/slimnet"
        with EtcdStore.open(url) as cut:
            _, before = store.list("")
            relay.deaf = True
            threading.Timer(0.3, relay.cut).start()
            with pytest.raises(StoreUnreachable, match="it may have been done"):
                cut.transact(put={"a": b"1"})
            events, _ = store.watch("a", after=before, timeout=0)
            assert len(events) == 1
            assert cut.get("a")[0] == b"1", "what may be done twice is asked of another"


@pytest.mark.parametrize("lost", ["answer", "request"])
def test_what_can_be_done_once_only_is_sent_again(server, store, lost):
    """It changes what it expects: where it was not done, another server does it; where it was,
    nobody can say who did."""
    with relayed(server) as relay:
        url = f"etcd://{relay.endpoint},{server.endpoints[0]}/slimnet"
        with EtcdStore.open(url) as cut:
            _, before = store.list("")
            relay.deaf, relay.mute = lost == "answer", lost == "request"
            threading.Timer(0.3, relay.cut).start()
            change = {"expect": {"a": None}, "put": {"a": b"1"}}
            if lost == "request":
                assert cut.transact(**change) > before
            else:
                with pytest.raises(StoreUnreachable, match="it may have been done"):
                    cut.transact(**change)
            events, _ = store.watch("a", after=before, timeout=0)
            assert [each.value for each in events] == [b"1"]
            revision = events[0].revision
            with pytest.raises(Conflict):
                cut.transact(**change)
            assert cut.transact(expect={"a": revision}, delete=["a"]) > revision


def test_server_that_falls_silent_while_it_is_watched(server, store):
    """What it would have told is told by another one."""
    with relayed(server) as relay:
        url = f"etcd://{relay.endpoint},{server.endpoints[0]}/slimnet"
        with EtcdStore.open(url) as cut:
            _, start = store.list("")
            cut.watch("a", after=start, timeout=0.1)
            relay.deaf = True
            revision = store.transact(put={"a": b"1"})
            events, reached = cut.watch("a", after=start, timeout=0)
            assert ([each.key for each in events], reached) == (["a"], revision)


def test_many_wait_at_once(server):
    """Threads share one store; each is told its own."""
    with EtcdStore.open(server.url) as store, EtcdStore.open(server.url) as writer:
        _, start = store.list("")
        found = {}

        def wait(name):
            events, _ = store.watch(f"{name}/", after=start, timeout=60)
            found[name] = [each.key for each in events]

        threads = [threading.Thread(target=wait, args=(f"k{number}",)) for number in range(20)]
        for thread in threads:
            thread.start()
        for number in range(20):
            writer.transact(put={f"k{number}/x": b""})
        for thread in threads:
            thread.join(60)
        assert found == {f"k{number}": [f"k{number}/x"] for number in range(20)}


def test_database_is_full(serve):
    """Reads go on; a change says why not. The server looks at its size ten times a second."""
    server = serve(options=["--quota-backend-bytes=2000000"])
    with EtcdStore.open(server.url) as store:
        until = time.monotonic() + 60
        with pytest.raises(StoreUnreachable, match="database space exceeded"):
            while time.monotonic() < until:
                store.transact(put={"0": bytes(500_000)})
        assert store.get("0") is not None


def test_wrong_url_is_no_outage(server):
    with pytest.raises(ConfigError):
        EtcdStore.open(f"etcd://{server.endpoints[0]}x/slimnet")
