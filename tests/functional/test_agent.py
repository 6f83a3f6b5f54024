# SPDX-License-Identifier: Apache-2.0
"""Real agents on real backends: two hosts, one store, and what happens to them.

::

      h1: agent, web, spare                h2: agent, db       outside: no agent
             |                                   |                    |
         ----+---------- underlay ---------------+--------------------+----
                                                               store.db, key: shared
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import attrs
import pytest
from lab import PATIENCE
from lab.agents import LEASE, Cluster, Host, connects, until
from lab.paths import DATA_PATHS, WHOLE_HOSTS, Can, can, having

from slimnet import (
    AgentUnreachable,
    AlreadyExists,
    CannotEnforce,
    CapabilityMissing,
    Direction,
    EventKind,
    InUse,
    InvalidValue,
    NotFound,
    PolicyError,
    Reason,
    SlimnetError,
    model,
    open_node,
)
from slimnet.agent.client import Client
from slimnet.cluster import Cluster as StoredCluster
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.store.sqlite import SqliteStore
from slimnet.testing import Resident

pytestmark = [pytest.mark.root, pytest.mark.long(*WHOLE_HOSTS)]


@pytest.fixture(params=DATA_PATHS)
def fresh(request, tmp_path):
    """Two hosts whose agents were never started."""
    with Cluster(request.param, tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=DATA_PATHS)
def running(request, tmp_path_factory):
    with Cluster(request.param, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running):
    """Two hosts with their agents and a network; nothing else is left from other tests."""
    for host in running.hosts:
        host.revive()
    node = running.hosts[0].node()
    node.create_network("prod", "10.77.0.0/24")
    yield running
    for host in running.hosts:
        host.revive()
    for policy in node.policies():
        node.remove_policy(policy)
    for host in running.hosts:
        for each in host.node().endpoints():
            if each.host == host.where.name:
                host.node().detach(each.network, each.name, each.namespace, kill=True)
    for network in node.networks():
        node.remove_network(network.name)


@pytest.fixture
def hosts(cluster):
    return cluster.hosts


@pytest.fixture
def pair(hosts, resident):
    """``web`` on the first host, with a connection to ``db`` on the second."""
    one, two = hosts
    web = one.node().attach("prod", "web", labels={"app": "web"})
    db = two.node().attach("prod", "db", labels={"app": "db"})
    one.node().wait()
    server, client = resident(two, db), resident(one, web)
    server.serve(7000)
    client.hold("live", str(db.endpoint.address), 7000)
    assert client.talk("live")
    return web, db, client, server


def test_two_hosts_talk(hosts, pair):
    """Attach on both hosts, and they talk by overlay address, without a pause in between."""
    web, db, client, _ = pair
    reached = connects(client, db)
    assert reached.peer == (str(db.endpoint.address), 7000)
    assert reached.seen[0] == str(web.endpoint.address)
    assert {each.name for each in hosts[0].node().hosts()} == {"h1", "h2"}
    assert [each.name for each in hosts[1].node().endpoints("prod")] == ["db", "web"]


def test_endpoint_can_talk_as_soon_as_it_is_attached(hosts, resident, pair):
    """On its own host at once; the other one needs its watch."""
    web = pair[0]
    _, db, _, _ = pair
    fresh = hosts[1].node().attach("prod", "fresh")
    assert connects(resident(hosts[1], fresh), db).seconds < 0.5
    hosts[1].node().wait()
    far = hosts[0].node().attach("prod", "far")
    hosts[0].node().wait()
    assert connects(resident(hosts[0], far), db).seconds < 0.5
    assert web.created


def test_agent_killed_and_started_again(hosts, pair):
    """Live connections go on, new ones are made in between, and what runs is adopted."""
    web, db, client, _ = pair
    before = {host.where.name: host.node().status()["attached"] for host in hosts}
    for host in hosts:
        host.kill()
    assert client.talk("live")
    connects(client, db)
    with pytest.raises(AgentUnreachable, match=r"agent on .*agent\.sock"):
        hosts[0].node()
    for host in hosts:
        host.start()
    after = {host.where.name: host.node().status() for host in hosts}
    assert {name: status["attached"] for name, status in after.items()} == before
    assert all(status["ready"] for status in after.values()), after
    assert client.talk("live")
    connects(client, db)
    again = hosts[0].node().attach("prod", "web")
    assert not again.created
    assert again.endpoint == web.endpoint


def test_agent_killed_again_and_again_while_endpoints_come_and_go(hosts, resident):
    """kill -9 at any moment: afterwards store, data path and machine agree."""
    one, two = hosts
    node = two.node()
    stop = threading.Event()
    attached = []

    def churn():
        for number in itertools.count():
            if stop.is_set():
                return
            time.sleep(0.01)
            with contextlib.suppress(SlimnetError):
                attached.append(open_node(one.config).attach("prod", f"e{number}").endpoint.name)
                if number % 2:
                    attached.remove(f"e{number}")  # it may go even if nobody hears of it
                    open_node(one.config).detach("prod", f"e{number}")

    thread = threading.Thread(target=churn)
    thread.start()
    for _ in range(3):
        time.sleep(0.3)
        one.kill()
        one.start()
    until(lambda: attached)
    stop.set()
    thread.join()
    assert attached
    until(lambda: one.node().status()["ready"])

    def disagreement():
        written = {each.id: f"prod.default.{each.name}" for each in node.endpoints("prod")}
        place = cgroup_mount() / "slimnet" / one.instance
        return {
            "only in the data path": set(one.node().status()["attached"]) - set(written),
            "only in the store": set(written) - set(one.node().status()["attached"]),
            "only on the machine": {each.name for each in place.glob("*/")} - {*written.values()},
            "lost": {f"prod.default.{each}" for each in attached} - set(written.values()),
        }

    with contextlib.suppress(AssertionError):
        until(lambda: not any(disagreement().values()))
    assert not any((found := disagreement()).values()), (found, one.log.read_text())


def test_stopped_agent_leaves_the_data_path(hosts, pair):
    _, db, client, _ = pair
    for host in hosts:
        host.stop()
        assert host.agent.returncode == 0
        assert not host.config.socket.exists()
    assert client.talk("live")
    connects(client, db)


def test_policy_on_both_hosts(hosts, pair, resident):
    _, db, client, _ = pair
    node = hosts[1].node()
    spare = resident(hosts[0], hosts[0].node().attach("prod", "spare"))
    node.wait()
    connects(spare, db)
    applied = node.apply_policy(
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: db}
        spec:
          podSelector: {matchLabels: {app: db}}
          ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
        """
    )
    assert [each.title for each in applied] == ["default/db"]
    assert not spare.connect(str(db.endpoint.address), 7000, 1)
    connects(client, db)
    node.wait()
    answer = hosts[0].node().explain("prod", "spare", "db", 7000)
    assert not answer["allowed"]
    assert answer["stages"][-1]["direction"] == "ingress"
    assert hosts[0].node().explain("prod", "web", "db", 7000)["allowed"]
    assert [each.title for each in hosts[0].node().policies()] == ["default/db"]
    node.remove_policy("db", "prod")
    connects(spare, db)
    with pytest.raises(PolicyError, match="podSelektor"):
        node.apply_policy(
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x},"
            "\nspec: {podSelektor: {}}}"
        )


