# SPDX-License-Identifier: Apache-2.0
"""The data path outlives the process that drives it, and forgets what goes."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import pytest
from lab import Lab

from slimnet.model import Direction


@pytest.fixture
def own(lab):
    """The lab, and its drivers again after a test that killed them."""
    yield lab
    for host in lab.hosts:
        if host.driver is None:
            host.start_backend()


def test_the_driver_is_killed(own, place):
    """kill -9: live connections go on, new ones work, policy holds; the next
    process adopts what runs and goes on from there."""
    lab = own
    client, server = lab.endpoint(0), lab.endpoint(0 if place == "one-host" else 1)
    server.serve(80)
    lab.isolate(server, Direction.INGRESS)
    lab.rule(server, Direction.INGRESS, peer=client, port=80, allow=True)
    lab.rule(server, Direction.INGRESS, peer=client, port=81, allow=True)
    lab.install()
    live = client.connect(server.address, 80)
    before = [host.backend.status() for host in lab.hosts]
    for host in lab.hosts:
        host.kill_backend()

    live.sendall(b"still")
    assert live.recv(10) == b"still"
    assert client.connect(server.address, 80).getpeername() == (server.address, 80)
    server.listen(81)
    client.connect(server.address, 81)
    server.listen(82)
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 82)

    for host, status in zip(lab.hosts, before, strict=True):
        host.start_backend()
        after = host.backend.status()
        assert after.generation == status.generation
        assert after.endpoints == status.endpoints
        assert all(after.counters.get(key, 0) >= value for key, value in status.counters.items())
    live.sendall(b"adopted")
    assert live.recv(10) == b"adopted"
    lab.rule(server, Direction.INGRESS, peer=client, port=82, allow=True)
    lab.install()
    client.connect(server.address, 82)
    other = lab.endpoint(0)
    with pytest.raises(ConnectionRefusedError):
        other.connect(server.address, 80)


def test_killed_in_the_middle_of_an_install(own):
    """At any moment: a flow sees the old tables or the new ones."""
    lab = own
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    for delay in (0.0, 0.001, 0.003, 0.01):
        host = server.host
        tables = lab.tables(host)
        host.start_install(tables, times=50)
        time.sleep(delay)
        host.kill_backend()
        for _ in range(3):
            client.connect(server.address, 80).close()
        host.start_backend()
        lab.install()
        client.connect(server.address, 80).close()


def test_a_client_process_dies(own):
    """Its sockets are the kernel's to close; nothing stays open at the peer."""
    lab = own
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.listen(80)
    socks = [client.connect(server.address, 80) for _ in range(3)]
    accepted = [listener.accept()[0] for _ in socks]
    client.process.send_signal(signal.SIGKILL)
    for sock in accepted:
        assert sock.recv(1) == b""


def test_a_server_process_dies(own):
    """Its listeners go with it."""
    lab = own
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.listen(80)
    live = client.connect(server.address, 80)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    with contextlib.suppress(ConnectionResetError):
        assert live.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        client.connect(server.address, 80)


def test_an_endpoint_is_detached(own):
    """Its address is nobody's; the next endpoint inherits nothing of it."""
    lab = own
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.listen(80)
    client.connect(server.address, 80)
    address = server.address
    lab.remove(server)
    with pytest.raises(OSError) as caught:
        client.connect(address, 80)
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
    for _ in range(3):
        heir = lab.endpoint(1)
        with pytest.raises(ConnectionRefusedError):
            client.connect(heir.address, 80)
        heir.listen(80)
        client.connect(heir.address, 80)
        lab.remove(heir)


def test_a_socket_that_outlives_its_endpoint(own):
    """Handed to another endpoint, a listener of a detached one is no way in,
    and takes nothing from whoever gets the index next."""
    lab = own
    client, server, keeper = lab.endpoint(0), lab.endpoint(1), lab.endpoint(1)
    kept = server.give(server.listen(80), keeper)
    client.connect(server.address, 80)
    lab.remove(server)
    heir = lab.endpoint(1)
    with pytest.raises(ConnectionRefusedError):
        client.connect(heir.address, 80)
    listener = heir.listen(80)
    for _ in range(5):
        opened = client.connect(heir.address, 80)
        _, peer = listener.accept()
        assert peer == opened.getsockname()
    del kept


def test_nothing_is_left(own, mode):
    """After the lab: no pin, no cgroup, no filter; see also the backends' own suite."""
    lab = own
    lab.endpoint(0).listen(80)
    name, root = lab.name, lab.cgroup
    other = Lab(mode, hosts=1)
    other.endpoint(0)
    instance, cgroup = other.name, other.cgroup
    other.close()
    kept = [*Path("/sys/fs/bpf/slimnet").glob("*"), *Path("/run/netns").glob("*")]
    assert not [path for path in kept if instance in path.name]
    own_state = (lab.directory / lab.hosts[0].name).iterdir()
    assert [path for path in kept if name in path.name] or [*own_state]
    assert not cgroup.exists()
    assert root.exists()
    assert os.path.exists("/sys/fs/bpf")
