# SPDX-License-Identifier: Apache-2.0
"""What the fallback overlay makes of the kernel, as the noop backend sets it up: devices,
rules, entries. What users see of it is asked in the laboratory (tests/functional)."""

import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest
from attrs import evolve
from noop_stage import noop, router, staged

from slimnet.exceptions import BackendError, InvalidValue
from slimnet.linux import netns
from slimnet.model import Direction, Endpoint, Network, Reason, Wire, WireFormat
from slimnet.place import Part, Place
from slimnet.tables import CidrRecord, HostRecord, PolicyKey, PolicyRecord
from slimnet.testing._stage import ALLOWED, CAST, FORBIDDEN, NETWORK, Stage

pytestmark = pytest.mark.root

_CLIENT, _SERVER = (str(CAST[name].address) for name in ("client", "server"))


@pytest.fixture
def stage():
    with staged("client", "server", "stranger", "neighbour", hosts=2) as stage:
        yield stage


def inside(stage, name):
    """This thread is in the endpoint's namespace."""
    return netns.enter(stage.places[name].netns)


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def udp(address=None):
    plug = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plug.settimeout(2)
    if address:
        plug.bind(address)
    return plug


def tables(stage, host, generation, policy=None, cidrs=None):
    found = stage.tables(host, generation)
    return evolve(
        found, policy={**found.policy, **(policy or {})}, cidrs={**found.cidrs, **(cidrs or {})}
    )


def test_nothing_is_flooded_or_learnt(stage):
    """Every neighbour and forwarding entry is permanent, and there is no default destination."""
    with netns.enter(router(stage)):
        forwarding = run("bridge", "fdb", "show", "dev", "vxlan0").splitlines()
        neighbours = run("ip", "neigh").splitlines()
        vxlan = run("ip", "-d", "link", "show", "vxlan0")
    assert len(forwarding) == 1
    assert str(stage.address(1)) in forwarding[0]
    assert "permanent" in forwarding[0]
    assert all(line.rstrip().endswith("PERMANENT") for line in neighbours)
    assert "nolearning" in vxlan
    assert "remote" not in vxlan


def test_an_endpoint_cannot_send_from_another_address(stage):
    """Not even root in it: packets from a foreign address go nowhere."""
    with inside(stage, "server"):
        server = udp(("0.0.0.0", 5000))
    rule = {
        PolicyKey(
            CAST["server"].identity, CAST["client"].identity, Direction.INGRESS, 17
        ): PolicyRecord(True, Reason["RULE_ALLOW"], 9)
    }
    for host in (0, 1):
        stage.backends[host].install(tables(stage, host, 2, rule))
    with server:
        with inside(stage, "client"), udp() as client:
            client.sendto(b"mine", (_SERVER, 5000))
            assert server.recv(100) == b"mine"
        with inside(stage, "stranger"):
            run("ip", "addr", "add", f"{_CLIENT}/32", "dev", "eth0")
            with udp((_CLIENT, 0)) as forger:
                forger.sendto(b"forged", (_SERVER, 5000))
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.recv(100)


def vxlan(source, destination, port, data, vni=NETWORK.vni):
    """A frame for a VXLAN port (RFC 7348), as anyone on the underlay could write it."""
    datagram = struct.pack("!4H", 4000, port, 8 + len(data), 0) + data
    header = struct.pack(
        "!2B3H2BH4s4s",
        *(0x45, 0, 20 + len(datagram), 0, 0, 64, socket.IPPROTO_UDP, 0),
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    total = sum(struct.unpack("!10H", header))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    header = header[:10] + struct.pack("!H", total) + header[12:]
    return struct.pack("!2I", 0x08000000, vni << 8) + TO_H1 + header + datagram


#: Ethernet: to the first host's VTEP, from nobody in particular, IPv4.
TO_H1 = bytes.fromhex("0253") + socket.inet_aton("198.18.0.1") + bytes.fromhex("0253000000000800")


def test_vxlan_comes_from_hosts_of_the_cluster_only(stage):
    """A machine that is none writes the same frame, and nobody sees it."""
    with inside(stage, "client"):
        client = udp(("0.0.0.0", 5000))
    with client:
        for host, data in ((1, b"of the cluster"), (2, b"of nobody")):
            with stage.on(host), udp() as sender:
                frame = vxlan(_SERVER, _CLIENT, 5000, data)
                sender.sendto(frame, (str(stage.address(0)), 4789))
        assert client.recv(100) == b"of the cluster"
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)


