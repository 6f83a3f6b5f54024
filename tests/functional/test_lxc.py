# SPDX-License-Identifier: Apache-2.0
"""LXC: containers of two hosts in one network, by hooks of their own configurations."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from attrs import frozen
from lab.engines import (
    ONE,
    SLIMNET,
    TAKING,
    closed,
    come_later,
    endpoints,
    gone,
    joined,
    left,
    root_file_system,
    two_hosts,
)
from lab.hands import PATIENCE
from lab.paths import DATA_PATHS, Can, require

from slimnet.testbed.host import TestbedHost

pytestmark = pytest.mark.root

CONFIG = """
lxc.uts.name = {name}
lxc.rootfs.path = dir:{root}
lxc.rootfs.options = ro
lxc.apparmor.profile = unconfined
lxc.init.cmd = /bin/httpd -f -p 80 -h /etc
lxc.net.0.type = {type}
lxc.hook.version = {version}
lxc.hook.start-host = {slimnet} hook lxc --agent {agent} {words}
lxc.hook.post-stop = {slimnet} hook lxc --agent {agent}
"""


@frozen
class Lxc:
    """One host's containers, in a directory of its own."""

    host: TestbedHost
    directory: Path
    image: Path

    def __call__(self, tool, name, *words, status=0):
        done = subprocess.run(
            [
                *("nsenter", f"--net={self.host.netns}", f"lxc-{tool}"),
                *("-P", self.directory, "-n", name, *map(str, words)),
            ],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            timeout=60 * PATIENCE,
        )  # fmt: skip
        assert status in (None, done.returncode), (tool, words, done.stdout, done.stderr)
        return done.stdout if done.returncode == 0 else done.stderr

    def configure(self, name, words="-n prod", kind="empty", agent=None, version=0):
        """A container from the root file system."""
        (self.directory / name).mkdir(exist_ok=True)
        text = CONFIG.format(
            name=name, root=self.image, type=kind, version=version, slimnet=SLIMNET, words=words,
            agent=agent or self.host.agent,
        )  # fmt: skip
        (self.directory / name / "config").write_text(text)

    def start(self, name, words="-n prod", **how):
        self.configure(name, words, **how)
        log = self.directory / name / "log"
        log.unlink(missing_ok=True)
        self("start", name, "-l", "DEBUG", "-o", log, status=None)
        said = [each for each in log.read_text().splitlines() if " produced output: " in each]
        assert said == []

    def refused(self, name, words="-n prod", **how):
        """What is said in the foreground of one that does not start, but for what LXC says."""
        self.configure(name, words, **how)
        lines = self("start", name, "-F", status=1).splitlines()
        return [each for each in lines if not each.startswith(f"lxc-start: {name}: ../src/lxc/")]

    def inside(self, name, *words, status=0):
        return self("attach", name, "--clear-env", "--", *words, status=status)

    def pid(self, name, of="-p"):
        return int(self("info", name, of, "-H"))

    def monitor(self, name):
        """The process of LXC's that waits for the container."""
        status = Path(f"/proc/{self.pid(name)}/status").read_text()
        return int(status.partition("\nPPid:")[2].split()[0])


