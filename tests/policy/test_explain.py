# SPDX-License-Identifier: Apache-2.0
"""``explain`` names stage, rule, file and line, and shouts when tables and policies differ."""

import logging

import pytest
from attrs import evolve

from slimnet import contract
from slimnet.exceptions import InvalidValue, NotFound
from slimnet.model import Direction, Endpoint, Flow, Host, Network, Protocol
from slimnet.policy import State, explain, load
from slimnet.policy import compile as compile_tables
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


def test_ambiguous_name(state):
    twin = evolve(state.endpoints[0], namespace="y", id=9, address="10.1.0.9", identity=900)
    both = evolve(state, endpoints=(*state.endpoints, twin))
    with pytest.raises(InvalidValue, match="namespace/name"):
        explain(both, source="web", destination="client", port=1)
    assert explain(both, source="y/web", destination="client", port=1).allowed
