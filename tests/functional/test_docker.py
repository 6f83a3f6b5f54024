# SPDX-License-Identifier: Apache-2.0
"""Docker: containers of two hosts in one network, by Docker's own words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import field, mutable
from lab.engines import (
    SHARING,
    TAKING,
    Words,
    closed,
    come_later,
    endpoints,
    joined,
    kill_all,
    left,
    root_file_system,
    served,
    two_hosts,
)
from lab.hands import PATIENCE
from lab.paths import DATA_PATHS, Can, require

from slimnet import directories
from slimnet.agent.client import UnixConnection
from slimnet.demo.engine import CONTAINERD
from slimnet.engines.container import attachments
from slimnet.linux import netns
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.testbed.host import TestbedHost

pytestmark = pytest.mark.root

#: Docker looks here, and each of the test's has a driver of its own.
PLUGINS = Path("/run/docker/plugins")
#: Where Debian has them: a machine may have others first in its path.
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@mutable
class Docker(Words):
    """One host's, with a daemon of its own."""

    host: TestbedHost
    directory: Path
    running: dict = field(factory=dict)
    #: What the plugin has in its environment besides.
    own: dict = field(factory=dict)

    @property
    def driver(self):
        return self.host.instance

    @property
    def socket(self):
        return PLUGINS / f"{self.driver}.sock"

    @property
    def owner(self):
        """As what is written down of its containers says it."""
        return f"docker-{self.driver}"

    def files(self):
        """What the plugin made for its containers, by where it leads."""
        links = [each for each in (directories.run() / "docker").glob("*") if each.is_symlink()]
        ours = [each for each in links if str(self.directory) in os.readlink(each)]
        waiting = [netns.DIRECTORY / f"docker-{each.name[:12]}" for each in ours]
        return [str(each) for each in (*ours, *(each for each in waiting if each.exists()))]

    def remove_all(self):
        found = self("ps", "--all", "--quiet").split()
        if found:
            self("rm", "--force", *found)

    def end(self):
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.remove_all()
            self("network", "rm", "prod")
        for each in ("dockerd", "containerd", "plugin"):
            self.stop(each)
        self.socket.unlink(missing_ok=True)
        self._clear()

    def boot(self):
        """What a machine has left after a loss of power, its disks, and what starts then."""
        for each in ("dockerd", "containerd", "plugin"):
            self.stop(each, signal.SIGKILL)
        self.host.kill_agent()
        inside = [Path(os.readlink(each.netns)).stat().st_ino for each in attachments(self.owner)]
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError):
                if path.stat().st_ino in inside:
                    os.kill(int(path.parts[2]), signal.SIGKILL)
        self._clear()
        for each in ("x", "cs", "c.sock", "d.sock", "pid"):
            subprocess.run(["rm", "-rf", self.directory / each], check=True)
        for each in self.files():
            if Path(each).parent == netns.DIRECTORY:
                netns.remove(Path(each))
            else:
                Path(each).unlink()
        for each in attachments(self.owner):
            each.file.unlink()
        teardown = ("agent", "--config", self.host.config, "--teardown", "--force")
        with self.host.enter():
            subprocess.run([sys.executable, "-m", "slimnet.cli", *teardown], check=True)
        self.host.start_agent().wait()
        self.start_plugin()
        self.start_containerd()
        self.start_daemon()

    def _clear(self):
        """What a killed daemon has left: shims of containerd, and mounts."""
        kill_all(self.directory)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for each in reversed(mounts):
            if each.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", each], check=True)

    def _begin(self, what, *words):
        log = (self.directory / f"{what}.log").open("a")
        environment = {"PATH": PATH, "HOME": str(self.directory), **self.own}
        self.running[what] = subprocess.Popen(
            ["nsenter", f"--net={self.host.netns}", *map(str, words)],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def start_plugin(self, agent=None):
        self._begin(
            "plugin", sys.executable, "-m", "slimnet.cli", "--agent", agent or self.host.agent,
            "docker-plugin", "--socket", self.socket, "--docker", self.directory / "d.sock",
        )  # fmt: skip
        self._until(self.socket.exists, "plugin")

    def start_containerd(self):
        """Apart, as Debian has it: what runs goes on when dockerd is killed."""
        where = self.directory
        (where / "containerd.toml").write_text(CONTAINERD.format(where=where))
        self._begin("containerd", "containerd", "--config", where / "containerd.toml")
        self._until((where / "c.sock").exists, "containerd")

    def start_daemon(self):
        where = self.directory
        (where / "none.json").write_text("{}")  # not the machine's
        self._begin(
            "dockerd", "dockerd", "--config-file", where / "none.json", "--data-root", where / "d",
            "--exec-root", where / "x", "--pidfile", where / "pid", "--host",
            f"unix://{where}/d.sock", "--containerd", where / "c.sock", "--bridge=none",
            "--iptables=false", "--ip-forward=false",
            "--storage-driver=vfs", "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--oom-score-adjust=0", "--shutdown-timeout=3", "--dns=127.128.0.53",
            "--dns-search=default.prod.slimnet",
        )  # fmt: skip
        self._until(lambda: self.start("version").wait() == 0, "dockerd")

    def _until(self, what, name):
        until = time.monotonic() + 60 * PATIENCE
        while not what():
            log = (self.directory / f"{name}.log").read_text()
            assert time.monotonic() < until, log
            assert self.running[name].poll() is None, log
            time.sleep(0.1)

    def stop(self, what, number=signal.SIGTERM):
        process = self.running.pop(what, None)
        if process is not None:
            process.send_signal(number)
            process.wait(30)

    def start(self, *words):
        """Of the machine's docker, against this daemon."""
        command = [shutil.which("docker", path=PATH), "--host", f"unix://{self.directory}/d.sock"]
        environment = {"PATH": PATH, "HOME": str(self.directory)}
        return subprocess.Popen(
            [*command, *map(str, words)], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *words, status=0):
        """A container from the image: options, ``--``, its command."""
        cut = words.index("--")
        options, command = words[:cut], words[cut + 1 :]
        return self("run", "--network", "prod", *options, "test", *command, status=status)


@pytest.fixture(scope="module", params=TAKING)
def dockers(request) -> Iterator[tuple[Docker, Docker]]:
    require(request.param)
    if shutil.which("dockerd", path=PATH) is None:
        pytest.skip("needs docker.io: run testbed/setup")
    # Short: Docker's sockets have to fit into sun_path (unix(7)).
    with contextlib.ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="slt-dk-")))
        (directory / "image").mkdir()
        root_file_system(directory / "image", "redis-server", "redis-cli")
        image = directory / "image.tar"
        subprocess.run(["tar", "-C", directory / "image", "-cf", image, "."], check=True)
        hosts = undo.enter_context(two_hosts(request.param, "dk"))
        made = []
        for host in hosts:
            (directory / host.name).mkdir()
            made.append(Docker(host, directory / host.name))
            undo.callback(made[-1].end)
            made[-1].start_plugin()
            made[-1].start_containerd()
        for docker in made:
            docker.start_daemon()
            docker("import", image, "test")
            driver = ("-d", docker.driver, "--ipam-driver", docker.driver)
            docker("network", "create", *driver, "--subnet", "10.1.0.0/16", "prod")
        made[1].run("-d", "--name=client", "--cap-add=NET_ADMIN", "--", "sleep", "1000")
        yield tuple(made)


