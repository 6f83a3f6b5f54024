# SPDX-License-Identifier: Apache-2.0
"""Podman: containers of two hosts in one network, by Podman's own words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from lab.engines import (
    TAKING,
    ask,
    closed,
    come_later,
    endpoints,
    joined,
    left,
    root_file_system,
    served,
    two_hosts,
)
from lab.paths import require
from lab.podman import Podman

from slimnet.engines.container import attachments
from slimnet.linux import netns

pytestmark = pytest.mark.root

NAME = f"slt-pod{os.getpid()}"


@pytest.fixture(scope="module", params=TAKING)
def podmans(request, tmp_path_factory) -> Iterator[tuple[Podman, Podman]]:
    require(request.param)
    if shutil.which("podman") is None:
        pytest.skip("needs podman: run testbed/setup")
    programs = ("memcached", "redis-server", "redis-cli")
    image = root_file_system(tmp_path_factory.mktemp("image"), *programs)
    with two_hosts(request.param, "pod") as hosts, contextlib.ExitStack() as undo:
        made = []
        for host in hosts:
            made.append(Podman.on(host, tmp_path_factory.mktemp(host.name), image, NAME))
            undo.callback(made[-1].end)
            directory = made[-1].directory
            plugin = {"type": "slimnet-cni", "network": "prod", "agent": str(host.agent)}
            plugin |= {"labels": {"app": "web"}, "capabilities": {"ips": True}}
            plugin["capabilities"]["portMappings"] = True
            network = {"cniVersion": "0.4.0", "name": NAME, "plugins": [plugin]}
            (directory / "net.d" / f"{NAME}.conflist").write_text(json.dumps(network))
        yield tuple(made)


@pytest.fixture
def nothing_left(podmans):
    yield
    for podman in podmans:
        podman("rm", "--all", "--force", "--time=0")
    assert left(f"cni-{NAME}", *(each.host for each in podmans)) == []


def test_real_programs_on_two_hosts(podmans, nothing_left):
    """Redis and memcached on one host, their clients on the other, by name."""
    first, second = podmans
    first.run("-d", "--name=cache", "--", "redis-server", "--protected-mode", "no")
    first.run("-d", "--name=mem", "--", "memcached", "-u", "root")
    second.run("-d", "--name=client", "--", "sleep", "1000")
    assert served(second, "exec", "client", "redis-cli", "-h", "cache", "ping") == "PONG\n"
    stats = "printf 'version\\r\\nquit\\r\\n' | nc mem.default.prod.slimnet 11211"
    assert served(second, "exec", "client", "sh", "-c", stats).startswith("VERSION 1.")
    with first.host.node() as node:
        found = {each.name: each for each in node.endpoints()}
        assert set(found) == {"cache", "mem", "client"}
        assert {each.labels["app"] for each in found.values()} == {"web"}
    shown = json.loads(first("inspect", "cache"))[0]["NetworkSettings"]["Networks"][NAME]
    assert shown["IPAddress"] == str(found["cache"].address)


def test_policy_holds(podmans, nothing_left):
    """Also for root in the container with every network capability."""
    first, second = podmans
    first.run("-d", "--name=cache", "--", "redis-server", "--protected-mode", "no")
    second.run("-d", "--name=client", "--cap-add=NET_ADMIN,NET_RAW", "--", "sleep", "1000")
    assert served(second, "exec", "client", "redis-cli", "-h", "cache", "ping") == "PONG\n"
    with closed(first.host):
        with second.start(
            *("exec", "client", "timeout", "2", "redis-cli", "-h", "cache", "ping")
        ) as process:
            assert process.stdout.read() == ""
        assert process.returncode != 0
    assert served(second, "exec", "client", "redis-cli", "-h", "cache", "ping") == "PONG\n"


def test_its_life(podmans, nothing_left):
    """Stop, start, restart, pause, exec, rename, and a network that is left and joined again:
    what runs has its address and name, what does not has none."""
    podman, other = podmans
    host = podman.host
    other.run("-d", "--name=client", "--", "sleep", "1000")

    podman.run("-d", "--name=web", "--", "redis-server", "--protected-mode", "no")
    ping = ("exec", "client", "redis-cli", "-h", "web.default.prod.slimnet", "ping")
    assert served(other, *ping) == "PONG\n"
    podman("stop", "--time=0", "web")
    assert endpoints(host) == {}
    podman("start", "web")
    assert served(other, *ping) == "PONG\n"
    podman("restart", "--time=0", "web")
    assert served(other, *ping) == "PONG\n"
    podman("pause", "web")
    podman("unpause", "web")
    assert served(other, *ping) == "PONG\n"
    assert "10.1.0." in podman("exec", "web", "ip", "-o", "-4", "address", "show", "eth0")
    podman("network", "disconnect", NAME, "web")
    assert endpoints(host) == {}
    podman("network", "connect", NAME, "web")
    assert served(other, *ping) == "PONG\n"
    podman("rename", "web", "shop")
    assert set(endpoints(host)) == {"web"}
    podman("restart", "--time=0", "shop")
    assert set(endpoints(host)) == {"shop"}


def test_killed_engine_and_agent(podmans, nothing_left):
    """What ran goes on without either, and is let go of when it went."""
    podman, other = podmans
    podman.run("-d", "--name=web", "--", "redis-server", "--protected-mode", "no")
    other.run("-d", "--name=client", "--", "sleep", "1000")
    ping = ("exec", "client", "redis-cli", "-h", "web", "ping")
    assert served(other, *ping) == "PONG\n"
    podman.host.kill_agent()
    assert other(*ping) == "PONG\n"
    podman.host.start_agent().wait()
    assert served(other, *ping) == "PONG\n"
    for delay in (0.1, 0.4, 0.8):
        with podman.start(
            *("run", "-d", "--network", NAME, "--name=half", "--rootfs", podman.image),
            *("sleep", "1000"),
            start_new_session=True,
        ) as engine:
            begun = time.time()
            time.sleep(delay)
            os.killpg(engine.pid, signal.SIGKILL)
        ended = time.time()
        served(podman, "rm", "--force", "--time=0", "--ignore", "half")
        collect(podman)
        for path in abandoned(begun, ended):
            netns.remove(path)
    assert served(other, *ping) == "PONG\n"


def abandoned(begun, ended):
    """Network namespaces that Podman made in that time and nobody came to live in: killed before
    it has asked for a network, it tells nobody of one."""
    used = set()
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):  # ended meanwhile
            used.add(path.stat().st_ino)
    for path in netns.DIRECTORY.glob("netns-*"):
        with contextlib.suppress(OSError):  # another test's
            if begun <= path.lstat().st_ctime <= ended and path.stat().st_ino not in used:
                yield path


def collect(podman):
    """Killed before it has written a container down, Podman forgets it, and its namespace:
    what a runtime does not know, GC removes."""
    known = podman("ps", "--all", "--quiet", "--no-trunc").split()
    forgotten = [each for each in attachments(f"cni-{NAME}") if each.id not in known]
    forgotten = [each for each in forgotten if each.agent == str(podman.host.agent)]
    others = [each.id for each in attachments(f"cni-{NAME}") if each not in forgotten]
    config = {"cniVersion": "1.1.0", "name": NAME, "type": "slimnet-cni", "network": "prod"}
    config["cni.dev/valid-attachments"] = [{"containerID": each} for each in others]
    status, _, told = ask("GC", config)
    assert (status, told.count("removed endpoint half")) == (0, len(forgotten))
    for each in forgotten:
        netns.remove(Path(each.netns))
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # ended meanwhile
                if each.id.encode() in path.read_bytes():  # its conmon, which nobody waits for
                    os.kill(int(path.parent.name), signal.SIGKILL)


WRONG = {
    "an address of another network": (("--ip=10.9.0.1",), "wanted an address in 10.1.0.0/16"),
    "a port of SCTP": (("-p", "53:53/sctp"), "port 53: wanted protocol tcp or udp"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_words(podmans, nothing_left, what):
    """Podman's own error has one line of ours; the next try works."""
    words, message = WRONG[what]
    errors = podmans[0].run("--rm", *words, "--", "true", status=126)
    assert message in errors
    assert left(f"cni-{NAME}", podmans[0].host) == []
    podmans[0].run("--rm", "--", "true")


