# SPDX-License-Identifier: Apache-2.0
"""Machines become hosts of a cluster by its token, and cease to be: the command line, in network
namespaces, with a store on SQLite and on etcd."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
from machines import Machines, files, first, slimnet
from servers import etcdctl

from slimnet.cluster.token import Token

pytestmark = pytest.mark.root


@pytest.fixture
def machines(request, tmp_path, authority):
    made = Machines(tmp_path, request.param, authority)
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.mark.parametrize("machines", ["sqlite", "etcd", "tls"], indirect=True)
def test_a_cluster_from_nothing(machines):
    """One command there, one command here: both have the key, and a connection is carried. A
    host leaves, nothing of it remains, and it joins again."""
    one, two, _ = machines.hosts
    token = first(machines)
    more = machines.certificate() if machines.kind == "tls" else []
    said = slimnet(two, "cluster", "join", "--host", "h2", *more, "-", "-o", "json", typed=token)
    assert json.loads(said)["host"] == "h2"
    keys = [(host.directory / "key").read_text() for host in (one, two)]
    assert keys[0] == keys[1]
    assert (two.directory / "key").stat().st_mode & 0o777 == 0o600
    held = machines.held()
    for value, _ in held.values():
        assert keys[0].strip().encode() not in value
    assert keys[0].strip() not in token
    (left,) = json.loads(slimnet(one, "cluster", "token", "ls", "-o", "json"))
    assert left["uses"] == 9
    for host in (one, two):
        host.start_agent().wait()
    with one.node() as here, two.node() as there:
        here.create_network("prod", "10.1.0.0/16")
        there.wait()
        there.attach("prod", "web")
        here.attach("prod", "me")
        here.wait()
        assert here.ping("web", source="me")["carried"]
        rows = json.loads(slimnet(one, "cluster", "ls", "-o", "json"))
        assert [(row["name"], row["lost"]) for row in rows] == [("h1", False), ("h2", False)]
    said = slimnet(one, "cluster", "rm", "h2", status=2)
    assert said == "slimnet: host h2 lives: stop its agent first"
    written = {path.name for path in two.directory.rglob("*")}
    assert f"runs instance {two.instance}: stop it first" in slimnet(
        two, "cluster", "leave", status=2
    )
    assert {path.name for path in two.directory.rglob("*")} == written
    two.stop_agent()
    slimnet(two, "cluster", "leave")
    remaining = {path.name for path in two.directory.rglob("*")}
    assert remaining <= {"slimnet.toml", "agent.log", "agent.pid"}
    with one.node() as here:
        assert [each.name for each in here.host_states()] == ["h1"]
        assert [each.name for each in here.endpoints()] == ["me"]
    assert "this host joined no cluster" in slimnet(two, "cluster", "leave", status=2)
    slimnet(two, "cluster", "join", "--host", "h2", *more, token)
    two.start_agent().wait()
    with one.node() as here, two.node() as there:
        there.attach("prod", "web")
        here.wait()
        assert here.ping("web", source="me")["carried"]


@pytest.mark.parametrize("machines", ["etcd"], indirect=True)
def test_what_is_refused(machines):
    """One line that says why, status 2; nothing is changed here, nor in the store."""
    one, two, three = machines.hosts
    token = first(machines, "--uses", "1", "--expires", "1h")
    own = Token.parse(token)

    def made(*words):
        said = slimnet(one, "cluster", "token", "create", "-o", "json", *words)
        return json.loads(said)["token"]

    expired, removed, good = made("--expires", "1d"), made(), made()
    slimnet(one, "cluster", "token", "rm", Token.parse(removed).id)
    slimnet(two, "cluster", "join", "--host", "h2", token)
    # As its time does; nobody has to wait for it.
    lease = json.loads(machines.held()[f"tokens/{Token.parse(expired).id}"][0])["lease"]
    with one.enter():
        assert "granted with TTL(86400s)" in etcdctl(
            machines.etcd, "lease", "timetolive", f"{lease:x}"
        )
        etcdctl(machines.etcd, "lease", "revoke", f"{lease:x}")
    before, beside = machines.held(), files(three)
    said = {}

    def refused(name, *words):
        said[name] = slimnet(three, "cluster", "join", "--host", "h3", *words, status=2)
        assert files(three) == beside, name
        assert machines.held() == before, name
        assert not three.agent.parent.exists(), name

    refused("cut", good[:-5])
    refused("another word", "hello")
    refused("expired", expired)
    refused("removed", removed)
    refused("used up", token)
    refused("another cluster", str(attrs.evolve(own, cluster="c0ffee")))
    refused("another secret", str(attrs.evolve(Token.parse(good), secret=bytes(32))))
    refused("name", "--host", "h1", good)
    refused("bad name", "--host", "H 3", good)
    refused("not its address", "--address", "198.18.77.7", good)
    refused("no address", "--address", "here", good)
    refused("prefix", str(attrs.evolve(own, store=own.store.replace("/slimnet", "/other"))))
    refused("endpoint", "-O", "timeout=1",
            str(attrs.evolve(own, store="etcd://198.18.0.100:9/slimnet")))  # fmt: skip
    refused("TLS", "-O", f"ca={machines.directory}/none", good)
    refused("driver", str(attrs.evolve(own, store="consul://x")))
    refused("no file", str(attrs.evolve(own, store="sqlite:///none/store.db")))
    for name, right in {
        "cut": "token: wanted a whole one, what `slimnet cluster init` or",
        "another word": "token: wanted what `slimnet cluster init` or",
        "expired": "token: wanted one that has not expired, nor was removed, got ",
        "removed": "token: wanted one that has not expired, nor was removed, got ",
        "used up": "token: wanted one that is not used up, got ",
        "another cluster": f"token: wanted one for cluster {own.cluster}, which the store holds",
        "another secret": "token: wanted the one that sealed the key",
        "name": "host h1 is in the cluster (198.18.0.1): name this one with --host",
        "bad name": "host.name: wanted lower-case letters",
        "not its address": "underlay.address: wanted one of this host's IPv4 addresses",
        "no address": "--address: wanted an IP address of this host, got 'here'",
        "prefix": "token: wanted one for a store",
        "endpoint": "store etcd://198.18.0.100:9/slimnet: ",
        "TLS": "store.etcd.ca: wanted a readable file",
        "driver": "store: wanted one of: etcd://, sqlite://",
        "no file": "store sqlite:///none/store.db: there is no such file on this machine",
    }.items():
        assert said[name].startswith(f"slimnet: {right}"), said[name]

    (three.directory / "key").write_text("0" * 32)
    (three.directory / "key").chmod(0o600)
    beside = files(three)
    refused("key", good)
    assert "key_file: wanted the cluster's key, or no file, got" in said["key"]
    (three.directory / "key").unlink()
    three.config.write_text(three.config.read_text() + 'store = "sqlite:////x.db"\n')
    beside = files(three)
    refused("store", good)
    assert f"{three.config}: store: wanted nothing, as the token says it" in said["store"]
    line = slimnet(two, "cluster", "join", good, status=2)
    assert "this host is in a cluster already: `slimnet cluster leave`" in line
    line = slimnet(one, "cluster", "init", status=2)
    assert "this host is in a cluster already" in line
    three.config.write_text(three.config.read_text().replace("sqlite:////x.db", machines.url))
    line = slimnet(three, "cluster", "init", "--host", "h3", status=2)
    assert f"the store holds cluster {own.cluster}, whose key is not here: join it" in line
    assert "in no cluster" in slimnet(three, "cluster", "token", "create", status=2)
    assert machines.held() == before


@pytest.mark.parametrize("machines", ["etcd"], indirect=True)
def test_one_address_of_two_hosts(machines):
    """Also where the other's agent has never run."""
    one, two, _ = machines.hosts
    token = first(machines)
    with two.enter():
        subprocess.run(["ip", "address", "add", f"{one.address}/32", "dev", "lo"], check=True)
    text = two.config.read_text().replace('interface = "eth0"', 'interface = "lo"')
    two.config.write_text(text)
    words = ("cluster", "join", "--host", "h2", "--address", str(one.address))
    said = slimnet(two, *words, token, status=2)
    assert said.startswith(f"slimnet: underlay address {one.address} is that of host h1: choose")


