# SPDX-License-Identifier: Apache-2.0
"""A service's address at connect: an endpoint behind it, and no trace of that."""

from __future__ import annotations

import collections
import errno
import socket
import threading
import time

import pytest
from lab import Can
from lab.cluster import NETWORK

from slimnet.model import Direction, EventKind, Flow, Protocol, Reason

SERVICES = pytest.mark.needs(Can.SERVICES)


def difference(host, before):
    after = host.counters()
    return {reason: after[reason] - before.get(reason, 0) for reason in after}


def talk(sock):
    sock.sendall(b"hello")
    return sock.recv(5)


@SERVICES
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "mapped"])
def test_both_ends_see_what_they_expect(lab, ends, family):
    """The client the service that it dialled; the server its own address and port."""
    client, server = ends
    listener = server.listen(8080)
    vip = lab.service(80, [(server, 8080)])
    lab.install()
    dialled = f"::ffff:{vip}" if family == socket.AF_INET6 else vip
    sock = client.connect(dialled, 80, family=family)
    child, peer = listener.accept()
    assert sock.getpeername()[:2] == (dialled, 80)
    assert child.getsockname() == (server.address, 8080)
    assert peer == (client.address, sock.getsockname()[1]) == child.getpeername()
    sock.sendall(b"over")
    assert child.recv(4) == b"over"
    (mine,) = [one for one in client.host.backend.connections() if one.endpoint == client.id]
    assert (str(mine.peer[0]), mine.peer[1]) == (vip, 80)
    assert mine.peer_endpoint == server.id


@SERVICES
def test_a_bound_source_port(lab, ends):
    """Also for a client that chose its port: tc rewrites for the endpoint behind."""
    client, server = ends
    listener = server.listen(8080)
    vip = lab.service(80, [(server, 8080)])
    lab.install()
    sock = client.socket()
    sock.bind(("0.0.0.0", 5000))
    sock.connect((vip, 80))
    _, peer = listener.accept()
    assert peer == (client.address, 5000)
    assert sock.getpeername() == (vip, 80)


@SERVICES
@pytest.mark.needs(Can.ANSWERS_FOR_SERVICES)
def test_an_endpoint_reaches_itself_through_its_own_service(lab):
    endpoint = lab.endpoint(0)
    endpoint.serve(8080)
    vip = lab.service(80, [(endpoint, 8080)])
    lab.install()
    sock = endpoint.connect(vip, 80)
    assert talk(sock) == b"hello"
    assert sock.getpeername() == (vip, 80)
    assert sock.getsockname()[0] == endpoint.address


def _dial(address: str, port: int, times: int) -> list[str]:
    """What the servers say that they are."""
    said = []
    for _ in range(times):
        with socket.create_connection((address, port), timeout=10) as sock:
            said.append(sock.recv(100).decode())
    return said


def _say_who(name: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))
    listener.listen(100)

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.sendall(name.encode())
            sock.close()

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.fixture
def three(lab):
    """A client, and three servers on all hosts that say who they are."""
    servers = [lab.endpoint(number) for number in range(3)]
    for server in servers:
        server.call(_say_who, server.record.name, 8080)
    return lab.endpoint(0), servers


@SERVICES
def test_every_endpoint_gets_its_share(lab, three):
    """By its slots: here two of four, one and one."""
    client, servers = three
    first, second, third = servers
    vip = lab.service(80, [(first, 8080), (second, 8080), (first, 8080), (third, 8080)])
    lab.install()
    said = collections.Counter(client.call(_dial, vip, 80, 400))
    assert said.total() == 400
    # Five standard deviations of a binomial distribution.
    assert abs(said[first.record.name] - 200) < 50
    assert abs(said[second.record.name] - 100) < 44
    assert abs(said[third.record.name] - 100) < 44


@SERVICES
def test_a_client_stays_where_it_was(lab, three):
    """Session affinity: as long as the endpoint is there, whatever joins."""
    client, servers = three
    backends = [(server, 8080) for server in servers]
    vip = lab.service(80, backends, affinity=60)
    lab.install()
    (where,) = set(client.call(_dial, vip, 80, 20))
    # The slots turn under it: by hash alone it would be another's.
    for turn in range(3):
        lab.service(80, backends[turn:] + backends[:turn], affinity=60)
        lab.install()
        assert set(client.call(_dial, vip, 80, 5)) == {where}
    rest = [(server, 8080) for server in servers if server.record.name != where]
    lab.service(80, rest, affinity=60)
    lab.install()
    (elsewhere,) = set(client.call(_dial, vip, 80, 20))
    assert elsewhere != where


@SERVICES
def test_affinity_ends(lab, three):
    """After the timeout the slots decide alone."""
    client, servers = three
    backends = [(server, 8080) for server in servers]
    vip = lab.service(80, backends, affinity=1)
    lab.install()
    (where,) = set(client.call(_dial, vip, 80, 5))
    lab.service(80, backends[1:] + backends[:1], affinity=1)
    lab.install()
    assert set(client.call(_dial, vip, 80, 5)) == {where}
    time.sleep(1.1)
    (elsewhere,) = set(client.call(_dial, vip, 80, 5))
    assert elsewhere != where


