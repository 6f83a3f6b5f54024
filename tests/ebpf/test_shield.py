# SPDX-License-Identifier: Apache-2.0
"""Nothing reaches an endpoint's socket but through slimnet: host processes,
other machines, other endpoints, forged SYNs."""

from __future__ import annotations

import errno
import socket
import struct
import time
from pathlib import Path

import pytest
from attrs import evolve
from lab import packets
from lab.cluster import KEY
from lab.packets import Syn

from slimnet import contract
from slimnet.model import Reason

pytestmark = pytest.mark.fresh

INET, INET6 = socket.AF_INET, socket.AF_INET6
WIRE = 4790
#: The first port of source-bound connections, and the number of all wire ports.
BOUND = WIRE + contract.SLIM_WIRE_PORTS
WIRES = contract.SLIM_WIRE_PORTS + contract.SLIM_BOUND_PORTS
INNER = contract.SLIM_INNER_PORT


def inner(index, port, *, loopback=False):
    """Design 4.5: 240.0.0.0/4 | loopback | index | port."""
    return socket.inet_ntoa((0xF0000000 | loopback << 27 | index << 16 | port).to_bytes(4, "big"))


def nobody_came(listener):
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.setblocking(True)


def difference(host, before):
    after = host.counters()
    return {r: after[r] - before.get(r, 0) for r in after if after[r] != before.get(r, 0)}


def attempts(targets):
    """Try to connect to each; those that were accepted."""
    import selectors
    import time

    found, waiting = [], selectors.DefaultSelector()
    for target in targets:
        sock = socket.socket()
        sock.setblocking(False)
        number = sock.connect_ex(tuple(target))
        if number == 0:
            found.append(target)
        if number == errno.EINPROGRESS:
            waiting.register(sock, selectors.EVENT_WRITE, target)
        else:
            sock.close()
    until = time.monotonic() + 1
    while waiting.get_map() and time.monotonic() < until:
        for key, _ in waiting.select(0.1):
            if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(key.data)
            waiting.unregister(key.fileobj)
            key.fileobj.close()
    for key in list(waiting.get_map().values()):
        key.fileobj.close()
    return found


@pytest.fixture
def listeners(lab):
    """An endpoint on host 1 with every kind of listener; (endpoint, listeners)."""
    server = lab.endpoint(1)
    bare = server.socket()
    bare.listen()
    held = server.socket()
    held.bind(("0.0.0.0", 0))
    held.listen()
    local = server.socket()
    local.bind(("127.0.0.1", 0))
    local.listen()
    made = [
        server.listen(80),
        server.listen(81, server.address),
        server.listen(82, "127.0.0.1"),
        server.listen(83, family=INET6),
        bare,
        held,
        local,
    ]
    return server, made


@pytest.mark.parametrize("who", ["root", "user"])
def test_host_processes_reach_no_listener(lab, listeners, who):
    """By the overlay address, the host's, loopback, or the inner addresses."""
    server, made = listeners
    host = server.host
    hands = host.root if who == "root" else host.user
    ports = [listener.getsockname()[1] for listener in made]
    targets = [
        (address, port)
        for port in ports
        for address in (server.address, host.address, "127.0.0.1", "0.0.0.0")
    ]
    targets += [
        (inner(index, port, loopback=loopback), INNER)
        for index in range(1, 40)
        for port in ports
        for loopback in (False, True)
    ]
    targets += [
        (address, port)
        for port in range(WIRE, WIRE + WIRES)
        for address in (host.address, "127.0.0.1")
    ]
    assert hands.call(attempts, targets, deadline=60) == []
    for listener in made:
        nobody_came(listener)


def test_other_machines_reach_no_listener(lab, listeners):
    server, made = listeners
    ports = [listener.getsockname()[1] for listener in made]
    targets = [(server.host.address, port) for port in (*ports, *range(WIRE, WIRE + WIRES))]
    for hands in (lab.outside.root, lab.hosts[0].root):
        assert hands.call(attempts, targets, deadline=60) == []
    for listener in made:
        nobody_came(listener)


