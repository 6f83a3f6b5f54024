# SPDX-License-Identifier: Apache-2.0
"""Published ports: the router's listener, the knock at the endpoint's, and every end of both.

Endpoint 1's port 80 is the port 8080 of its host; clients are programs of the host itself.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from attrs import evolve
from bench import bench, until

from slimnet.model import Direction, Protocol, Reason
from slimnet.tables import PolicyKey, PolicyRecord, PublishKey, PublishRecord

pytestmark = pytest.mark.root

ANY = PublishKey(None, Protocol.TCP, 8080)
HOST = 2  # identity that the bench gives a host

#: A server that does one thing a line that it is told: what it answers is one line each.
SERVER = """
    import os, resource, select, socket, sys
    family = socket.AF_INET6 if "6" in sys.argv[1:] else socket.AF_INET
    plug = socket.socket(family)
    if "defer" in sys.argv[1:]:
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    plug.bind(("", 80))
    plug.listen(128)
    plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    held = []

    def readable():
        return bool(select.select([plug], [], [], 10)[0])

    def fill():
        "One number is left."
        try:
            while True:
                held.append(os.open("/", os.O_RDONLY))
        except OSError:
            os.close(held.pop())

    print("ready", flush=True)
    for line in sys.stdin:
        try:
            print(repr(eval(line)), flush=True)
        except OSError as error:
            print(repr(error.errno), flush=True)
