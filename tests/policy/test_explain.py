# SPDX-License-Identifier: Apache-2.0
"""``explain`` names stage, rule, file and line, and shouts when tables and policies differ."""

import errno
import logging

import pytest
from attrs import evolve
from netaddr import IPAddress

from slimnet import contract
from slimnet.exceptions import InvalidValue, NotFound
from slimnet.model import (
    Direction,
    Endpoint,
    Feature,
    Flow,
    Host,
    Network,
    Protocol,
    Reason,
    Way,
    WayKind,
    Wire,
)
from slimnet.policy import Operator, Requirement, Selector, State, explain, load
from slimnet.policy import compile as compile_tables
from slimnet.policy.document import PublishedPort, Service, ServicePort, Weight
from slimnet.policy.explain.decision import Answerer
from slimnet.tables import PolicyKey, PolicyRecord

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-in}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 80}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}
  egress:
  - {name: no-telnet, action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 23}}}]}
"""  # noqa: E501


@pytest.fixture
def state(tmp_path):
    file = tmp_path / "shop.yaml"
    file.write_text(POLICY)
    return State(
        [Network("default", 1, "10.1.0.0/16")],
        [Host("h1", "192.0.2.1"), Host("h2", "192.0.2.2")],
        [],
        [
            Endpoint(
                "default",
                name,
                f"10.1.0.{number}",
                f"h{1 + number % 2}",
                id=number,
                labels={"app": name},
                identity=255 + number,
            )
            for number, name in enumerate(("web", "client", "other"), 1)
        ],
        load(file),
    )


def test_allowed_by_a_rule(state):
    answer = explain(state, source="client", destination="default/web", port=80)
    assert answer.allowed
    assert answer.summary == (
        "default/client (10.1.0.2) to default/web (10.1.0.1) tcp port 80: allowed"
    )
    egress, ingress = answer.stages
    assert (egress.direction, egress.host, egress.reason.name, egress.rule) == (
        Direction.EGRESS,
        "h1",
        "DEFAULT_ALLOW",
        "",
    )
    assert (ingress.host, ingress.rule) == ("h2", "default/web-in ingress[0] (shop.yaml:7)")


def test_denied_by_a_rule(state):
    answer = explain(state, source="client", destination="web", port=23)
    assert not answer.allowed
    assert answer.summary.endswith(
        "denied at egress by cluster:guard egress[0] 'no-telnet' (shop.yaml:18)"
    )


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("other", "web", "denied at ingress: a policy selects it and no rule allows this"),
        ("other", "192.0.2.2", "host h2 (192.0.2.2) tcp port 80: denied at egress: a host"),
        ("other", "10.1.9.9", "denied at egress: no endpoint has that overlay address"),
        ("other", "8.8.8.8", "other (10.1.0.3) to 8.8.8.8 tcp port 80: allowed"),
        ("web", "web", "allowed"),
        ("9.9.9.9", "8.8.8.8", "allowed: no endpoint of this network takes part"),
    ],
)
def test_denied_and_allowed_without_a_rule(state, source, destination, words):
    answer = explain(state, source=source, destination=destination, port=80)
    assert words in answer.summary
    assert not any(stage.doubt for stage in answer.stages)


def test_flow(state):
    """A flow object says the same, whichever its direction."""
    asked = explain(state, source="other", destination="web", port=80, protocol="udp")
    for direction in Direction:
        flow = Flow("default", "10.1.0.3", "10.1.0.1", Protocol.UDP, 80, direction)
        assert explain(state, flow) == asked


def test_tables_that_differ_are_shouted_about(state, caplog):
    """Tables in force that do not say what the policies say: a doubt, and an error logged."""

    def tables(host):
        good = compile_tables(state, host)
        key = PolicyKey(256, contract.SLIM_IDENTITY_ANY, Direction.INGRESS)
        record = PolicyRecord(True, good.policy[key].reason) if key in good.policy else None
        return evolve(good, policy={**good.policy, **({key: record} if record else {})})

    with caplog.at_level(logging.ERROR):
        answer = explain(state, source="other", destination="web", port=80, tables=tables)
    assert answer.allowed
    assert "the tables of h2 say" in answer.stages[1].doubt
    assert answer.stages[1].doubt in caplog.text
    assert answer.summary.endswith(answer.stages[1].doubt)


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({"source": "nobody", "destination": "web"}, NotFound),
        ({"source": "web", "destination": "web", "network": "prod"}, NotFound),
        ({"source": "web", "destination": "web", "protocol": "gre"}, InvalidValue),
        ({"source": "web", "destination": "web", "port": 70000}, InvalidValue),
    ],
)
def test_wrong_questions(state, question, error):
    with pytest.raises(error):
        explain(state, **{"port": 80, **question})


SERVICE = IPAddress("10.1.0.100")


def shop(name="shop", **changes):
    fields = {
        "network": "default",
        "namespace": "default",
        "address": SERVICE,
        "selector": Selector(),
        "ports": (ServicePort(Protocol.TCP, 5432, 80),),
    }
    return Service(name=name, **{**fields, **changes})


def of(*names):
    return Selector((Requirement("app", Operator.IN, frozenset(names)),))


def test_service(state):
    """Every endpoint that may serve it is judged, at its own port, where it lives."""
    state = evolve(state, services=[shop(selector=of("web"))])
    by_name = explain(state, source="client", destination="shop", port=5432)
    assert by_name == explain(state, source="client", destination=SERVICE, port=5432)
    assert by_name.allowed
    assert by_name.translation == (
        "service:default/shop (10.1.0.100):5432 -> default/web (10.1.0.1:80) on h2 (192.0.2.2)"
    )
    assert by_name.summary == (
        "default/client (10.1.0.2) to service:default/shop (10.1.0.100) tcp port 5432: allowed"
    )
    assert [(item.host, item.peer) for item in by_name.stages] == [
        ("h1", "default/web"),
        ("h2", "default/web"),
    ]
    denied = explain(state, source="other", destination="default/shop", port=5432)
    assert not denied.allowed
    assert denied.summary.endswith("denied at ingress: a policy selects it and no rule allows this")


def test_service_that_depends_on_who_serves(state):
    weights = (Weight(of("web"), 3),)
    state = evolve(state, services=[shop(selector=of("web", "client"), weights=weights)])
    answer = explain(state, source="other", destination=SERVICE, port=5432)
    assert answer.allowed
    assert answer.summary.endswith(
        "depends on the endpoint: denied at ingress: a policy selects it and no rule allows this"
        " (default/web); allowed (default/client)"
    )
    assert (
        "default/web (10.1.0.1:80) 75%, default/client (10.1.0.2:80) 25% on h1"
        in answer.translation
    )
    assert not any(stage.doubt for stage in answer.stages)


def test_endpoint_is_meant_before_a_service(state):
    state = evolve(state, services=[shop("web")])
    assert explain(state, source="client", destination="web", port=80).destination == (
        "default/web (10.1.0.1)"
    )
    with pytest.raises(NotFound):
        explain(state, source="shop", destination="web", port=80)


@pytest.mark.parametrize(
    ("service", "port", "words"),
    [
        (shop(), 80, "denied at egress: the service has no such port"),
        (
            shop(selector=of("nobody")),
            5432,
            "denied at egress: no endpoint serves this port of the service",
        ),
    ],
)
def test_service_that_refuses(state, service, port, words):
    state = evolve(state, services=[service])
    answer = explain(state, source="client", destination="shop", port=port)
    assert not answer.allowed
    assert answer.summary.endswith(words)
    assert answer.translation == f"service:default/shop (10.1.0.100):{port} -> nobody"
    (stage,) = answer.stages
    assert not stage.doubt
    assert not explain(state, source="9.9.9.9", destination=SERVICE, port=port).allowed


def test_how_it_is_carried(state):
    hosts = [evolve(host, wires=frozenset({Wire.SYN, Wire.VXLAN})) for host in state.hosts]
    state = evolve(state, hosts=hosts)

    def carried(source, destination, protocol="tcp"):
        question = {"source": source, "destination": destination, "protocol": protocol}
        return explain(state, port=80, **question).translation

    assert carried("client", "web") == "10.1.0.1:80 -> h2 (192.0.2.2) by wire syn"
    assert carried("client", "web", "udp") == "10.1.0.1:80 -> h2 (192.0.2.2) by wire vxlan"
    assert carried("other", "web") == ""
    assert carried("client", "8.8.8.8") == "10.1.0.2 -> 192.0.2.1 (host h1), as the source"
    assert carried("client", "10.1.9.9") == ""


def test_published_port(state):
    """Who comes through a host's port is an address to the endpoint's policy."""
    port = PublishedPort(
        name="http",
        network="default",
        namespace="default",
        endpoint="web",
        address=None,
        protocol=Protocol.TCP,
        port=8080,
        target=80,
    )
    state = evolve(state, published=[port])
    question = {"source": "203.0.113.9", "destination": "192.0.2.2", "port": 8080}
    answer = explain(state, **question)
    assert not answer.allowed
    assert answer.translation == "published 192.0.2.2:8080 -> default/web (10.1.0.1) port 80"
    (stage,) = answer.stages
    assert (stage.direction, stage.endpoint, stage.host) == (
        Direction.INGRESS,
        "default/web",
        "h2",
    )
    assert explain(state, **{**question, "destination": "192.0.2.1"}).stages == ()
    opened = evolve(state, policies=state.policies[1:])
    assert explain(opened, **question).allowed
    inside = explain(opened, **{**question, "source": "client"})
    assert [item.allowed for item in inside.stages] == [False, True]
    assert "a host of the cluster" in inside.summary


def decided(state, host, flow, **changes):
    """What a data path that does its duty answers."""
    tables = compile_tables(state, host)
    decision = Answerer(tables, 1).decision(flow, lambda record, _: record.slots[-1])
    return evolve(decision, **changes)


def test_data_path_is_asked(state, caplog):
    """Both ends' own hosts; nothing is said where they agree."""
    asked = []

    def ask(host, flow):
        asked.append((host, flow.direction))
        return decided(state, host, flow)

    answer = explain(state, source="client", destination="web", port=80, ask=ask)
    assert answer == explain(state, source="client", destination="web", port=80)
    assert asked == [("h1", Direction.EGRESS), ("h2", Direction.INGRESS)]
    assert not caplog.text
    assert (
        explain(state, source="client", destination="web", port=80, ask=lambda *_: None) == answer
    )