def test_packets_to_the_inner_range_from_the_underlay(lab, listeners):
    """A neighbour that routes the range to the host gets nothing."""
    server, made = listeners
    before = server.host.counters()
    lab.outside.netns.ip(f"route add 240.0.0.0/4 via {server.host.address}")
    try:
        targets = [
            (inner(index, listener.getsockname()[1]), INNER)
            for index in range(1, 40)
            for listener in made
        ]
        assert lab.outside.root.call(attempts, targets, deadline=60) == []
    finally:
        lab.outside.netns.ip("route del 240.0.0.0/4")
    assert difference(server.host, before)[Reason.RESERVED_RANGE] >= len(targets)
    for listener in made:
        nobody_came(listener)


def test_the_shield_is_counted_and_lifts_with_the_listener(lab):
    """A port of the host that an endpoint's bind(0) sat on is the host's again."""
    server = lab.endpoint(1)
    held = server.socket()
    held.bind(("0.0.0.0", 0))
    held.listen()
    port = held.getsockname()[1]
    before = server.host.counters()
    assert lab.outside.root.call(attempts, [(server.host.address, port)]) == []
    assert difference(server.host, before) == {Reason.SHIELD: 1}
    held.close()
    listener = server.host.root.listen(port)
    assert lab.outside.root.call(attempts, [(server.host.address, port)]) == [
        (server.host.address, port)
    ]
    listener.close()


# Endpoints that connect straight to where slimnet keeps its sockets


@pytest.mark.parametrize("before_it", ["nothing", "connected", "refused", "denied"])
def test_straight_to_an_inner_address_or_a_wire_port(lab, place, before_it):
    """Also after a connect that slimnet decided, and AF_UNSPEC: what is left
    in the socket serves no other connect."""
    client, server = lab.endpoint(0), lab.endpoint(0 if place == "one-host" else 1)
    listener = server.listen(80)
    targets = [(inner(index, 80), INNER) for index in range(1, 12)]
    targets += [(inner(index, 80, loopback=True), INNER) for index in range(1, 4)]
    targets += [
        (host.address, port)
        for host in lab.hosts
        for port in (WIRE, WIRE + 7, BOUND - 1, BOUND, WIRE + WIRES - 1)
    ]
    for target in targets:
        sock = client.socket()
        if before_it == "connected":
            sock.connect((server.address, 80))
            accepted, _ = listener.accept()
            accepted.close()
            client.disconnect(sock)
        elif before_it == "refused":
            with pytest.raises(ConnectionRefusedError):
                sock.connect((server.address, 81))
            client.disconnect(sock)
        elif before_it == "denied":
            with pytest.raises(PermissionError):
                sock.connect((lab.hosts[2].address, 22))
        with pytest.raises(PermissionError) as caught:
            sock.connect(target)
        assert caught.value.errno == errno.EACCES
        mapped = client.socket(INET6)
        with pytest.raises(PermissionError):
            mapped.connect((f"::ffff:{target[0]}", target[1]))
        with pytest.raises(PermissionError):
            client.socket().sendto(b"x", socket.MSG_FASTOPEN, target)
        sock.close()
    nobody_came(listener)


def test_a_v6only_listener_is_behind_the_shield(lab):
    """IPv6 is not carried: its own loopback reaches it, nobody else does."""
    endpoint, other = lab.endpoint(0), lab.endpoint(0)
    host = endpoint.host
    before = set(host.root.call(_listening6))
    six = endpoint.socket(INET6)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    six.bind(("::", 80))
    six.listen()
    ((address, port),) = set(host.root.call(_listening6)) - before
    ours = endpoint.connect("::1", 80, family=INET6)
    _, peer = six.accept()
    assert peer == ours.getsockname()
    link_local = host.root.call(_link_local)
    targets = [(name, number) for name in ("::1", "::", address) for number in (80, port)]
    for hands in (host.root, host.user, other):
        for target in targets:
            with pytest.raises(OSError):
                hands.connect(*target, family=INET6)
    for number in (80, port):
        assert not lab.outside.root.call(_reaches, link_local, number)
    nobody_came(six)


def _link_local():
    """The underlay interface's fe80:: address."""
    for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines():
        words = line.split()
        if words[-1] == "eth0":
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))
    raise LookupError("eth0 has no IPv6 address")