"""


def program(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *words]


class Server:
    """One of endpoint 1."""

    def __init__(self, made, *words):
        self.process = made.serve(1, *program(SERVER, *words), stdin=subprocess.PIPE)

    def say(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        return eval(self.process.stdout.readline())

    def accept(self):
        """The peer's name; the socket is the last of ``held``."""
        return self.say("[held.append(plug.accept()), held[-1][1]][1]")

    def names(self):
        return self.say("(held[-1][0].getsockname(), held[-1][0].getpeername())")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Client:
    """A program of the host, without the shim, that does as it is told."""

    CODE = """
        import socket, struct, sys
        sock = socket.socket()
        sock.settimeout(10)
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                print(repr(eval(line)), flush=True)
            except OSError as error:
                print(repr(error.errno or str(error)), flush=True)
    """

    def __init__(self, made, host):
        self.process = made.popen(None, program(self.CODE), host, stdin=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    say = Server.say

    def connect(self, address="10.99.0.1"):
        """Its own name."""
        return self.say(f"[sock.connect(({address!r}, 8080)), sock.getsockname()][1]")


def publish(made, ports):
    made.extra = evolve(made.extra, published=ports)
    made.install()


def forbid(made):
    """Endpoint 1's policy denies the host."""
    key = PolicyKey(257, HOST, Direction.INGRESS)
    made.policy[key] = PolicyRecord(allow=False, reason=Reason.RULE_DENY, rule=1)
    made.install()


@pytest.fixture
def door(one):
    publish(one, {ANY: PublishRecord(1, 80)})
    return one


def knows(made, reason):
    return made.hosts[0].control.status().counters.get(reason, 0)


def descriptors(made):
    """Sockets of TCP that the router has."""
    process = Path(f"/proc/{made.hosts[0].router.pid}")
    inodes = {
        line.split()[9]
        for name in ("tcp", "tcp6")
        for line in (process / "net" / name).read_text().splitlines()[1:]
    }
    found = 0
    for descriptor in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(descriptor.readlink())[8:-1] in inodes
    return found


ENDED = ("104", "b''", "32")  # ECONNRESET, end of file


def has_ended(client):
    return str(client.say("sock.recv(1)")) in ENDED


@pytest.mark.parametrize("family", ["4", "6"])
def test_as_the_kernel_would_have_made_it(door, family):
    """Names, the lowest number, flags of accept4(2), options of the listener; and nothing is
    left of the one that was accepted first."""
    server = Server(door, family)
    client = Client(door, door.hosts[0])
    before = server.descriptors()
    own = client.connect()
    prefix = "::ffff:" if family == "6" else ""
    assert server.accept()[:2] == (prefix + own[0], own[1])
    local, peer = server.names()
    assert (local[:2], peer[:2]) == ((f"{prefix}10.1.0.1", 80), (prefix + own[0], own[1]))
    assert server.descriptors() == before + 1
    option = "held[-1][0].getsockopt(socket.{}, socket.{})"
    assert server.say(option.format("SOL_SOCKET", "SO_DOMAIN")) == (10 if family == "6" else 2)
    assert server.say(option.format("IPPROTO_TCP", "TCP_NODELAY")) == 1
    assert server.say(option.format("SOL_SOCKET", "SO_KEEPALIVE")) == 1
    assert server.say("os.get_inheritable(held[-1][0].fileno())") is False
    assert server.say("os.get_blocking(held[-1][0].fileno())") is True
    assert server.say("held[-1][0].send(b'x')") == 1
    assert client.say("sock.recv(1)") == b"x"


def test_a_client_that_said_already_that_it_sends_no_more(door):
    """Its names are those of the listener's family."""
    server = Server(door)
    client = Client(door, door.hosts[0])
    own = client.connect()
    client.say("[sock.send(b'all'), sock.shutdown(socket.SHUT_WR)]")
    assert server.accept() == own
    assert server.names() == (("10.1.0.1", 80), own)
    assert server.say("held[-1][0].recv(9)") == b"all"
    assert server.say("held[-1][0].recv(9)") == b""
    assert server.say("held[-1][0].send(b'x')") == 1
    assert client.say("sock.recv(1)") == b"x"


def test_a_client_that_went_away(door):
    """It is accepted as dead ones are, and the next one is what comes next."""
    server = Server(door)
    gone, client = Client(door, door.hosts[0]), Client(door, door.hosts[0])
    first = gone.connect()
    option = "struct.pack('ii', 1, 0)"
    gone.say(f"sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, {option})")
    gone.say("sock.close()")
    second = client.connect()
    assert server.accept() == first
    assert server.say("held[-1][0].recv(1)") == 104
    assert server.accept() == second
    assert server.names()[1] == second


def test_a_listener_that_waits_for_data(door):
    """TCP_DEFER_ACCEPT keeps a connection back that says nothing; ours says something."""
    server = Server(door, "defer")
    client = Client(door, door.hosts[0])
    own = client.connect()
    started = time.monotonic()
    assert server.accept() == own
    assert time.monotonic() - started < 0.5


def test_no_number_left(door):
    """accept(2) fails with EMFILE, and the router keeps nothing."""
    server = Server(door)
    client = Client(door, door.hosts[0])
    server.say("resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))")
    before = descriptors(door)
    client.connect()
    server.say("fill()")
    assert server.say("plug.accept()") == 24
    assert has_ended(client)
    assert descriptors(door) == before


def test_nobody_accepts(door):
    """As many wait as the application's queue takes, and a few; then no more are taken in.
    When its listener closes all are reset, and the router has what it had."""
    before = descriptors(door)
    server = Server(door)
    server.say("plug.listen(2)")
    clients = [Client(door, door.hosts[0]) for _ in range(8)]
    for client in clients:
        client.connect()
    # Three in the queue of two, and one that knocks.
    until(lambda: descriptors(door) == before + 2 * 4)
    knows(door, Reason.NO_FLOW)  # it has done what there was to do
    assert descriptors(door) == before + 2 * 4
    server.process.kill()
    server.process.wait()
    for client in clients:
        assert has_ended(client)
    until(lambda: descriptors(door) == before)


def test_the_queue_goes_on_in_order_of_room(door):
    server = Server(door)
    server.say("plug.listen(1)")
    clients = [Client(door, door.hosts[0]) for _ in range(6)]
    names = {client.connect() for client in clients}
    assert {server.accept() for _ in clients} == names


def test_a_killed_router(door):
    """Who waits is reset; who was accepted goes on, and its names and its end are known to the
    next router, which listens at once."""
    host = door.hosts[0]
    server = Server(door)
    lives, waits = Client(door, host), Client(door, host)
    own = lives.connect()
    server.accept()
    waits.connect()
    host.kill()
    assert has_ended(waits)
    server.say("held[-1][0].send(b'x')")
    assert lives.say("sock.recv(1)") == b"x"
    host.start()
    code = """
        import socket
        sock = socket.socket(fileno=0)
        print((sock.getsockname(), sock.getpeername()))
    """
    after = f"__import__('subprocess').check_output({program(code)!r}, stdin=held[-1][0])"
    assert eval(server.say(after)) == (("10.1.0.1", 80), own)
    again = Client(door, host)
    # The one that waited is still in the application's queue, and nobody's.
    name = again.connect()
    assert server.accept() == name
    (first, second) = host.control.connections()
    assert {first.peer[1], second.peer[1]} == {own[1], name[1]}
    forbid(door)
    assert has_ended(lives)
    assert has_ended(again)


def test_policy_that_changes_while_one_waits(door):
    """It is asked again at accept(2): the client is reset, and the next one is waited for."""
    server = Server(door)
    client, allowed = Client(door, door.hosts[0]), Client(door, door.hosts[0])
    client.connect()
    assert server.say("readable()")
    forbid(door)
    server.say("plug.setblocking(False)")
    assert server.say("plug.accept()") == 11
    assert knows(door, Reason.RULE_DENY) == 1
    assert has_ended(client)
    door.policy.clear()
    door.install()
    server.say("plug.setblocking(True)")
    own = allowed.connect()
    assert server.accept() == own


def test_nobody_listens(door):
    client = Client(door, door.hosts[0])
    client.connect()
    assert has_ended(client)
    assert knows(door, Reason.SYN_NO_LISTENER) == 1


def test_an_endpoint_that_is_detached(door):
    """Who waits for it is reset."""
    before = descriptors(door)
    server = Server(door)
    client = Client(door, door.hosts[0])
    client.connect()
    assert server.say("readable()")
    door.hosts[0].control.detach(1)
    assert has_ended(client)
    until(lambda: descriptors(door) == before)


def test_taken_back_while_one_waits(door):
    """It was let in when it came, and is accepted; the next finds a port of the host."""
    server = Server(door)
    client = Client(door, door.hosts[0])
    own = client.connect()
    assert server.say("readable()")
    publish(door, {})
    assert server.accept() == own
    assert Client(door, door.hosts[0]).connect() == 111


def test_a_port_that_another_has(one):
    """One line of trouble; taken up when it is free."""
    host = one.hosts[0]
    other = one.popen(
        None,
        program(
            "import socket\nheld = socket.create_server(('', 8080))\nprint(1, flush=True)\ninput()"
        ),
        host,
        stdin=subprocess.PIPE,
    )
    assert other.stdout.readline()
    publish(one, {ANY: PublishRecord(1, 80)})
    trouble = host.control.status().trouble
    assert trouble == "published port 0.0.0.0:8080 of endpoint 1: Address already in use"
    other.kill()
    other.wait()
    until(lambda: not host.control.status().trouble)
    server = Server(one)
    own = Client(one, host).connect()
    assert server.accept() == own


def test_an_ordinary_user(programs):
    """No port below 1024; else the same, revocation included."""
    # Not in pytest's directory, which is its user's alone.
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        out.chmod(0o755)
        for program_ in ("slimnet-router", "libslimnet-shim.so"):
            shutil.copy(programs / program_, out)
        with bench(out, out, 1, 2, user=65534) as made:
            low = PublishKey(None, Protocol.TCP, 81)
            publish(made, {ANY: PublishRecord(1, 80), low: PublishRecord(1, 80)})
            host = made.hosts[0]
            trouble = "published port 0.0.0.0:81 of endpoint 1: Permission denied"
            assert host.control.status().trouble == trouble
            server = Server(made)
            client = Client(made, host)
            own = client.connect()
            assert server.accept() == own
            forbid(made)
            assert has_ended(client)
            assert server.say("held[-1][0].recv(1)") in (104, b"")


def test_no_client_of_prefork_workers_has_anothers_name(door):
    """Four workers that accept in turn, eight clients at once: each is told its own name."""
    door.serve(
        1,
        *program("""
            import os, socket
            plug = socket.create_server(("", 80), backlog=16)
            for _ in range(3):
                if not os.fork():
                    break
            else:
                print("ready", flush=True)
            while True:
                sock, peer = plug.accept()
                assert sock.getpeername() == peer
                sock.sendall(repr(peer).encode())
                sock.close()
        """),
    )
    before = descriptors(door)
    clients = [
        door.popen(
            None,
            program("""
                import socket
                right = 0
                for _ in range(200):
                    with socket.create_connection(("10.99.0.1", 8080)) as sock:
                        said = b""
                        while more := sock.recv(100):
                            said += more
                        assert said == repr(sock.getsockname()).encode(), said
                        right += 1
                print(right)
            """),
            door.hosts[0],
        )
        for _ in range(8)
    ]
    for client in clients:
        out, err = client.communicate(timeout=60)
        assert int(out) == 200, err.decode()
    until(lambda: descriptors(door) == before)
    until(lambda: not list(door.hosts[0].control.connections()))
