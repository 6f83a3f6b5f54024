# SPDX-License-Identifier: Apache-2.0
"""Random socket calls of eight threads on shared sockets (programs/fuzz.c), in three endpoints
of two hosts: two of them pass sockets to each other, and one of those is killed, removed and
made anew; policy changes all the while. Nothing forbidden is reached, no name of the underlay
is seen, the hosts' services answer, and in the end nothing is left of any of it.

For longer, and with other numbers::

    SLIMNET_FUZZ_SECONDS=3600 SLIMNET_SEED=7 pytest tests/ebpf/test_fuzz_sockets.py
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import secrets
import socket
import struct
import threading
import time

import pytest
from lab import Lab
from pinned import count, pinned

from slimnet.model import Direction
from slimnet_ebpf import contract as private

pytestmark = pytest.mark.fresh

SECONDS = int(os.environ.get("SLIMNET_FUZZ_SECONDS", "60"))
SEED = int(os.environ.get("SLIMNET_SEED", "1"))
#: Of the hosts' own services; as in fuzz.c. The second is one that the kernel may choose.
HOST_PORTS = (8443, 40001)
#: No endpoint can ever have it: a service of the host may start there at any time.
FREE_PORT = 2222
NOBODY = 65534

#: What a closed socket may still wait for is over soon.
SYSCTLS = {"net.ipv4.tcp_orphan_retries": 1, "net.ipv4.tcp_fin_timeout": 3}


# What runs elsewhere


def _guard(ports: list[int], secret: bytes) -> None:
    """Services of a host, TCP and UDP, for those who know the secret; notes all others."""
    global strangers
    strangers = []

    def talk(sock, peer):
        with sock:
            sock.settimeout(5)
            data = b""
            with contextlib.suppress(OSError):
                data = sock.recv(100)
                if data == secret:
                    sock.sendall(b"host " + secret)
            if data != secret:
                strangers.append(("TCP", peer, data))

    def serve(listener):
        while True:
            threading.Thread(target=talk, args=listener.accept(), daemon=True).start()

    def answer(sock):
        while True:
            data, ancillary, _, peer = sock.recvmsg(5000, 1000)
            if data == secret:
                sock.sendto(b"host " + secret, peer)
            else:
                strangers.append(("UDP", peer, data, ancillary))

    for port in ports:
        for kind, work in ((socket.SOCK_STREAM, serve), (socket.SOCK_DGRAM, answer)):
            sock = socket.socket(socket.AF_INET, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: where a datagram was sent to
            sock.bind(("0.0.0.0", port))
            if kind == socket.SOCK_STREAM:
                sock.listen(128)
            threading.Thread(target=work, args=(sock,), daemon=True).start()


def _strangers() -> list[object]:
    return strangers


def _ask(address: str, ports: list[int], secret: bytes) -> list[object]:
    """An ordinary client of the services that :func:`_guard` gives; what failed three times."""
    failed = []
    for port in ports:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for _ in range(3):
                with socket.socket(socket.AF_INET, kind) as sock:
                    sock.settimeout(2)
                    try:
                        sock.connect((address, port))
                        sock.sendall(secret)
                        got = sock.recv(100)
                    except OSError as error:
                        got = repr(error)
                if got == b"host " + secret:
                    break
            else:
                failed.append((kind.name, port, got))
    return failed


def _start_service(port: int) -> None:
    """As a service of the host that starts and ends."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.bind(("0.0.0.0", port))


def _welcome(ports: list[int]) -> None:
    """Accepts all that come, keeps the last ones open, and notes who they are."""
    global peers, guests
    peers, guests = set(), []

    def serve(port):
        listener = socket.create_server(("0.0.0.0", port), backlog=128)
        while True:
            try:
                sock, (address, _) = listener.accept()
            except OSError:
                continue
            # One whose client closed in the middle of the handshake may have no name (0.0.0.0)
            # when it is accepted; but then there is nobody who says anything.
            sock.settimeout(0.05)
            with contextlib.suppress(OSError):
                if address != "0.0.0.0" or sock.recv(1):
                    peers.add(address)
            guests.append(sock)
            if len(guests) > 64:
                guests.pop(0).close()

    for port in ports:
        threading.Thread(target=serve, args=(port,), daemon=True).start()


def _peers() -> set[str]:
    return peers


def _part() -> None:
    """Closes what :func:`_welcome` keeps open."""
    while guests:
        guests.pop().close()


def _echo_outside(port: int) -> None:
    """A datagram server; notes the senders' addresses and whether one sent IP options."""
    global senders
    senders = set()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, 6, 1)  # IP_RECVOPTS
    sock.bind(("0.0.0.0", port))

    def serve():
        while True:
            data, ancillary, _, (address, number) = sock.recvmsg(5000, 1000)
            senders.add((address, bool(ancillary)))
            with contextlib.suppress(OSError):
                sock.sendto(data[:100], (address, number))

    threading.Thread(target=serve, daemon=True).start()


def _senders() -> set[tuple[str, bool]]:
    return senders


