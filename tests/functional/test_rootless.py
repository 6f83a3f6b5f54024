# SPDX-License-Identifier: Apache-2.0
"""A whole cluster of an ordinary user: agents, store and endpoints, without any privilege."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from lab.agents import until

from slimnet.testing import Underlay

pytestmark = pytest.mark.root

USER, ANOTHER = 64321, 64322
SLIMNET = [sys.executable, "-m", "slimnet.cli"]


def as_user(user, *argv):
    """The words that run a command as an ordinary user. One capability, to read: Python itself
    may be in a home directory."""
    words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    words += [f"--{each}-caps=-all,+dac_read_search" for each in ("inh", "ambient")]
    return [*words, *map(str, argv)]


def closes_others():
    """Whether this kernel lets a user's process at the sockets of the others."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


class Host:
    """A host of the user's cluster."""

    def __init__(self, where, home):
        self.where = where
        self.runtime = home / f"run-{where.name}"
        self.config = home / f"config-{where.name}"
        self.log = home / f"{where.name}.log"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_CONFIG_HOME": str(self.config),
            "XDG_STATE_HOME": str(home / "state"),
        }
        for directory in (self.runtime, self.config, self.config / "slimnet", home / "state"):
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                os.chown(directory, USER, USER)
        file = self.config / "slimnet" / "slimnet.toml"
        file.write_text(
            f'host = "{where.name}"\nlease = 4\n'
            f'key_file = "{home}/state/key"\n[underlay]\ninterface = "{where.interface}"\n'
        )
        self.agent = None

    @property
    def socket(self):
        return self.runtime / "slimnet" / "default" / "agent.sock"

    def argv(self, *words, user=USER):
        return ["nsenter", f"--net={self.where.netns}", *as_user(user, *SLIMNET, *words)]

    def run(self, *words, user=USER, check=True, **environment):
        done = subprocess.run(
            self.argv(*words, user=user),
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self):
        with self.log.open("a") as log:
            self.agent = subprocess.Popen(
                self.argv("agent"), stdout=log, stderr=log, env=self.environment, cwd="/"
            )
        until(lambda: self.socket.exists() or self.agent.poll() is not None, 20)
        assert self.agent.poll() is None, self.log.read_text()

    def stop(self):
        if self.agent is not None:
            self.agent.terminate()
            self.agent.wait(20)
            self.agent = None

    def spawn(self, *words):
        return subprocess.Popen(
            self.argv(*words),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def endpoints(self):
        return {
            each["name"] for each in json.loads(self.run("endpoint", "ls", "-o", "json").stdout)
        }


@pytest.fixture(scope="module")
def cluster():
    """Two hosts with an agent each, and a network."""
    home = Path(tempfile.mkdtemp(prefix="slt-"))
    os.chmod(home, 0o755)
    os.chown(home, USER, USER)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, home)
        underlay = undo.enter_context(Underlay(hosts=2))
        hosts = [Host(where, home) for where in underlay.hosts]
        for host in hosts:
            undo.callback(lambda host=host: host.run("agent", "--teardown", check=False))
            undo.callback(host.stop)
            host.start()
        hosts[0].run("network", "create", "prod", "10.61.0.0/16")
        yield hosts


@pytest.fixture
def host(cluster):
    return cluster[0]


def test_check_says_which_backend_works(host):
    """And that root would have more, in no error."""
    done = host.run("check", "-o", "json")
    found = json.loads(done.stdout)[0]
    answers = {each["backend"]: each for each in found["backends"]}
    assert found["works"]
    assert answers["preload"]["answer"] == "yes"
    reason, _, lacking = answers["preload"]["reason"].partition("; ")
    assert reason == f"needs no privilege: runs as user {USER}"
    old = "live connections go on when policy forbids them, before Linux 5.6"
    assert lacking == ("" if closes_others() else old)
    assert {each["answer"] for name, each in answers.items() if name != "preload"} == {"no"}
    machine = {each["subject"]: each for each in found["machine"]}
    assert machine["root"]["answer"] == "warning"
    assert machine["root"]["remedy"] == "use sudo for the others"


def test_its_files_are_the_users(host):
    status = json.loads(host.run("status", "-o", "json").stdout)
    (status,) = status if isinstance(status, list) else [status]
    state = Path(host.environment["XDG_STATE_HOME"])
    assert status["backend"] == "preload"
    assert not status["enforcing"]
    assert status["store"] == f"sqlite:///{state}/slimnet/store.db"
    for file in (host.socket, state / "slimnet" / "store.db", state / "key"):
        found = file.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (USER, 0o600), file


