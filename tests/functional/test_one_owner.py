# SPDX-License-Identifier: Apache-2.0
"""An instance belongs to one agent, one backend and one store: what runs decides, not
what the configuration says now."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab.agents import Cluster, connects, until
from lab.hands import PATIENCE
from lab.paths import DATA_PATHS

from slimnet.agent import instance
from slimnet.cluster import Cluster as StoredCluster
from slimnet.cluster import keys
from slimnet.cluster.own import OwnStore
from slimnet.linux import cgroup
from slimnet.store.sqlite import SqliteStore
from slimnet.testing import Resident

pytestmark = pytest.mark.root

#: For each data path another one.
OTHER = dict(zip(DATA_PATHS, [*DATA_PATHS][1:] + [*DATA_PATHS][:1], strict=True))
TOP = Path(__file__).parents[2]


class Stopped:
    """A host whose agent was stopped while ``web`` has a process, and its data path."""

    def __init__(self, cluster, stack):
        self.cluster = cluster
        self.host = cluster.hosts[0]
        node = self.host.start()
        stack.callback(self.clear)
        node.create_network("prod", "10.77.0.0/24")
        self.web, self.db = (node.attach("prod", name) for name in ("web", "db"))
        self.client, self.server = (
            stack.enter_context(
                Resident(each.cgroup, self.host.where.netns, each.netns, each.place.environment)
            )
            for each in (self.web, self.db)
        )
        self.server.serve(7000)
        self.client.hold("live", str(self.db.endpoint.address), 7000)
        self.host.stop()

    def run(self, *arguments, backend=None, command=None, **environment):
        """The agent's program, to its end, with another ``backend`` for this once: its
        status and what it says."""
        right = self.host.config_file.read_text()
        if backend is not None:
            this = f'backend = "{self.cluster.backend}"'
            self.host.config_file.write_text(right.replace(this, f'backend = "{backend}"'))
        try:
            done = subprocess.run(
                [*(command or self.host.command()), *arguments],
                capture_output=True,
                text=True,
                timeout=20 * PATIENCE,
                env={**os.environ, **environment},
            )
        finally:
            self.host.config_file.write_text(right)
        lines = [each for each in done.stderr.splitlines() if " INFO " not in each]
        return done.returncode, "\n".join(lines)

    def there(self):
        """What there is of the instance; the store without what a lease holds."""
        with SqliteStore.open(f"sqlite://{self.cluster.store}") as store:
            pairs, _ = store.list("")
        leased = {keys.HOST.kind, keys.SEEN.kind, *(key.kind for key in keys.KEYS if key.passing)}
        stored = {
            key: value for key, (value, _) in pairs.items() if key.partition("/")[0] not in leased
        }
        with self.on():
            found = instance.running(self.host.config)
        return stored, found, sorted(self.host.config.run.rglob("*"))

    @contextlib.contextmanager
    def on(self):
        from slimnet.linux import netns

        with netns.enter(self.host.where.netns):
            yield

    def goes_on(self):
        """The data path does as before, and its own agent finds it so."""
        assert self.client.talk("live")
        connects(self.client, self.db)
        status = self.host.start().status()
        assert status["ready"], status
        assert status["attached"] == sorted([self.web.endpoint.id, self.db.endpoint.id])
        assert self.client.talk("live")
        connects(self.client, self.db)

    def leave(self):
        self.client.close()
        self.server.close()
        until(lambda: not any(cgroup.populated(each.cgroup) for each in (self.web, self.db)))

    def clear(self):
        """Whatever a test did: no endpoint, no network, no agent."""
        if self.host.agent.poll() is not None:
            self.host.start()
        node = self.host.node()
        for each in node.endpoints():
            node.detach(each.network, each.name, kill=True)
        for each in node.networks():
            node.remove_network(each.name)
        self.host.stop()


@pytest.fixture(scope="module", params=DATA_PATHS)
def hosts(request, tmp_path_factory):
    with Cluster(request.param, tmp_path_factory.mktemp("owner")) as cluster:
        yield cluster


@pytest.fixture
def stopped(hosts):
    with contextlib.ExitStack() as stack:
        yield Stopped(hosts, stack)


def test_another_backend_refuses_what_runs(stopped):
    """Nothing is adopted, registered or removed by a backend that does not run it; and
    teardown removes what runs, whichever backend is configured."""
    runs = stopped.cluster.backend
    other = OTHER[runs]
    name = stopped.host.instance
    before = stopped.there()
    assert set(before[1]) == {runs}
    said = (
        f"slimnet: instance {name} is run by backend '{runs}' (endpoints prod.default.db,"
        " prod.default.web): stop them and tear it down (slimnet agent --teardown),"
        f' or set backend = "{runs}"'
    )
    assert stopped.run(backend=other) == (2, said)
    assert stopped.there() == before
    said = "slimnet: endpoints with processes: prod.default.db, prod.default.web"
    assert stopped.run("--teardown", backend=other) == (2, said)
    assert stopped.there() == before
    stopped.goes_on()
    stopped.host.stop()
    stopped.leave()
    assert stopped.run("--teardown", backend=other) == (0, "")
    with stopped.on():
        assert instance.running(stopped.host.config) == {}
    assert not stopped.host.config.run.exists()
    assert not stopped.web.cgroup.exists()


@pytest.mark.parametrize("hosts", ["ebpf"], indirect=True)
def test_auto_stays_with_what_runs(stopped, tmp_path):
    """Also where its probe says no this time (no libbpf here), or it is not installed."""
    (tmp_path / "libbpf.so.1").write_text("")
    before = stopped.there()
    name = stopped.host.instance
    broken = {"LD_LIBRARY_PATH": str(tmp_path)}
    status, said = stopped.run(backend="auto", **broken)
    assert status == 2
    assert said.startswith(f"slimnet: backend 'auto': instance {name} is run by backend 'ebpf'")
    assert "which cannot run here now: libbpf.so.1" in said
    assert stopped.there() == before
    # A core upgraded without its plugins.
    status, said = stopped.run(backend="noop", **broken)
    assert (status, "is run by backend 'ebpf'" in said) == (2, True)
    bare, environment = without("slimnet_ebpf", tmp_path)
    command = [*stopped.host.command()[:2], *bare, "agent", "--config", stopped.host.config_file]
    for backend, more in (("auto", ()), ("noop", ()), ("noop", ("--teardown",))):
        status, said = stopped.run(*more, command=command, backend=backend, **environment)
        gone = f"slimnet: instance {name} is run by backend 'ebpf', which is not installed"
        assert (status, said.partition(":")[0] + ":" + said.split(":")[1]) == (2, gone)
        assert stopped.there() == before
    stopped.goes_on()


def without(module, directory):
    """A Python in whose environment one distribution is not: command and environment."""
    site = directory / "site"
    site.mkdir()
    (there,) = {Path(each) for each in sys.path if each.endswith("site-packages")}
    distribution = module.replace("slimnet_", "slimnet_overlay_")
    for each in there.iterdir():
        if not each.name.startswith(("__", distribution, f"_{distribution}")):
            (site / each.name).symlink_to(each)
    path = [site, TOP / "src", TOP / "backends" / "noop" / "src"]
    return [sys.executable, "-S", "-m", "slimnet.cli"], {"PYTHONPATH": ":".join(map(str, path))}


@pytest.mark.parametrize("hosts", ["ebpf"], indirect=True)
def test_what_the_data_path_does_not_have_is_not_adopted(stopped):
    """Somebody removed the pins: what the processes opened since then, nobody knows."""
    shutil.rmtree(f"/sys/fs/bpf/slimnet/{stopped.host.instance}")
    node = stopped.host.start()
    status = node.status()
    assert (status["ready"], status["enforcing"], status["attached"]) == (False, False, [])
    assert sorted(status["trouble"]) == [
        f"endpoint {each.endpoint.name}: processes in {each.cgroup} that the data path does"
        " not have: stop them"
        for each in (stopped.db, stopped.web)
    ]
    stopped.leave()
    status = until(lambda: (found := node.status())["ready"] and found)
    assert status["enforcing"]
    assert status["attached"] == sorted([stopped.web.endpoint.id, stopped.db.endpoint.id])


@pytest.mark.parametrize("hosts", ["noop"], indirect=True)
def test_two_agents_of_one_instance(stopped):
    """The second says who is first and touches nothing; no lock outlives its process."""
    host = stopped.host
    host.start()
    socket = host.config.socket.stat().st_ino
    before = stopped.there()
    said = (
        f"slimnet: an agent (process {host.agent.pid}) runs instance {host.instance}: stop it first"
    )
    for arguments in ((), ("--teardown",)):
        assert stopped.run(*arguments) == (2, said)
    assert host.config.socket.stat().st_ino == socket
    assert stopped.there() == before
    assert host.node().status()["ready"]
    connects(stopped.client, stopped.db)
    # Its socket is no part of that.
    host.config.socket.unlink()
    assert stopped.run("--teardown") == (2, said)
    host.kill()
    stopped.goes_on()


def begin_anew(stopped, path):
    """The store's file is moved away, with what SQLite keeps beside it."""
    for each in (stopped.cluster.store, *stopped.cluster.directory.glob("store.db-*")):
        each.rename(path / each.name)