@pytest.fixture
def nothing_left(dockers):
    yield
    docker = dockers[0]
    docker.remove_all()
    until = time.monotonic() + 40  # what Docker forgot is asked for after 20
    while found := left(docker.owner, docker.host) + docker.files():
        assert time.monotonic() < until, found
        time.sleep(0.1)


REDIS = ("redis-server", "--protected-mode", "no", "--save", "")
PING = ("exec", "client", "redis-cli", "-h", "web", "ping")


def test_real_programs_on_two_hosts(dockers, nothing_left):
    """By name, from the first packet of a container on; by Docker's own words."""
    first, second = dockers
    first.run("-d", "--name=web", "--label=app=web", "--label=title=a text", "--", *REDIS)
    assert second.run("--rm", "--", "redis-cli", "-h", "web", "ping") == "PONG\n"
    assert served(second, *PING) == "PONG\n"
    there = endpoints(first.host)["web"]
    assert dict(there.labels) == {"app": "web"}
    (shown,) = json.loads(first("inspect", "web"))
    assert shown["NetworkSettings"]["Networks"]["prod"]["IPAddress"] == str(there.address)
    answer = first("exec", "web", "nslookup", "client.default.prod.slimnet")
    assert str(endpoints(second.host)["client"].address) in answer


@pytest.mark.parametrize("dockers", SHARING, indirect=True)
def test_in_the_hosts_network_namespace(dockers, nothing_left):
    """Docker tells its plugins nothing of ``--network host``: the endpoint is there before, and
    the container's cgroup below that of the endpoint."""
    first, second = dockers
    parent = cgroup_mount() / f"slt-dk{os.getpid()}"
    parent.mkdir()
    try:
        with first.host.node() as node:
            closes = "closed" in node.status()["takes"]
            labels = {"app": "web"}
            node.attach("prod", "plain", labels=labels, cgroup=parent, closed=closes)
            where = ("--network=host", f"--cgroup-parent=/{parent.name}")
            first("run", "-d", "--name=plain", *where, "test", *REDIS)
            ping = ("exec", "client", "redis-cli", "-h", "plain", "ping")
            assert served(second, *ping) == "PONG\n"
            pid = first("inspect", "--format={{.State.Pid}}", "plain").strip()
            assert Path(f"/proc/{pid}/ns/net").samefile(first.host.netns)
            with closed(first.host):
                second(*ping, status=1)
            assert second(*ping) == "PONG\n"
            first("rm", "--force", "plain")
            node.detach("prod", "plain")
    finally:
        first.remove_all()
        parent.rmdir()


