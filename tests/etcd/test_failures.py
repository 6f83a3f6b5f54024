# SPDX-License-Identifier: Apache-2.0
"""Servers, agents and what is between them fail while connections come and go: whatever it was,
in the end hosts hold what the store says, no connection was lost, and nothing is there twice."""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time

import pytest
import yaml
from force import agree, until
from machines import cluster, first, join, slimnet
from servers import etcdctl, leader
from traffic import Traffic

from slimnet.cluster.which import open_named
from slimnet.exceptions import SlimnetError, StoreUnreachable
from slimnet.linux import netns

pytestmark = pytest.mark.root


#: Bytes that a server's database may have: more than is used here unasked.
QUOTA = 16_000_000
#: Seconds: some elections, which last one each, on a busy machine too.
LEASE = 6


def policy(app, source):
    return yaml.safe_dump(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": app},
            "spec": {
                "podSelector": {"matchLabels": {"app": app}},
                "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": source}}}]}],
            },
        }
    )


@contextlib.contextmanager
def loaded(machines, directory):
    """Two hosts of a cluster, with a policy, and connections both ways."""
    one, two, _ = machines.hosts
    join(machines, one, two)
    with one.node() as here, two.node() as there:
        here.apply_policy(policy("web", "me"), "prod")
        there.attach("prod", "web", labels={"app": "web"})
        here.attach("prod", "me", labels={"app": "me"})
        there.wait()
        with (
            Traffic(one, two, directory, "there") as out,
            Traffic(two, one, directory, "back") as back,
        ):
            yield here, there, (out, back)


def control(machines, *words):
    """What etcdctl answers, asked of a server that runs."""
    options = [f"--endpoints={','.join(machines.etcd.endpoints)}"]
    with netns.enter(machines.underlay.switch):
        return etcdctl(machines.etcd, *words, options=options)


def change(here, there, _number=[0]):  # noqa: B006  # counts
    """Something that both hosts' tables have to follow."""
    _number[0] += 1
    here.apply_policy(policy("web", f"me-{_number[0]}"), "prod")
    there.attach("prod", f"more-{_number[0]}", labels={"app": f"me-{_number[0]}"})
    here.wait()


@contextlib.contextmanager
def beside(machines):
    """A store of somebody else's on the same servers."""
    url = machines.url.replace("/slimnet", "/beside")
    with netns.enter(machines.underlay.switch), open_named(url) as store:
        yield store


def generations(*nodes):
    return [each.status()["generation"] for each in nodes]


def nobody_lost(*loads):
    for each in loads:
        each.goes_on()
        assert each.reports()[-1]["failed"] == []


def small_disk(directory):
    """A file system with room for the log of a server that has just begun."""
    directory.mkdir(parents=True)
    size = "size=200m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "slimnet-etcd", directory], check=True)


def test_servers_fail(tmp_path):
    """Of three, the leader is killed; two are; one's disk is full; all are begun anew, empty.
    Hosts hold what they held, none is lost, and follow again."""
    disk = tmp_path / "etcd/2"
    with contextlib.ExitStack() as undo:
        small_disk(disk)
        undo.callback(subprocess.run, ["umount", disk], check=True)
        quota = [f"--quota-backend-bytes={QUOTA}"]
        machines = undo.enter_context(
            cluster(tmp_path, backends=["ebpf"], lease=LEASE, members=3, options=quota)
        )
        here, there, loads = undo.enter_context(loaded(machines, tmp_path))
        for step in STEPS:
            print(step.__name__)
            step(machines, here, there)
            nobody_lost(*loads)
            agree(machines, *machines.hosts[:2])


def leader_is_killed(machines, here, there):
    with netns.enter(machines.underlay.switch):
        machines.etcd.kill(leader(machines.etcd))
    change(here, there)
    machines.etcd.start()
    change(here, there)


def quorum_is_lost(machines, here, there):
    before = generations(here, there)
    machines.etcd.kill(0)
    machines.etcd.kill(1)
    for node in (here, there):
        until(lambda node=node: node.status()["stale"])
    time.sleep(LEASE + 1)
    with pytest.raises(SlimnetError, match="^store etcd://"):
        here.create_network("none", "10.9.0.0/16")
    machines.etcd.start()
    for node in (here, there):
        until(lambda node=node: not node.status()["stale"])
    assert generations(here, there) == before, "a host was lost on the way"
    change(here, there)


