# SPDX-License-Identifier: Apache-2.0
"""A running data path of another contract, replaced with its endpoints running.

The other version is this tree, with an object file of other fingerprints; where layouts are to
differ, compiled from this source with a field of one more name.
"""

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from lab.cluster import NETWORK as LAB_NETWORK
from lab.cluster import Lab
from lab.paths import NETNS
from machine import NETWORK, endpoint, wait_for
from test_crash import killed_at, moments

from slimnet import AbiMismatch, ConfigError, InUse, contract
from slimnet.abc import Upgrade
from slimnet.model import Direction
from slimnet.tables import Tables
from slimnet_ebpf import EbpfBackend, filters, links, requirements
from slimnet_ebpf import contract as private
from slimnet_ebpf.libbpf import BpfError
from slimnet_ebpf.maps import Map
from slimnet_ebpf.objects import AbiStamp
from slimnet_ebpf.pins import Pins

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]


def other(path, *, tables=False, source=requirements.OBJECT):
    """An object file of another version.

    Args:
        path: where it is written.
        tables: the contract that all data paths share is another one, too.
        source: whose programs it has.
    """
    ours = contract.SLIM_ABI_VERSION, contract.FINGERPRINT, private.FINGERPRINT
    theirs = ours[0], ours[1] ^ tables, ours[2] ^ 1
    whole = source.read_bytes()
    assert whole.count(struct.pack("=3Q", *ours)) == 1
    path.write_bytes(whole.replace(struct.pack("=3Q", *ours), struct.pack("=3Q", *theirs)))
    return path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """An object whose sockets have a field of another name: none of theirs can be kept."""
    tree = tmp_path_factory.mktemp("older")
    for name in ("bpf", "Makefile"):
        there = ROOT / "backends/ebpf" / name
        (shutil.copytree if there.is_dir() else shutil.copy)(there, tree / name)
    for each in (tree / "bpf").glob("*.[ch]"):
        each.write_text(re.sub(r"\bown_pace\b", "older_pace", each.read_text()))
    (tree / "src/slimnet_ebpf").mkdir(parents=True)
    subprocess.run(
        ["make", "--silent", f"UAPI={ROOT}/kernel/uapi", "src/slimnet_ebpf/slimnet.bpf.o"],
        cwd=tree,
        check=True,
    )
    return tree / "src/slimnet_ebpf/slimnet.bpf.o"


def become(path, tables):
    """In the process that drives a data path: be the version of that object file."""
    import pathlib

    from slimnet import contract
    from slimnet_ebpf import EbpfBackend
    from slimnet_ebpf import contract as private

    EbpfBackend.object_path = pathlib.Path(path)
    contract.FINGERPRINT ^= tables
    private.FINGERPRINT ^= 1


@contextlib.contextmanager
def older(mode, path, *, tables=False):
    """The laboratory, whose second host runs another version."""
    lab = Lab(mode)
    try:
        host = lab.hosts[1]
        host.teardown()
        host.start_backend(become, str(path), tables)
        lab.install()
        yield lab, host
    finally:
        lab.close()


def churn(address, port, going):
    """Connections, one after another, as long as a file is there; how many, and the errors."""
    import os

    done, failed = 0, []
    while os.path.exists(going):
        with socket.socket() as sock:
            sock.settimeout(3)
            try:
                sock.connect((address, port))
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                done += 1
            except OSError as error:
                failed.append(repr(error))
    return done, failed


@contextlib.contextmanager
def going(lab, *calls):
    """While the block runs, each (client, address, port) connects again and again.

    Returns:
        a list, with what :func:`churn` said of each after the block.
    """
    flag = lab.directory / "going"
    flag.touch()
    said = []
    futures = [client.start(churn, address, port, str(flag)) for client, address, port in calls]
    time.sleep(0.2)
    try:
        yield said
    finally:
        flag.unlink()
        said += [each.result(60) for each in futures]


def upgrade(host, how=Upgrade.KEEPING):
    host.start_backend(upgrade=how)
    host.backend.install(host.lab.tables(host))


def talks(*socks):
    """Whether what is sent comes back, over each."""
    for sock in socks:
        sock.sendall(b"hello")
    return all(sock.recv(5) == b"hello" for sock in socks)


def attached(*paths):
    """Names and numbers of the programs of data paths on cgroups."""
    found = set()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            for point in links.CGROUP_POINTS:
                found |= {(links.program_name(each), each) for each in links.attached(fd, point)}
        finally:
            os.close(fd)
    return found


def is_there(number):
    """Whether the kernel has a program of that number."""
    try:
        links.program_name(number)
    except BpfError:
        return False
    return True


def loaded(instance):
    found = set()
    for program in Pins(instance).open_programs():
        found.add((program.name[:15], links.program_id(program.fd)))
        os.close(program.fd)
    return found


