# SPDX-License-Identifier: Apache-2.0
"""Wire ports that the configuration chose, from the file to the packet."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab.agents import Cluster, until
from lab.paths import require

from slimnet import contract, sandbox
from slimnet.testbed import Testbed
from slimnet_ebpf.pins import BPFFS

pytestmark = pytest.mark.root

FIRST = 6000

SERVER = """
import socket
listener = socket.create_server(("", 80))
print("listening", flush=True)
while True:
    sock, _ = listener.accept()
    sock.sendall(b"hello")
"""
CLIENT = """
import socket, sys, time
source = ("", int(sys.argv[2]))
sock = socket.create_connection((sys.argv[1], 80), timeout=5, source_address=source)
print(sock.recv(5).decode(), flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def running(attached, program, *arguments):
    """A Python program as an endpoint, once it has printed its first line."""
    argv = [sys.executable, "-I", "-c", program, *map(str, arguments)]
    with sandbox.spawn(attached, argv, stdout=subprocess.PIPE) as process:
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


def remote_ports(host):
    """Of the established connections of a host, outside the inner range."""
    listed = subprocess.run(
        ["nsenter", f"--net={host.netns}", "ss", "-Htn", "state", "established"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(line.split()[-1].rpartition(":")[2]) for line in listed.stdout.splitlines()]


@pytest.mark.parametrize(
    ("source", "first", "count"),
    [
        (0, FIRST, contract.SLIM_WIRE_PORTS),
        (5000, FIRST + contract.SLIM_WIRE_PORTS, contract.SLIM_BOUND_PORTS),
    ],
    ids=["unbound", "source-bound"],
)
def test_another_range_of_wire_ports(source, first, count):
    require("ebpf")
    name = f"slt-w{os.getpid()}"
    with (
        Testbed(name, hosts=2, backend="ebpf", options={"wire_ports": FIRST}) as testbed,
        testbed.hosts[0].node() as here,
        testbed.hosts[1].node() as there,
    ):
        there.create_network("prod", "10.1.0.0/16")
        with (
            there.attach("prod", "web") as web,
            here.attach("prod", "me") as me,
            running(web, SERVER) as ready,
            running(me, CLIENT, web.endpoint.address, source) as answer,
        ):
            assert (ready, answer) == ("listening", "hello")
            ports = remote_ports(testbed.hosts[0])
    assert len(ports) == 1
    assert ports[0] in range(first, first + count)


SERVICE = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def service(host, address, port):
    """A process of the host itself that listens."""
    argv = ["nsenter", f"--net={host.netns}", sys.executable, "-I", "-c", SERVICE]
    with subprocess.Popen([*argv, address, str(port)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"listening\n"
            yield process
        finally:
            process.kill()


def test_a_service_of_the_host_on_a_wire_port(tmp_path):
    """The agent does not start and cut it off; one that begins later is named in the status."""
    require("ebpf")
    with Cluster("ebpf", tmp_path) as cluster:
        host = cluster.hosts[0]
        name = Path(sys.executable).name
        with service(host.where, "0.0.0.0", 4848) as process:
            done = subprocess.run(host.command(), capture_output=True, text=True, check=False)
            assert done.returncode == 2
            assert done.stderr.splitlines()[-1].endswith(
                "backend.ebpf.wire_ports: wanted 96 ports on which this host does not listen"
                f" itself, got '4848 of {name} (process {process.pid})'"
            )
            assert not (BPFFS / "slimnet" / host.instance).exists()
        with service(host.where, "127.0.0.1", 4848), service(host.where, "0.0.0.0", 4789):
            node = host.start()  # those are reached as before
            assert node.status()["trouble"] == []
        with service(host.where, "0.0.0.0", 4885) as process:
            until(lambda: host.node().status()["trouble"])
            (trouble,) = host.node().status()["trouble"]
            assert trouble == (
                f"nothing from outside reaches port 4885 of {name} (process {process.pid}):"
                " backend ebpf has TCP ports 4790 to 4885 for itself (wire_ports)"
            )
            host.stop()
            host.start()  # one that runs is adopted, and goes on
            assert host.node().status()["trouble"] == [trouble]
        until(lambda: host.node().status()["ready"])
