# SPDX-License-Identifier: Apache-2.0
"""What an endpoint may send, measured by who receives it; and what is on its account.

Rates are asked with a margin above and below that a busy machine keeps; on a quiet
one they are within 5 %.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time

import pytest
from lab import Can

from slimnet.model import Direction, Reason

MEGABYTE = 1 << 20
LIMITS = pytest.mark.needs(Can.EGRESS_LIMITS)
ACCOUNTS = pytest.mark.needs(Can.COUNTS)


def _receive(listener: socket.socket, connections: int, seconds: float) -> float:
    """Bytes a second that arrive on this many connections together, after a start."""
    children = [listener.accept()[0] for _ in range(connections)]
    counts = [0] * connections
    begin = time.monotonic() + 0.3
    end = begin + seconds

    def read(number: int) -> None:
        children[number].settimeout(seconds + 2)
        while (now := time.monotonic()) < end:
            size = len(children[number].recv(1 << 18))
            if now > begin:
                counts[number] += size

    threads = [threading.Thread(target=read, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        child.close()
    return sum(counts) / seconds


def _send(address: str, port: int, connections: int) -> None:
    """As much as goes, until the other end closes."""

    def pump(sock: socket.socket) -> None:
        try:
            while True:
                sock.sendall(bytes(1 << 16))
        except OSError:
            sock.close()

    for _ in range(connections):
        sock = socket.create_connection((address, port))
        threading.Thread(target=pump, args=(sock,), daemon=True).start()


def rate(client, server, connections, seconds=1.5):
    """What goes from one to the other, in bytes a second."""
    listener = server.listen(7000)
    receiving = server.start(_receive, listener, connections, seconds)
    client.call(_send, server.address, 7000, connections)
    result = receiving.result(30)
    listener.close()
    return result


@LIMITS
def test_each_connection(lab, ends):
    """The kernel paces each; two have twice as much."""
    client, server = ends
    lab.limit(client, connection_rate=4 * MEGABYTE)
    lab.install()
    assert 0.6 < rate(client, server, 1) / (4 * MEGABYTE) < 1.15
    assert 0.6 < rate(client, server, 2) / (8 * MEGABYTE) < 1.15


@LIMITS
def test_what_it_accepted_is_paced_as_well(lab, ends):
    """Egress is what an endpoint sends, whoever opened the connection."""
    server, client = ends
    lab.limit(server, connection_rate=4 * MEGABYTE)
    lab.install()
    listener = server.listen(7000)
    sock = client.connect(server.address, 7000)
    child, _ = listener.accept()
    server.start(_pump, child)
    assert 0.6 < client.call(_count, sock, 1.5) / (4 * MEGABYTE) < 1.15


def _pump(sock: socket.socket) -> None:
    try:
        while True:
            sock.sendall(bytes(1 << 16))
    except OSError:
        sock.close()


def _count(sock: socket.socket, seconds: float) -> float:
    begin = time.monotonic() + 0.3
    end = begin + seconds
    count = 0
    while (now := time.monotonic()) < end:
        size = len(sock.recv(1 << 18))
        count += size if now > begin else 0
    return count / seconds


@pytest.mark.needs(Can.PACES)
@LIMITS
@pytest.mark.parametrize("connections", [1, 6])
def test_all_of_an_endpoint_together(lab, ends, connections):
    client, server = ends
    lab.limit(client, rate=8 * MEGABYTE)
    lab.install()
    assert 0.75 < rate(client, server, connections, 3) / (8 * MEGABYTE) < 1.1


@pytest.mark.lacks(Can.PACES)
@LIMITS
@pytest.mark.parametrize("connections", [1, 6])
def test_what_is_over_it_is_dropped(lab, ends, connections):
    """Never more than the limit in all; somewhat less where senders have to send again."""
    client, server = ends
    lab.limit(client, rate=8 * MEGABYTE)
    lab.install()
    assert 0.3 < rate(client, server, connections, 3) / (8 * MEGABYTE) < 1.1


def _accept(listener: socket.socket, connections: int) -> list[socket.socket]:
    return [listener.accept()[0] for _ in range(connections)]


def _arrivals(children: list[socket.socket], seconds: float) -> list[tuple[int, float]]:
    """Of each connection: the bytes of that time, and the longest it was without any."""
    now = time.monotonic()
    end = now + seconds
    counts, gaps, last = (dict.fromkeys(children, start) for start in (0, 0.0, now))
    while (now := time.monotonic()) < end:
        for child in select.select(children, [], [], 0.1)[0]:
            counts[child] += len(child.recv(1 << 18))
            gaps[child] = max(gaps[child], now - last[child])
            last[child] = now
    return [(counts[child], max(gaps[child], end - last[child])) for child in children]


def flood(client, server, port, connections):
    """The server's ends of connections on which the client sends as much as goes."""
    listener = server.listen(port)
    accepting = server.start(_accept, listener, connections)
    client.call(_send, server.address, port, connections)
    return accepting.result(30)


