# SPDX-License-Identifier: Apache-2.0
"""``check``: what was surely not meant is said, and nothing else is."""

from slimnet.model import Endpoint, Host, Network
from slimnet.policy import State, check, load


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
