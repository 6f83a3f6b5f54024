# SPDX-License-Identifier: Apache-2.0
"""A cluster's store is wiped and restored, and moves from SQLite to etcd and back, with hosts
that serve connections meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import time

import attrs
import pytest
import yaml
from servers import etcdctl

from slimnet.agent.mirror import Mirror
from slimnet.cluster.which import open_named
from slimnet.exceptions import NotFound
from slimnet.policy import compile as compile_tables
from slimnet.testbed import Testbed

pytestmark = pytest.mark.root

PATIENCE = 120
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web"},
    "spec": {
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "me"}}}]}],
    },
}


@pytest.fixture
def bed(request):
    testbed = Testbed(f"slt-arch-{os.getpid()}", hosts=2, store=request.param)
    try:
        testbed.up()
        yield testbed
    finally:
        testbed.down()


def slimnet(host, *words, status=0):
    argv = [sys.executable, "-m", "slimnet.cli", *words]
    environment = {**host.environment(), "SLIMNET_CONFIG": str(host.config), "NO_COLOR": "1"}
    with host.enter():
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr if status else done.stdout


def until(holds):
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def tables(bed):
    """What each host's tables are to be, by what the store holds; without their number."""
    found = {}
    with bed.hosts[0].enter(), open_named(str(bed.hosts[0].config)) as store:
        mirror = Mirror(store)
        mirror.catch_up()
        hosts = {each.name: each for each in mirror.hosts()}
        assert sorted(hosts) == [host.name for host in bed.hosts]
        for name, host in hosts.items():
            found[name] = attrs.evolve(compile_tables(mirror.state(host), name), generation=1)
    return found


def generations(bed):
    found = []
    for host in bed.hosts:
        with host.node() as node:
            found.append(node.status()["generation"])
    return found


def populate(bed, here, there):
    here.create_network("prod", "10.1.0.0/16")
    here.apply_policy(yaml.safe_dump(POLICY), "prod")
    there.attach("prod", "web", labels={"app": "web"})
    here.attach("prod", "me", labels={"app": "me"})
    until(lambda: settled(bed))
    assert here.ping("web", source="me")["carried"]


def settled(bed):
    with bed.hosts[0].node() as node:
        states = node.host_states()
        return all(not each.lost and not each.behind for each in states) and len(states) == 2


def wipe_keys(bed):
    with bed.hosts[0].enter():
        etcdctl(bed.etcd, "del", "slimnet/", "--prefix")


def wipe_data(bed):
    bed.etcd.kill(0)
    shutil.rmtree(bed.etcd.directory / "0")
    bed.etcd.start()


@pytest.mark.parametrize("wipe", [wipe_keys, wipe_data])
@pytest.mark.parametrize("bed", ["etcd"], indirect=True)
def test_wiped_and_restored(bed, wipe, tmp_path):
    """The data paths stay as they are, a connection is carried all the time; afterwards the
    tables are equal, both hosts live, and what changes is followed again."""
    one, two = bed.hosts
    file = str(tmp_path / "backup")
    with one.node() as here, two.node() as there:
        populate(bed, here, there)
        before, numbers = tables(bed), generations(bed)
        said = json.loads(slimnet(one, "store", "backup", file, "-o", "json"))
        assert os.stat(file).st_mode & 0o777 == 0o600
        assert said["cluster"] == here.status()["cluster"]
        wipe(bed)
        for node in (here, there):
            until(lambda node=node: "restore it" in node.status()["stale"])
        assert here.ping("web", source="me")["carried"]
        slimnet(one, "store", "restore", file)
        assert "holds cluster" in slimnet(one, "store", "restore", file, status=2)
        for node in (here, there):
            until(lambda node=node: not node.status()["stale"])
        until(lambda: settled(bed))
        assert tables(bed) == before
        assert generations(bed) == numbers, "tables were changed on the way"
        assert here.ping("web", source="me")["carried"]
        # Each by a lease of its own again: what the restore held them with may go.
        with one.enter():
            for lease in etcdctl(bed.etcd, "lease", "list").split()[3:]:
                told = json.loads(
                    etcdctl(bed.etcd, "lease", "timetolive", lease, options=["-w", "json"])
                )
                if told["granted-ttl"] == 60:
                    etcdctl(bed.etcd, "lease", "revoke", lease)
        until(lambda: settled(bed))
        here.create_network("later", "10.2.0.0/16")
        until(lambda: settled(bed))
        assert {each.name for each in there.networks()} == {"prod", "later"}


@pytest.mark.parametrize("bed", ["etcd"], indirect=True)
def test_from_etcd_to_sqlite_and_back(bed, tmp_path):
    """Agents stop, the store is copied, agents start with the other one: data paths adopted,
    endpoints there, and as much in the store in the end as in the beginning."""
    one, two = bed.hosts
    file = f"sqlite://{tmp_path}/store.db"
    with one.node() as here, two.node() as there:
        populate(bed, here, there)
        before, numbers = tables(bed), generations(bed)
        said = slimnet(one, "store", "copy", str(one.config), file, status=2)
        assert said.startswith("slimnet: hosts h1, h2 follow etcd://")
        assert not (tmp_path / "store.db").exists()
    for source, target in ((bed.etcd.url, file), (file, bed.etcd.url)):
        for host in bed.hosts:
            host.stop_agent()
        more = ["--replace"] if target != file else []
        until(lambda source=source: idle(one, source))
        slimnet(one, "store", "copy", source, target, *more)
        for host in bed.hosts:
            host.config.write_text(host.config.read_text().replace(source, target))
            host.start_agent().wait()
        until(lambda: settled(bed))
        assert tables(bed) == before
        assert [n >= old for n, old in zip(generations(bed), numbers, strict=True)] == [True] * 2
        with one.node() as here:
            assert here.ping("web", source="me")["carried"]
            assert {each.name for each in here.endpoints()} == {"web", "me"}


def idle(host, url):
    with host.enter(), open_named(url) as store:
        return not store.list("hosts/")[0]


@pytest.mark.parametrize("bed", ["sqlite"], indirect=True)
def test_what_is_refused(bed, tmp_path):
    """One line, status 2, nothing made and nothing changed."""
    (one, _), nobody = bed.hosts, f"sqlite://{tmp_path}/none.db"
    with one.enter(), open_named(str(one.config)) as store:
        before = store.list("networks/")
    own = one.config.read_text().split('store = "')[1].split('"')[0]
    for words, said in (
        (("copy", nobody, own), f"slimnet: store {nobody}: there is no such file"),
        (("copy", own, own), "slimnet: TO: wanted another store than FROM"),
        (
            ("copy", "--live", own, "etc://h:1"),
            "slimnet: store: wanted one of: etcd://, ",
        ),
        (("copy", own, "/none.toml"), "slimnet: /none.toml: wanted a readable file"),
        (("restore", "/none"), "slimnet: [Errno 2] No such file or directory: '/none'"),
        (("restore", str(one.config)), f"slimnet: {one.config}: wanted a file that `slimnet sto"),
        (("backup", "/none/file"), "slimnet: [Errno 2] No such file or directory: '/none"),
    ):
        (line,) = slimnet(one, "store", *words, status=2).splitlines()
        assert line.startswith(said), line
    assert list(tmp_path.iterdir()) == []
    with one.enter(), open_named(str(one.config)) as store:
        assert store.list("networks/")[0] == before[0]
    with pytest.raises(NotFound):
        open_named(nobody)