@pytest.mark.needs(Can.PACES)
@LIMITS
def test_its_connections_have_the_same(lab, ends):
    """Those that send as much as goes take turns, and none waits long for its own."""
    client, server = ends
    lab.limit(client, rate=MEGABYTE)
    lab.install()
    children = flood(client, server, 7000, 16)
    server.call(_arrivals, children, 1)  # the first segments, which nobody paces
    found = server.call(_arrivals, children, 4)
    counts = [count for count, _ in found]
    assert 0.75 < sum(counts) / (4 * MEGABYTE) < 1.1
    assert min(counts) > sum(counts) / 16 / 2, counts
    assert max(gap for _, gap in found) < 2


@LIMITS
def test_what_it_receives_beside_is_not_slowed(lab, ends):
    """It sends at its rate while it receives, what it receives keeps coming, and its
    connects do not wait: neither acknowledgement nor SYN is held back."""
    client, server = ends
    lab.limit(client, rate=MEGABYTE)
    lab.install()
    up = flood(client, server, 7000, 1)
    down = flood(server, client, 7001, 1)
    sending = server.start(_arrivals, up, 5)
    ((received, gap),) = client.call(_arrivals, down, 5)
    ((sent, _),) = sending.result(30)
    assert 0.75 < sent / (5 * MEGABYTE) < 1.1
    assert received > 20 * 5 * MEGABYTE
    assert gap < 1
    server.serve(7002)
    for _ in range(20):
        begin = time.monotonic()
        client.connect(server.address, 7002).close()
        assert time.monotonic() - begin < 0.9  # a SYN is sent again after a second


def _drain(children: list[socket.socket]) -> None:
    def read(child: socket.socket) -> None:
        while child.recv(1 << 18):
            pass

    for child in children:
        threading.Thread(target=read, args=(child,), daemon=True).start()


def _window(children: list[socket.socket], seconds: float) -> float:
    """Bytes a second that the kernel takes in on these (struct tcp_info, tcpi_bytes_received):
    when somebody reads them, on a busy machine, does not matter."""

    def received() -> tuple[float, int]:
        while True:
            begin = time.monotonic()
            infos = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136) for one in children]
            end = time.monotonic()
            if end - begin < 0.02:
                counts = [struct.unpack_from("=Q", info, 128)[0] for info in infos]
                return (begin + end) / 2, sum(counts)

    begin, before = received()
    time.sleep(seconds)
    end, after = received()
    return (after - before) / (end - begin)


@pytest.mark.needs(Can.PACES)
@LIMITS
@pytest.mark.parametrize("beside", ["nothing", "download", "loopback", "connections"])
def test_the_rate_is_kept_within_five_percent(lab, ends, beside):
    """Of 8, 20 and 100 Mbit/s, each an endpoint's of its own, all at once. A machine with much
    to do may take time from a sender: it has some windows for the rate, and none for more."""
    client, server = ends
    rates = {1_000_000: client}
    rates |= {rate: lab.endpoint(lab.hosts.index(client.host)) for rate in (2_500_000, 12_500_000)}
    for rate, each in rates.items():
        lab.limit(each, rate=rate)
    lab.install()
    flows = {}
    for number, (rate, each) in enumerate(rates.items()):
        up = flood(each, server, 7000 + number, 16 if beside == "connections" else 1)
        server.call(_drain, up)
        flows[rate] = up
        if beside == "download":
            each.call(_drain, flood(server, each, 7000, 1))
        elif beside == "loopback":
            each.call(_drain, flood(each, each, 7001, 1))
    time.sleep(1)  # the first segments, which nobody paces
    for _ in range(6):
        windows = {rate: server.start(_window, up, 5) for rate, up in flows.items()}
        found = {rate: window.result(30) / rate for rate, window in windows.items()}
        print(found)
        assert max(found.values()) < 1.05, found
        flows = {rate: flows[rate] for rate, part in found.items() if part < 0.95}
        if not flows:
            break
    assert not flows, found


