# SPDX-License-Identifier: Apache-2.0
"""The plugin ``slimnet-cni``, asked as container runtimes ask it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab.engines import (
    ONE,
    PLUGIN,
    TAKING,
    ask,
    come_later,
    endpoints,
    inside,
    joined,
    left,
    two_hosts,
)
from lab.hands import PATIENCE
from lab.paths import require

from slimnet.engines.container import attachments
from slimnet.linux import netns

pytestmark = pytest.mark.root

#: What the runtimes call the network: what is written down of it is of the whole machine.
NAME = f"slt-cni{os.getpid()}"
VERSIONS = ("0.4.0", "1.0.0", "1.1.0")


@pytest.fixture(scope="module", params=TAKING)
def hosts(request):
    require(request.param)
    with two_hosts(request.param, "cni") as hosts:
        yield hosts


@pytest.fixture
def nothing_left(hosts):
    yield
    assert left(f"cni-{NAME}", *hosts) == []


def config(host, version="1.0.0", **more):
    own = {"type": "slimnet-cni", "network": "prod", "agent": str(host.agent)}
    return {"cniVersion": version, "name": NAME, **own, **more}


def add(host, path, container, version="1.0.0", environment=None, **more):
    asked = {"CONTAINERID": container, "NETNS": path, "IFNAME": "eth0", **(environment or {})}
    return ask("ADD", config(host, version, **more), **asked)


def delete(host, path, container, version="1.0.0", **more):
    return ask(
        "DEL", config(host, version, **more), CONTAINERID=container, NETNS=path, IFNAME="eth0"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_two_containers_talk(hosts, space, nothing_left, version):
    """ADD, CHECK and DEL, each twice where the specification wants it to be the same."""
    paths = space(), space()
    answers = []
    for host, path, name in zip(hosts, paths, ("one", "two"), strict=True):
        status, answer, _ = add(host, path, name, version)
        assert status == 0, answer
        answers.append(answer)
        assert answer["cniVersion"] == version
        (device,), (address,) = answer["interfaces"], answer["ips"]
        shown = inside(path, "ip", "-json", "address", "show", "eth0").stdout
        (there,) = json.loads(shown)
        assert (device["name"], device["mac"]) == ("eth0", there["address"])
        assert device["sandbox"] == str(path)
        assert address["address"] == "{local}/{prefixlen}".format(**there["addr_info"][0])
        assert (address["interface"], address.get("version", "")) == (
            0,
            "4" if version == "0.4.0" else "",
        )
        assert answer["dns"]["nameservers"] == ["127.128.0.53"]
        assert answer["dns"]["search"] == ["default.prod.slimnet", "prod.slimnet", "slimnet"]
    target = answers[1]["ips"][0]["address"].partition("/")[0]
    assert " 0% packet loss" in inside(paths[0], "ping", "-c1", "-W5", target).stdout
    for host, path, name, answer in zip(hosts, paths, ("one", "two"), answers, strict=True):
        asked = config(host, version, prevResult=answer)
        same = {"CONTAINERID": name, "NETNS": path, "IFNAME": "eth0"}
        assert ask("CHECK", asked, **same) == (0, None, "")
        assert add(host, path, name, version)[:2] == (0, answer)
        for _ in range(2):
            assert delete(host, path, name, version) == (0, None, "")
        assert ask("CHECK", asked, **same)[0] == 1
        assert inside(path, "ip", "link", "show", "eth0").returncode == 1


def test_versions():
    status, answer, _ = ask("VERSION", "")
    assert (status, answer["supportedVersions"]) == (0, list(VERSIONS))


def test_as_a_kubelet_asks(hosts, space, nothing_left):
    """A pod's name and namespace, labels by the convention; again after its sandbox was made
    anew without a DEL, which a kubelet does after a reboot."""
    host, first = hosts[0], space()
    pod = {
        "ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;"
        "K8S_POD_INFRA_CONTAINER_ID=ab12;K8S_POD_UID=1"
    }
    labels = {"cni": {"labels": [{"key": "app", "value": "web"}]}}
    status, before, _ = add(host, first, "ab12", environment=pod, args=labels)
    assert status == 0, before
    with host.node() as node:
        (made,) = node.endpoints()
        assert (made.path, dict(made.labels)) == ("prod/shop/web-0", {"app": "web"})
    netns.remove(first)
    second = space()
    status, answer, _ = add(host, second, "cd34", environment=pod, args=labels)
    assert status == 0, answer
    assert delete(host, "", "ab12") == (0, None, "")  # the old one's, late: not the new one's
    assert inside(second, "ip", "link", "show", "eth0").returncode == 0
    assert delete(host, second, "cd34") == (0, None, "")


@ONE
@pytest.mark.parametrize("where", [0, 1], ids=["there", "on another host"])
def test_a_name_is_not_taken_from_who_has_it(hosts, space, nothing_left, where):
    """Nor its ports of the host. A container's processes are in no cgroup of slimnet's, so that
    nobody knows of them."""
    first, second = space(), space()
    named = {
        "environment": {"ARGS": "K8S_POD_NAME=web"},
        "runtimeConfig": {"portMappings": [{"hostPort": 8085, "containerPort": 80}]},
    }
    assert add(hosts[0], first, "c1", **named)[0] == 0
    status, answer, _ = add(hosts[where], second, "c2", **named)
    assert status == 1
    assert f"is there, in {first}" in answer["msg"] or where
    assert inside(first, "ip", "link", "show", "eth0").returncode == 0
    assert delete(hosts[where], second, "c2") == (0, None, "")
    with hosts[0].node() as node:
        assert [each.name for each in node.policies()] == ["web-8085"]
    assert delete(hosts[0], first, "c1") == (0, None, "")


def test_addresses_that_are_asked_for(hosts, space, nothing_left):
    host, path, other = hosts[0], space(), space()
    for number, how in enumerate(
        (
            {"runtimeConfig": {"ips": ["10.1.0.77/16"]}},
            {"args": {"cni": {"ips": ["10.1.0.77"]}}},
            {"environment": {"ARGS": "IgnoreUnknown=1;IP=10.1.0.77"}},
        )
    ):
        status, answer, _ = add(host, path, f"c{number}", **how)
        assert (status, answer["ips"][0]["address"]) == (0, "10.1.0.77/32"), answer
        status, answer, _ = add(hosts[1], other, "late", **how)
        assert (status, answer["code"]) == (1, 100)
        assert "10.1.0.77" in answer["msg"]
        assert delete(host, path, f"c{number}")[0] == 0


def test_what_a_plugin_before_it_made_stays(hosts, space, nothing_left):
    """Chained behind another one."""
    path = space()
    before = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "sandbox": str(path)}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
    }
    _, answer, _ = add(hosts[0], path, "chained", prevResult=before)
    assert [each["name"] for each in answer["interfaces"]] == ["lo", "eth0"]
    assert [each["interface"] for each in answer["ips"]] == [0, 1]
    assert delete(hosts[0], path, "chained", prevResult=answer)[0] == 0


WRONG = {
    "no JSON": ("{", {}, 6, "network configuration: "),
    "no object": ("[]", {}, 6, "network configuration: wanted an object"),
    "version": ({"cniVersion": "0.2.0"}, {}, 1, "cniVersion: wanted one of 0.4.0"),
    "ipam": ({"ipam": {"type": "host-local"}}, {}, 2, "ipam: "),
    "key": ({"mtuu": 1}, {}, 2, "mtuu: no such key"),
    "name": ({"name": "a/b"}, {}, 7, "name: wanted letters"),
    "no name": ({"name": None}, {}, 7, "name: wanted a text"),
    "network": ({"network": "nowhere"}, {}, 100, "network 'nowhere'"),
    "labels": ({"labels": []}, {}, 0, ""),
    "label": ({"labels": {"a b": "c"}}, {}, 7, "label"),
    "labels of a runtime": ({"args": {"cni": {"labels": ["x"]}}}, {}, 7, "args.cni.labels: "),
    "arguments": ({"args": 1}, {}, 7, "args: wanted an object"),
    "addresses": ({"runtimeConfig": {"ips": ["10.1.0.5", "10.1.0.6"]}}, {}, 7, "ips: wanted one"),
    "outside": ({"runtimeConfig": {"ips": ["10.9.0.5"]}}, {}, 7, "wanted an address in 10.1"),
    "port": (
        {"runtimeConfig": {"portMappings": [{"hostPort": "80"}]}}, {}, 7, "portMappings: wanted",
    ),
    "port of SCTP": (
        {"runtimeConfig": {"portMappings": [
            {"hostPort": 53, "containerPort": 53, "protocol": "sctp"}]}},
        {}, 7, "port 53: wanted protocol tcp or udp, got 'sctp'",
    ),
    "device": ({}, {"IFNAME": "net1"}, 4, "CNI_IFNAME: wanted eth0, got 'net1'"),
    "no container": ({}, {"CONTAINERID": ""}, 4, "CNI_CONTAINERID: wanted by ADD"),
    "container": ({}, {"CONTAINERID": "../x"}, 4, "CNI_CONTAINERID: wanted an id"),
    "no namespace": ({}, {"NETNS": ""}, 4, "CNI_NETNS: wanted by ADD"),
    "namespace": ({}, {"NETNS": "/dev/null"}, 7, "endpoint.netns: wanted a network namespace"),
    "its host's namespace": ({}, {"NETNS": "HOST"}, 7, "one that is not the host's own"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input(hosts, space, nothing_left, what):
    """One line that names the field, nothing half made; the next try works."""
    change, environment, code, message = WRONG[what]
    path = space()
    asked = {"CONTAINERID": "c1", "NETNS": path, "IFNAME": "eth0", **environment}
    if asked["NETNS"] == "HOST":
        asked["NETNS"] = hosts[0].netns
    text = change if isinstance(change, str) else config(hosts[0], **change)
    if isinstance(change, dict):
        text = json.dumps({**config(hosts[0]), **change})
    status, answer, told = ask("ADD", text, **asked)
    assert told == ""
    if code:
        assert (status, answer["code"]) == (1, code), answer
        assert answer["msg"].startswith("slimnet: ")
        assert message in answer["msg"]
        assert "\n" not in answer["msg"]
        assert left(f"cni-{NAME}", *hosts) == []
        assert add(hosts[0], path, "c1")[0] == 0
    assert delete(hosts[0], path, "c1")[0] == 0


def test_a_command_that_is_none():
    assert ask("UPDATE", "{}")[:2] == (
        1,
        {
            "cniVersion": "1.1.0",
            "code": 4,
            "msg": "slimnet: CNI_COMMAND: wanted one of ADD, DEL, CHECK, GC, STATUS, VERSION,"
            " got 'UPDATE'",
        },
    )


def test_no_agent_and_one_that_hangs(hosts, space, nothing_left, tmp_path):
    """One line within 10 s, and the runtime may try again; DEL needs no agent."""
    path = space()
    where = tmp_path / "agent.sock"
    for hangs in (False, True):
        with contextlib.ExitStack() as held:
            if hangs:
                sock = held.enter_context(socket.socket(socket.AF_UNIX))
                sock.bind(str(where))
                sock.listen()
            began = time.monotonic()
            status, answer, _ = add(hosts[0], path, "c1", agent=str(where))
            assert (status, answer["code"]) == (1, 11)
            assert ("no answer in 8 s" if hangs else "no agent on") in answer["msg"]
            status, answer, _ = ask("STATUS", config(hosts[0], "1.1.0", agent=str(where)))
            assert (status, answer["code"]) == (1, 50)
            assert time.monotonic() - began < 19
            status, answer, told = delete(hosts[0], path, "c1", agent=str(where))
            assert (status, answer) == (0, None)
            assert told.endswith("it removes the endpoint when it is back\n")
    assert ask("STATUS", config(hosts[0], "1.1.0")) == (0, None, "")


def test_an_agent_that_was_away_removes_what_went(hosts, space, nothing_left):
    host, path = hosts[1], space()
    assert add(host, path, "c1")[0] == 0
    host.kill_agent()
    status, _, told = delete(host, path, "c1")
    assert (status, "removes the endpoint" in told) == (0, True)
    netns.remove(path)
    host.start_agent().wait()
    with host.node() as node:
        until = time.monotonic() + 20 * PATIENCE
        while node.endpoints() and time.monotonic() < until:
            time.sleep(0.1)
        assert node.endpoints() == []


def test_garbage_is_collected(hosts, space, nothing_left):
    """What the runtime does not know goes, and is named; of other networks nothing does."""
    host, kept, lost = hosts[0], space(), space()
    assert add(host, kept, "kept")[0] == add(host, lost, "lost")[0] == 0
    asked = config(host, "1.1.0")
    asked["cni.dev/valid-attachments"] = [{"containerID": "kept", "ifname": "eth0"}]
    assert ask("GC", {**asked, "name": "other"}) == (0, None, "")
    status, answer, told = ask("GC", asked)
    assert (status, answer) == (0, None)
    assert told == "slimnet-cni: removed endpoint lost of container lost\n"
    assert inside(lost, "ip", "link", "show", "eth0").returncode == 1
    assert inside(kept, "ip", "link", "show", "eth0").returncode == 0
    assert ask("GC", asked) == (0, None, "")
    assert delete(host, kept, "kept")[0] == 0


def test_check_finds_what_is_broken(hosts, space, nothing_left):
    host, path = hosts[0], space()
    _, answer, _ = add(host, path, "c1")
    same = {"CONTAINERID": "c1", "NETNS": path, "IFNAME": "eth0"}
    other = {**answer, "ips": [{"address": "10.1.9.9/32"}]}
    status, said, _ = ask("CHECK", config(host, prevResult=other), **same)
    assert (status, "wanted 10.1.9.9/32, got 10.1" in said["msg"]) == (1, True)
    assert ask("CHECK", config(host, prevResult=answer), **same)[0] == 0
    netns.remove(path)
    status, said, _ = ask("CHECK", config(host, prevResult=answer), **same)
    assert (status, said["code"]) == (1, 100)
    assert delete(host, path, "c1")[0] == 0


def test_many_at_once_and_killed(hosts, space, nothing_left):
    """50 at once, of which some are killed in the middle: DEL finds whatever there is."""
    host = hosts[0]
    paths = {f"c{number}": space() for number in range(50)}
    killed = list(paths)[::3]

    def start(name):
        if name not in killed:
            while (answer := add(host, paths[name], name)[1]).get("code") == 11:
                pass  # "try again later", as a runtime does
            assert "ips" in answer, answer
            return
        environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": name, "CNI_IFNAME": "eth0"}
        with subprocess.Popen(
            [PLUGIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"PATH": os.environ["PATH"], "CNI_NETNS": str(paths[name]), **environment},
        ) as plugin:  # fmt: skip
            plugin.stdin.write(json.dumps(config(host)))
            plugin.stdin.close()
            time.sleep(random.random())
            plugin.kill()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, paths))
        addresses = [each.address for each in hosts[1].node().endpoints()]
        assert len(set(addresses)) == len(addresses) >= len(paths) - len(killed)

        def stop(name):
            assert delete(host, paths[name], name)[0] == 0

        list(pool.map(stop, paths))


def test_cnitool(hosts, space, nothing_left, tmp_path):
    """By the specification's own library."""
    tool, path = cnitool(hosts[0], tmp_path), space()
    for command in ("add", "check", "del"):
        tool(command, path)