def test_explain_names_what_the_data_path_refuses_by_itself(hosts, pair):
    """Datagrams between endpoints: where they are carried they are allowed, else it says why."""
    said = hosts[0].node().explain("prod", "web", "db", 53, "udp")
    fast = said["refusal"] is not None
    assert said["allowed"] is not fast
    assert ("(datagram, ENETUNREACH)" in said["summary"]) is fast
    assert fast is (hosts[0].node().ping("db", port=7000, source="web")["carried"] == "accelerated")
    own = hosts[0].node().explain("prod", "web", "127.0.0.1", 7000)
    assert (own["allowed"], own["refusal"]) == (True, None)


def test_a_policy_closes_what_it_forbids_within_a_second(hosts, pair, resident):
    """On both hosts, from whichever it is applied; a connection beside it never notices."""
    _, db, client, server = pair
    spare = resident(hosts[0], hosts[0].node().attach("prod", "spare"))
    hosts[0].node().wait()
    spare.hold("live", str(db.endpoint.address), 7000)
    server.hold("own", str(db.endpoint.address), 7000)
    assert spare.talk("live")
    begin = time.monotonic()
    hosts[0].node().apply_policy(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db}, spec:"
        " {podSelector: {matchLabels: {app: db}},"
        " ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}"
    )

    def closed():
        assert client.talk("live")
        assert server.talk("own")
        with contextlib.suppress(OSError):
            return not spare.talk("live")
        return True

    until(closed)
    assert time.monotonic() - begin < 1 * PATIENCE


def test_policy_by_range_and_port(cluster, hosts, pair, cgroup):
    """From the manifest down to the kernel: what leaves the overlays, and to which port."""
    _, db, client, _ = pair
    machine = str(cluster.outside.address)
    node = hosts[0].node()
    with Resident(cgroup, cluster.outside.netns) as outside:
        for port in (7001, 7002):
            outside.serve(port)
            assert client.connect(machine, port)
        for but, reached in (("", {7001}), (f", except: [{machine}/32]", set())):
            node.apply_policy(
                "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web},"
                " spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress],"
                f" egress: [{{to: [{{ipBlock: {{cidr: 198.18.0.0/15{but}}}}}],"
                " ports: [{port: 7001}]}]}}"
            )
            node.wait()
            assert {port for port in (7001, 7002) if client.connect(machine, port, 1)} == reached
            assert not client.connect(str(db.endpoint.address), 7000, 1)
        node.remove_policy("web", "prod")
        node.wait()
        assert client.connect(machine, 7002)
        connects(client, db)


def test_every_address_of_a_peer_host_is_the_host(hosts, pair, cgroup):
    """One that it got later too, and a range that no interface has (RTN_LOCAL)."""
    client = pair[2]
    address, far = "203.0.113.9", "198.51.100.77"

    def ip(host, words):
        subprocess.run(["nsenter", f"--net={host.where.netns}", "ip", *words.split()], check=True)

    commands = [
        (hosts[0], f"route add {address} via {hosts[1].where.address}"),
        (hosts[0], f"route add {far} via {hosts[1].where.address}"),
        (hosts[1], f"address add {address}/32 dev lo"),
        (hosts[1], "route add local 198.51.100.0/24 dev lo"),
    ]
    with contextlib.ExitStack() as undo, Resident(cgroup, hosts[1].where.netns) as machine:
        machine.serve(7002)
        for host, words in commands:
            ip(host, words)
            undo.callback(ip, host, words.replace(" add ", " del "))
        until(lambda: not client.connect(address, 7002, 1), LEASE)
        assert not client.connect(far, 7002, 1)
        for each in (address, far):
            said = hosts[0].node().explain("prod", "web", each, 7002)
            assert not said["allowed"], said
            assert f"host h2 ({each})" in said["summary"]
            assert "IN DOUBT" not in said["summary"]
        hosts[0].node().apply_policy(
            "{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy,"
            " metadata: {name: h2}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}},"
            " egress: [{action: Accept, to: [{networks: [198.51.100.77/32]}]}]}}"
        )
        assert client.connect(far, 7002)
        assert not client.connect(address, 7002, 1)
    until(lambda: all(not each.ranges[1:] for each in hosts[1].node().hosts()), LEASE)


def test_no_network_where_a_host_has_something_else(hosts):
    """A range of an interface (a Docker bridge), or one with a name server: refused from
    every host; what comes later is trouble of its host until it is gone."""
    one, two = (each.node() for each in hosts)

    def ip(words):
        netns = hosts[1].where.netns
        subprocess.run(["nsenter", f"--net={netns}", "ip", *words.split()], check=True)

    def refused(node, cidr):
        try:
            node.create_network("docker", cidr)
        except InvalidValue as error:
            return str(error)
        node.remove_network("docker")
        return None

    said = "network.cidrs: wanted a range without 172.30.0.0/16, interface dk0 of host h2, got"
    servers = [each for each in one.hosts()[0].taken.items() if each[1] == "a name server"]
    for cidr, what in servers:
        assert f"{what} of host" in refused(one, str(cidr))
    with contextlib.ExitStack() as undo:
        ip("link add dk0 type bridge")
        undo.callback(ip, "link del dk0")
        ip("address add 172.30.0.1/16 dev dk0")
        ip("address add 2001:db8::1/64 dev dk0 nodad")  # in nobody's way, but known
        assert refused(two, "172.30.128.0/17") == f"{said} '172.30.128.0/17'"  # at once
        until(lambda: refused(one, "172.16.0.0/12") == f"{said} '172.16.0.0/12'", LEASE)
        assert refused(two, "172.31.0.0/16") is None
        assert two.status()["ready"]
        (far,) = (each for each in one.hosts() if each.name == "h2")
        assert ("2001:db8::/64", "interface dk0") in {
            (str(each), what) for each, what in far.taken.items()
        }
    until(lambda: refused(one, "172.30.0.0/16") is None, LEASE)
    one.create_network("docker", "172.30.0.0/16")
    with contextlib.ExitStack() as undo:
        ip("link add dk0 type bridge")
        undo.callback(ip, "link del dk0")
        ip("address add 172.30.0.1/16 dev dk0")
        until(lambda: not two.status()["ready"], LEASE)
        (trouble,) = two.status()["trouble"]
        assert trouble.startswith(
            "network docker: its range 172.30.0.0/16 overlaps 172.30.0.0/16, interface dk0 of host"
        )
        assert one.status()["ready"]
    until(lambda: two.status()["ready"], LEASE)


def test_ping(hosts, pair):
    fast = can(hosts[0].config.backend, Can.DIRECT)
    answer = hosts[0].node().ping("db", port=7000, source="web", count=3)
    assert answer["carried"] == ("accelerated" if fast else "fallback")
    assert answer["wire"] == DATA_PATHS[hosts[0].config.backend].wire
    assert answer["error"] is None
    assert len(answer["milliseconds"]) == 3
    assert 0 < min(answer["milliseconds"]) < 1000
    # Nobody listens on port 7: that is an answer too. And no endpoint is left behind.
    answer = hosts[0].node().ping("prod/default/db")
    assert (answer["temporary"], answer["error"]) == (True, None)
    assert len(answer["milliseconds"]) == 1
    assert {each.name for each in hosts[0].node().endpoints()} == {"web", "db"}
    answer = hosts[0].node().ping("db", port=7001, source="web")
    assert answer["error"] == "ECONNREFUSED"
    hosts[0].node().apply_policy(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db},"
        " spec: {podSelector: {}, policyTypes: [Egress]}}"
    )
    answer = hosts[0].node().ping("db", port=7000, source="web", timeout=0.5)
    assert answer["carried"] == "denied"
    assert "egress" in answer["explanation"]["summary"]
    assert answer["error"]
    with pytest.raises(NotFound, match="endpoint 'none'"):
        hosts[0].node().ping("none")