def test_data_path_that_differs_is_shouted_about(state, caplog):
    def ask(host, flow):
        verdict = decided(state, host, flow).verdict
        if host == "h2":
            verdict = evolve(verdict, allowed=False, reason=Reason["DEFAULT_DENY"], rule=0)
        return decided(state, host, flow, verdict=verdict, generation=7)

    answer = explain(state, source="client", destination="web", port=80, ask=ask)
    assert answer.allowed
    assert not answer.stages[0].doubt
    doubt = answer.stages[1].doubt
    assert doubt == (
        "the tables of h2 say allowed: RULE_ALLOW default/web-in ingress[0] (shop.yaml:7), "
        "the policies say allowed: RULE_ALLOW default/web-in ingress[0] (shop.yaml:7), "
        "the data path of h2 (generation 7) says denied: DEFAULT_DENY"
    )
    assert answer.summary.endswith(f"IN DOUBT, a defect of slimnet: {doubt}")
    assert doubt in caplog.text


@pytest.mark.parametrize(
    ("question", "reason", "number", "words"),
    [
        ({"destination": "web"}, "UNREACHABLE", errno.EHOSTUNREACH, "no wire in common"),
        (
            {"destination": "web", "protocol": "udp"},
            "DATAGRAM",
            errno.ENETUNREACH,
            "datagrams to endpoints",
        ),
        ({"destination": "2001:db8::1"}, "FAMILY", errno.ENETUNREACH, "IPv6 is not carried"),
        ({"destination": "240.0.0.80"}, "INNER_ADDRESS", errno.EACCES, "an inner address"),
    ],
)
def test_what_the_data_path_refuses_by_itself(state, question, reason, number, words):
    """Whatever the policies say; where they refuse first, they are named."""

    def ask(host, flow, reason=reason):
        way = Way(WayKind.REFUSED, Reason[reason], number)
        return decided(state, host, flow, way=way if flow.direction is Direction.EGRESS else None)

    question = {"source": "client", "port": 80, **question}
    answer = explain(state, **question, ask=ask)
    assert (answer.allowed, answer.refusal) == (False, Reason[reason])
    assert f": refused by host h1: {words}" in answer.summary
    assert answer.summary.endswith(f"({reason.lower()}, {errno.errorcode[number]})")
    assert "DOUBT" not in answer.summary
    denied = explain(state, **question, ask=lambda *asked: ask(*asked, "RULE_DENY"))
    assert denied.refusal is None
    assert "refused by host" not in denied.summary