def _reaches(address, port):
    with socket.socket(socket.AF_INET6) as sock:
        sock.settimeout(1)
        return sock.connect_ex((address, port, 0, socket.if_nametoindex("eth0"))) == 0


def _listening6():
    """The sockets of /proc/net/tcp6, as (address, port)."""
    names = []
    for line in Path("/proc/thread-self/net/tcp6").read_text().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        words = b"".join(
            int(address[at : at + 8], 16).to_bytes(4, "little") for at in range(0, 32, 8)
        )
        names.append((socket.inet_ntop(socket.AF_INET6, words), int(port, 16)))
    return names


# An unprivileged process of the host in the place of an endpoint's socket


def _tuples():
    """Sockets of /proc/net/tcp with an inner address: (local, remote, state)."""
    found = []
    for path in ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"):
        for line in Path(path).read_text().splitlines()[1:]:
            words = line.split()
            ends = []
            for end in words[1:3]:
                address, port = end.split(":")
                ends.append(
                    (socket.inet_ntoa(int(address[-8:], 16).to_bytes(4, "little")), int(port, 16))
                )
            if int(ends[0][0].split(".")[0]) >= 240:
                found.append((*ends, int(words[3], 16)))
    return found


def impersonate(local, remote):
    """Bind what an endpoint's socket had and connect to where it was connected."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.settimeout(1)
    try:
        sock.bind(tuple(local))
        sock.connect(tuple(remote))
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("end", ["finished", "refused", "reset", "abandoned", "live"])
def test_a_host_user_in_the_place_of_an_endpoint(lab, end):
    """It reuses source address and port of an endpoint's connect on the same host."""
    client, server = lab.endpoint(0), lab.endpoint(0)
    host = client.host
    listener = server.listen(80, backlog=0 if end == "abandoned" else 16)
    sock = client.connect(server.address, 80)
    if end == "abandoned":
        # The accept queue is full: the next connect stays in SYN_SENT.
        sock = client.socket()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.connect((server.address, 80))
    port = sock.getsockname()[1]
    ((local, remote),) = [
        (local, remote)
        for local, remote, _ in host.root.call(_tuples)
        if local[1] == port and remote[1] == INNER
    ]
    if end == "abandoned":
        sock.close()
        first, _ = listener.accept()
        first.close()
    else:
        accepted, _ = listener.accept()
        if end == "finished":
            accepted.close()
            sock.close()
        elif end == "reset":
            server.call(_reset, accepted)
            sock.close()
        elif end == "refused":
            server.call(_reset, accepted)
            sock.close()
            listener.close()
            again = client.socket()
            with pytest.raises(ConnectionRefusedError):
                again.connect((server.address, 80))
            listener = server.listen(80)
    before = host.counters()
    for hands in (host.user, host.root):
        assert hands.call(impersonate, local, remote) != 0
    nobody_came(listener)
    del before


def _reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_a_host_user_takes_no_port_from_an_endpoint(lab):
    """It listens on inner addresses and on everything: the endpoint's bind and
    its clients do not notice."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    user = server.host.user
    squatted = user.call(
        _squat, [(inner(index, 80), port) for index in range(1, 60) for port in (8080, 40000)]
    )
    assert squatted > 0, "the host's user could bind nothing: the test proves nothing"
    with pytest.raises(OSError):
        user.listen(INNER)
    with pytest.raises(OSError):
        user.listen(INNER, inner(1, 80))
    listener = server.listen(80)
    for _ in range(3):
        opened = client.connect(server.address, 80)
        _, peer = listener.accept()
        assert peer == opened.getsockname()
    user.call(_unsquat)


def _squat(names):
    global squat
    squat = []
    for name in names:
        sock = socket.socket()
        try:
            sock.bind(tuple(name))
            sock.listen()
        except OSError:
            continue
        squat.append(sock)
    return len(squat)


def _unsquat():
    for sock in squat:
        sock.close()


def test_a_host_user_that_listens_on_a_wire_port(lab):
    """The wire ports belong to the data path, whoever listens there."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    user = server.host.user
    taken = user.call(_squat, [("0.0.0.0", WIRE + number) for number in range(WIRES)])
    listener = server.listen(80)
    for _ in range(20):
        opened = client.connect(server.address, 80)
        _, peer = listener.accept()
        assert peer == opened.getsockname()
    user.call(_unsquat)
    assert taken >= 0


