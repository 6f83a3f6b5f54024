# SPDX-License-Identifier: Apache-2.0
"""Manifests: Kubernetes' own are taken, wrong ones are refused with place and remedy."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import worlds

from slimnet.exceptions import PolicyError
from slimnet.model import Direction, Protocol
from slimnet.policy import Action, Policy, Port, Tier, load

WEB = """\
# In front of the document.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web-in
  namespace: shop
  labels: {team: a}
  uid: 123e4567
  managedFields: [{manager: kubectl}]
spec:
  podSelector:
    matchLabels:
      app: web
  policyTypes:
  - Ingress
  ingress:
  - from:
    - namespaceSelector: {}
      podSelector:
        matchExpressions:
        - {key: app, operator: In, values: [client, tester]}
    - ipBlock:
        cidr: 10.0.0.0/8
        except: [10.9.0.0/16]
    ports:
    - protocol: TCP
      port: 80
    - port: 8000
      endPort: 8080
    - port: http
status: {}
"""
CLUSTER = """\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata:
  name: guard
spec:
  tier: Admin
  priority: 10
  subject:
    pods:
      namespaceSelector: {}
      podSelector: {matchLabels: {app: web}}
  egress:
  - name: names
    action: Accept
    to:
    - nodes: {}
    - networks: [8.8.8.8/32, "2001:db8::/32"]
    protocols:
    - tcp: {destinationPort: {number: 53}}
    - udp: {destinationPort: {range: {start: 50, end: 60}}}
  - action: Deny
    to: [{namespaces: {}}]
"""


def test_network_policy():
    (policy,) = load(WEB, network="prod")
    assert (policy.network, policy.namespace, policy.name) == ("prod", "shop", "web-in")
    (rule,) = policy.ingress
    assert policy.egress is None
    assert [str(peer) for peer in rule.peers] == [
        "endpoints app in (client,tester) in namespaces everything",
        "10.0.0.0/8 except 10.9.0.0/16",
    ]
    assert rule.ports == (
        Port(Protocol.TCP, 80, 80),
        Port(Protocol.TCP, 8000, 8080),
        Port(Protocol.TCP, name="http"),
    )
    assert policy.source.at("ingress[0]") == "line 17"
    assert not policy.mandatory


def test_cluster_network_policy():
    (policy,) = load(CLUSTER)
    assert (policy.tier, policy.priority, policy.ingress) == (Tier.ADMIN, 10, None)
    first, second = policy.rules(Direction.EGRESS)
    assert (first.action, first.name, second.action) == (Action.ACCEPT, "names", Action.DENY)
    assert [str(peer) for peer in first.peers] == [
        "hosts with everything",
        "8.8.8.8/32",
        "2001:db8::/32",
    ]
    assert first.ports == (Port(Protocol.TCP, 53, 53), Port(Protocol.UDP, 50, 60))


@pytest.mark.parametrize("text", [WEB, CLUSTER])
def test_store_round_trip(text):
    """What the store gives back is the same policy, with its places."""
    (policy,) = load(text, network="prod")
    again = Policy.from_json(json.loads(json.dumps(policy.to_json())))
    assert again == policy
    assert again.source.lines == policy.source.lines


def test_file_and_network_of_the_manifest(tmp_path):
    """A file's name is in what is said of it; a manifest may name its network."""
    file = tmp_path / "web.yaml"
    file.write_text(WEB.replace("  labels:", "  annotations: {slimnet.io/network: lab}\n  labels:"))
    for source in (file, str(file)):
        (policy,) = load(source, network="prod")
        assert policy.network == "lab"
        assert policy.source.at("ingress[0]") == "web.yaml:18"


def test_several_documents_lists_and_json():
    document = yaml.safe_load(WEB)
    other = json.loads(json.dumps(document))
    other["metadata"]["name"] = "other"
    both = {"apiVersion": "v1", "kind": "List", "items": [document, other]}
    assert [item.name for item in load(json.dumps(both))] == ["web-in", "other"]
    assert len(load(f"---\n{WEB}---\n# nothing\n---\n{CLUSTER}")) == 2
    assert load("# nothing\n") == []


