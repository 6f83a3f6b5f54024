# SPDX-License-Identifier: Apache-2.0
"""Hosts of a testbed whose store is etcd: what users see of it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimnet.exceptions import AlreadyExists, CapabilityMissing, InvalidValue, StoreUnreachable
from slimnet.testbed import Testbed

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def bed():
    testbed = Testbed(f"slt-etcd-{os.getpid()}", hosts=2, store="etcd:3")
    try:
        testbed.up()
        yield testbed
    finally:
        testbed.down()
        assert not testbed.directory.exists()
        assert servers(testbed) == []


def servers(testbed):
    """The command lines of the processes that have a testbed's directory in them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
            dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if not dead and f"{testbed.directory}/".encode() in line:
            found.append(line)
    return found


def on(host, *words, ok=True):
    argv = [sys.executable, "-m", "slimnet.cli", *words]
    with host.enter():
        done = subprocess.run(
            argv, env=host.environment(), capture_output=True, text=True, timeout=120
        )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def lead(node, name, cidr):
    """Until the others have a leader again, which a busy machine may take long for."""
    deadline = time.monotonic() + 120
    while True:
        try:
            node.create_network(name, cidr)
        except StoreUnreachable:
            assert time.monotonic() < deadline
        except AlreadyExists:  # the one that nobody was sure of
            return
        else:
            return


def test_a_connection_over_a_store_that_loses_members(bed):
    """What one host is told, the other does; with one of three servers killed all goes on, and
    the next `up` starts it again."""
    one, two = bed.hosts
    on(one, "network", "create", "prod", "10.1.0.0/16")
    with two.node() as there, one.node() as here:
        there.wait()
        for killed in (None, 0, 1):
            if killed is not None:
                bed.etcd.kill(killed)
                assert bed.etcd.pid(killed) is None
                bed.up()
                assert bed.etcd.pid(killed) is not None
                bed.etcd.kill((killed + 1) % 3)
                lead(here, f"net-{killed}", f"10.{killed + 2}.0.0/16")
            name = f"web-{killed}".lower()
            with there.attach("prod", name), here.attach("prod", "me"):
                here.wait()
                there.wait()
                assert {each.name for each in here.endpoints()} == {name, "me"}
                assert here.ping(name, source="me")["carried"]
            bed.up()
    status = on(one, "status", "-o", "json").stdout
    assert bed.etcd.url in status


def test_found_again_with_its_store(bed):
    found = Testbed.find(bed.name)
    assert (found.store, found.etcd.endpoints) == ("etcd:3", bed.etcd.endpoints)


@pytest.mark.parametrize("store", ["etcd", "sqlite"])
def test_another_store_is_refused(bed, store):
    with pytest.raises(AlreadyExists, match="is there, with store etcd:3"):
        Testbed(bed.name, store=store).up()


def test_the_environment_says_what_is_not_said(monkeypatch):
    monkeypatch.setenv("SLIMNET_TESTBED_STORE", "etcd:2")
    assert Testbed("never").store == "etcd:2"
    assert Testbed("never", store="sqlite").etcd is None
    assert len(Testbed("never", store="etcd").etcd.endpoints) == 1
    monkeypatch.setenv("SLIMNET_TESTBED_STORE", "etcd:none")
    with pytest.raises(InvalidValue, match="got 'etcd:none'"):
        Testbed("never")


@pytest.mark.parametrize("store", ["", "etc", "etcd:", "etcd:0", "etcd:99", "sqlite:2"])
def test_wrong_store(store):
    with pytest.raises(InvalidValue, match="^store: wanted one of: sqlite, etcd, etcd:1"):
        Testbed("never", store=store)


def test_no_etcd_on_this_machine(monkeypatch):
    """One line that says what to install, and nothing is left."""
    testbed = Testbed(f"slt-none-{os.getpid()}", store="etcd")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(CapabilityMissing, match="^no etcd: install it .*etcd-server"):
        testbed.up()
    assert not testbed.directory.exists()


def test_command_line(bed):
    """`up --store` completes it and says what it is; `--help` knows the option."""
    words = ["testbed", "up", "--name", bed.name, "--store", "etcd:3"]
    done = on(bed.hosts[0], *words)
    assert f"testbed {bed.name} is up, backend {bed.backend}, store etcd:3, " in done.stderr
    assert "etcd:N for a cluster of N servers" in on(bed.hosts[0], "testbed", "up", "-h").stdout
    done = on(bed.hosts[0], *words[:-1], "consul", ok=False)
    assert done.returncode == 2
    assert done.stderr.startswith("slimnet: store: wanted one of: sqlite, etcd")


@pytest.fixture(scope="module")
def stopped(bed):
    """The first host, whose agent is not there any more: of the last tests here."""
    bed.hosts[0].stop_agent()
    return bed.hosts[0]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('endpoints = ["198.18.1.1:9"]', "store etcd://198.18.1.1:9/slimnet: 198.18.1.1:9: "),
        ('endpoints = ["198.18.1.1"]', "{file}: store.etcd.endpoints: wanted a list of host:port"),
        ('endpoints = ["{endpoint}"]\nca = "/none"', "{file}: store.etcd.ca: wanted a readable"),
        ('endpoints = ["{endpoint}"]\nca = "{ca}"', "{file}: store.etcd.ca: wanted nothing, as"),
        (
            'endpoints = ["{endpoint}"]\nuser = "net"\npassword_file = "{file}"',
            "{file}: store.etcd.user: wanted nothing, as the servers know no users",
        ),
        ('endpoints = ["{endpoint}"]\nprefix = ""', "{file}: store.etcd.prefix: wanted a prefix"),
        ('endpoint = "{endpoint}"', "{file}: store.etcd.endpoint: .*; did you mean 'endpoints'"),
    ],
)
def test_an_agent_that_is_told_wrong(bed, stopped, tmp_path, authority, lines, said):
    """One line that names the field, status 2, and nothing changed."""
    file = tmp_path / "slimnet.toml"
    values = {"endpoint": bed.etcd.endpoints[0], "file": file, "ca": authority("ours").ca}
    own = [line for line in stopped.config.read_text().splitlines() if "store" not in line]
    table = f"[store.etcd]\n{lines}"
    for name, value in values.items():
        table = table.replace(f"{{{name}}}", str(value))
    file.write_text("\n".join([*own, table]))
    done = on(stopped, "agent", "--config", str(file), ok=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(f"slimnet: {said}".replace("{file}", re.escape(str(file))), line), line
