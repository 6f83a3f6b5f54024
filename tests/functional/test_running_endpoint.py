# SPDX-License-Identifier: Apache-2.0
"""An endpoint that runs is changed where it runs: its labels, and the processes in it.

::

      h1: agent, web, spare                h2: agent, db
             |                                   |
         ----+---------- underlay ---------------+----
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import PATIENCE
from lab.agents import Cluster, connects, until
from lab.paths import DATA_PATHS, Can, having

from slimnet import AlreadyExists, CannotEnforce, InvalidValue, NotFound, model
from slimnet.cluster import Cluster as StoredCluster
from slimnet.store.sqlite import SqliteStore

pytestmark = pytest.mark.root

#: Whoever has the label talks to nobody, whatever else allows it.
QUARANTINE = Path(__file__).parents[2] / "docs" / "examples" / "quarantine.yaml"
CANARY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {track: canary}}}]}]
"""


@pytest.fixture(scope="module", params=DATA_PATHS)
def cluster(request, tmp_path_factory):
    with Cluster(request.param, tmp_path_factory.mktemp("cluster")) as cluster:
        for host in cluster.hosts:
            host.revive()
        cluster.hosts[0].node().create_network("prod", "10.77.0.0/24")
        yield cluster


@pytest.fixture
def hosts(cluster):
    """Both, without endpoints and documents."""
    yield cluster.hosts
    node = cluster.hosts[0].node()
    for document in node.policies():
        node.remove_policy(document)
    for host in cluster.hosts:
        for each in host.node().endpoints():
            if each.host == host.where.name:
                host.node().detach(each.network, each.name, each.namespace, kill=True)


@pytest.fixture
def pair(hosts, resident):
    """``web`` and ``spare`` on the first host, each with a connection to ``db`` on the second."""
    one, two = hosts
    db = two.node().attach("prod", "db", labels={"app": "db"})
    server = resident(two, db)
    server.serve(7000)
    clients = []
    for name in ("web", "spare"):
        placed = one.node().attach("prod", name, labels={"app": name})
        one.node().wait()
        clients.append(resident(one, placed))
        clients[-1].hold("live", str(db.endpoint.address), 7000)
        assert clients[-1].talk("live")
    return (*clients, db)


def words(host, *arguments):
    """A command line on a host."""
    command = [sys.executable, "-m", "slimnet.cli", "--agent", str(host.config.socket), *arguments]
    return ["nsenter", f"--net={host.where.netns}", *command]


