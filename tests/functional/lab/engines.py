# SPDX-License-Identifier: Apache-2.0
"""Hosts for containers, and what containers start from."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.hands import PATIENCE
from lab.paths import DATA_PATHS, Can
from slimnet.engines.container import attachments
from slimnet.exceptions import BackendError, NotFound
from slimnet.linux.resolvers import RESOLV_CONF
from slimnet.testbed import Testbed

#: Data paths that take a container's network namespace.
TAKING = [name for name, path in DATA_PATHS.items() if Can.TAKES_NAMESPACES in path.can]
#: For what the engine's part alone decides, whatever takes the namespace: a fixture ``hosts`` on
#: one of them.
ONE = pytest.mark.parametrize("hosts", TAKING[:1], indirect=True)
#: And an endpoint of which is its cgroup, in the host's network namespace, otherwise.
SHARING = [name for name in TAKING if Can.OWN_DEVICES not in DATA_PATHS[name].can]
PLUGIN = Path(sys.executable).with_name("slimnet-cni")
SLIMNET = PLUGIN.with_name("slimnet")


def kill_all(directory):
    """The processes that name what is below a directory of the test's own: monitors and shims
    of an engine that was killed."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if f"{directory}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def come_later(directory):
    """A configuration with which containers may start while the agent is down: for the
    environment of an engine, a plugin or a hook."""
    file = directory / "later.toml"
    file.write_text('[engines]\nwithout_agent = "later"\n')
    return {"SLIMNET_CONFIG": str(file)}


def joined(host, name):
    """The endpoint of a container that started without the agent, once it is one with a
    resolver."""
    until = time.monotonic() + 10 * PATIENCE
    with host.node() as node:
        while True:
            with contextlib.suppress(NotFound, BackendError):
                there = node.endpoint("prod", name)
                if RESOLV_CONF in there.place.mounts:
                    return there.endpoint
            assert time.monotonic() < until, host.log.read_text()[-2000:]
            time.sleep(0.1)


class Words:
    """An engine that takes words on a command line; ``start`` is its own."""

    def __call__(self, *words, status=0):
        with self.start(*words) as process:
            output, errors = process.communicate(timeout=60 * PATIENCE)
        assert process.returncode == status, (words, output, errors)
        return output if status == 0 else errors


def served(engine, *words):
    """Until a server that has just been started answers."""
    until = time.monotonic() + 20 * PATIENCE
    while True:
        with engine.start(*words) as process:
            output, errors = process.communicate(timeout=30 * PATIENCE)
        if process.returncode == 0:
            return output
        assert time.monotonic() < until, errors
        time.sleep(0.1)


@contextmanager
def two_hosts(backend, name, *, count=2):
    """Two hosts, or as many, with a network ``prod``, 10.1.0.0/16."""
    with Testbed(f"slt-{name}{os.getpid()}", hosts=count, backend=backend) as testbed:
        with testbed.hosts[0].node() as node:
            node.create_network("prod", "10.1.0.0/16")
            node.wait()
        yield testbed.hosts


def inside(path, *command):
    """A command in a network namespace, to its end."""
    return subprocess.run(
        ["nsenter", f"--net={path}", *map(str, command)],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip


def endpoints(host):
    """Those of that host, by name."""
    with host.node() as node:
        return {each.name: each for each in node.endpoints() if each.host == host.name}


def gone(host, name):
    """Once that host's endpoint is no more."""
    until = time.monotonic() + 20 * PATIENCE
    while name in endpoints(host):
        assert time.monotonic() < until
        time.sleep(0.1)


@contextmanager
def closed(host):
    """While the block lasts, nobody may come to endpoints with the label ``app: web``."""
    with host.node() as node:
        node.apply_policy(
            """
            apiVersion: networking.k8s.io/v1
            kind: NetworkPolicy
            metadata: {name: closed}
            spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
            """,
            "prod",
        )
        node.wait()
        try:
            yield
        finally:
            node.remove_policy("closed", "prod")


def left(owner, *hosts):
    """What is still there of containers: of the hosts' records, and written down."""
    found = [each.file.name for each in attachments(owner)]
    for host in hosts:
        with host.node() as node:
            found += [each.path for each in node.endpoints() if each.host == host.name]
            found += [each.name for each in node.policies()]
    return found


def ask(command, config, *, plugin=PLUGIN, own=None, **environment):
    """One request to the plugin, as a runtime makes it, with ``own`` besides in its environment:
    status, answer, and what was told."""
    variables = {f"CNI_{key}": str(value) for key, value in environment.items()}
    done = subprocess.run(
        [plugin],
        input=config if isinstance(config, str) else json.dumps(config),
        env={"PATH": os.environ["PATH"], "CNI_COMMAND": command, **variables, **(own or {})},
        capture_output=True,
        text=True,
        timeout=30 * PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    answer = json.loads(done.stdout) if done.stdout else None
    return done.returncode, answer, done.stderr


def root_file_system(directory, *programs):
    """One with busybox, and programs of this machine with the libraries that they need."""
    for each in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "usr/sbin", "var/run"):
        (directory / each).mkdir(parents=True)
    for program in ("busybox", *programs):
        found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found is not None, program
        needed = subprocess.run(["ldd", found], capture_output=True, text=True, check=False).stdout
        for file in (found, *re.findall(r"/[^ ]+(?= \()", needed)):
            target = directory / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    busybox = next(directory.glob("**/busybox")).relative_to(directory)
    command = ["chroot", directory, f"/{busybox}", "--install", "-s", "/bin"]
    subprocess.run(command, check=True)
    (directory / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return directory