def test_store_out_of_reach(cluster, hosts, pair):
    """The data path stays as it was, the status says why, and it catches up by itself."""
    _, db, client, _ = pair
    away = cluster.store.with_suffix(".away")
    cluster.store.rename(away)
    try:
        trouble = until(lambda: hosts[0].node().status()["trouble"])
        assert "store" in trouble[0]
        assert not hosts[0].node().status()["ready"]
        with pytest.raises(ConnectionError, match="store"):
            hosts[0].node().create_network("more", "10.78.0.0/24")
        time.sleep(LEASE + 0.5)
        assert client.talk("live")
        connects(client, db)
    finally:
        away.rename(cluster.store)
    until(lambda: all(host.node().status()["ready"] for host in hosts))
    hosts[0].node().create_network("more", "10.78.0.0/24")
    assert set(hosts[0].node().wait()) == {"h1", "h2"}
    connects(client, db)


def test_lost_host(hosts, pair):
    """Its endpoints leave after the lease; started again it is back."""
    _, db, client, _ = pair
    hosts[1].kill()
    until(lambda: [each.name for each in hosts[0].node().hosts()] == ["h1"], LEASE + 5)
    hosts[0].node().wait()
    one, two = hosts[0].node().host_states()
    assert (one.name, one.lost, one.behind) == ("h1", False, False)
    assert (two.name, two.lost, two.endpoints) == ("h2", True, 1)
    assert 0 < time.time() - two.seen < 60
    assert one.host.version == two.host.version == metadata.version("slimnet-overlay")
    assert two.generation > 0
    assert not client.connect(str(db.endpoint.address), 7000, 1)
    assert {each.name for each in hosts[0].node().endpoints()} == {"web", "db"}
    hosts[1].start()
    hosts[1].node().wait()
    connects(client, db)


def test_what_a_lost_host_left_is_removed(hosts, pair):
    with pytest.raises(InUse, match="h2 lives"):
        hosts[0].node().remove_host("h2")
    hosts[1].kill()
    until(lambda: len(hosts[0].node().hosts()) == 1, LEASE + 5)
    hosts[0].node().remove_host("h2")
    assert [each.name for each in hosts[0].node().endpoints()] == ["web"]
    # Back again, it lets go of what it still runs, once that has ended.
    pair[3].close()
    hosts[1].start()
    until(lambda: hosts[1].node().status()["attached"] == [])
    until(lambda: not pair[1].cgroup.exists())


def test_stopped_process_of_an_agent(hosts, pair):
    """An agent that was frozen for longer than its lease registers again."""
    _, db, client, _ = pair
    hosts[1].agent.send_signal(signal.SIGSTOP)
    until(lambda: [each.name for each in hosts[0].node().hosts()] == ["h1"], LEASE + 5)
    hosts[1].agent.send_signal(signal.SIGCONT)
    until(lambda: len(hosts[0].node().hosts()) == 2)
    hosts[0].node().wait()
    connects(client, db)


def test_the_underlay_goes_and_comes_back(fresh):
    """The agent says so until it is back, and needs nobody for it."""
    host, where = fresh.hosts[0], fresh.underlay.hosts[0]
    node = host.start()
    until(lambda: node.status()["ready"])

    def trouble():
        return "; ".join(node.status()["trouble"])

    def ip(*words):
        subprocess.run(["ip", "-n", where.netns.name, *words], check=True)

    ip("link", "del", "eth0")
    until(lambda: "underlay interface eth0 is gone" in trouble(), 3)
    assert not node.status()["ready"]
    fresh.underlay.up()
    until(lambda: node.status()["ready"], 3)
    ip("address", "flush", "dev", "eth0")
    until(lambda: f"{where.address} is no address of this host any more" in trouble(), 3)
    ip("address", "add", f"{where.address}/15", "dev", "eth0")
    until(lambda: node.status()["ready"], 3)


def test_unreadable_records_change_nothing(cluster, hosts, pair):
    """Whatever stands in the store, the agent stays, and so do the last tables."""
    _, db, client, _ = pair
    with SqliteStore.open(f"sqlite://{cluster.store}") as store:
        store.transact(put={"policies/prod/default/x": b"{", "endpoints/prod/default/x": b"\xff"})
        trouble = until(lambda: hosts[0].node().status()["trouble"])
        assert any("policies/prod/default/x" in each for each in trouble)
        connects(client, db)
        store.transact(delete=["policies/prod/default/x", "endpoints/prod/default/x"])
    until(lambda: hosts[0].node().status()["ready"])
    connects(client, db)


def test_endpoint_goes_with_its_cgroup(hosts):
    placed = hosts[0].node().attach("prod", "web")
    until(placed.cgroup.is_dir)
    placed.cgroup.rmdir()
    until(lambda: not hosts[1].node().endpoints())
    until(lambda: "web" not in placed.hosts.read_text())


def test_cgroup_gone_while_no_agent_ran(hosts):
    placed = hosts[0].node().attach("prod", "web")
    hosts[0].kill()
    placed.cgroup.rmdir()
    hosts[0].start()
    assert hosts[0].node().endpoints() == []
    assert hosts[0].node().status()["attached"] == []


_HOLD = """
import sys, time
from slimnet import open_node
open_node(sys.argv[1]).attach("prod", "web", ephemeral=True)
print("attached", flush=True)
time.sleep(600)
"""


def test_ephemeral_endpoint_goes_with_its_holder(hosts):
    """What was attached for the time of a process goes when that is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(hosts[0].config_file)], stdout=subprocess.PIPE
    )
    with holder:
        try:
            assert holder.stdout.readline() == b"attached\n"
            with pytest.raises(AlreadyExists, match="runs already"):
                hosts[0].node().attach("prod", "web", ephemeral=True)
            time.sleep(1.5)
            assert [each.name for each in hosts[1].node().endpoints()] == ["web"]
        finally:
            holder.kill()
    until(lambda: not hosts[1].node().endpoints())


def test_with_block_leaves_nothing(hosts, resident):
    """Not even processes, in a cgroup of slimnet's own."""
    with hosts[0].node().attach("prod", "web") as web:
        resident(hosts[0], web)
        with pytest.raises(InUse, match="web has processes"):
            web.detach()
        assert (web.cgroup / "cgroup.procs").read_text()
    assert not web.cgroup.exists()
    assert hosts[0].node().endpoints() == []


@pytest.fixture
def cgroup():
    """A cgroup of somebody else's, a container's say."""
    path = cgroup_mount() / f"slt-agent-{os.getpid()}"
    path.mkdir()
    yield path
    with contextlib.suppress(FileNotFoundError):
        (path / "cgroup.kill").write_text("1")
        until(lambda: "populated 0" in (path / "cgroup.events").read_text())
        path.rmdir()


