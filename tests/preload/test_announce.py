# SPDX-License-Identifier: Apache-2.0
"""Wire announce against a peer that is written here, from announce.h: what comes late,
twice, never, or from a stranger. Nothing hangs, and nobody is taken for another."""

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import textwrap
import time

import pytest
from bench import PORT, bench
from wire_reference import siphash

from slimnet.linux import netns
from slimnet.model import Direction, Reason

pytestmark = pytest.mark.root

KEY = b"0123456789abcdef"
HERE, THERE = "10.99.0.1", "10.99.0.2"
PING, RESOLVE, RESOLVED, FORGET, ANNOUNCE, WITHDRAW, PROBE, PROBED = range(2, 10)
READY = 1
FRAME = struct.Struct(">HHIQII16sHHHHIIII8s")
HELLO = struct.Struct(">IHH16s16s")
#: A server that says whom it accepted, a line each.
SERVER = textwrap.dedent("""
    import socket
    plug = socket.create_server(("", 80))
    print("ready", flush=True)
    while True:
        sock, peer = plug.accept()
        print(*peer, flush=True)
""")


def mapped(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + socket.inet_aton(address)


class Peer:
    """The opener's end of a link."""

    def __init__(self, key: bytes = KEY, host: str = HERE, source: str = HERE) -> None:
        self.sock = socket.socket()
        self.sock.bind((source, 0))
        self.sock.settimeout(20)
        self.sock.connect((THERE, PORT))
        self.numbers = [0, 0]
        mine = HELLO.pack(0x736C6D61, 2, 0, mapped(host), os.urandom(16))
        self.sock.sendall(mine)
        theirs = self.sock.recv(HELLO.size, socket.MSG_WAITALL)
        if len(theirs) < HELLO.size:
            raise ConnectionError
        self.keys = []
        for from_opener in (1, 0):
            halves = [
                siphash(
                    key, b"slimnet announce\0\0" + bytes([from_opener, half]) + bytes(4)
                    + mine + theirs,
                )
                for half in (0, 1)
            ]  # fmt: skip
            self.keys.append(b"".join(halves))
        self.send(READY)
        assert self.receive()["kind"] == READY

    def frame(self, kind: int, **fields: int) -> bytes:
        names = ("answer", "id", "token", "client", "server")
        ports = ("source_port", "client_port", "underlay_port", "port")
        body = FRAME.pack(
            kind,
            *(fields.get(name, 0) for name in names),
            mapped(HERE),
            *(fields.get(name, 0) for name in ports),
            *(0, 0, 0, 0, bytes(8)),
        )[:-8]
        number = struct.pack("<Q", self.numbers[0])
        self.numbers[0] += 1
        return body + siphash(self.keys[0], number + body)

    def send(self, kind: int, **fields: int) -> None:
        self.sock.sendall(self.frame(kind, **fields))

    def receive(self) -> dict[str, int]:
        """The next frame that is no PING, nor FORGET; its tag is right."""
        while True:
            data = self.sock.recv(FRAME.size, socket.MSG_WAITALL)
            if len(data) < FRAME.size:
                raise ConnectionError
            number = struct.pack("<Q", self.numbers[1])
            self.numbers[1] += 1
            assert siphash(self.keys[1], number + data[:-8]) == data[-8:]
            found = FRAME.unpack(data)
            if found[0] not in {PING, FORGET}:
                return {
                    "kind": found[0],
                    "token": found[3],
                    "source_port": found[7],
                    "underlay_port": found[9],
                    "error": found[11],
                    "reason": found[12],
                }

    def resolve(self, client: int = 2, server: int = 1, port: int = 80) -> dict[str, int]:
        self.send(RESOLVE, token=7, client=client, server=server, port=port)
        answer = self.receive()
        assert answer["kind"] == RESOLVED
        return answer

    def announce(self, sock: socket.socket, underlay_port: int, **other: int) -> None:
        fields = {"client": 2, "server": 1, "port": 80, "token": 1, **other}
        port = sock.getsockname()[1]
        self.send(
            ANNOUNCE, source_port=port, client_port=port, underlay_port=underlay_port, **fields
        )


@pytest.fixture
def world(programs, tmp_path):
    """The endpoint 1 serves on the second host; this thread is on the first, without a router."""
    with bench(tmp_path, programs, 2, 4) as made:
        server = made.serve(1, sys.executable, "-c", SERVER)
        made.hosts[0].kill()
        with netns.enter(netns.DIRECTORY / made.hosts[0].netns):
            yield made, server


def bound() -> socket.socket:
    sock = socket.socket()
    sock.bind((HERE, 0))
    sock.settimeout(20)  # what takes as long hangs
    return sock


def accepted(server, timeout: float = 0.5) -> str | None:
    """The next line of the server's."""
    if not select.select([server.stdout], [], [], timeout)[0]:
        return None
    return server.stdout.readline().decode().strip()


def is_reset(sock: socket.socket, port: int = 0) -> bool:
    """At once, or after a connect to the port, which may hear of it already."""
    try:
        if port:
            sock.connect((THERE, port))
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_announced_in_time(world):
    _, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    with bound() as sock:
        peer.announce(sock, port)
        sock.connect((THERE, port))
        assert accepted(server, 5) == f"10.1.0.2 {sock.getsockname()[1]}"


def test_announced_late(world):
    """The router asks, and waits for the answer; what comes before it counts."""
    _, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    with bound() as sock:
        sock.connect((THERE, port))
        asked = peer.receive()
        assert asked["kind"] == PROBE
        assert asked["source_port"] == sock.getsockname()[1]
        time.sleep(0.3)
        peer.announce(sock, port)
        assert accepted(server, 5) == f"10.1.0.2 {sock.getsockname()[1]}"


def test_an_answer_to_an_earlier_question(world):
    """It says nothing of who has come from the same port since."""
    _, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    with bound() as sock:
        sock.connect((THERE, port))
        earlier = peer.receive()
        peer.announce(sock, port)
        source = sock.getsockname()
        assert accepted(server, 5) == f"10.1.0.2 {source[1]}"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.closing(socket.socket()) as again:
        again.bind(source)
        again.connect((THERE, port))
        later = peer.receive()
        assert later["kind"] == earlier["kind"] == PROBE
        assert later["token"] != earlier["token"]
        peer.send(PROBED, **{k: earlier[k] for k in ("source_port", "underlay_port", "token")})
        peer.announce(again, port, token=2)
        assert accepted(server, 5) == f"10.1.0.2 {source[1]}"


def test_announced_twice(world):
    """It is one connection: whoever comes from there again is nobody."""
    _, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    with bound() as sock:
        for _ in range(2):
            peer.announce(sock, port)
        sock.connect((THERE, port))
        source = sock.getsockname()
        assert accepted(server, 5) == f"10.1.0.2 {source[1]}"
        peer.announce(sock, port)
        # Gone without a trace, so that the same port may be bound again at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.closing(socket.socket()) as again:
        again.settimeout(20)
        again.bind(source)
        assert is_reset(again, port)
    assert accepted(server) is None


@pytest.mark.parametrize("answers", [True, False])
def test_never_announced(world, answers):
    """Reset: at once where the peer says that it knows nothing, else after three."""
    made, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    took = []
    # A busy machine may make any one of them slow.
    for _ in range(5 if answers else 1):
        with bound() as sock:
            sock.connect((THERE, port))
            start = time.monotonic()
            asked = peer.receive()
            if answers:
                peer.send(PROBED, **{k: asked[k] for k in ("source_port", "underlay_port")})
            assert is_reset(sock)
            took.append(time.monotonic() - start)
    assert (min(took) < 0.8) == answers
    assert accepted(server) is None
    assert made.hosts[1].control.status().counters[Reason.NO_FLOW] == len(took)


def test_withdrawn(world):
    """It does not come any more: from that port comes nobody."""
    _, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    with bound() as sock:
        peer.announce(sock, port)
        source = sock.getsockname()[1]
        peer.send(WITHDRAW, token=1, source_port=source, underlay_port=port)
        peer.resolve()  # is behind it
        sock.connect((THERE, port))
        peer.send(PROBED, source_port=source, underlay_port=port)
        assert is_reset(sock)
    assert accepted(server) is None


@pytest.mark.parametrize(
    "other", [{"client": 3}, {"client": 1}, {"client": 99}, {"server": 3}, {"port": 81}]
)
def test_announced_for_another(world, other):
    """An endpoint of another host, of nobody, another's listener: not its word to give."""
    _, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    with bound() as sock:
        peer.announce(sock, port, **other)
        sock.connect((THERE, port))
        peer.send(PROBED, source_port=sock.getsockname()[1], underlay_port=port)
        assert is_reset(sock)
    assert accepted(server) is None


def test_a_peer_that_vanishes(world):
    """While a connection waits for it, and while it has half a frame on its way."""
    _, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    with bound() as sock:
        sock.connect((THERE, port))
        peer.receive()
        peer.sock.sendall(peer.frame(PROBED)[:20])
        peer.sock.close()
        assert is_reset(sock)
    assert accepted(server) is None
    assert Peer().resolve()["error"] == 0


def test_policy_is_asked_when_it_resolves_and_when_it_accepts(world):
    """What was resolved before a change is refused after it."""
    made, server = world
    peer = Peer()
    port = peer.resolve()["underlay_port"]
    made.deny(1, 2, Direction.INGRESS)
    made.install()
    with bound() as sock:
        peer.announce(sock, port)
        assert is_reset(sock, port)
    assert accepted(server) is None


@pytest.mark.parametrize("how", ["key", "host", "address", "silent", "garbage", "tag", "replay"])
def test_a_stranger_gets_nothing(world, how):
    """Closed."""
    if how == "key":
        with pytest.raises(ConnectionError):
            Peer(key=bytes(16))
    elif how == "host":
        with pytest.raises(ConnectionError):
            Peer(host="10.99.0.9")
    elif how == "address":
        # Of this machine, and of no host of the cluster.
        with pytest.raises(ConnectionError):
            elsewhere()
    elif how in {"silent", "garbage"}:
        with bound() as sock:
            sock.connect((THERE, PORT))
            if how == "garbage":
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n" * 10)
            assert is_reset(sock)
    else:
        peer = Peer()
        frame = peer.frame(PING)
        if how == "tag":
            frame = frame[:-1] + bytes([frame[-1] ^ 1])
        peer.sock.sendall(frame)
        if how == "replay":
            peer.sock.sendall(frame)
        with pytest.raises(ConnectionError):
            peer.receive()


def elsewhere() -> None:
    subprocess.run(["ip", "addr", "add", "10.99.0.77/24", "dev", "u0"], check=True)
    Peer(source="10.99.0.77", host="10.99.0.77")


def test_many_strangers_keep_no_host_out(world):
    """Those that say nothing are let go after a second; a real one is heard then."""
    kept = []
    for _ in range(80):
        sock = bound()
        sock.connect((THERE, PORT))
        kept.append(sock)
    deadline = time.monotonic() + 4
    while True:
        with contextlib.suppress(ConnectionError):
            assert Peer().resolve()["error"] == 0
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for sock in kept:
        sock.close()
