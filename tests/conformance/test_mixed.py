# SPDX-License-Identifier: Apache-2.0
"""Hosts of two backends that have a wire in common are one cluster: the clauses that need two
hosts, with one of each, either way round."""

import errno
import functools
import os
import signal
import time

import pytest
from attrs import evolve

from slimnet import wires
from slimnet.exceptions import BackendError
from slimnet.linux import sysctl
from slimnet.model import Host
from slimnet.place import Part
from slimnet.tables import HostRecord
from slimnet.testing._clauses import CLAUSES
from slimnet.testing._expectations import start
from slimnet.testing._stage import ALLOWED, CAST, Stage

pytestmark = pytest.mark.root

ACROSS = (
    "tables_decide",
    "what_happened_is_told",
    "live_connections_follow_the_tables",
    "services_are_dialled",
    "what_is_sent_is_on_account",
    "the_data_path_can_be_asked",
    "close_lets_go",
    "never_unpoliced",
)


@functools.cache
def capabilities(kind):
    """What a backend says of itself. It loads programs to say so, and every table asks."""
    return kind.probe().capabilities


class Mixed(Stage):
    """The first host's backend, and the others'; with the placement of those that have one."""

    def __init__(self, first, other, placement=None):
        super().__init__(first, {}, None)
        self._first, self._other, self._placement = first, other, placement

    def open(self, host, *arguments):
        self._backend = self._first if host == 0 else self._other
        return super().open(host, *arguments)

    def context(self, host, options=None, *arguments):
        kind = self._first if host == 0 else self._other
        if options is None and self._placement and kind.name == "ebpf":
            options = {"placement": self._placement}
        return super().context(host, options, *arguments)

    def tables(self, host, *arguments, **content):
        """As a compiler would that reads what each host says of itself."""
        made = super().tables(host, *arguments, **content)
        kinds = [self._first, self._other]
        hosts = [
            Host(f"h{number + 1}", self.address(number), capabilities(kind).wires)
            for number, kind in enumerate(kinds)
        ]
        wire = wires.choose(*hosts)
        apart = Part.NETNS in capabilities(kinds[1 - host]).needs
        return evolve(
            made,
            hosts={each.address: HostRecord(each.name, each.wires) for each in hosts},
            endpoints={
                number: record if record.local else evolve(record, wire=wire, packets=apart)
                for number, record in made.endpoints.items()
            },
        )


@pytest.mark.module
@pytest.mark.parametrize("clause", ACROSS)
@pytest.mark.parametrize("first", ["ebpf", "kmod"])
def test_one_cluster(first, clause):
    with mixed(first) as stage:
        CLAUSES[clause](stage)


def mixed(first):
    from slimnet_ebpf import EbpfBackend
    from slimnet_kmod import KmodBackend

    kinds = [EbpfBackend, KmodBackend]
    return Mixed(*(kinds if first == "ebpf" else reversed(kinds)))


@pytest.mark.module
@pytest.mark.parametrize("first", ["ebpf", "kmod"])
def test_an_alias_of_one_is_read_by_the_other(first):
    """The client's host has few source ports, and takes the next wire port when a quarter of them
    are used: the same ports again. The second connection with one has a name that no packet
    bears but its SYN's option."""
    with mixed(first) as stage:
        with stage.on(0):
            sysctl.write("net/ipv4/ip_local_port_range", "40000 40063")
        for host in (0, 1):
            stage.open(host)
        stage.attach("client", "server")
        stage.install(1)
        stage.serve("server", 8080)
        client = stage.resident("client")
        ports = set()
        for number in range(20):
            made = stage.reach("client", "server", 8080)
            assert made, made.text
            assert made.local == made.seen
            assert made.local[0] == str(CAST["client"].address)
            ports.add(made.local[1])
            client.hold(f"held{number}", str(CAST["server"].address), 8080)
        assert ports - {*range(40000, 40064)}


#: Connections are announced by an agent and a router: not while either is gone.
ANNOUNCED = [clause for clause in ACROSS if clause != "close_lets_go"]


def announcing(first, placement):
    from slimnet_ebpf import EbpfBackend
    from slimnet_preload import PreloadBackend

    kinds = [EbpfBackend, PreloadBackend]
    return Mixed(*(kinds if first == "ebpf" else reversed(kinds)), placement)


@pytest.mark.parametrize("clause", ANNOUNCED)
@pytest.mark.parametrize("first", ["ebpf", "preload"])
@pytest.mark.parametrize("placement", ["host", "netns"])
def test_one_cluster_with_announcements(placement, first, clause):
    with announcing(first, placement) as stage:
        CLAUSES[clause](stage)


def tended(backend):
    """A router that has just begun, and ended, is not begun again at once."""
    try:
        backend.tend()
    except BackendError:
        time.sleep(0.1)
        return False
    return True


@pytest.mark.parametrize("first", ["ebpf", "preload"])
@pytest.mark.parametrize("placement", ["host", "netns"])
def test_agent_and_router_may_go(placement, first):
    """Live connections go on. New ones are refused at once, and are made again when both are
    there, each with its identity."""
    with announcing(first, placement) as stage:
        ebpf, preload = (0, 1) if first == "ebpf" else (1, 0)
        start(stage, "client", "server")
        client = stage.resident("client")
        client.hold("live", str(CAST["server"].address), ALLOWED)
        os.kill(stage.backends[preload].status().detail["router"], signal.SIGKILL)
        stage.backends[ebpf].close()
        reached = stage.reach("client", "server", ALLOWED)
        at_once = errno.ECONNREFUSED if placement == "netns" else errno.EHOSTUNREACH
        assert reached.error == (at_once if first == "ebpf" else errno.ENETDOWN)
        assert client.talk("live")
        stage.open(ebpf)
        deadline = time.monotonic() + 20
        while not tended(stage.backends[preload]):
            assert time.monotonic() < deadline, "no router comes again"
        stage.attach("client", "server")
        stage.install(2)
        while stage.reach("client", "server", ALLOWED).error:
            assert time.monotonic() < deadline, "no connection comes about again"
        for _ in range(50):
            reached = stage.reach("client", "server", ALLOWED)
            assert (reached.error, reached.seen) == (0, reached.local)
        assert client.talk("live")
