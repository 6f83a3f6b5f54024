# SPDX-License-Identifier: Apache-2.0
"""An endpoint in a place that somebody else made: a cgroup, a network namespace, both."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from lab.agents import Cluster, connects, until
from lab.paths import DATA_PATHS

from slimnet import BackendError, CapabilityMissing, InvalidValue
from slimnet.agent.client import Client
from slimnet.linux import netns
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.place import Part
from slimnet.testing import Resident

pytestmark = pytest.mark.root

REFUSED = r"endpoint\.netns: wanted none \(the .* backend .*\), got "


@pytest.fixture(scope="module", params=DATA_PATHS)
def hosts(request, tmp_path_factory):
    with Cluster(request.param, tmp_path_factory.mktemp("cluster")) as cluster:
        for host in cluster.hosts:
            host.revive()
        cluster.hosts[0].node().create_network("prod", "10.77.0.0/24")
        yield cluster.hosts


@pytest.fixture
def container():
    """The network namespace and the cgroup of an engine's container."""
    name = f"slt-container-{os.getpid()}"
    path, cgroup = netns.DIRECTORY / name, cgroup_mount() / name
    netns.create(path)
    cgroup.mkdir()
    yield path, cgroup
    netns.remove(path)
    with contextlib.suppress(FileNotFoundError):
        (cgroup / "cgroup.kill").write_text("1")
        until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())
        cgroup.rmdir()


@pytest.fixture
def db(hosts):
    """A server on the other host."""
    two = hosts[1]
    with (
        two.node().attach("prod", "db") as db,
        Resident(db.cgroup, two.where.netns, db.netns, db.place.environment) as server,
    ):
        server.serve(7000)
        yield db


def devices(path):
    with netns.enter(path):
        shown = subprocess.run(["ip", "-j", "link"], check=True, capture_output=True).stdout
    return [each["ifname"] for each in json.loads(shown)]


def needs(host):
    """The parts of a place that it can use."""
    status = host.node().status()
    return {Part(each) for each in (*status["needs"], *status["takes"])}


@pytest.mark.parametrize("also_cgroup", [False, True])
def test_namespace_that_is_there(hosts, container, db, also_cgroup):
    """Whatever runs in it is the endpoint, which leaves it as it was."""
    one, _ = hosts
    path, cgroup = container
    given = {"netns": path} | ({"cgroup": cgroup} if also_cgroup else {})
    if Part.NETNS not in needs(one):
        with pytest.raises(InvalidValue, match=REFUSED):
            one.node().attach("prod", "box", **given)
        assert [each.name for each in one.node().endpoints()] == ["db"]
        assert devices(path) == ["lo"]
        return
    with one.node().attach("prod", "box", **given) as box:
        assert box.netns == path
        assert box.endpoint.netns == str(path)
        assert (box.cgroup == cgroup) is also_cgroup
        assert one.node().attach("prod", "box", netns=path).created is False
        one.node().wait()
        with Resident(cgroup if also_cgroup else None, one.where.netns, path) as client:
            assert connects(client, db).seen[0] == str(box.endpoint.address)
        with pytest.raises(InvalidValue, match="one that is not the host's own"):
            one.node().attach("prod", "host", netns=f"/proc/{one.agent.pid}/ns/net")
        with pytest.raises(BackendError, match="is endpoint .*'s"):
            one.node().attach("prod", "other", netns=path)
        if also_cgroup:
            until(lambda: "populated 0" in (cgroup / "cgroup.events").read_text())
    assert devices(path) == ["lo"]
    assert [each.name for each in one.node().endpoints()] == ["db"]


def test_the_agent_comes_back_to_a_namespace_that_is_there(hosts, container, db):
    """Adopted with its connections; and gone when its namespace is."""
    one, _ = hosts
    path, _ = container
    if Part.NETNS not in needs(one):
        with pytest.raises(InvalidValue, match=REFUSED):
            one.node().attach("prod", "box", netns=path)
        return
    box = one.node().attach("prod", "box", netns=path)
    one.node().wait()
    with Resident(None, one.where.netns, path) as client:
        client.hold("live", str(db.endpoint.address), 7000)
        one.kill()
        one.start()
        assert client.talk("live")
        assert one.node().attach("prod", "box").place == box.place
    netns.remove(path)
    until(lambda: [each.name for each in one.node().endpoints()] == ["db"])
    assert not box.cgroup.exists()


def test_by_the_command_line(hosts, container):
    one, _ = hosts
    path, cgroup = container
    program = [sys.executable, "-m", "slimnet.cli", "--agent", str(one.config.socket), "endpoint"]

    def slimnet(*arguments):
        return subprocess.run([*program, *arguments], capture_output=True, text=True)

    able = Part.NETNS in needs(one)
    done = slimnet("add", "box", "--netns", str(path), "--cgroup", str(cgroup), "-o", "json")
    assert done.returncode == (0 if able else 2)
    if able:
        said = json.loads(done.stdout)
        assert (said["netns"], said["cgroup"]) == (str(path), str(cgroup))
        assert slimnet("rm", "box").returncode == 0
    else:
        assert "endpoint.netns: wanted none (" in done.stderr
        assert done.stderr.count("\n") == 1
    done = slimnet("add", "box", "--cgroup", str(cgroup), "-o", "json")
    assert json.loads(done.stdout)["cgroup"] == str(cgroup)
    assert slimnet("rm", "box").returncode == 0
    done = slimnet("add", "box", "--netns", "/tmp")
    assert done.returncode == 2
    assert "endpoint.netns: wanted " in done.stderr


def test_a_process_in_a_given_namespace_reaches_no_agent(hosts, container):
    """In whatever cgroup it is: the namespace says that it is an endpoint's."""
    one, _ = hosts
    path, _ = container
    if Part.NETNS not in needs(one):
        with pytest.raises(InvalidValue, match=REFUSED):
            one.node().attach("prod", "box", netns=path)
        return
    with (
        one.node().attach("prod", "box", netns=path),
        netns.enter(path),
        pytest.raises(CapabilityMissing, match="no process of an endpoint"),
    ):
        Client(one.config.socket).request("GET", "status")