@LIMITS
@pytest.mark.parametrize("own", ["127.0.0.1", "::1", "address"])
@pytest.mark.parametrize("kind", ["rate", "connection_rate"])
def test_what_stays_within_it_is_free(lab, own, kind):
    """As loopback is in a container, which its device never sees."""
    endpoint = lab.endpoint(0)
    lab.limit(endpoint, **{kind: MEGABYTE})
    lab.install()
    address = str(endpoint.address) if own == "address" else own
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = endpoint.listen(7000, address, family=family)
    accepting = endpoint.start(_accept, listener, 1)
    endpoint.call(_send, address, 7000, 1)
    ((count, _),) = endpoint.call(_arrivals, accepting.result(30), 1)
    assert count > 20 * MEGABYTE


@pytest.mark.needs(Can.PACES)
@LIMITS
def test_nothing_is_lost(lab, ends):
    """What waits is in the socket's own buffer: hardly a byte is sent twice."""
    client, server = ends
    lab.limit(client, rate=MEGABYTE)
    lab.install()
    listener = server.listen(7000)
    sock = client.connect(server.address, 7000)
    children = server.call(_accept, listener, 1)
    client.start(_pump, sock)
    ((count, _),) = server.call(_arrivals, children, 2)
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (retransmitted,) = struct.unpack_from("Q", info, 208)  # tcpi_bytes_retrans
    assert retransmitted < count / 100