def slimnet(host, *arguments, **options):
    """What that says and answers."""
    return subprocess.run(
        words(host, *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


# Labels


@pytest.mark.parametrize("by", [0, 1], ids=["its own host", "another host"])
@pytest.mark.parametrize("who", ["web", "db"])
def test_a_quarantine_label_cuts_live_connections(hosts, pair, by, who):
    """Within a second on both hosts, from whichever it is said, at whichever end; one beside
    it never notices, and without the label everything is as before."""
    client, spare, db = pair
    node = hosts[by].node()
    node.apply_policy(QUARANTINE)
    node.wait()
    assert client.talk("live")
    begin = time.monotonic()
    labelled = node.label_endpoint("prod", who, {"quarantine": "yes"})
    assert labelled.labels == {"app": who, "quarantine": "yes"}

    def closed():
        assert who == "db" or spare.talk("live")
        with contextlib.suppress(OSError):
            return not client.talk("live")
        return True

    until(closed)
    assert time.monotonic() - begin < 1 * PATIENCE
    node.wait()
    assert not client.connect(str(db.endpoint.address), 7000, 1)
    assert not node.explain("prod", "web", "db", 7000)["allowed"]
    assert node.label_endpoint("prod", who, {"quarantine": None}).labels == {"app": who}
    node.wait()
    connects(client, db)


def test_a_label_lets_in(hosts, pair):
    """As soon as the call returns, where the endpoint that is asked lives; and a value that
    is overwritten shuts out again."""
    client, _, db = pair
    node = hosts[1].node()
    node.apply_policy(CANARY)
    assert not client.connect(str(db.endpoint.address), 7000, 1)
    node.label_endpoint("prod", "web", {"track": "canary"})
    connects(client, db)
    with pytest.raises(AlreadyExists, match=r"prod/default/web has the label track=canary, and"):
        node.label_endpoint("prod", "web", {"track": "stable", "new": "x"})
    connects(client, db)
    node.label_endpoint("prod", "web", {"track": "stable"}, overwrite=True)
    assert not client.connect(str(db.endpoint.address), 7000, 1)


@pytest.mark.parametrize("cluster", having(Can.SERVICES), indirect=True)
def test_a_label_moves_a_service(hosts, pair):
    """The endpoint behind it is the one that has the label now."""
    client, _, _ = pair
    node = hosts[0].node()
    (service,) = node.apply_policy(
        "{apiVersion: v1, kind: Service, metadata: {name: shop},"
        " spec: {selector: {behind: shop}, ports: [{port: 80, targetPort: 7000}]}}"
    )
    assert not client.connect(str(service.address), 80, 1)
    node.label_endpoint("prod", "db", {"behind": "shop"})
    assert client.connect(str(service.address), 80)
    node.label_endpoint("prod", "db", {"behind": None})
    assert not client.connect(str(service.address), 80, 1)


def test_a_service_that_nobody_reaches_is_told(hosts, pair):
    """By ``apply``, by the status of every host, and by ``explain``: no backend carries UDP to
    a service."""
    node = hosts[0].node()
    documents = node.apply_policy(
        "{apiVersion: v1, kind: Service, metadata: {name: names}, spec: {selector: {app: db},"
        " ports: [{port: 53, protocol: UDP}]}}"
    )
    hosts[1].node().wait()
    (warning,) = node.check_policy(documents)
    assert warning.text.endswith("nobody reaches it")
    for host in hosts:
        assert host.node().status()["warnings"] == [str(warning)]
        asked = host.node().explain("prod", "web", "names", 53, "udp")
        assert not asked["allowed"]
        assert "refused by host" in asked["summary"]
    node.remove_policy(*documents)
    assert node.status()["warnings"] == []


def test_labels_are_kept_by_an_agent_that_comes_back(hosts, pair):
    """Adopted as it is by now, and not as it was attached."""
    client, _, db = pair
    node = hosts[0].node()
    node.apply_policy(CANARY)
    node.label_endpoint("prod", "web", {"track": "canary"})
    node.wait()
    for host in hosts:
        host.kill()
        host.start()
    connects(client, db)
    hosts[1].node().label_endpoint("prod", "web", {"track": None})
    assert not client.connect(str(db.endpoint.address), 7000, 1)


def test_a_label_for_which_a_policy_cannot_hold(cluster, hosts):
    """A mandatory policy would select the endpoint, and its host cannot hold it."""
    node = hosts[0].node()
    node.apply_policy(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: held}, spec:"
        " {podSelector: {matchLabels: {secret: yes}}, mandatory: true}}".replace("yes", "'yes'")
    )
    with SqliteStore.open(f"sqlite://{cluster.store}") as store:
        other = StoredCluster(store)
        other.set_host(
            model.Host("h3", cluster.outside.address, backend="preload"), store.lease(60)
        )
        endpoint, _ = other.create_endpoint({"network": "prod", "name": "weak", "host": "h3"})
        try:
            with pytest.raises(CannotEnforce, match="policy default/held is mandatory: endpoint"):
                node.label_endpoint("prod", "weak", {"secret": "yes"})
            assert other.endpoint("prod", "default", "weak").labels == {}
        finally:
            other.remove_endpoint(endpoint)
            store.transact(delete=["hosts/h3"])


def test_labels_by_the_command_line(hosts):
    """kubectl's grammar: KEY=VALUE, KEY-, --overwrite; and one line where it is wrong."""
    one, two = hosts
    one.node().attach("prod", "web", namespace="shop", labels={"app": "web"})

    def label(*changes, host=one):
        return slimnet(host, "endpoint", "label", *changes)

    def labels():
        (web,) = one.node().endpoints()
        return dict(web.labels)

    done = label("web", "-n", "prod", "--namespace", "shop", "track=canary", "tier=")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "endpoint prod/shop/web: app=web, track=canary, tier=\n"
    done = label("shop/web", "track-", "other-", "-o", "json", host=two)
    assert json.loads(done.stdout)["labels"] == labels() == {"app": "web", "tier": ""}
    assert (done.returncode, done.stderr) == (0, "label other not found\n")
    for changes, said in (
        (("prod/shop/web", "tier=a", "app=db"), "has the label tier=, and it was not asked to"),
        (("shop/web", "app=a", "app-"), "label: wanted label app once, got 'app=a app-'"),
        (("shop/web", "app"), "label: wanted key=value, or key- to remove it, got 'app'"),
        (("shop/web", "=x"), "label: wanted key=value, or key- to remove it, got '=x'"),
        (("shop/web", "app=a b", "--overwrite"), "endpoint.labels: wanted a table of Kubernetes"),
        (("shop/none", "a=b"), "no endpoint shop/none"),
        (("web", "a=b"), "endpoint 'prod/default/web': there is none; there are: prod/shop/web"),
        (("shop/web",), "Missing argument"),
    ):
        done = label(*changes)
        assert (done.returncode, done.stdout) == (2, ""), changes
        assert said in done.stderr, changes
        assert done.stderr.count("\n") == 1, changes
    assert labels() == {"app": "web", "tier": ""}
    done = label("shop/web", "--overwrite", "app=db")
    assert labels() == {"app": "db", "tier": ""}
    assert slimnet(one, "endpoint", "rm", "shop/web").returncode == 0
    with pytest.raises(NotFound, match="prod/shop/web"):
        one.node().label_endpoint("prod", "web", {}, "shop")


def test_labels_that_are_none(hosts):
    one, _ = hosts
    web = one.node().attach("prod", "web", labels={"app": "web"})
    for wrong in ({"app": 3}, {"a b": "c"}, {"a": "c" * 64}, {"": "x"}, {"a": ["b"]}):
        with pytest.raises(InvalidValue, match=r"endpoint\.labels: wanted "):
            one.node().label_endpoint("prod", "web", wrong, overwrite=True)
    assert one.node().endpoints() == [web.endpoint]


# One more process


@contextlib.contextmanager
def running(host, name, *command, options=()):
    """``slimnet run`` of a shell script that says when it is ready."""
    argv = words(host, "run", "-n", "prod", "--name", name, *options, "--", *command)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


SLEEP = ("sh", "-c", "echo here > /run/mark; echo ready; exec sleep 600")


@pytest.mark.usefixtures("pair")
def test_exec_is_that_endpoint(hosts):
    """Its address to whom it talks to, its policy, its names and files; and loopback is one."""
    one, two = hosts
    one.node().apply_policy(CANARY)
    code = (
        "import socket; s = socket.create_connection(('db', 7000), 3); s.sendall(b'x'); "
        "print(s.getsockname()[0], socket.gethostname(), open('/run/mark').read().strip())"
    )
    listen = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 7001)); print('ready', "
        "flush=True); open('/run/mark', 'w').write('here'); time.sleep(600)"
    )
    with running(one, "job", sys.executable, "-c", listen, options=["-l", "track=canary"]):
        one.node().wait()
        job = one.node().endpoint("prod", "job")
        done = slimnet(one, "exec", "job", "--", sys.executable, "-c", code)
        assert done.stdout.split() == [str(job.endpoint.address), "job", "here"], done.stderr
        near = "import socket; socket.create_connection(('127.0.0.1', 7001), 3)"
        assert slimnet(one, "exec", "job", "--", sys.executable, "-c", near).returncode == 0
        one.node().label_endpoint("prod", "job", {"track": None})
        two.node().wait()
        assert slimnet(one, "exec", "job", "--", sys.executable, "-c", code).returncode == 1
        assert one.node().exec("prod", "job", ["sh", "-c", "exit 7"]) == 7
        socket = str(one.config.socket)
        assert one.node().exec("prod", "job", ["test", "-e", socket]) == 1
    until(lambda: "job" not in {each.name for each in one.node().endpoints()})


