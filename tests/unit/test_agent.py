# SPDX-License-Identifier: Apache-2.0
"""The agent's parts on a real store and a backend without a kernel."""

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from netaddr import IPAddress, IPNetwork

from slimnet import records
from slimnet.abc import Context
from slimnet.agent import hostsfile, instance
from slimnet.agent.endpoints import Endpoints
from slimnet.agent.feed import Feed
from slimnet.agent.holder import Holders
from slimnet.agent.installer import Installer
from slimnet.agent.mirror import Mirror
from slimnet.agent.names import Names
from slimnet.agent.site import Site
from slimnet.cluster import Cluster
from slimnet.config import Config
from slimnet.exceptions import (
    AlreadyExists,
    BackendError,
    ForeignDataPath,
    InUse,
    InvalidValue,
    NotFound,
    PolicyError,
)
from slimnet.model import Direction, Endpoint, Flow, Host, Protocol, Running, Verdict
from slimnet.place import Life
from slimnet.policy import NetworkPolicy, load, parse
from slimnet.store.sqlite import SqliteStore
from slimnet.testing import MemoryBackend

HERE = Host("h1", "192.0.2.1", {"vxlan"}, "memory")
THERE = Host("h2", "192.0.2.2", {"vxlan"}, "memory")


class Agent:
    """What slimnet.agent.agent puts together, without its main loop."""

    def __init__(self, directory, url):
        self.directory = directory
        self.store = SqliteStore.open(url)
        self.cluster = Cluster(self.store)
        self.mirror = Mirror(self.store)
        site = Site(HERE, "eth0", directory / "cgroups", (bytes(16),))
        context = Context(f"test-{directory}", HERE, "eth0", site.cgroups, directory, bytes(16))
        self.backend = MemoryBackend(context)
        self.naming = Names(directory)
        self.installer = Installer(self.backend, HERE, self.naming)
        self.endpoints = Endpoints(
            *(site, directory, self.backend, self.cluster, self.mirror, self.naming), self.sync
        )

    def sync(self):
        if self.mirror.catch_up() or self.installer.trouble:
            self.installer.apply(self.mirror)
        return self.installer.trouble

    def attach(self, name, holder=None, **more):
        return self.endpoints.attach({"network": "prod", "name": name, **more}, holder)

    def detach(self, name, kill=False):
        self.endpoints.detach("prod", "default", name, kill=kill)

    def names(self):
        return sorted(each.name for each in self.cluster.endpoints())

    def allows(self, source, destination, port=80):
        verdict: Verdict = self.backend.decide(
            Flow("prod", source, destination, Protocol.TCP, port, Direction.INGRESS)
        )
        return verdict.allowed


@pytest.fixture
def url(tmp_path):
    return f"sqlite://{tmp_path}/store.db"


@pytest.fixture
def started(tmp_path, url):
    """Starts agents of one host, one after the other; the data path goes on between."""
    agents = []

    def start():
        agents.append(Agent(tmp_path, url))
        return agents[-1]

    yield start
    for agent in agents:
        agent.naming.close()
        agent.backend.close()
        agent.store.close()
    MemoryBackend.running.pop(f"test-{tmp_path}", None)


@pytest.fixture
def agent(started):
    agent = started()
    lease = agent.store.lease(60)
    agent.cluster.set_host(HERE, lease)
    agent.cluster.set_host(THERE, lease)
    agent.cluster.create_network("prod", "10.1.0.0/24")
    agent.sync()
    return agent


@pytest.fixture
def ended():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def occupy(placed, text="1\n"):
    """A process in a cgroup of the backend without a kernel, and in cgroup v2's words."""
    (placed.cgroup / "cgroup.procs").write_text(text)
    (placed.cgroup / "cgroup.events").write_text(f"populated {int(bool(text))}\n")


def vacate(placed):
    for name in ("cgroup.procs", "cgroup.events"):
        (placed.cgroup / name).unlink(missing_ok=True)


# Following the store


def test_attached_endpoint_is_in_force(agent):
    placed = agent.attach("web", labels={"app": "web"}, ports={"http": ["tcp", 80]})
    assert placed.created
    assert placed.cgroup == agent.directory / "cgroups" / "prod.default.web"
    assert placed.cgroup.is_dir()
    assert placed.endpoint.ports == {"http": ("tcp", 80)}
    assert agent.backend.status().endpoints == {placed.endpoint.id}
    assert placed.endpoint.address in {address for _, address in agent.installer.tables.addresses}
    assert agent.backend.status().generation == agent.installer.tables.generation
    assert "web.default.prod" in placed.hosts.read_text()
    assert placed.netns.exists()