def _used() -> tuple[int, int]:
    """All sockets of the network namespace, and the TCP sockets that are not closed."""
    with open("/proc/thread-self/net/sockstat") as file:
        lines = {name: words.split() for name, words in (line.split(":") for line in file)}
    return int(lines["sockets"][1]), int(lines["TCP"][1])


def _sockets() -> dict[str, list[str]]:
    """The sockets of the network namespace as the kernel lists them."""
    kinds = ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "icmp", "packet", "netlink", "unix")
    found = {}
    for kind in kinds:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/thread-self/net/{kind}") as file:
            found[kind] = file.read().splitlines()[1:]
    for name in ("sockstat", "sockstat6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/thread-self/net/{name}") as file:
            found[name] = file.read().splitlines()
    return {**found, "held": _held()}


def _held() -> list[str]:
    """Every socket that a process of this network namespace holds: one that is in no hash
    table is in no list of the kernel's."""
    here = os.readlink("/proc/thread-self/ns/net")
    found = []
    for process in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(f"{process}/ns/net") != here:
                continue
            for number in os.listdir(f"{process}/fd"):
                file = f"{process}/fd/{number}"
                if (target := os.readlink(file)).startswith("socket:"):
                    kind = os.getxattr(file, "system.sockprotoname").decode().strip("\0")
                    found.append(f"{file} {target} {kind}")
    return found


def kept(host) -> set[str]:
    """What the data path holds of listeners and ports."""

    def items(name):
        for key, value in pinned(host.instance, name).items():
            yield [item for (item,) in struct.iter_unpack("=I", key)], value

    def fields(kind, value):
        found = kind.from_buffer_copy(value)
        return {name: getattr(found, name) for name, _ in kind._fields_ if getattr(found, name)}

    held = {
        f"index {inner >> 16 & 0x7FF} port {inner & 0xFFFF} "
        f"loopback {inner >> 27} v6only {v6only}: {fields(private.slim_held, value)}"
        for (inner, v6only), value in items("slim_held")
    }
    shield = {
        f"listeners on the host's port {port}: {value!r}"
        for (port,), value in items("slim_shield")
        if any(value)
    }
    ports = {
        f"index {index} holds {count} ports of the host"
        for (index,), value in items("slim_local")
        if (count := private.slim_usage.from_buffer_copy(value).held)
    }
    return held | shield | ports


def records(host) -> int:
    """Of handshakes and of source-bound connections."""
    return count(host.instance, "slim_flow", "slim_bound")


# The test


def settle(read, wanted, seconds):
    """Wait until ``read()`` is what is wanted; its last value."""
    until = time.monotonic() + seconds
    while (value := read()) != wanted and time.monotonic() < until:
        time.sleep(0.1)
    return value


class Fuzzed:
    """Endpoints that run the program, and what they may and may not reach."""

    def __init__(self, lab, command):
        self.lab = lab
        self.command = command
        self.secret = secrets.token_hex(8)
        self.seeds = itertools.count(SEED)
        self.counts = []
        self.friends = [lab.endpoint(0), lab.endpoint(1)]
        self.foes = [lab.endpoint(0), lab.endpoint(1)]
        self.closed = [lab.endpoint(0), lab.endpoint(1)]
        for endpoint in self.closed:
            lab.isolate(endpoint, Direction.INGRESS)
        for endpoint in (*self.friends, *self.foes, *self.closed):
            endpoint.call(_welcome, [80, 81])
        self.services = [
            lab.service(80, [(endpoint, 80) for endpoint in some], address=f"10.77.255.{number}")
            for number, some in enumerate((self.friends, self.foes, self.closed), 1)
        ]
        lab.install()
        for host in lab.hosts[:2]:
            host.root.call(_guard, HOST_PORTS, self.secret.encode())
        lab.outside.root.call(_echo_outside, 53)
        self.names = set()
        self.programs = {}
        self.used = [host.root.call(_used) for host in lab.hosts[:2]]
        self.kept = [kept(host) for host in lab.hosts[:2]]

    def endpoint(self, where):
        """One more that is to run the program; the foes are forbidden before it does."""
        endpoint = self.lab.endpoint(where, install=False)
        for foe in self.foes:
            self.lab.rule(endpoint, Direction.EGRESS, peer=foe, allow=False, protocol=None)
        self.lab.install()
        self.names.add(endpoint.address)
        return endpoint

    def start(self, name, endpoint, seconds, others):
        """Run the program in there; ``others`` by name are those that it gives sockets to."""
        lab = self.lab
        argv = [
            *self.command,
            f"seed={next(self.seeds)}",
            f"seconds={seconds}",
            f"own={endpoint.address}",
            *(f"friend={one.address}" for one in self.friends),
            *(f"friend={address}" for address in self.names - {endpoint.address}),
            *(f"foe={one.address}" for one in (*self.foes, *self.closed)),
            *(f"host={host.address}" for host in lab.hosts),
            *(f"service={address}" for address in self.services),
            f"outside={lab.outside.address}",
            f"secret={self.secret}",
            f"unix={lab.directory}/{name}",
            *(f"give={lab.directory}/{other}" for other in others),
            f"uid={NOBODY}",
        ]
        self.programs[name] = endpoint, endpoint.spawn(argv)

    def check(self):
        """What holds at any time."""
        lab = self.lab
        for name, (_, program) in self.programs.items():
            assert program.running() or not program.wait(), f"{name}: {program.output()}"
        for host in lab.hosts[:2]:
            assert host.root.call(_strangers) == [], host.name
            assert lab.outside.root.call(_ask, host.address, HOST_PORTS, self.secret.encode()) == []
            assert host.root.call(_ask, "127.0.0.1", HOST_PORTS, self.secret.encode()) == []
            host.root.call(_start_service, FREE_PORT)
        for endpoint in (*self.foes, *self.closed):
            assert endpoint.call(_peers) == set(), endpoint.name
        for endpoint in self.friends:
            assert endpoint.call(_peers) <= self.names
        assert lab.outside.root.call(_senders) <= {(host.address, False) for host in lab.hosts[:2]}

    def end(self, name):
        """Wait for a program that is about to end."""
        _, program = self.programs.pop(name)
        status, output = program.wait(), program.output()
        assert status == 0, f"{name}: {output}"
        self.counts.append(json.loads(output.splitlines()[-1]))


