# SPDX-License-Identifier: Apache-2.0
"""Somebody changes the host under a data path that runs: what it needs is put back, by
itself, within two seconds. Connections are tried on one host and between two."""

from __future__ import annotations

import time

import pytest
from lab import Can

from slimnet.linux import netns

pytestmark = pytest.mark.fresh

#: Seconds.
MENDED = 2.5


@pytest.fixture
def outsider(lab):
    """A machine that is not in the cluster; it answers on port 8080."""
    listener = lab.outside.root.serve(8080)
    yield lab.outside
    listener.close()


@pytest.fixture
def ends(lab, ends):
    """What was mended is whole: the host's IPv4 routes are those that were there, and no
    trouble is left. What a test does not wait for, the next one would meet."""
    before = [routes(host) for host in lab.hosts]
    yield ends
    deadline = time.monotonic() + MENDED
    while True:
        now = [routes(host) for host in lab.hosts], [host.watcher.trouble() for host in lab.hosts]
        if now == (before, [""] * len(lab.hosts)):
            return
        if time.monotonic() > deadline:
            assert now == (before, [""] * len(lab.hosts))
        time.sleep(0.05)


def routes(host):
    return sorted(host.netns.ip("-4 route show table all").splitlines())


def comes_back(client, server, port=80):
    """A connect (to an endpoint, a machine or an address) succeeds within the time that
    mending may take."""
    address = getattr(server, "address", server)
    deadline = time.monotonic() + MENDED
    while True:
        try:
            client.connect(address, port).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def unplug(lab, host):
    """The underlay interface goes."""
    lab.underlay.middle.ip(f"link del port{lab.hosts.index(host)}")


def plug(lab, host):
    """It comes back, as another one of the same name."""
    port = f"port{lab.hosts.index(host)}"
    host.netns.cable("eth0", lab.underlay.middle, port)
    lab.underlay.middle.ip(f"link set {port} master bridge")
    host.netns.ip(f"address add {host.address}/24 dev eth0")
    for other in (*lab.hosts, lab.outside):
        other.netns.ip("neigh flush dev eth0")  # they know the address that it had


def test_the_underlay_interface_is_made_anew(lab, ends):
    client, server = ends
    server.serve(80)
    client.connect(server.address, 80).close()
    for host in {client.host, server.host}:
        unplug(lab, host)
        plug(lab, host)
    comes_back(client, server)
    # The other way round as well: what comes in is taken.
    client.serve(81)
    comes_back(server, client, 81)


def test_the_underlay_interface_is_gone_for_a_while(lab, ends):
    """Until it is back the data path says what is wrong."""
    client, server = ends
    server.serve(80)
    host = server.host
    unplug(lab, host)
    try:
        wait_for_trouble(host, "underlay interface eth0 is gone")
    finally:
        plug(lab, host)
    comes_back(client, server)
    wait_for_trouble(host, "")


def test_the_host_loads_its_firewall_anew(ends, outsider):
    """``nft flush ruleset`` is the first line of most; it takes what is others' as well."""
    client, server = ends
    server.serve(80)
    for host in {client.host, server.host}:
        host.netns.run("nft", "flush", "ruleset")
    comes_back(client, server)
    comes_back(client, outsider, 8080)


def test_settings_are_loaded_anew(ends, outsider):
    """``sysctl --system`` with a file that says so: each interface's own follows it."""
    client, server = ends
    server.serve(80)
    for host in {client.host, server.host}:
        host.netns.sysctl("net.ipv4.ip_forward", 1)
        host.netns.sysctl("net.ipv4.ip_forward", 0)
    comes_back(client, server)
    comes_back(client, outsider, 8080)


def test_the_default_route_moves_to_another_interface(lab, outsider):
    client = lab.endpoint(0)
    host = client.host.netns
    host.cable("eth1", outsider.netns, "back1")
    try:
        host.ip("address add 203.0.113.1/24 dev eth1")
        outsider.netns.ip("address add 203.0.113.2/24 dev back1")
        outsider.netns.ip("address add 198.51.100.1/32 dev lo")
        host.ip("route add default via 203.0.113.2")
        comes_back(client, "198.51.100.1", 8080)
    finally:
        host.ip("link del eth1")
        outsider.netns.ip("address del 198.51.100.1/32 dev lo")


@pytest.mark.needs(Can.OWN_NAMESPACE)
@pytest.mark.parametrize("what", ["way out", "router", "endpoint"])
def test_a_device_is_deleted(ends, outsider, what):
    client, server = ends
    server.serve(80)
    for host in {client.host, server.host}:
        if what == "way out":
            host.netns.ip("link del sl00004d")
        elif what == "router":
            netns.remove(netns.DIRECTORY / f"slimnet.{host.instance}.77")
        else:
            client.netns.ip("link del eth0")
            break
    comes_back(client, server)
    comes_back(client, outsider, 8080)


def remove_route(host, line):
    """One line of ``ip route show table all``."""
    words = [word for word in line.split() if word not in ("linkdown", "onlink")]
    if ":" in line:
        words = words[: words.index("pref")] if "pref" in words else words
    host.netns.ip(f"{'-6' if ':' in line else '-4'} route del {' '.join(words)}")


def wait_for_trouble(host, text):
    deadline = time.monotonic() + MENDED
    while not (found := host.watcher.trouble()).startswith(text) or bool(found) != bool(text):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_routes_that_are_not_the_kernels_are_removed(ends, outsider):
    """As systemd-networkd does when it starts (networkd.conf(5), ManageForeignRoutes=)."""
    client, server = ends
    server.serve(80)
    for host in {client.host, server.host}:
        for line in host.netns.ip("route show table all").splitlines():
            if "proto kernel" not in line:
                remove_route(host, line)
    client.connect(server.address, 80)
    client.connect(outsider.address, 8080)
    client.connect(outsider.address, 8080)


def test_every_route_but_the_addresses_own_is_removed(ends, outsider):
    client, server = ends
    server.serve(80)
    for host in {client.host, server.host}:
        mine = (f"local {host.address} ", "local 127.", "broadcast ", "192.168.50.0/24 ")
        for line in host.netns.ip("route show table all").splitlines():
            if ":" not in line and not line.startswith(mine):
                remove_route(host, line)
    comes_back(client, server)
    comes_back(client, outsider, 8080)