def test_attaching_reads_the_same_of_every_store(agent, monkeypatch):
    """Calls of the store and records in their answers, however many endpoints there are."""
    agent.cluster.create_network("big", "10.2.0.0/16")
    read = []

    def count(name, rows):
        call = getattr(agent.store, name)

        def counted(*arguments, **named):
            answer = call(*arguments, **named)
            read.append((name, rows(answer)))
            return answer

        monkeypatch.setattr(agent.store, name, counted)

    count("get", lambda answer: answer is not None)
    count("list", lambda answer: len(answer[0]))
    count("watch", lambda answer: len(answer[0]))
    costs = {}
    for there in (0, 10, 1000):
        put = {}
        for each in range(there, 2 * there):
            name, address = f"e{each}", f"10.2.{each // 250 + 1}.{each % 250}"
            endpoint = Endpoint("big", name, address, "h2", id=each, identity=300)
            put[f"endpoints/big/default/{name}"] = records.dump(endpoint)
            put[f"addresses/big/{address}"] = b'"endpoints/big/default/x"'
        agent.store.transact(put=put)
        for turn in ("first", "then"):  # the first one learns of all these
            read.clear()
            agent.endpoints.attach({"network": "big", "name": turn}, None)
            agent.endpoints.detach("big", "default", turn, kill=False)
            costs[there] = len(read), sum(rows for _, rows in read)
    assert len(agent.installer.tables.endpoints) >= 1000
    assert costs[0] == costs[10] == costs[1000]


def test_nothing_is_installed_when_nothing_changed(agent):
    before = agent.backend.status().generation
    agent.store.transact(put={"~installed/h2": b'{"revision":1}', "counters/x": b"1"})
    agent.cluster.set_namespace("prod", "default", {})
    assert agent.sync() == ""
    assert agent.backend.status().generation == before
    agent.cluster.create_network("other", "10.2.0.0/24")
    agent.sync()
    assert agent.backend.status().generation > before


def test_a_change_is_installed_as_a_change(agent, monkeypatch):
    """The backend is told what differs from the generation that it holds, also
    after changes that came to nothing."""
    seen = []
    install = agent.backend.install

    def spy(tables, change=None):
        seen.append((agent.backend.status().generation, change))
        install(tables, change)

    monkeypatch.setattr(agent.backend, "install", spy)
    agent.attach("web")
    agent.cluster.set_namespace("prod", "default", {})
    agent.sync()
    agent.attach("db")
    assert len(seen) == 2
    for held, change in seen:
        assert change.base == held
        assert len(change.set.addresses) == 1


def test_a_policy_of_others_is_passed_over(agent, monkeypatch):
    """It is not installed, and nothing that it does not name is looked at. What its rules are
    called is known all the same, and told to the backend with the next change."""
    mine, _ = agent.attach("web", labels={"app": "web"}), agent.attach("db", labels={"app": "db"})
    installed = []
    install = agent.backend.install

    def spy(tables, change=None):
        installed.append(change)
        install(tables, change)

    monkeypatch.setattr(agent.backend, "install", spy)
    before, generation = agent.mirror.revision, agent.installer.tables.generation

    def apply(app):
        policy = f"""
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata: {{name: {app}}}
            spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{{from: []}}]}}
        """
        agent.cluster.documents.apply(load(policy, network="prod"))

    with monkeypatch.context() as patch:
        patch.delattr(Mirror, "state")
        apply("nobody")
        assert agent.sync() == ""
        assert (installed, agent.installer.tables.generation) == ([], generation)
        assert agent.mirror.revision > before
        assert list(agent.installer.tables.rules.values()) == ["default/nobody ingress[0] (line 5)"]
        apply("web")
        assert agent.sync() == ""
    (change,) = installed
    assert change.base == generation
    assert {key.subject for key in change.set.policy} == {mine.endpoint.identity}
    assert sorted(change.set.rules.values()) == [
        "default/nobody ingress[0] (line 5)",
        "default/web ingress[0] (line 5)",
    ]


