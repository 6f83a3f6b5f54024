# SPDX-License-Identifier: Apache-2.0
"""A router that opens a link, against a host that is played here: when it asks, and what it
waits for of a host that answers announcements and is told of listeners."""

import contextlib
import errno
import select
import socket
import sys
import textwrap

import pytest
from bench import PORT, bench
from netaddr import IPAddress

from slimnet import contract
from slimnet.layout import to_bytes16
from slimnet.linux import netns

link = pytest.importorskip("slimnet_ebpf.link")
pytestmark = pytest.mark.root

KEY = b"0123456789abcdef"
HERE, THERE = "10.99.0.1", "10.99.0.2"
#: Connects as often as it is told to, and says what came of it.
CLIENT = textwrap.dedent("""
    import socket, sys
    print("ready", flush=True)
    kept = []
    for _ in sys.stdin:
        kept.append(socket.socket())
        print(kept[-1].connect_ex(("10.1.0.2", 80)), flush=True)
""")
#: Binds one port after the other.
BINDER = textwrap.dedent("""
    import socket, sys
    print("ready", flush=True)
    kept = []
    for line in sys.stdin:
        kept.append(socket.socket())
        kept[-1].bind(("", int(line)))
        print("bound", flush=True)
""")


class Played:
    """The first host, without a router: its end of the second one's link, and what endpoint 2
    listens at."""

    def __init__(self, flags):
        link._FLAGS = flags
        self.plug = socket.create_server((HERE, PORT))
        self.listener = socket.create_server((HERE, 0))
        self.listener.setblocking(False)
        self.link = None
        self.frames = []
        self.accept()

    def accept(self):
        self.plug.settimeout(10)
        sock, _ = self.plug.accept()
        sock.setblocking(False)
        here, there = (to_bytes16(IPAddress(each)) for each in (HERE, THERE))
        self.link = link.AnnounceLink(sock, here, there, [KEY], opener=False)
        while not self.link.ready:
            self._turn(10)

    def open(self):
        """The other link, on which the router is told."""
        sock = socket.socket()
        sock.bind((HERE, 0))
        sock.connect((THERE, PORT))
        sock.setblocking(False)
        here, there = (to_bytes16(IPAddress(each)) for each in (HERE, THERE))
        self.link = link.AnnounceLink(sock, here, there, [KEY], opener=True)
        self.link.flush()
        while not self.link.synced:
            self._turn(10)

    def _turn(self, seconds):
        ready = select.select([self.link.sock], [], [], seconds)[0]
        assert ready or not seconds, "nothing comes"
        self.frames += self.link.frames()

    def receive(self, kind):
        """The next frame, which is of this kind."""
        while True:
            while self.frames:
                frame = self.frames.pop(0)
                if frame["kind"] != contract.SLIM_FRAME_FORGET:
                    assert frame["kind"] == kind
                    return frame
            self._turn(10)

    def resolve(self):
        frame = self.receive(contract.SLIM_FRAME_RESOLVE)
        fields = {name: frame[name] for name in ("token", "client", "server", "port")}
        port = self.listener.getsockname()[1]
        self.link.send(contract.SLIM_FRAME_RESOLVED, underlay_port=port, **fields)

    def connected(self, seconds=10):
        """Whether somebody has connected."""
        if not select.select([self.listener], [], [], seconds)[0]:
            return False
        self.listener.accept()[0].close()
        return True

    def close(self):
        self.link.close()
        self.plug.close()
        self.listener.close()


@contextlib.contextmanager
def played(programs, directory, flags, code=CLIENT):
    before = link._FLAGS
    with bench(directory, programs, 2, 4) as made:
        process = made.serve(1, sys.executable, "-c", code, stdin=-1)
        made.hosts[0].kill()
        with netns.enter(netns.DIRECTORY / made.hosts[0].netns):
            host = Played(flags)
            try:
                yield host, process
            finally:
                host.close()
                link._FLAGS = before


def again(process, line="\n"):
    process.stdin.write(line.encode())
    process.stdin.flush()


