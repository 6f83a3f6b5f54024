# SPDX-License-Identifier: Apache-2.0
"""Machines that become hosts of a cluster by the command line, in network namespaces."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from slimnet.cluster.which import open_named
from slimnet.linux import netns
from slimnet.testbed.etcd import Etcd
from slimnet.testbed.host import TestbedHost
from slimnet.testing import Underlay

PATIENCE = 120


class Machines:
    """Three of them, each with a directory of its own, and a store that they reach.

    Args:
        directory: of all.
        kind: of store: sqlite, etcd, or tls for etcd with certificates.
        authority: makes one that signs.
        backends: of the hosts, in turn; none: as each chooses.
        members: of etcd.
        settings: more lines of their configuration.
        options: of each etcd server's command line.
    """

    def __init__(
        self,
        directory,
        kind,
        authority=None,
        backends=(),
        members=1,
        settings="",
        options=(),
    ):
        self.directory = directory
        self.underlay = Underlay(hosts=3, name=f"mem-{os.getpid()}")
        self.backends = backends
        self.settings = settings
        self.hosts = [self._host(each) for each in self.underlay.hosts]
        address = str(self.underlay.network[100])
        self.options, secure = [], {"options": options}
        if kind == "tls":
            ours = authority("ours")
            cert, key = ours.sign("server", f"IP:{address}")
            self.client = ours.sign("client")
            options = [f"--cert-file={cert}", f"--key-file={key}", f"--trusted-ca-file={ours.ca}"]
            secure = {"scheme": "https", "options": [*options, "--client-cert-auth"]}
            self.options = ["-O", f"ca={ours.ca}", *self.certificate()]
        self.etcd = Etcd(
            directory / "etcd", address, members, namespace=self.underlay.switch, **secure
        )
        self.url = f"sqlite://{directory}/store.db" if kind == "sqlite" else self.etcd.url
        self.kind = kind

    def _host(self, each):
        instance = f"{self.underlay.name}-{each.name}"
        agent = Path("/run/slimnet", instance, "agent.sock")
        path = self.directory / each.name
        host = TestbedHost(
            each.name, instance, each.netns, each.address, each.interface, path, agent
        )
        path.mkdir()
        backend = ""
        if self.backends:
            name = self.backends[(int(each.name[1:]) - 1) % len(self.backends)]
            backend = f'backend = "{name}"\n'
        host.config.write_text(
            backend
            + f'instance = "{instance}"\nunderlay.interface = "{each.interface}"\n'
            + self.settings
        )
        return host

    def certificate(self):
        cert, key = self.client
        return ["-O", f"cert={cert}", "-O", f"key={key}"]

    def up(self):
        self.underlay.up()
        if self.kind != "sqlite":
            self.underlay.join(self.underlay.network[100])
            self.etcd.start()

    def down(self):
        for host in self.hosts:
            host.stop_agent()
            if (host.config.parent / "conf.d/cluster.toml").exists():
                slimnet(host, "agent", "--teardown", "--force")
            host.clear()
        if self.kind != "sqlite":
            self.etcd.remove()
        self.underlay.down()

    def held(self):
        """What the store holds."""
        with self.opened() as store:
            return store.list("")[0]

    @contextlib.contextmanager
    def opened(self):
        """The store."""
        with netns.enter(self.underlay.switch):
            url = self.url if self.kind != "tls" else str(self.hosts[0].config)
            with open_named(url) as store:
                yield store


@contextlib.contextmanager
def cluster(directory, kind="etcd", *, lease=3.0, **more):
    """Machines, as long as the block lasts.

    Args:
        directory: of all.
        kind: of their store.
        lease: of their agents, in seconds.
        more: as of :class:`Machines`.
    """
    made = Machines(directory, kind, settings=f"lease = {lease}\n", **more)
    try:
        made.up()
        yield made
    finally:
        made.down()


def slimnet(host, *words, status=0, typed=None, alone=True):
    """What it prints; where it is refused, its one line, alone or after what it did."""
    environment = {k: v for k, v in host.environment().items() if k != "SLIMNET_CONFIG"}
    environment |= {"SLIMNET_CONFIG": str(host.config), "NO_COLOR": "1"}
    argv = [sys.executable, "-m", "slimnet.cli", *words]
    with host.enter():
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=PATIENCE, input=typed
        )
    assert status in (None, done.returncode), done.stdout + done.stderr
    if not status:
        return done.stdout
    *did, line = done.stderr.splitlines()
    assert not (did and alone), done.stderr
    return line


def files(host):
    """What it has written, and when."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_mode)
        for path in host.directory.rglob("*")
    }


def first(machines, *words):
    """The token of a cluster that the first machine made."""
    host = machines.hosts[0]
    options = machines.options
    said = slimnet(host, "cluster", "init", "--host", "h1", "--store", machines.url,
                   *options, *words)  # fmt: skip
    command, token = said.strip().rsplit(" ", 1)
    assert command == "slimnet cluster join"
    return token


def join(machines, *hosts):
    """A cluster of these, whose agents run, with a network; the first of all makes it."""
    one, *others = hosts
    token = first(machines)
    for host in others:
        slimnet(host, "cluster", "join", "--host", host.name, token)
    for host in hosts:
        host.start_agent().wait()
    with one.node() as node:
        node.create_network("prod", "10.1.0.0/16")
