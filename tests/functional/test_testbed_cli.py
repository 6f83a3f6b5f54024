# SPDX-License-Identifier: Apache-2.0
"""The command line against agents: one testbed of two hosts for all tests here."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from lab.paths import DATA_PATHS, WHOLE_HOSTS, Can, can, require

from slimnet.testbed import Testbed

pytestmark = [pytest.mark.root, pytest.mark.long(*WHOLE_HOSTS)]

POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: friend}}}]
    ports: [{port: 80}]
"""
SERVER = """
import socket
s = socket.socket(); s.bind(("", 80)); s.listen(); print("listening", flush=True)
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode()); c.close()
"""
CLIENT = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print(s.recv(100).decode(), s.getsockname()[0])
"""


@pytest.fixture(scope="module", params=DATA_PATHS)
def bed(request):
    require(request.param)
    testbed = Testbed(f"slt-cli-{os.getpid()}", hosts=2, backend=request.param)
    try:
        testbed.up()
        with testbed.hosts[0].node() as node:
            node.create_network("prod", "10.1.0.0/16")
        yield testbed
    finally:
        testbed.down()


@pytest.fixture(autouse=True)
def _nothing_remains(bed):
    yield
    for host in bed.hosts:
        with host.node() as node:
            for endpoint in node.endpoints():
                if endpoint.host == host.name:
                    node.detach(endpoint.network, endpoint.name, endpoint.namespace, kill=True)
            for policy in node.policies():
                node.remove_policy(policy)


def command(host, *argv):
    cli = [sys.executable, "-m", "slimnet.cli", "--agent", str(host.agent), *argv]
    return ["timeout", "--foreground", "20", *cli] if "observe" in argv else cli


def slimnet(host, *argv, status=0):
    done = subprocess.run(command(host, *argv), capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


def answer(host, *argv, status=0):
    return json.loads(slimnet(host, *argv, "-o", "json", status=status))


def refused(host, *argv):
    done = subprocess.run(command(host, *argv), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def web(bed):
    """A server on the second host."""
    with subprocess.Popen(
        command(
            bed.hosts[1], "run", "-n", "prod", "--name", "web", "-l", "app=web", "--",
            sys.executable, "-c", SERVER,
        ),
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"listening\n"
        slimnet(bed.hosts[0], "status", "--wait")
        yield process
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM


def test_networks(bed):
    host, other = bed.hosts
    made = answer(host, "network", "create", "lab", "10.2.0.0/16", "10.3.0.0/24", "--vni", "4711")
    assert made == {"name": "lab", "vni": 4711, "cidrs": ["10.2.0.0/16", "10.3.0.0/24"]}
    listed = slimnet(other, "network", "ls").splitlines()
    assert listed[0].split() == ["NETWORK", "VNI", "RANGES", "ENDPOINTS"]
    assert ["lab", "4711", "10.2.0.0/16,10.3.0.0/24", "0"] in [line.split() for line in listed]
    assert "is there" in refused(host, "network", "create", "lab", "10.4.0.0/16")
    assert "10.2.0.0/16" in refused(host, "network", "create", "other", "10.2.1.0/24")
    assert slimnet(host, "network", "rm", "lab") == "network lab removed\n"
    assert "'lab'" in refused(host, "network", "rm", "lab")


def test_namespaces(bed):
    host = bed.hosts[0]
    slimnet(host, "namespace", "set", "shop", "-n", "prod", "-l", "team=shop")
    found = {each["name"]: each["labels"] for each in answer(host, "namespace", "ls")}
    assert found["shop"] == {"team": "shop"}
    slimnet(host, "namespace", "set", "shop", "-n", "prod")
    found = {each["name"]: each["labels"] for each in answer(host, "namespace", "ls")}
    assert found["shop"] == {}
    slimnet(host, "namespace", "rm", "shop")
    assert "shop" not in slimnet(host, "namespace", "ls")


def test_endpoints(bed):
    host, other = bed.hosts
    made = answer(
        host, "endpoint", "add", "web", "--ip", "10.1.0.9", "-l", "app=web", "--port", "http=80"
    )
    assert made["endpoint"] == "prod/web"
    assert made["address"] == "10.1.0.9"
    assert os.path.isdir(made["cgroup"])
    (listed,) = answer(other, "endpoint", "ls")
    assert listed["host"] == "h1"
    assert listed["labels"] == {"app": "web"}
    assert listed["ports"] == {"http": ["tcp", 80]}
    assert yaml.safe_load(slimnet(host, "endpoint", "ls", "-o", "yaml")) == [listed]
    assert "10.1.0.9" in refused(other, "endpoint", "add", "thief", "--ip", "10.1.0.9")
    assert "endpoint" in refused(host, "network", "rm", "prod")
    slimnet(host, "endpoint", "rm", "web")
    assert answer(host, "endpoint", "ls") == []
    assert not os.path.isdir(made["cgroup"])


def test_an_endpoint_with_processes_stays_unless_they_are_killed(bed):
    host = bed.hosts[0]
    made = answer(host, "endpoint", "add", "busy")
    with subprocess.Popen(["sleep", "300"]) as process:
        with open(f"{made['cgroup']}/cgroup.procs", "w") as procs:
            procs.write(str(process.pid))
        assert "processes" in refused(host, "endpoint", "rm", "busy")
        slimnet(host, "endpoint", "rm", "busy", "--kill")
        assert process.wait(10) == -signal.SIGKILL


def test_run_reaches_the_other_host_by_name(bed, web):
    """Both ends see overlay addresses."""
    text = slimnet(
        bed.hosts[0], "run", "-n", "prod", "--name", "me", "--ip", "10.1.0.77", "--",
        sys.executable, "-c", CLIENT, "web", "80",
    )  # fmt: skip
    assert text.split() == ["10.1.0.77", "10.1.0.77"]
    assert [each["name"] for each in answer(bed.hosts[0], "endpoint", "ls")] == ["web"]


def test_run_on_the_same_host(bed, web):
    text = slimnet(
        bed.hosts[1], "run", "-n", "prod", "--name", "me", "--ip", "10.1.0.78", "--",
        sys.executable, "-c", CLIENT, "web", "80",
    )  # fmt: skip
    assert text.split() == ["10.1.0.78", "10.1.0.78"]


def test_run_knows_its_names(bed, web):
    text = slimnet(
        bed.hosts[0], "run", "--name", "me", "--namespace", "shop", "--ip", "10.1.0.5", "--",
        "sh", "-c", "hostname; getent hosts me web.default",
    )  # fmt: skip
    hostname, mine, theirs = text.splitlines()
    assert hostname == "me"
    assert mine.split()[:2] == ["10.1.0.5", "me"]
    (there,) = (each for each in answer(bed.hosts[0], "endpoint", "ls") if each["name"] == "web")
    assert theirs.split()[0] == there["address"]


def test_run_hides_the_agent_and_the_store(bed):
    """No socket to ask, no file to write, no cgroup to leave."""
    host = bed.hosts[0]
    script = f"""
        ls {host.agent} {bed.directory}/store.db {bed.directory}/key {host.config} 2>/dev/null
        find /run/slimnet /sys/fs/cgroup /sys/fs/bpf /etc/slimnet \
            ! -type d ! -path "$SLIMNET_SOCKET" 2>/dev/null
        grep -cE ' - (cgroup2?|bpf) ' /proc/self/mountinfo
    """
    assert slimnet(host, "run", "--name", "me", "--", "sh", "-c", script + "exit 0") == "0\n"


def test_the_agent_refuses_an_endpoint_that_has_its_socket_all_the_same(bed):
    """Handed in as a file of another name: the peer's cgroup says who asks."""
    host = bed.hosts[0]
    link = Path(f"/tmp/slt-agent-{os.getpid()}")
    link.touch()
    subprocess.run(["mount", "--bind", host.agent, link], check=True)
    try:
        done = subprocess.run(
            command(
                host, "run", "--name", "me", "--",
                sys.executable, "-m", "slimnet.cli", "--agent", str(link), "network", "ls",
            ),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", link], check=True)
        link.unlink()
    assert done.returncode == 2
    assert "no process of an endpoint" in done.stderr


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_run_exits_as_its_command(bed, argv, status):
    slimnet(bed.hosts[0], "run", "--name", "me", "--", *argv, status=status)
    assert answer(bed.hosts[0], "endpoint", "ls") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_run_passes_signals_and_leaves_no_endpoint(bed, number):
    script = f"trap 'exit 42' {number.value}; echo ready; while :; do sleep 0.05; done"
    run = command(bed.hosts[0], "run", "--name", "me", "--", "sh", "-c", script)
    with subprocess.Popen(run, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.wait(10) == 42
        finally:
            process.kill()  # else the end of `with` waits for it
    assert answer(bed.hosts[0], "endpoint", "ls") == []


def test_run_that_is_killed_leaves_no_process_and_no_endpoint(bed):
    host = bed.hosts[0]
    with subprocess.Popen(
        command(host, "run", "--name", "me", "--", "sh", "-c", "echo ready; sleep 300"),
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    deadline = time.monotonic() + 10
    while answer(host, "endpoint", "ls"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_run_twice_is_refused(bed, web):
    assert "runs already" in refused(bed.hosts[1], "run", "--name", "web", "--", "true")
    assert "h2" in refused(bed.hosts[0], "run", "--name", "web", "--", "true")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--name", "Bad_Name", "--", "true"], "endpoint.name: wanted"),
        (["--name", "me", "--ip", "10.9.9.9", "--", "true"], "endpoint.address: wanted"),
        (["--name", "me", "-n", "nowhere", "--", "true"], "'nowhere'"),
        (["--name", "me", "-l", "app", "--", "true"], "--label: wanted key=value"),
        (["--name", "me", "--user", "no-such-user", "--", "true"], "user: wanted"),
        (["--name", "me", "--directory", "/no/such", "--", "true"], "directory: wanted"),
    ],
)
def test_run_with_something_wrong(bed, argv, message):
    assert message in refused(bed.hosts[0], "run", *argv)
    assert answer(bed.hosts[0], "endpoint", "ls") == []


def test_policy(bed, web, tmp_path):
    host = bed.hosts[0]
    file = tmp_path / "web.yaml"
    file.write_text(POLICY)
    (checked,) = answer(host, "policy", "check", str(file))
    assert checked["name"] == "web"
    assert answer(host, "policy", "ls") == []
    assert slimnet(host, "policy", "apply", str(file)) == "in force: default/web\n"
    assert slimnet(host, "policy", "ls").splitlines()[1].split()[:4] == [
        "NetworkPolicy", "prod", "default", "web",
    ]  # fmt: skip
    slimnet(host, "endpoint", "add", "friend", "-l", "app=friend")
    slimnet(host, "endpoint", "add", "stranger")
    allowed = answer(host, "policy", "explain", "--from", "friend", "--to", "web:80")
    assert allowed["allowed"] is True
    denied = answer(host, "policy", "explain", "--from", "stranger", "--to", "web:80", status=1)
    assert denied["allowed"] is False
    said = slimnet(host, "policy", "explain", "--from", "stranger", "--to", "web:80", status=1)
    assert "denied at ingress" in said.splitlines()[0]
    assert "no port" not in said
    slimnet(host, "status", "--wait")
    ping = answer(host, "ping", "web:80", "--from", "stranger", status=1)
    assert ping["carried"] == "denied"
    assert "denied at ingress" in slimnet(host, "ping", "web:80", "--from", "stranger", status=1)
    assert answer(host, "ping", "web:80", "--from", "friend")["error"] is None
    slimnet(host, "policy", "rm", "web")
    slimnet(host, "status", "--wait")
    assert answer(host, "ping", "web:80", "--from", "stranger")["error"] is None


SHOP = """
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""
LIMIT = """
apiVersion: slimnet.io/v1alpha1
kind: EgressLimit
metadata: {name: slow}
spec: {podSelector: {matchLabels: {app: nobody}}, rate: 100M, connectionRate: 10M}
"""


def test_documents_of_other_kinds(bed, web, tmp_path):
    """Several files at once; listed, and removed by kind."""
    host = bed.hosts[0]
    shop, limit = tmp_path / "shop.yaml", tmp_path / "limit.yaml"
    shop.write_text(SHOP)
    limit.write_text(LIMIT)
    said = slimnet(host, "policy", "apply", str(shop), str(limit))
    address = answer(host, "policy", "ls")[0]["manifest"]["spec"]["clusterIP"]
    assert said == f"in force: service:default/shop ({address}), limit:default/slow\n"
    listed = slimnet(host, "policy", "ls").splitlines()
    assert [re.split(r"  +", line) for line in listed] == [
        ["KIND", "NETWORK", "NAMESPACE", "NAME", "WHAT", "SOURCE"],
        ["Service", "prod", "default", "shop", f"{address}:80", "shop.yaml:2"],
        ["EgressLimit", "prod", "default", "slow", "100M bit/s, 10M bit/s each connection",
         "limit.yaml:2"],
    ]  # fmt: skip
    assert "NetworkPolicy 'shop'" in refused(host, "policy", "rm", "shop")
    assert "kind: wanted one of" in refused(host, "policy", "rm", "shop", "--kind", "pod")
    assert slimnet(host, "policy", "rm", "shop", "--kind", "service") == "service shop removed\n"
    assert answer(host, "policy", "rm", "slow", "--kind", "EgressLimit")["removed"] == "slow"
    assert answer(host, "policy", "ls") == []
    wide = Path(__file__).parents[2] / "docs" / "examples" / "cluster.yaml"
    for words in (("--cluster",), ("--kind", "clusternetworkpolicy")):
        slimnet(host, "policy", "apply", str(wide))
        slimnet(host, "policy", "rm", "no-metadata-service", *words)
    assert answer(host, "policy", "ls") == []
    shop.write_text(SHOP + "---\n" + LIMIT)
    assert "each document once" in refused(host, "policy", "apply", str(shop), str(limit))
    assert answer(host, "policy", "ls") == []


def test_warnings(bed, web, tmp_path):
    """What was surely not meant is said on standard error, and counts with --strict."""
    host = bed.hosts[0]
    file = tmp_path / "idle.yaml"
    file.write_text(POLICY.replace("matchLabels: {app: web}", "matchLabels: {app: wbe}"))

    def run(*argv):
        argv = command(host, "policy", *argv, str(file))
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    warning = "warning: idle.yaml:2: default/web: its subject selects no endpoint\n"
    checked = run("check", "-o", "json")
    assert (checked.returncode, checked.stderr) == (0, warning)
    assert json.loads(checked.stdout)[0]["network"] == "prod"
    assert json.loads(checked.stdout)[0]["warnings"] == [warning.strip().removeprefix("warning: ")]
    assert run("check", "--strict").returncode == 1
    assert answer(host, "policy", "ls") == []
    applied = run("apply")
    assert (applied.returncode, applied.stderr) == (0, warning)
    file.write_text(POLICY.replace("friend", "web"))
    assert run("check", "--strict").returncode == 0


def test_check_without_an_agent(bed, tmp_path):
    file = tmp_path / "web.yaml"
    file.write_text(POLICY)
    program = [sys.executable, "-m", "slimnet.cli", "--agent", "/no/agent", "policy", "check"]
    done = subprocess.run([*program, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "only the files were looked at, not endpoints: no agent on /no/agent" in done.stderr
    done = subprocess.run([*program, "--strict", str(file)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""


def test_usage(bed, web, tmp_path):
    """Who sent how much by which rule; a backend that does not count has nothing to say."""
    host, other = bed.hosts
    file = tmp_path / "web.yaml"
    file.write_text(POLICY)
    slimnet(host, "policy", "apply", str(file))
    slimnet(host, "status", "--wait")
    run = ["run", "-n", "prod", "--name", "me", "-l", "app=friend", "--"]
    slimnet(host, *run, sys.executable, "-c", CLIENT, "web", "80")
    assert "'nobody': there is none" in refused(other, "usage", "--endpoint", "nobody")
    accounts = answer(other, "usage")
    header, *lines = slimnet(other, "usage").splitlines()
    assert header.split() == [
        "ENDPOINT", "DIRECTION", "CONNECTIONS", "REFUSED", "SENT", "RECEIVED", "RULE",
    ]  # fmt: skip
    if not can(bed.backend, Can.COUNTS):
        assert accounts == lines == []
        return
    (account,) = (each for each in accounts if each["rule"])
    assert account["direction"] == "ingress"
    assert (account["connections"], account["refused"], account["received"]) == (1, 0, 0)
    assert account["sent"] > 0
    assert account["words"].startswith("default/web ingress[0]")
    (line,) = (line for line in lines if "default/web" in line)
    assert line.split()[:2] == ["prod/web", "ingress"]
    assert answer(other, "usage", "--endpoint", "web") == accounts


def test_a_wrong_policy_changes_nothing(bed, tmp_path):
    file = tmp_path / "web.yaml"
    file.write_text(POLICY + "---\n" + POLICY.replace("podSelector", "podSelektor"))
    said = refused(bed.hosts[0], "policy", "apply", str(file))
    assert "web.yaml:" in said
    assert "podSelektor" in said
    assert answer(bed.hosts[0], "policy", "ls") == []


@pytest.mark.parametrize("target", ["web", ":80", "web:http", "web:99999"])
def test_explain_wants_a_port(bed, target):
    assert "--to" in refused(bed.hosts[0], "policy", "explain", "--from", "web", "--to", target)


def test_ping(bed, web):
    carried = "accelerated" if can(bed.backend, Can.DIRECT) else "fallback"
    found = answer(bed.hosts[0], "ping", "web:80", "--count", "3")
    assert found["carried"] == carried
    assert len(found["milliseconds"]) == 3
    table = slimnet(bed.hosts[0], "ping", "web:80")
    assert f"carried  {carried}\n" in table
    assert " ms (median of 3, " in table
    refusal = answer(bed.hosts[0], "ping", "web:81", status=1)
    assert refusal["error"] == "ECONNREFUSED"
    assert answer(bed.hosts[0], "ping", "web")["error"] is None
    assert "nobody" in refused(bed.hosts[0], "ping", "nobody:80")


def test_connections(bed, web):
    hold = "import socket, sys; s = socket.create_connection(('web', 80), 10); print(s.recv(9), flush=True); sys.stdin.read()"  # noqa: E501
    with subprocess.Popen(
        command(bed.hosts[0], "run", "--name", "me", "--", sys.executable, "-c", hold),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.readline()
        (found,) = answer(bed.hosts[0], "connections")
        assert found["direction"] == "egress"
        assert found["peer"][1] == 80
        heading, line = slimnet(bed.hosts[0], "connections").splitlines()
        assert heading.split()[:4] == ["ENDPOINT", "DIRECTION", "LOCAL", "PEER"]
        assert line.split()[0] == "prod/me"
        assert "prod/web" in line
        process.stdin.close()
        assert process.wait(10) == 0


def test_observe(bed, web, tmp_path):
    """Opened, closed, and refused by policy, as they happen; ends after --count."""
    host = bed.hosts[0]
    (tmp_path / "web.yaml").write_text(POLICY)
    friend = ["run", "--name", "friend", "-l", "app=friend", "--", sys.executable, "-c", CLIENT]
    if can(bed.backend, Can.OBSERVES):
        with subprocess.Popen(
            command(bed.hosts[1], "observe", "--count", "2", "--endpoint", "web"),
            stdout=subprocess.PIPE, text=True,
        ) as watcher:  # fmt: skip
            assert watcher.stdout.readline().startswith("TIME")  # it hears from here on
            slimnet(host, *friend, "web", "80")
            opened, over = [line.split() for line in watcher.stdout]
            assert watcher.wait(10) == 0
        assert opened[1:5] == ["opened", "prod/web", "ingress", "tcp"]
        assert opened[6].endswith(":80")
        assert over[1:3] == ["closed", "prod/web"]
    slimnet(host, "policy", "apply", str(tmp_path / "web.yaml"))
    slimnet(host, "status", "--wait")
    with subprocess.Popen(
        command(bed.hosts[1], "observe", "--kind", "refused", "--count", "1"),
        stdout=subprocess.PIPE, text=True,
    ) as watcher:  # fmt: skip
        heading = watcher.stdout.readline()
        assert heading.split()[:3] == ["TIME", "KIND", "ENDPOINT"]
        slimnet(host, "ping", "web:80", "--timeout", "1", status=1)
        (line,) = watcher.stdout
        assert watcher.wait(10) == 0
    assert line.split()[1:4] == ["refused", "prod/web", "ingress"]
    (last, *_) = reversed([json.loads(each) for each in slimnet(
        bed.hosts[1], "observe", "--last", "-o", "json").splitlines()])  # fmt: skip
    assert last["kind"] == "refused"


def test_status(bed):
    found = answer(bed.hosts[0], "status", "--wait")
    assert found["ready"] is True
    assert found["backend"] == bed.backend
    assert [each["name"] for each in found["hosts"]] == ["h1", "h2"]
    table = slimnet(bed.hosts[0], "status")
    assert ["backend", bed.backend] in [line.split() for line in table.splitlines()]
    rows = [line.split()[:4] for line in table.splitlines()]
    assert ["h2", "now", "198.18.0.2", bed.backend] in rows


def test_completion_knows_the_names(bed):
    slimnet(bed.hosts[0], "endpoint", "add", "web")
    line = "slimnet ping w"
    done = subprocess.run(
        [sys.executable, "-m", "slimnet.cli"],
        env={
            **os.environ, "SLIMNET_AGENT": str(bed.hosts[0].agent),
            "_SLIMNET_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "2",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["plain,web"]


def test_testbed_ls_and_exec(bed):
    rows = json.loads(slimnet(bed.hosts[0], "testbed", "ls", "-o", "json"))
    mine = [each for each in rows if each["testbed"] == bed.name]
    assert [each["host"] for each in mine] == ["h1", "h2"]
    assert [each["pid"] for each in mine] == [host.pid for host in bed.hosts]
    inside = slimnet(
        bed.hosts[0], "testbed", "exec", "--name", bed.name, "h2", "--",
        "sh", "-c", "echo $SLIMNET_AGENT; stat -L -c %i /proc/self/ns/net",
    ).split()  # fmt: skip
    assert inside == [str(bed.hosts[1].agent), str(os.stat(bed.hosts[1].netns).st_ino)]
    exec_ = ["testbed", "exec", "--name", bed.name, "h1"]
    slimnet(bed.hosts[0], *exec_, "--", "sh", "-c", "exit 9", status=9)
    slimnet(bed.hosts[0], *exec_, "--", "no-such-program", status=127)
    assert "there are: h1, h2" in refused(bed.hosts[0], *exec_[:-1], "h7", "--", "true")


def test_run_from_inside_a_hosts_namespace(bed, web):
    """The caller's own network namespace is not the machine's."""
    text = slimnet(
        bed.hosts[0], "testbed", "exec", "--name", bed.name, "h1", "--",
        sys.executable, "-m", "slimnet.cli", "run", "--name", "me", "--",
        sys.executable, "-c", CLIENT, "web", "80",
    )  # fmt: skip
    assert len(set(text.split())) == 1