def test_exec_by_the_command_line(hosts):
    """Status, standard streams, and one line for what is wrong."""
    one, two = hosts
    one.node().attach("prod", "idle")
    two.node().attach("prod", "far")
    with running(one, "job", *SLEEP) as process:
        done = slimnet(one, "exec", "prod/job", "--", "sh", "-c", "cat; exit 9", input="through")
        assert (done.returncode, done.stdout, done.stderr) == (9, "through", "")
        done = slimnet(one, "exec", "job", "sh", "-c", "kill -9 $$")
        assert done.returncode == 137
        for arguments, status, said in (
            (("job", "--", "no-such-program"), 127, "command not found: no-such-program"),
            (("job", "--", "/etc/passwd"), 126, "/etc/passwd"),
            (("job",), 2, "Missing argument"),
            (("job", "--"), 2, "Missing argument"),
            (("job", "-n", "prod", "--", "true"), 2, "Option '-n' has to stand before ENDPOINT"),
            (("--user", "none", "job", "--", "true"), 2, "user: wanted a user of this machine"),
            (("none", "--", "true"), 2, "endpoint 'prod/default/none': there is none; there are"),
            (("x/none", "--", "true"), 2, "no endpoint x/none"),
            (("far", "--", "true"), 2, "endpoint.host: wanted an endpoint of h1, got 'h2'"),
            (("idle", "--", "true"), 2, "endpoint idle: no command of `slimnet run` runs in it"),
        ):
            done = slimnet(one, "exec", *arguments)
            assert (done.returncode, done.stdout) == (status, ""), arguments
            assert said in done.stderr, arguments
            assert done.stderr.count("\n") == 1, arguments
        # It may be gone with the first one before it has ended itself.
        assert slimnet(one, "exec", "job", "--", "sh", "-c", "kill 1").returncode in (0, 137)
        assert process.wait(20) == 143


# Detached