@pytest.mark.parametrize(("placed", "tables"), [("ebpf", True), (NETNS, False)])
def test_connections_go_on(tmp_path, placed, tables):
    """Open ones of every kind and new ones, from and to the host and within it, before, during
    and after; what policy denies is denied at each moment. Nothing of the version before is
    left."""
    path = other(tmp_path / "other.o", tables=tables)
    with older(placed, path, tables=tables) as (lab, host):
        away, here, more = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1)
        for each in (away, here):
            each.serve(80)
            lab.isolate(each, Direction.INGRESS)
            for client in (away, here, more):
                lab.rule(each, Direction.INGRESS, peer=client, port=80, allow=True)
        here.serve(81)
        lab.install()
        bound = here.socket()
        bound.bind(("0.0.0.0", 5000))
        bound.connect((away.address, 80))
        socks = [bound, *(a.connect(b.address, 80) for a, b in
                 ((away, here), (here, away), (more, here)))]  # fmt: skip
        names = [(sock.getsockname(), sock.getpeername()) for sock in socks]
        assert talks(*socks)
        before = loaded(host.instance)
        host.kill_backend()
        with pytest.raises(AbiMismatch, match="slimnet agent --upgrade replaces"):
            host.start_backend()
        with going(
            lab,
            (away, here.address, 80),
            (here, away.address, 80),
            (more, here.address, 80),
            (away, here.address, 81),
        ) as said:
            upgrade(host)
            assert talks(*socks)
            time.sleep(0.3)
        *allowed, denied = said
        assert [failed for _, failed in allowed] == [[], [], []], said
        assert all(done > 10 for done, _ in allowed), said
        assert denied[0] == 0
        assert len(denied[1]) > 3
        assert talks(*socks)
        assert [(sock.getsockname(), sock.getpeername()) for sock in socks] == names
        after = loaded(host.instance)
        wait_for(lambda: not any(is_there(number) for _, number in before))
        on = attached(host.cgroup / "endpoints", *(each.cgroup for each in (here, more)))
        assert on
        assert on <= after
        assert host.backend.status().abi == str(AbiStamp.ours())
        assert Pins(host.instance).record().get("closing") is None
        lab.rule(here, Direction.INGRESS, peer=away, port=80, allow=False)
        lab.install()
        with pytest.raises(OSError):
            talks(socks[1])
        assert talks(socks[0], socks[2], socks[3])
        # The next one adopts it, as any.
        host.kill_backend()
        host.start_backend()
        assert talks(socks[0], socks[2], socks[3])


def test_connections_that_cannot_go_on(tmp_path, compiled):
    """Refused in one line that says how many, and why, and nothing changes; where it is told to,
    they are closed at both ends, listeners too, and new ones come and go at once. What policy
    denies is denied throughout."""
    path = other(tmp_path / "other.o", source=compiled)
    with older("ebpf", path) as (lab, host):
        away, here = lab.endpoint(0), lab.endpoint(1)
        for each in (away, here):
            each.serve(80)
        here.serve(81)
        lab.isolate(here, Direction.INGRESS)
        lab.rule(here, Direction.INGRESS, peer=away, port=80, allow=True)
        lab.install()
        socks = [away.connect(here.address, 80), here.connect(away.address, 80)]
        assert talks(*socks)
        host.kill_backend()
        with (
            going(lab, (away, here.address, 81)) as said,
            pytest.raises(
                InUse,
                match=r"closes 2 connections and 2 other sockets of its endpoints \(slim_socket"
                r" differ\): slimnet agent --upgrade --force does it$",
            ),
        ):
            host.start_backend(upgrade=Upgrade.KEEPING)
        assert talks(*socks)
        away.connect(here.address, 80).close()
        with going(lab, (away, here.address, 81)) as more:
            host.start_backend(upgrade=Upgrade.CLOSING)
            for each in socks:
                with pytest.raises(OSError):
                    talks(each)
            # Nobody gets through before it is told whose they are, and there are tables.
            with pytest.raises(OSError):
                here.connect(away.address, 80)
            host.backend.attach(here.record, LAB_NETWORK)
            host.backend.install(lab.tables(host))
            here.serve(80)
            assert talks(away.connect(here.address, 80), here.connect(away.address, 80))
        for ((done, failed),) in (said, more):
            assert done == 0
            assert failed


def test_connections_of_namespaces_that_cannot_go_on(tmp_path, compiled):
    """The same where endpoints keep network namespaces: their listeners are their own, and stay."""
    path = other(tmp_path / "other.o", source=compiled)
    with older(NETNS, path) as (lab, host):
        away, here = lab.endpoint(0), lab.endpoint(1)
        here.serve(80)
        lab.isolate(here, Direction.INGRESS)
        lab.rule(here, Direction.INGRESS, peer=away, port=80, allow=True)
        lab.install()
        sock = away.connect(here.address, 80)
        assert talks(sock)
        over = away.connect(here.address, 80)
        over.shutdown(socket.SHUT_WR)
        assert over.recv(1) == b""
        host.kill_backend()
        with pytest.raises(InUse, match="closes 1 connections and 0 other sockets"):
            host.start_backend(upgrade=Upgrade.KEEPING)
        assert talks(sock)
        host.start_backend(upgrade=Upgrade.CLOSING)
        with pytest.raises(OSError):
            talks(sock)
        host.backend.attach(here.record, LAB_NETWORK)
        host.backend.install(lab.tables(host))
        assert talks(away.connect(here.address, 80))
        with pytest.raises(OSError):
            away.connect(here.address, 81)


