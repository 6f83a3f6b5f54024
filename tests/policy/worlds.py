# SPDX-License-Identifier: Apache-2.0
"""Generated worlds: networks, hosts, endpoints, policies of both kinds, and flows.

Few labels, few names and ranges that touch each other, so that rules meet.
"""

from __future__ import annotations

import random

from attrs import evolve, frozen
from hypothesis import strategies as st
from netaddr import IPAddress

from slimnet.model import Direction, Endpoint, Flow, Host, Namespace, Network, Protocol
from slimnet.policy import Selector, State, parse
from slimnet.policy.document import EgressLimit, PublishedPort, Service, ServicePort, Weight
from slimnet.policy.selector import Operator, Requirement

KEYS = ("app", "tier", "kubernetes.io/metadata.name")
VALUES = ("a", "b", "")
NAMESPACES = ("x", "y")
HOSTS = (
    Host("h1", "192.0.2.1", labels={"rack": "a"}),
    Host("h2", "192.0.2.2", labels={"rack": "b"}),
    Host("h3", "192.0.2.9"),
)
#: They say that they are more: of one another, of the overlay and of the world too.
CLAIMING = tuple(
    evolve(host, ranges=ranges)
    for host, ranges in zip(
        HOSTS,
        (
            ("198.51.100.0/24", "192.0.2.2/32", "0.0.0.0/0"),
            ("198.51.100.0/25", "8.8.8.8/32", "10.1.0.0/29"),
            ("10.0.0.0/8", "192.0.2.0/24", "198.51.0.0/16"),
        ),
        strict=True,
    )
)
NETWORKS = (
    Network("n1", 1, ["10.1.0.0/16"]),
    # The same addresses mean others here.
    Network("n2", 2, ["10.1.0.0/24", "10.9.0.0/24"]),
)
ADDRESSES = tuple(f"10.1.0.{last}" for last in range(1, 9))
OUTSIDE = (
    *("8.8.8.8", "9.9.9.9", "1.1.1.1", "10.2.0.1", "10.9.0.9", "2001:db8::1"),
    *("192.0.2.1", "192.0.2.2", "192.0.2.9", "192.0.2.77"),
    *("198.51.100.7", "198.51.100.207", "198.51.7.7"),
)
CIDRS = (
    "0.0.0.0/0",
    "::/0",
    "8.0.0.0/7",
    "8.8.8.8/32",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.0/29",
    "10.1.0.4/30",
    "10.1.0.3/32",
    "192.0.2.0/24",
    "192.0.2.2/32",
    "198.51.100.7/32",
    "198.51.100.128/25",
)
# A service may want an endpoint's address, or one outside of its network, and not get it.
VIRTUAL = ("10.1.0.100", "10.1.0.100", "10.1.0.101", ADDRESSES[0], "10.7.0.1")
PORTS = (1, 53, 79, 80, 81, 1024, 8080, 32767, 65535)
PORT_NAMES = ("http", "dns")
PROTOCOLS = ("TCP", "UDP", "SCTP")


@frozen
class World:
    """A state and a seed from which its flows are taken.

    Attributes:
        state: what it is made of.
        seed: for :meth:`flows`.
    """

    state: State
    seed: int

    def flows(self, count: int) -> list[Flow]:
        """Flows between addresses that somebody has, on ports at which something changes."""
        chance = random.Random(self.seed)
        outside = [IPAddress(text) for text in (*OUTSIDE, ADDRESSES[-1])]
        owned = [(item.network, item.address) for item in self.state.endpoints]
        served = [
            (service.network, service.address, port.protocol, port.port)
            for service in self.state.services
            if service.address is not None
            for port in service.ports
        ]
        flows = []
        for _ in range(count):
            network, here = chance.choice(owned)
            others = [address for name, address in owned if name == network and address != here]
            virtual = [IPAddress(text) for text in VIRTUAL] if self.state.services else outside
            pools = (others or outside, outside, virtual, [here])
            pool = chance.choices(pools, (12, 6, 6, 1))[0]
            there = chance.choice(pool)
            direction = chance.choice(tuple(Direction))
            source, destination = (here, there) if direction is Direction.EGRESS else (there, here)
            protocol = chance.choices(tuple(Protocol), (1, 8, 4, 2))[0]
            port = chance.choices((chance.choice(PORTS), 80), (2, 1))[0]
            here_served = [each for each in served if each[0] == network]
            if pool is virtual and here_served and chance.randrange(4):
                # By chance alone hardly one flow would be to a port that a service has.
                direction, source = Direction.EGRESS, here
                _, destination, protocol, port = chance.choice(here_served)
            flows.append(Flow(network, source, destination, protocol, port, direction))
        return flows


def _maybe(draw, strategy, often=2):
    """A value of the strategy, or None once in ``often``."""
    return draw(strategy) if draw(st.integers(0, often - 1)) else None


_labels = st.dictionaries(st.sampled_from(KEYS[:2]), st.sampled_from(VALUES), max_size=2)


