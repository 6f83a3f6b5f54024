# SPDX-License-Identifier: Apache-2.0
"""containerd: containers of two hosts in one network, by its client ``ctr``, in a chain of
plugins."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from attrs import evolve, field, frozen
from lab.agents import until
from lab.engines import (
    ONE,
    PLUGIN,
    TAKING,
    closed,
    come_later,
    endpoints,
    joined,
    left,
    root_file_system,
    two_hosts,
)
from lab.hands import PATIENCE
from lab.paths import require

from slimnet.testbed.host import TestbedHost

pytestmark = pytest.mark.root

NAME = f"slt-ctd{os.getpid()}"
IMAGE = "slimnet.test/busybox:1"
#: Where ctr looks, and cannot be told otherwise.
NETWORKS, PLUGINS, CACHE = "/etc/cni/net.d", Path("/usr/lib/cni"), "/var/lib/cni"
CONFIG = """
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/sock"
"""
#: A client of containerd's writes no container's; the resolver is at one address in all.
RESOLV_CONF = "nameserver 127.128.0.53\nsearch default.prod.slimnet\noptions ndots:2\n"


@frozen
class Ctr:
    """One host's containers."""

    host: TestbedHost
    socket: Path
    directory: Path
    #: Of ``ctr``, which runs the plugins itself.
    environment: dict = field(factory=dict)

    def start(self, *words):
        """In the host's network, with CNI's directories its own."""
        script = ["set -e", "mkdir -p /var/lib/cni"]
        for name, place in (("net.d", NETWORKS), ("bin", PLUGINS), ("cache", CACHE)):
            script.append(f"mount --bind {self.directory / name} {place}")
        script.append('exec ctr "$@"')
        return subprocess.Popen(
            [
                *("nsenter", f"--net={self.host.netns}", "unshare", "--mount", "sh", "-c"),
                *("\n".join(script), "ctr", "--address", self.socket, *map(str, words)),
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | self.environment,
        )  # fmt: skip

    def __call__(self, *words, status=0):
        with self.start(*words) as process:
            output, errors = process.communicate(timeout=60 * PATIENCE)
        assert status in (None, process.returncode), (words, output, errors)
        return output if process.returncode == 0 else errors

    def configure(self, network="prod", agent=None, *, tuned=True):
        """A chain: the loopback device before ours, its neighbours' settings behind it, which
        need our device."""
        own = {"type": "slimnet-cni", "network": network, "agent": str(agent or self.host.agent)}
        own["labels"] = {"app": "web"}
        behind = {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}
        chain = [{"type": "loopback"}, own, *([behind] if tuned else [])]
        listed = {"cniVersion": "1.0.0", "name": NAME, "plugins": chain}
        (self.directory / "net.d/prod.conflist").write_text(json.dumps(listed))

    def words(self, name, *command):
        mount = f"type=bind,src={self.directory / 'resolv.conf'},dst=/etc/resolv.conf"
        return (
            *("run", "--rm", "--cni", "--snapshotter", "native"),
            *("--mount", f"{mount},options=rbind:ro", IMAGE, name, *command),
        )

    @contextlib.contextmanager
    def running(self, name, *command):
        """A container, for as long as the block lasts."""
        with self.start(*self.words(name, *command)) as process:
            try:
                deadline = time.monotonic() + 20 * PATIENCE
                while f"default-{name}" not in endpoints(self.host):
                    assert process.poll() is None, process.communicate()
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                yield
            finally:
                self("task", "kill", "-s", "KILL", name)
                process.communicate(timeout=30 * PATIENCE)


def archive(root, file):
    """A root file system as an image, in the format of ``docker save``."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as whole:
        whole.add(root, arcname=".")
    digest = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = {"architecture": machine, "os": "linux", "config": {}}
    config["rootfs"] = {"type": "layers", "diff_ids": [digest]}
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(file, "w") as whole:
        for name, data in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            whole.addfile(entry, io.BytesIO(data))
    return file


@pytest.fixture(scope="module")
def containerd(tmp_path_factory):
    """The socket of one of the tests' own."""
    if shutil.which("containerd") is None:
        pytest.skip("needs containerd: run testbed/setup")
    directory = tmp_path_factory.mktemp("containerd")
    (directory / "config.toml").write_text(CONFIG.format(directory))
    image = archive(root_file_system(directory / "image"), directory / "image.tar")

    def client(*words):
        command = ["ctr", "--address", directory / "sock", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60 * PATIENCE)

    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(
            ["containerd", "-c", directory / "config.toml"], stdout=log, stderr=log
        ) as daemon,
    ):
        try:
            # Its socket is there before it listens, and ctr waits for the socket only.
            until(lambda: client("version").returncode == 0 or daemon.poll() is not None, 60)
            made = client("image", "import", "--snapshotter", "native", image)
            assert made.returncode == 0, (made.stderr, (directory / "log").read_text())
            yield directory / "sock"
        finally:
            daemon.terminate()