def test_without_an_agent(podmans, nothing_left):
    host = podmans[0].host
    host.kill_agent()
    began = time.monotonic()
    try:
        errors = podmans[0].run("--rm", "--", "true", status=126)
        assert "slimnet: agent on" in errors
        assert time.monotonic() - began < 10
    finally:
        host.start_agent().wait()
    podmans[0].run("--rm", "--", "true")


def test_later_without_an_agent(podmans, nothing_left):
    """By configuration a container starts without a network, with its resolver, and nothing gets
    out of it; it joins by its name when the agent is back. One that ended before never does."""
    podman, other = podmans
    later = evolve(podman, environment=come_later(podman.directory))
    other.run("-d", "--name=client", "--", "sleep", "1000")
    podman.host.kill_agent()
    try:
        words = ("-d", "--name=web", "--ip=10.1.0.66")
        later.run(*words, "--", "redis-server", "--protected-mode", "no")
        later.run("-d", "--name=gone", "--", "sleep", "1000")
        assert podman("exec", "web", "ls", "/sys/class/net") == "lo\n"
        outside = str(podman.host.address)
        assert "unreachable" in podman("exec", "web", "ping", "-c1", outside, status=1)
        resolvers = podman("exec", "web", "cat", "/etc/resolv.conf")
        assert "nameserver 127.128.0.53\n" in resolvers
        podman("rm", "--force", "--time=0", "gone")
    finally:
        podman.host.start_agent().wait()
    there = joined(podman.host, "web")
    assert (str(there.address), dict(there.labels)) == ("10.1.0.66", {"app": "web"})
    assert served(other, "exec", "client", "redis-cli", "-h", "web", "ping") == "PONG\n"
    assert "client.default" in podman("exec", "web", "nslookup", "client.default.prod.slimnet")
    assert set(endpoints(podman.host)) == {"web"}
    assert "joined endpoint prod/default/web" in podman.host.log.read_text()
    podman("rm", "--force", "--time=0", "web")
    assert endpoints(podman.host) == {}