def said(process, seconds=20):
    if not select.select([process.stdout], [], [], seconds)[0]:
        return None
    return process.stdout.readline().decode().strip()


def test_only_the_first_connect_asks(programs, tmp_path):
    """The listener is known then: what is announced is announced, and nothing is waited for."""
    with played(programs, tmp_path, 0) as (host, client):
        again(client)
        host.resolve()
        for _ in range(3):
            host.receive(contract.SLIM_FRAME_ANNOUNCE)
            assert said(client) == "0"
            assert host.connected()
            again(client)


def test_what_is_answered_comes_after_the_answer(programs, tmp_path):
    with played(programs, tmp_path, contract.SLIM_HELLO_RECORDS) as (host, client):
        again(client)
        host.resolve()
        frame = host.receive(contract.SLIM_FRAME_ANNOUNCE)
        assert not host.connected(0.2)
        assert said(client, 0) is None
        host.link.send(contract.SLIM_FRAME_ANNOUNCED, token=frame["token"])
        assert said(client) == "0"
        assert host.connected()


def test_what_is_refused_does_not_come(programs, tmp_path):
    """Nor from the port that was announced: that is withdrawn."""
    with played(programs, tmp_path, contract.SLIM_HELLO_RECORDS) as (host, client):
        again(client)
        host.resolve()
        frame = host.receive(contract.SLIM_FRAME_ANNOUNCE)
        reason = contract.SLIM_REASON_DEFAULT_DENY
        host.link.send(
            contract.SLIM_FRAME_ANNOUNCED,
            token=frame["token"],
            error=errno.ECONNREFUSED,
            reason=reason,
        )
        assert said(client) == str(errno.ECONNREFUSED)
        assert host.receive(contract.SLIM_FRAME_WITHDRAW)["token"] == frame["token"]
        assert not host.connected(0)


@pytest.mark.parametrize("how", ["silent", "another", "gone"])
def test_what_is_never_answered_does_not_hang(programs, tmp_path, how):
    """EHOSTUNREACH after a second, whatever else is answered, or when the host is gone."""
    with played(programs, tmp_path, contract.SLIM_HELLO_RECORDS) as (host, client):
        again(client)
        host.resolve()
        frame = host.receive(contract.SLIM_FRAME_ANNOUNCE)
        if how == "another":
            host.link.send(contract.SLIM_FRAME_ANNOUNCED, token=frame["token"] + 1)
        elif how == "gone":
            host.link.close()
        assert said(client) == str(errno.EHOSTUNREACH)
        assert not host.connected(0)


def test_a_link_that_is_new_is_told_again(programs, tmp_path):
    """Of what waits for an answer."""
    with played(programs, tmp_path, contract.SLIM_HELLO_RECORDS) as (host, client):
        again(client)
        host.resolve()
        first = host.receive(contract.SLIM_FRAME_ANNOUNCE)
        host.link.close()
        host.accept()
        frame = host.receive(contract.SLIM_FRAME_ANNOUNCE)
        assert frame["token"] == first["token"]
        host.link.send(contract.SLIM_FRAME_ANNOUNCED, token=frame["token"])
        assert said(client) == "0"
        assert host.connected()


@pytest.mark.parametrize("answers", [True, False])
def test_a_bind_waits_until_hosts_know_it(programs, tmp_path, answers):
    """For 0.3 seconds at the most; and a port that is known is not told again."""
    with played(programs, tmp_path, contract.SLIM_HELLO_LISTENERS, BINDER) as (host, binder):
        host.open()
        again(binder, "80\n")
        frame = host.receive(contract.SLIM_FRAME_LISTENER)
        assert (frame["server"], frame["port"]) == (1, 80)
        assert frame["underlay_port"]
        if answers:
            assert said(binder, 0) is None
            host.link.send(contract.SLIM_FRAME_LISTENER, answer=1, token=frame["token"])
        assert said(binder) == "bound"
        again(binder, "81\n")
        assert host.receive(contract.SLIM_FRAME_LISTENER)["port"] == 81
        assert said(binder) == "bound"