@pytest.fixture
def detached(hosts, tmp_path):
    """``slimnet run -d`` on the first host; answers how it ended, and its log."""
    log = tmp_path / "job.log"

    def run(*command, options=()):
        arguments = ["-n", "prod", "-d", "--name", "job", "--log", str(log), *options, "--"]
        return slimnet(hosts[0], "run", *arguments, *command)

    return run, log


def names(host):
    return {each.name for each in host.node().endpoints()}


def test_detached_lives_until_its_process_ends(hosts, detached):
    """Also without its agent; what it writes is where it was said, at the end of what is
    there; then nothing is left."""
    one, two = hosts
    run, log = detached
    code = (
        "import os, socket, sys; s = socket.create_server(('', 7000)); print('out', flush=True); "
        "print('err', sys.stdin.read() == '', file=sys.stderr, flush=True)\n"
        "while True:\n  c, _ = s.accept()\n  if c.recv(1) == b'q': break\nos._exit(3)"
    )
    for turn in (1, 2):
        done = run(sys.executable, "-c", code, options=["--user", "nobody", "--directory", "/"])
        assert (done.returncode, done.stdout) == (0, "prod/default/job\n"), done.stderr
        assert done.stderr == f"its output goes to {log}\n"
        until(lambda turn=turn: log.read_text() == "out\nerr True\n" * turn)
        job = one.node().endpoint("prod", "job")
        if turn == 1:
            one.kill()
            one.start()
        two.node().wait()
        assert two.node().ping("prod/default/job", port=7000)["error"] is None
        assert "job" in names(one)
        end = (
            "import socket; s = socket.create_connection(('127.0.0.1', 7000)); s.sendall(b'q'); "
            "s.recv(1)"
        )
        path = done.stdout.strip()
        slimnet(one, "exec", path, "--", sys.executable, "-c", end)
        until(lambda: "job" not in names(one))
        assert not job.cgroup.exists()


def test_detached_outlives_the_terminal(hosts, detached):
    """Which hangs up when the one who typed it is gone; and ^C there is not for it."""
    one, _ = hosts
    _, log = detached
    arguments = ["-n", "prod", "-d", "--name", "job", "--log", str(log), "--", "sleep", "600"]
    pid, terminal = pty.fork()
    if pid == 0:
        argv = words(one, "run", *arguments)
        os.execvp(argv[0], argv)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: everybody has closed it
        while chunk := os.read(terminal, 4096):
            seen += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, seen
    os.close(terminal)
    assert b"prod/default/job" in seen
    job = one.node().endpoint("prod", "job")
    time.sleep(1.5)  # the agent looks once a second for what has ended
    assert "job" in names(one)
    running = (job.cgroup / "cgroup.procs").read_text().split()
    assert all(Path(f"/proc/{each}/stat").read_text().split()[6] == "0" for each in running)
    done = slimnet(one, "endpoint", "rm", "prod/default/job", "--kill")
    assert done.returncode == 0
    assert "job" not in names(one)


def test_detached_says_what_is_wrong(hosts, detached, tmp_path):
    """As it is without -d, and nothing is left of it."""
    one, _ = hosts
    run, log = detached
    for command, options, status, said in (
        (["no-such-program"], [], 127, "slimnet: command not found: no-such-program\n"),
        (["/etc/passwd"], [], 126, "/etc/passwd"),
        (["true"], ["--user", "no-such-user"], 2, "user: wanted a user of this machine"),
        (["true"], ["--log", str(tmp_path)], 2, "'--log': File"),
        (["true"], ["--ip", "10.9.9.9"], 2, "10.9.9.9"),
    ):
        done = run(*command, options=options)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert names(one) == set()
    done = slimnet(one, "run", "-n", "prod", "--name", "job", "--log", str(log), "--", "true")
    assert done.returncode == 2
    assert "--log is for what runs detached: add -d" in done.stderr
    assert run("sleep", "600").returncode == 0
    done = run("true")
    assert (done.returncode, done.stdout) == (2, "")
    assert "endpoint prod/default/job runs already" in done.stderr
    assert slimnet(one, "exec", "job", "--", "sh", "-c", "kill 1").returncode in (0, 137)
    until(lambda: "job" not in names(one))


def test_detached_log_by_default(hosts):
    """Under the instance's and the endpoint's name, for root and its group alone."""
    one, _ = hosts
    log = Path(f"/var/log/slimnet/{one.instance}/prod.default.job.log")
    try:
        done = slimnet(one, "run", "-n", "prod", "-d", "--name", "job", "--", "echo", "hello")
        assert done.stderr == f"its output goes to {log}\n"
        until(lambda: log.read_text() == "hello\n")
        assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o640, 0o750)
        until(lambda: "job" not in names(one))
    finally:
        log.unlink(missing_ok=True)
        log.parent.rmdir()
        with contextlib.suppress(OSError):  # another instance's logs
            log.parents[1].rmdir()