@pytest.fixture(scope="module", params=TAKING)
def hosts(request, tmp_path_factory):
    require(request.param)
    if shutil.which("lxc-start") is None:
        pytest.skip("needs lxc: run testbed/setup")
    image = root_file_system(tmp_path_factory.mktemp("image"))
    # As Debian has it: to what a container's init makes, if it is that init.
    (image / "etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    with two_hosts(request.param, "lxc") as hosts:
        yield tuple(Lxc(host, tmp_path_factory.mktemp(host.name), image) for host in hosts)


@pytest.fixture(autouse=True)
def nothing_left(hosts):
    yield
    for each in hosts:
        for config in each.directory.glob("*/config"):
            each("stop", config.parent.name, "-k", status=None)
    ended(*hosts)


def ended(*hosts):
    """LXC says that a container did not start, and only then runs the hook post-stop."""
    until = time.monotonic() + 20 * PATIENCE
    while found := left("lxc", *(each.host for each in hosts)):
        assert time.monotonic() < until, found
        time.sleep(0.1)


def fetched(lxc, name, url, **how):
    return lxc.inside(name, "timeout", "5", "wget", "-q", "-O", "-", url, **how)


def test_two_containers_talk(hosts):
    """By name, on two hosts, with the labels of their configurations, until policy says no."""
    first, second = hosts
    first.start("web", "-n prod -l app=web --ip 10.1.0.77")
    second.start("client", "-n prod -l app=client", version=1)
    found = endpoints(first.host) | endpoints(second.host)
    assert {name: dict(each.labels) for name, each in found.items()} == {
        "web": {"app": "web"},
        "client": {"app": "client"},
    }
    assert str(found["web"].address) == "10.1.0.77"
    assert "inet 10.1.0.77/32" in first.inside("web", "ip", "address", "show", "eth0")
    for url in ("http://web/passwd", "http://web.default.prod.slimnet/passwd"):
        assert fetched(second, "client", url) == "root:x:0:0::/:/bin/sh\n"
    shown = second.inside("client", "cat", "/etc/resolv.conf")
    assert shown.startswith("nameserver 127.128.0.53\nsearch default.prod.slimnet ")
    assert os.readlink(second.image / "etc/resolv.conf").startswith("/run/systemd")
    second.inside("client", "sh", "-c", "! echo x >> /etc/resolv.conf")
    with closed(first.host):
        second.inside("client", "sh", "-c", "! timeout 2 wget -O - http://10.1.0.77/passwd")
    assert fetched(second, "client", "http://web/passwd")


def test_its_life(hosts):
    """Stop, start, and a reboot from inside: what runs has its name, what does not has none."""
    first, second = hosts
    first.start("web")
    second.start("client")
    first("stop", "web", "-k")
    assert endpoints(first.host) == {}
    first("start", "web")
    before = first.pid("web")
    first.inside("web", "reboot", "-f", status=None)
    until = time.monotonic() + 20 * PATIENCE
    while first.pid("web") in (before, -1) or "web" not in endpoints(first.host):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert fetched(second, "client", "http://web/passwd")
    first("freeze", "web")
    first("unfreeze", "web")
    assert fetched(second, "client", "http://web/passwd")


def test_killed_monitor_and_agent(hosts):
    """Nothing says that the container has ended: the endpoint goes with its namespace, and
    what is written down of it with the next start. Without an agent what runs goes on."""
    first, second = hosts
    first.start("web")
    second.start("client")
    os.kill(first.monitor("web"), signal.SIGKILL)
    gone(first.host, "web")
    first.start("web")
    assert fetched(second, "client", "http://web/passwd")
    first.host.kill_agent()
    try:
        assert fetched(second, "client", "http://web/passwd")
        first("stop", "web", "-k")
    finally:
        first.host.start_agent().wait()
    gone(first.host, "web")


PUBLISHING = [each for each in TAKING if Can.PUBLISHED_PORTS in DATA_PATHS[each].can]


@pytest.mark.parametrize("hosts", PUBLISHING, indirect=True)
def test_a_port_of_the_host(hosts):
    """Is the container's while it runs."""
    first, second = hosts
    first.start("web", "-n prod -p 8080:80")
    url = f"http://{first.host.address}:8080/passwd"
    fetch = ["nsenter", f"--net={second.host.netns}", "curl", "--silent", "--max-time", "5", url]
    done = subprocess.run(fetch, capture_output=True, text=True, check=False)
    assert done.stdout == "root:x:0:0::/:/bin/sh\n"
    first("stop", "web", "-k")
    ended(first)


@pytest.mark.parametrize("hosts", sorted(set(TAKING) - set(PUBLISHING)), indirect=True)
def test_a_port_of_a_host_that_publishes_none(hosts):
    (line,) = hosts[0].refused("web", "-n prod -p 8080:80")
    assert "has no published ports" in line
    ended(hosts[0])


WRONG = {
    "network": ("-n nowhere", {}, "network 'nowhere'"),
    "address": ("-n prod --ip 10.9.0.1", {}, "wanted an address in 10.1.0.0/16"),
    "label": ("-n prod -l app", {}, "--label: wanted key=value, got 'app'"),
    "port": ("-n prod -p 80", {}, "--publish: wanted [ADDRESS:]PORT:PORT"),
    "option": ("-n prod --adress 10.1.0.1", {}, "No such option"),
    "the host's namespace": ("-n prod", {"kind": "none"}, "one that is not the host's own"),
}


@ONE
def test_wrong_words(hosts):
    """The container does not start, and says why in one line; the next try works."""
    for words, how, message in WRONG.values():
        (line,) = hosts[0].refused("web", words, **how)
        assert line.startswith("slimnet: ")
        assert message in line
        ended(hosts[0])
    hosts[0].start("web")


@ONE
def test_what_is_refused_stands_in_the_log(hosts):
    """That the configuration names, at LXC's own level."""
    lxc = hosts[0]
    lxc.configure("web", "-n nowhere")
    log = lxc.directory / "web/log"
    with (lxc.directory / "web/config").open("a") as config:
        config.write(f"lxc.log.file = {log}\n")
    lxc("start", "web", status=1)
    said = [each for each in log.read_text().splitlines() if each.startswith("slimnet: ")]
    assert said == ["slimnet: network 'nowhere': there is none; there are: prod"]


def test_an_address_that_another_has(hosts):
    hosts[1].start("web", "-n prod --ip 10.1.0.77")
    (line,) = hosts[0].refused("late", "-n prod --ip 10.1.0.77")
    assert "10.1.0.77" in line


@ONE
def test_hooks_that_are_none_of_ours(hosts):
    environment = {"PATH": os.environ["PATH"], "LXC_NAME": "web", "LXC_HOOK_TYPE": "mount"}
    # Below a shell: what is said goes to where the parent's errors do.
    command = ["sh", "-c", f"{SLIMNET} hook lxc -n prod; exit $?"]
    for given, message in (
        (environment, "hook: wanted lxc.hook.start-host or lxc.hook.post-stop, got"),
        ({"PATH": os.environ["PATH"]}, "LXC_NAME: wanted a container's name"),
    ):
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@ONE
def test_no_agent_and_one_that_hangs(hosts, tmp_path):
    """One line within 10 s of what LXC itself takes; with the agent's log line in LXC's log where
    it is a daemon."""
    lxc, where = hosts[0], tmp_path / "agent.sock"
    began = time.monotonic()
    lxc.start("ordinary")
    ordinary = time.monotonic() - began
    (line,) = lxc.refused("web", agent=where)
    assert "no agent on" in line
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(where))
        sock.listen()
        began = time.monotonic()
        log = tmp_path / "log"
        lxc("start", "web", "-l", "DEBUG", "-o", log, status=1)
        assert time.monotonic() - began < 10 + ordinary
    assert log.read_text().count("slimnet: ") == 1
    assert "no answer in 7 s" in log.read_text()
    lxc.start("web")


@ONE
def test_later_without_an_agent(hosts, tmp_path, monkeypatch):
    """By configuration a container starts without a network, and joins it when the agent is
    back, though its hook has ended."""
    first, second = hosts
    for key, value in come_later(tmp_path).items():
        monkeypatch.setenv(key, value)
    second.start("client")
    first.host.kill_agent()
    try:
        first.configure("web", "-n prod -l app=web")
        first("start", "web")
        assert first.inside("web", "/bin/ip", "-o", "link").count("\n") == 1
    finally:
        first.host.start_agent().wait()
    assert dict(joined(first.host, "web").labels) == {"app": "web"}
    fetch = ("/bin/timeout", "5", "/bin/wget", "-qO-", "http://web/passwd")
    assert second.inside("client", *fetch) == "root:x:0:0::/:/bin/sh\n"
