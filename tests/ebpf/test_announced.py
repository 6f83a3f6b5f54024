# SPDX-License-Identifier: Apache-2.0
"""A host of ebpf with one that speaks wire announce and is played here: what it announces late,
twice, never, or as a stranger; and what is announced to it."""

import errno
import select
import socket
import struct
import threading

import pytest
from attrs import evolve

from slimnet import contract
from slimnet.fallback import nft
from slimnet.layout import to_bytes16
from slimnet.linux import netns, sysctl
from slimnet.model import Reason, Wire, WireFormat
from slimnet.tables import HostRecord
from slimnet.testing._stage import ALLOWED, CAST, FORBIDDEN, Stage
from slimnet_ebpf import EbpfBackend, link

pytestmark = pytest.mark.root

PORT = contract.SLIM_ANNOUNCE_PORT
KEY = b"slimnet conforms"
CLIENT, SERVER, STRANGER, NEIGHBOUR = (CAST[name].id for name in CAST)


class Cluster(Stage):
    """The first host's backend is ebpf; the second speaks announce alone."""

    def tables(self, host, *arguments, **content):
        made = super().tables(host, *arguments, **content)
        far = HostRecord(
            "h2", frozenset({WireFormat(Wire.ANNOUNCE, contract.SLIM_ANNOUNCE_VERSION)})
        )
        return evolve(
            made,
            hosts={**made.hosts, self.address(1): far},
            endpoints={
                number: record if record.local else evolve(record, wire=Wire.ANNOUNCE)
                for number, record in made.endpoints.items()
            },
        )


class Router:
    """The second host's: its links, and what it connects, for a thread that is there."""

    def __init__(self, stage, key=KEY, source=1):
        self.near, self.far = (to_bytes16(stage.address(host)) for host in (source, 0))
        self.own, self.other = (str(stage.address(host)) for host in (source, 0))
        sock = self.bound()
        sock.connect((self.other, PORT))
        sock.setblocking(False)
        self.frames = []
        self.link = link.AnnounceLink(sock, self.near, self.far, [key], opener=True)
        self.link.flush()
        while not self.link.ready:
            self.turn()

    def bound(self, port=0):
        sock = socket.socket()
        sock.settimeout(5)
        sock.bind((self.own, port))
        return sock

    def turn(self):
        assert select.select([self.link.sock], [], [], 10)[0], "nothing comes"
        self.frames += self.link.frames()

    def receive(self, *kinds):
        """The next of them; what else comes before it is left out."""
        while True:
            while self.frames:
                frame = self.frames.pop(0)
                if frame["kind"] in kinds:
                    return frame
            self.turn()

    def resolve(self, port):
        self.link.send(
            contract.SLIM_FRAME_RESOLVE, token=1, client=SERVER, server=CLIENT, port=port
        )
        return self.receive(contract.SLIM_FRAME_RESOLVED)["underlay_port"]

    def frame(self, kind, sock, wire_port, **other):
        own = sock.getsockname()[1]
        fields = {"client": SERVER, "server": CLIENT, "port": 9090, "client_port": own}
        self.link.send(
            kind,
            **{"token": 7, "source": self.near, "source_port": own, "underlay_port": wire_port}
            | fields
            | other,
        )

    def announce(self, sock, wire_port, **other):
        self.frame(contract.SLIM_FRAME_ANNOUNCE, sock, wire_port, **other)
        return self.receive(contract.SLIM_FRAME_ANNOUNCED)

    def refused(self, sock, wire_port):
        with sock:
            return sock.connect_ex((self.other, wire_port)) == errno.ECONNREFUSED

    def close(self):
        self.link.close()


@pytest.fixture(params=["host", "netns"])
def placement(request):
    """Of the first host's endpoints."""
    return request.param


@pytest.fixture
def stage(placement):
    """The first host, where client serves port 9090 and neighbour as policy has it."""
    with Cluster(EbpfBackend, {"placement": placement}, None) as made:
        made.open(0)
        made.attach("client", "neighbour", "stranger")
        made.install(1)
        made.serve("client", 9090)
        made.serve("neighbour", ALLOWED, FORBIDDEN)
        with netns.enter(made.underlay.hosts[1].netns):
            wait_for(made)
            yield made