def test_policy_is_in_force(agent):
    web, db = agent.attach("web", labels={"app": "web"}), agent.attach("db", labels={"app": "db"})
    other = agent.attach("other")
    addresses = [each.endpoint.address for each in (web, db, other)]
    assert agent.allows(addresses[2], addresses[1])
    agent.cluster.documents.apply(
        load(
            """
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata: {name: db}
            spec:
              podSelector: {matchLabels: {app: db}}
              ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
            """,
            network="prod",
        )
    )
    agent.sync()
    assert agent.allows(addresses[0], addresses[1])
    assert not agent.allows(addresses[2], addresses[1])
    agent.cluster.documents.remove(NetworkPolicy, "db", "prod")
    agent.sync()
    assert agent.allows(addresses[2], addresses[1])


def test_what_the_store_holds_outlives_the_parser(agent, monkeypatch):
    """A document that a stricter parser would refuse is read and enforced as it was taken."""
    web, db = agent.attach("web"), agent.attach("db", labels={"app": "db"})
    (policy,) = load(
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: db}
        spec: {podSelector: {matchLabels: {app: db}}}
        """,
        network="prod",
    )
    manifest = {**policy.manifest, "apiVersion": "networking.k8s.io/v0", "spec": {"subject": "db"}}
    with pytest.raises(PolicyError):
        parse([{"manifest": manifest}])
    agent.cluster.documents.apply([attrs.evolve(policy, manifest=manifest)])

    def refuse(*_arguments):
        raise PolicyError("spec", "nothing that was ever written", "a manifest")

    monkeypatch.setattr("slimnet.policy.language.manifest._document", refuse)
    agent.sync()
    assert agent.mirror.problems == {}
    assert [each.manifest for each in agent.cluster.documents.all()] == [manifest]
    assert not agent.allows(web.endpoint.address, db.endpoint.address)
    assert agent.allows(db.endpoint.address, web.endpoint.address)


def test_a_field_that_this_build_does_not_know(agent):
    """A newer build's policy is not enforced without what it says besides."""
    (policy,) = load(
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: db}
        spec: {podSelector: {}}
        """,
        network="prod",
    )
    record = policy.to_json()
    record["value"]["schedule"] = "at night"
    agent.store.transact(put={"policies/prod/default/db": records.dump(record)})
    assert "schedule" in agent.sync()
    assert agent.mirror.binding


@pytest.mark.parametrize(
    "key",
    ["policies/prod/default/x", "clusterpolicies/x", "namespaces/prod/x"],
)
def test_unreadable_policy_keeps_the_last_tables(agent, key):
    """Leaving it out would allow what it forbids."""
    agent.attach("web")
    before = agent.installer.tables
    agent.store.transact(put={key: b"{"})
    assert key in agent.sync()
    agent.cluster.create_network("later", "10.2.0.0/24")
    agent.sync()
    assert agent.installer.tables is before
    with pytest.raises(BackendError, match=key):
        agent.attach("db")
    assert agent.names() == ["web"]
    agent.store.transact(delete=[key])
    assert agent.sync() == ""
    assert agent.installer.tables.generation > before.generation
    assert agent.attach("db").created


@pytest.mark.parametrize(
    "key", ["endpoints/prod/default/x", "networks/x", "hosts/x", "something/else"]
)
@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff\x00", b'{"name": 3}'])
def test_other_unreadable_records_are_left_out(agent, key, value):
    agent.store.transact(put={key: value})
    assert agent.sync() == ""
    assert agent.attach("web").created


def test_endpoint_of_a_network_that_is_gone(agent):
    agent.attach("web")
    agent.store.transact(delete=["networks/prod"])
    assert agent.sync() == ""
    assert agent.installer.tables.endpoints == {}


def test_failed_install_is_tried_again(agent, monkeypatch):
    before = agent.installer.tables

    def refuse(tables, change=None):
        raise BackendError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(agent.backend, "install", refuse)
        agent.cluster.create_network("more", "10.2.0.0/24")
        assert agent.sync() == "cannot install: BackendError: no room"
        assert agent.installer.tables is before
    assert agent.sync() == ""
    assert IPNetwork("10.2.0.0/24") in {cidr for _, cidr in agent.installer.tables.cidrs}


def test_a_younger_store_is_followed_too(agent, url):
    """Restored from nothing, its revisions begin again; the generations do not."""
    agent.attach("web")
    before = agent.installer.tables.generation
    with SqliteStore.open(f"{url}.young") as young:
        Cluster(young).create_network("new", "10.9.0.0/24")
        path = young.path
    agent.store.path.unlink()
    with pytest.raises(ConnectionError):
        agent.sync()
    for rest in agent.store.path.parent.glob("store.db-*"):
        rest.unlink()
    agent.mirror.forget()  # as the main loop does then
    path.rename(agent.store.path)
    agent.sync()
    assert agent.installer.tables.generation == before + 1
    assert [each.name for each in agent.mirror.networks()] == ["new"]
    assert agent.installer.tables.endpoints == {}


def test_policy_does_not_wait_for_the_hosts_files(agent):
    """A full /run must not keep a policy from being in force."""
    before = agent.installer.tables.generation
    (agent.directory / "hosts").mkdir()
    (agent.directory / "hosts" / "more").write_text("in the way")
    agent.cluster.create_network("more", "10.2.0.0/24")
    agent.cluster.create_endpoint({"network": "more", "name": "web", "host": "h1"})
    assert "cannot write the hosts files" in agent.sync()
    assert agent.installer.tables.generation > before
    (agent.directory / "hosts" / "more").unlink()
    assert agent.sync() == ""
    assert (agent.directory / "hosts" / "more" / "default").exists()


def test_lost_host_takes_its_endpoints_along(agent):
    agent.cluster.create_endpoint({"network": "prod", "name": "far", "host": "h2"})
    agent.sync()
    assert len(agent.installer.tables.endpoints) == 1
    agent.store.transact(delete=["hosts/h2"])
    agent.sync()
    assert agent.installer.tables.endpoints == {}
    agent.cluster.set_host(THERE, agent.store.lease(60))
    agent.sync()
    assert len(agent.installer.tables.endpoints) == 1


def test_own_lease_ran_out(agent):
    """This host is always there for itself."""
    agent.attach("web")
    agent.store.transact(delete=["hosts/h1"])
    assert agent.sync() == ""
    assert len(agent.installer.tables.endpoints) == 1


def test_history_that_is_gone(agent):
    """A mirror that lagged too far reads everything again."""
    agent.store.transact(put={"endpoints/prod/default/x": b"{"})
    agent.sync()
    agent.mirror.revision = 10**9
    agent.store.transact(delete=["endpoints/prod/default/x"])
    assert agent.mirror.catch_up()
    assert agent.mirror.problems == {}


# Attaching


def test_attaching_again_is_the_same(agent):
    first = agent.attach("web", labels={"app": "web"}, address="10.1.0.9")
    occupy(first)
    again = agent.attach("web")
    assert not again.created
    assert (again.endpoint, again.cgroup) == (first.endpoint, first.cgroup)
    assert not agent.attach("web", labels={"app": "web"}, address="10.1.0.9").created
    vacate(first)


@pytest.mark.parametrize(
    "other", [{"labels": {}}, {"address": "10.1.0.10"}, {"ports": {"http": ["tcp", 80]}}]
)
def test_attaching_otherwise(agent, other):
    """Refused while it has processes; else the new one takes its place."""
    first = agent.attach("web", labels={"app": "web"})
    occupy(first)
    with pytest.raises(AlreadyExists, match="not as asked for"):
        agent.attach("web", **other)
    vacate(first)
    again = agent.attach("web", **other)
    assert again.created
    assert again.endpoint.id != first.endpoint.id
    assert agent.backend.status().endpoints == {again.endpoint.id}


def test_name_on_another_host(agent):
    far, _ = agent.cluster.create_endpoint({"network": "prod", "name": "web", "host": "h2"})
    with pytest.raises(AlreadyExists, match="on host h2"):
        agent.attach("web")
    with pytest.raises(InvalidValue, match="an endpoint of h1, got 'h2'"):
        agent.detach("web")
    agent.store.transact(delete=["hosts/h2"])
    assert agent.attach("web").endpoint.id != far.id


def test_removing_what_a_lost_host_left(agent):
    agent.cluster.create_endpoint({"network": "prod", "name": "web", "host": "h2"})
    agent.store.transact(delete=["hosts/h2"])
    agent.detach("web")
    assert agent.names() == []


def test_failed_attach_leaves_nothing(agent, monkeypatch):
    def refuse(endpoint, network):
        raise BackendError("no index left")

    before = agent.cluster.store.list("addresses/")[0]
    with monkeypatch.context() as patched:
        patched.setattr(agent.backend, "attach", refuse)
        with pytest.raises(BackendError, match="no index left"):
            agent.attach("web", os.getpid())
    assert agent.names() == []
    assert agent.cluster.store.list("addresses/")[0] == before
    assert list((agent.directory / "holders").iterdir()) == []
    assert agent.installer.tables.endpoints == {}


@pytest.mark.parametrize(
    "asked", [{}, {"network": "prod"}, {"name": "x"}, {"network": 1, "name": "x"}]
)
def test_attach_without_a_name(agent, asked):
    with pytest.raises(InvalidValue, match=r"endpoint\.(network|name): wanted a name"):
        agent.endpoints.attach(asked, None)


@pytest.mark.parametrize("cgroup", ["/tmp", "/sys", "relative"])
def test_cgroup_that_is_none(agent, cgroup):
    with pytest.raises(InvalidValue, match=r"endpoint\.cgroup"):
        agent.attach("web", cgroup=cgroup)
    assert agent.names() == []


def test_place_that_is_of_no_use(agent):
    """The backend's reason, before anything is written down."""
    with pytest.raises(InvalidValue, match=r"endpoint\.netns: wanted none \(the memory backend"):
        agent.attach("web", netns="/run/netns/web")
    with pytest.raises(InvalidValue, match=r"endpoint\.netns: wanted an absolute path"):
        agent.attach("web", netns="web")
    assert agent.names() == []