@SERVICES
@pytest.mark.parametrize(
    ("port", "reason"), [(80, Reason.NO_BACKEND), (81, Reason.NO_SERVICE_PORT)]
)
@pytest.mark.needs(Can.ANSWERS_FOR_SERVICES)
def test_nobody_there_is_a_refusal_at_once(lab, port, reason):
    """No ready endpoint, or not one of its ports."""
    client = lab.endpoint(0)
    vip = lab.service(80, [])
    lab.install()
    before = client.host.counters()
    sent = client.statistic("TcpActiveOpens")
    with pytest.raises(ConnectionRefusedError):
        client.connect(vip, port)
    assert client.statistic("TcpActiveOpens") == sent
    assert difference(client.host, before)[reason] == 1


@SERVICES
@pytest.mark.needs(Can.ANSWERS_FOR_SERVICES)
def test_datagrams_to_a_service_are_refused(lab):
    client = lab.endpoint(0)
    vip = lab.service(80, [])
    lab.install()
    sock = client.socket(kind=socket.SOCK_DGRAM)
    with pytest.raises(OSError, match="unreachable"):
        sock.sendto(b"x", (vip, 80))


def _answer(name: str, port: int) -> socket.socket:
    there = socket.socket(type=socket.SOCK_DGRAM)
    there.bind(("0.0.0.0", port))

    def serve() -> None:
        while True:
            try:
                _, peer = there.recvfrom(100)
            except OSError:
                return
            there.sendto(f"{name} to {peer[0]}".encode(), peer)

    threading.Thread(target=serve, daemon=True).start()
    return there


def _ask(address: str, port: int, times: int) -> list[tuple[str, tuple[str, int]]]:
    """What answers, and from where; a socket for each question."""
    said = []
    for _ in range(times):
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(b"who", (address, port))
            data, peer = sock.recvfrom(100)
            said.append((data.decode(), peer))
    return said


@pytest.fixture
def answering(lab):
    """A client, and a server of datagrams on each of two hosts."""
    servers = [lab.endpoint(number) for number in range(2)]
    for server in servers:
        server.call(_answer, server.record.name, 5353)
    return lab.endpoint(0), servers


DATAGRAMS = pytest.mark.needs(Can.SERVICES, Can.DATAGRAMS)


@DATAGRAMS
def test_datagrams_come_to_an_endpoint_behind_a_service(lab, answering):
    """By its slots; what comes back is the service's; both ends are asked for the endpoint and
    its port."""
    client, (first, second) = answering
    backends = [(first, 5353), (second, 5353), (first, 5353)]
    vip = lab.service(53, backends, protocol=socket.IPPROTO_UDP)
    lab.isolate(client, Direction.EGRESS)
    lab.rule(client, Direction.EGRESS, peer=first, port=5353, protocol=17, allow=True)
    lab.rule(client, Direction.EGRESS, peer=second, port=5353, protocol=17, allow=True)
    lab.install()
    if lab.can(Can.ANSWERS):
        flow = Flow(NETWORK.name, client.address, vip, Protocol.UDP, 53, Direction.EGRESS)
        answer = client.host.backend.ask(flow, NETWORK)
        assert answer.verdict.allowed
        assert (answer.way, answer.service) == (None, 953)
        assert answer.endpoint in {first.id, second.id}
    said = client.call(_ask, vip, 53, 300)
    assert {peer for _, peer in said} == {(vip, 53)}
    shares = collections.Counter(text for text, _ in said)
    assert shares.keys() == {f"{each.record.name} to {client.address}" for each in (first, second)}
    # Five standard deviations of a binomial distribution.
    assert abs(shares[f"{first.record.name} to {client.address}"] - 200) < 41
    lab.isolate(second, Direction.INGRESS)
    lab.service(53, [(second, 5353)], protocol=socket.IPPROTO_UDP)
    lab.install()
    assert client.refused_datagram(vip, 53) == errno.ECONNREFUSED


@DATAGRAMS
def test_datagrams_of_a_client_stay_with_an_endpoint(lab, answering):
    client, servers = answering
    backends = [(each, 5353) for each in servers]
    vip = lab.service(53, backends, affinity=60, protocol=socket.IPPROTO_UDP)
    lab.install()
    assert len(set(client.call(_ask, vip, 53, 30))) == 1


@DATAGRAMS
def test_an_endpoint_asks_itself_by_datagrams(lab, answering):
    """What it sees of itself there is not its own address: of that it takes no packet from
    outside."""
    _, (endpoint, _) = answering
    vip = lab.service(53, [(endpoint, 5353)], protocol=socket.IPPROTO_UDP)
    lab.isolate(endpoint, Direction.EGRESS)
    lab.isolate(endpoint, Direction.INGRESS)
    lab.install()
    ((said, peer),) = endpoint.call(_ask, vip, 53, 1)
    assert said.startswith(f"{endpoint.record.name} to ")
    assert peer == (vip, 53)