def wait_for(stage):
    """Until the agent hears: it is told of such a host with the tables."""
    for _ in range(100):
        with socket.socket() as sock:
            if not sock.connect_ex((str(stage.address(0)), PORT)):
                return
        threading.Event().wait(0.05)
    raise AssertionError("nobody listens")


@pytest.fixture
def router(stage):
    made = Router(stage)
    yield made
    made.close()


def test_what_is_announced_is_accepted_by_its_name(router):
    wire_port = router.resolve(9090)
    with router.bound() as sock:
        answer = router.announce(sock, wire_port, client_port=1234)
        assert (answer["token"], answer["error"]) == (7, 0)
        sock.connect((router.other, wire_port))
        said = sock.makefile().readline()
        assert f'"peer": ["{CAST["server"].address}", 1234]' in said
        assert f'"local": ["{CAST["client"].address}", 9090]' in said


def test_what_was_never_announced_is_refused(stage, router):
    wire_port = router.resolve(9090)
    before = stage.backends[0].status().counters
    assert router.refused(router.bound(), wire_port)
    after = stage.backends[0].status().counters
    assert after[Reason.SYN_NO_OPTION] == before.get(Reason.SYN_NO_OPTION, 0) + 1


def test_it_is_for_one_connection(router):
    """Announced twice is announced once; who comes from there again is nobody."""
    wire_port = router.resolve(9090)
    with router.bound() as sock:
        own = sock.getsockname()[1]
        for _ in range(2):
            assert not router.announce(sock, wire_port)["error"]
        sock.connect((router.other, wire_port))
        assert sock.makefile().readline()
        assert not router.announce(sock, wire_port)["error"]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert router.refused(router.bound(own), wire_port)


def test_what_is_withdrawn_does_not_come(router):
    """By its token: another's word takes nothing back."""
    wire_port = router.resolve(9090)
    sock = router.bound()
    assert not router.announce(sock, wire_port)["error"]
    router.frame(contract.SLIM_FRAME_WITHDRAW, sock, wire_port, token=8)
    router.resolve(9090)  # is behind it
    sock.connect((router.other, wire_port))
    sock.close()
    sock = router.bound()
    assert not router.announce(sock, wire_port, token=9)["error"]
    router.frame(contract.SLIM_FRAME_WITHDRAW, sock, wire_port, token=9)
    router.resolve(9090)
    assert router.refused(sock, wire_port)


@pytest.mark.parametrize(
    ("other", "number", "reason"),
    [
        ({"server": NEIGHBOUR, "port": FORBIDDEN}, errno.ECONNREFUSED, Reason.DEFAULT_DENY),
        ({"port": 9091}, errno.ECONNREFUSED, Reason.SYN_NO_LISTENER),
        ({"client": STRANGER}, errno.ECONNREFUSED, Reason.SYN_SOURCE),
        ({"client": 99}, errno.EHOSTUNREACH, Reason.SYN_UNKNOWN),
        ({"server": 99}, errno.EHOSTUNREACH, Reason.SYN_UNKNOWN),
        ({"source": bytes(16)}, errno.ECONNREFUSED, Reason.SYN_SOURCE),
        ({"underlay_port": 80}, errno.ECONNREFUSED, Reason.SYN_SOURCE),
    ],
)
def test_what_may_not_be_is_refused_with_its_reason(placement, router, other, number, reason):
    """Policy, nobody listens, somebody else's endpoint, nobody's, another's address, no wire
    port: then no SYN is let in either. Whether anybody listens in a namespace is for that one's
    kernel to say."""
    wire_port = router.resolve(9090)
    sock = router.bound()
    answer = router.announce(sock, wire_port, **other)
    if placement == "netns" and reason == Reason.SYN_NO_LISTENER:
        number, reason = 0, Reason.DEFAULT_ALLOW
    assert (answer["error"], answer["reason"]) == (number, reason)
    assert router.refused(sock, wire_port)


