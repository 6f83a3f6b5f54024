# SPDX-License-Identifier: Apache-2.0
"""A data path that no backend here can adopt is removed, once nobody is in it."""

import subprocess

import pytest
from lab.agents import Cluster
from netaddr import IPAddress

from slimnet import plugins
from slimnet.fallback import Outside, Stamp
from slimnet.linux import netns
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.testing import Resident

pytestmark = pytest.mark.root


def _of_another_contract(instance, _interface):
    pins = pytest.importorskip("slimnet_ebpf.pins").Pins(instance)
    pins.write_record(fingerprint=pins.record()["fingerprint"] ^ 1)


def _without_a_map(instance, _interface):
    (pytest.importorskip("slimnet_ebpf.pins").Pins(instance).maps / "slim_policy").unlink()


def _of_another_version(instance, interface):
    outside = Outside(instance, netns.own(), interface, IPAddress(0), 4789)
    outside.write(Stamp(outside.stamp().abi + 1, 7))


@pytest.mark.parametrize(
    ("backend", "spoil"),
    [("ebpf", _of_another_contract), ("ebpf", _without_a_map), ("noop", _of_another_version)],
)
def test_teardown_of_what_cannot_be_adopted(tmp_path, backend, spoil):
    with Cluster(backend, tmp_path) as cluster:
        host = cluster.hosts[0]
        host.revive()
        node = host.node()
        node.create_network("prod", "10.77.0.0/24")
        web = node.attach("prod", "web")
        with Resident(web.cgroup, host.where.netns, web.netns):
            host.stop()
            with netns.enter(host.where.netns):
                spoil(host.instance, host.where.interface)
            done = subprocess.run(host.command(), capture_output=True, text=True)
            assert done.returncode == 2
            if spoil is not _of_another_contract:  # which would be replaced, with its endpoints
                done = subprocess.run(host.command("--upgrade"), capture_output=True, text=True)
                assert done.returncode == 2
                assert "stop" in done.stderr
            done = subprocess.run(host.command("--teardown"), capture_output=True, text=True)
            assert (done.returncode, "endpoints with processes" in done.stderr) == (2, True)
        done = subprocess.run(host.command("--teardown"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with netns.enter(host.where.netns):
            assert not plugins.running(host.instance, host.config.run / "state")
            assert "local 240.0.0.0/4" not in routes()
        assert not (cgroup_mount() / "slimnet" / host.instance).exists()
        assert not host.config.run.exists()
        host.start()
        assert host.node().status()["ready"]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def routes():
    return run("ip", "route", "show", "table", "local")
