# SPDX-License-Identifier: Apache-2.0
"""Settings of the kernel, of the namespace that the caller is in."""

import subprocess

import pytest

from slimnet.linux import netns, sysctl


def test_value_without_its_newline():
    said = subprocess.run(["uname", "-r"], check=True, capture_output=True, text=True).stdout
    assert sysctl.read("kernel/osrelease") == said.strip()


def test_none_of_that_name():
    name = "net/ipv4/conf/no.such.device/forwarding"
    assert not sysctl.exists(name)
    for call in (lambda: sysctl.read(name), lambda: sysctl.write(name, 1)):
        with pytest.raises(FileNotFoundError, match=name):
            call()


@pytest.mark.root
def test_written_where_the_caller_is():
    name = "net/ipv4/conf/lo/forwarding"  # lo's are there in every namespace
    before = sysctl.read(name)

    def inside():
        assert sysctl.exists(name)
        for value in (1, 0):
            sysctl.write(name, value)
            assert sysctl.read(name) == str(value)
        with pytest.raises(OSError, match="Invalid argument"):
            sysctl.write(name, "many")
        sysctl.write(name, 0 if before == "1" else 1)

    netns.apart(inside)
    assert sysctl.read(name) == before


@pytest.mark.root
def test_device_with_a_dot_in_its_name():
    def inside():
        with netns.netlink() as route:
            route.link("add", ifname="eth0.7", kind="veth", peer="other")
        sysctl.write("net/ipv4/conf/eth0.7/forwarding", 1)
        assert sysctl.read("net/ipv4/conf/eth0.7/forwarding") == "1"

    netns.apart(inside)