def test_a_frame_from_an_address_that_is_not_remote_is_dropped(stage):
    """Neither a local endpoint's nor an outside one's comes by VXLAN."""
    with inside(stage, "client"):
        client = udp(("0.0.0.0", 5000))
    with client:
        with stage.on(1), udp() as sender:
            for source in (str(CAST["stranger"].address), "203.0.113.1", _SERVER):
                frame = vxlan(source, _CLIENT, 5000, source.encode())
                sender.sendto(frame, (str(stage.address(0)), 4789))
        assert client.recv(100) == _SERVER.encode()


def test_a_host_that_hears_no_vxlan_is_unreachable_at_once(stage):
    """As one whose backend is another, in a cluster of several: nothing is sent into the void."""
    here = stage.tables(0, 2)
    hosts = dict(here.hosts)
    hosts[stage.address(1)] = HostRecord("h2", frozenset({WireFormat(Wire.SYN)}))
    stage.backends[0].install(evolve(here, hosts=hosts))
    before = stage.backends[0].status().counters.get(Reason["UNREACHABLE"], 0)
    with inside(stage, "client"), udp() as client:
        client.connect((_SERVER, 5000))
        client.send(b"is anybody there?")
        with pytest.raises(OSError, match="No route to host"):
            client.recv(100)
        begun = time.monotonic()
        for _ in range(20):  # not one of which waits for a second SYN
            with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
                sock.connect((_SERVER, ALLOWED))
    assert time.monotonic() - begun < 10
    assert stage.backends[0].status().counters[Reason["UNREACHABLE"]] >= before + 21
    assert not stage.reach("client", "neighbour", ALLOWED), "nobody listens there"
    stage.serve("neighbour", ALLOWED)
    assert stage.reach("client", "neighbour", ALLOWED)


def test_root_in_an_endpoint_finds_no_rules(stage):
    """They are not in its namespace, so it cannot take them away."""
    stage.serve("server", FORBIDDEN)
    with inside(stage, "client"):
        assert run("nft", "list", "ruleset") == ""
        run("nft", "flush", "ruleset")
        for name in ("stranger", "client"):
            address = (b"\x02\x51" + CAST[name].id.to_bytes(4, "big")).hex(":")
            run("ip", "link", "set", "eth0", "address", address)
    reached = stage.reach("client", "server", FORBIDDEN)
    assert reached.error == 111


def test_two_networks_may_use_the_same_addresses(stage):
    """The second one's client has the first one's address, and reaches its own server."""
    other = Network("other", 100, NETWORK.cidrs)
    twins = {
        host: Endpoint(
            "other", name, CAST[name].address, f"h{host + 1}", id=10 + host, identity=300
        )
        for host, name in ((0, "client"), (1, "server"))
    }
    attachments = {host: stage.backends[host].attach(twins[host], other) for host in (0, 1)}
    for host in (0, 1):
        found = stage.tables(host, 2)
        mine = {
            twins[which].id: evolve(found.endpoints[CAST[name].id], vni=100, identity=300)
            for which, name in ((0, "client"), (1, "server"))
        }
        stage.backends[host].install(
            evolve(
                found,
                addresses={**found.addresses, **{(100, e.address): e.id for e in twins.values()}},
                endpoints={**found.endpoints, **mine},
                cidrs={**found.cidrs, (100, NETWORK.cidrs[0]): CidrRecord(1, overlay=True)},
            )
        )
    stage.serve("server", ALLOWED)
    with netns.enter(attachments[1].netns):
        twin = socket.create_server(("0.0.0.0", ALLOWED))
    with twin, netns.enter(attachments[0].netns):
        socket.create_connection((_SERVER, ALLOWED), 2).close()
        assert twin.accept()[1][0] == _CLIENT
    with stage.on(2):
        outside = socket.create_server(("0.0.0.0", 7001))
    with outside, netns.enter(attachments[0].netns):
        socket.create_connection((str(stage.address(2)), 7001), 2).close()
        assert outside.accept()[1][0] == str(stage.address(0))
    assert stage.reach("client", "server", ALLOWED)
    for host in (0, 1):
        stage.backends[host].detach(twins[host].id)
    assert not list(netns.DIRECTORY.glob(f"slimnet.{stage.context(0).instance}.100"))