def test_endpoint_in_a_cgroup_that_is_there(hosts, cgroup, resident, pair):
    _, db, _, _ = pair
    with hosts[0].node().attach("prod", "box", cgroup=cgroup) as box:
        assert box.cgroup == cgroup
        hosts[0].node().wait()
        client = resident(hosts[0], box)
        assert connects(client, db).seen[0] == str(box.endpoint.address)
        with pytest.raises(InvalidValue, match="apart from that of box"):
            hosts[0].node().attach("prod", "other", cgroup=cgroup)
        client.close()
        until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())
    assert cgroup.is_dir()


def test_hosts_file_is_live(hosts):
    web = hosts[0].node().attach("prod", "web")
    inode = web.hosts.stat().st_ino
    db = hosts[1].node().attach("prod", "db", namespace="shop")
    hosts[1].node().wait()
    assert f"{db.endpoint.address} db.shop.prod db.shop\n" in web.hosts.read_text()
    assert f"{web.endpoint.address} web web.default.prod" in web.hosts.read_text()
    assert " db db.shop" in db.hosts.read_text()
    assert web.hosts.stat().st_ino == inode


# Services, published ports, limits


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: db}, ports: [{port: 80, targetPort: 7000}]}
"""


def published(**spec):
    document = {"apiVersion": "slimnet.io/v1alpha1", "kind": "PublishedPort"}
    return json.dumps({**document, "metadata": {"name": "db"}, "spec": {"endpoint": "db", **spec}})


#: A port of the host that data paths of a wire need themselves.
OWN_PORTS = {model.Wire.SYN: 4790, model.Wire.ANNOUNCE: 4789}

LIMIT = """
apiVersion: slimnet.io/v1alpha1
kind: EgressLimit
metadata: {name: slow}
spec: {podSelector: {matchLabels: {app: db}}, rate: 100M}
"""


def test_service_has_an_address_and_a_name(hosts):
    """From one host to every hosts file, and away again."""
    node = hosts[1].node()
    web = hosts[0].node().attach("prod", "web")
    (made,) = node.apply_policy(SERVICE)
    assert made.title == "service:default/shop"
    assert str(made.address) == "10.77.0.2"
    node.wait()
    assert "10.77.0.2 shop shop.default.prod shop.default\n" in web.hosts.read_text()
    assert hosts[0].node().policies() == [made]
    with pytest.raises(AlreadyExists, match="is that of service prod/default/shop"):
        node.attach("prod", "db", address="10.77.0.2")
    (again,) = node.apply_policy(SERVICE.replace("port: 80,", "port: 81,"))
    assert (again.address, again.ports[0].port) == (made.address, 81)
    with pytest.raises(NotFound, match="PublishedPort 'shop'"):
        node.remove_policy("shop", "prod", kind="PublishedPort")
    with pytest.raises(InvalidValue, match="kind: wanted one of"):
        node.remove_policy("shop", "prod", kind="Pod")
    node.remove_policy("shop", "prod", kind="service")
    node.wait()
    assert "shop" not in web.hosts.read_text()
    assert str(node.attach("prod", "db").endpoint.address) == "10.77.0.2"


def test_what_a_backend_cannot_do_is_refused(hosts, pair):
    """A limit or a published port for an endpoint on a host that has none, in one line;
    nothing of the file holds."""
    able = hosts[1].node().status()["features"]
    for text, feature in ((LIMIT, "egress_limits"), (published(port=8080), "published_ports")):
        both = f"{SERVICE}\n---\n{text}"
        node = hosts[0].node()
        if feature in able:
            assert len(node.apply_policy(both)) == 2
            continue
        words = feature.replace("_", " ")
        where = "endpoint prod/default/db lives on host h2, whose backend"
        where += f" {hosts[1].config.backend}"
        with pytest.raises(CapabilityMissing, match=f"{where} has no {words}"):
            node.apply_policy(both)
        assert node.policies() == []
        # Without the endpoint it may be written; then the endpoint may not come.
        hosts[1].node().detach("prod", "db", kill=True)
        node.apply_policy(text)
        node.wait()
        with pytest.raises(CapabilityMissing, match=f"{where} has no {words}"):
            hosts[1].node().attach("prod", "db", labels={"app": "db"})
        assert [each.name for each in node.endpoints()] == ["web"]
        node.remove_policy(node.policies()[0])
        hosts[1].node().attach("prod", "db", labels={"app": "db"})


def test_mandatory_policy_where_it_cannot_hold(cluster, hosts):
    """A host of the store whose backend is cooperative, and an endpoint there: refused from
    any host, and taken once that host or that endpoint is not there."""
    text = json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "db"},
            "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "mandatory": True},
        }
    )
    where = "endpoint prod/default/db lives on host h3, whose backend preload cannot enforce it"
    with SqliteStore.open(f"sqlite://{cluster.store}") as store:
        other = StoredCluster(store)
        other.set_host(
            model.Host("h3", cluster.outside.address, backend="preload"), store.lease(60)
        )
        spec = {"network": "prod", "name": "db", "host": "h3", "labels": {"app": "db"}}
        endpoint, _ = other.create_endpoint(spec)
        try:
            for host in hosts:
                with pytest.raises(CannotEnforce, match=f"policy default/db is mandatory: {where}"):
                    host.node().apply_policy(text)
                assert host.node().policies() == []
            hosts[0].node().apply_policy(text.replace("true", "false"))
        finally:
            other.remove_endpoint(endpoint)
            store.transact(delete=["hosts/h3"])
    hosts[0].node().apply_policy(text)
    (held,) = hosts[1].node().policies()
    assert held.mandatory


@pytest.mark.parametrize("running", having(Can.PUBLISHED_PORTS), indirect=True)
def test_port_that_the_host_listens_on(hosts, pair, cgroup):
    """Refused from whichever host it is asked, and when the endpoint comes later."""
    taken = "port:default/db: host h2 itself listens on .*:8080"
    with Resident(cgroup, hosts[1].where.netns) as squatter:
        squatter.serve(8080)
        for host in hosts:
            with pytest.raises(InUse, match=taken):
                host.node().apply_policy(published(port=8080))
            if own := OWN_PORTS.get(DATA_PATHS[host.config.backend].wire):
                with pytest.raises(InUse, match=f"host h2 itself listens on .*:{own}"):
                    host.node().apply_policy(published(port=own))
            with pytest.raises(InvalidValue, match=r"spec\.address: wanted an address of host h2"):
                host.node().apply_policy(published(port=8081, address="192.0.2.99"))
            assert host.node().policies() == []
        hosts[0].node().apply_policy(
            published(port=8081, targetPort=7000, address=str(hosts[1].where.address))
        )
        hosts[0].node().remove_policy("db", "prod", kind="PublishedPort")
        hosts[1].node().detach("prod", "db", kill=True)
        hosts[0].node().apply_policy(published(port=8080))
        hosts[0].node().wait()
        with pytest.raises(InUse, match=taken):
            hosts[1].node().attach("prod", "db")
        assert [each.name for each in hosts[0].node().endpoints()] == ["web"]
    hosts[1].node().attach("prod", "db")
    # What the data path has of that port is not in the way of the same document.
    for host in hosts:
        host.node().apply_policy(published(port=8080))
        host.node().wait()
    hosts[1].node().detach("prod", "db", kill=True)
    hosts[1].node().attach("prod", "db")


@pytest.mark.parametrize("running", having(Can.PUBLISHED_PORTS), indirect=True)
def test_host_that_does_not_answer(hosts, pair):
    """Nobody knows whether it listens there: an error that names it, and nothing changed."""
    hosts[1].agent.send_signal(signal.SIGSTOP)
    with pytest.raises(AgentUnreachable, match="the agent of host h2 did not answer in 2 s"):
        hosts[0].node().apply_policy(published(port=8080))
    hosts[1].agent.send_signal(signal.SIGCONT)
    assert hosts[0].node().policies() == []
    until(lambda: "h2" in {each.name for each in hosts[0].node().hosts()})
    hosts[0].node().apply_policy(published(port=8080))


def test_explain_asks_the_data_paths(hosts, pair):
    """Of both hosts, whichever is asked; and says of whom it got no answer."""
    _, db, _, _ = pair
    for host in hosts:
        answer = host.node().explain("prod", "web", "db", 7000)
        assert (answer["allowed"], answer["unanswered"]) == (True, [])
        assert [stage["host"] for stage in answer["stages"]] == ["h1", "h2"]
        assert [stage["doubt"] for stage in answer["stages"]] == ["", ""]
    # A policy of just now: the answer is of tables that have it.
    hosts[0].node().apply_policy(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db},"
        " spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}}"
    )
    answer = hosts[0].node().explain("prod", "web", "db", 7000)
    assert [stage["allowed"] for stage in answer["stages"]] == [True, False]
    assert [stage["doubt"] for stage in answer["stages"]] == ["", ""]
    hosts[0].node().wait()
    hosts[1].agent.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    answer = hosts[0].node().explain("prod", "web", str(db.endpoint.address), 7000)
    hosts[1].agent.send_signal(signal.SIGCONT)
    assert answer["unanswered"] == ["h2"]
    assert not answer["allowed"]
    assert time.monotonic() - begin < 4 * PATIENCE


@pytest.mark.parametrize("running", ["ebpf"], indirect=True)
def test_explain_shouts_where_the_data_path_differs(hosts, pair):
    """What nobody but the kernel knows: its policy map is emptied behind the agent's back."""
    from slimnet_ebpf.maps import Map

    hosts[1].node().apply_policy(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db},"
        " spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}}"
    )
    node = hosts[0].node()
    assert "IN DOUBT" not in node.explain("prod", "web", "db", 7000)["summary"]
    pinned = Path("/sys/fs/bpf/slimnet") / hosts[1].instance / "maps" / "slim_policy"
    with contextlib.closing(Map.pinned(pinned)) as both:
        for slot in (0, 1):
            with contextlib.closing(both.inner(slot)) as side:
                side.remove([key for key, _ in side.items()])
    answer = node.explain("prod", "web", "db", 7000)
    assert "IN DOUBT, a defect of slimnet" in answer["summary"]
    assert "the data path of h2" in answer["stages"][1]["doubt"]


