# SPDX-License-Identifier: Apache-2.0
"""``slimnet cluster init --store etcd``: the first machine starts an etcd for all."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from machines import Machines, files, slimnet
from servers import etcdctl

from slimnet.cli import etcd
from slimnet.cluster.token import Token
from slimnet.directories import state
from slimnet.testbed.etcd import Etcd

pytestmark = pytest.mark.root

INIT = ("cluster", "init", "--store", "etcd", "--host", "h1")


def data(host):
    return state() / f"etcd-{host.instance}"


@pytest.fixture
def machines(tmp_path):
    made = Machines(tmp_path, "sqlite", settings="lease = 3.0\n")
    try:
        made.up()
        yield made
    finally:
        made.down()
        for host in made.hosts:
            Etcd(data(host), str(host.address)).remove()
        with contextlib.suppress(OSError):  # the machine has a store of its own
            state().rmdir()


def test_a_cluster_on_an_etcd_of_its_own(machines):
    """One command there, one command here, and a connection; nobody else gets at the store, and
    the server listens at the underlay address and for itself."""
    one, two, three = machines.hosts
    token = slimnet(one, *INIT).split()[-1]
    asked = Token.parse(token)
    assert asked.store == f"etcd://{one.address}:2379/slimnet"
    assert set(asked.files) == {"ca", "cert", "key"}
    assert (one.directory / "key").read_text().strip() not in f"{asked.files}{token}"
    said = slimnet(two, "cluster", "join", "--host", "h2", "-", "-o", "json", typed=token)
    assert json.loads(said)["host"] == "h2"
    for host in (one, two):
        for part in ("ca", "cert", "key"):
            path = host.directory / f"store-{part}.pem"
            assert path.read_text() == asked.files[part]
            assert path.stat().st_mode & 0o777 == 0o600
        host.start_agent().wait()
    with one.node() as here, two.node() as there:
        here.create_network("prod", "10.1.0.0/16")
        there.wait()
        there.attach("prod", "web")
        here.attach("prod", "me")
        here.wait()
        assert here.ping("web", source="me")["carried"] in ("accelerated", "fallback")

    # A host that joined by the token makes one for the next.
    another = slimnet(two, "cluster", "token", "create", "-o", "json")
    slimnet(three, "cluster", "join", "--host", "h3", json.loads(another)["token"])

    with one.enter():
        listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True).stdout
    ports = {line.split()[3] for line in listening.splitlines() if "2379" in line or "2380" in line}
    assert ports == {f"{one.address}:2379", "127.0.0.1:12380"}
    server = Etcd(data(one), str(one.address))
    endpoint = f"--endpoints=https://{one.address}:2379"
    ca = f"--cacert={one.directory}/store-ca.pem"
    mine = [f"--cert={one.directory}/store-cert.pem", f"--key={one.directory}/store-key.pem"]
    with one.enter():
        words = ("get", "slimnet/", "--prefix", "--keys-only")
        assert "slimnet/cluster" in etcdctl(server, *words, options=[endpoint, ca, *mine])
        with pytest.raises(AssertionError, match="(?i)certificate|deadline"):
            etcdctl(server, *words, options=[endpoint, ca, "--command-timeout=2s"])

    assert "this host is in a cluster already" in slimnet(one, *INIT, status=2)
    assert server.pid(0) is not None
    two.stop_agent()
    slimnet(two, "cluster", "leave", "--force")
    assert list(two.directory.glob("store-*.pem")) == []


def without(host, program):
    """What `init` says on a machine that has no such program."""
    covered = 'mount --bind /dev/null "$0" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", covered, shutil.which(program)]
    environment = {**os.environ, "SLIMNET_CONFIG": str(host.config), "NO_COLOR": "1"}
    with host.enter():
        done = subprocess.run(
            [*argv, sys.executable, "-m", "slimnet.cli", *INIT],
            env=environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def test_what_is_refused(machines):
    """One line, status 2, and nothing is left of it."""
    one = machines.hosts[0]
    before = files(one)

    def refused(*words):
        line = slimnet(one, *INIT, *words, status=2)
        assert files(one) == before
        assert not data(one).exists()
        return line

    assert "host.name: wanted lower-case letters" in refused("--host", "H 1")
    assert "underlay.address: wanted one of" in refused("--address", "192.0.2.1")
    with one.enter():
        taken = socket.create_server((str(one.address), 2379))
    with taken:
        assert "address already in use" in refused()
    for program, package in (("etcd", "etcd-server"), ("openssl", "openssl")):
        line = f"slimnet: no {program}: install it (Debian: apt install {package})\n"
        assert without(one, program) == line
        assert files(one) == before
        assert not data(one).exists()
    data(one).mkdir(parents=True)
    line = slimnet(one, *INIT, status=2)
    assert line == f"slimnet: {data(one)} is there: remove it, if no cluster needs it"
    data(one).rmdir()
    assert files(one) == before


def test_the_unit_is_one(tmp_path):
    """For machines with systemd, as systemd itself reads it."""
    server = Etcd(tmp_path, "127.0.0.1", durable=True, scheme="https", peers="127.0.0.1:12380")
    file = tmp_path / etcd.UNIT.name
    file.write_text(etcd.unit(server.command("/usr/bin/etcd", 0), tmp_path))
    done = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60
    )
    ours = [line for line in done.stderr.splitlines() if etcd.UNIT.name in line]
    assert (done.returncode, ours) == (0, [])
    assert "--unsafe-no-fsync" not in file.read_text()