# Forged SYNs. A legitimate one first, so that the others fail for their reason.


@pytest.fixture
def victim(lab):
    """A client endpoint on host 0, a server endpoint on host 1 that listens on 80."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    return client, server, server.listen(80)


def syn_to(lab, server, source, **fields):
    return Syn(
        source=source,
        destination=server.host.address,
        port=WIRE + 5,
        source_port=packets.new_port(),
        **fields,
    )


def test_the_legitimate_syn(lab, victim):
    """The control: made by hand on the right host it is answered."""
    client, server, _ = victim
    syn = packets.option(KEY, syn_to(lab, server, client.host.address), 80, server.id, client.id)
    assert packets.send(client.host.root, syn) == "syn-ack"


@pytest.mark.parametrize("port", [WIRE, BOUND - 1, BOUND, WIRE + WIRES - 1])
def test_syn_without_an_option(lab, victim, port):
    _, server, listener = victim
    before = server.host.counters()
    for hands, source in (
        (lab.outside.root, lab.outside.address),
        (lab.hosts[0].root, lab.hosts[0].address),
    ):
        syn = evolve(syn_to(lab, server, source), port=port)
        assert packets.send(hands, syn) == "rst"
    assert difference(server.host, before)[Reason.SYN_NO_OPTION] == 2
    nobody_came(listener)


@pytest.mark.parametrize(
    "options",
    [
        b"\xfd\x10\x00\x50",  # cut short
        b"\xfd\x04\x00\x50" + b"\x01" * 12,  # another length
        b"\xfe\x10" + b"\x00" * 14,  # another kind
        b"\x01" * 40,
        b"\x00" * 40,
        b"\x02\x00" * 2,  # length 0
        b"\x02\xff" + b"\x01" * 38,  # length past the end
        b"\x01" * 25 + b"\xfd\x10" + b"\0" * 13,  # runs out of the header
    ],
    ids=["short", "length", "kind", "nops", "ends", "zero", "past", "out"],
)
def test_syn_with_a_broken_option(lab, victim, options):
    _, server, listener = victim
    before = server.host.counters()
    syn = syn_to(lab, server, lab.outside.address, options=options)
    assert packets.send(lab.outside.root, syn) in ("rst", "nothing")
    assert difference(server.host, before) == {Reason.SYN_NO_OPTION: 1, Reason.SHIELD: 1}
    nobody_came(listener)


def test_wrong_tag(lab, victim):
    client, server, listener = victim
    before = server.host.counters()
    for hands, source in (
        (lab.outside.root, lab.outside.address),
        (lab.hosts[0].root, lab.hosts[0].address),
    ):
        syn = packets.option(KEY, syn_to(lab, server, source), 80, server.id, client.id, wrong=True)
        assert packets.send(hands, syn) == "rst"
    assert difference(server.host, before)[Reason.SYN_TAG] == 2
    nobody_came(listener)


def test_a_tag_covers_everything(lab, victim):
    """Taken from a good SYN and put on one that differs in one field."""
    client, server, listener = victim
    host = client.host
    good = packets.option(KEY, syn_to(lab, server, host.address), 80, server.id, client.id)
    before = server.host.counters()
    changed = [
        evolve(good, source_port=good.source_port + 1),
        evolve(good, sequence=good.sequence + 1),
        evolve(good, options=good.options[:3] + b"\x51" + good.options[4:]),
        evolve(good, options=good.options[:7] + bytes([good.options[7] ^ 1]) + good.options[8:]),
        evolve(good, options=good.options[:11] + bytes([good.options[11] ^ 1]) + good.options[12:]),
    ]
    for syn in changed:
        assert packets.send(host.root, syn) == "rst"
    moved = evolve(good, source=lab.outside.address)
    assert packets.send(lab.outside.root, moved) == "rst"
    assert difference(server.host, before)[Reason.SYN_TAG] == len(changed) + 1
    nobody_came(listener)


@pytest.mark.parametrize("sender", ["another host", "a machine outside"])
def test_right_tag_from_a_host_that_is_not_the_endpoints(lab, victim, sender):
    """Even whoever holds the key speaks for its own endpoints only."""
    client, server, listener = victim
    host = lab.hosts[2] if sender == "another host" else lab.outside
    before = server.host.counters()
    syn = packets.option(KEY, syn_to(lab, server, host.address), 80, server.id, client.id)
    assert packets.send(host.root, syn) == "rst"
    assert difference(server.host, before)[Reason.SYN_SOURCE] == 1
    nobody_came(listener)


@pytest.mark.parametrize("unknown", ["source", "destination", "not local"])
def test_right_tag_for_an_endpoint_that_is_not_known(lab, victim, unknown):
    """Dropped: the client's retransmission heals a race with the control plane."""
    client, server, listener = victim
    ids = {
        "source": (server.id, 999_999),
        "destination": (999_999, client.id),
        "not local": (client.id, client.id),
    }[unknown]
    before = server.host.counters()
    syn = packets.option(KEY, syn_to(lab, server, client.host.address), 80, *ids)
    assert packets.send(client.host.root, syn) == "nothing"
    assert difference(server.host, before) == {Reason.SYN_UNKNOWN: 1}
    nobody_came(listener)