def test_accounts(hosts, pair):
    """What both ends of a connection sent and received is in their accounts."""
    web, db, client, _ = pair
    connects(client, db)
    if not can(hosts[0].config.backend, Can.COUNTS):
        assert hosts[0].node().accounts() == []
        return
    sent = [each for each in hosts[0].node().accounts() if each.endpoint == web.endpoint.id]
    received = [each for each in hosts[1].node().accounts() if each.endpoint == db.endpoint.id]
    assert [each.direction for each in sent] == [Direction.EGRESS]
    assert [each.direction for each in received] == [Direction.INGRESS]
    assert sent[0].connections >= 2
    assert received[0].sent > 0
    assert hosts[0].node().rules() == {}


def test_warnings_of_documents(hosts, pair):
    node = hosts[0].node()
    (warning,) = node.check_policy(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x},"
        "\nspec: {podSelector: {matchLabels: {app: nobody}}}}"
    )
    assert (warning.policy, warning.text) == ("default/x", "its subject selects no endpoint")
    assert node.policies() == []


def test_events(hosts, pair):
    web, db, client, _ = pair
    events = hosts[1].node().events()
    refused = hosts[1].node().attach("prod", "none")
    hosts[1].node().wait()
    hosts[1].node().apply_policy(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none},"
        " spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}}"
    )
    assert not client.connect(str(db.endpoint.address), 7000, 1)
    refusals = (each for each in events if each.kind is EventKind.REFUSED)
    event = next(each for each in refusals if each.reason is not Reason.REVOKED)
    events.close()
    assert event.direction is Direction.INGRESS
    assert event.reason is Reason.DEFAULT_DENY
    assert event.endpoint == db.endpoint.id
    assert event.destination == (db.endpoint.address, 7000)
    assert event.source[0] == web.endpoint.address
    assert event in hosts[1].node().refusals()
    assert refused.created


def test_events_of_an_agent_that_ends(hosts, pair):
    """Say so: whoever waits for them would take silence for peace."""
    for end in (hosts[1].kill, hosts[1].stop):
        events = hosts[1].revive() or hosts[1].node().events()
        end()
        with pytest.raises(AgentUnreachable, match=r"agent on .*: it has ended"):
            for _ in events:
                pass


def test_connections(hosts, pair):
    web, db, _, _ = pair
    (out,) = until(lambda: hosts[0].node().connections())
    (back,) = until(lambda: hosts[1].node().connections())
    assert (out.endpoint, out.peer_endpoint) == (web.endpoint.id, db.endpoint.id)
    assert out.peer == back.local == (db.endpoint.address, 7000)
    assert out.local == back.peer
    assert (out.direction, back.direction) == (Direction.EGRESS, Direction.INGRESS)


def test_run(hosts, pair, capfd):
    """A command as an endpoint: its status, its name, and nothing afterwards."""
    _, db, _, _ = pair
    node = hosts[0].node()
    code = (
        "import socket; s = socket.create_connection(('db', 7000)); "
        "print(s.getsockname()[0], socket.gethostbyname('job'), s.getpeername()[0]); exit(7)"
    )
    assert node.run("prod", "job", [sys.executable, "-c", code], address="10.77.0.9") == 7
    assert capfd.readouterr().out.split() == ["10.77.0.9", "10.77.0.9", str(db.endpoint.address)]
    assert {each.name for each in node.endpoints()} == {"web", "db"}
    assert node.run("prod", "job", ["test", "-e", str(hosts[0].config.socket)]) == 1


# Who may ask