def test_whether_it_lives_the_backend_says(agent, monkeypatch):
    web, db = agent.attach("web"), agent.attach("db")
    lives = {"prod.default.web": Life.BUSY, "prod.default.db": Life.GONE}
    monkeypatch.setattr(agent.backend, "life", lambda name, _place: lives[name])
    with pytest.raises(InUse, match="web has processes"):
        agent.detach("web")
    agent.mirror.catch_up()
    agent.endpoints.tend()
    assert agent.names() == ["web"]
    assert agent.backend.status().endpoints == {web.endpoint.id}
    assert not db.cgroup.exists()


def test_detach_waits_for_nobody(agent):
    placed = agent.attach("web")
    occupy(placed)
    with pytest.raises(InUse, match="web has processes"):
        agent.detach("web")
    assert agent.backend.status().endpoints == {placed.endpoint.id}
    vacate(placed)
    agent.detach("web")
    assert agent.names() == []
    assert not placed.cgroup.exists()
    assert agent.installer.tables.endpoints == {}
    assert "web" not in placed.hosts.read_text()
    with pytest.raises(NotFound, match="endpoint 'prod/default/web': there is none"):
        agent.detach("web")


# Ephemeral endpoints


def test_ephemeral_endpoint_is_held(agent):
    agent.attach("web", os.getpid())
    agent.endpoints.tend()
    assert agent.names() == ["web"]
    with pytest.raises(AlreadyExists, match="runs already"):
        agent.attach("web", os.getpid())