def test_the_control_plane_is_late(lab, victim):
    """The SYN is dropped until the server's host knows the client; then it heals."""
    client, server, listener = victim
    server.host.backend.install(lab.tables(server.host, without=client))
    connecting = client.start(_patient, (server.address, 80))
    time.sleep(0.3)
    nobody_came(listener)
    lab.install()
    assert connecting.result(10) < 5
    _, peer = listener.accept()
    assert peer[0] == client.address


def _patient(target):
    started = time.monotonic()
    sock = socket.socket()
    sock.settimeout(8)
    sock.connect(target)
    return time.monotonic() - started


def test_nobody_listens_there(lab, victim):
    client, server, _ = victim
    before = server.host.counters()
    syn = packets.option(KEY, syn_to(lab, server, client.host.address), 81, server.id, client.id)
    assert packets.send(client.host.root, syn) == "rst"
    assert difference(server.host, before)[Reason.SYN_NO_LISTENER] == 1


def test_ip_options(lab, victim):
    """ihl != 5 hides the TCP header from a careless parser."""
    client, server, listener = victim
    before = server.host.counters()
    syn = packets.option(
        KEY,
        syn_to(lab, server, client.host.address, ip_options=b"\x01\x01\x01\x00"),
        80,
        server.id,
        client.id,
    )
    assert packets.send(client.host.root, syn) == "nothing"
    assert (
        packets.send(
            lab.outside.root,
            syn_to(lab, server, lab.outside.address, ip_options=b"\x94\x04\x00\x00"),
        )
        == "nothing"
    )
    assert difference(server.host, before) == {Reason.MALFORMED: 2}
    nobody_came(listener)


def test_fragments(lab, victim):
    client, server, listener = victim
    before = server.host.counters()
    syn = packets.option(
        KEY, syn_to(lab, server, client.host.address, fragment=True), 80, server.id, client.id
    )
    assert packets.send(client.host.root, syn) == "nothing"
    assert difference(server.host, before) == {Reason.MALFORMED: 1}
    nobody_came(listener)


def test_bare_segments_to_a_wire_port(lab, victim):
    """An ACK, a FIN, a SYN-ACK out of nowhere open nothing."""
    client, server, listener = victim
    for flags in (0x10, 0x11, 0x12, 0x18, 0x01, 0x00):
        for hands, source in (
            (lab.outside.root, lab.outside.address),
            (client.host.root, client.host.address),
        ):
            syn = evolve(syn_to(lab, server, source), flags=flags)
            assert packets.send(hands, syn, wait=0.1) in ("rst", "nothing")
    nobody_came(listener)


# The tuple of an endpoint's connection


def test_the_tuple_of_a_live_connection(lab, victim):
    """A plain TCP client on the endpoint's host cannot take over its tuple."""
    client, server, listener = victim
    sock = client.connect(server.address, 80)
    accepted, _ = listener.accept()
    port = sock.getsockname()[1]
    sock.close()
    accepted.close()
    time.sleep(0.1)
    user = client.host.user
    targets = [(server.host.address, WIRE + number) for number in range(WIRES)]
    assert user.call(_from_port, port, targets, deadline=60) == []
    nobody_came(listener)


