# SPDX-License-Identifier: Apache-2.0
"""A store that a later version has written, and hosts of this one; hosts of two versions."""

import contextlib
import json
import shutil
import struct
import time
from pathlib import Path

import pytest
from machines import Machines, cluster, first, join, slimnet
from traffic import Traffic

import slimnet as slimnet_package
import slimnet_ebpf
from slimnet import contract as contracts
from slimnet.cluster.which import open_named
from slimnet.linux import netns
from slimnet_ebpf import contract as private
from slimnet_ebpf import requirements

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
def test_a_store_of_a_later_format(tmp_path, kind):
    """Named in one line, by the agent that runs, by one that is started, and by commands; none
    changes anything, connections come and go as before, and all goes on when it is back."""
    machines = Machines(tmp_path, kind, settings="lease = 3.0\n")
    right = "the store is of format '2', and this version of slimnet knows none after 1: upgrade"
    try:
        machines.up()
        one, two, _ = machines.hosts
        join(machines, one, two)
        with (
            Traffic(one, two, tmp_path) as traffic,
            netns.enter(machines.underlay.switch),
            open_named(machines.url) as store,
        ):
            own = f"cluster/{json.loads(store.get('cluster')[0])}"
            store.transact(put={"format": b"2", own: b"{}"})
            deadline = time.monotonic() + 60
            while right not in slimnet(one, "status", "-o", "json", status=None):
                assert time.monotonic() < deadline
            time.sleep(4)  # longer than the lease
            before = machines.held()
            traffic.goes_on()
            one.stop_agent()
            traffic.goes_on()
            for words in (
                ("agent",),
                ("cluster", "token", "create"),
                ("cluster", "rotate-key"),
                ("cluster", "leave", "--force"),
            ):
                line = slimnet(one, *words, status=2)
                assert right in line, words
            after = machines.held()
            assert {name for name in after if after[name] != before.get(name)} == set()
            traffic.goes_on()
            store.transact(delete=["format"])
            one.start_agent().wait()
            with one.node() as node:
                node.create_network("more", "10.9.0.0/16")
                node.wait()
            traffic.goes_on()
            assert traffic.reports()[-1]["failed"] == []
    finally:
        machines.down()


def older(directory, *, contract):
    """A tree of another version, for PYTHONPATH: this one's source, whose data path has other
    fingerprints where ``contract`` says so.
    """
    for package in (slimnet_package, slimnet_ebpf):
        source = Path(package.__file__).parent
        shutil.copytree(
            source, directory / source.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    if contract:
        path = directory / "slimnet_ebpf" / requirements.OBJECT.name
        ours = (contracts.SLIM_ABI_VERSION, contracts.FINGERPRINT, private.FINGERPRINT)
        theirs = (ours[0], ours[1] ^ 1, ours[2] ^ 1)
        stamps = [struct.pack("=3Q", *each) for each in (ours, theirs)]
        assert path.read_bytes().count(stamps[0]) == 1
        path.write_bytes(path.read_bytes().replace(*stamps))
        for package, number in (("slimnet", 1), ("slimnet_ebpf", 2)):
            path = directory / package / "contract.py"
            line = "FINGERPRINT: Final[int] = 0x{:016X}"
            before, after = (line.format(each[number]) for each in (ours, theirs))
            assert before in path.read_text()
            path.write_text(path.read_text().replace(before, after))
    return directory


def test_a_rolling_upgrade(tmp_path, monkeypatch):
    """Three hosts under load, one after another, from a version whose data path is of another
    contract: it is refused, and replaced by one command; then, of the same contract, adopted back
    and forth. No connection is lost or refused, open or new, from or to any host; and what is
    written under either version is in force under both."""
    before = older(tmp_path / "before", contract=True)
    alike = older(tmp_path / "alike", contract=False)
    # A host whose agent is away for longer than its lease is lost.
    more = {"backends": ["ebpf"], "lease": 90.0}
    with cluster(tmp_path, **more) as machines, contextlib.ExitStack() as held:
        hosts = machines.hosts
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(before))
            join(machines, *hosts)
        old = {abi(host) for host in hosts}
        assert len(old) == 1
        ring = zip(hosts, [*hosts[1:], hosts[0]], strict=True)
        every = [
            held.enter_context(Traffic(*pair, tmp_path, f"{pair[0].name}-{pair[1].name}"))
            for pair in ring
        ]
        for number, host in enumerate(hosts):
            host.stop_agent()
            assert "slimnet agent --upgrade replaces" in slimnet(host, "agent", status=2)
            said = slimnet(host, "agent", "--upgrade")
            assert said.endswith(" now; endpoints: 2\n")
            host.start_agent().wait()
            assert abi(host) not in old
            assert [abi(each) in old for each in hosts[number + 1 :]] == [True] * (2 - number)
            for by in dict.fromkeys((host, hosts[-1])):
                with by.node() as node:
                    node.create_network(
                        f"by-{number}{by.name}", f"10.{number + 2}{by.name[1]}.0.0/16"
                    )
                    node.wait()
            for traffic in every:
                traffic.goes_on(20)
        new = abi(hosts[0])
        hosts[0].stop_agent()
        assert f"is of contract {new} already" in slimnet(hosts[0], "agent", "--upgrade")
        for tree in (str(alike), None):
            hosts[0].stop_agent()
            with monkeypatch.context() as patch:
                if tree:
                    patch.setenv("PYTHONPATH", tree)
                hosts[0].start_agent().wait()
            assert abi(hosts[0]) == new
            for traffic in every:
                traffic.goes_on(20)
        assert [traffic.reports()[-1]["failed"] for traffic in every] == [[], [], []]


def test_an_agent_of_before_hosts_were_asked(tmp_path, monkeypatch):
    """It says what it has in force where nobody looks: who waits is told of it and of its version,
    in one line. What it wrote stays in the store when it has gone, and is named."""
    tree = older(tmp_path / "before", contract=False)
    keys = tree / "slimnet/cluster/keys.py"
    there = keys.read_text()
    for kind in ("installed", "seen", "keys"):
        assert there.count(f'"~{kind}/<host>"') == 1
        there = there.replace(f'"~{kind}/<host>"', f'"{kind}/<host>"')
    keys.write_text(there)
    site = tree / "slimnet/agent/site.py"
    site.write_text(site.read_text().replace("version=_version()", 'version="0.0.9"'))
    said = "not everywhere at revision {}: h2 says nothing (its agent, of slimnet 0.0.9, hangs or"
    with cluster(tmp_path, "sqlite", backends=["noop"]) as machines:
        one, two, _ = machines.hosts
        token = first(machines)
        one.start_agent().wait()
        slimnet(two, "cluster", "join", "--host", "h2", token)
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tree))
            two.start_agent().wait()
        with one.node() as node:
            node.create_network("prod", "10.1.0.0/16")
            answer = json.loads(
                slimnet(one, "status", "--wait", "--timeout", "1", "-o", "json", status=None)
            )
            (line,) = (each for each in answer["trouble"] if "not everywhere" in each)
            assert said.format(answer["revision"]) in line
            two.stop_agent()
            with machines.opened() as store:
                before = store.get("seen/h2")
            two.start_agent().wait()
            node.wait()
        answer = json.loads(slimnet(two, "status", "-o", "json"))
        assert answer["trouble"] == []
        (line,) = (each for each in answer["warnings"] if "this version leaves alone: " in each)
        assert "seen/h2" in line
        with machines.opened() as store:
            assert before is not None
            assert store.get("seen/h2") == before


def abi(host):
    """The contract of its data path."""
    return json.loads(slimnet(host, "status", "-o", "json"))["abi"]