def share_of(minute):
    """That many seconds of each minute that the test may take."""
    return max(4, minute * SECONDS // 60)


@pytest.mark.slow
def test_random_calls(lab, built, kernel_faults):
    with contextlib.ExitStack() as stack:
        for host in lab.hosts[:2]:
            for name, value in SYSCTLS.items():
                stack.enter_context(host.sysctl(name, value))
        fuzzed = Fuzzed(lab, built("fuzz"))
        clients = disturb(lab, fuzzed, share_of(40))
        print(json.dumps(fuzzed.counts))
        look_after(lab, fuzzed)
    for client in clients:
        for friend in fuzzed.friends:
            assert client.connect(friend.address, 80).getpeername() == (friend.address, 80)
    assert kernel_faults() == []


def disturb(lab, fuzzed, seconds):
    """Runs the programs for so long, and changes what is around them; those that stay."""
    first, other, third = fuzzed.endpoint(0), fuzzed.endpoint(0), fuzzed.endpoint(1)
    fuzzed.start("first", first, seconds, ["other"])
    fuzzed.start("other", other, seconds * 2, ["first"])
    fuzzed.start("third", third, seconds, [])
    begun = time.monotonic()
    renewals = [number * seconds / 4 for number in (3, 2, 1)]
    for turn in itertools.count():
        passed = time.monotonic() - begun
        if passed >= seconds:
            break
        friend = fuzzed.friends[1]
        for one in (first, third):
            lab.rule(one, Direction.EGRESS, peer=friend, port=81, allow=bool(turn % 2))
            lab.rule(one, Direction.INGRESS, peer=other, port=5000, allow=bool(turn % 3))
        lab.install()
        if renewals and passed >= renewals[-1]:
            renewals.pop()
            del fuzzed.programs["other"]
            lab.remove(other)
            other = fuzzed.endpoint(0)
            fuzzed.start("other", other, seconds * 2, ["first"])
        fuzzed.check()
        time.sleep(0.5)
    del fuzzed.programs["other"]
    lab.remove(other)
    fuzzed.end("first")
    fuzzed.end("third")
    fuzzed.check()
    return first, third


def look_after(lab, fuzzed):
    """Nothing is left of it."""
    for friend in fuzzed.friends:
        friend.call(_part)
    wait = 30 if SECONDS < 600 else 180
    for host, used, before in zip(lab.hosts, fuzzed.used, fuzzed.kept, strict=False):
        left = settle(lambda host=host: host.root.call(_used), used, wait)
        assert left == used, json.dumps(host.root.call(_sockets), indent=1)
        assert settle(lambda host=host: kept(host), before, 10) - before == set()
        if SECONDS >= 600:
            life = private.SLIM_HANDSHAKE_SECONDS + private.SLIM_LINGER_SECONDS
            assert settle(lambda host=host: records(host), 0, life) == 0


def test_the_program_itself(built, kernel_faults):
    """In plain containers, where nothing of ours is in the way, it ends in peace."""
    lab = Lab("plain")
    try:
        endpoint, friend = lab.endpoint(0), lab.endpoint(1)
        friend.call(_welcome, [80, 81])
        output = endpoint.run(
            [
                *built("fuzz"),
                f"seed={SEED}",
                f"seconds={share_of(4)}",
                f"own={endpoint.address}",
                f"friend={friend.address}",
                f"outside={lab.outside.address}",
                f"unix={lab.directory}/first",
                f"uid={NOBODY}",
            ],
            timeout=share_of(4) + 30,
        )
        assert json.loads(output)["total"] > 10_000
        assert kernel_faults() == []
    finally:
        lab.close()