def is_whole(machine, backend, place):
    """Whether all that runs of a data path is of one load, which is pinned."""
    after = loaded(machine.name)
    assert attached(machine.context.cgroup, place) <= after
    assert len(attached(place)) > 15
    assert machine.lookups() == 1
    assert len(machine.tcx()) in (0, 2)
    assert AbiStamp.recorded(Pins(machine.name).record()) == AbiStamp.ours()
    assert "closing" not in Pins(machine.name).record()
    assert backend.status().endpoints == {101}


def run_other(machine, monkeypatch, path):
    """Leave a data path of that other version, with an endpoint; its cgroup."""
    with monkeypatch.context() as patch:
        patch.setattr(contract, "FINGERPRINT", contract.FINGERPRINT ^ 1)
        patch.setattr(private, "FINGERPRINT", private.FINGERPRINT ^ 1)
        patch.setattr(EbpfBackend, "object_path", path)
        backend = machine.start()
        place = backend.attach(endpoint(1), NETWORK).cgroup
        backend.install(Tables(1))
        backend.close()
    return place


@pytest.mark.parametrize("how", [Upgrade.KEEPING, Upgrade.CLOSING], ids=["keeping", "closing"])
def test_killed_at_any_moment(machine, monkeypatch, tmp_path, how):
    """It is refused by an agent until it is run again, which ends what was begun; meanwhile the
    endpoint has all the programs that decide."""
    path = other(tmp_path / "other.o", tables=True)

    def begin():
        place = run_other(machine, monkeypatch, path)
        if how is Upgrade.CLOSING:
            (machine.pins / "maps" / "slim_socket").unlink()
        return place

    def replace():
        backend = machine.start(upgrade=how)
        backend.attach(endpoint(1), NETWORK)
        backend.install(Tables(1))
        return backend

    clean = machine.left()
    place = begin()
    every = moments(replace)
    replace().teardown()
    for moment in every[::3]:
        place = begin()
        points = len(attached(place))
        assert killed_at(replace, moment), moment
        assert len(attached(place)) >= points, moment
        if AbiStamp.recorded(Pins(machine.name).record()) != AbiStamp.ours():
            with pytest.raises(AbiMismatch, match="slimnet agent --upgrade"):
                machine.start()
        backend = replace()
        is_whole(machine, backend, place)
        backend.teardown()
        assert machine.left() == clean


def test_without_tcx(machine, monkeypatch, tmp_path):
    """As on Linux before 6.6: the filters are replaced where they are, one for one."""
    monkeypatch.setattr(filters, "link", lambda *_: False)
    clean = machine.left()
    run_other(machine, monkeypatch, other(tmp_path / "other.o", tables=True))
    before = [machine.tc(f"filter show dev eth0 {way}") for way in ("ingress", "egress")]
    backend = machine.start(upgrade=Upgrade.KEEPING)
    ours = loaded(machine.name)
    assert before == [machine.tc(f"filter show dev eth0 {way}") for way in ("ingress", "egress")]
    backend.install(Tables(1))
    for way in ("ingress", "egress"):
        shown = machine.tc(f"filter show dev eth0 {way}")
        found = re.findall(r"(slim_tc_\w+)\S* direct-action .*?id (\d+)", shown)
        assert [(name, int(number)) in ours for name, number in found] == [True], shown
    backend.teardown()
    assert machine.left() == clean


def test_what_cannot_be_replaced(machine, monkeypatch, tmp_path):
    """Said in one line, and nothing changes."""
    path = other(tmp_path / "other.o", tables=True)
    run_other(machine, monkeypatch, path)
    record, programs = Pins(machine.name).record(), loaded(machine.name)
    with pytest.raises(ConfigError, match=r"backend\.ebpf\.wire_ports: wanted the value that"):
        machine.start(upgrade=Upgrade.KEEPING, options={"wire_ports": 5000})
    with monkeypatch.context() as patch:
        patch.setattr(EbpfBackend, "object_path", path)
        with pytest.raises(AbiMismatch, match=r"other\.o was built from contract"):
            machine.start(upgrade=Upgrade.KEEPING)
    index = machine.pins / "maps" / "index"
    kept = Map.pinned(index)
    index.unlink()
    Map.create(kept.type, "index", 4, kept.value_size + 8, kept.max_entries).pin(index)
    with pytest.raises(AbiMismatch, match="cannot be replaced with endpoints running: stop them"):
        machine.start(upgrade=Upgrade.CLOSING)
    index.unlink()
    kept.pin(index)
    assert (Pins(machine.name).record(), loaded(machine.name)) == (record, programs)
    backend = machine.start(upgrade=Upgrade.KEEPING)
    backend.install(Tables(1))
    backend.teardown()
