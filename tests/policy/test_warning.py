# SPDX-License-Identifier: Apache-2.0
"""``check``: what was surely not meant is said, and nothing else is."""

import pytest
import test_services
from attrs import evolve
from netaddr import IPAddress
from test_services import endpoint, limit, of, published, service

from slimnet.model import Endpoint, Feature, Host, Network, Protocol
from slimnet.policy import Selector, Source, State, check, load, uncarried
from slimnet.policy.document import ServicePort, Weight


def state(text):
    return State(
        [Network("default", 1, "10.1.0.0/16")],
        [Host("h1", "192.0.2.1")],
        [],
        [
            Endpoint(
                "default",
                name,
                f"10.1.0.{number}",
                "h1",
                id=number,
                labels={"app": name},
                identity=255 + number,
                ports={"http": ("tcp", 80)} if name == "web" else {},
            )
            for number, name in enumerate(("web", "client"), 1)
        ],
        load(text),
    )


def network_policy(spec, name="p", namespace="default"):
    return f"""
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"""


def cluster_policy(spec, name="c"):
    return f"""
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {{name: {name}}}
spec: {spec}
"""


def said(text):
    return [str(warning) for warning in check(state(text))]


def test_sound_policies_give_no_warning():
    assert not said(
        network_policy(
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}},"
            " {ipBlock: {cidr: 8.8.8.0/24}}], ports: [{port: http}]}]}"
        )
        + cluster_policy(
            "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: ["
            "{action: Accept, to: [{networks: [8.8.8.8/32]}]},"
            "{action: Deny, to: [{networks: [8.8.8.0/24]}, {nodes: {}}]}]}"
        )
    )


def test_subject_that_selects_nothing():
    (warning,) = said(network_policy("{podSelector: {matchLabels: {app: wep}}}"))
    assert warning == "line 3: default/p: its subject selects no endpoint"


def test_namespace_without_endpoints():
    (warning,) = said(network_policy("{podSelector: {}}", namespace="elsewhere"))
    assert warning == "line 3: elsewhere/p: its subject selects no endpoint"


def test_peer_that_selects_nothing():
    (warning,) = said(
        network_policy(
            "{podSelector: {}, ingress: [{from: [{podSelector: {}}]},"
            " {from: [{podSelector: {}, namespaceSelector: {matchLabels: {a: b}}}]}]}"
        )
    )
    assert "ingress[1]: peer 0" in warning
    assert "is nobody" in warning


def test_nodes_that_are_none():
    (warning,) = said(
        cluster_policy(
            "{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: ["
            "{action: Accept, to: [{nodes: {matchLabels: {rack: r9}}}]}]}"
        )
    )
    assert "egress[0]: peer 0 (hosts with rack in (r9)) is nobody" in warning


def test_port_name_that_nobody_declares():
    (warning,) = said(
        network_policy(
            "{podSelector: {matchLabels: {app: client}}, ingress: [{ports: [{port: http}]}]}"
        )
    )
    assert "names a port 'http'" in warning
    assert not said(network_policy("{podSelector: {}, egress: [{ports: [{port: http}]}]}"))


def test_rule_in_the_shadow_of_another():
    (warning,) = said(
        cluster_policy(
            "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: ["
            "{action: Deny, from: [{namespaces: {}}]},"
            "{action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {}}}],"
            " protocols: [{tcp: {destinationPort: {number: 80}}}]}]}"
        )
    )
    assert "cluster:c ingress[1]: never decides" in warning


def test_equal_priorities():
    (warning,) = said(
        "".join(
            cluster_policy(
                "{tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: ["
                f"{{action: {action}, from: [{{pods: {{namespaceSelector: {{}},"
                f" podSelector: {{matchLabels: {{app: {app}}}}}}}}}]}}]}}",
                name,
            )
            for name, action, app in (("b", "Deny", "web"), ("a", "Accept", "client"))
        )
    )
    assert "cluster:b priority: asked after 'cluster:a' only because of its name" in warning


def test_rules_that_policy_types_switch_off():
    (warning,) = said(
        network_policy("{podSelector: {}, policyTypes: [Egress], egress: [{}], ingress: [{}]}")
    )
    assert "default/p ingress: ignored, since policyTypes does not hold Ingress" in warning


def test_network_that_does_not_exist():
    policies = load(network_policy("{podSelector: {}}"), network="prod")
    world = state("")
    (warning,) = check(State(world.networks, world.hosts, (), world.endpoints, policies))
    assert str(warning) == "line 3: default/p: there is no network 'prod'"


def said_of(endpoints=None, **documents):
    """Of services, published ports and limits, in the world of test_services.py."""
    return [str(warning) for warning in check(test_services.state(endpoints, **documents))]