def test_the_port_ranges_of_the_tables_are_the_rules(stage):
    """Nested prefixes: the longest match answers, a peer's own entry before any peer's."""
    server, client = CAST["server"].identity, CAST["client"].identity
    yes, no = (
        PolicyRecord(True, Reason["RULE_ALLOW"], 5),
        PolicyRecord(False, Reason["RULE_DENY"], 6),
    )
    rules = {
        PolicyKey(server, client, Direction.INGRESS, 6, 9000, 10): yes,  # 8960-9023
        PolicyKey(server, client, Direction.INGRESS, 6, 9000, 15): no,  # 9000, 9001
        PolicyKey(server, client, Direction.INGRESS, 6, 9001, 16): yes,
        PolicyKey(server, 0, Direction.INGRESS, 6, 9002, 16): no,
        PolicyKey(server, 0, Direction.INGRESS, 6, 9100, 16): yes,
    }
    rules = {
        evolve(k, port=k.port >> (16 - k.port_bits) << (16 - k.port_bits)): v
        for k, v in rules.items()
    }
    for host in (0, 1):
        stage.backends[host].install(tables(stage, host, 2, rules))
    wanted = {
        8959: False,
        8960: True,
        9000: False,
        9001: True,
        9002: True,
        9023: True,
        9024: False,
        9100: True,
    }
    stage.serve("server", *wanted)
    assert wanted == {port: bool(stage.reach("client", "server", port)) for port in wanted}
    refused = [event for event in stage.backends[1].events(2) if event.destination[1] == 9000]
    assert [(event.reason, event.rule) for event in refused] == [(Reason["RULE_DENY"], 6)]


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("moment", range(6))
def test_a_process_killed_while_it_attaches_leaves_what_the_next_one_finds(moment, again):
    """kill -9 at six moments of an attach; the next one makes it whole, or removes it all."""
    with Stage(noop.NoopBackend, {}, None) as stage:
        before = stage.snapshot()
        stage.open(0).close()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                backend = stage.open(0)
                os.write(writer, b"x")
                backend.attach(CAST["client"], NETWORK)
                backend.attach(CAST["neighbour"], NETWORK)
                backend.install(stage.tables(0, 1))
            finally:
                os._exit(0)
        os.read(reader, 1)
        time.sleep(moment * 0.015)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)
        stage.open(0)
        if again:
            stage.attach("client", "neighbour")
            stage.install(2)
            stage.serve("neighbour", ALLOWED, FORBIDDEN)
            assert stage.reach("client", "neighbour", ALLOWED)
            assert not stage.reach("client", "neighbour", FORBIDDEN)
            for name in ("client", "neighbour"):
                stage.leave(name)
        stage.backends[0].teardown()
        assert sorted(stage.snapshot() ^ before) == []


def test_a_record_that_was_not_written_to_its_end_is_removed():
    with Stage(noop.NoopBackend, {}, None) as stage:
        state = stage.context(0).state
        state.mkdir(parents=True, exist_ok=True)
        (state / "endpoint-7.new").write_text('{"endpoint"')
        stage.open(0)
        assert list(state.glob("endpoint-*")) == []
        (state / "endpoint-7.new").touch()
        stage.backends[0].teardown()
        noop.NoopBackend.purge(stage.context(0).instance, state)
        assert list(state.glob("endpoint-*")) == []


def test_a_host_that_forwards_already_keeps_forwarding(stage):
    """The switch is set back only where it was set here."""
    with Stage(noop.NoopBackend, {}, None) as own:
        with own.on(0):
            run("sysctl", "-qw", "net.ipv4.conf.eth0.forwarding=1")
        own.open(0)
        own.attach("client")
        own.backends[0].teardown()
        with own.on(0):
            assert run("sysctl", "-n", "net.ipv4.conf.eth0.forwarding") == "1\n"