def bring_back(stopped, path):
    for each in stopped.cluster.directory.glob("store.db*"):
        each.unlink()
    for each in path.glob("store.db*"):
        each.rename(stopped.cluster.directory / each.name)


@pytest.mark.parametrize("hosts", ["ebpf"], indirect=True)
def test_a_store_begun_anew(stopped, tmp_path):
    """It is not followed by a data path with endpoints of the store before."""
    host = stopped.host
    with SqliteStore.open(f"sqlite://{stopped.cluster.store}") as store:
        old = OwnStore(store).id
    away = tmp_path / "away"
    away.mkdir()
    begin_anew(stopped, away)
    said = (
        f"slimnet: instance {host.instance} serves endpoints of another store (cluster {old};"
        " this one is new): prod.default.db, prod.default.web: restore that store, or stop"
        " them and tear it down (slimnet agent --teardown)"
    )
    assert stopped.run() == (2, said)
    with SqliteStore.open(f"sqlite://{stopped.cluster.store}") as store:
        assert store.list("")[0] == {}  # nothing was registered
        new = OwnStore(store).id
        young = StoredCluster(store)
        young.create_network("prod", "10.77.0.0/24")
        # The old process is nobody in the new store.
        fresh, _ = young.create_endpoint({"network": "prod", "name": "web", "host": "h2"})
    assert fresh.id not in {stopped.web.endpoint.id, stopped.db.endpoint.id}
    assert stopped.run() == (2, said.replace("this one is new", f"this is {new}"))
    bring_back(stopped, away)
    stopped.goes_on()
    # Under a running agent: the data path stays, and the API says why.
    begin_anew(stopped, away)
    with SqliteStore.open(f"sqlite://{stopped.cluster.store}") as store:
        OwnStore(store)
    said = f"not that of cluster {old}: restore it"
    until(lambda: any(said in each for each in host.node().status()["trouble"]))
    with pytest.raises(ConnectionError, match=said):
        host.node().create_network("more", "10.78.0.0/24")
    with SqliteStore.open(f"sqlite://{stopped.cluster.store}") as store:
        assert [key.partition("/")[0] for key in store.list("")[0]] == ["cluster"] * 2
    assert stopped.client.talk("live")
    connects(stopped.client, stopped.db)
    bring_back(stopped, away)
    until(lambda: host.node().status()["ready"])
    connects(stopped.client, stopped.db)
    assert host.node().status()["cluster"] == old
