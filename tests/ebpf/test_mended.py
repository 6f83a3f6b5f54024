# SPDX-License-Identifier: Apache-2.0
"""What somebody takes from the host while a data path runs on it comes back by itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time

import pytest
from machine import NETWORK, endpoint, run, wait_for
from pinned import pinned

from slimnet import BackendError
from slimnet.linux import cgroup as cgroups
from slimnet.linux.netns import enter
from slimnet.tables import Tables
from slimnet_ebpf import EbpfBackend, filters, libbpf, links, requirements
from slimnet_ebpf import contract as private
from slimnet_ebpf.pins import Pins

pytestmark = pytest.mark.root


@pytest.fixture
def tended(machine):
    """A data path that is tended all the time, as an agent does, and what it left on the
    host; whatever a test takes of that has to come back."""
    backend = machine.start()
    backend.attach(endpoint(1), NETWORK)
    before = machine.left()
    yield backend
    comes_back(machine, backend, before)
    backend.detach(101)
    backend.teardown()


def comes_back(machine, backend, before):
    deadline = time.monotonic() + 2.5
    while True:
        trouble = ""
        try:
            backend.tend()
        except BackendError as error:  # until it has looked again
            trouble = str(error)
        if machine.left() == before and not trouble:
            return
        if time.monotonic() > deadline:
            assert (machine.left(), trouble) == (before, "")
        time.sleep(0.1)


@pytest.mark.parametrize("family", [4, 6])
def test_a_route_is_deleted(machine, tended, family):
    there = {4: "240.0.0.0/4", 6: "fd73:6c69:6d6e:6574::/64"}[family]
    machine.ip(f"-{family} route del local {there} dev lo table local")


@pytest.mark.parametrize("name", ["net.ipv4.conf.eth0.arp_announce", "net.core.tstamp_allow_data"])
def test_a_setting_is_changed(machine, tended, name):
    """As ``sysctl --system`` does."""
    if "tstamp" in name and machine.tstamp_allow_data() is None:
        pytest.skip("needs net.core.tstamp_allow_data (Linux 6.18)")
    machine.set_sysctl(name, 1)


def test_what_a_setting_was_changed_to_is_what_a_teardown_restores(machine):
    backend = machine.start()
    machine.set_sysctl("net.ipv4.conf.eth0.arp_announce", 1)
    wait_for(lambda: backend.tend() or machine.left()["arp_announce"] == "2")
    backend.teardown()
    assert machine.left()["arp_announce"] == "1"


@pytest.mark.parametrize("how", ["detached", "unpinned"])
@pytest.mark.parametrize("link", ["tcx-ingress", "tcx-egress", "lookup"])
def test_a_program_is_taken_off(machine, tended, link, how):
    if "tcx" in link and not requirements.knows("tcx_prog_attach"):
        pytest.skip("needs TCX (Linux 6.6)")
    pin = machine.pins / "links" / link
    before = machine.left()
    if how == "detached":
        fd = libbpf.check(libbpf.library().bpf_obj_get(bytes(pin)), "open")
        libbpf.check(libbpf.library().bpf_link_detach(fd), "detach")
        os.close(fd)
    else:
        pin.unlink()
    wait_for(lambda: machine.left() != before)


@pytest.mark.parametrize("whose", ["an endpoint's", "everybody's"])
def test_programs_are_taken_off_a_cgroup(machine, whose):
    backend = machine.start()
    path = backend.attach(endpoint(1), NETWORK).cgroup
    path = path if whose == "an endpoint's" else path.parent
    before = programs_on(path)
    assert len(before) >= 15
    with cgroups.opened(path) as fd:
        for program in Pins(machine.name).open_programs():
            if program.type in links.ON_CGROUP or program.name == "slim_guard":
                links.take_off(program.fd, fd, program.attach_type)
            os.close(program.fd)
    assert programs_on(path) == []
    wait_for(lambda: backend.tend() or programs_on(path) == before)


def programs_on(path):
    shown = run(f"bpftool -j cgroup show {path}")
    return sorted(each["name"] for each in json.loads(shown.strip() or "[]"))


def test_a_cgroup_is_another_one(machine, monkeypatch):
    """As systemd does when a service starts again: its name is the endpoint's, and what runs
    in it is not. Nobody waits for the slow look to know that it is not policed."""
    monkeypatch.setattr(EbpfBackend, "pace", 1000.0)
    backend = machine.start()
    path = machine.cgroup / "service"
    backend.attach(endpoint(1, cgroup=str(path)), NETWORK)
    path.rmdir()
    path.mkdir()
    wait_for(lambda: backend.tend() or backend.status().endpoints == frozenset(), 2)
    assert backend.attach(endpoint(1, cgroup=str(path)), NETWORK).cgroup == path
    assert len(programs_on(path)) >= 15


@pytest.mark.parametrize("what", ["maps/slim_flow", "maps/record", "programs", ""])
def test_pins_are_removed(machine, what):
    """An agent that starts again finds everything, with its contents."""
    none = machine.left()
    backend = machine.start()
    backend.attach(endpoint(1), NETWORK)
    before = machine.left()
    backend.install(Tables(7))
    shutil.rmtree(machine.pins / what) if "/" not in what else (machine.pins / what).unlink()
    comes_back(machine, backend, before)
    backend.close()
    again = machine.start()
    assert again.status().generation == 7
    assert again.status().endpoints == {101}
    again.detach(101)
    again.teardown()
    assert machine.left() == none


def test_who_tears_down_beside_it_is_left_alone(machine):
    """Removed on purpose is not removed by mistake."""
    first, second = machine.start(), machine.start()
    second.teardown()
    with pytest.raises(BackendError, match="torn down"):
        wait_for(first.tend)
    assert not machine.pins.exists()


@pytest.fixture
def without_tcx(monkeypatch):
    """As on Linux before 6.6: filters on a clsact qdisc."""
    monkeypatch.setattr(filters, "link", lambda *_: False)


@pytest.mark.usefixtures("without_tcx")
@pytest.mark.parametrize("what", ["qdisc del dev eth0 clsact", "filter del dev eth0 ingress"])
def test_a_filter_is_taken_off(machine, what):
    none = machine.left()
    backend = machine.start()
    before = programs_of_filters(machine)
    machine.tc(what)
    wait_for(lambda: backend.tend() or programs_of_filters(machine) == before)
    backend.teardown()
    assert machine.left() == none


def programs_of_filters(machine):
    left = machine.left()
    return ["slim_tc_ingress" in left["ingress"], "slim_tc_egress" in left["egress"]]


def test_lo_is_down_for_a_while(machine, tended):
    """The kernel drops every route of lo with it."""
    machine.ip("link set lo down")
    with pytest.raises(BackendError, match="lo is down: ip link set lo up"):
        wait_for(tended.tend)
    machine.ip("link set lo up")


def test_the_interface_is_another_one(machine):
    """By name it is the same; every part of it has to be done again."""
    backend = machine.start()
    before = machine.left()
    machine.ip("link del eth0")
    with pytest.raises(BackendError, match="underlay interface eth0 is gone"):
        wait_for(backend.tend)
    machine.ip("link add eth0 type veth peer name peer0")
    machine.ip("address add 192.0.2.1/24 dev eth0")
    machine.ip("link set eth0 up")
    machine.ip("link set peer0 up")
    comes_back(machine, backend, before)
    with enter(machine.netns):
        assert control(backend).ifindex == socket.if_nametoindex("eth0")
    backend.teardown()
    assert machine.left()["tcx"] == []


def test_what_is_there_is_put_back_where_the_interface_is_not(machine):
    """Connections on one host do not need it."""
    backend = machine.start()
    machine.ip("link del eth0")
    machine.ip("route del local 240.0.0.0/4 dev lo table local")

    def is_back():
        with contextlib.suppress(BackendError):
            backend.tend()
        return "local 240.0.0.0/4" in machine.ip("route show table local")

    wait_for(is_back)
    with pytest.raises(BackendError, match="underlay interface eth0 is gone"):
        backend.tend()


def test_a_look_changes_nothing_that_is_right(machine, caplog):
    backend = machine.start()
    backend.attach(endpoint(1), NETWORK)
    before = machine.left()
    for _ in range(4):
        time.sleep(0.6)
        backend.tend()
    assert machine.left() == before
    assert "put back" not in caplog.text


def test_addresses_are_followed_at_once(machine, monkeypatch):
    """Whose they are decides policy; nobody waits for the slow look."""
    monkeypatch.setattr(EbpfBackend, "pace", 1000.0)
    backend = machine.start()
    for command, wanted in (
        ("address add 198.51.100.7/32 dev eth0", True),
        ("address del 198.51.100.7/32 dev eth0", False),
        ("route add local 198.51.100.0/28 dev lo table local", True),
    ):
        machine.ip(command)
        wait_for(lambda wanted=wanted: backend.tend() or is_own(backend) == wanted)


def is_own(backend):
    with contextlib.closing(pinned(backend, "slim_own")) as own:
        return any(b"\xc6\x33\x64" in key for key, _ in own.items())


def control(backend):
    with contextlib.closing(pinned(backend, "slim_control")) as held:
        return private.slim_control.from_buffer_copy(held.get(bytes(4)))


def test_source_ports_are_followed_at_once(machine, monkeypatch):
    monkeypatch.setattr(EbpfBackend, "pace", 1000.0)
    backend = machine.start()
    machine.set_sysctl("net.ipv4.ip_local_port_range", "'40000 40399'")
    wait_for(lambda: backend.tend() or control(backend).port_room == 300)