def test_policy_holds(dockers, nothing_left):
    """Also for root in the container with every network capability."""
    first, second = dockers
    first.run("-d", "--name=web", "--label=app=web", "--", *REDIS)
    assert served(second, *PING) == "PONG\n"
    with closed(first.host):
        second("exec", "client", "ip", "address", "add", "10.1.0.99/32", "dev", "eth0")
        command = ("timeout", "2", "redis-cli", "-h", "web", "ping")
        with second.start("exec", "client", *command) as process:
            assert process.stdout.read() == ""
        assert process.returncode != 0
    assert second(*PING) == "PONG\n"


def test_its_life(dockers, nothing_left):
    """Stop, start, restart, pause, exec, rename, and a network that is left and joined again:
    what runs has its address and name, what does not has none."""
    docker, other = dockers
    docker.run("-d", "--name=web", "--", *REDIS)
    docker("stop", "--time=0", "web")
    assert endpoints(docker.host) == {}
    docker("start", "web")
    assert served(other, *PING) == "PONG\n"
    docker("pause", "web")
    docker("unpause", "web")
    assert other(*PING) == "PONG\n"
    docker("network", "disconnect", "prod", "web")
    assert endpoints(docker.host) == {}
    docker("network", "connect", "--ip=10.1.0.77", "prod", "web")
    assert "10.1.0.77/32" in docker("exec", "web", "ip", "-o", "-4", "address")
    assert other(*PING) == "PONG\n"
    assert "client.default" in docker("exec", "web", "nslookup", "client.default.prod.slimnet")
    docker("rename", "web", "shop")
    assert set(endpoints(docker.host)) == {"web"}
    docker("restart", "--time=0", "shop")
    assert set(endpoints(docker.host)) == {"shop"}


def test_published_port(request, dockers, nothing_left):
    """Where the data path publishes; elsewhere it is refused, in Docker's own words."""
    docker, other = dockers
    words = ("-d", "--name=web", "-p", "8080:6379")
    if Can.PUBLISHED_PORTS not in DATA_PATHS[request.node.callspec.params["dockers"]].can:
        assert "slimnet: " in docker.run(*words, "--", *REDIS, status=125)
        assert endpoints(docker.host) == {}
        return
    docker.run(*words, "--", *REDIS)
    assert served(other, *PING) == "PONG\n"  # it listens
    with other.host.enter(), socket.create_connection((str(docker.host.address), 8080), 5) as sock:
        sock.sendall(b"PING\r\n")
        assert sock.recv(100) == b"+PONG\r\n"
    docker("stop", "--time=0", "web")
    with docker.host.node() as node:
        assert node.policies() == []


def test_killed_agent_plugin_and_daemon(dockers, nothing_left):
    """What ran goes on without them, what went meanwhile is let go of, and the next try works."""
    docker, other = dockers
    docker.run("-d", "--name=web", "--", *REDIS)
    docker.host.kill_agent()
    assert served(other, *PING) == "PONG\n"
    docker.host.start_agent().wait()
    assert "client.default" in docker("exec", "web", "nslookup", "client.default.prod.slimnet")
    docker.stop("plugin", signal.SIGKILL)
    assert other(*PING) == "PONG\n"
    with docker.start("stop", "--time=0", "web") as stopping:
        docker.start_plugin()
        assert stopping.wait() == 0
    docker("start", "web")
    docker.stop("dockerd", signal.SIGKILL)
    assert served(other, *PING) == "PONG\n"
    docker.start_daemon()
    with docker.start("run", "-d", "--network=prod", "--name=half", "test", "sleep", "1000"):
        time.sleep(0.5)
        docker.stop("dockerd", signal.SIGKILL)
    docker.start_daemon()
    docker("start", "web")
    assert served(other, *PING) == "PONG\n"


