# SPDX-License-Identifier: Apache-2.0
"""Hooks of OCI runtimes, by runc: containers of two hosts in one network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from attrs import frozen
from lab.engines import (
    ONE,
    SLIMNET,
    TAKING,
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


@frozen
class Runc:
    """One host's containers, in a directory of its own."""

    host: TestbedHost
    directory: Path
    image: Path

    def __call__(self, *words, status=0):
        # A detached container keeps what it has: no pipe, at whose end somebody would wait.
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                [
                    *("nsenter", f"--net={self.host.netns}"),
                    *("runc", "--root", self.directory / "state", *words),
                ],
                stdin=subprocess.DEVNULL, stdout=output, stderr=said, check=False,
                timeout=60 * PATIENCE,
            )  # fmt: skip
            output.seek(0)
            said.seek(0)
            texts = output.read(), said.read()
        assert done.returncode == status, (words, texts)
        return texts[0] if status == 0 else texts[1]

    def bundle(self, name, /, *command, **asked):
        """A bundle whose annotations ask for that."""
        bundle = self.directory / name
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").unlink(missing_ok=True)
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True, capture_output=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"] |= {"args": command, "terminal": False, "rlimits": []}
        config["root"] = {"path": str(self.image), "readonly": True}
        config["linux"]["cgroupsPath"] = f"/slt-oci{os.getpid()}-{self.host.name}-{name}"
        config["annotations"] = {f"slimnet.io/{key}": value for key, value in asked.items()}
        program = {"path": str(SLIMNET), "args": ["slimnet", "--agent", str(self.host.agent)]}
        program["args"] += ["hook", "oci"]
        config["hooks"] = {"createRuntime": [program], "poststop": [program]}
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

    def run(self, name, /, *command, status=0, options=(), **asked):
        bundle = self.bundle(name, *command, **asked)
        return self("run", *options, "--bundle", bundle, name, status=status)


@pytest.fixture(scope="module", params=TAKING)
def hosts(request, tmp_path_factory):
    require(request.param)
    if shutil.which("runc") is None:
        pytest.skip("needs runc: run testbed/setup")
    image = root_file_system(tmp_path_factory.mktemp("image"))
    with two_hosts(request.param, "oci") as hosts:
        yield tuple(Runc(host, tmp_path_factory.mktemp(host.name), image) for host in hosts)


@pytest.fixture(autouse=True)
def nothing_left(hosts):
    yield
    for each in hosts:
        for name in each("list", "--quiet").split():
            each("delete", "--force", name)
    assert left("oci", *(each.host for each in hosts)) == []


def test_two_containers_talk(hosts):
    """By name, on two hosts, with what their annotations ask for."""
    first, second = hosts
    serve = ("httpd", "-f", "-p", "80", "-h", "/etc")
    asked = {"network": "prod", "labels": "app=web,tier=front", "address": "10.1.0.77"}
    first.run("one", *serve, options=("--detach",), name="web", **asked)
    (found,) = endpoints(first.host).values()
    assert (found.path, str(found.address)) == ("prod/default/web", "10.1.0.77")
    assert dict(found.labels) == {"app": "web", "tier": "front"}
    fetch = ("sh", "-c", "timeout 5 wget -qO- http://web/passwd; cat /etc/resolv.conf")
    said = second.run("client", *fetch, network="prod").splitlines()
    assert said[:2] == ["root:x:0:0::/:/bin/sh", "nameserver 127.128.0.53"]
    assert endpoints(second.host) == {}  # it has ended
    first("kill", "one", "KILL")
    first("delete", "--force", "one")
    assert endpoints(first.host) == {}


@ONE
def test_a_container_that_does_not_ask(hosts):
    """Is left alone, so that an engine may run the hook for all of them."""
    assert hosts[0].run("plain", "ls", "/sys/class/net") == "lo\n"


WRONG = {
    "network": ({"network": "nowhere"}, "slimnet: network 'nowhere'"),
    "label": ({"network": "prod", "labels": "app"}, "slimnet.io/labels: wanted KEY=VALUE"),
    "port": ({"network": "prod", "publish": "80"}, "slimnet.io/publish: wanted [ADDRESS:]"),
    "word": ({"netwrok": "prod"}, "annotations: wanted slimnet.io/ and one of network, "),
    "name": ({"network": "prod", "name": "A_b"}, "name"),
}


@ONE
def test_wrong_words(hosts):
    """The container does not start, and runc's error has our line; the next try works."""
    for asked, message in WRONG.values():
        errors = hosts[0].run("web", "true", status=1, **asked)
        (line,) = [each for each in errors.splitlines() if "slimnet: " in each]
        assert message in line
        assert left("oci", hosts[0].host) == []
    hosts[0].run("web", "true", network="prod")


@ONE
def test_states_that_are_none(hosts):
    for text, message in (
        ("", "standard input: wanted a container's state"),
        ("[]", "standard input: wanted a container's state, an object"),
        ("{}", "state.id: wanted a text"),
    ):
        done = subprocess.run(
            [SLIMNET, "hook", "oci"], input=text, capture_output=True, text=True, check=False
        )
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@ONE
def test_later_without_an_agent(hosts, tmp_path, monkeypatch):
    """By configuration a container starts without a network, and has its endpoint, with its
    resolver, when the agent is back. In the host's network namespace it would have the host's."""
    first, second = hosts
    serve = ("httpd", "-f", "-p", "80", "-h", "/etc")
    for key, value in come_later(tmp_path).items():
        monkeypatch.setenv(key, value)
    first.host.kill_agent()
    try:
        asked = {"network": "prod", "labels": "app=web", "address": "10.1.0.88"}
        first.run("one", *serve, options=("--detach",), name="web", **asked)
        assert first("exec", "one", "ls", "/sys/class/net") == "lo\n"
        bundle = first.bundle("two", "true", network="prod")
        config = json.loads((bundle / "config.json").read_text())
        spaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [each for each in spaces if each["type"] != "network"]
        (bundle / "config.json").write_text(json.dumps(config))
        errors = first("run", "--bundle", bundle, "two", status=1)
        (line,) = [each for each in errors.splitlines() if "slimnet: " in each]
        assert "it joins no network later: in the host's network namespace" in line
    finally:
        first.host.start_agent().wait()
    there = joined(first.host, "web")
    assert (str(there.address), dict(there.labels)) == ("10.1.0.88", {"app": "web"})
    assert first("exec", "one", "wget", "-qO-", "http://web/passwd") == "root:x:0:0::/:/bin/sh\n"
    fetch = ("timeout", "5", "wget", "-qO-", "http://web/passwd")
    assert second.run("client", *fetch, network="prod") == "root:x:0:0::/:/bin/sh\n"
