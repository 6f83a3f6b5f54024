# SPDX-License-Identifier: Apache-2.0
"""The backend without a kernel follows services and answers questions."""

import pytest
from netaddr import IPAddress

from slimnet.abc import Context
from slimnet.model import Direction, Endpoint, Feature, Flow, Host, Network, Protocol
from slimnet.policy import Selector, State, load
from slimnet.policy import compile as compile_tables
from slimnet.policy.document import Service, ServicePort
from slimnet.testing import MemoryBackend

NETWORK = Network("default", 7, "10.1.0.0/16")
HOSTS = (Host("h1", "192.0.2.1"), Host("h2", "192.0.2.2"))
CLIENT, ONE, TWO = ENDPOINTS = [
    Endpoint(
        "default",
        name,
        f"10.1.0.{number}",
        host,
        namespace=namespace,
        id=number,
        labels={"app": name},
        identity=300 + number,
    )
    for number, (name, namespace, host) in enumerate(
        (("client", "x", "h1"), ("one", "shop", "h1"), ("two", "shop", "h2")), 1
    )
]
SERVICE = IPAddress("10.1.0.100")
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: two, namespace: shop}
spec: {podSelector: {matchLabels: {app: two}}, ingress: [{ports: [{port: 8080}]}]}
"""


def tables(host, *, affinity=0):
    service = Service(
        name="web",
        network="default",
        namespace="shop",
        address=SERVICE,
        selector=Selector(),
        ports=(ServicePort(Protocol.TCP, 80, 8080), ServicePort(Protocol.TCP, 81, "none")),
        affinity=affinity,
    )
    state = State([NETWORK], HOSTS, [], ENDPOINTS, load(POLICY), 3, [service])
    return compile_tables(state, host)


@pytest.fixture
def backends(tmp_path):
    made = {}
    for host in HOSTS:
        context = Context(
            f"{tmp_path}-{host.name}", host, "eth0", tmp_path / host.name, tmp_path, bytes(16)
        )
        made[host.name] = MemoryBackend(context)
        for endpoint in ENDPOINTS:
            if endpoint.host == host.name:
                made[host.name].attach(endpoint, NETWORK)
    yield made
    for backend in made.values():
        backend.teardown()


def dial(address, port, direction=Direction.EGRESS):
    return Flow("default", CLIENT.address, address, Protocol.TCP, port, direction)


def test_nothing_to_ask_before_the_first_tables(backends):
    backend = backends["h1"]
    assert backend.capabilities.features == {Feature.SERVICES}
    assert backend.ask(dial(ONE.address, 80), NETWORK) is None
    assert backend.decide(dial(ONE.address, 80)).reason.name == "NO_TABLES"


def test_ask(backends):
    """Who serves, where that is, and what policy says of it; nothing is counted."""
    backend, found = backends["h1"], tables("h1")
    backend.install(found)
    (record,) = (item for key, item in found.services.items() if key.port == 80)
    seen = set()
    for _ in range(64):
        decision = backend.ask(dial(SERVICE, 80), NETWORK)
        assert decision.verdict.allowed
        assert (decision.generation, decision.service) == (3, record.id)
        endpoint = ENDPOINTS[decision.endpoint - 1]
        assert decision.target == (endpoint.address, 8080)
        assert str(decision.host) == {"h1": "192.0.2.1", "h2": "192.0.2.2"}[endpoint.host]
        seen.add(endpoint.name)
    assert seen == {"one", "two"}
    nobody = backend.ask(dial(SERVICE, 81), NETWORK)
    assert (nobody.verdict.reason.name, nobody.endpoint) == ("NO_BACKEND", 0)
    assert nobody.service not in {0, record.id}
    unknown = backend.ask(dial(SERVICE, 82), NETWORK)
    assert (unknown.verdict.reason.name, unknown.service) == ("NO_SERVICE_PORT", 0)
    outside = backend.ask(dial(IPAddress("8.8.8.8"), 53), NETWORK)
    assert (outside.verdict.allowed, outside.endpoint, outside.host) == (True, 0, None)
    ingress = backend.ask(dial(ONE.address, 8080, Direction.INGRESS), NETWORK)
    assert (ingress.endpoint, ingress.target) == (CLIENT.id, (ONE.address, 8080))
    assert not backend.status().counters


def test_decide_follows_services(backends):
    """Who is served stays with its endpoint, and being asked about changes nothing."""
    backend = backends["h1"]
    backend.install(tables("h1", affinity=60))
    asked = {backend.ask(dial(SERVICE, 80), NETWORK).endpoint for _ in range(8)}
    assert len(asked) == 1
    assert backend.decide(dial(SERVICE, 80)).allowed
    assert {backend.ask(dial(SERVICE, 80), NETWORK).endpoint for _ in range(8)} == asked
    assert backend.decide(dial(SERVICE, 82)).reason.name == "NO_SERVICE_PORT"
    (event,) = backend.events(1)
    assert event.destination == (SERVICE, 82)


def test_reach_asks_the_endpoint_that_serves(backends):
    """At its own port: dialled 80, served on 8080, which is what its policy allows."""
    for name, backend in backends.items():
        backend.install(tables(name))
    assert all(MemoryBackend.reach(backends, CLIENT, SERVICE, 80) for _ in range(16))
    assert not MemoryBackend.reach(backends, CLIENT, TWO.address, 80)
    assert not MemoryBackend.reach(backends, CLIENT, SERVICE, 81)