def disk_is_full(machines, here, there):
    filler = machines.etcd.directory / "2/filler"
    with filler.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while True:
            out.write(bytes(1 << 20))
    with beside(machines) as store:

        def written():
            with contextlib.suppress(StoreUnreachable):  # while another one becomes the leader
                store.transact(put={"a": bytes(100_000)})
            return machines.etcd.pid(2) is None

        until(written)
    assert "no space left on device" in machines.etcd.log(2).read_text()
    change(here, there)
    filler.unlink()
    machines.etcd.start()
    machines.etcd.kill(0)  # so that nothing goes on without the one that was full
    change(here, there)
    machines.etcd.start()


def quota_is_used_up(machines, here, there):
    """Servers refuse every change, and go on otherwise."""
    before = generations(here, there)
    with beside(machines) as store, pytest.raises(StoreUnreachable, match="space exceeded"):
        while True:
            store.transact(put={"a": bytes(500_000)})
    for node in (here, there):
        until(lambda node=node: "space exceeded" in node.status()["stale"])
    time.sleep(LEASE + 1)
    with pytest.raises(SlimnetError, match="space exceeded"):
        here.create_network("none", "10.9.0.0/16")
    assert [each.lost for each in here.host_states()] == [False, False]
    compact(machines)
    control(machines, "defrag")
    control(machines, "alarm", "disarm")
    for node in (here, there):
        until(lambda node=node: not node.status()["stale"])
    assert generations(here, there) == before, "a host was lost on the way"
    change(here, there)


def store_is_wiped(machines, here, there):
    one = machines.hosts[0]
    before = generations(here, there)
    file = str(machines.directory / "backup")
    slimnet(one, "store", "backup", file)
    for member in range(3):
        machines.etcd.kill(member)
        subprocess.run(
            ["find", machines.etcd.directory / str(member), "-mindepth", "1", "-delete"], check=True
        )
    machines.etcd.start()
    said = f"the store is a new one, not that of cluster {here.status()['cluster']}: restore it"
    for node in (here, there):
        until(lambda node=node: node.status()["trouble"] == [said])
    slimnet(one, "store", "restore", file)
    for node in (here, there):
        until(lambda node=node: not node.status()["stale"])
    assert generations(here, there) == before, "tables were changed on the way"
    change(here, there)


STEPS = (leader_is_killed, quorum_is_lost, disk_is_full, quota_is_used_up, store_is_wiped)


@contextlib.contextmanager
def cut_off(machines, host):
    """Nothing passes between this host and the store meanwhile, and nobody is told so."""
    store = machines.etcd.endpoints[0].partition(":")[0]
    rules = f"""table ip cut {{
        chain out {{ type filter hook output priority 0; ip daddr {store} drop; }}
        chain in {{ type filter hook input priority 0; ip saddr {store} drop; }}
    }}"""
    with host.enter():
        subprocess.run(["nft", rules], check=True)
    try:
        yield
    finally:
        with host.enter():
            subprocess.run(["nft", "delete table ip cut"], check=True)


def compact(machines):
    """The store's history is gone."""
    with machines.opened() as store:
        _, revision = store.list("")
    control(machines, "compact", str(revision), "--physical=true")


@contextlib.contextmanager
def killed(_machines, host):
    host.kill_agent()
    try:
        yield
    finally:
        host.start_agent().wait()