EBPF = {"wires": frozenset({Wire.SYN}), "features": frozenset({Feature.SERVICES})}
NOOP = {"wires": frozenset({Wire.VXLAN})}


@pytest.mark.parametrize(
    ("hosts", "question", "refusal"),
    [
        ((EBPF, EBPF), {"destination": "web", "protocol": "udp"}, "DATAGRAM"),
        ((EBPF, EBPF), {"destination": "client", "protocol": "udp"}, "DATAGRAM"),
        ((EBPF, EBPF), {"destination": "127.0.0.1", "protocol": "udp"}, "DATAGRAM"),
        ((EBPF, EBPF), {"destination": "dns", "port": 53, "protocol": "udp"}, "DATAGRAM"),
        ((EBPF, EBPF), {"destination": "8.8.8.8", "protocol": "udp"}, None),
        ((EBPF, EBPF), {"destination": "8.8.8.8", "protocol": "sctp"}, "PROTOCOL"),
        ((EBPF, EBPF), {"destination": "web"}, None),
        ((EBPF, NOOP), {"destination": "web"}, "UNREACHABLE"),
        ((EBPF, NOOP), {"destination": "web", "port": 23}, None),  # policy refuses first
        ((NOOP, NOOP), {"destination": "web", "protocol": "udp"}, None),
        ((NOOP, NOOP), {"destination": "dns", "port": 53, "protocol": "udp"}, "NO_ENDPOINT"),
        (({}, {}), {"destination": "web", "protocol": "udp"}, None),  # nothing is known of them
    ],
)
def test_what_a_host_cannot_carry_is_known_without_asking_it(state, hosts, question, refusal):
    """A data path that does not answer, or that nobody can ask."""
    service = shop("dns", selector=of("web"), ports=(ServicePort(Protocol.UDP, 53, 53),))
    state = evolve(
        state,
        policies=[each for each in state.policies if each.name != "web-in"],
        services=[service],
        hosts=[evolve(host, **able) for host, able in zip(state.hosts, hosts, strict=True)],
    )
    answer = explain(state, source="client", **{"port": 80, **question})
    assert answer.refusal == (None if refusal is None else Reason[refusal])
    assert answer.allowed == (refusal is None and question.get("port") != 23)
    assert not any(stage.doubt for stage in answer.stages)