def _short(address: str, port: int, at_once: int, each: int, size: int) -> list[float]:
    """How long connections took that bring so many bytes each, some of them at once."""
    times = []

    def one_after_the_other() -> None:
        for _ in range(each):
            begin = time.monotonic()
            with socket.create_connection((address, port), 30) as sock:
                sock.sendall(bytes(size))
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(1 << 16):
                    pass
            times.append(time.monotonic() - begin)

    threads = [threading.Thread(target=one_after_the_other) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


@LIMITS
def test_short_connections_share_it_and_none_stands_still(lab, ends):
    """So many that the first segments of each, which the kernel does not pace, are too much."""
    client, server = ends
    lab.limit(client, rate=MEGABYTE)
    lab.install()
    server.serve(7000)
    begin = time.monotonic()
    times = client.call(_short, server.address, 7000, 60, 5, 14000)
    took = time.monotonic() - begin
    assert len(times) == 60 * 5
    assert 0.6 < 60 * 5 * 14000 / took / MEGABYTE < 1.2
    assert max(times) < 10 * 60 * 14000 / MEGABYTE


@LIMITS
def test_datagrams_to_the_outside_too(lab):
    """What is over the rate is lost, as in any full queue."""
    client = lab.endpoint(0)
    lab.limit(client, rate=MEGABYTE)
    lab.install()
    there = lab.outside.root.socket(kind=socket.SOCK_DGRAM)
    there.bind(("0.0.0.0", 9000))
    there.settimeout(1)
    client.call(_flood, lab.outside.address, 9000, 2000)
    arrived = lab.outside.root.call(_arrived, there)
    assert 0 < arrived < 500


def _flood(address: str, port: int, count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(count):
            sock.sendto(bytes(1400), (address, port))


def _arrived(sock: socket.socket) -> int:
    count = 0
    while True:
        try:
            sock.recv(2000)
        except TimeoutError:
            return count
        count += 1


@LIMITS
def test_another_endpoint_is_not_held_back(lab, ends):
    client, server = ends
    other = lab.endpoint(0)
    lab.limit(client, rate=MEGABYTE)
    lab.install()
    assert rate(other, server, 1, 0.5) > 20 * MEGABYTE
    assert Reason.RATE not in other.host.counters() or client.host is other.host


@LIMITS
@pytest.mark.parametrize("kind", ["rate", "connection_rate"])
def test_live_connections_follow(lab, ends, kind):
    """A limit that comes, and one that goes."""
    client, server = ends
    listener = server.listen(7000)
    sock = client.connect(server.address, 7000)
    child, _ = listener.accept()
    client.start(_pump, sock)
    assert server.call(_count, child, 0.5) > 20 * MEGABYTE
    lab.limit(client, **{kind: 2 * MEGABYTE})
    lab.install()
    server.call(_count, child, 0.5)  # what was under way
    assert server.call(_count, child, 1) < 3 * MEGABYTE
    lab.limits.clear()
    lab.install()
    server.call(_count, child, 0.5)
    assert server.call(_count, child, 0.5) > 20 * MEGABYTE


@pytest.mark.needs(Can.PACES)
@LIMITS
@pytest.mark.parametrize("kind", ["rate", "connection_rate"])
def test_an_application_paces_itself_below_the_limit(lab, ends, kind):
    """What it asked for stays, while a limit comes and goes."""
    client, server = ends
    sock = client.socket()
    sock.setsockopt(socket.SOL_SOCKET, 47, MEGABYTE)
    listener = server.listen(7000)
    lab.limit(client, **{kind: 4 * MEGABYTE})
    lab.install()
    sock.connect((server.address, 7000))
    child, _ = listener.accept()
    client.start(_pump, sock)
    assert server.call(_count, child, 1) < 1.3 * MEGABYTE
    assert sock.getsockopt(socket.SOL_SOCKET, 47) == MEGABYTE
    lab.limits.clear()
    lab.install()
    assert sock.getsockopt(socket.SOL_SOCKET, 47) == MEGABYTE


@LIMITS
@pytest.mark.parametrize("size", [8, 4096, 4097])
def test_an_application_does_not_lift_it(lab, ends, size):
    """SO_MAX_PACING_RATE is the endpoint's own affair only below the limit, however long
    its value is: of one that is longer than a page the kernel takes the caller's."""
    client, server = ends
    lab.limit(client, connection_rate=2 * MEGABYTE)
    lab.install()
    listener = server.listen(7000)
    sock = client.connect(server.address, 7000)
    child, _ = listener.accept()
    sock.setsockopt(socket.SOL_SOCKET, 47, b"\xff" * size)
    client.start(_pump, sock)
    assert server.call(_count, child, 1.5) < 3 * MEGABYTE


def accounts(endpoint):
    return [each for each in endpoint.host.backend.accounts() if each.endpoint == endpoint.id]


@ACCOUNTS
def test_accounts_by_rule(lab, ends):
    """Connections and payload bytes, at both ends, live ones and ended ones."""
    client, server = ends
    lab.rule(client, Direction.EGRESS, peer=server, port=80, allow=True)
    lab.rule(server, Direction.INGRESS, peer=client, port=80, allow=True)
    lab.isolate(client, Direction.EGRESS)
    lab.install()
    listener = server.listen(80)
    for pause in (0, 0.1, 0):
        sock = client.connect(server.address, 80)
        child, _ = listener.accept()
        sock.sendall(bytes(1000))
        assert child.recv(1000, socket.MSG_WAITALL) == bytes(1000)
        child.sendall(bytes(50))
        assert sock.recv(50, socket.MSG_WAITALL) == bytes(50)
        sock.close()
        assert child.recv(1) == b""
        time.sleep(pause)  # or its FIN comes with the answer to the other's
        child.close()
    sock = client.connect(server.address, 80)
    child, _ = listener.accept()
    sock.sendall(bytes(7))
    assert child.recv(7, socket.MSG_WAITALL) == bytes(7)
    with pytest.raises(OSError) as refused:
        client.connect(server.address, 81)
    assert refused.value.errno == lab.denied

    def written():
        return [
            {
                (each.rule, each.direction): (
                    each.connections,
                    each.refused,
                    each.sent,
                    each.received,
                )
                for each in accounts(end)
            }
            for end in ends
        ]

    expected = [
        {
            (1, Direction.EGRESS): (4, 0, 3007, 150),
            (0, Direction.EGRESS): (0, 1, 0, 0),
        },
        {(2, Direction.INGRESS): (4, 0, 150, 3007)},
    ]
    until = time.monotonic() + 5
    while written() != expected:  # the last ACKs are on their way
        assert time.monotonic() < until, written()
        time.sleep(0.02)


@ACCOUNTS
def test_an_account_goes_with_its_endpoint(lab, ends):
    client, server = ends
    server.serve(80)
    client.connect(server.address, 80).close()
    until = time.monotonic() + 5
    while not accounts(client):
        assert time.monotonic() < until
    lab.remove(client)
    assert not accounts(client)


@pytest.mark.lacks(Can.EGRESS_LIMITS)
def test_tables_with_limits_hold_nothing_back(lab, ends):
    """They are installed all the same: what is not limited is not cut off."""
    client, server = ends
    lab.limit(client, rate=MEGABYTE)
    lab.install()
    assert rate(client, server, 1) > 4 * MEGABYTE


@pytest.mark.lacks(Can.COUNTS)
def test_there_are_no_accounts(lab, ends):
    client, server = ends
    server.serve(80)
    client.connect(server.address, 80).close()
    assert not accounts(client)