@pytest.mark.long("noop")
def test_the_machine_starts_again(request, dockers, nothing_left):
    """A container that Docker starts by itself is who it was, by its labels and ports too, though
    Docker says so late; one that it does not start is nobody."""
    docker, other = dockers
    words = ["-d", "--name=web", "--label=app=web", "--restart=always"]
    if Can.PUBLISHED_PORTS in DATA_PATHS[request.node.callspec.params["dockers"]].can:
        words.append("-p=8080:6379")
    docker.run(*words, "--", *REDIS)
    docker.run("-d", "--name=once", "--", "sleep", "1000")
    assert served(other, *PING) == "PONG\n"
    docker.boot()
    until = time.monotonic() + 60 * PATIENCE
    while set(endpoints(docker.host)) != {"web"}:
        assert time.monotonic() < until, (docker.directory / "plugin.log").read_text()[-3000:]
        time.sleep(0.2)
    assert served(other, *PING) == "PONG\n"
    assert endpoints(docker.host)["web"].labels == {"app": "web"}
    with docker.host.node() as node:
        assert len(node.policies()) == words.count("-p=8080:6379")
    docker("start", "once")
    assert set(endpoints(docker.host)) == {"web", "once"}


@pytest.mark.long(*TAKING)
def test_many(dockers, nothing_left):
    """200 up and down, one after the other; then 50 at once."""
    docker = dockers[0]
    for number in range(200):
        docker.run("--rm", f"--name=c{number}", "--", "true")
    assert endpoints(docker.host) == {}
    starting = [
        docker.start("run", "-d", "--network=prod", f"--name=c{number}", "test", "sleep", "1000")
        for number in range(50)
    ]
    for number, each in enumerate(starting):
        _, errors = each.communicate(timeout=300 * PATIENCE)
        if each.returncode:  # a busy machine: the agent has eight seconds for those before it
            assert "no answer in 8 s" in errors
            docker("rm", "--force", f"c{number}")
            docker.run("-d", f"--name=c{number}", "--", "sleep", "1000")
    assert len({each.address for each in endpoints(docker.host).values()}) == 50
    docker.remove_all()
    assert endpoints(docker.host) == {}


def test_an_end_that_nobody_tells(dockers, nothing_left):
    """Neither plugin nor Docker are there when a container's namespace goes."""
    docker = dockers[0]
    docker.run("-d", "--name=web", "--", *REDIS)
    (there,) = attachments(docker.owner)
    sandbox = Path(os.readlink(there.netns))
    docker.stop("plugin", signal.SIGKILL)
    docker.stop("dockerd", signal.SIGKILL)
    try:
        netns.remove(sandbox)
        until = time.monotonic() + 20 * PATIENCE
        while endpoints(docker.host):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert list(attachments(docker.owner)) == [there]
    finally:
        docker.start_plugin()
        docker.start_daemon()