def _from_port(port, targets):
    found = []
    for target in targets:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(0.5)
        try:
            sock.bind(("0.0.0.0", port))
            sock.connect(tuple(target))
            found.append(target)
        except OSError:
            pass
        sock.close()
    return found


def test_spoofed_source_of_a_cluster_host(lab, victim):
    """Without the key a machine that spoofs a host's address gets nowhere; the
    answer goes to the host in any case."""
    client, server, listener = victim
    before = server.host.counters()
    syn = packets.option(
        bytes(16), syn_to(lab, server, client.host.address), 80, server.id, client.id
    )
    assert packets.send(lab.outside.root, syn) == "nothing"
    assert difference(server.host, before)[Reason.SYN_TAG] == 1
    nobody_came(listener)


def test_a_syn_without_a_tag_ends_no_handshake(lab):
    """Sent by anybody in the client's host's name, while the client waits for its SYN-ACK:
    nothing is dropped before a tag is good, and it does not come in by the client's record."""
    client, server, thief = lab.endpoint(0), lab.endpoint(1), lab.outside
    listener = server.listen(80)
    netns = client.host.netns
    netns.run("nft", "table ip late { chain input { type filter hook input priority 0; }; }")
    netns.run("nft", "table ip late { chain output { type filter hook output priority 0; }; }")
    try:
        netns.run("nft", "add rule ip late input tcp flags & 18 == 18 drop")
        sock = client.socket()
        connecting = sock.start("connect", (server.address, 80))
        found = []
        until = time.monotonic() + 5
        while not found and time.monotonic() < until:
            found = client.host.root.call(_opening, server.host.address)
        ((source_port, port),) = found
        # Its SYN is not sent again, which would only make a new record.
        netns.run("nft", "add rule ip late output tcp flags & 18 == 2 drop")
        forged = Syn(
            source=client.host.address,
            destination=server.host.address,
            port=port,
            source_port=source_port,
            sequence=99,
        )
        before = server.host.counters()
        for syn in (forged, packets.option(KEY, forged, 80, server.id, client.id, wrong=True)):
            packets.inject(thief.root, syn.packets()[0])
        time.sleep(0.1)
        assert difference(server.host, before) == {Reason.SYN_NO_OPTION: 1, Reason.SYN_TAG: 1}
        netns.run("nft", "flush chain ip late input")
        connecting.result(10)
        _, peer = listener.accept()
        assert peer == sock.getsockname()
    finally:
        netns.run("nft", "delete table ip late")


def _opening(address):
    """Source and destination ports of the connections there that wait for a SYN-ACK."""
    import subprocess

    command = ["ss", "-Htn", "state", "syn-sent", "dst", address]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return [
        tuple(int(end.rpartition(":")[2]) for end in line.split()[2:4]) for line in lines if line
    ]


def _send_tagged(packet, interface, target, tags):
    """As an Ethernet frame with these VLAN tags."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((interface, 0))
        own = sender.getsockname()[4]
        sender.send(target + own + b"".join(tags) + b"\x08\x00" + packet)


@pytest.mark.parametrize(
    ("ids", "seen"),
    [
        ([0], Reason.SYN_NO_OPTION),
        ([0, 0], Reason.MALFORMED),
        ([0, 5], Reason.MALFORMED),
        ([5], Reason.SYN_NO_OPTION),
        ([5, 0], None),
    ],
    ids=str,
)
def test_vlan_tags(lab, ids, seen):
    """Behind a tag of VLAN 0, which is a priority and no VLAN, the kernel takes a second one
    off where tc does not look. Such a packet is none that passes."""
    host, thief = lab.endpoint(1).host, lab.outside
    target = bytes.fromhex(host.root.call(_hardware_address, "eth0"))
    syn = Syn(source=thief.address, destination=host.address, port=WIRE, source_port=4711)
    tags = [struct.pack("!HH", 0x8100, number) for number in ids]
    before = host.counters()
    thief.root.call(_send_tagged, syn.packets()[0], "eth0", target, tags)
    time.sleep(0.2)
    found = difference(host, before)
    found.pop(Reason.SHIELD, None)
    assert found == ({seen: 1} if seen else {})


def _hardware_address(interface):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        return sock.getsockname()[4].hex()
