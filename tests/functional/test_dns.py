# SPDX-License-Identifier: Apache-2.0
"""Names by DNS: each endpoint's resolver, asked as programs ask it."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from lab.paths import DATA_PATHS, Can, can, require

from slimnet import directories
from slimnet.linux import netns
from slimnet.model import Endpoint, Host, Network
from slimnet.policy import State, load
from slimnet.resolver import address
from slimnet.resolver.resolver import Resolver
from slimnet.testbed import Testbed

pytestmark = pytest.mark.root

WEB = Endpoint("prod", "web", "10.1.0.1", "h1", id=1)
DARK = Endpoint("prod", "dark", "10.1.0.2", "h1", id=2, labels={"app": "dark"})
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dark, annotations: {slimnet.io/network: prod}}
spec: {podSelector: {matchLabels: {app: dark}}, policyTypes: [Egress]}
"""


class Upstream:
    """A name server at 127.0.0.2 of a namespace, which knows ``example.org``."""

    def __init__(self):
        self.asked = []
        self.rcode = dns.rcode.NOERROR
        self.records = 1
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.socket()
        for sock in (self._udp, self._tcp):
            sock.bind(("127.0.0.2", 53))
        self._tcp.listen()
        for serve in (self._datagrams, self._connections):
            threading.Thread(target=serve, daemon=True).start()

    def _answer(self, data, how):
        query = dns.message.from_wire(data)
        self.asked.append((how, query))
        reply = dns.message.make_response(query)
        reply.set_rcode(self.rcode)
        name = query.question[0].name
        texts = [f"192.0.2.{number}" for number in range(1, self.records + 1)]
        reply.answer.append(dns.rrset.from_text_list(name, 60, "IN", "A", texts))
        return reply

    def _datagrams(self):
        while True:
            try:
                data, client = self._udp.recvfrom(4096)
            except OSError:
                return
            wire = self._answer(data, "udp").to_wire(max_size=512, prefer_truncation=True)
            self._udp.sendto(wire, client)

    def _connections(self):
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                (length,) = struct.unpack("!H", connection.recv(2))
                wire = self._answer(connection.recv(length), "tcp").to_wire()
                connection.sendall(struct.pack("!H", len(wire)) + wire)

    def close(self):
        for sock in (self._udp, self._tcp):
            sock.shutdown(socket.SHUT_RDWR) if sock is self._tcp else None
            sock.close()


@pytest.fixture
def world(tmp_path):
    """A resolver that serves two endpoints, and its upstream, in a namespace of their own."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    state = State(
        networks=[Network("prod", 1, ["10.1.0.0/16"])],
        hosts=[Host("h1", "192.0.2.1")],
        endpoints=[WEB, DARK],
        policies=load(file),
    )
    path = Path(f"/run/netns/slt-dns{os.getpid()}")
    netns.create(path)
    try:
        with netns.enter(path):
            upstream = Upstream()
            servers = ["127.0.0.2"]
            resolver = Resolver(lambda: servers)
            resolver.servers = servers
            resolver.update(state)
            assert [resolver.add(each, None) for each in (WEB, DARK)] == ["", ""]
            try:
                yield resolver, upstream
            finally:
                resolver.close()
                upstream.close()
    finally:
        netns.remove(path)


def ask(endpoint, name, kind="A", how=dns.query.udp, **more):
    query = dns.message.make_query(name, kind, **more)
    return how(query, str(address(endpoint.id)), timeout=10)


def texts(reply):
    return [str(each) for rrset in reply.answer for each in rrset]


@pytest.mark.parametrize("how", [dns.query.udp, dns.query.tcp])
def test_own_names_and_those_of_others(world, how):
    _, upstream = world
    assert texts(ask(WEB, "dark.default.prod.slimnet", how=how)) == ["10.1.0.2"]
    assert ask(WEB, "no.default.prod.slimnet", how=how).rcode() == dns.rcode.NXDOMAIN
    assert upstream.asked == []
    assert texts(ask(WEB, "example.org", how=how)) == ["192.0.2.1"]
    assert [kind for kind, _ in upstream.asked] == ["udp"]


def test_what_policy_forbids_is_not_asked_for_anybody(world):
    """A resolver that asked in an endpoint's stead would be a way out for it."""
    resolver, upstream = world
    assert ask(DARK, "secret.example.org").rcode() == dns.rcode.REFUSED
    assert texts(ask(DARK, "web.default.prod.slimnet")) == ["10.1.0.1"]
    assert upstream.asked == []
    resolver.update(
        State(
            networks=[Network("prod", 1, ["10.1.0.0/16"])],
            hosts=[Host("h1", "192.0.2.1")],
            endpoints=[DARK],
        )
    )
    assert texts(ask(DARK, "secret.example.org")) == ["192.0.2.1"]
    assert ask(DARK, "web.default.prod.slimnet").rcode() == dns.rcode.NXDOMAIN