def test_ephemeral_endpoint_goes_with_holder_and_processes(agent, ended):
    placed = agent.attach("web", ended)
    occupy(placed)
    agent.endpoints.tend()
    assert agent.names() == ["web"]
    with pytest.raises(AlreadyExists, match="runs already"):
        agent.attach("web")
    vacate(placed)
    agent.endpoints.tend()
    assert agent.names() == []
    assert list((agent.directory / "holders").iterdir()) == []


def test_abandoned_ephemeral_endpoint_is_replaced(agent, ended):
    first = agent.attach("web", ended)
    again = agent.attach("web", os.getpid())
    assert again.created
    assert again.endpoint.id != first.endpoint.id


def test_endpoint_that_stays_stays(agent):
    agent.attach("web")
    agent.endpoints.tend()
    assert agent.names() == ["web"]


def test_endpoint_goes_with_its_cgroup(agent):
    placed = agent.attach("web")
    placed.cgroup.rmdir()
    agent.endpoints.tend()
    agent.sync()
    assert agent.names() == []
    assert agent.backend.status().endpoints == frozenset()


def test_holders(tmp_path, ended):
    holders = Holders(tmp_path / "holders")
    holders.put(1, os.getpid())
    holders.put(2, ended)
    (tmp_path / "holders" / "3").write_text(f"{os.getpid()} 1\n")
    (tmp_path / "holders" / "4").write_text("garbage")
    assert [holders.lives(number) for number in range(1, 6)] == [True, False, False, False, None]
    holders.drop(1)
    holders.drop(1)
    assert holders.lives(1) is None


