# SPDX-License-Identifier: Apache-2.0
"""The programs of placement ``netns``: loaded with the first endpoint that has a network
namespace of its own, which most hosts never have."""

import contextlib
import errno
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from machine import NETWORK, endpoint, run, wait_for
from pyroute2.netlink.exceptions import NetlinkError

from slimnet import AbiMismatch, BackendUnavailable, ConfigError
from slimnet.fallback import DevicePair
from slimnet.linux import netns
from slimnet.tables import Tables
from slimnet_ebpf import EbpfBackend, links
from slimnet_ebpf.carrier import DEVICES
from slimnet_ebpf.libbpf import BpfError
from slimnet_ebpf.maps import Map
from slimnet_ebpf.objects import AbiStamp, Object
from slimnet_ebpf.pins import Pins

pytestmark = pytest.mark.root


@pytest.fixture
def namespace(machine):
    name = f"{machine.name}-own"
    run(f"ip netns add {name}")
    machine.undo.callback(run, f"ip netns del {name}")
    return f"/run/netns/{name}"


@pytest.fixture
def backend(machine, tmp_path):
    """With a place for the fallback overlay's records; torn down, for it is more than pins."""
    backend = machine.start(state=tmp_path)
    yield backend
    with contextlib.suppress(Exception):
        backend.teardown()


def loaded(machine):
    """The ids of the programs that are pinned, by name."""
    found = {}
    for program in Pins(machine.name).open_programs():
        found[program.name] = links.program_id(program.fd)
        os.close(program.fd)
    return found


def maps_of(program):
    """The ids of the maps that a program uses, but for the constants of its own load."""
    shown = json.loads(run(f"bpftool -j prog show id {program}"))["map_ids"]
    return {each for each in shown if "." not in Map.by_id(each).name}


def test_with_the_first_endpoint_that_needs_them(machine, backend, namespace):
    """They work on the maps that are there, not on some of their own; an agent that starts
    again, or another such endpoint, loads nothing."""
    backend.install(Tables(1))
    backend.attach(endpoint(1), NETWORK)
    before = loaded(machine)
    assert not DEVICES & before.keys()
    backend.attach(endpoint(2, netns=namespace), NETWORK)
    after = loaded(machine)
    assert after == before | {name: after[name] for name in DEVICES}
    pinned = {Map.pinned(path).id for path in (machine.pins / "maps").iterdir()}
    assert all(maps_of(after[name]) <= pinned for name in DEVICES)
    assert Map.pinned(machine.pins / "maps" / "slim_device").id in maps_of(after["slim_device_tc"])
    backend.close()
    again = machine.start(state=backend.context.state)
    assert loaded(machine) == after
    again.attach(endpoint(3), NETWORK)
    assert loaded(machine) == after
    again.teardown()


def test_their_pins_are_put_back(machine, backend, namespace):
    backend.attach(endpoint(2, netns=namespace), NETWORK)
    before = loaded(machine)
    shutil.rmtree(machine.pins / "programs")
    wait_for(lambda: backend.tend() or (machine.pins / "programs").is_dir())
    assert loaded(machine) == before


@pytest.mark.parametrize("what", ["gone", "of another contract"])
def test_what_is_installed_has_changed_meanwhile(
    machine, backend, namespace, monkeypatch, tmp_path, what
):
    """The endpoint is refused, and all that there was goes on; the next try works."""
    if what == "gone":
        monkeypatch.setattr(EbpfBackend, "object_path", tmp_path / "slimnet.bpf.o")
        error, text = BackendUnavailable, "slimnet.bpf.o is missing"
    else:
        another = AbiStamp(1, 2, 3)
        monkeypatch.setattr(Object, "stamp", lambda _: another)
        error, text = AbiMismatch, f"was built from contract {another}"
    before = loaded(machine)
    with pytest.raises(error, match=text):
        backend.attach(endpoint(2, netns=namespace), NETWORK)
    assert loaded(machine) == before
    assert backend.status().endpoints == frozenset()
    monkeypatch.undo()
    backend.attach(endpoint(2, netns=namespace), NETWORK)
    assert backend.status().endpoints == {102}


