# SPDX-License-Identifier: Apache-2.0
"""The driver ``slimnet`` of Podman's networks, asked as Podman and netavark ask it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from lab.engines import ONE, PLUGIN, TAKING, come_later, endpoints, inside, joined, left, two_hosts
from lab.hands import PATIENCE
from lab.paths import require

from slimnet.engines.container import attachments

pytestmark = pytest.mark.root

DRIVER = PLUGIN.with_name("slimnet-netavark")
#: What Podman calls the network: what is written down of it is of the whole machine.
NAME = f"slt-nv{os.getpid()}"


@pytest.fixture(scope="module", params=TAKING)
def hosts(request):
    require(request.param)
    with two_hosts(request.param, "nv") as hosts:
        yield hosts


@pytest.fixture
def nothing_left(hosts):
    yield
    assert left(f"netavark-{NAME}", *hosts) == []


def ask(*command, about=None, own=None):
    """One request to the driver: status and answer."""
    done = subprocess.run(
        [DRIVER, *map(str, command)],
        input=about if isinstance(about, str) else json.dumps(about or {}),
        env={"PATH": os.environ["PATH"], **(own or {})},
        capture_output=True,
        text=True,
        timeout=30 * PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    answer = json.loads(done.stdout) if done.stdout else None
    if done.returncode:
        assert (done.returncode, list(answer)) == (1, ["error"])
        assert "\n" not in answer["error"]
    return done.returncode, answer


def network(host, options=None, **more):
    """As Podman sends it to the driver that is to make it."""
    own = {"network": "prod", "agent": str(host.agent), **(options or {})}
    return {
        "name": NAME,
        "id": "2f" * 32,
        "driver": "slimnet",
        "created": "2026-01-01T00:00:00Z",
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": True,
        "options": own,
        "ipam_options": {},
        **more,
    }


def asked(host, name, *, ports=(), options=None, made=None, **more):
    """As netavark sends it for a container of that name, which is its id as well."""
    own = {"interface_name": "eth0", "aliases": [name[:12]], "static_ips": None, **more}
    return {
        "container_id": name,
        "container_name": name,
        "port_mappings": list(ports),
        "network": made or network(host, options),
        "network_options": own,
    }


def test_two_containers_talk(hosts, space, nothing_left):
    """A network as the driver made it, and setup and teardown each twice."""
    paths, answers, words = (space(), space()), [], []
    for host, path, name in zip(hosts, paths, ("one", "two"), strict=True):
        status, made = ask("create", about=network(host))
        assert status == 0, made
        words.append(asked(host, name, made=made))
        status, answer = ask("setup", path, about=words[-1])
        assert status == 0, answer
        answers.append(answer)
        ((device, there),) = answer["interfaces"].items()
        (shown,) = json.loads(inside(path, "ip", "-json", "address", "show", device).stdout)
        address = "{local}/{prefixlen}".format(**shown["addr_info"][0])
        assert there == {"mac_address": shown["address"], "subnets": [{"ipnet": address}]}
        assert answer["dns_server_ips"] == ["127.128.0.53"]
        searched = ["default.prod.slimnet", "prod.slimnet", "slimnet"]
        assert answer["dns_search_domains"][:3] == searched
    target = answers[1]["interfaces"]["eth0"]["subnets"][0]["ipnet"].partition("/")[0]
    assert " 0% packet loss" in inside(paths[0], "ping", "-c1", "-W5", target).stdout
    for path, about, answer in zip(paths, words, answers, strict=True):
        assert ask("setup", path, about=about) == (0, answer)
        for _ in range(2):
            assert ask("teardown", path, about=about) == (0, None)
        assert inside(path, "ip", "link", "show", "eth0").returncode == 1


@ONE
def test_what_podman_keeps_of_a_network(hosts):
    """What Podman sent, with the ranges of slimnet's network, and nobody's addresses or names."""
    sent = network(hosts[0], subnets=[{"subnet": "10.1.0.0/16"}])
    status, made = ask("create", about=sent)
    assert status == 0
    assert made == {
        **sent,
        "subnets": [{"subnet": "10.1.0.0/16"}],
        "dns_enabled": False,
        "ipam_options": {"driver": "none"},
    }


@ONE
def test_words_of_network_and_container(hosts, space, nothing_left):
    """Its address, its labels and namespace of both, and ports of the host, a range each by
    itself."""
    host, path = hosts[0], space()
    about = asked(
        host,
        "web_1",
        options={"label.app": "web", "label.tier": "front", "namespace": "shop"},
        static_ips=["10.1.0.77"],
        ports=[
            {"host_port": 8085, "container_port": 80, "protocol": "tcp", "range": 2, "host_ip": ""}
        ],
    )
    about["network_options"]["options"] = {"label.tier": "back"}
    status, answer = ask("setup", path, about=about)
    assert status == 0, answer
    assert answer["interfaces"]["eth0"]["subnets"] == [{"ipnet": "10.1.0.77/32"}]
    with host.node() as node:
        (made,) = node.endpoints()
        assert made.path == "prod/shop/web-1"
        assert dict(made.labels) == {"app": "web", "tier": "back"}
        assert {each.name for each in node.policies()} == {"web-1-8085", "web-1-8086"}
    status, answer = ask("setup", space(), about=asked(hosts[1], "b", static_ips=["10.1.0.77"]))
    assert (status, "10.1.0.77" in answer["error"]) == (1, True)
    assert ask("teardown", path, about=about) == (0, None)


LISTEN = "import socket; s = socket.create_server(('', 8086)); print(flush=True); input()"


@ONE
def test_ports_that_podman_keeps(hosts, space, nothing_left):
    """Since Podman 5 it listens on them before it asks: published all the same, as often as is
    asked. What is no ancestor's is the host's own."""
    host, path = hosts[0], space()
    tcp = {"host_port": 8085, "container_port": 80, "protocol": "tcp", "range": 1, "host_ip": ""}
    udp = {**tcp, "protocol": "udp"}
    with host.enter(), contextlib.ExitStack() as held:
        held.enter_context(socket.create_server(("", 8085)))
        held.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind(("", 8085))
        about = asked(host, "web", ports=[tcp, udp])
        for _ in range(2):
            status, answer = ask("setup", path, about=about)
            assert status == 0, answer
        with host.node() as node:
            assert {each.name for each in node.policies()} == {"web-8085", "web-8085-udp"}
        assert ask("teardown", path, about=about) == (0, None)
        command = [sys.executable, "-c", LISTEN]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            status, answer = ask(
                "setup", path, about=asked(host, "web", ports=[{**tcp, "range": 2}])
            )
            other.stdin.close()
    assert (status, "h1 itself listens on 0.0.0.0:8086" in answer["error"]) == (1, True)


NETWORKS = {
    "no JSON": ("{", "input: wanted JSON"),
    "no object": ("[]", "input: wanted an object"),
    "name": ({"name": "a/b"}, "name: wanted letters"),
    "network": ({"options": {"network": "nowhere"}}, "network 'nowhere': there is none; there"),
    "option": ({"options": {"mtu": "1500"}}, "options: wanted network, namespace, agent or label."),
    "options": ({"options": []}, "options: wanted an object, got []"),
    "subnet": ({"subnets": [{"subnet": "10.9.0.0/16"}]}, "a range of network prod: 10.1.0.0/16"),
    "gateway": (
        {"subnets": [{"subnet": "10.1.0.0/16", "gateway": "10.1.0.1"}]},
        "subnets.gateway: wanted none: it is slimnet's, got '10.1.0.1'",
    ),
    "ipam": ({"ipam_options": {"driver": "host-local"}}, "ipam_options.driver: wanted none"),
    "internal": ({"internal": True}, "internal: wanted a policy that denies egress, got True"),
    "ipv6": ({"ipv6_enabled": True}, "ipv6_enabled: wanted IPv4 only"),
    "servers": ({"network_dns_servers": ["9.9.9.9"]}, "network_dns_servers: wanted none"),
    "device": ({"network_interface": "br0"}, "network_interface: wanted none"),
    "routes": ({"routes": [{"destination": "10.0.0.0/8"}]}, "routes: wanted none"),
}


@ONE
@pytest.mark.parametrize("what", NETWORKS)
def test_networks_that_cannot_be(hosts, what):
    """One line that names the field."""
    change, message = NETWORKS[what]
    if isinstance(change, dict):
        own = network(hosts[0])
        if isinstance(change.get("options"), dict):
            change = {"options": {**own["options"], **change["options"]}}
        change = {**own, **change}
    status, answer = ask("create", about=change)
    assert status == 1
    assert message in answer["error"]


PORT = {"host_port": 53, "container_port": 53, "range": 1, "host_ip": ""}
CONTAINERS = {
    "id": ({"container_id": "../x"}, {}, "container_id: wanted an id"),
    "device": ({}, {"interface_name": "eth1"}, "interface_name: wanted eth0, got 'eth1'"),
    "hardware address": ({}, {"static_mac": "aa:bb:cc:dd:aa:00"}, "static_mac: wanted none"),
    "addresses": ({}, {"static_ips": ["10.1.0.5", "10.1.0.6"]}, "static_ips: wanted one address"),
    "outside": ({}, {"static_ips": ["10.9.0.5"]}, "wanted an address in 10.1.0.0/16"),
    "option": ({}, {"options": {"network": "x"}}, "options: wanted namespace or label.KEY, got"),
    "label": ({}, {"options": {"label.a b": "c"}}, "label"),
    "port": ({"port_mappings": [{"host_port": "80"}]}, {}, "port_mappings: wanted host_port and"),
    "port of SCTP": (
        {"port_mappings": [{**PORT, "protocol": "sctp"}]},
        {},
        "port_mappings: port 53: wanted protocol tcp or udp, got 'sctp'",
    ),
    "namespace": ({}, {}, "netns: wanted a network namespace"),
}


@ONE
@pytest.mark.parametrize("what", CONTAINERS)
def test_containers_that_cannot_be(hosts, space, nothing_left, what):
    """One line that names the field, nothing half made; the next try works."""
    change, own, message = CONTAINERS[what]
    path = space()
    about = asked(hosts[0], "c1") | change
    about["network_options"] |= own
    status, answer = ask("setup", "/dev/null" if what == "namespace" else path, about=about)
    assert status == 1
    assert answer["error"].startswith("slimnet: ")
    assert message in answer["error"]
    assert left(f"netavark-{NAME}", *hosts) == []
    assert ask("setup", path, about=asked(hosts[0], "c1"))[0] == 0
    assert ask("teardown", path, about=asked(hosts[0], "c1")) == (0, None)


def test_commands():
    status, answer = ask("info")
    assert (status, answer["api_version"], set(answer)) == (0, "1.0.0", {"version", "api_version"})
    wanted = "slimnet: command: wanted create, setup NETNS, teardown NETNS or info"
    assert ask("update") == (1, {"error": f"{wanted}, got 'update'"})
    assert ask() == (1, {"error": f"{wanted}, got nothing"})


@ONE
def test_without_an_agent(hosts, space, nothing_left, tmp_path):
    """Refused; by configuration set up without a device, and an endpoint when the agent is back.
    One that ended before is none, and needs no agent."""
    host, own, path, gone = hosts[0], come_later(tmp_path), space(), space()
    web, other = asked(host, "web", static_ips=["10.1.0.66"]), asked(host, "gone")
    host.kill_agent()
    try:
        began = time.monotonic()
        status, answer = ask("setup", path, about=web)
        assert (status, answer["error"].startswith("slimnet: agent on")) == (1, True)
        assert ask("create", about=network(host))[0] == 1
        assert time.monotonic() - began < 10
        assert list(attachments(f"netavark-{NAME}")) == []
        status, answer = ask("setup", path, about=web, own=own)
        assert (status, answer["interfaces"]) == (0, {})
        assert answer["dns_server_ips"] == ["127.128.0.53"]
        status, answer = ask("setup", "/dev/null", about=other, own=own)
        assert (status, "netns: wanted a network namespace" in answer["error"]) == (1, True)
        assert ask("setup", gone, about=other, own=own)[0] == 0
        assert ask("teardown", gone, about=other) == (0, None)
    finally:
        host.start_agent().wait()
    assert str(joined(host, "web").address) == "10.1.0.66"
    assert set(endpoints(host)) == {"web"}
    assert ask("teardown", path, about=web) == (0, None)