@pytest.mark.parametrize("machines", ["etcd", "sqlite"], indirect=True)
def test_two_hosts_at_once(machines):
    """A token that is good for one host is so for the one that was first; and so is a name."""
    one, two, three = machines.hosts
    first(machines)

    def at_once(names, token):
        def join(host, name):
            environment = {**os.environ, "SLIMNET_CONFIG": str(host.config)}
            enter = f"--net={host.netns}"
            argv = [sys.executable, "-m", "slimnet.cli", "cluster", "join", "--host", name, token]
            return subprocess.run(
                ["nsenter", enter, *argv], env=environment, capture_output=True, text=True
            )

        with ThreadPoolExecutor() as pool:
            done = list(pool.map(join, (two, three), names))
        assert sorted(each.returncode for each in done) == [0, 2], done
        loser = next(each for each in done if each.returncode)
        winner = (two, three)[[each.returncode for each in done].index(0)]
        slimnet(winner, "cluster", "leave")
        return loser.stderr

    for _ in range(2):
        for uses, names, said in (
            (1, ("h2", "h3"), "not used up"),
            (5, ("h2", "h2"), "host h2 is"),
        ):
            words = ("cluster", "token", "create", "--uses", str(uses), "-o", "json")
            assert said in at_once(names, json.loads(slimnet(one, *words))["token"])