@ONE
def test_later_without_an_agent(hosts, space, nothing_left, tmp_path):
    """By configuration ADD succeeds, and the container is an endpoint when the agent is back; what
    is deleted before never is, and needs no agent."""
    host = hosts[0]
    own, path, gone, lost = come_later(tmp_path), space(), space(), space()
    tool = cnitool(host, tmp_path)
    host.kill_agent()
    try:
        assert "not running" in tool("add", path, status=1)
        answer = json.loads(tool("add", path, own=own))
        assert (answer.get("interfaces", []), answer.get("ips", [])) == ([], [])
        assert answer["dns"]["nameservers"] == ["127.128.0.53"]
        assert inside(path, "ip", "-o", "link").stdout.count("\n") == 1
        tool("add", gone, own=own)
        tool("del", gone)
        netns.remove(gone)
        tool("add", lost, own=own)
        netns.remove(lost)  # and nobody says so
    finally:
        host.start_agent().wait()
    until = time.monotonic() + 20 * PATIENCE
    while not (there := endpoints(host)):
        assert time.monotonic() < until
        time.sleep(0.1)
    (name,) = there
    device = ("ip", "-o", "-4", "address", "show", "eth0")
    while f" {joined(host, name).address}/32 " not in inside(path, *device).stdout:
        assert time.monotonic() < until  # it is written down before it has a device
        time.sleep(0.1)
    while len(list(attachments(f"cni-{NAME}"))) > 1:
        assert time.monotonic() < until
        time.sleep(0.1)
    tool("check", path)
    for each in (path, lost):  # of which the tool keeps something
        tool("del", each)
    assert inside(path, "ip", "-o", "link").stdout.count("\n") == 1