def test_tables_that_come_later_are_waited_for(stage, router):
    """As a SYN is, which comes again."""
    wire_port = router.resolve(ALLOWED)
    sock = router.bound()
    later = stage.tables(0, 2)
    without = evolve(
        later, endpoints={n: each for n, each in later.endpoints.items() if n != SERVER}
    )
    stage.backends[0].install(without)
    router.frame(contract.SLIM_FRAME_ANNOUNCE, sock, wire_port)
    stage.backends[0].install(stage.tables(0, 3))
    assert not router.receive(contract.SLIM_FRAME_ANNOUNCED)["error"]
    sock.connect((router.other, wire_port))
    sock.close()


def test_a_stranger_is_not_heard(stage):
    """Another key, another address, no host of the cluster, silence: closed."""
    with pytest.raises(link.LinkEnd):
        Router(stage, key=bytes(16))
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.bind((str(stage.address(1)), 0))
        sock.connect((str(stage.address(0)), PORT))
        assert sock.recv(1) == b""
    with netns.enter(stage.underlay.hosts[2].netns), pytest.raises((link.LinkEnd, OSError)):
        Router(stage, source=2)


def test_a_frame_that_is_none_ends_its_link_and_no_other(stage, router):
    other = Router(stage)
    other.link.send(99)
    with pytest.raises(link.LinkEnd):
        other.receive()
    assert router.resolve(9090)


class Acceptor:
    """The end of the agent's own link, with a listener that is endpoint server's."""

    def __init__(self, stage):
        self.plug = socket.create_server((str(stage.address(1)), PORT))
        self.listener = socket.create_server((str(stage.address(1)), 0))
        self.plug.settimeout(10)
        self.listener.settimeout(10)
        sock, _ = self.plug.accept()
        sock.setblocking(False)
        near, far = (to_bytes16(stage.address(host)) for host in (1, 0))
        self.link = link.AnnounceLink(sock, near, far, [KEY], opener=False)
        self.frames = []
        self.port = self.listener.getsockname()[1]

    turn, receive = Router.turn, Router.receive

    def listens(self, port, token=5):
        """Says where server has a port; until the agent knows it."""
        while not self.link.ready:
            self.turn()
        self.link.send(
            contract.SLIM_FRAME_LISTENER,
            token=token,
            server=SERVER,
            port=port,
            underlay_port=self.port,
        )
        assert self.receive(contract.SLIM_FRAME_LISTENER)["token"] == token

    def serve(self):
        """Accepts and answers in a resident's words; the names of the kernel."""
        sock, peer = self.listener.accept()
        sock.sendall(b"null\n")
        return sock, peer

    def close(self):
        self.link.close()
        self.plug.close()
        self.listener.close()


@pytest.fixture
def acceptor(stage):
    made = Acceptor(stage)
    yield made
    made.close()


def unreachable(stage):
    return stage.backends[0].status().counters.get(Reason.UNREACHABLE, 0)


def synced(stage, acceptor):
    """The agent has seen that it was told everything: nobody listens, in place of no way."""
    for _ in range(500):
        if select.select([acceptor.link.sock], [], [], 0.02)[0]:
            acceptor.frames += acceptor.link.frames()
        before = unreachable(stage)
        reached = stage.reach("client", "server", ALLOWED)
        assert reached.error in {errno.EHOSTUNREACH, errno.ECONNREFUSED}
        if reached.error == errno.ECONNREFUSED and unreachable(stage) == before:
            return
    raise AssertionError("never told all")


def test_what_connects_is_announced(stage, acceptor):
    """With who it is, and withdrawn when it is over; a question after it finds it told."""
    synced(stage, acceptor)
    acceptor.listens(ALLOWED)
    client = stage.resident("client")
    caller = threading.Thread(target=client.hold, args=("one", "10.99.0.2", ALLOWED))
    caller.start()
    sock, (address, port) = acceptor.serve()
    acceptor.link.send(
        contract.SLIM_FRAME_PROBE,
        source=to_bytes16(stage.address(0)),
        source_port=port,
        underlay_port=acceptor.port,
        token=77,
    )
    # In this order.
    told = acceptor.receive(contract.SLIM_FRAME_ANNOUNCE, contract.SLIM_FRAME_PROBED)
    assert told["kind"] == contract.SLIM_FRAME_ANNOUNCE
    probed = acceptor.receive(contract.SLIM_FRAME_PROBED)
    assert (probed["source_port"], probed["token"]) == (port, 77)
    caller.join()
    assert address == str(stage.address(0))
    assert (told["client"], told["server"], told["port"]) == (CLIENT, SERVER, ALLOWED)
    assert (told["source"], told["source_port"]) == (to_bytes16(stage.address(0)), port)
    (one,) = [each for each in stage.backends[0].connections() if each.peer_endpoint == SERVER]
    assert one.wire is Wire.ANNOUNCE
    assert one.local == (CAST["client"].address, told["client_port"])
    sock.close()
    stage.leave("client")
    gone = acceptor.receive(contract.SLIM_FRAME_WITHDRAW)
    assert gone["token"] == told["token"]