@pytest.fixture(scope="module", params=TAKING)
def hosts(request, containerd, tmp_path_factory):
    require(request.param)
    with two_hosts(request.param, "ctd") as hosts:
        made = []
        for host in hosts:
            directory = tmp_path_factory.mktemp(host.name)
            for each in ("net.d", "bin", "cache"):
                (directory / each).mkdir()
            for each in ("loopback", "tuning"):
                shutil.copy(PLUGINS / each, directory / "bin")
            (directory / "bin/slimnet-cni").symlink_to(PLUGIN)
            (directory / "resolv.conf").write_text(RESOLV_CONF)
            made.append(Ctr(host, containerd, directory))
        yield made


@pytest.fixture(autouse=True)
def nothing_left(hosts):
    for each in hosts:
        each.configure()
    yield
    remove(hosts[0])
    assert left(f"cni-{NAME}", *(each.host for each in hosts)) == []


def remove(ctr):
    """Every container, of both hosts."""
    for name in ctr("container", "ls", "--quiet").split():
        ctr("task", "rm", "--force", name, status=None)
        ctr("container", "rm", name)


def test_two_containers_talk(hosts):
    """By name, on two hosts; what the plugins before and behind ours make is there, too."""
    first, second = hosts
    with first.running("web", "httpd", "-f", "-p", "80", "-h", "/etc"):
        (found,) = endpoints(first.host).values()
        assert (found.name, dict(found.labels)) == ("default-web", {"app": "web"})
        for url in (f"http://{found.address}/passwd", "http://default-web/passwd"):
            said = second(*second.words("client", "timeout", "5", "wget", "-qO-", url))
            assert said == "root:x:0:0::/:/bin/sh\n"
        script = "cat /proc/sys/net/ipv4/conf/eth0/arp_filter; ip -o address show"
        said = first("task", "exec", "--exec-id", "look", "web", "sh", "-c", script)
        assert said.startswith("1\n")
        assert "inet 127.0.0.1/8" in said
        assert f"inet {found.address}/32" in said
        with closed(first.host):
            script = f"! timeout 2 wget -qO- http://{found.address}/passwd"
            assert second(*second.words("client", "sh", "-c", script)) == ""


def test_one_that_goes_without_a_word(hosts):
    """``ctr run --detach`` never deletes: the endpoint goes with its namespace. One of that
    name that comes later has all that is written down."""
    first = hosts[0]
    run, *words = first.words("web", "sleep", "1000")
    words.remove("--rm")
    for _ in range(2):
        first(run, "--detach", *words)
        assert set(endpoints(first.host)) == {"default-web"}
        remove(first)
        until(lambda: not endpoints(first.host), 20)
    first(*first.words("web", "true"))


@ONE
def test_later_without_an_agent(hosts, tmp_path):
    """By configuration a container starts while the agent is down, and is an endpoint when it is
    back."""
    first, second = hosts
    first.configure(tuned=False)
    later = evolve(first, environment=come_later(tmp_path))
    run, *words = first.words("web", "httpd", "-f", "-p", "80", "-h", "/etc")
    words.remove("--rm")
    look = ("task", "exec", "--exec-id", "look", "web", "ip", "-o", "address")
    first.host.kill_agent()
    try:
        later(run, "--detach", *words)
        assert "eth0" not in first(*look)
    finally:
        first.host.start_agent().wait()
    address = joined(first.host, "default-web").address
    # It is written down before it has a device.
    until(lambda: f"inet {address}/32" in first(*look), 20)
    url = "http://default-web/passwd"
    said = second(*second.words("client", "timeout", "5", "wget", "-qO-", url))
    assert said == "root:x:0:0::/:/bin/sh\n"
    remove(first)
    until(lambda: not endpoints(first.host), 20)
    first(*first.words("web", "true"))  # and is deleted, with what is written down of both


@ONE
def test_wrong_words(hosts, tmp_path):
    """containerd's own error has one line of ours; the next try works."""
    first = hosts[0]
    for change, message in (
        ({"network": "nowhere"}, "slimnet: network 'nowhere'"),
        ({"agent": tmp_path / "none"}, "slimnet: no agent on"),
    ):
        first.configure(**change)
        errors = first(*first.words("web", "true"), status=1)
        line = errors.splitlines()[-1]  # it asked the plugin to undo it, too
        assert line.startswith('ctr: plugin type="slimnet-cni" failed (add): ')
        assert message in line
        remove(first)
    first.configure()
    first(*first.words("web", "true"))
