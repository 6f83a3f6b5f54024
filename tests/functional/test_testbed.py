# SPDX-License-Identifier: Apache-2.0
"""Testbeds come up, are completed, do not meet, and leave nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab.agents import until
from lab.paths import DATA_PATHS, WHOLE_HOSTS, require

from slimnet.exceptions import AlreadyExists, InUse, InvalidValue, NotFound, SlimnetError
from slimnet.linux import netns
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.plugins import probe
from slimnet.testbed import Testbed

pytestmark = [pytest.mark.root, pytest.mark.long(*WHOLE_HOSTS)]

NAME = f"slt-{os.getpid()}"


@pytest.fixture(params=DATA_PATHS)
def backend(request):
    require(request.param)
    return request.param


def traces(name):
    """All that a testbed of that name has on this machine."""
    found = list(netns.DIRECTORY.glob(f"slt-{name}-*"))
    found += Path("/run/slimnet").glob(f"{name}-*")
    found += Path("/run/slimnet/testbed").glob(name)
    found += (cgroup_mount() / "slimnet").glob(f"{name}-*")
    found += Path("/sys/fs/bpf/slimnet").glob(f"{name}-*")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue  # ended; a test is its parent and has not asked yet
            of_an_agent = f"/testbed/{name}/".encode() in (process / "cmdline").read_bytes()
            if of_an_agent or f"/slimnet/{name}-" in (process / "cgroup").read_text():
                found.append(process)
    return found


@pytest.fixture
def bed(backend, request):
    testbed = Testbed(f"{NAME}-{backend}", hosts=2, backend=backend)
    try:
        yield testbed
    finally:
        testbed.down()
        assert traces(testbed.name) == []


def links():
    found = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout
    return sorted(link["ifname"] for link in json.loads(found))


def test_up_again_changes_nothing(bed):
    before = links()
    bed.up()
    agents = [host.pid for host in bed.hosts]
    assert all(agents)
    with bed.hosts[0].node() as node:
        node.create_network("prod", "10.1.0.0/16")
    Testbed(bed.name, hosts=2).up()
    assert [host.pid for host in bed.hosts] == agents
    with bed.hosts[1].node() as node:
        assert [network.name for network in node.networks()] == ["prod"]
    assert links() == before


def test_every_host_has_a_namespace_an_address_and_an_agent(bed):
    """Some seconds after it was asked for: 2.5 on two idle processors."""
    begun = time.monotonic()
    bed.up()
    assert time.monotonic() - begun < 15
    own = os.stat("/proc/self/ns/net").st_ino
    inodes = {os.stat(host.netns).st_ino for host in bed.hosts}
    assert len(inodes) == 2
    assert own not in inodes
    for host in bed.hosts:
        assert os.stat(f"/proc/{host.pid}/ns/net").st_ino == os.stat(host.netns).st_ino
        with host.node() as node:
            status = node.status()
            assert status["host"] == host.name
            assert status["address"] == str(host.address)
            assert status["backend"] == bed.backend
            assert {each.name for each in node.hosts()} == {"h1", "h2"}
    with bed.hosts[0].enter():
        subprocess.run(
            ["ping", "-c1", "-W2", str(bed.hosts[1].address)], check=True, capture_output=True
        )


def test_up_completes_what_is_missing(bed):
    """An agent that was killed, a third host: what is there stays as it is."""
    bed.up()
    first, second = (host.pid for host in bed.hosts)
    bed.hosts[1].kill_agent()
    assert bed.hosts[1].pid is None
    bigger = Testbed(bed.name, hosts=3)
    bigger.up()
    assert len(bigger.hosts) == 3
    assert bigger.hosts[0].pid == first
    assert bigger.hosts[1].pid not in (None, second)
    with bigger.hosts[2].node() as node:
        until(lambda: {each.name for each in node.hosts()} == {"h1", "h2", "h3"})


def test_another_backend_or_fewer_hosts_are_refused(bed):
    bed.up()
    agents = [host.pid for host in bed.hosts]
    other = next(name for name in DATA_PATHS if name != bed.backend)
    with pytest.raises(AlreadyExists, match=f"with backend {bed.backend}"):
        Testbed(bed.name, backend=other).up()
    with pytest.raises(AlreadyExists, match="with 2 hosts"):
        Testbed(bed.name, hosts=1).up()
    assert [host.pid for host in bed.hosts] == agents


def test_down_ends_what_runs_in_endpoints_and_leaves_nothing(bed):
    """Whatever an endpoint's processes do against it."""
    bed.up()
    with bed.hosts[0].node() as node:
        node.create_network("prod", "10.1.0.0/16")
    command = [
        sys.executable, "-m", "slimnet.cli", "--agent", str(bed.hosts[0].agent), "run",
        "-n", "prod", "--name", "stubborn", "--",
        "sh", "-c", "trap '' TERM INT HUP; setsid sleep 300 & echo ready; sleep 300",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        with bed.hosts[1].node() as node:
            stays = node.attach("prod", "stays")
        outside = subprocess.Popen(["sleep", "300"])
        (stays.cgroup / "cgroup.procs").write_text(str(outside.pid))
        begun = time.monotonic()
        bed.down()
        assert time.monotonic() - begun < 10
        assert outside.wait(5) == -signal.SIGKILL
        assert traces(bed.name) == []
        process.wait(10)
    bed.down()  # once more is no error


def test_down_takes_a_testbed_whose_parts_are_missing(bed):
    bed.up()
    with bed.hosts[0].node() as node:
        node.create_network("prod", "10.1.0.0/16")
        node.attach("prod", "web")
    bed.hosts[0].kill_agent()
    netns.remove(bed.hosts[1].netns)
    bed.down()
    assert traces(bed.name) == []


def test_a_cgroup_that_the_user_named_is_cleared_of_processes_only(bed):
    """It was there before, so it stays."""
    bed.up()
    directory = cgroup_mount() / f"{bed.name}.named"
    directory.mkdir()
    try:
        with bed.hosts[0].node() as node:
            node.create_network("prod", "10.1.0.0/16")
            node.attach("prod", "web", cgroup=directory)
        inside = subprocess.Popen(["sleep", "300"])
        (directory / "cgroup.procs").write_text(str(inside.pid))
        bed.down()
        assert inside.wait(5) == -signal.SIGKILL
        assert directory.exists()
    finally:
        directory.rmdir()


def test_down_of_nothing_is_no_error():
    Testbed(f"{NAME}-never").down()
    assert traces(f"{NAME}-never") == []


def test_a_number_that_is_another_process_by_now_is_not_signalled(bed):
    """The pid file of a process that started at another time names nobody."""
    bed.up()
    bed.hosts[0].kill_agent()
    with subprocess.Popen(["sleep", "300"]) as innocent:
        bed.hosts[0].pid_file.write_text(f"{innocent.pid} 1\n")
        assert bed.hosts[0].pid is None
        bed.down()
        assert innocent.poll() is None
        innocent.kill()


def test_down_leaves_an_agent_that_is_not_its_own():
    """Its data path is not removed under it; here the testbed lost its number."""
    with Testbed(f"{NAME}-other", hosts=1, backend="noop") as testbed:
        (host,) = testbed.hosts
        pid, noted = host.pid, host.pid_file.read_text()
        host.pid_file.unlink()
        try:
            with pytest.raises(InUse, match=rf"\(process {pid}\) that is not its own runs"):
                testbed.down()
            with host.node() as node:
                assert node.status()["ready"]
        finally:
            if host.directory.exists():
                host.pid_file.write_text(noted)
            else:
                os.kill(pid, signal.SIGKILL)
    assert traces(testbed.name) == []


def test_an_agent_that_cannot_start_is_an_error_with_its_words(backend):
    testbed = Testbed(f"{NAME}-bad", backend=backend, options={"no_such_option": 1})
    with pytest.raises(SlimnetError, match="no_such_option"):
        testbed.up()
    assert traces(testbed.name) == []


def test_a_running_agent_is_unhurt_by_a_failed_up(bed):
    bed.up()
    agents = [host.pid for host in bed.hosts]
    with pytest.raises(SlimnetError, match="no_such_option"):
        Testbed(bed.name, hosts=3, options={"no_such_option": 1}).up()
    assert [host.pid for host in bed.hosts] == agents


def test_two_testbeds_do_not_meet(backend):
    """Same names, same addresses; one goes, and the other's connection goes on."""
    with (
        Testbed(f"{NAME}-one", hosts=2, backend=backend) as one,
        Testbed(f"{NAME}-two", hosts=2, backend=backend) as two,
    ):
        assert one.hosts[0].address == two.hosts[0].address
        for testbed in (one, two):
            with testbed.hosts[0].node() as node:
                node.create_network("prod", "10.1.0.0/16")
        server = cli(
            one.hosts[1], "run", "-n", "prod", "--name", "server", "--ip", "10.1.0.7", "--",
            sys.executable, "-c", ECHO,
        )  # fmt: skip
        assert server.stdout.readline() == b"listening\n"
        with two.hosts[0].node() as node, pytest.raises(NotFound):
            node.ping("server")
        client = cli(
            one.hosts[0], "run", "-n", "prod", "--name", "client", "--",
            sys.executable, "-c", TALK,
        )  # fmt: skip
        assert client.stdout.readline() == b"1\n"
        two.down()
        assert traces(two.name) == []
        client.stdin.write(b"go on\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"2\n"
        for process in (client, server):
            process.terminate()
            process.wait(10)
            process.stdin.close()
            process.stdout.close()
    assert traces(one.name) == []


ECHO = """
import socket
s = socket.socket(); s.bind(("", 7)); s.listen(); print("listening", flush=True)
c, _ = s.accept()
while data := c.recv(10): c.sendall(data)
"""
TALK = """
import socket, sys, time
for attempt in range(50):
    try:
        s = socket.create_connection(("server", 7), 5); break
    except OSError: time.sleep(0.1)
for word in (b"1", b"2"):
    s.sendall(word); print(s.recv(10).decode(), flush=True); sys.stdin.readline()
"""


def cli(host, *argv):
    return subprocess.Popen(
        [sys.executable, "-m", "slimnet.cli", "--agent", str(host.agent), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_found_again_as_it_was_made(bed):
    bed.up()
    found = Testbed.find(bed.name)
    assert found.hosts == bed.hosts
    assert found.backend == bed.backend
    assert bed.name in [each.name for each in Testbed.all()]
    with pytest.raises(NotFound, match="h3"):
        found.host("h3")
    with pytest.raises(NotFound, match=bed.name):
        Testbed.find("no-such-bed")


@pytest.mark.parametrize("name", ["", "Upper", "a" * 41, "a/b", "-a"])
def test_names_are_checked(name):
    with pytest.raises(InvalidValue, match="name"):
        Testbed(name)


def test_the_default_backend_is_one_that_works(monkeypatch):
    with Testbed(f"{NAME}-auto", hosts=1) as testbed:
        assert probe(testbed.backend)
        assert Testbed.find(testbed.name).backend == testbed.backend
    assert traces(testbed.name) == []
