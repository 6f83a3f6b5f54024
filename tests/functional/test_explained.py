# SPDX-License-Identifier: Apache-2.0
"""What explain says of a flow is what comes of it on a real socket.

Generated policies on a small cluster; under each, flows of every form of
destination, TCP and UDP. Compared are the errno of the call and the refusal
that is told: by which host, of which endpoint, for which reason.

``SLIMNET_POLICY_SETS=1000`` makes a longer run, from ``SLIMNET_SEED`` on.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from collections import Counter
from functools import cache

import pytest
from attrs import evolve, frozen
from lab import Compiled
from lab.agents import until
from netaddr import IPAddress

from slimnet.model import Direction, Endpoint, Host, Network, Protocol, Reason
from slimnet.policy import Operator, Requirement, Selector, State, explain, parse
from slimnet.policy import compile as compile_tables
from slimnet.policy.document import Service, ServicePort

SETS = int(os.environ.get("SLIMNET_POLICY_SETS", "110"))
SEED = int(os.environ.get("SLIMNET_SEED", "1"))
FLOWS_OF_A_SET = 24

NETWORK = Network("lab", 77, ["10.77.0.0/16"])
HOSTS = (Host("h1", "192.0.2.1"), Host("h2", "192.0.2.2"), Host("h3", "192.0.2.3"))
#: Name, host, labels. h3 speaks the wire in a version that the others do not.
CAST = (
    ("a", "h1", {"app": "web", "tier": "front"}),
    ("b", "h1", {"app": "db"}),
    ("c", "h1", {"tier": "front"}),
    ("d", "h2", {"app": "web"}),
    ("e", "h2", {"app": "db", "tier": "back"}),
    ("f", "h3", {"app": "db"}),
)
ENDPOINTS = tuple(
    Endpoint(
        NETWORK.name,
        name,
        f"10.77.0.{number}",
        host,
        id=number,
        labels=labels,
        identity=255 + number,
    )
    for number, (name, host, labels) in enumerate(CAST, 1)
)
#: Service to the endpoint behind it.
SERVICES = {"10.77.255.1": "b", "10.77.255.2": "d", "10.77.255.3": "f", "10.77.255.4": "nobody"}
OPEN, SHUT = (80, 81), 7


def services():
    for number, (address, name) in enumerate(SERVICES.items()):
        yield Service(
            name=f"s{number}",
            network=NETWORK.name,
            namespace="default",
            address=IPAddress(address),
            selector=Selector((Requirement("name", Operator.IN, frozenset({name})),)),
            ports=(ServicePort(Protocol.TCP, 80, 81), ServicePort(Protocol.UDP, 80, 81)),
        )


@frozen
class Call:
    """One call of an endpoint.

    Attributes:
        source: its name.
        kind: of the socket.
        family: of the socket.
        sends: sendto(2), not connect(2).
        target: address and port as the socket is told.
    """

    source: str
    kind: int
    family: int
    sends: bool
    target: tuple[str, int]

    def question(self):
        return {
            "network": NETWORK.name,
            "source": self.source,
            "destination": self.target[0],
            "port": self.target[1],
            "protocol": "tcp" if self.kind == socket.SOCK_STREAM else "udp",
        }


class Town:
    """The cluster, everybody listening."""

    def __init__(self):
        state = State([NETWORK], HOSTS, [], list(map(named, ENDPOINTS)), [], 1, list(services()))
        self.lab = Compiled(state, later=("h3",))
        try:
            self.hosts = {host.name: self.lab.host(host.name) for host in HOSTS}
            self.cast = {item.name: self.lab.called("default", item.name) for item in ENDPOINTS}
            everybody = [*self.cast.values(), self.lab.outside.root]
            for hands in (*everybody, *(host.root for host in self.hosts.values())):
                for port in OPEN:
                    hands.serve(port, family=socket.AF_INET6)
        except BaseException:
            self.lab.close()
            raise

    def ask(self, host, flow):
        return self.hosts[host].backend.ask(flow, NETWORK)

    def calls(self, chance):
        """A set's calls: of each form of destination some."""
        for _ in range(FLOWS_OF_A_SET):
            source = chance.choice(list(self.cast))
            stream = chance.random() < 0.7
            address = chance.choice(chance.choice(self.forms(stream)))
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if family == socket.AF_INET and chance.random() < 0.25:
                address, family = f"::ffff:{address}", socket.AF_INET6
            port = chance.choice((*OPEN, *OPEN, SHUT))
            if address.removeprefix("::ffff:") in self.underlay and chance.random() < 0.3:
                port = chance.choice((4790, 4853))
            kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
            yield Call(source, kind, family, not stream and chance.random() < 0.5, (address, port))

    @property
    def underlay(self):
        return [str(host.address) for host in self.hosts.values()]

    def forms(self, stream):
        overlay = [str(item.address) for item in ENDPOINTS]
        return (
            *([overlay] * 6),
            *([list(SERVICES)] * 2),
            self.underlay,
            self.underlay,
            [str(self.lab.outside.address)],
            ["10.77.9.9"],  # nobody
            ["240.0.0.80", "248.1.0.80", "fd73:6c69:6d6e:6574::50"],  # inner addresses
            ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::"],
            ["2001:db8::1", "fe80::1"],
            *([] if stream else [["239.1.2.3", "255.255.255.255"]]),
        )

    def policies(self, chance):
        """Up to four, of both kinds."""
        blocks = ["0.0.0.0/0", "10.77.0.0/30", f"{self.lab.outside.address}/32", "10.77.9.9/32"]
        blocks += [f"{address}/32" for address in self.underlay]
        for number in range(chance.randint(1, 4)):
            make = _namespaced if chance.random() < 0.7 else _cluster
            yield parse([{"manifest": make(chance, f"p{number}", blocks)}])[0]


def named(endpoint):
    return evolve(endpoint, labels={**endpoint.labels, "name": endpoint.name})


def _selector(chance):
    labels = {"app": ("web", "db"), "tier": ("front", "back"), "name": "abcdef"}
    if not chance.randrange(4):
        return {}
    key = chance.choice(list(labels))
    return {"matchLabels": {key: chance.choice(labels[key])}}


def _namespaced(chance, name, blocks):
    spec = {"podSelector": _selector(chance), "policyTypes": []}
    for kind, direction, whom in (("Ingress", "ingress", "from"), ("Egress", "egress", "to")):
        if chance.random() < 0.4:
            continue
        spec["policyTypes"].append(kind)
        rules = spec[direction] = []
        for _ in range(chance.randint(0, 2)):
            block = {"ipBlock": {"cidr": chance.choice(blocks)}}
            peers = [chance.choice((block, {"podSelector": _selector(chance)})) for _ in "12"]
            rule = {whom: peers} if chance.randrange(4) else {}
            if chance.randrange(2):
                rule["ports"] = [{"port": chance.choice((*OPEN, SHUT))}, {"protocol": "UDP"}]
            rules.append(rule)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": {"slimnet.io/network": NETWORK.name},
        },
        "spec": spec,
    }


def _cluster(chance, name, blocks):
    def pods():
        return {"pods": {"namespaceSelector": {}, "podSelector": _selector(chance)}}

    spec = {
        "tier": chance.choice(("Admin", "Baseline")),
        "priority": chance.randrange(4),
        "subject": pods(),
    }
    for direction, whom in (("ingress", "from"), ("egress", "to")):
        peers = [pods() for _ in range(chance.randint(1, 2))]
        if direction == "egress":
            peers += [{"nodes": {}}, {"networks": [chance.choice(blocks)]}]
        spec[direction] = [
            {"action": chance.choice(("Accept", "Deny", "Pass")), whom: [peer]} for peer in peers
        ]
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def _do(calls):
    """The errno of each, 0 where it has none; below 0 that of what is sent behind a connect."""
    results = []
    for family, kind, sends, target, hears in calls:
        connected = 1
        with socket.socket(family, kind) as sock:
            sock.settimeout(0.9)
            if kind == socket.SOCK_DGRAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                if sends:
                    sock.sendto(b"?", target)
                else:
                    sock.connect(target)
                    connected = -1
                    if hears:
                        sock.send(b"?")
                        sock.recv(1)
            except OSError as error:
                results.append(connected * (error.errno or 110))
            else:
                results.append(0)
    return results


#: A datagram socket's connect is refused for these; for all else it is what is sent.
AT_CONNECT = {Reason.NO_TABLES, Reason.INNER_ADDRESS, Reason.FAMILY}


def expected(town, call, said):
    """The errno as :func:`_do` has it, and the refusal as (host, endpoint, reason) if one
    is told."""
    error, refusal = _expected(town, call, said)
    if refusal and call.kind == socket.SOCK_DGRAM and not call.sends:
        if refusal[2] in AT_CONNECT:
            return error, refusal
        # The kernel asks nobody, and tells the socket what became of the datagram.
        if not call.target[0].startswith("::ffff:"):
            error = errno.ECONNREFUSED
        return -error, refusal
    return error, refusal


def _expected(town, call, said):
    source = town.cast[call.source]
    egress, *rest = said.stages
    own = (source.host.name, source.record.id)
    if said.refusal is not None:
        return egress.way.error, (*own, said.refusal)
    if not egress.allowed:
        return egress.way.error, (*own, egress.reason)
    for stage in rest:
        if not stage.allowed:
            other = town.cast[stage.endpoint.rpartition("/")[2]]
            return errno.ECONNREFUSED, (other.host.name, other.record.id, stage.reason)
    if call.kind == socket.SOCK_DGRAM:
        return 0, None
    (address, port) = call.target
    if address in SERVICES or address.removeprefix("::ffff:") in SERVICES:
        port = 81
    if port in OPEN:
        return 0, None
    if not rest:  # outside: whoever is there says it
        return errno.ECONNREFUSED, None
    other = town.cast[rest[0].endpoint.rpartition("/")[2]]
    where = own if other.host is source.host else (other.host.name, other.record.id)
    return errno.ECONNREFUSED, (*where, Reason.SYN_NO_LISTENER)


@pytest.fixture(scope="module")
def town():
    made = Town()
    yield made
    made.lab.close()


def test_what_explain_says_is_what_comes_of_it(town):
    """At least 2,000 calls under at least 100 sets of policies, of each kind some."""
    chance = random.Random(SEED)
    seen = Counter()
    for number in range(SETS):
        policies = list(town.policies(chance))
        # What is still closing the new policies may revoke, and tell of it.
        until(lambda: not any(host.backend.connections() for host in town.hosts.values()))
        town.lab.follow(evolve(town.lab.state, policies=policies))
        state = town.lab.state
        tables = cache(lambda host, state=state: compile_tables(state, host))
        calls = list(town.calls(chance))
        wanted = []
        for call in calls:
            said = explain(state, **call.question(), tables=tables, ask=town.ask)
            assert "DOUBT" not in said.summary, (number, call, said.summary)
            wanted.append((*expected(town, call, said), said))
        started = {}
        for name, endpoint in town.cast.items():
            own = [call for call in calls if call.source == name]
            forms = [
                (call.family, call.kind, call.sends, call.target, error < 0)
                for call, (error, *_) in zip(calls, wanted, strict=True)
                if call.source == name
            ]
            started[name] = own, endpoint.start(_do, forms)
        got = {}
        for own, future in started.values():
            got.update(zip(map(id, own), future.result(30), strict=True))
        for call, (error, _, said) in zip(calls, wanted, strict=True):
            words = [
                (each < 0, errno.errorcode.get(abs(each), "done"))
                for each in (got[id(call)], error)
            ]
            assert words[0] == words[1], (number, call, said.summary)
            seen[error] += 1
        told = Counter(refusal for _, refusal, _ in wanted if refusal)
        for host in town.hosts.values():
            own = {each: count for each, count in told.items() if each[0] == host.name}
            events = host.events(sum(own.values()), 3)
            found = Counter((host.name, each.endpoint, each.reason) for each in events)
            assert found == own, (
                number,
                [(call, want[1]) for call, want in zip(calls, wanted, strict=True)],
            )
        seen.update(reason for *_, reason in told.elements())
        seen.update(each.direction for _, _, said in wanted for each in said.stages)
    assert not [event for host in town.hosts.values() for event in host.events(1, 0.2)]
    assert SETS >= 100
    assert SETS * FLOWS_OF_A_SET >= 2000
    few = {reason.name: seen[reason] for reason in REASONS if seen[reason] < 10}
    assert not few, few
    assert seen[0] > 300
    assert seen[Direction.INGRESS] > 500


REASONS = [
    Reason[name]
    for name in (
        *("RULE_DENY", "DEFAULT_DENY", "HOST_DENY", "NO_ENDPOINT", "UNREACHABLE", "FAMILY"),
        *("INNER_ADDRESS", "WIRE_PORT", "DATAGRAM", "SYN_NO_LISTENER"),
        *("NO_BACKEND", "NO_SERVICE_PORT"),
    )
]