@st.composite
def _selectors(draw, keys=KEYS, values=(*VALUES, *NAMESPACES)):
    selector = {}
    kind = draw(st.integers(0, 7))
    if kind in (1, 2, 3):
        selector["matchLabels"] = {draw(st.sampled_from(keys)): draw(st.sampled_from(values))}
    if kind in (3, 4, 5):
        operator = draw(st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist")))
        expression = {"key": draw(st.sampled_from(keys)), "operator": operator}
        if operator in ("In", "NotIn"):
            expression["values"] = draw(
                st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)
            )
        selector["matchExpressions"] = [expression]
    return selector


_pods = _selectors(KEYS[:2], VALUES)
_spaces = _selectors((KEYS[0], KEYS[2]), ("a", "b", *NAMESPACES))
_nodes = st.sampled_from(
    ({}, {"matchLabels": {"rack": "a"}}, {"matchLabels": {"kubernetes.io/hostname": "h3"}})
)


@st.composite
def _blocks(draw):
    cidr = draw(st.sampled_from(CIDRS))
    holes = [hole for hole in CIDRS if hole != cidr and _inside(hole, cidr)]
    block = {"cidr": cidr}
    if holes and draw(st.booleans()):
        block["except"] = draw(st.lists(st.sampled_from(holes), max_size=2))
    return block


def _inside(hole, cidr):
    from netaddr import IPNetwork

    return IPNetwork(hole) in IPNetwork(cidr)


@st.composite
def _namespaced_peers(draw):
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return {"ipBlock": draw(_blocks())}
    peer = {}
    if kind in (1, 3):
        peer["podSelector"] = draw(_pods)
    if kind in (2, 3):
        peer["namespaceSelector"] = draw(_spaces)
    return peer


@st.composite
def _namespaced_ports(draw):
    kind = draw(st.integers(0, 4))
    port = {}
    if draw(st.booleans()):
        port["protocol"] = draw(st.sampled_from(PROTOCOLS))
    if kind == 1:
        port["port"] = draw(st.sampled_from(PORT_NAMES))
    elif kind:
        port["port"] = draw(st.sampled_from(PORTS))
    if kind == 3:
        port["endPort"] = draw(st.sampled_from([p for p in PORTS if p >= port["port"]]))
    return port


@st.composite
def _namespaced(draw, number):
    spec = {"podSelector": draw(_pods)}
    types = _maybe(draw, st.sampled_from((["Ingress"], ["Egress"], ["Ingress", "Egress"], [])), 4)
    if types is not None:
        spec["policyTypes"] = types
    for direction, whom in (("ingress", "from"), ("egress", "to")):
        if not draw(st.integers(0, 2)):
            continue
        rules = spec[direction] = []
        for _ in range(draw(st.integers(0, 2))):
            rule = {}
            if draw(st.integers(0, 4)):
                rule[whom] = draw(st.lists(_namespaced_peers(), max_size=3))
            if draw(st.booleans()):
                rule["ports"] = draw(st.lists(_namespaced_ports(), max_size=4))
            rules.append(rule)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"p{number}",
            "namespace": draw(st.sampled_from(NAMESPACES)),
            "annotations": {"slimnet.io/network": draw(st.sampled_from(("n1", "n1", "n1", "n2")))},
        },
        "spec": spec,
    }


@st.composite
def _cluster_endpoints(draw):
    if draw(st.booleans()):
        return {"namespaces": draw(_spaces)}
    return {"pods": {"namespaceSelector": draw(_spaces), "podSelector": draw(_pods)}}


@st.composite
def _cluster_ports(draw, *, named):
    kind = draw(st.integers(0 if named else 1, 2))
    if kind == 0:
        return {"destinationNamedPort": draw(st.sampled_from(PORT_NAMES))}
    first = draw(st.sampled_from(PORTS[:-1]))
    port = {"number": first}
    if kind == 2:
        end = draw(st.sampled_from([p for p in PORTS if p > first]))
        port = {"range": {"start": first, "end": end}}
    return {draw(st.sampled_from(PROTOCOLS)).lower(): {"destinationPort": port}}


@st.composite
def _cluster(draw, number):
    spec = {
        "tier": draw(st.sampled_from(("Admin", "Baseline"))),
        "priority": draw(st.integers(0, 3)),
        "subject": draw(_cluster_endpoints()),
    }
    for direction, whom in (("ingress", "from"), ("egress", "to")):
        rules = []
        for _ in range(draw(st.integers(0, 4))):
            outside = direction == "egress" and draw(st.integers(0, 2)) == 0
            if outside and draw(st.booleans()):
                peer = {"nodes": draw(_nodes)}
            elif outside:
                cidrs = st.lists(st.sampled_from(CIDRS), min_size=1, max_size=3, unique=True)
                peer = {"networks": draw(cidrs)}
            else:
                peer = draw(_cluster_endpoints())
            rule = {"action": draw(st.sampled_from(("Accept", "Deny", "Pass"))), whom: [peer]}
            if draw(st.booleans()):
                rule["protocols"] = draw(
                    st.lists(_cluster_ports(named=not outside), min_size=1, max_size=2)
                )
            rules.append(rule)
        if rules:
            spec[direction] = rules
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": f"c{number}"},
        "spec": spec,
    }


