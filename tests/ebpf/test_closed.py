# SPDX-License-Identifier: Apache-2.0
"""Endpoints that the BPF LSM closes; and what is said where a kernel has none."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from machine import NETWORK, endpoint, run, wait_for

from slimnet import BackendError, CapabilityMissing
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.linux.netns import enter
from slimnet.place import Part, Place
from slimnet_ebpf import closing, links

pytestmark = pytest.mark.root

ATTACKS = Path(__file__).with_name("attacks.py")
#: What leads out of an endpoint that is not closed.
LEADING_OUT = {
    "packet socket": "EAFNOSUPPORT",
    "vsock": "EAFNOSUPPORT",
    "abstract stream": "EPERM",
    "abstract datagrams": "EPERM",
    "abstract datagram": "EPERM",
    "CAP_NET_ADMIN": "EPERM",
    "bpf": "EPERM",
    "bpffs": "EPERM",
    "cgroup by clone3": "EPERM",
    "cgroup by writing": "EPERM",
}
#: What else is refused to it: the hooks of every endpoint refuse that too.
HELD = {"raw socket": "EPERM", "original destination": "ENOENT"}
GOES_ON = (
    *("TCP", "netlink", "a pair", "own abstract stream", "own abstract datagrams"),
    "reading cgroupfs",
)


@pytest.fixture
def attack(machine):
    """What becomes of everything that attacks.py tries, in a cgroup of this host."""
    with ExitStack() as undo:
        foreign = machine.cgroup / "foreign"
        foreign.mkdir()
        names = f"slt-s{os.getpid()}", f"slt-d{os.getpid()}"
        with enter(machine.netns):
            kinds = zip((socket.SOCK_STREAM, socket.SOCK_DGRAM), names, strict=True)
            for kind, name in kinds:
                sock = undo.enter_context(socket.socket(socket.AF_UNIX, kind))
                sock.bind(f"\0{name}")
                if kind == socket.SOCK_STREAM:
                    sock.listen()

        def attack(cgroup):
            shell = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
            command = ["nsenter", f"--net={machine.netns}", "sh", "-c", shell, "sh"]
            command += [sys.executable, ATTACKS, foreign.relative_to(cgroup_mount()), *names]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)

        yield attack


def test_without_it_everything_succeeds(machine, attack):
    """So that the test below can fail; what every endpoint is held to is refused all the same."""
    backend = machine.start()
    said = attack(backend.attach(endpoint(), NETWORK).cgroup)
    assert said.pop("raw socket") == "EPROTONOSUPPORT"
    assert said.pop("original destination") in ("", "ENOENT")  # where connections are tracked
    assert said == dict.fromkeys([*LEADING_OUT, *GOES_ON], "")
    assert not list(machine.pins.rglob("slim_closed*"))  # not asked for


@pytest.mark.lsm
def test_closed(machine, attack):
    """Each is refused, in a cgroup below too, and in that of the next process that adopts."""
    backend = machine.start()
    place = backend.attach(endpoint(closed=True), NETWORK)
    assert place.closed
    below = place.cgroup / "below"
    below.mkdir()
    expected = LEADING_OUT | HELD | dict.fromkeys(GOES_ON, "")
    assert attack(place.cgroup) == expected
    assert attack(below) == expected
    # Another's is not closed, nor is the host itself.
    other = backend.attach(endpoint(2), NETWORK)
    assert attack(other.cgroup)["packet socket"] == ""
    backend.close()
    adopted = machine.start()
    assert adopted.attach(endpoint(closed=True), NETWORK) == place
    with pytest.raises(BackendError, match="that id is another's"):
        adopted.attach(endpoint(), NETWORK)
    third = adopted.attach(endpoint(3, closed=True), NETWORK)
    assert attack(third.cgroup) == expected
    below.rmdir()
    for number in (101, 102, 103):
        adopted.detach(number)
    adopted.teardown()
    assert machine.left()["pins"] == []


@pytest.mark.lsm
def test_what_is_taken_off_is_put_back(machine, attack):
    backend = machine.start()
    place = backend.attach(endpoint(closed=True), NETWORK)
    fd = os.open(place.cgroup, os.O_RDONLY)
    try:
        there = links.attached(fd, links.ATTACH_LSM_CGROUP)
        assert len(there) == 8
        run(f"bpftool cgroup detach {place.cgroup} lsm_cgroup id {there[0]}")
        assert len(links.attached(fd, links.ATTACH_LSM_CGROUP)) == 7

        def mended():
            backend.tend()
            return links.attached(fd, links.ATTACH_LSM_CGROUP) == there

        wait_for(mended, 10)
    finally:
        os.close(fd)


@pytest.mark.lsm
def test_who_died_while_loading(machine, attack):
    """Leaves some of the pins, and no map, which is the last."""
    backend = machine.start()
    backend.attach(endpoint(closed=True), NETWORK)
    backend.detach(101)
    backend.close()
    (machine.pins / "maps/slim_closed").unlink()
    backend = machine.start()
    place = backend.attach(endpoint(2, closed=True), NETWORK)
    assert attack(place.cgroup)["packet socket"] == "EAFNOSUPPORT"


def test_a_kernel_that_cannot(machine, monkeypatch):
    """Says so in one line, which says what to drop instead; nothing is made."""
    monkeypatch.setattr(closing.lsm, "active", lambda: frozenset({"landlock"}))
    closing.closes.cache_clear()
    try:
        backend = machine.start()
        assert Part.CLOSED not in backend.capabilities.takes
        with pytest.raises(CapabilityMissing) as said:
            backend.place("prod.default.e1", Place(closed=True))
    finally:
        closing.closes.cache_clear()
    assert "\n" not in str(said.value)
    for part in ("endpoint.closed: ", "lsm=...,bpf", "CAP_NET_RAW", "AF_VSOCK"):
        assert part in str(said.value)
    assert not list(machine.cgroup.rglob("prod.default.e1"))