# Restarting


def test_restart_adopts(agent, started):
    placed = agent.attach("web", os.getpid(), labels={"app": "web"})
    gone = agent.attach("gone")
    occupy(placed)
    generation = agent.backend.status().generation
    agent.store.close()  # as if killed: nothing else is told
    gone.cgroup.rmdir()
    again = started()
    again.mirror.catch_up()
    again.endpoints.adopt()
    assert again.sync() == ""
    assert set(again.endpoints.attached) == {placed.endpoint.id}
    assert again.endpoints.attached[placed.endpoint.id].cgroup == placed.cgroup
    assert again.names() == ["web"]
    assert again.backend.status().generation >= generation
    with pytest.raises(AlreadyExists, match="runs already"):
        again.attach("web", os.getpid())


def test_restart_with_another_store(agent, started, url):
    """A number in the data path does not say that its tables are these."""
    agent.attach("web")
    before = agent.installer.tables.generation
    agent.store.close()
    for each in agent.store.path.parent.glob("store.db*"):
        each.unlink()
    again = started()
    again.cluster.create_network("new", "10.9.0.0/24")
    again.sync()
    assert again.backend.status().generation == before + 1
    assert set(again.installer.tables.cidrs) >= {(1000, IPNetwork("10.9.0.0/24"))}


def test_what_the_data_path_does_not_have_is_not_adopted(agent, started):
    """Its processes may have opened anything meanwhile."""
    web, db = agent.attach("web"), agent.attach("db")
    occupy(web)
    agent.store.close()
    MemoryBackend.running.clear()
    again = started()
    again.mirror.catch_up()
    again.endpoints.adopt()
    assert set(again.endpoints.attached) == {db.endpoint.id}
    assert again.endpoints.unpoliced == {web.endpoint.id}
    said = f"endpoint web: processes in {web.cgroup} that the data path does not have: stop them"
    assert again.endpoints.trouble == {web.endpoint.id: said}
    vacate(web)
    again.endpoints.tend()
    assert set(again.endpoints.attached) == {web.endpoint.id, db.endpoint.id}
    assert (again.endpoints.unpoliced, again.endpoints.trouble) == (set(), {})


def test_what_the_data_path_lost(agent):
    """Under a running agent, too."""
    web = agent.attach("web")
    occupy(web)
    agent.sync()
    MemoryBackend.running[agent.backend.context.instance].attached.clear()
    agent.endpoints.tend()
    assert agent.endpoints.unpoliced == {web.endpoint.id}
    with pytest.raises(InUse):
        agent.detach("web")
    vacate(web)
    agent.detach("web")
    assert (agent.endpoints.attached, agent.endpoints.trouble) == ({}, {})


def test_a_data_path_without_endpoints_follows_any_store():
    config = Config()
    for found in (None, Running(), Running((), "a"), Running((Path("x"),), "")):
        instance.check_store(config, "b", found)
    with pytest.raises(ForeignDataPath, match=r"\(cluster a; this is b\): x: restore that"):
        instance.check_store(config, "b", Running((Path("x"),), "a"))


def test_restart_detaches_what_is_no_more(agent, started):
    """Removed from the store while no agent ran; kept while it has processes."""
    placed = agent.attach("web")
    occupy(placed)
    agent.cluster.remove_endpoint(placed.endpoint)
    agent.store.close()
    again = started()
    again.sync()
    again.endpoints.tend()
    assert again.backend.status().endpoints == {placed.endpoint.id}
    assert again.installer.tables.endpoints == {}
    vacate(placed)
    again.endpoints.tend()
    assert again.backend.status().endpoints == frozenset()


def test_record_without_attachment_is_completed(agent):
    """An agent that was killed between the two halves of an attach."""
    cgroup = agent.directory / "cgroups" / "prod.default.web"
    spec = {"network": "prod", "name": "web", "host": "h1", "cgroup": str(cgroup)}
    agent.cluster.create_endpoint(spec)
    agent.sync()
    agent.endpoints.tend()
    assert agent.names() == []
    cgroup.mkdir(parents=True)
    endpoint, _ = agent.cluster.create_endpoint(spec)
    agent.sync()
    agent.endpoints.tend()
    assert set(agent.endpoints.attached) == {endpoint.id}