@contextlib.contextmanager
def frozen(_machines, host):
    os.kill(host.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(host.pid, signal.SIGCONT)


def while_away(machines, here, name):
    """What changes, up to the store's history, of which nothing is left."""
    here.apply_policy(policy("web", name), "prod")
    here.create_network(name, f"10.{len(here.networks()) + 1}.0.0/16")
    here.attach("prod", name, labels={"app": name})
    compact(machines)


def test_away_for_less_than_the_lease(tmp_path):
    """An agent that is killed, frozen or cut off from the store, whose history is compacted
    meanwhile: nobody notices, and it reads the whole store when it is back."""
    with (
        cluster(tmp_path, backends=["ebpf"], lease=120) as machines,
        loaded(machines, tmp_path) as (here, there, loads),
    ):
        one, two, _ = machines.hosts
        for away in (killed, frozen, cut_off):
            with away(machines, two):
                if away is cut_off:
                    until(lambda: there.status()["stale"])
                while_away(machines, here, away.__name__.replace("_", "-"))
                nobody_lost(*loads)
            agree(machines, one, two)
            nobody_lost(*loads)


def test_cut_off_for_longer_than_the_lease(tmp_path):
    """The host is lost to the others: no connection is opened between them and it, and those that
    are open stay. Its own tables stay, and follow once it is back."""
    with (
        cluster(tmp_path, backends=["ebpf"]) as machines,
        loaded(machines, tmp_path) as (here, there, (out, back)),
    ):
        one, two, _ = machines.hosts
        (before,) = generations(there)
        with cut_off(machines, two):
            until(lambda: there.status()["stale"])
            until(lambda: [each.lost for each in here.host_states()] == [False, True])
            until(lambda: out.reports()[-1]["failed"])
            while_away(machines, here, "you")
            for each in (out, back):
                each.goes_on(more=0)
            assert generations(there) == [before]
            (said,) = there.status()["trouble"]
            assert said.startswith("store etcd://")
            assert [each.name for each in there.networks()] == ["prod"]
        agree(machines, one, two)
        failed = [load.goes_on()["failed"] for load in (out, back)]
        refused, unanswered = ({each.partition(" at ")[0] for each in some} for some in failed)
        assert refused == {"connect: OSError(113, 'No route to host')"}
        assert unanswered <= {"connect: TimeoutError('timed out')"}
        assert failed == [load.goes_on()["failed"] for load in (out, back)]
        assert here.ping("web", source="you")["carried"]


class Churn(threading.Thread):
    """On one host endpoints come and go, and a policy changes, whatever fails of it."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host = host
        self.over = threading.Event()
        self.done, self.error = 0, None
        self.start()

    def run(self):
        try:
            while not self.over.is_set():
                with contextlib.suppress(SlimnetError, ConnectionError):
                    self.once(f"{self.host.name}-{self.done % 5}")
                    self.done += 1
        except Exception as error:  # noqa: BLE001  # told below, in the right thread
            self.error = error

    def once(self, name):
        with self.host.node() as node:
            there = {each.name for each in node.endpoints()}
            if name in there:
                node.detach("prod", name)
            else:
                node.attach("prod", name, labels={"app": name})
            node.apply_policy(policy(f"web-{self.host.name}", name), "prod")

    def end(self):
        self.over.set()
        self.join()
        assert self.error is None
        return self.done


def test_killed_at_random(tmp_path):
    """Agents and servers, one at a time, at any moment, while connections and endpoints come and
    go. ``SLIMNET_KILLS`` says how often, ``SLIMNET_SEED`` which."""
    kills = int(os.environ.get("SLIMNET_KILLS", "10"))
    seed = int(os.environ.get("SLIMNET_SEED") or random.randrange(1 << 32))
    print("SLIMNET_SEED =", seed)
    chance = random.Random(seed)
    with (
        cluster(tmp_path, backends=["ebpf"], members=3, lease=60) as machines,
        loaded(machines, tmp_path) as (_, _, loads),
    ):
        hosts = machines.hosts[:2]
        churns = [Churn(host) for host in hosts]
        try:
            for _ in range(kills):
                time.sleep(chance.uniform(0, 1))
                victim = chance.randrange(5)
                if victim < 2:
                    hosts[victim].kill_agent()
                    time.sleep(chance.uniform(0, 0.5))
                    hosts[victim].start_agent().wait()
                else:
                    machines.etcd.kill(victim - 2)
                    time.sleep(chance.uniform(0, 0.5))
                    machines.etcd.start()
        finally:
            done = [each.end() for each in churns]
        print(f"{kills} kills, {sum(done)} changes")
        assert min(done) > 0
        agree(machines, *hosts)
        nobody_lost(*loads)


def test_wrong_clocks(tmp_path, clock):
    """One host is an hour ahead and one an hour behind: a token that is good for less lets the
    other in, hosts live, and what is desired and a key that is changed are followed."""
    with cluster(tmp_path, backends=["ebpf"], lease=LEASE) as machines:
        one, two, _ = machines.hosts
        with clock(-1):
            token = first(machines, "--expires", "30m")
            one.start_agent().wait()
        with clock(1):
            slimnet(two, "cluster", "join", "--host", "h2", token)
            two.start_agent().wait()
        with one.node() as here, two.node() as there:
            assert there.status()["since"] - here.status()["since"] > 7000
            here.create_network("prod", "10.1.0.0/16")
            with (
                Traffic(one, two, tmp_path, "there") as out,
                Traffic(two, one, tmp_path, "back") as back,
            ):
                here.apply_policy(policy("web", "me"), "prod")
                there.attach("prod", "web", labels={"app": "web"})
                here.attach("prod", "me", labels={"app": "me"})
                here.wait()
                before = generations(here, there)
                time.sleep(LEASE + 1)
                assert [each.lost for each in here.host_states()] == [False, False]
                assert generations(here, there) == before
                assert here.ping("web", source="me")["carried"]
                slimnet(one, "cluster", "rotate-key")
                agree(machines, one, two)
                nobody_lost(out, back)