@ONE
def test_one_that_cannot_come_later(hosts, space, nothing_left, tmp_path):
    """A pod's runtime wants an address at once. Another is refused when the agent is back, with
    its reason in the log, and joins once the reason is gone, with its port of the host."""
    host, own = hosts[0], come_later(tmp_path)
    taken, path = space(), space()
    assert add(host, taken, "first", args={"cni": {"ips": ["10.1.0.50"]}})[0] == 0
    ports = {"portMappings": [{"hostPort": 8085, "containerPort": 80}]}
    asked = config(host, args={"cni": {"ips": ["10.1.0.50"]}}, runtimeConfig=ports)
    where = {"CONTAINERID": "second", "NETNS": path, "IFNAME": "eth0"}
    host.kill_agent()
    try:
        pod = {"ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"}
        status, answer, _ = ask("ADD", asked, own=own, **where, **pod)
        assert (status, answer["code"]) == (1, 11)
        assert "joins no network later: a pod's runtime" in answer["msg"]
        assert ask("ADD", asked, own=own, **where)[0] == 0
    finally:
        host.start_agent().wait()
    until = time.monotonic() + 10 * PATIENCE
    while "second, which started without the agent: " not in host.log.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert set(endpoints(host)) == {"first"}
    assert delete(host, taken, "first")[0] == 0
    assert str(joined(host, "second").address) == "10.1.0.50"
    until = time.monotonic() + 5 * PATIENCE
    with host.node() as node:
        while [each.name for each in node.policies()] != ["second-8085"]:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert delete(host, path, "second")[0] == 0


def cnitool(host, directory):
    """The tool, with a configuration for that host's agent; what it says."""
    if shutil.which("go") is None:
        pytest.skip("needs go: run testbed/setup")
    tool = Path(__file__).parents[2] / ".build/cnitool/cnitool"
    if not tool.exists():
        subprocess.run(
            ["go", "install", "github.com/containernetworking/cni/cnitool@v1.1.2"],
            env={**os.environ, "GOBIN": str(tool.parent)}, check=True, capture_output=True,
        )  # fmt: skip
    chain = [{"type": "slimnet-cni", "network": "prod", "agent": str(host.agent)}]
    listed = {"cniVersion": "1.0.0", "name": NAME, "plugins": chain}
    (directory / "prod.conflist").write_text(json.dumps(listed))
    environment = {"CNI_PATH": str(PLUGIN.parent), "NETCONFPATH": str(directory)}

    def call(command, path, status=0, own=None):
        done = subprocess.run(
            [tool, command, NAME, path], env={**os.environ, **environment, **(own or {})},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, (command, done)
        return done.stdout if status == 0 else done.stderr

    return call