@DATAGRAMS
def test_datagrams_to_a_service_without_an_endpoint(lab, answering):
    """Refused at once; and a port that is TCP's is none."""
    client, (server, _) = answering
    vip = lab.service(53, [], protocol=socket.IPPROTO_UDP)
    lab.service(54, [(server, 5353)])
    lab.install()
    before = client.host.counters()
    assert client.refused_datagram(vip, 53) == errno.ECONNREFUSED
    assert difference(client.host, before)[Reason.NO_BACKEND] >= 1
    assert client.refused_datagram(vip, 54) == errno.ECONNREFUSED
    assert difference(client.host, before)[Reason.NO_SERVICE_PORT] >= 1


@SERVICES
@pytest.mark.lacks(Can.ANSWERS_FOR_SERVICES)
@pytest.mark.parametrize("port", [80, 81])
def test_nobody_is_at_a_service_without_an_endpoint(lab, port):
    """No ready endpoint, or not one of its ports: unreachable at once, TCP and UDP."""
    client = lab.endpoint(0)
    vip = lab.service(80, [])
    lab.install()
    begin = time.monotonic()
    with pytest.raises(OSError) as refused:
        client.connect(vip, port)
    assert refused.value.errno in {errno.EHOSTUNREACH, errno.ECONNREFUSED}
    assert time.monotonic() - begin < 0.9


@SERVICES
@pytest.mark.parametrize("direction", list(Direction), ids=["ingress", "egress"])
@pytest.mark.needs(Can.ANSWERS_FOR_SERVICES)
def test_policy_is_asked_for_the_endpoint_and_its_port(lab, ends, direction):
    """Not for the service: a rule for the target port allows, one for the dialled does not."""
    client, server = ends
    server.serve(8080)
    vip = lab.service(80, [(server, 8080)])
    egress = direction is Direction.EGRESS
    subject, peer = (client, server) if egress else (server, client)
    lab.isolate(subject, direction)
    lab.rule(subject, direction, peer=peer, port=80, allow=True)
    lab.install()
    with pytest.raises(PermissionError if egress else ConnectionRefusedError):
        client.connect(vip, 80)
    lab.rule(subject, direction, peer=peer, port=8080, allow=True)
    lab.install()
    assert talk(client.connect(vip, 80)) == b"hello"


@SERVICES
def test_events_name_the_service(lab, ends):
    client, server = ends
    server.serve(8080)
    vip = lab.service(80, [(server, 8080)])
    lab.install()
    client.host.observe()
    client.connect(vip, 80)
    opened = [each for each in client.host.events(2) if each.direction is Direction.EGRESS]
    assert opened[0].kind is EventKind.OPENED
    assert (str(opened[0].destination[0]), opened[0].destination[1]) == (vip, 80)
    assert opened[0].peer_endpoint == server.id


@pytest.mark.needs(Can.SERVICES, Can.ANSWERS)
def test_the_data_path_says_where_it_would_go(lab, ends):
    """Backend.ask(): by the tables in force, and nothing is counted or kept."""
    client, server = ends
    vip = lab.service(80, [(server, 8080)], affinity=60)
    lab.isolate(client, Direction.EGRESS)
    lab.rule(client, Direction.EGRESS, peer=server, port=8080, allow=True)
    lab.install()
    before = client.host.counters()
    flow = Flow(NETWORK.name, client.address, vip, Protocol.TCP, 80, Direction.EGRESS)
    answer = client.host.backend.ask(flow, NETWORK)
    assert answer.verdict.allowed
    assert answer.verdict.reason is Reason.RULE_ALLOW
    assert (answer.endpoint, answer.service) == (server.id, 980)
    assert (str(answer.target[0]), answer.target[1]) == (server.address, 8080)
    assert str(answer.host) == server.host.address
    assert answer.generation == client.host.backend.status().generation
    denied = Flow(NETWORK.name, client.address, server.address, Protocol.TCP, 81, Direction.EGRESS)
    answer = client.host.backend.ask(denied, NETWORK)
    assert (answer.verdict.allowed, answer.verdict.reason) == (False, Reason.DEFAULT_DENY)
    assert client.host.counters() == before


@pytest.mark.lacks(Can.ANSWERS)
def test_the_data_path_cannot_be_asked(lab, ends):
    client, server = ends
    flow = Flow(NETWORK.name, client.address, server.address, Protocol.TCP, 80, Direction.EGRESS)
    assert client.host.backend.ask(flow, NETWORK) is None


@pytest.mark.lacks(Can.SERVICES)
def test_a_service_is_nobody(lab, ends):
    """Tables with services are installed, and their addresses refused as nobody's."""
    client, server = ends
    server.serve(8080)
    vip = lab.service(80, [(server, 8080)])
    lab.install()
    client.host.watcher.forget()
    with pytest.raises(OSError, match="No route") as caught:
        client.connect(vip, 80)
    assert caught.value.errno == errno.EHOSTUNREACH
    event = client.host.events(1)[0]
    assert (event.kind, event.reason) == (EventKind.REFUSED, Reason.NO_ENDPOINT)
    assert (event.peer_endpoint, str(event.destination[0])) == (0, vip)
    assert talk(client.connect(server.address, 8080)) == b"hello"
