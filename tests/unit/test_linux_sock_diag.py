# SPDX-License-Identifier: Apache-2.0
"""The sockets of this namespace, as the kernel lists them to anybody."""

import contextlib
import errno
import os
import socket

import pytest
from netaddr import IPAddress

from slimnet.agent.listening import listener
from slimnet.exceptions import CapabilityMissing
from slimnet.linux import cgroup, netns
from slimnet.linux.sock_diag import LISTENING, LIVE, STATES, Diagnosis

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture
def diagnosis():
    with contextlib.closing(Diagnosis()) as made:
        yield made


def at(diagnosis, port, *protocols, **how):
    return [one for one in diagnosis.sockets(*protocols, **how) if one.ports[0] == port]


@pytest.mark.parametrize("family", LOOPBACK)
def test_fields(diagnosis, family):
    with socket.create_server((LOOPBACK[family], 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((LOOPBACK[family], port)) as client:
            (one,) = at(diagnosis, client.getsockname()[1])
            assert (one.family, one.protocol) == (family, socket.IPPROTO_TCP)
            assert STATES[one.state] == "ESTAB"
            assert one.ports == (client.getsockname()[1], port)
            own = socket.inet_pton(family, LOOPBACK[family])
            assert one.addresses == (own, own)
            assert one.cookie == int.from_bytes(client.getsockopt(1, 57, 8), "little")
            assert (one.interface, one.storage, one.traffic) == (0, b"", (0, 0))
            client.sendall(b"four")
            child, _ = server.accept()
            with child:
                assert child.recv(9) == b"four"
                (one,) = at(diagnosis, client.getsockname()[1], traffic=True)
                assert one.traffic == (5, 0)  # the SYN counts


def test_states_are_chosen(diagnosis):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            found = {STATES[one.state] for one in at(diagnosis, port)}
            assert found == {"LISTEN", "ESTAB"}
            for mask, state in ((LISTENING, "LISTEN"), (LIVE, "ESTAB")):
                assert [STATES[each.state] for each in at(diagnosis, port, states=mask)] == [state]


def test_udp_is_asked_for(diagnosis):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert at(diagnosis, port) == []
        (one,) = at(diagnosis, port, socket.IPPROTO_UDP)
        assert one.protocol == socket.IPPROTO_UDP


@pytest.mark.parametrize("only", [0, 1])
def test_who_hears_ipv4(diagnosis, only):
    with socket.socket(socket.AF_INET6) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        server.bind(("::", 0))
        server.listen()
        port = server.getsockname()[1]
        (one,) = at(diagnosis, port)
        assert one.v6only == bool(only)
        assert listener(None, port, []) == (None if only else "::")


@pytest.mark.parametrize(
    ("bound", "asked", "found"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.2", None),
        ("0.0.0.0", "127.0.0.2", "0.0.0.0"),
        ("::ffff:127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.2", None),
        ("::1", None, None),
    ],
)
def test_who_stands_in_a_ports_way(bound, asked, found):
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.socket(family) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind((bound, 0))
        server.listen()
        address = None if asked is None else IPAddress(asked)
        assert listener(address, server.getsockname()[1], []) == found


def test_cgroup_is_the_makers(diagnosis):
    try:
        mine = cgroup.of_process(os.getpid())
    except CapabilityMissing as missing:
        pytest.skip(str(missing))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (one,) = at(diagnosis, port)
        assert one.cgroup == cgroup.number(mine)
        assert listener(None, port, []) == "127.0.0.1"
        assert listener(None, port, [mine]) is None


def test_no_storage_map(diagnosis):
    with open(os.devnull) as file, contextlib.closing(Diagnosis(file.fileno())) as wrong:
        with pytest.raises(OSError) as refused:
            wrong.sockets()
        assert refused.value.errno in (errno.EINVAL, errno.EBADF, errno.EPERM)


@pytest.mark.root
def test_namespace_is_that_which_it_was_made_in():
    held = []
    netns.apart(lambda: held.append(Diagnosis()))
    with contextlib.closing(held[0]) as there, socket.create_server(("127.0.0.1", 0)):
        assert there.sockets() == []


@pytest.mark.root
def test_what_cannot_be_destroyed_is_an_error(diagnosis, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        (one,) = at(diagnosis, server.getsockname()[1])

        def refuse(*_):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        with monkeypatch.context() as patch:
            patch.setattr(diagnosis, "_talk", refuse)
            with pytest.raises(OSError, match="not supported"):
                diagnosis.destroy([one])
        assert diagnosis.destroy([one]) == 1
        assert diagnosis.destroy([one]) == 0  # gone by itself is no error