def ask_as(netns, setup, socket_path):
    """What the agent says to a process that did ``setup`` first."""
    code = f"""
import os, sys
from slimnet.agent.client import Client
from pathlib import Path
{setup}
try:
    print(Client(Path(sys.argv[1])).request("GET", "status")["host"])
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        ["nsenter", f"--net={netns}", sys.executable, "-c", code, str(socket_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_only_root_outside_of_endpoints_is_answered(hosts):
    one, two = hosts
    placed = one.node().attach("prod", "web")
    path = one.config.socket

    def ask(setup):
        return ask_as(one.where.netns, setup, path)

    assert ask("") == "h1"
    assert "only root" in ask("os.setuid(65534)")
    enter = f"open('{placed.cgroup}/cgroup.procs', 'w').write('0')"
    assert "CapabilityMissing the agent answers to no process of an endpoint" in ask(enter)
    nested = placed.cgroup / "below"
    below = f"os.mkdir('{nested}'); open('{nested}/cgroup.procs', 'w').write('0')"
    assert "CapabilityMissing" in ask(below)
    nested.rmdir()
    # Another host's agent on the same machine refuses it too.
    assert "CapabilityMissing" in ask_as(one.where.netns, enter, two.config.socket)
    path.chmod(0o666)
    assert "CapabilityMissing the agent answers to root only, not to user 65534" in ask(
        "os.setuid(65534)"
    )
    assert oct(two.config.socket.stat().st_mode & 0o777) == "0o600"


def test_peer_that_handed_its_socket_on(hosts):
    """A process that connects and ends, for another one to ask: nobody to vouch for."""
    parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    hosts[0].agent.send_signal(signal.SIGSTOP)  # so that it looks only afterwards
    with parent, child:
        pid = os.fork()
        if not pid:
            try:
                with socket.socket(socket.AF_UNIX) as agent:
                    agent.connect(str(hosts[0].config.socket))
                    socket.send_fds(child, [b"x"], [agent.fileno()])
            finally:
                os._exit(0)
        _, (fd,), _, _ = socket.recv_fds(parent, 1, 1)
        os.waitpid(pid, 0)
    with socket.socket(fileno=fd) as agent:
        agent.settimeout(10)
        agent.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        hosts[0].agent.send_signal(signal.SIGCONT)
        answer = agent.recv(65536)
    assert b"403" in answer.split(b"\r\n")[0]


BAD_REQUESTS = [
    ("GET /v1/status", "", b"", 200),
    ("GET /v1/none", "", b"", 404),
    ("GET /", "", b"", 404),
    ("GET /v1/__class__", "", b"", 404),
    ("DELETE /v1/status", "", b"", 404),
    ("GET /v1/status/more", "", b"", 400),
    ("POST /v1/networks", "", b"{", 400),
    ("POST /v1/networks", "", b"[]", 400),
    ("POST /v1/networks", "", b'{"colour": "red"}', 400),
    ("POST /v1/networks", "", b'{"name": "x", "cidrs": 3}', 400),
    ("POST /v1/networks", "", b'{"name": "x", "cidrs": [3]}', 400),
    ("POST /v1/networks", "", b'{"name": "x", "cidrs": ["10.9.0.0/16"], "vni": "x"}', 400),
    ("PUT /v1/namespaces/prod/x", "", b'{"labels": 3}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": 3}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": "x", "labels": 3}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": "x", "ports": [1]}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": "x", "namespace": 3}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": "x", "cgroup": 3}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": "x", "address": []}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": "x", "colour": "red"}', 400),
    ("POST /v1/endpoints", "", b'{"network": "prod", "name": "x", "id": 7}', 400),
    ("POST /v1/policies", "", b'{"policies": [3]}', 400),
    ("POST /v1/policies", "", b'{"policies": [{}]}', 400),
    ("POST /v1/policies", "", b'{"policies": 3}', 400),
    ("POST /v1/explain", "", b'{"source": 1}', 400),
    ("POST /v1/explain", "", b'{"network": "prod", "source": "x", "destination": "y"}', 404),
    ("POST /v1/ping", "", b'{"target": 3}', 400),
    ("POST /v1/wait", "", b'{"revision": "x"}', 400),
    ("POST /v1/wait", "", b'{"timeout": "x"}', 400),
    ("POST /v1/networks", "Content-Length: 99999999999\r\n", b"", 400),
    ("POST /v1/networks", "Content-Length: -1\r\n", b"", 400),
    ("DELETE /v1/endpoints/a/b", "", b"", 400),
    ("DELETE /v1/endpoints/..%2F..%2Fx/b/c", "", b"", 404),
]


@pytest.mark.parametrize("running", ["ebpf"], indirect=True)
def test_bad_requests(hosts):
    """Every one is answered with JSON that names the error, and changes nothing."""
    wrong = {}
    for request_line, headers, body, status in BAD_REQUESTS:
        length = "" if "Content-Length" in headers else f"Content-Length: {len(body)}\r\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(hosts[0].config.socket))
            head = f"{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}{length}"
            client.sendall(f"{head}\r\n".encode() + body)
            answer = b""
            while data := client.recv(65536):
                answer += data
        head, _, text = answer.partition(b"\r\n\r\n")
        said = json.loads(text)
        if head.split()[1] != str(status).encode():
            wrong[request_line, body] = (head.split()[1], said.get("message"))
        assert status == 200 or set(said) == {"error", "message", "arguments"}
    assert wrong == {}
    assert hosts[0].node().endpoints() == []
    assert [each.name for each in hosts[0].node().networks()] == ["prod"]
    assert hosts[0].node().status()["ready"]


# The process


@pytest.mark.parametrize("fresh", ["ebpf"], indirect=True)
def test_tells_the_service_manager(fresh, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        host = fresh.hosts[0]
        host.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
        assert manager.recv(4096).startswith(b"READY=1")
        beats = [manager.recv(4096) for _ in range(3)]
        assert all(beat.startswith(b"WATCHDOG=1") for beat in beats)
        host.stop()
        rest = []
        while not rest or not rest[-1].startswith(b"STOPPING=1"):
            rest.append(manager.recv(4096))


@pytest.mark.parametrize("fresh", ["ebpf"], indirect=True)
def test_two_agents_with_one_name(fresh):
    """The second one is refused with what is wrong, and the first goes on."""
    one, two = fresh.hosts
    one.start()
    right = two.config_file.read_text()
    two.config_file.write_text(right.replace('"h2"', '"h1"'))
    done = subprocess.run(two.command(), capture_output=True, text=True, timeout=30)
    two.config_file.write_text(right)
    assert done.returncode == 2
    assert "host h1 is registered with" in done.stderr
    assert one.node().status()["ready"]


WRONG_CONFIGURATIONS = [
    ('interface = "eth0"', 'interface = "eth9"', "underlay.interface: wanted one of: .*eth0"),
    ('interface = "eth0"', 'address = "192.0.2.9"', "underlay.address: wanted one of this"),
    ('interface = "eth0"', "", "underlay: wanted an address or an interface"),
    ("lease = ", "leese = ", "leese: wanted one of"),
    ("store.db", "file/store.db", "store .*/file/store.db"),
    ("/key", "/public", "key_file: wanted mode 0600"),
    ("/key", "/theirs", "key_file: wanted root's own file"),
    ("/key", "/short", "key_file: wanted 32 hexadecimal digits"),
    ("/key", "/letters", "key_file: wanted 32 hexadecimal digits"),
    ("/key", "/file/key", "key_file: wanted a readable file"),
]


@pytest.mark.parametrize("fresh", ["ebpf"], indirect=True)
def test_wrong_configuration(fresh):
    """One line, exit status 2, nothing changed, and no secret told."""
    host = fresh.hosts[0]
    (fresh.directory / "file").write_text("")
    secrets = {"public": "5ec0" * 8, "theirs": "5ec0" * 8, "short": "5ec0", "letters": "5ecret" * 6}
    for name, text in secrets.items():
        (fresh.directory / name).write_text(text)
        (fresh.directory / name).chmod(0o644 if name == "public" else 0o600)
    os.chown(fresh.directory / "theirs", 65534, 0)
    right = host.config_file.read_text()
    for old, new, said in WRONG_CONFIGURATIONS:
        assert old in right
        host.config_file.write_text(right.replace(old, new))
        done = subprocess.run(host.command(), capture_output=True, text=True, timeout=30)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert re.search(said, line), line
        assert f"{host.config_file}: " in line or "store.db" in line
        assert not any(text in done.stderr for text in secrets.values())
        assert not host.config.socket.exists()
    host.config_file.write_text(right)


def test_key_is_made_once_for_all(hosts, cluster):
    key = cluster.directory / "key"
    assert oct(key.stat().st_mode & 0o777) == "0o600"
    assert len(bytes.fromhex(key.read_text())) == 16
    assert [each.name for each in cluster.directory.glob(".key*")] == []
    # Whose wires need none say nothing of it, so that it can be no trouble.
    (print_,) = {each.key for each in hosts[0].node().hosts()}
    assert bool(print_) == can(cluster.backend, Can.DIRECT)


@contextlib.contextmanager
def firewall(hosts, name, rules):
    """A table of the hosts' own firewall, for nft(8)."""
    enter = [["nsenter", f"--net={host.where.netns}", "nft"] for host in hosts]
    with contextlib.ExitStack() as undo:
        for nft in enter:
            undo.callback(subprocess.run, [*nft, "delete", "table", "inet", name], check=True)
            subprocess.run([*nft, "-f", "-"], input=rules.encode(), check=True)
        yield