def test_one_endpoint_in_trouble_is_not_the_others(agent, monkeypatch):
    web, db = agent.attach("web"), agent.attach("db")
    web.cgroup.rmdir()
    db.cgroup.rmdir()
    detach = agent.backend.detach

    def refuse(endpoint):
        if endpoint == web.endpoint.id:
            raise BackendError("stuck")
        detach(endpoint)

    with monkeypatch.context() as patched:
        patched.setattr(agent.backend, "detach", refuse)
        agent.endpoints.tend()
    assert agent.names() == ["web"]
    assert list(agent.endpoints.trouble.values()) == ["endpoint web: stuck"]
    agent.endpoints.tend()
    assert agent.names() == []
    assert agent.endpoints.trouble == {}


# Hosts files


def test_hosts_files(tmp_path):
    def endpoint(namespace, name, address):
        return Endpoint("prod", name, address, "h1", namespace=namespace)

    namespaces = [("prod", "default"), ("prod", "shop")]
    those = [endpoint("default", "web", "10.1.0.1"), endpoint("shop", "web", "10.1.0.2")]
    hostsfile.write(tmp_path, namespaces, those)
    default, shop = (hostsfile.path(tmp_path, "prod", name) for name in ("default", "shop"))
    assert default.read_text().splitlines()[2:] == [
        "10.1.0.1 web web.default.prod web.default",
        "10.1.0.2 web.shop.prod web.shop",
    ]
    assert "10.1.0.2 web web.shop.prod web.shop" in shop.read_text()
    inode = default.stat().st_ino
    hostsfile.write(tmp_path, namespaces[:1], those[:1])
    assert default.stat().st_ino == inode
    assert "shop" not in default.read_text()
    assert not shop.exists()
    assert default.read_text().startswith("127.0.0.1 localhost\n")
    assert default.stat().st_mode & 0o777 == 0o644


def test_hosts_files_name_services(tmp_path):
    """As endpoints, which go before them; one without an address yet is not named."""
    services = load(
        "\n---\n".join(
            f"{{kind: Service, apiVersion: v1, metadata: {{name: {name}, namespace: {namespace}}},"
            f" spec: {{clusterIP: {address!r}, selector: {{app: x}}, ports: [{{port: 80}}]}}}}"
            for name, namespace, address in (
                ("api", "default", "10.1.0.8"),
                ("web", "default", "10.1.0.9"),
                ("later", "default", ""),
                ("api", "shop", "10.1.0.10"),
            )
        ),
        network="prod",
    )
    web = Endpoint("prod", "web", "10.1.0.1", "h1")
    hostsfile.write(tmp_path, [("prod", "default"), ("prod", "shop")], [web], services)
    default, shop = (hostsfile.path(tmp_path, "prod", name) for name in ("default", "shop"))
    assert default.read_text().splitlines()[2:] == [
        "10.1.0.8 api api.default.prod api.default",
        "10.1.0.1 web web.default.prod web.default",
        "10.1.0.10 api.shop.prod api.shop",
    ]
    assert shop.read_text().splitlines()[-1] == "10.1.0.10 api api.shop.prod api.shop"


# Events


def test_events_reach_every_reader_and_are_asked_for_only_then(agent, monkeypatch):
    asked = []
    monkeypatch.setattr(agent.backend, "observe", lambda *, enabled: asked.append(enabled))
    feed = Feed(agent.backend)
    feed.start()
    try:
        web = agent.attach("web").endpoint.address
        agent.cluster.documents.apply(
            load(
                """
                apiVersion: networking.k8s.io/v1
                kind: NetworkPolicy
                metadata: {name: none}
                spec: {podSelector: {}}
                """,
                network="prod",
            )
        )
        agent.sync()
        with feed.reader() as one, feed.reader() as two:
            assert asked == [False, True]
            assert not agent.allows(IPAddress("10.1.0.77"), web)
            events = [each.get(timeout=5) for each in (one, two)]
        assert events[0] == events[1]
        assert events[0].destination == (web, 80)
        assert asked == [False, True, False]
        assert list(feed.refusals) == events[:1]
    finally:
        feed.close()
        feed.close()