def test_long_answers(world):
    """By TCP from the upstream, and to whom it is too long with the word that it is cut."""
    _, upstream = world
    upstream.records = 200
    cut = ask(WEB, "example.org")
    assert cut.flags & dns.flags.TC
    assert len(cut.to_wire()) <= 512
    assert [kind for kind, _ in upstream.asked] == ["udp", "tcp"]
    assert len(texts(ask(WEB, "example.org", how=dns.query.tcp))) == 200
    upstream.records = 50
    assert ask(WEB, "example.org").flags & dns.flags.TC
    assert len(texts(ask(WEB, "example.org", use_edns=True, payload=4096))) == 50
    upstream.records = 200
    assert ask(WEB, "example.org", use_edns=True, payload=4096).flags & dns.flags.TC


def test_extensions_reach_the_upstream_and_no_id_is_taken_over(world):
    _, upstream = world
    option = dns.edns.GenericOption(65001, b"mark")
    query = dns.message.make_query("example.org", "A", want_dnssec=True, options=[option])
    reply = dns.query.udp(query, str(address(WEB.id)), timeout=10)
    ((_, heard),) = upstream.asked
    assert heard.ednsflags & dns.flags.DO
    assert [each.data for each in heard.options] == [b"mark"]
    assert heard.question == query.question
    assert reply.id == query.id
    ids = set()
    for _ in range(5):
        query.id = 7
        dns.query.udp(query, str(address(WEB.id)), timeout=10)
        ids.add(upstream.asked[-1][1].id)
    assert ids != {7}


def test_the_next_server_is_asked(world):
    resolver, upstream = world
    resolver.servers.insert(0, "127.0.0.9")  # nobody is there: refused at once
    assert texts(ask(WEB, "example.org")) == ["192.0.2.1"]
    upstream.rcode = dns.rcode.SERVFAIL
    assert ask(WEB, "example.org").rcode() == dns.rcode.SERVFAIL
    resolver.servers.clear()
    assert ask(WEB, "example.org").rcode() == dns.rcode.REFUSED