@pytest.mark.parametrize("machines", ["etcd"], indirect=True)
def test_two_hosts_of_one_address_at_once(machines):
    """By two tokens and two names: one of them joins."""
    one, *others = machines.hosts
    first(machines)
    address = str(machines.underlay.network[50])
    for host in others:
        with host.enter():
            argv = ["ip", "address", "add", f"{address}/32", "dev", "lo"]
            subprocess.run(argv, check=True)
        host.config.write_text(host.config.read_text().replace('"eth0"', '"lo"'))

    def join(host, token):
        environment = {**os.environ, "SLIMNET_CONFIG": str(host.config)}
        argv = [sys.executable, "-m", "slimnet.cli", "cluster", "join", "--host", host.name]
        argv += ["--address", address, token]
        enter = ["nsenter", f"--net={host.netns}"]
        return subprocess.run([*enter, *argv], env=environment, capture_output=True, text=True)

    for _ in range(2):
        words = ("cluster", "token", "create", "-o", "json")
        tokens = [json.loads(slimnet(one, *words))["token"] for _ in others]
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(join, others, tokens))
        assert sorted(each.returncode for each in done) == [0, 2], done
        (said,) = (each.stderr for each in done if each.returncode)
        assert said.startswith(f"slimnet: underlay address {address} is that of host h"), said
        slimnet(others[[each.returncode for each in done].index(0)], "cluster", "leave")


@pytest.mark.parametrize("machines", ["sqlite"], indirect=True)
def test_a_backend_that_does_not_fit(machines):
    """None of the hosts could be reached by it: refused, before anything is changed."""
    one, two, _ = machines.hosts
    one.config.write_text(one.config.read_text() + 'backend = "preload"\n')
    token = first(machines)
    one.start_agent().wait()
    plain = two.config.read_text()
    for backend, said in {
        "noop": "backend: wanted one with a wire that others speak: h1 (preload: announce/",
        "none": "backend: wanted one of: ",
    }.items():
        two.config.write_text(f'{plain}backend = "{backend}"\n')
        before = files(two)
        line = slimnet(two, "cluster", "join", "--host", "h2", token, status=2)
        assert said in line
        assert files(two) == before
        assert "~seen/h2" not in machines.held()


@pytest.mark.parametrize("machines", ["tls"], indirect=True)
def test_a_clock_that_does_not_fit(machines, clock):
    """Where the store's certificate is not good yet by this host's clock, or no longer; leases
    are the store's, and an hour is nothing (test_failures.py)."""
    _, two, _ = machines.hosts
    token = first(machines)
    held, before = machines.held(), files(two)
    join = ("cluster", "join", "--host", "h2", *machines.certificate(), token)
    for days, said in {-30: "certificate is not yet valid", 30: "certificate has expired"}.items():
        with clock(24 * days):
            line = slimnet(two, *join, status=2)
        assert line.startswith(
            f"slimnet: store.etcd.ca: wanted what signed the certificate ({said}"
        )
        there = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400 * days))
        assert f"; the clock of this host says {there} " in line
        assert (machines.held(), files(two)) == (held, before)
    slimnet(two, *join)


@pytest.mark.parametrize("machines", ["sqlite"], indirect=True)
def test_a_version_that_does_not_fit(machines):
    """A token or a store of a later one, and hosts that speak another version of a wire."""
    one, two, _ = machines.hosts
    one.config.write_text(one.config.read_text() + 'backend = "preload"\n')
    two.config.write_text(two.config.read_text() + 'backend = "preload"\n')
    token = first(machines)
    one.start_agent().wait()
    one.stop_agent()
    before = files(two)

    def refused(word):
        held = machines.held()
        line = slimnet(two, "cluster", "join", "--host", "h2", word, status=2)
        assert (machines.held(), files(two)) == (held, before)
        return line

    later = token.replace("slimnet1.", "slimnet2.")
    assert "token: wanted one of version 1, slimnet1...., got 'slimnet2.'" in refused(later)
    with machines.opened() as store:
        # An agent writes it with its lease; here it outlives the agent.
        spoken = {"name": "h1", "address": str(one.address), "backend": "preload"}
        record = {**spoken, "wires": ["announce/99"], "version": "99.0"}
        store.transact(put={"hosts/h1": json.dumps(record).encode()})
    line = refused(token)
    assert "backend: wanted one with a wire that others speak: h1 (preload: announce/99)" in line
    with machines.opened() as store:
        store.transact(put={"format": b"2"})
    assert "the store is of format '2', and this version of slimnet knows none" in refused(token)
    line = slimnet(two, "cluster", "init", "--host", "h2", "--store", machines.url, status=2)
    assert "the store is of format '2'" in line
    assert files(two) == before
    with machines.opened() as store:
        store.transact(delete=["format"])