def test_toml(tmp_path):
    file = tmp_path / "p.toml"
    file.write_text(
        """
        [[policy]]
        apiVersion = "networking.k8s.io/v1"
        kind = "NetworkPolicy"
        metadata = {name = "a"}
        spec = {podSelector = {}, ingress = [{ports = [{port = 80}]}], mandatory = true}
        """
    )
    (policy,) = load(file)
    assert policy.ingress[0].ports == (Port(Protocol.TCP, 80, 80),)
    assert policy.mandatory
    file.write_text("kind = ")
    with pytest.raises(PolicyError, match=r"p\.toml: wanted TOML"):
        load(file)


def spec(**fields):
    return json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "p"},
            "spec": {"podSelector": {}, **fields},
        }
    )


@pytest.mark.parametrize(
    ("fields", "isolated"),
    [
        ({}, {"INGRESS": ()}),
        ({"ingress": []}, {"INGRESS": ()}),
        ({"ingress": None}, {"INGRESS": ()}),
        ({"egress": []}, {"INGRESS": ()}),
        ({"egress": [{}]}, {"INGRESS": (), "EGRESS": (None, None)}),
        ({"policyTypes": []}, {"INGRESS": ()}),
        ({"policyTypes": ["Egress"]}, {"EGRESS": ()}),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, {"EGRESS": ()}),
        ({"ingress": [{"from": [], "ports": []}]}, {"INGRESS": (None, None)}),
    ],
)
def test_absent_and_empty(fields, isolated):
    """As Kubernetes has it: which directions are isolated, and what a rule then allows."""
    (policy,) = load(spec(**fields))
    found = {
        direction.name: tuple(
            item for rule in policy.rules(direction) for item in (rule.peers, rule.ports)
        )
        for direction in Direction
        if policy.rules(direction) is not None
    }
    assert found == isolated


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "podSelector:\n    matchLabels",
            "podSelektor:\n    matchLabels",
            (
                "line 11: spec.podSelektor: wanted one of the fields egress, ingress, mandatory, "
                "podSelector, policyTypes (did you mean 'podSelector'?), got 'podSelektor'"
            ),
        ),
        (
            "matchLabels:\n      app",
            "matchlabels:\n      app",
            (
                "line 12: spec.podSelector.matchlabels: wanted one of the fields matchExpressions, "
                "matchLabels (did you mean 'matchLabels'?), got 'matchlabels'"
            ),
        ),
        (
            "operator: In,",
            "operator: Inn,",
            (
                "line 21: spec.ingress[0].from[0].podSelector.matchExpressions[0].operator: wanted "
                "one of In, NotIn, Exists, DoesNotExist (did you mean 'In'?), got 'Inn'"
            ),
        ),
        (
            "cidr: 10.0.0.0/8",
            "cidr: 10.0.0.0/33",
            (
                "line 23: spec.ingress[0].from[1].ipBlock.cidr: wanted an address range such as "
                "10.0.0.0/8 or fd00::/8, got '10.0.0.0/33'"
            ),
        ),
        ("[10.9.0.0/16]", "[11.9.0.0/16]", "except[0]: wanted a part of 10.0.0.0/8"),
        ("port: 80\n", "port: 70000\n", "line 27: spec.ingress[0].ports[0].port: wanted a port's"),
        ("port: 80\n", "port: Web_Server\n", "ports[0].port: wanted a port's number, or its name"),
        ("endPort: 8080", "endPort: 7", "line 29: spec.ingress[0].ports[1].endPort: wanted"),
        ("protocol: TCP", "protocol: ICMP", "protocol: wanted one of TCP, UDP, SCTP"),
        (
            "    - ipBlock:",
            "    - podSelector: {}\n      ipBlock:",
            "from[1]: wanted ipBlock alone",
        ),
        ("kind: NetworkPolicy", "kind: NetworkPolice", "(did you mean 'NetworkPolicy'?)"),
        ("networking.k8s.io/v1", "networking.k8s.io/v2", "apiVersion: wanted one of networking"),
        ("  name: web-in\n", "", "metadata.name: wanted a value, since this field is required"),
        ("name: web-in", "name: Web", "metadata.name: wanted a name of lower-case letters"),
        ("  - Ingress", "  - Inwards", "policyTypes[0]: wanted one of Ingress, Egress"),
        ("app: web", "app: [web]", "podSelector.matchLabels.app: wanted a label's value"),
        ("app: web", "app: 1", "podSelector.matchLabels.app: wanted a label's value"),
        (
            "      app: web",
            "      app: web\n      app: x",
            "matchLabels.app: wanted each field once",
        ),
        ("status: {}", "status: {", "line 32: wanted YAML"),
        ("status: {}", "---\nkind: Pod", "kind: wanted one of NetworkPolicy"),
        ("spec:", "spec: &a\n  loop: *a\n  x:", "wanted"),
        ("  ingress:", "  ingress: {}\n  egress:", "spec.ingress: wanted a list, got {}"),
    ],
)
def test_wrong_manifest(old, new, message):
    """Refused whole, saying which field of which line, what was wanted and what came."""
    assert WEB.count(old) >= 1
    with pytest.raises(PolicyError) as caught:
        load(WEB.replace(old, new, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tier: Admin", "tier: admin", "spec.tier: wanted one of Admin, Baseline (did you mean"),
        ("priority: 10", "priority: 1001", "spec.priority: wanted a priority, 0 to 1000, got 1001"),
        ("priority: 10", "priority: true", "spec.priority: wanted a priority"),
        ("action: Deny", "action: Drop", "egress[1].action: wanted one of Accept, Deny, Pass"),
        ("nodes: {}", "domainNames: [a.org]", "slimnet sees addresses, not names; use networks"),
        ("to: [{namespaces: {}}]", "to: []", "egress[1].to: wanted a list of at least 1"),
        ("to: [{namespaces: {}}]", "to: [{}]", "egress[1].to[0]: wanted exactly one of"),
        (
            "to: [{namespaces: {}}]",
            "to: [{namespaces: {}, networks: [10.0.0.0/8]}]",
            "exactly one of namespaces, networks, nodes, pods, got 'namespaces and networks'",
        ),
        (
            "tcp: {destinationPort: {number: 53}}",
            "destinationNamedPort: dns",
            "wanted no destinationNamedPort with nodes or networks",
        ),
        ("start: 50, end: 60", "start: 60, end: 50", "range.end: wanted the range's last port"),
        ("destinationPort: {number: 53}", "destinationPort: {}", "wanted exactly one of number"),
        ("name: guard", "name: guard\n  namespace: x", "metadata.namespace: wanted nothing"),
    ],
)
def test_wrong_cluster_manifest(old, new, message):
    assert CLUSTER.count(old) == 1
    with pytest.raises(PolicyError) as caught:
        load(CLUSTER.replace(old, new))
    assert message in str(caught.value)


def test_one_wrong_document_refuses_the_file(tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(f"{WEB}---\n{CLUSTER.replace('Admin', 'Adnim')}")
    with pytest.raises(PolicyError, match=r"^two\.yaml:38: spec\.tier: .*did you mean 'Admin'"):
        load(file)


@pytest.mark.parametrize("value", [None, [], {}, {"manifest": []}, {"manifest": {"spec": {}}}])
def test_store_that_holds_something_else(value):
    with pytest.raises(PolicyError):
        Policy.from_json(value)


def test_files_that_are_none(tmp_path):
    """What cannot be read is an OSError, what cannot be a text or a name a PolicyError."""
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"kind: \xff")
    with pytest.raises(PolicyError, match=r"binary\.yaml: wanted UTF-8 text"):
        load(binary)
    with pytest.raises(PolicyError, match="wanted a file's name, or a text"):
        load("\x00")


def test_same_policy_twice():
    with pytest.raises(PolicyError, match="each policy once in a file"):
        load(f"{WEB}---\n{WEB}")


FIELDS = re.findall(r"\w+(?=:)", WEB + CLUSTER)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def paths(value, here=()):
    yield here
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*here, key))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_document_is_taken_or_refused(data):
    """A manifest with anything anywhere: a policy, or PolicyError, and nothing else."""
    document = yaml.safe_load(data.draw(st.sampled_from((WEB, CLUSTER))))
    *above, last = data.draw(st.sampled_from([path for path in paths(document) if path]))
    inner = document
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(ANYTHING)
    try:
        (policy,) = load(json.dumps(document))
    except PolicyError as error:
        assert str(error).isprintable()
    else:
        assert Policy.from_json(policy.to_json()) == policy


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=40) | st.sampled_from((WEB, CLUSTER)), st.data())
def test_any_text_is_taken_or_refused(text, data):
    """Text with any part cut out or put in."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    piece = data.draw(
        st.text(max_size=6) | st.sampled_from(("&a", "*a", "!!", "<<: *a", "\t", "? "))
    )
    try:
        load(f"---\n{text[:start]}{piece}{text[end:]}")
    except PolicyError as error:
        assert str(error)


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_generated_policies_survive_the_store(world):
    for policy in world.state.policies:
        assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy
