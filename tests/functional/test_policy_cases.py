# SPDX-License-Identifier: Apache-2.0
"""The public suites' reachability cases with real TCP connections.

Every case of ``tests/policy/cases`` that asks about TCP, named after its original:
its endpoints run on two hosts, each namespace on both, so that each table is made of
connections within a host and between hosts, to the hosts where the case asks about
them, and to a machine outside. A step's state is compiled and installed in place, on
top of whatever the steps and cases before it left, as an agent does.
What UDP and SCTP reach is decided by the engine only (tests/policy/test_cases.py):
the data path does not carry them between endpoints.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from pathlib import Path

import pytest
from lab import Can, Compiled
from netaddr import IPAddress

from slimnet.model import Protocol
from slimnet.policy import Oracle

sys.path.insert(0, str(Path(__file__).parents[1] / "policy"))

from cases import CLUSTER, KUBERNETES
from decide import flow

SUITES = {"kubernetes": KUBERNETES, "cluster": CLUSTER}
CASES = [
    (suite, case) for suite, cases in SUITES.items() for case in cases if "tcp" in case.protocols
]


class Town:
    """A suite's world for real: whoever is in it listens and dials. Besides endpoints
    ("x/a") and hosts ("host/h1") there is a machine that is neither ("outside")."""

    def __init__(self, mode, cases):
        self.world = cases[0].world
        self.lab = Compiled(self.world.state(cases[0].steps[0]), mode)
        try:
            probes = [probe for case in cases for step in case.steps for probe in tcp(step)]
            hosts = [f"host/{host}" for host in self.world.hosts]
            for name in (*self.world.endpoints, *hosts, "outside"):
                ports = {
                    probe.port
                    for probe in probes
                    if name == "outside" or any(name == there for _, there in probe.table)
                }
                self.hands(name).call(_answer, name, ports)
        except BaseException:
            self.lab.close()
            raise

    def hands(self, name):
        """A process there."""
        if name == "outside":
            return self.lab.outside.root
        first, _, second = name.partition("/")
        return self.lab.host(second).root if first == "host" else self.lab.called(first, second)

    def address(self, name):
        """By which it is dialled."""
        if name == "outside":
            return self.lab.outside.address
        if name.startswith("host/"):
            return self.lab.host(name[5:]).address
        return self.world.address(name)

    def judge(self, probe):
        """For each pair whether the case allows it, and whether its source's policy does.
        The cases say nothing of the outside: there the oracle says both."""
        oracle = Oracle(self.lab.state)
        sources = {source for source, _ in probe.table}
        for source, destination in (*probe.table, *((source, "outside") for source in sources)):
            ends = (IPAddress(self.address(name)) for name in (source, destination))
            egress, _ = flow(self.world.network, *ends, Protocol.TCP, probe.port)
            leaves = oracle.judge(egress).allowed
            yield source, destination, probe.table.get((source, destination), leaves), leaves

    def wanted(self, probe):
        """For each pair what must come of a connection."""
        table = {}
        for source, destination, allowed, leaves in self.judge(probe):
            # Who is no endpoint sees none, but the host that it lives on.
            home = f"host/{self.world.host(source)}"
            if destination in self.world.endpoints:
                met = self.address(source)
            elif destination == home:
                met = self.lab.path.at_home or self.address(home)
            else:
                met = self.address(home)
            answer = f"{destination} meets {met}"
            refusal = "ECONNREFUSED" if leaves else errno.errorcode[self.lab.denied]
            table[source, destination] = answer if allowed else refusal
        return table

    def seen(self, probe):
        """For each pair what came of it, all sources dialling at once."""
        targets = {}
        for source, destination, *_ in self.judge(probe):
            targets.setdefault(source, {})[destination] = (self.address(destination), probe.port)
        # Before a second SYN, which TCP sends after 1 s; or a few of them.
        patience = 0.9 if self.lab.can(Can.DECIDES_AT_CONNECT) else 10
        asked = {
            source: self.hands(source).start(_dial, list(named.values()), patience)
            for source, named in targets.items()
        }
        return {
            (source, destination): result
            for source, future in asked.items()
            for destination, result in zip(targets[source], future.result(60), strict=True)
        }


def tcp(step):
    return [probe for probe in step.probes if probe.protocol == "tcp"]


def _answer(name, ports):
    """Listen on every port from now on, and tell each client who we are and whom we see."""
    listeners = [socket.create_server(("0.0.0.0", port)) for port in ports]

    def serve(listener):
        while True:
            with listener.accept()[0] as sock:
                sock.settimeout(10)
                try:
                    sock.recv(1)
                    sock.sendall(f"{name} meets {sock.getpeername()[0]}".encode())
                except OSError:
                    continue

    for listener in listeners:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()


def _dial(targets, patience):
    """For each address and port, all at once: what the server said, or what the refusal
    is called."""
    from concurrent.futures import ThreadPoolExecutor

    def dial(target):
        with socket.socket() as sock:
            sock.settimeout(patience)
            try:
                sock.connect(target)
                sock.settimeout(10)
                sock.sendall(b"?")
                return sock.recv(100).decode()
            except OSError as error:
                return errno.errorcode.get(error.errno, repr(error))

    with ThreadPoolExecutor(len(targets) or 1) as pool:
        return list(pool.map(dial, targets))


@pytest.fixture(scope="module")
def town(request, mode):
    made = Town(mode, [case for suite, case in CASES if suite == request.param])
    yield made
    made.lab.close()


@pytest.mark.parametrize(
    ("town", "case"),
    CASES,
    indirect=["town"],
    ids=[case.name for _, case in CASES],
    scope="module",
)
def test_reachability(town, case):
    """Each table whole: allowed means that bytes go both ways between the right two,
    denied that connect(2) says so, at once where it is what is decided."""
    for step in case.steps:
        town.lab.follow(case.world.state(step))
        for probe in tcp(step):
            assert town.seen(probe) == town.wanted(probe), (step.name, probe.title)


def test_no_case_is_left_out():
    """All 42 of Kubernetes' suite, and all 24 tests of ClusterNetworkPolicy, but those
    that never ask about TCP."""
    assert len([name for suite, name in CASES if suite == "kubernetes"]) == 42
    others = {
        case.name for cases in SUITES.values() for case in cases if "tcp" not in case.protocols
    }
    assert {name for name in others if name.startswith("CNP")} == {
        *(
            f"CNP{tier}Tier{direction}{protocol}"
            for tier in ("Admin", "Baseline")
            for direction in ("Egress", "Ingress")
            for protocol in ("UDP", "SCTP")
        ),
        "CNPAdminTierIngressNamedPort",
        "CNPBaselineTierEgressNamedPort",
    }
    assert all(name.startswith(("CNP", "UDP: ", "SCTP: ")) for name in others)