NETNS = pytest.mark.parametrize("placement", ["netns"], indirect=True)


@NETNS
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("32768 60999", range(4886, 32768)),
        ("1024 50000", range(50001, 65536)),
        ("1024 65535", range(4854, 4886)),  # wire ports, which the host reserves
    ],
)
def test_it_comes_from_a_port_that_no_socket_gets(stage, acceptor, given, wanted):
    """So that nothing of the host's is taken for it, nor it for anything of the host's."""
    with stage.on(0):
        sysctl.write("net/ipv4/ip_local_port_range", given)
    stage.install(2)
    synced(stage, acceptor)
    acceptor.listens(ALLOWED)
    client = stage.resident("client")
    for number in range(3):
        words = (str(number), str(CAST["server"].address), ALLOWED)
        caller = threading.Thread(target=client.hold, args=words)
        caller.start()
        _, (_, port) = acceptor.serve()
        caller.join()
        assert port in wanted


@NETNS
def test_a_syn_that_is_sent_again_is_announced_once(stage, acceptor):
    synced(stage, acceptor)
    acceptor.listens(ALLOWED)
    drop = "add table ip lost; add chain ip lost in { type filter hook input priority 0; };"
    nft.apply(f"{drop} add rule ip lost in tcp dport {acceptor.port} tcp flags syn drop")
    client = stage.resident("client")
    caller = threading.Thread(target=client.hold, args=("one", "10.99.0.2", ALLOWED))
    caller.start()
    kinds = (contract.SLIM_FRAME_ANNOUNCE, contract.SLIM_FRAME_WITHDRAW)
    told = acceptor.receive(*kinds)
    nft.apply("delete table ip lost")
    sock, (_, port) = acceptor.serve()
    caller.join()
    assert (told["kind"], told["source_port"]) == (contract.SLIM_FRAME_ANNOUNCE, port)
    sock.close()
    stage.leave("client")
    gone = acceptor.receive(*kinds)
    assert (gone["kind"], gone["token"]) == (contract.SLIM_FRAME_WITHDRAW, told["token"])


def test_what_may_not_be_is_refused_before_it_is_made(stage, acceptor):
    """By the listener's own policy, which its host is told of; where nobody listens; and
    where the host is gone, at once."""
    synced(stage, acceptor)
    told = acceptor.receive(contract.SLIM_FRAME_REFUSED)
    assert (told["reason"], told["port"]) == (Reason.SYN_NO_LISTENER, ALLOWED)
    acceptor.listens(ALLOWED)
    acceptor.listens(FORBIDDEN)
    assert stage.reach("client", "server", FORBIDDEN).error == errno.ECONNREFUSED
    told = acceptor.receive(contract.SLIM_FRAME_REFUSED)
    assert told["reason"] == Reason.DEFAULT_DENY
    assert (told["client"], told["server"], told["port"]) == (CLIENT, SERVER, FORBIDDEN)
    acceptor.close()
    before = unreachable(stage)
    for _ in range(200):
        reached = stage.reach("client", "server", ALLOWED)
        if unreachable(stage) > before:
            break
        threading.Event().wait(0.02)
    assert unreachable(stage) > before
    # A router resets.
    apart = stage.places["client"].netns is not None
    assert reached.error == (errno.ECONNREFUSED if apart else errno.EHOSTUNREACH)
    assert reached.seconds < 1
