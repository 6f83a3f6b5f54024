# SPDX-License-Identifier: Apache-2.0
"""The cluster's key is replaced while connections come and go: nobody notices, and what happens to
hosts that are not there, or cannot follow."""

import contextlib
import json
import time

import pytest
from machines import Machines, join, slimnet
from traffic import Traffic

from slimnet.cluster.keyring import fingerprint

pytestmark = pytest.mark.root

LEASE = "lease = 3.0\n"


@contextlib.contextmanager
def cluster(directory, kind="etcd", **more):
    made = Machines(directory, kind, settings=LEASE, **more)
    try:
        made.up()
        yield made
    finally:
        made.down()


def key(host):
    return (host.directory / "key").read_text()


def until(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def troubles(host):
    return json.loads(slimnet(host, "status", "-o", "json"))["trouble"]


@pytest.mark.parametrize(
    "backends", [["ebpf"], ["preload"], ["ebpf", "preload"], ["preload", "ebpf"]], ids="-".join
)
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
            for _ in range(3):
                before = key(one)
                said = slimnet(one, "cluster", "rotate-key", "-o", "json")
                assert key(one) == key(two) != before
                assert json.loads(said)["key"] == fingerprint(bytes.fromhex(key(one)))
                for each in (there, back):
                    each.goes_on()
            # From where somebody was stopped, and back.
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