def kind(name, device):
    (shown,) = json.loads(run(f"ip -n {name} -j -d link show {device}"))
    return shown["linkinfo"]["info_kind"]


def test_what_they_are_on(machine, namespace, tmp_path):
    """What the probe says. With another device in the options what is there stays, and what
    comes gets that one."""
    said = "netkit" if DevicePair.NETKIT.is_known() else "veth"
    assert f", {said} for containers" in EbpfBackend.probe().reason
    name = Path(namespace).name
    other = f"{name}2"
    run(f"ip netns add {other}")
    machine.undo.callback(run, f"ip netns del {other}")
    backend = machine.start(state=tmp_path)
    try:
        backend.attach(endpoint(2, netns=namespace), NETWORK)
        backend.close()
        backend = machine.start(state=tmp_path, options={"device": "veth"})
        backend.attach(endpoint(2, netns=namespace), NETWORK)
        backend.attach(endpoint(3, netns=f"/run/netns/{other}"), NETWORK)
        found = kind(name, "eth0"), kind(machine.name, "sl000007"), kind(other, "eth0")
        assert found == (said, said, "veth")
    finally:
        backend.teardown()


def test_netkit_where_there_is_none(machine, monkeypatch):
    """One line, and nothing is made."""
    monkeypatch.setattr(DevicePair, "is_known", lambda pair: pair is not DevicePair.NETKIT)
    before = machine.left()
    with pytest.raises(ConfigError) as error:
        machine.start(options={"device": "netkit"})
    wanted = "auto or veth, for netkit needs Linux 6.7 with CONFIG_NETKIT"
    assert str(error.value) == f"backend.ebpf.device: wanted {wanted}, got 'netkit'"
    assert machine.left() == before


@pytest.mark.netkit
def test_root_in_there_changes_nothing_of_a_netkit(machine, namespace, tmp_path):
    """It sees no program of what it sends, so has none to take off, and cannot say that it passes
    without: without, nothing does. An agent that starts again puts it back."""
    backend = machine.start(state=tmp_path)
    router = f"slimnet.{machine.name}_ebpf.7"

    def received():
        """By the router, of two datagrams, which nobody refuses on their way to it."""
        path = Path("/sys/class/net/ep00000066/statistics/rx_packets")
        command = f"nsenter --net=/run/netns/{router} unshare -m sh -c"
        read = f"{command} 'mount -t sysfs none /sys && cat {path}'"
        before = int(run(read))
        with netns.enter(Path(namespace)), socket.socket(type=socket.SOCK_DGRAM) as sender:
            for _ in range(2):
                with contextlib.suppress(ConnectionRefusedError):
                    sender.sendto(b"x", ("10.1.0.9", 9))
        return int(run(read)) - before

    try:
        backend.attach(endpoint(2, netns=namespace), NETWORK)
        assert kind(Path(namespace).name, "eth0") == kind(machine.name, "sl000007") == "netkit"
        program = loaded(machine)["slim_device_tc"]
        with netns.enter(Path(namespace)), netns.netlink() as route:
            eth0 = socket.if_nametoindex("eth0")
            for attach_type in (links.ATTACH_NETKIT_PEER - 1, links.ATTACH_NETKIT_PEER):
                with pytest.raises(BpfError) as refused:
                    links.attached(eth0, attach_type)
                assert refused.value.errno == errno.EACCES
            with pytest.raises(NetlinkError) as error:
                route.link("set", index=eth0, kind="netkit", IFLA_NETKIT_PEER_POLICY=0)
            assert error.value.code == errno.EACCES
        assert received() == 2
        with netns.enter(netns.DIRECTORY / router):
            device = socket.if_nametoindex("ep00000066")
            assert links.attached(device, links.ATTACH_NETKIT_PEER) == [program]
            for each in Pins(machine.name).open_programs():
                links.take_off(each.fd, device, links.ATTACH_NETKIT_PEER)
                os.close(each.fd)
        assert received() == 0
        backend.close()
        backend = machine.start(state=tmp_path, options={"device": "netkit"})
        assert received() == 2
    finally:
        backend.teardown()
