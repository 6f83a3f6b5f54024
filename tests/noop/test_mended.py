# SPDX-License-Identifier: Apache-2.0
"""The fallback overlay looks at its devices again and again, and makes what is missing."""

import select
import socket
import time

import pytest
from noop_stage import router, staged

from slimnet.exceptions import BackendError
from slimnet.fallback import overlay
from slimnet.linux import netns
from slimnet.rtnetlink import Rtnetlink
from slimnet.testing._stage import ALLOWED, CAST

pytestmark = pytest.mark.root


@pytest.fixture
def stage(monkeypatch):
    """Whose VXLAN device has been made anew, so that its number is not the underlay
    interface's; each tend looks."""
    monkeypatch.setattr(overlay, "_LOOKING", 0)
    with staged("client", "neighbour") as stage:
        delete(router(stage), "vxlan0")
        stage.backends[0].tend()
        yield stage


def delete(path, device):
    with netns.enter(path), netns.netlink() as route:
        route.link("del", index=socket.if_nametoindex(device))


def devices(*paths):
    found = []
    for path in paths:
        with netns.enter(path):
            found.append(socket.if_nameindex())
    return found


def everything(stage):
    places = [stage.places[name].netns for name in ("client", "neighbour")]
    return devices(router(stage), *places), sorted(stage.snapshot())


def test_a_look_changes_nothing_that_is_right(stage, caplog):
    before = everything(stage)
    for _ in range(3):
        stage.backends[0].tend()
    assert everything(stage) == before
    assert "put back" not in caplog.text


def test_what_a_vxlan_device_is_on_is_not_its_own_number(stage):
    """IFLA_LINK would say that of one that is in another namespace."""
    with stage.on(0), Rtnetlink() as route:
        lower = route.link("eth0")
    with netns.enter(router(stage)), Rtnetlink() as route:
        vxlan = route.link("vxlan0")
    assert vxlan.lower == lower.index
    assert vxlan.index != lower.index
    assert lower.lower == 0


def test_a_device_that_is_missing_is_made_and_no_other(stage, caplog):
    """Of a router: VXLAN, the way out, an endpoint's; the others keep their numbers."""
    for name in ("vxlan0", "uplink0", f"ep{CAST['client'].id:08x}"):
        (before,) = devices(router(stage))
        delete(router(stage), name)
        stage.backends[0].tend()
        (now,) = devices(router(stage))
        assert {other for _, other in now} == {other for _, other in before}
        # The number of an endpoint's device is by its id.
        new = set() if name.startswith("ep") else {name}
        assert {other for _, other in set(now) - set(before)} == new
        caplog.clear()
        stage.backends[0].tend()
        assert "put back" not in caplog.text
    stage.serve("neighbour", ALLOWED)
    assert stage.reach("client", "neighbour", ALLOWED)


def test_a_connect_waits_for_vxlan_and_leaves_by_nothing_else(stage):
    """The router's other way leads to the outside, where nothing of a network is to be seen."""
    stage.open(1)
    stage.attach("server")
    stage.install(2)
    stage.serve("server", ALLOWED)
    server = str(CAST["server"].address), ALLOWED
    with netns.enter(stage.places["client"].netns):
        live = socket.create_connection(server, 5)
    delete(router(stage), "vxlan0")
    with stage.on(0):
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with live, packets, netns.enter(stage.places["client"].netns):
        packets.bind(("sl000063", 0x0800))
        with socket.socket() as client:
            client.setblocking(False)
            client.connect_ex(server)
            live.send(b"x")
            time.sleep(0.2)
            stage.backends[0].tend()
            writable = select.select([], [client], [], 5)[1]
            assert writable == [client]
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        packets.setblocking(False)
        with pytest.raises(BlockingIOError):
            packets.recv(100)


def test_what_one_endpoint_hinders_keeps_no_other_from_being_mended(stage):
    """Root in an endpoint has put something in the place of its eth0."""
    client, neighbour = (stage.places[name].netns for name in ("client", "neighbour"))
    for path in (client, neighbour):
        delete(path, "eth0")
    with netns.enter(client), netns.netlink() as route:
        route.link("add", ifname="eth0", kind="veth", peer="other0")
    with pytest.raises(BackendError, match=r"without eth0.*got .*client"):
        stage.backends[0].tend()
    with netns.enter(neighbour):
        assert "eth0" in [name for _, name in socket.if_nameindex()]
    delete(client, "eth0")
    stage.backends[0].tend()
    stage.serve("neighbour", ALLOWED)
    assert stage.reach("client", "neighbour", ALLOWED)