def test_a_service_that_is_reached_by_some(state):
    """One of its endpoints is on a host without a wire in common."""
    state = evolve(state, services=[shop(selector=of("web", "other"))])

    def ask(host, flow):
        way = Way(WayKind.SAME_HOST, Reason["DEFAULT_ALLOW"])
        if flow.destination == IPAddress("10.1.0.3"):
            way = Way(WayKind.REFUSED, Reason["UNREACHABLE"], errno.EHOSTUNREACH)
        return decided(state, host, flow, way=way)

    answer = explain(state, source="client", destination="shop", port=5432, ask=ask)
    assert (answer.allowed, answer.refusal) == (True, None)
    assert "depends on the endpoint" in answer.summary
    assert "(unreachable, EHOSTUNREACH) (default/other)" in answer.summary


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::"])
def test_loopback_is_the_endpoint_itself(state, address):
    """Whatever its policies say of what is outside."""
    answer = explain(state, source="web", destination=address, port=81)
    assert answer.allowed
    assert {stage.reason.name for stage in answer.stages} == {"SELF"}
    assert answer.translation == f"{address}:81 -> the endpoint itself"


def test_v4_mapped_is_ipv4(state):
    mapped = explain(state, source="other", destination="::ffff:10.1.0.1", port=80)
    assert mapped == explain(state, source="other", destination="10.1.0.1", port=80)


def test_data_path_that_serves_by_others_is_shouted_about(state):
    state = evolve(state, services=[shop(selector=of("web"))])

    def ask(host, flow):
        wrong = (IPAddress("10.1.0.3"), 80)
        astray = {"target": wrong} if flow.destination == SERVICE else {}
        return decided(state, host, flow, **astray)

    answer = explain(state, source="client", destination="shop", port=5432, ask=ask)
    assert "IN DOUBT, a defect of slimnet: the data path of h1 takes it to 10.1.0.3:80" in (
        answer.summary
    )


def test_tables_that_serve_by_others_are_shouted_about(state):
    right = evolve(state, services=[shop(selector=of("web", "other"))])
    wrong = evolve(state, services=[shop(selector=of("web"))])

    def tables(host):
        return compile_tables(wrong, host)

    answer = explain(right, source="client", destination="shop", port=5432, tables=tables)
    assert "IN DOUBT, a defect of slimnet: the tables of h1 have other endpoints" in answer.summary


def test_ambiguous_name(state):
    """A bare name is that of namespace default; elsewhere one has to be said."""
    twins = [
        evolve(
            state.endpoints[0],
            namespace=namespace,
            name=name,
            id=number,
            address=f"10.1.0.{number}",
            identity=900 + number,
        )
        for number, (namespace, name) in enumerate(
            [("y", "web"), ("y", "cart"), ("z", "cart")], start=9
        )
    ]
    more = evolve(state, endpoints=(*state.endpoints, *twins))
    assert explain(more, source="web", destination="client", port=1).source.startswith("default/")
    assert explain(more, source="y/web", destination="client", port=1).source.startswith("y/")
    with pytest.raises(
        InvalidValue, match=r"source: wanted one of default/y/cart, default/z/cart, got 'cart'"
    ):
        explain(more, source="cart", destination="client", port=1)
    assert explain(more, source="default/y/cart", destination="client", port=1).allowed