def test_nobody_else_may_ask(host):
    done = host.run("--agent", host.socket, "status", user=ANOTHER, check=False)
    assert done.returncode == 2
    assert f"agent on {host.socket}: only root, or its user, may talk to it" in done.stderr
    done = subprocess.run(
        [*SLIMNET, "--agent", host.socket, "status"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_command_has_the_endpoints_environment(host):
    """The endpoint is there while it runs, and its exit status comes back."""
    command = host.spawn(
        "run", "--name", "web", "--", "sh", "-c", "echo $SLIMNET_SOCKET $LD_PRELOAD; read x; exit 7"
    )
    path, library = command.stdout.readline().split()
    assert path.startswith(str(host.runtime))
    assert library.endswith("/libslimnet-shim.so")
    assert "web" in host.endpoints()
    again = host.run("run", "--name", "web", "--", "true", check=False)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "web runs already" in again.stderr
    assert command.communicate("\n")[1] == ""
    assert command.returncode == 7
    assert "web" not in host.endpoints()


def test_exec_joins_it(host):
    command = host.spawn("run", "--name", "web", "--", "sh", "-c", "echo; read x")
    command.stdout.readline()
    done = host.run("exec", "web", "--", "sh", "-c", "echo $SLIMNET_SOCKET")
    assert done.stdout.startswith(str(host.runtime))
    command.communicate("\n")


def test_a_detached_one_is_removed_with_its_processes(host):
    """Those that lead a session of their own too."""
    host.run("run", "-d", "--name", "job", "--", "sh", "-c", "setsid sleep 77 & sleep 77")
    assert "job" in host.endpoints()
    refused = host.run("endpoint", "rm", "job", check=False)
    assert refused.returncode == 2
    assert "has processes" in refused.stderr
    host.run("endpoint", "rm", "job", "--kill")
    assert "job" not in host.endpoints()
    log = Path(host.environment["XDG_STATE_HOME"], "slimnet", "log", "default")
    assert (log / "prod.default.job.log").exists()
    left = subprocess.run(["pgrep", "-u", str(USER), "-f", "sleep 77"], capture_output=True)
    assert left.stdout == b""


def test_what_no_library_reaches_is_refused(host, built):
    """In one line, and no endpoint is left."""
    (program,) = built("static")
    shutil.copy(program, host.runtime / "static")
    done = host.run("run", "--name", "still", "--", host.runtime / "static", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "/static as an endpoint: it is linked statically, and takes in no library" in done.stderr
    assert "still" not in host.endpoints()
    done = host.run("run", "--name", "still", "--", "su", check=False)
    assert "it is set-user-ID, and takes in no library" in done.stderr


def test_what_only_root_can_is_refused(host):
    for words, said in (
        (("run", "--user", "root", "--name", "a", "--", "true"), "as user root needs root"),
        (("endpoint", "add", "a", "--cgroup", "/sys/fs/cgroup/x"), "cgroup"),
    ):
        done = host.run(*words, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert said in done.stderr
    assert "a" not in host.endpoints()


def test_a_mandatory_policy_is_refused(host):
    """Since nothing holds a process to it that does not want to be."""
    command = host.spawn("run", "--name", "web", "--", "sh", "-c", "echo; read x")
    command.stdout.readline()
    file = host.runtime / "policy.yaml"
    file.write_text(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        "metadata: {name: must}\n"
        "spec: {podSelector: {}, policyTypes: [Ingress], mandatory: true}\n"
    )
    done = host.run("policy", "apply", "-n", "prod", str(file), check=False)
    assert done.returncode == 2
    assert "whose backend preload cannot enforce it against a hostile process" in done.stderr
    command.communicate("\n")


def test_an_agent_that_was_killed_adopts_what_runs(host):
    command = host.spawn("run", "--name", "web", "--", "sh", "-c", "echo; read x")
    command.stdout.readline()
    router = json.loads(host.run("status", "-o", "json").stdout)
    host.agent.kill()
    host.agent.wait()
    host.agent = None
    host.socket.unlink()
    host.start()
    assert "web" in host.endpoints()
    assert json.loads(host.run("status", "-o", "json").stdout) != router
    assert command.poll() is None
    command.communicate("\n")


def test_a_router_that_was_killed_is_another_one_soon(host):
    def router():
        (status,) = [json.loads(host.run("status", "-o", "json").stdout)]
        status = status[0] if isinstance(status, list) else status
        return status["detail"]["router"]

    before = router()
    os.kill(before, 9)
    until(lambda: router() != before, 20)


def test_without_control_groups(cluster):
    """As on a machine that has version 1 of them only."""
    host = cluster[1]
    host.stop()
    plain = host.argv("agent")
    script = 'umount -l /sys/fs/cgroup && exec "$@"'
    with host.log.open("a") as log:
        host.agent = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, "sh", *plain],
            stdout=log,
            stderr=log,
            env=host.environment,
        )
    until(lambda: host.socket.exists() or host.agent.poll() is not None, 20)
    assert host.agent.poll() is None, host.log.read_text()
    done = host.run("run", "--name", "bare", "--", "printenv", "SLIMNET_SOCKET")
    assert done.stdout.startswith(str(host.runtime))


def test_teardown_leaves_nothing(cluster):
    host = cluster[1]
    host.stop()
    host.run("agent", "--teardown")
    assert list((host.runtime).iterdir()) == [host.runtime / "slimnet"]
    assert list((host.runtime / "slimnet").iterdir()) == []
    host.start()


SERVER = """
import socket
one = socket.create_server(("0.0.0.0", 7000))
print("up", flush=True)
while True:
    there, peer = one.accept()
    there.sendall(peer[0].encode())
    there.close()
"""
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), 5) as one:
    print(one.recv(99).decode(), one.getpeername()[0], one.getsockname()[0])
"""


def test_endpoints_talk(cluster, place):
    """By overlay addresses, at both ends."""
    here, there = cluster[0], cluster[0 if place == "one-host" else 1]
    python = sys.executable
    server = there.spawn("run", "--name", "db", "--ip", "10.61.0.50", "--", python, "-uc", SERVER)
    assert server.stdout.readline() == "up\n", server.communicate()[1]
    done = here.run(
        "run", "--name", "app", "--ip", "10.61.0.51", "--", python, "-c", CLIENT, "10.61.0.50"
    )
    assert done.stdout.split() == ["10.61.0.51", "10.61.0.50", "10.61.0.51"]
    server.terminate()
    server.communicate()
    until(lambda: "db" not in there.endpoints(), 20)
