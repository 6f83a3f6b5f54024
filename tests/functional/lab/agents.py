# SPDX-License-Identifier: Apache-2.0
"""Hosts with real agents, each a process of its own, and one store for all."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time

from lab.hands import PATIENCE
from slimnet import AgentUnreachable, load_config, open_node
from slimnet.linux import cgroup
from slimnet.testing import Underlay

_NUMBER = itertools.count()
#: Seconds; a process starts in less on a busy machine too.
LEASE = 4 * PATIENCE


class Host:
    """One host: its configuration, and its agent as a process of its own."""

    def __init__(self, cluster, where, **options):
        self.where = where
        self.instance = f"{cluster.name}-{where.name}"
        self.config_file = cluster.directory / f"{where.name}.toml"
        self.log = cluster.directory / f"{where.name}.log"
        settings = {
            "instance": self.instance,
            "host": where.name,
            "backend": cluster.backend,
            "store": f"sqlite://{cluster.store}",
            "key_file": str(cluster.directory / "key"),
            "lease": LEASE,
            **options,
        }
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        self.config_file.write_text(f'{text}[underlay]\ninterface = "{where.interface}"\n')
        self.config = load_config(self.config_file)
        self.agent = None

    def command(self, *arguments):
        program = [sys.executable, "-m", "slimnet.cli", "agent", "--config", str(self.config_file)]
        return ["nsenter", f"--net={self.where.netns}", *program, *arguments]

    def start(self, **environment):
        with self.log.open("a") as log:
            self.agent = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env={**os.environ, **environment}
            )
        until(lambda: self.answers() or self.agent.poll() is not None, 60)
        if self.agent.poll() is not None:
            raise AssertionError(self.log.read_text())
        return self.node()

    def answers(self):
        try:
            return bool(self.node())
        except AgentUnreachable:
            return False

    def node(self):
        return open_node(self.config)

    def revive(self):
        """Whatever a test did to its agent: it runs again."""
        if self.agent is None or self.agent.poll() is not None:
            self.start()
        self.agent.send_signal(signal.SIGCONT)

    def kill(self):
        self.agent.kill()
        self.agent.wait(10)

    def stop(self):
        if self.agent is not None and self.agent.poll() is None:
            self.agent.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.agent.wait(10)
                return
            self.agent.kill()
            self.agent.wait(10)

    def teardown(self):
        self.stop()
        cgroup.kill(cgroup.mount() / "slimnet" / self.instance)
        done = None
        for _ in range(20):
            done = subprocess.run(self.command("--teardown"), capture_output=True, text=True)
            if done.returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(done.stderr)


class Cluster:
    def __init__(self, backend, directory):
        self.backend = backend
        self.directory = directory
        self.store = directory / "store.db"
        self.name = f"slt-b{os.getpid()}-{next(_NUMBER)}"
        self.underlay = Underlay(hosts=3, name=self.name.removeprefix("slt-"))
        *self.clustered, self.outside = self.underlay.hosts

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            undo.callback(self.underlay.down)
            self.underlay.up()
            self.hosts = [Host(self, where) for where in self.clustered]
            undo.pop_all()
        return self

    def __exit__(self, *_):
        with contextlib.ExitStack() as stack:
            stack.callback(self.underlay.down)
            for host in self.hosts:
                stack.callback(host.teardown)


def until(holds, seconds=10):
    deadline = time.monotonic() + seconds * PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
    return found


def connects(client, placed, port=7000):
    reached = client.connect(str(placed.endpoint.address), port)
    assert reached, reached.text
    return reached
