# SPDX-License-Identifier: Apache-2.0
"""The cluster's key is replaced while connections come and go: nobody notices, and what happens to
hosts that are not there, or cannot follow."""

import json
import os
import signal
import time

import attrs
import pytest
from machines import cluster, files, join, slimnet
from traffic import Traffic

from slimnet.cluster.keyring import fingerprint
from slimnet.cluster.token import Token
from slimnet.cluster.which import open_named

pytestmark = pytest.mark.root


def key(host):
    return (host.directory / "key").read_text()


def until(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def troubles(host):
    """What its agent says, ready or not."""
    return json.loads(slimnet(host, "status", "-o", "json", status=None))["trouble"]


@pytest.mark.parametrize("backends", [["ebpf"], ["preload"], ["ebpf", "preload"]], ids="-".join)
def test_nobody_notices(tmp_path, backends):
    """Of connections that are made all the time and one that stays, both ways, none is lost or
    refused, whoever announces to whom; after it hosts have one key, another one, and who knows
    the old one is a stranger."""
    with cluster(tmp_path, backends=backends) as machines:
        one, two, three = machines.hosts
        join(machines, one, two)
        token = json.loads(slimnet(one, "cluster", "token", "create", "-o", "json"))["token"]
        old = key(one)
        assert key(two) == old
        with (
            Traffic(one, two, tmp_path, "there") as there,
            Traffic(two, one, tmp_path, "back") as back,
        ):
            for _ in range(2):
                before = key(one)
                said = slimnet(one, "cluster", "rotate-key", "-o", "json")
                assert key(one) == key(two) != before
                assert json.loads(said)["key"] == fingerprint(bytes.fromhex(key(one)))
                for each in (there, back):
                    each.goes_on()
            ring = json.loads(machines.held()["keyring"][0])
            assert ring["sealed"] == ring["next"] == ""
            assert {each["failed"] for each in map(counted, (there, back))} == {()}
        assert old not in (key(one), key(two))
        assert old.strip().encode() not in b"".join(value for value, _ in machines.held().values())
        line = slimnet(three, "cluster", "join", "--host", "h3", token, status=2)
        assert "which the store has no more" in line
        assert troubles(one) == troubles(two) == []


def counted(traffic):
    report = traffic.reports()[-1]
    return {**report, "failed": tuple(report["failed"])}


def test_hosts_that_are_lost(tmp_path):
    """They are named, and nothing is changed, unless they are to be left; then they say what to
    do, and one command gives them the key while their agent runs."""
    with cluster(tmp_path, "sqlite") as machines:
        one, two, _ = machines.hosts
        join(machines, one, two)
        with one.node() as here, two.node() as there:
            there.attach("prod", "web")
            here.attach("prod", "me")
        two.kill_agent()
        with one.node() as here:
            until(lambda: [each.lost for each in here.host_states()] == [False, True])
        before, written = machines.held(), files(one)[f"{one.directory}/key"]
        line = slimnet(one, "cluster", "rotate-key", status=2)
        assert line.startswith("slimnet: host h2 is lost, and would have to join again: start its")
        after = machines.held()
        assert after.keys() == before.keys()
        assert after["hosts/h1"] == before["hosts/h1"]
        assert files(one)[f"{one.directory}/key"] == written
        slimnet(one, "cluster", "rotate-key", "--leave-lost")
        assert key(one) != key(two)
        two.start_agent().wait()
        (trouble,) = until(lambda: troubles(two))
        assert "the key was changed while this host was away" in trouble
        assert "`slimnet cluster join --again TOKEN` here" in trouble
        said = slimnet(one, "cluster", "token", "create", "--uses", "1", "-o", "json")
        token = json.loads(said)["token"]
        other = str(attrs.evolve(Token.parse(token), cluster="c0ffee"))
        line = slimnet(two, "cluster", "join", "--again", other, status=2)
        assert line.startswith("slimnet: token: wanted one for cluster ")
        line = slimnet(two, "cluster", "join", "--again", "--host", "h9", token, status=2)
        assert line == "slimnet: --again: wanted no other option, got '--host'"
        slimnet(two, "cluster", "join", "--again", "-", typed=token)
        assert key(one) == key(two)
        until(lambda: not troubles(two))
        slimnet(two, "cluster", "token", "ls")
        with one.node() as here, two.node() as there:
            here.wait()
            there.wait()
            assert here.ping("web", source="me")["carried"]
        line = slimnet(one, "cluster", "rotate-key", "--abort", status=2)
        assert line == "slimnet: no key is being changed: there is nothing to go back from"


def test_stopped_in_between(tmp_path):
    """A host that does not follow is named; connections go on with both keys; and it goes on,
    or back, from there."""
    # Long enough that a host that is stopped, or killed, for a while is not lost meanwhile.
    with cluster(tmp_path, "sqlite", lease=30.0) as machines:
        one, two, _ = machines.hosts
        join(machines, one, two)
        old = key(one)
        with Traffic(one, two, tmp_path) as traffic:
            for back in (True, False):
                os.kill(two.pid, signal.SIGSTOP)
                try:
                    line = slimnet(one, "cluster", "rotate-key", "--timeout", "1", status=2,
                                   alone=False)  # fmt: skip
                finally:
                    os.kill(two.pid, signal.SIGCONT)
                assert "host h2 does not take both keys" in line
                assert key(one).splitlines()[0] == old.strip()
                assert len(key(one).splitlines()) == 2
                line = slimnet(one, "cluster", "token", "create", status=2)
                assert line.startswith("slimnet: the cluster's key is being changed: ")
                traffic.goes_on()
                slimnet(one, "cluster", "rotate-key", *["--abort"][: int(back)])
                assert key(one) == key(two)
                assert (key(one) == old) is back
            # An agent that is killed in between has the keys that it said it takes.
            two.kill_agent()
            two.start_agent().wait()
            traffic.goes_on()
            assert traffic.reports()[-1]["failed"] == []


def test_what_is_not_understood(tmp_path):
    """Of keys that a later version wrote otherwise: it is named, and no host changes its own."""
    with cluster(tmp_path, "sqlite") as machines:
        one, _, _ = machines.hosts
        join(machines, one)
        old = key(one)
        with open_named(machines.url) as store:
            store.transact(put={"keyring": b'{"keys":["a","b"],"version":2}'})
        (trouble,) = until(lambda: troubles(one))
        assert trouble.startswith("store key keyring: wanted a readable record (")
        one.stop_agent()
        one.start_agent().wait()
        assert len(until(lambda: troubles(one))) == 1
        line = slimnet(one, "cluster", "rotate-key", status=2)
        assert line.startswith("slimnet: store key keyring: wanted a readable record (")
        assert machines.held()["keyring"][0] == b'{"keys":["a","b"],"version":2}'
        assert key(one) == old