def test_sound_documents_give_no_warning():
    """With two services at one address, on other ports; a port published on two hosts."""
    other = service(name="api", ports=(ServicePort(Protocol.TCP, 81, "http"),))
    weighted = service(weights=(Weight(of(app="web"), 3),))
    ports = [published("a"), published("b", endpoint="web-2", target="http")]
    assert not said_of(services=[weighted, other], published=ports, limits=[limit("l", rate=1)])
    assert not said_of(services=[service(address=None)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"selector": of(app="wep")},
            "selector: its selector selects no endpoint: every connect is refused",
        ),
        ({"namespace": "other"}, "selector: its selector selects no endpoint"),
        (
            {"ports": (ServicePort(Protocol.UDP, 53, 53), ServicePort(Protocol.UDP, 54, "http"))},
            "ports[1]: none of its endpoints with a weight declares a UDP port 'http'",
        ),
        (
            {"weights": (Weight(Selector(), 0),)},
            "ports[0]: all of its endpoints have weight 0",
        ),
        ({"weights": (Weight(of(v="2"), 10),)}, "weights[0]: selects none of its endpoints"),
        (
            {"address": IPAddress("10.2.0.1")},
            "clusterIP: 10.2.0.1 is not of its network (10.1.0.0/16): nobody reaches it",
        ),
        (
            {"address": IPAddress("10.1.0.2")},
            "clusterIP: 10.1.0.2 is the address of shop/web-2",
        ),
        ({"network": "prod"}, "there is no network 'prod'"),
    ],
)
def test_services_that_do_not_serve(changes, words):
    (warning,) = said_of(services=[service(**changes)])
    assert warning.startswith("service:")
    assert words in warning


EBPF = ({"syn/1"}, {Feature.SERVICES}, "ebpf")
NOOP = ({"vxlan/1"}, set(), "noop")
MEMORY = ({"vxlan/1"}, {Feature.SERVICES}, "memory")
OLD = (set(), set(), "ebpf")  # says nothing of itself

UNCARRIED = (
    "service:shop/web ports[1]: UDP is carried to it by no host that has services"
    " (ebpf): nobody reaches it"
)


@pytest.mark.parametrize(
    ("hosts", "wanted"),
    [
        ((EBPF, EBPF), [UNCARRIED]),
        # Those that have services do not carry it, and those that carry it have none.
        ((EBPF, NOOP), [UNCARRIED]),
        (
            (NOOP, NOOP),
            ["service:shop/web: no host of the cluster has services (noop): nobody reaches it"],
        ),
        ((MEMORY, EBPF), []),
        ((EBPF, OLD), []),
    ],
    ids=str,
)
@pytest.mark.parametrize("endpoints", [None, []], ids=["served", "by nobody yet"])
def test_a_service_that_no_host_carries(hosts, wanted, endpoints):
    """It is said where a user applies it, and by the status of every host."""
    ports = (ServicePort(Protocol.TCP, 53, 53), ServicePort(Protocol.UDP, 53, 53))
    world = evolve(
        test_services.state(endpoints, services=[service(ports=ports)]),
        hosts=[
            Host(f"h{number}", f"192.0.2.{number}", frozenset(wires), backend, features=features)
            for number, (wires, features, backend) in enumerate(hosts, 1)
        ],
    )
    assert wanted == list(map(str, uncarried(world)))
    assert set(wanted) <= set(map(str, check(world)))
    tcp = evolve(world, services=[service(ports=ports[:1])])
    assert bool(uncarried(tcp)) == (hosts == (NOOP, NOOP))


def test_two_services_with_one_port():
    (warning,) = said_of(services=[service(name="z"), service()])
    assert warning == (
        "service:shop/z ports[0]: service:shop/web has port 80 of 10.1.0.100 already"
    )


def test_more_endpoints_than_slots():
    endpoints = [
        evolve(
            endpoint(1),
            id=number,
            name=f"e{number}",
            address=f"10.1.{number // 250 + 1}.{number % 250}",
        )
        for number in range(1, 1101)
    ]
    (warning,) = said_of(endpoints, services=[service()])
    assert warning.endswith("ports[0]: of its 1100 endpoints only 1021 are ever chosen")


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([published("a", endpoint="web-9")], "port:shop/a endpoint: there is no endpoint 'web-9'"),
        (
            [published("a", target="ftp")],
            "port:shop/a targetPort: 'web-1' declares no TCP port 'ftp'",
        ),
        (
            [published("b", address=IPAddress("192.0.2.1"), endpoint="web-3"), published("a")],
            "port:shop/b port: port:shop/a has port 80 of host h1 already",
        ),
        ([published("a", network="prod")], "port:shop/a: there is no network 'prod'"),
    ],
)
def test_published_ports_that_lead_nowhere(documents, words):
    assert said_of(published=documents) == [words]


def test_a_port_of_a_host_that_has_ipv6_as_well():
    """Published on its IPv4 addresses alone; whoever names one of those knows it."""
    world = test_services.state(published=[published("a"), published("b", endpoint="web-2")])
    one, two = world.hosts
    one = evolve(one, taken={"2001:db8::/64": "interface eth0", "192.0.2.0/24": "interface eth0"})
    world = evolve(world, hosts=[one, two])
    (warning,) = check(world)
    assert str(warning) == (
        "port:shop/a address: on the IPv4 addresses of host h1 only, which has IPv6 as well"
        " (2001:db8::/64, interface eth0)"
    )
    assert not check(evolve(world, published=[published("a", address=one.address)]))


def test_limit_of_nobody():
    documents = [limit("a", subject=of(app="none"), rate=1), limit("b", namespace="x", rate=1)]
    assert said_of(limits=documents) == [
        "limit:shop/a podSelector: its subject selects no endpoint",
        "limit:x/b podSelector: its subject selects no endpoint",
    ]


def test_documents_say_where_they_were_written():
    written = service(selector=of(app="none"), source=Source("shop.yaml", {"": 3}))
    (warning,) = said_of(services=[written])
    assert warning.startswith("shop.yaml:3: service:shop/web selector: ")