WRONG = {
    "an address that is taken": (("--ip={client}",), "address {client} is that of endpoint"),
    "an address outside": (("--ip=10.9.0.1",), "10.9.0.1"),
    "a port of SCTP": (
        ("-p", "53:53/sctp"),
        "publish: port 53: wanted protocol tcp or udp, got 'sctp'",
    ),
    "any port": (("-p", "80"), "publish: port 80: wanted one port of the host"),
    "hardware address": (("--mac-address=02:42:0a:01:00:05",), "mac-address: wanted none"),
    "its namespace": (("--label=slimnet.io/namespace=A_B",), "namespace"),
    "no such program": ((), "executable file not found"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_words(dockers, nothing_left, what):
    """Docker's own error has one line that names the field, and nothing is left."""
    options, message = WRONG[what]
    client = endpoints(dockers[1].host)["client"].address
    words = [each.format(client=client) for each in options]
    program, status = ("nosuch", 127) if not options else ("true", 125)
    errors = dockers[0].run("--rm", *words, "--", program, status=status)
    assert message.format(client=client) in errors
    assert left(dockers[0].owner, dockers[0].host) == []


NETWORKS = {
    "network": (("--ipam-opt=network=nowhere",), "network 'nowhere': there is none"),
    "option": (("-o", "mtu=1400"), "opt mtu: wanted none"),
    "option of IPAM": (("--ipam-opt=x=y",), "ipam-opt x: wanted network alone"),
    "range": (("--subnet=10.77.0.0/16",), "subnet: wanted a network's range: 10.1.0.0/16"),
    "part of a range": (("--subnet=10.1.0.0/16", "--ip-range=10.1.1.0/24"), "ip-range: "),
    "gateway": (("--subnet=10.1.0.0/16", "--gateway=10.1.0.1"), "gateway: wanted none"),
    "reserved": (("--subnet=10.1.0.0/16", "--aux-address=x=10.1.0.9"), "aux-address: "),
    "IPv6": (("--ipv6", "--subnet=fd00::/64"), "ipv6: wanted IPv4 only"),
    "internal": (("--internal",), "internal: wanted a policy"),
}


@pytest.mark.parametrize("what", NETWORKS)
def test_wrong_networks(dockers, what):
    docker = dockers[0]
    options, message = NETWORKS[what]
    driver = ("-d", docker.driver, "--ipam-driver", docker.driver)
    assert message in docker("network", "create", *driver, *options, "bad", status=1)
    assert "bad" not in docker("network", "ls")


def test_docker_may_not_give_addresses(dockers):
    """Two hosts would give the same one."""
    errors = dockers[0]("network", "create", "-d", dockers[0].driver, "bad", status=1)
    assert "ipam-driver: wanted slimnet's" in errors


def test_without_an_agent(dockers, nothing_left):
    """One line, and the next try works; an end needs no agent."""
    docker = dockers[0]
    docker.run("-d", "--name=web", "--", *REDIS)
    docker.host.kill_agent()
    began = time.monotonic()
    try:
        assert "slimnet: agent on" in docker.run("--rm", "--", "true", status=125)
        assert time.monotonic() - began < 10
        docker("rm", "--force", "web")
    finally:
        docker.host.start_agent().wait()
    docker.run("--rm", "--", "true")


@pytest.mark.parametrize("dockers", TAKING[:1], indirect=True)
def test_later_without_an_agent(dockers, nothing_left, tmp_path):
    """By configuration a container starts on a device that leads nowhere, and joins when the agent
    is back; with another address than Docker shows where somebody took that one meanwhile. So does
    one that a Docker starts by itself which was started anew."""
    docker, other = dockers
    docker.stop("plugin")
    docker.own = come_later(tmp_path)
    docker.start_plugin()
    docker.host.kill_agent()
    try:
        docker.run("-d", "--name=web", "--label=app=web", "--restart=always", "--", *REDIS)
        shown = "--format={{(index .NetworkSettings.Networks.prod).IPAddress}}"
        ping = ("exec", "web", "ping", "-c1", "-W1", str(docker.host.address))
        docker(*ping, status=1)
        docker.run("-d", "--name=gone", "--", "sleep", "1000")
        docker("rm", "--force", "gone")
        docker.stop("dockerd")
        docker.start_daemon()
        assert docker("ps", "--format={{.Names}}") == "web\n"
        docker.run("-d", "--name=fixed", "--ip=10.1.0.99", "--", "sleep", "1000")
        address = docker("inspect", shown, "web").strip()
        with other.host.node() as node:
            node.attach("prod", "thief", address=address)
    finally:
        docker.host.start_agent().wait()
        docker.own = {}
    there = joined(docker.host, "web")
    assert dict(there.labels) == {"app": "web"}
    assert served(other, *PING) == "PONG\n"
    assert "client.default" in docker("exec", "web", "nslookup", "client.default.prod.slimnet")
    assert str(there.address) != address
    assert "another address than Docker shows" in (docker.directory / "plugin.log").read_text()
    assert str(joined(docker.host, "fixed").address) == "10.1.0.99"
    assert set(endpoints(docker.host)) == {"web", "fixed"}
    with other.host.node() as node:
        node.detach("prod", "thief")
    docker.stop("plugin")
    docker.start_plugin()


def test_an_agent_that_hangs(tmp_path):
    """Docker has its answer within 10 s."""
    where = tmp_path / "driver.sock"
    command = [sys.executable, "-m", "slimnet.cli", "--agent", tmp_path / "agent.sock"]
    with (
        socket.socket(socket.AF_UNIX) as sock,
        subprocess.Popen([*command, "docker-plugin", "--socket", where]) as plugin,
    ):
        try:
            sock.bind(str(tmp_path / "agent.sock"))
            sock.listen()
            while not where.exists():
                assert plugin.poll() is None
                time.sleep(0.05)
            began = time.monotonic()
            connection = UnixConnection(where, 20)
            connection.request("POST", "/IpamDriver.RequestPool", "{}")
            answer = json.loads(connection.getresponse().read())
            assert "no answer in 8 s" in answer["Error"]
            assert time.monotonic() - began < 10
        finally:
            plugin.terminate()
    assert not where.exists()