def test_ping_through_a_firewall(hosts, pair):
    """What nothing came back from was not carried, whatever it should have been."""
    chain = (
        "type filter hook prerouting priority -400;"
        " tcp dport { 4790-4885, 20000-31999 } drop; udp dport 4789 drop"
    )
    with firewall(hosts[1:], "wall", f"table inet wall {{ chain c {{ {chain}; }}; }}"):
        answer = hosts[0].node().ping("db", port=7000, source="web", timeout=0.5)
        assert (answer["carried"], answer["error"]) == ("unreachable", "ETIMEDOUT")
        assert "h2: the firewall (nftables, table inet wall, chain c) drops " in answer["why"]
        assert ": let UDP port 4789 in" in answer["why"] or ": let TCP ports " in answer["why"]
    assert hosts[0].node().ping("db", port=7000, source="web")["carried"] != "unreachable"


def test_ping_through_somebody_elses_firewall(cluster, hosts, pair):
    """Where no host knows why, it asks what is between them."""
    switch = cluster.underlay.switch
    nft = ["nsenter", f"--net={switch}", "nft"]
    rules = (
        "table netdev wall { chain c { type filter hook ingress device h1 priority 0; drop; }; }"
    )
    subprocess.run([*nft, "-f", "-"], input=rules.encode(), check=True)
    try:
        answer = hosts[0].node().ping("db", port=7000, source="web", timeout=0.5)
    finally:
        subprocess.run([*nft, "delete", "table", "netdev", "wall"], check=True)
    assert answer["carried"] == "unreachable"
    assert "does a firewall between h1 and h2 let it through?" in answer["why"]


def checked(host):
    """What `slimnet check` says of the way to others, where it is not fine."""
    environment = {**os.environ, "SLIMNET_CONFIG": str(host.config_file)}
    argv = [sys.executable, "-m", "slimnet.cli", "check", "-o", "json"]
    enter = ["nsenter", f"--net={host.where.netns}"]
    done = subprocess.run([*enter, *argv], env=environment, capture_output=True, text=True)
    (said,) = json.loads(done.stdout)
    ways = [each for each in said["machine"] if each["subject"].startswith("way of ")]
    assert ways, said
    return [each for each in ways if each["answer"] != "yes"]


def test_a_firewall_that_drops_unknown_ports(hosts, pair):
    """Named by ping on the other host and by check on its own, with the ports to let in."""
    rules = """table inet wall {
        chain input {
            type filter hook input priority filter; policy drop;
            iif lo accept
            ct state established,related accept
            tcp dport 22 accept
        }
    }"""
    assert checked(hosts[1]) == []
    with firewall(hosts[1:], "wall", rules):
        answer = hosts[0].node().ping("db", port=7000, source="web", timeout=0.5)
        found = checked(hosts[1])
        assert checked(hosts[0]) == []
    assert answer["carried"] == "unreachable"
    assert answer["why"].startswith("h2: the firewall (nftables, table inet wall, chain input)")
    for each in found:
        assert "(nftables, table inet wall, chain input) drops " in each["reason"]
        assert each["remedy"].startswith("let ")
        assert each["remedy"].endswith(" in")
    named = [f"{each['reason']}: {each['remedy']}" in answer["why"] for each in found]
    assert any(named), (found, answer["why"])
    assert hosts[0].node().ping("db", port=7000, source="web")["carried"] != "unreachable"


def test_a_strict_reverse_path(hosts, pair):
    """What comes by another interface than the route back is dropped: said by ping and check."""
    one, two = hosts
    peer = str(one.where.address)

    def ip(*words):
        subprocess.run(["nsenter", f"--net={two.where.netns}", "ip", *words], check=True)

    def strict(value):
        for name in ("all", two.where.interface):
            path = f"/proc/sys/net/ipv4/conf/{name}/rp_filter"
            enter = ["nsenter", f"--net={two.where.netns}", "tee", path]
            subprocess.run(enter, input=value, check=True, capture_output=True)

    ip("link", "add", "aside", "type", "veth", "peer", "name", "aside2")
    try:
        ip("link", "set", "aside", "up")
        ip("link", "set", "aside2", "up")
        ip("route", "add", f"{peer}/32", "dev", "aside")
        strict(b"1")
        answer = one.node().ping("db", port=7000, source="web", timeout=0.5)
        found = checked(two)
    finally:
        strict(b"0")
        ip("link", "del", "aside")
    said = f"rp_filter=1 drops what comes from {peer} by {two.where.interface}, for the route back"
    assert answer["carried"] == "unreachable"
    assert f"h2: {said} is by aside: sysctl -w " in answer["why"]
    assert [each["reason"] for each in found if "rp_filter" in each["reason"]] == [
        f"{said} is by aside"
    ]
    for host, words in ((one, ("db", "web")), (two, ("web", "db"))):
        until(lambda h=host, w=words: h.node().ping(w[0], source=w[1])["error"] is None)


def test_a_route_with_another_source(cluster, hosts, pair):
    """Of several addresses the kernel takes another one: the host there refuses the connection,
    where the SYN says who it is from."""
    one, _ = hosts
    own = str(one.where.address)
    other = "198.18.77.1"

    def ip(words):
        enter = ["nsenter", f"--net={one.where.netns}", "ip", *words.split()]
        subprocess.run(enter, check=True)

    route = f"route change 198.18.0.0/15 dev {one.where.interface} proto kernel scope link src"
    ip(f"address add {other}/15 dev {one.where.interface}")
    try:
        ip(f"{route} {other}")
        answer = one.node().ping("db", port=7000, source="web", timeout=0.5)
        found = checked(one)
    finally:
        ip(f"{route} {own}")
        ip(f"address del {other}/15 dev {one.where.interface}")
    if not can(cluster.backend, Can.NAMED_BY_SYN):
        assert answer["carried"] != "unreachable"
        assert found == []
        return
    assert answer["carried"] == "unreachable"
    assert answer["why"].startswith("h1: connections to ")
    assert f"leave with the source {other}, not with this host's {own}: say `src" in answer["why"]
    assert [each["reason"] in answer["why"] for each in found] == [True]