@st.composite
def _policies(draw, number):
    kind = _namespaced if draw(st.integers(0, 2)) else _cluster
    return parse([{"manifest": draw(kind(number))}])[0]


_declared = st.dictionaries(
    st.sampled_from(PORT_NAMES),
    st.tuples(st.sampled_from(("tcp", "udp")), st.sampled_from((53, 80, 8080))),
    max_size=2,
)


class Identities:
    """Numbers for label sets, as the store gives them."""

    def __init__(self) -> None:
        self._numbers = {}

    def of(self, network, namespace, labels):
        key = (network, namespace, tuple(sorted(labels.items())))
        return self._numbers.setdefault(key, 256 + len(self._numbers))


@st.composite
def _endpoints(draw, identities, taken):
    """Endpoints at the addresses that are not taken, under new ids."""
    network = draw(st.sampled_from(("n1", "n1", "n1", "n2")))
    free = [text for text in ADDRESSES if (network, text) not in taken]
    if not free:
        network = "n1" if network == "n2" else "n2"
        free = [text for text in ADDRESSES if (network, text) not in taken]
    address = draw(st.sampled_from(free))
    identifier = len(taken) + 1
    taken[network, address] = identifier
    namespace, labels = draw(st.sampled_from(NAMESPACES)), draw(_labels)
    return Endpoint(
        network,
        f"e{identifier}",
        address,
        draw(st.sampled_from(("h1", "h2"))),
        namespace=namespace,
        id=identifier,
        labels=labels,
        ports=draw(_declared) if draw(st.booleans()) else {},
        identity=identities.of(network, namespace, labels),
    )


@st.composite
def _namespaces(draw):
    return tuple(
        Namespace(network.name, name, draw(_labels))
        for network in NETWORKS
        for name in NAMESPACES
        if draw(st.booleans())
    )


@st.composite
def _subjects(draw):
    """Selectors as values: everything, or by one label."""
    if not draw(st.integers(0, 2)):
        return Selector()
    key, value = draw(st.sampled_from(KEYS[:2])), draw(st.sampled_from((*VALUES, "nobody")))
    return Selector((Requirement(key, Operator.IN, frozenset({value})),))


_ports = st.builds(
    ServicePort,
    st.sampled_from((Protocol.TCP, Protocol.TCP, Protocol.UDP)),
    st.sampled_from((80, 8080)),
    st.sampled_from((*PORT_NAMES, 80, 8080)),
)
_weights = st.builds(Weight, _subjects(), st.sampled_from((0, 1, 3, 100)))
_services = st.builds(
    Service,
    name=st.just(""),
    network=st.sampled_from(("n1", "n1", "n1", "n2", "n3")),
    namespace=st.sampled_from(NAMESPACES),
    address=st.sampled_from((*VIRTUAL, None)).map(lambda text: text and IPAddress(text)),
    selector=_subjects(),
    ports=st.lists(_ports, min_size=1, max_size=3).map(tuple),
    affinity=st.sampled_from((0, 0, 30, 10800)),
    weights=st.lists(_weights, max_size=2).map(tuple),
)
_published = st.builds(
    PublishedPort,
    name=st.just(""),
    network=st.sampled_from(("n1", "n1", "n2")),
    namespace=st.sampled_from(NAMESPACES),
    endpoint=st.integers(1, 8).map(lambda number: f"e{number}"),
    address=st.sampled_from((None, IPAddress("192.0.2.1"), IPAddress("192.0.2.2"))),
    protocol=st.just(Protocol.TCP),
    port=st.sampled_from((80, 8080)),
    target=st.sampled_from((*PORT_NAMES, 80, 8080)),
)
_limits = st.builds(
    EgressLimit,
    name=st.just(""),
    network=st.sampled_from(("n1", "n1", "n2")),
    namespace=st.sampled_from(NAMESPACES),
    subject=_subjects(),
    rate=st.sampled_from((0, 1000, 2000)),
    connection_rate=st.sampled_from((0, 100, 200)),
)


def named(draw, strategy, number):
    """A document of a kind, under a name of its own."""
    return evolve(draw(strategy), name=f"d{number}")


def many(draw, strategy, most):
    """Up to so many documents of a kind."""
    return [named(draw, strategy, number) for number in range(draw(st.integers(0, most)))]


@st.composite
def worlds(draw):
    """A whole state with up to eight endpoints, nine policies and four services."""
    identities, taken = Identities(), {}
    endpoints = [draw(_endpoints(identities, taken)) for _ in range(draw(st.integers(4, 8)))]
    policies = [draw(_policies(number)) for number in range(draw(st.integers(1, 9)))]
    services = many(draw, _services, 4)
    hosts = draw(st.sampled_from((HOSTS, CLAIMING)))
    state = State(NETWORKS, hosts, draw(_namespaces()), endpoints, policies, 1, services)
    return World(state, draw(st.integers(0, 2**32)))
