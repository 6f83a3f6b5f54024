# SPDX-License-Identifier: Apache-2.0
"""sock_diag: sockets are found and destroyed, in the namespace it was made in."""

import os
import socket

import pytest

from slimnet.linux.netns import Netns, enter
from slimnet.linux.sock_diag import LIVE, STATES
from slimnet_ebpf.maps import NO_PREALLOC, Map
from slimnet_ebpf.objects import Object
from slimnet_ebpf.requirements import OBJECT
from slimnet_ebpf.sockets import SocketDiagnosis

pytestmark = pytest.mark.root


@pytest.fixture
def diagnosis(machine):
    with Object(OBJECT) as loaded:
        loaded.load()
        storage = loaded.maps()["slim_socket"]
        with enter(machine.netns):
            made = SocketDiagnosis(storage.fd)
            yield made
            made.close()


def by_port(diagnosis, port):
    return [one for one in diagnosis.sockets() if one.ports[0] == port]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_listeners_and_connections_are_found(diagnosis, family):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((host, 0))
        server.listen()
        port = server.getsockname()[1]
        client.connect((host, port))
        child, _ = server.accept()
        with child:
            found = {STATES[one.state]: one for one in by_port(diagnosis, port)}
            assert found.keys() == {"LISTEN", "ESTAB"}
            assert found["ESTAB"].ports[1] == client.getsockname()[1]
            assert found["ESTAB"].cookie == int.from_bytes(
                child.getsockopt(socket.SOL_SOCKET, 57, 8), "little"
            )
            assert found["ESTAB"].storage == b""


def test_live_is_neither_listening_nor_over(diagnosis):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for _ in range(3):  # the server's end goes into TIME_WAIT
            with socket.create_connection(("127.0.0.1", port)) as client:
                server.accept()[0].close()
                assert client.recv(1) == b""
        client = socket.create_connection(("127.0.0.1", port))
        child, _ = server.accept()
        with client, child:
            every = [STATES[one.state] for one in by_port(diagnosis, port)]
            assert sorted(every) == ["ESTAB", "LISTEN", *["TIME-WAIT"] * 3]
            live = [one for one in diagnosis.sockets(states=LIVE) if one.ports[0] == port]
            assert [STATES[one.state] for one in live] == ["ESTAB"]


def test_a_destroyed_connection_fails_with_an_ordinary_error(diagnosis):
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        child, _ = server.accept()
        with client, child:
            victim = [
                one
                for one in by_port(diagnosis, server.getsockname()[1])
                if STATES[one.state] == "ESTAB"
            ]
            assert diagnosis.destroy(victim) == 1
            with pytest.raises(ConnectionAbortedError):
                child.recv(1)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert diagnosis.destroy(victim) == 0


def test_all_listeners_of_a_group_can_be_destroyed(diagnosis):
    group = [socket.socket() for _ in range(5)]
    for one in group:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", 0 if one is group[0] else group[0].getsockname()[1]))
        one.listen()
    port = group[0].getsockname()[1]
    listeners = by_port(diagnosis, port)
    assert len(listeners) == 5
    assert diagnosis.destroy(listeners) == 5
    assert {STATES[one.state] for one in by_port(diagnosis, port)} <= {"UNCONN"}
    for one in group:
        one.close()


def test_a_thread_returns_to_its_namespace(machine):
    def here():
        return os.stat("/proc/thread-self/ns/net").st_ino

    before = here()
    with enter(machine.netns):
        inside = Netns()
        assert here() == inside.inode == machine.netns.stat().st_ino
    assert before == here()
    with inside.entered():
        assert here() == inside.inode
    assert before == here()
    inside.close()
    inside.close()


def test_an_errors_number_survives(diagnosis):
    plain = Map.create(1, "plain", 4, 8, 1, NO_PREALLOC)
    wrong = SocketDiagnosis(plain.fd)
    with pytest.raises(OSError) as error:
        wrong.sockets()
    assert error.value.errno
    wrong.close()
