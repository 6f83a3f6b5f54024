# SPDX-License-Identifier: Apache-2.0
"""The programs of placement ``netns``: loaded with the first endpoint that has a network
namespace of its own, which most hosts never have."""

import contextlib
import json
import os
import shutil

import pytest
from machine import NETWORK, endpoint, run, wait_for

from slimnet import AbiMismatch, BackendUnavailable
from slimnet.tables import Tables
from slimnet_ebpf import EbpfBackend, links
from slimnet_ebpf.carrier import DEVICES
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
