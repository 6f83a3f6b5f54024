# SPDX-License-Identifier: Apache-2.0
"""Podman of Debian 13, whose networks are netavark's: containers of two hosts in one network."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time

import pytest
from attrs import evolve, field, frozen
from debian13 import PATH, inside
from lab.engines import (
    PLUGIN,
    TAKING,
    Words,
    closed,
    come_later,
    endpoints,
    joined,
    left,
    root_file_system,
    served,
    two_hosts,
)
from lab.paths import DATA_PATHS, Can, require

from slimnet.testbed.host import TestbedHost

pytestmark = [pytest.mark.root, pytest.mark.slow]

DRIVER = PLUGIN.with_name("slimnet-netavark")
NAME = f"slt-trixie{os.getpid()}"

PREPARE = """
mkdir -p var/lib/containers etc/containers usr/local/lib/netavark
mount -t tmpfs tmpfs var/lib/containers  # what overlay is mounted on is not overlay
cat >etc/containers/containers.conf <<END
[containers]
cgroups = "disabled"  # cgroup v2 has no controllers where version 1 has them
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
events_logger = "file"
END
cat >usr/local/lib/netavark/slimnet <<END
#!/bin/sh
exec chroot /machine $DRIVER "\\$@"
END
chmod 755 usr/local/lib/netavark/slimnet
"""


@frozen
class Podman(Words):
    """One host's, in a Debian of its own."""

    host: TestbedHost
    inside: int
    image: str
    environment: dict = field(factory=dict)

    def start(self, *words, **how):
        """Its podman, in the host's network."""
        command = ["nsenter", f"--target={self.inside}", "--mount", f"--net={self.host.netns}"]
        command += ["podman", "--log-level=error", *words]
        return subprocess.Popen(
            [str(each) for each in command],
            env={"PATH": PATH, "HOME": "/root", **self.environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
        )  # fmt: skip

    def run(self, *words, status=0, network=NAME):
        """A container from the root file system: its options, ``--``, its command."""
        cut = words.index("--")
        options, command = words[:cut], words[cut + 1 :]
        return self("run", "--network", network, *options, "--rootfs", self.image, *command,
                    status=status)  # fmt: skip

    def create(self, *words, status=0):
        """A network of the driver's."""
        agent = f"agent={self.host.agent}"
        return self("network", "create", "--driver=slimnet", "-o", agent, *words, status=status)

    def address(self, name):
        """That of a container, as Podman says it."""
        shown = json.loads(self("inspect", name))[0]["NetworkSettings"]["Networks"][NAME]
        return shown["IPAddress"]


@contextlib.contextmanager
def podman(host, copy, image):
    with inside(copy, PREPARE, DRIVER=str(DRIVER)) as process:
        made = Podman(host, process, f"/machine{image}")
        yield made
        made("rm", "--all", "--force", "--time=0")


@pytest.fixture(scope="module", params=TAKING)
def podmans(request, debian, tmp_path_factory):
    require(request.param)
    image = root_file_system(tmp_path_factory.mktemp("image"), "redis-server", "redis-cli")
    with two_hosts(request.param, "trixie") as hosts, contextlib.ExitStack() as undo:
        made = [
            undo.enter_context(podman(each, tmp_path_factory.mktemp(each.name), image))
            for each in hosts
        ]
        for each in made:
            each.create("-o", "network=prod", "-o", "label.app=web", NAME)
        yield tuple(made)


@pytest.fixture
def nothing_left(podmans):
    yield
    for each in podmans:
        each("rm", "--all", "--force", "--time=0")
    assert left(f"netavark-{NAME}", *(each.host for each in podmans)) == []


REDIS = ("--", "redis-server", "--protected-mode", "no")


def test_its_version(podmans):
    """That of Debian 13, with netavark, which knows the driver."""
    info = json.loads(podmans[0]("info", "--format", "json"))
    assert info["version"]["Version"].startswith("5.")
    assert info["host"]["networkBackend"] == "netavark"
    assert "slimnet" in info["plugins"]["network"]


def test_two_containers_talk(podmans, nothing_left):
    """By name; their address is Podman's too, and root in one is held by policy."""
    first, second = podmans
    first.run("-d", "--name=cache", *REDIS)
    second.run("-d", "--name=client", "--cap-add=NET_ADMIN,NET_RAW", "--", "sleep", "1000")
    ping = ("exec", "client", "redis-cli", "-h", "cache", "ping")
    assert served(second, *ping) == "PONG\n"
    (made,) = endpoints(first.host).values()
    assert (made.path, dict(made.labels)) == ("prod/default/cache", {"app": "web"})
    assert first.address("cache") == str(made.address)
    with closed(first.host):
        with second.start("exec", "client", "timeout", "2", *ping[2:]) as process:
            assert process.stdout.read() == ""
        assert process.returncode != 0
    assert served(second, *ping) == "PONG\n"


def test_its_life(podmans, nothing_left):
    """Stop, start, restart, rename, and a network that is left and joined again."""
    first, second = podmans
    first.run("-d", "--name=web", *REDIS)
    second.run("-d", "--name=client", "--", "sleep", "1000")
    ping = ("exec", "client", "redis-cli", "-h", "web.default.prod.slimnet", "ping")
    assert served(second, *ping) == "PONG\n"
    first("stop", "--time=0", "web")
    assert endpoints(first.host) == {}
    first("start", "web")
    assert served(second, *ping) == "PONG\n"
    first("network", "disconnect", NAME, "web")
    assert endpoints(first.host) == {}
    first("network", "connect", NAME, "web")
    assert served(second, *ping) == "PONG\n"
    first("rename", "web", "shop")
    first("restart", "--time=0", "shop")
    assert set(endpoints(first.host)) == {"shop"}


def test_words_of_a_container(podmans, nothing_left):
    """An address that is asked for, labels, and the resolver before all others."""
    first = podmans[0]
    words = ("-d", "--name=web", "--ip=10.1.0.77", "--", "sleep", "1000")
    first.run(*words, network=f"{NAME}:label.tier=back,label.app=shop")
    assert first.address("web") == "10.1.0.77"
    (made,) = endpoints(first.host).values()
    assert dict(made.labels) == {"app": "shop", "tier": "back"}
    resolvers = first("exec", "web", "cat", "/etc/resolv.conf")
    assert resolvers.index("nameserver 127.128.0.53\n") == resolvers.index("nameserver")


def test_published_ports(request, podmans, nothing_left):
    """Podman listens there itself by then, and conmon after it: published all the same, again and
    again, and not where the host itself listens. Where the data path does not publish it is
    refused."""
    first, second = podmans
    words = ("-d", "--name=web", "-p", "8085:6379", "-p", "8086:53/udp", *REDIS)
    if Can.PUBLISHED_PORTS not in DATA_PATHS[request.node.callspec.params["podmans"]].can:
        assert "slimnet: " in first.run(*words, status=126)
        return
    first.run(*words)
    second.run("-d", "--name=client", "--", "sleep", "1000")
    assert served(second, "exec", "client", "redis-cli", "-h", "web", "ping") == "PONG\n"
    for _ in range(2):
        for host, where in ((second.host, str(first.host.address)), (first.host, "127.0.0.1")):
            with host.enter(), socket.create_connection((where, 8085), 5) as sock:
                sock.sendall(b"PING\r\n")
                assert sock.recv(100) == b"+PONG\r\n"
        first("restart", "--time=0", "web")
        assert served(second, "exec", "client", "redis-cli", "-h", "web", "ping") == "PONG\n"
    with first.host.node() as node:
        assert {each.title for each in node.policies()} == {
            "port:default/web-8085",
            "port:default/web-8086-udp",
        }
    first("rm", "--force", "--time=0", "web")
    with first.host.enter(), socket.create_server(("127.0.0.1", 8085)):
        assert "8085" in first.run(*words, status=126)


WRONG = {
    "an address of another network": (("--ip=10.9.0.1",), "wanted an address in 10.1.0.0/16"),
    "a port of SCTP": (
        ("-p", "53:53/sctp"),
        "slimnet: port_mappings: port 53: wanted protocol tcp or udp",
    ),
    "a hardware address": (("--mac-address=aa:bb:cc:dd:aa:00",), "static_mac: wanted none"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_words(podmans, nothing_left, what):
    """Podman's own error has one line of ours; the next try works."""
    words, message = WRONG[what]
    errors = podmans[0].run("--rm", "--name=web", *words, "--", "true", status=126)
    assert message in errors
    assert left(f"netavark-{NAME}", podmans[0].host) == []
    podmans[0].run("--rm", "--", "true")


def test_wrong_networks(podmans):
    """They are not made; one that names nothing but itself is slimnet's of that name."""
    first = podmans[0]
    for words, message in (
        (("nowhere",), "slimnet: network 'nowhere': there is none; there are: prod"),
        (("--internal", "prod"), "slimnet: internal: wanted a policy that denies egress"),
        (("--subnet=10.9.0.0/16", "prod"), "a range of network prod: 10.1.0.0/16"),
        (("--ipam-driver=host-local", "prod"), "slimnet: ipam_options.driver: wanted none"),
        (("-o", "mtu=1500", "prod"), "slimnet: options: wanted network, namespace"),
    ):
        assert message in first.create(*words, status=125)
    assert first("network", "ls", "--format={{.Name}}").split() == ["podman", NAME]
    first.create("prod")
    (shown,) = json.loads(first("network", "inspect", "prod"))
    assert (shown["driver"], shown["subnets"][0]["subnet"]) == ("slimnet", "10.1.0.0/16")
    first("network", "rm", "prod")


def test_without_an_agent(podmans, nothing_left, tmp_path):
    """Refused; by configuration started without a network, and joined when the agent is back."""
    first, second = podmans
    later = evolve(first, environment=come_later(tmp_path))
    second.run("-d", "--name=client", "--", "sleep", "1000")
    first.host.kill_agent()
    try:
        began = time.monotonic()
        assert "slimnet: agent on" in first.run("--rm", "--", "true", status=126)
        assert time.monotonic() - began < 10
        later.run("-d", "--name=web", "--ip=10.1.0.66", *REDIS)
        assert first("exec", "web", "ip", "-o", "link").count("\n") == 1
    finally:
        first.host.start_agent().wait()
    assert str(joined(first.host, "web").address) == "10.1.0.66"
    assert served(second, "exec", "client", "redis-cli", "-h", "web", "ping") == "PONG\n"