@pytest.mark.parametrize("machines", ["etcd"], indirect=True)
def test_a_password_that_is_wrong_or_not_there(machines):
    """One line, and neither the machine nor the store is changed."""
    one, two, _ = machines.hosts
    password = machines.directory / "password"
    password.write_text("secret")
    password.chmod(0o600)
    with one.enter():
        for words in (
            ("user", "add", "root:secret"), ("user", "grant-role", "root", "root"),
            ("auth", "enable"),
        ):  # fmt: skip
            etcdctl(machines.etcd, *words)
    machines.options = ["-O", "user=root", "-O", f"password_file={password}"]
    token = first(machines)
    assert "secret" not in str(Token.parse(token).options)
    wrong = machines.directory / "wrong"
    wrong.write_text("other")
    wrong.chmod(0o600)
    before = files(two)
    for options, said in {
        f"password_file={wrong}": "store.etcd.password_file: wanted the password of user root",
        "password_file=/none": "store.etcd.password_file: wanted a readable file",
        "user=nobody": "store.etcd.password_file: wanted the password of user nobody",
    }.items():
        line = slimnet(two, "cluster", "join", "--host", "h2", "-O", options, token, status=2)
        assert line.startswith(f"slimnet: {said}"), line
        assert files(two) == before
    slimnet(two, "cluster", "join", "--host", "h2", token)


@pytest.mark.parametrize("machines", ["tls"], indirect=True)
def test_a_store_that_trusts_certificates(machines):
    """The token has the authority's certificate, and nobody's key; a machine without a
    certificate of its own, or with a stranger's authority, is told so."""
    _, two, _ = machines.hosts
    token = first(machines)
    asked = Token.parse(token)
    assert asked.files == {"ca": Path(machines.options[1][3:]).read_text()}
    assert Path(machines.client[1]).read_text().split("\n")[1] not in str(asked.options)
    before = files(two)
    lacking = attrs.evolve(asked, options={**asked.options, "cert": "/none", "key": "/none"})
    said = slimnet(two, "cluster", "join", "--host", "h2", str(lacking), status=2)
    assert said.startswith("slimnet: store.etcd.cert: wanted a readable file (No such file")
    stranger = machines.directory / "stranger.pem"
    stranger.write_text(Path(machines.client[0]).read_text())
    wrong = attrs.evolve(asked, files={"ca": stranger.read_text()})
    said = slimnet(two, "cluster", "join", "--host", "h2", str(wrong), status=2)
    assert said.startswith("slimnet: store.etcd.ca: wanted what signed the certificate (")
    assert said.endswith('got "the token\'s"')
    assert files(two) == before
    with two.enter():
        assert "tokens/" in etcdctl(
            machines.etcd, "get", "slimnet/tokens", "--prefix", "--keys-only",
            options=[f"--cacert={machines.options[1][3:]}", f"--cert={machines.client[0]}",
                     f"--key={machines.client[1]}"],
        )  # fmt: skip


@pytest.mark.parametrize("machines", ["sqlite"], indirect=True)
def test_one_host_becomes_a_cluster(machines):
    """While its agent runs, with its store, its key and its endpoints; a second host of its name
    or with another key would be noticed."""
    one, two, _ = machines.hosts
    one.config.write_text(
        f'{one.config.read_text()}host = "h1"\nstore = "{machines.url}"\n'
        f'key_file = "{one.directory}/own"\n'
    )
    one.start_agent().wait()
    with one.node() as here:
        here.create_network("prod", "10.1.0.0/16")
        here.attach("prod", "me")
        key = (one.directory / "own").read_text()
        said = slimnet(one, "cluster", "init")
        slimnet(two, "cluster", "join", "--host", "h2", said.split()[-1])
        assert (two.directory / "key").read_text() == key
        two.start_agent().wait()
        with two.node() as there:
            there.attach("prod", "web")
            here.wait()
            assert here.ping("web", source="me")["carried"]
    one.stop_agent()
    slimnet(one, "cluster", "leave", "--force")
    assert (one.directory / "own").read_text() == key, "what the user named is the user's"