def test_a_failing_install_leaves_the_old_tables(stage):
    """nft refuses a name that is too long; the generation and the policy stay."""
    from slimnet.exceptions import BackendError

    stage.serve("server", ALLOWED)
    broken = stage.tables(1, 2)
    key = PolicyKey(CAST["server"].identity, 2**33, Direction.INGRESS, 6, 1, 16)
    broken = evolve(broken, policy={key: PolicyRecord(True, Reason["RULE_ALLOW"], 1)})
    with pytest.raises(BackendError):
        stage.backends[1].install(broken)
    assert stage.backends[1].status().generation == 1
    assert stage.reach("client", "server", ALLOWED)


def test_counters_and_refusals_outlive_the_router(stage):
    """It goes with its last endpoint; what it counted and noted does not."""
    backend = stage.backends[1]
    deny = Reason["DEFAULT_DENY"]
    for _ in range(2):
        assert not stage.reach("client", "server", FORBIDDEN)
    assert backend.status().counters[deny] == 2
    stage.leave("server")
    backend.detach(CAST["server"].id)
    assert not list(netns.DIRECTORY.glob(f"slimnet.{stage.context(1).instance}.*"))
    assert backend.status().counters[deny] == 2
    assert [event.reason for event in backend.events(0)] == [deny, deny]
    stage.attach("server")
    assert not stage.reach("client", "server", FORBIDDEN)
    backend.close()
    assert stage.open(1).status().counters[deny] == 3


@pytest.mark.parametrize(
    "taken", ["link add eth0 type veth peer name eth1", "route add default dev lo"]
)
def test_a_namespace_that_has_a_way_out_is_not_taken(stage, taken):
    """What its maker led elsewhere stays so, and nothing of ours is in it."""
    endpoint = evolve(stage.given("client", Part.NETNS), id=77, name="box")
    there = Path(endpoint.netns)
    with netns.enter(there):
        run("ip", *taken.split())
    before = stage.snapshot_of_given()
    wanted = "endpoint.netns: wanted a network namespace without eth0 and without a default route"
    with pytest.raises(BackendError, match=wanted):
        stage.backends[0].attach(endpoint, NETWORK)
    assert stage.snapshot_of_given() == before
    assert 77 not in stage.backends[0].status().endpoints


def test_a_namespace_of_ours_is_no_callers(stage):
    backend = stage.backends[0]
    for path in (stage.places["client"].netns, router(stage)):
        with pytest.raises(InvalidValue, match=f"one that is not {path.name}"):
            backend.place("prod.default.box", Place(netns=path))
    for path in ("/proc/1/ns/net", "/proc/self/ns/mnt", "/nowhere", "/tmp"):
        with pytest.raises(InvalidValue, match=r"endpoint\.netns: wanted "):
            backend.place("prod.default.box", Place(netns=path))


def test_one_whose_device_was_moved_is_followed(stage, tmp_path):
    """Its path names another namespace by then: nothing is made anew, and nothing stays."""
    given = stage.given("client", Part.NETNS)
    moved = Path(f"{given.netns}-moved")
    path = tmp_path / "link"
    path.symlink_to(given.netns)
    address = CAST["client"].address + 100
    endpoint = evolve(given, id=77, name="box", netns=str(path), address=address)
    backend = stage.backends[0]
    backend.attach(endpoint, NETWORK)
    netns.create(moved)
    try:
        with netns.enter(Path(given.netns)):
            run("ip", "link", "set", "eth0", "netns", moved.name)
        path.unlink()
        path.symlink_to(moved)
        with netns.enter(moved):
            before = socket.if_nametoindex("eth0")
        assert backend.attach(endpoint, NETWORK).netns == path
        assert backend.attach(endpoint, NETWORK).netns == path
        with netns.enter(moved):
            assert socket.if_nametoindex("eth0") == before
        backend.detach(77)
        with netns.enter(moved):
            assert socket.if_nameindex() == [(1, "lo")]
    finally:
        netns.remove(moved)