def test_the_firewall_of_the_documentation(hosts, resident, pair):
    """Lets the backend's connections through, between hosts and on one."""
    _, db, client, _ = pair
    page = (Path(__file__).parents[2] / "docs/howto/firewalls.rst").read_text()
    (rules,) = re.findall(r"^   table inet host \{$.*?^   \}$", page, re.MULTILINE | re.DOTALL)
    near = resident(hosts[1], hosts[1].node().attach("prod", "near"))
    hosts[0].node().wait()
    with firewall(hosts, "host", rules):
        assert client.talk("live")
        connects(client, db)
        connects(near, db)


def test_ping_waits_for_the_host_of_its_target_only(hosts, pair):
    """Not for one that is silent and has nothing to do with it."""
    with SqliteStore.open(hosts[0].config.store) as store:
        cluster = StoredCluster(store)
        silent = attrs.evolve(cluster.hosts()[0], name="h9", address="192.0.2.99")
        cluster.set_host(silent, store.lease(60))
        far, _ = cluster.create_endpoint({"network": "prod", "name": "far", "host": "h9"})
        try:
            answer = hosts[0].node().ping("db", port=7000)
            assert (answer["temporary"], answer["error"]) == (True, None)
            with pytest.raises(AgentUnreachable, match="host h9 does not follow .* say --from"):
                hosts[0].node().ping("far", port=7000, timeout=0.5)
        finally:
            cluster.remove_endpoint(far)
            store.transact(delete=["hosts/h9"])


@pytest.mark.parametrize("fresh", having(Can.DIRECT), indirect=True)
def test_hosts_with_different_keys(fresh):
    """A file that was forgotten when the second host was set up: said on both, by ping
    too, and gone when it is mended."""
    one = fresh.hosts[0]
    two = fresh.hosts[1] = Host(
        fresh, fresh.clustered[1], key_file=str(fresh.directory / "another-key")
    )
    nodes = [host.start() for host in fresh.hosts]
    nodes[0].create_network("prod", "10.77.0.0/24")
    for host, node in zip(fresh.hosts, nodes, strict=True):
        node.attach("prod", f"on-{host.where.name}")
    prints = {each.name: each.key for each in nodes[0].hosts()}
    assert prints["h1"] != prints["h2"]
    for each in prints.values():
        assert re.fullmatch("[0-9a-f]{16}", each)
    secrets = [(fresh.directory / name).read_text().strip() for name in ("key", "another-key")]
    assert not any(part in secret for part in prints.values() for secret in secrets)
    for number, (here, there) in enumerate((("h1", "h2"), ("h2", "h1"))):
        until(lambda node=nodes[number]: not node.status()["ready"], 5)
        (trouble,) = nodes[number].status()["trouble"]
        for words in (f"{here} ({prints[here]})", f"{there} ({prints[there]})", "copy /"):
            assert words in trouble
    answer = nodes[0].ping("on-h2", source="on-h1")
    assert answer["carried"] == "unreachable"
    for words in (*prints.values(), "different keys"):
        assert words in answer["why"]
    # A SYN is refused where it arrives; routers do not even come to hear of one another.
    named = can(fresh.backend, Can.NAMED_BY_SYN)
    assert answer["error"] == ("ECONNREFUSED" if named else "EHOSTUNREACH")
    assert "their keys differ" in str(nodes[0].explain("prod", "on-h1", "on-h2", 7))
    two.stop()
    (fresh.directory / "another-key").write_text(secrets[0])
    two.start()
    until(lambda: all(host.node().status()["ready"] for host in fresh.hosts))
    answer = one.node().ping("on-h2", source="on-h1")
    assert (answer["carried"], answer["error"]) == ("accelerated", None)


def test_teardown_refuses_while_it_is_used(hosts, pair):
    host = hosts[0]
    assert (
        "stop it first"
        in subprocess.run(host.command("--teardown"), capture_output=True, text=True).stderr
    )
    # However long it takes, no other agent sees its lease run out and parts with its endpoints.
    for each in hosts:
        each.stop()
    done = subprocess.run(host.command("--teardown"), capture_output=True, text=True)
    assert done.returncode == 2
    assert pair[2].talk("live")
    pair[2].close()
    until(lambda: "populated 0" in (pair[0].cgroup / "cgroup.events").read_text())
    done = subprocess.run(host.command("--teardown"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not host.config.run.exists()
    assert not (cgroup_mount() / "slimnet" / host.instance).exists()


def test_teardown_by_force_ends_what_runs(hosts, pair):
    """Its connections too, and nothing is left on the host; not while an agent runs."""
    host, web, server = hosts[0], pair[0], pair[3]
    force = host.command("--teardown", "--force")
    assert "stop it first" in subprocess.run(force, capture_output=True, text=True).stderr
    for each in hosts:
        each.stop()
    done = subprocess.run(force, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not web.cgroup.exists()
    assert not host.config.run.exists()
    assert not (cgroup_mount() / "slimnet" / host.instance).exists()
    server.serve(7001)  # of the other host it ended nothing


@pytest.mark.parametrize("fresh", ["ebpf"], indirect=True)
def test_auto_says_what_it_took(fresh):
    host = fresh.hosts[0]
    right = host.config_file.read_text()
    host.config_file.write_text(right.replace(f'"{fresh.backend}"', '"auto"'))
    status = host.start().status()
    host.config_file.write_text(right)
    assert status["backend"] == "ebpf"
    assert "noop: lower preference" in status["why"]


def test_wait_says_who_is_late(hosts):
    hosts[0].node().wait()  # it may not be stopped while it holds the store's lock
    hosts[1].agent.send_signal(signal.SIGSTOP)
    try:
        hosts[0].node().create_network("more", "10.78.0.0/24")
        with pytest.raises(SlimnetError, match="not everywhere at revision .*: h2 at"):
            hosts[0].node().wait(timeout=0.5)
    finally:
        hosts[1].agent.send_signal(signal.SIGCONT)
    assert set(hosts[0].node().wait()) == {"h1", "h2"}


def test_client_of_nobody(tmp_path):
    with pytest.raises(AgentUnreachable, match="no agent on .*/none.sock: start one"):
        open_node(agent=tmp_path / "none.sock")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "deaf.sock"))
        with pytest.raises(AgentUnreachable, match="deaf.sock: it is not running"):
            open_node(agent=tmp_path / "deaf.sock")
        bound.listen()
        with pytest.raises(AgentUnreachable, match="no answer in 0.2 s"):
            Client(tmp_path / "deaf.sock", timeout=0.2).request("GET", "status")
    assert issubclass(CapabilityMissing, SlimnetError)
    assert Path(tmp_path).is_dir()