MALFORMED = {
    "a notify": (lambda query: query.set_opcode(dns.opcode.NOTIFY), dns.rcode.NOTIMP),
    "EDNS of another version": (lambda query: query.use_edns(1), dns.rcode.BADVERS),
    "two questions": (lambda query: query.question.append(query.question[0]), dns.rcode.FORMERR),
    "no question": (lambda query: query.question.clear(), dns.rcode.FORMERR),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_odd_queries(world, what):
    change, wanted = MALFORMED[what]
    query = dns.message.make_query("web.default.prod.slimnet", "A")
    change(query)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(query.to_wire(), (str(address(WEB.id)), 53))
        assert dns.message.from_wire(sock.recv(4096)).rcode() == wanted


def test_of_another_class(world):
    assert ask(WEB, "version.bind", "TXT", rdclass="CH").rcode() == dns.rcode.REFUSED


def test_no_query_has_no_answer(world):
    """What is none: rubbish, and answers, which two resolvers would send each other for ever."""
    reply = dns.message.make_response(dns.message.make_query("web.default.prod.slimnet", "A"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        for data in (b"", b"x", os.urandom(40), reply.to_wire()):
            sock.sendto(data, (str(address(WEB.id)), 53))
        with pytest.raises(TimeoutError):
            sock.recv(4096)
    assert texts(ask(WEB, "web.default.prod.slimnet")) == ["10.1.0.1"]


def test_idle_and_too_many_connections_cost_nobody_else(world):
    where = (str(address(WEB.id)), 53)
    held = [socket.create_connection(where, timeout=5) for _ in range(40)]
    try:
        assert texts(ask(WEB, "web.default.prod.slimnet")) == ["10.1.0.1"]
        assert texts(ask(DARK, "web.default.prod.slimnet", how=dns.query.tcp)) == ["10.1.0.1"]
        held[-1].settimeout(5)
        assert held[-1].recv(1) == b""
    finally:
        for each in held:
            each.close()


def test_who_goes_is_served_no_more(world):
    resolver, _ = world
    resolver.remove(WEB.id)
    resolver.remove(WEB.id)
    assert not resolver.serves(WEB.id)
    with pytest.raises(OSError):
        ask(WEB, "web.default.prod.slimnet", how=dns.query.tcp)
    assert resolver.add(WEB, None) == ""
    assert texts(ask(WEB, "web.default.prod.slimnet")) == ["10.1.0.1"]


def test_a_taken_port_is_told(world):
    other = Endpoint("prod", "late", "10.1.0.9", "h1", id=9)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(address(other.id)), 53))
        assert (
            world[0].add(other, None) == "cannot listen at 127.128.0.9:53: Address already in use"
        )
    assert world[0].add(other, None) == ""


QUESTIONS = """
import dns.message, dns.query, dns.resolver, socket, subprocess
server, = dns.resolver.Resolver().nameservers
for name, kind in ((NAMES)):
    for how in (dns.query.udp, dns.query.tcp):
        reply = how(dns.message.make_query(name, kind), server, timeout=10)
        print(name, kind, reply.rcode().name, *(each for rrset in reply.answer for each in rrset))
for name in ("web", "web.default", "web.default.prod", "web.default.prod.slimnet"):
    print(name, socket.gethostbyname(name))
"""


@pytest.mark.parametrize("backend", DATA_PATHS)
def test_a_command_has_names(backend, built):
    """In ``slimnet run``, on every data path: over UDP and TCP, by glibc and by musl; and
    after the agent was killed and is there again."""
    require(backend)
    names = [
        ("web.default.prod.slimnet", "A"),
        ("web.default.prod.slimnet", "AAAA"),
        ("_http._tcp.web.default.prod.slimnet", "SRV"),
        ("2.0.1.10.in-addr.arpa", "PTR"),
        ("nobody.default.prod.slimnet", "A"),
        ("web.default.test.slimnet", "A"),
    ]
    wanted = [
        "web.default.prod.slimnet A NOERROR 10.1.0.2",
        "web.default.prod.slimnet AAAA NOERROR",
        "_http._tcp.web.default.prod.slimnet SRV NOERROR 0 0 80 web.default.prod.slimnet.",
        "2.0.1.10.in-addr.arpa PTR NOERROR web.default.prod.slimnet.",
        "nobody.default.prod.slimnet A NXDOMAIN",
        "web.default.test.slimnet A NXDOMAIN",
    ]
    with Testbed(f"slt-n{os.getpid()}-{backend}", hosts=2, backend=backend) as testbed:
        first, second = testbed.hosts
        with second.node() as node:
            node.create_network("prod", "10.1.0.0/16")
            node.create_network("test", "10.2.0.0/16")
            node.attach("prod", "web", address="10.1.0.2", ports={"http": ("tcp", 80)})
            node.attach("test", "web", address="10.2.0.2")
            node.wait()

        def run(*command):
            return subprocess.run(
                [sys.executable, "-m", "slimnet.cli", "run", "-n", "prod", "--name", "me"]
                + ["--", *map(str, command)],
                env=os.environ | first.environment(),
                capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip

        def check():
            done = run(sys.executable, "-c", QUESTIONS.replace("(NAMES)", repr(tuple(names))))
            assert done.returncode == 0, done.stderr
            lines = done.stdout.splitlines()
            assert lines[:-4] == [each for each in wanted for _ in range(2)]
            assert [each.split()[1] for each in lines[-4:]] == ["10.1.0.2"] * 4

        check()
        if can(backend, Can.ANY_PROGRAM):
            done = run(*built("names of musl"), "web.default.prod.slimnet", "127.0.0.1", 9)
            assert done.stdout.splitlines()[:1] == ["10.1.0.2"], done
        first.kill_agent()
        first.start_agent().wait()
        check()
        left = directories.run() / first.instance / "resolv"
        assert list(left.iterdir()) == []
