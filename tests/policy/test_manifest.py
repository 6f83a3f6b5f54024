# SPDX-License-Identifier: Apache-2.0
"""Manifests: Kubernetes' own are taken, wrong ones are refused with place and remedy."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from worlds import worlds

from slimnet.exceptions import PolicyError
from slimnet.model import Direction, Protocol
from slimnet.policy import Action, Document, Policy, Port, Tier, load
from slimnet.policy.language import schema
from slimnet.policy.language.manifest import KINDS, is_foreign, read
from slimnet.policy.language.node import ManifestNode
from slimnet.policy.language.selectorspec import SELECTOR

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
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: front}
spec:
  type: ClusterIP
  selector: {app: web}
  clusterIP: 10.1.0.9
  clusterIPs: [10.1.0.9]
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  internalTrafficPolicy: Cluster
  publishNotReadyAddresses: false
  sessionAffinity: ClientIP
  sessionAffinityConfig:
    clientIP: {timeoutSeconds: 60}
  ports:
  - {name: http, port: 80, targetPort: web, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP}
  weights:
  - selector: {matchLabels: {release: canary}}
    weight: 5
"""
PUBLISHED = """\
apiVersion: slimnet.io/v1alpha1
kind: PublishedPort
metadata: {name: web}
spec:
  endpoint: web-1
  port: 8080
  targetPort: 80
  protocol: TCP
  address: 192.0.2.1
"""
LIMIT = """\
apiVersion: slimnet.io/v1alpha1
kind: EgressLimit
metadata: {name: batch}
spec:
  podSelector: {matchLabels: {app: batch}}
  rate: 100M
  connectionRate: 8k
"""
EVERY = (WEB, CLUSTER, SERVICE, PUBLISHED, LIMIT)


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


def test_service():
    (service,) = load(SERVICE, network="prod")
    assert (service.network, service.title) == ("prod", "service:front/shop")
    assert (str(service.address), str(service.selector)) == ("10.1.0.9", "app in (web)")
    assert [(each.name, each.protocol, each.port, each.target) for each in service.ports] == [
        ("http", Protocol.TCP, 80, "web"),
        ("dns", Protocol.UDP, 53, 53),
    ]
    assert service.affinity == 60
    assert [(str(each.selector), each.weight) for each in service.weights] == [
        ("release in (canary)", 5)
    ]


@pytest.mark.parametrize(
    ("fields", "affinity", "address"),
    [
        ({}, 0, None),
        ({"clusterIP": ""}, 0, None),
        ({"clusterIPs": ["10.1.0.9"], "sessionAffinity": "None"}, 0, "10.1.0.9"),
        ({"sessionAffinity": "ClientIP"}, 10800, None),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, 10800, None),
    ],
)
def test_what_a_service_leaves_open(fields, affinity, address):
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80}], **fields}
    document = {**yaml.safe_load(SERVICE), "spec": spec}
    (service,) = load(json.dumps(document))
    assert service.affinity == affinity
    assert (service.address and str(service.address)) == address
    assert (service.ports[0].target, service.ports[0].name) == (80, "")


def test_published_port():
    (port,) = load(PUBLISHED, network="prod")
    assert (port.network, port.title, port.endpoint) == ("prod", "port:default/web", "web-1")
    assert (port.port, port.target, str(port.address)) == (8080, 80, "192.0.2.1")
    (port,) = load(
        PUBLISHED.replace("  targetPort: 80\n  protocol: TCP\n  address: 192.0.2.1\n", "")
    )
    assert (port.protocol, port.target, port.address) == (Protocol.TCP, 8080, None)


def test_egress_limit():
    (limit,) = load(LIMIT, network="prod")
    assert (limit.network, limit.title) == ("prod", "limit:default/batch")
    assert str(limit.subject) == "app in (batch)"
    assert (limit.rate, limit.connection_rate) == (12_500_000, 1000)


@pytest.mark.parametrize(
    ("quantity", "bytes_a_second"),
    [
        ("1k", 125),
        ("100M", 12_500_000),
        ("1.5G", 187_500_000),
        ("8Ki", 1024),
        ("8Mi", 2**20),
        ("8Gi", 2**30),
        ("1P", 125_000_000_000_000),
        ("8e6", 1_000_000),
        ("8E+6", 1_000_000),
        (8000, 1000),
        (8000.0, 1000),
        ("1001", 125),
    ],
)
def test_quantities(quantity, bytes_a_second):
    """As the annotation kubernetes.io/egress-bandwidth takes them."""
    document = yaml.safe_load(LIMIT)
    document["spec"] = {"rate": quantity}
    assert load(json.dumps(document))[0].rate == bytes_a_second


@pytest.mark.parametrize(
    "quantity",
    ["100m", "999", "1.1P", "1E99", "-5M", "M", "", "5 M", "5Kb", "5MB", 0, True, [5], None],
)
def test_quantities_that_are_none(quantity):
    document = yaml.safe_load(LIMIT)
    document["spec"] = {"rate": quantity, "connectionRate": None}
    with pytest.raises(PolicyError, match=r"spec\.rate: wanted bits a second|spec: wanted rate"):
        load(json.dumps(document))


@pytest.mark.parametrize("text", EVERY)
def test_store_round_trip(text):
    """What the store gives back is the same document, with its places."""
    (document,) = load(text, network="prod")
    again = Document.from_json(json.loads(json.dumps(document.to_json())))
    assert again == document
    assert again.source.lines == document.source.lines
    assert type(document).from_json(document.to_json()) == document


def test_one_kind_is_not_another():
    (service,) = load(SERVICE)
    with pytest.raises(PolicyError, match="kind: wanted a Policy, got 'Service'"):
        Policy.from_json(service.to_json())


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
    every = load("---\n# nothing\n---\n" + "---\n".join(EVERY))
    assert [type(each).__name__ for each in every] == list(KINDS)
    assert len({type(each) for each in every}) == 5
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
    file.write_text(
        """
        [[document]]
        apiVersion = "slimnet.io/v1alpha1"
        kind = "PublishedPort"
        metadata = {name = "web"}
        spec = {endpoint = "web", port = 80}
        """
    )
    assert [each.title for each in load(file)] == ["port:default/web"]
    file.write_text(f"{file.read_text()}[oops]\n")
    with pytest.raises(PolicyError, match=r"p\.toml: wanted nothing beside .* got 'oops'"):
        load(file)
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


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (
            SERVICE,
            "type: ClusterIP",
            "type: NodePort",
            "line 5: spec.type: wanted one of ClusterIP",
        ),
        (SERVICE, "clusterIP: 10.1.0.9", "clusterIP: None", "names are not resolved to endpoints"),
        (SERVICE, "clusterIP: 10.1.0.9", "clusterIP: fd00::1", "clusterIP: wanted an IPv4 address"),
        (SERVICE, "clusterIP: 10.1.0.9", "clusterIP: 10.1.0.999", "clusterIP: wanted an IPv4"),
        (SERVICE, "[10.1.0.9]", "[10.1.0.8]", "clusterIPs[0]: wanted clusterIP, 10.1.0.9"),
        (SERVICE, "[10.1.0.9]", "[10.1.0.9, 10.1.0.9]", "clusterIPs: wanted a list of at most 1"),
        (SERVICE, "[IPv4]", "[IPv6]", "ipFamilies[0]: wanted one of IPv4"),
        (SERVICE, "SingleStack", "RequireDualStack", "ipFamilyPolicy: wanted one of SingleStack"),
        (
            SERVICE,
            "Policy: Cluster",
            "Policy: Local",
            "internalTrafficPolicy: wanted one of Cluster",
        ),
        (SERVICE, "selector: {app: web}", "selector: {}", "spec.selector: wanted labels of its"),
        (SERVICE, "  selector: {app: web}\n", "", "spec.selector: wanted labels of its endpoints"),
        (SERVICE, "selector: {app: web}", "selector: {app: [1]}", "selector.app: wanted a label's"),
        (SERVICE, "port: 80,", "port: 80, nodePort: 30080,", "no such field: use a PublishedPort"),
        (SERVICE, "port: 80,", "prot: 80,", "ports[0].prot: wanted one of the fields appProtocol"),
        (SERVICE, "name: http, ", "", "ports[0].name: wanted a name of lower-case letters"),
        (SERVICE, "name: dns, port: 53", "name: http, port: 53", "ports[1].name: wanted each name"),
        (SERVICE, "53, protocol: UDP", "80", "ports[1].port: wanted each port of a protocol once"),
        (SERVICE, "targetPort: web", "targetPort: 0", "targetPort: wanted a port's number or name"),
        (SERVICE, "Affinity: ClientIP", "Affinity: Client", "(did you mean 'ClientIP'?)"),
        (SERVICE, "Affinity: ClientIP", "Affinity: None", "sessionAffinityConfig: wanted nothing"),
        (SERVICE, "Seconds: 60", "Seconds: 86401", "timeoutSeconds: wanted seconds, 1 to 86400"),
        (SERVICE, "weight: 5", "weight: 101", "weights[0].weight: wanted a weight, 0 to 100"),
        (
            SERVICE,
            "  type:",
            "  externalName: a.org\n  type:",
            "an address, not an alias of a name",
        ),
        (SERVICE, "  type:", "  trafficDistribution: x\n  type:", "chosen by weight only"),
        (SERVICE, "  type:", "  tipe:", "(did you mean 'type'?)"),
        (SERVICE, "name: shop", "name: shop.a", "metadata.name: wanted lower-case letters, digits"),
        (SERVICE, "apiVersion: v1", "apiVersion: v2", "apiVersion: wanted one of v1"),
        (PUBLISHED, "protocol: TCP", "protocol: SCTP", "no other protocol is carried from outside"),
        (PUBLISHED, "port: 8080", "port: 0", "spec.port: wanted a port's number, 1 to 65535"),
        (PUBLISHED, "port: 8080", "port: http", "spec.port: wanted a port's number, 1 to 65535"),
        (PUBLISHED, "  endpoint: web-1\n", "", "spec.endpoint: wanted a value"),
        (PUBLISHED, "endpoint: web-1", "endpoint: a/b", "spec.endpoint: wanted an endpoint's name"),
        (PUBLISHED, "192.0.2.1", "0x7f.1", "spec.address: wanted an IPv4 address"),
        (LIMIT, "rate: 100M\n  connectionRate: 8k", "rate:", "spec: wanted rate, connectionRate"),
        (LIMIT, "rate: 100M", "rate: 100m", "spec.rate: wanted bits a second, 1k to 1P"),
        (LIMIT, "connectionRate", "connectionrate", "(did you mean 'connectionRate'?)"),
    ],
)
def test_wrong_service_port_or_limit(text, old, new, message):
    assert text.count(old) == 1
    with pytest.raises(PolicyError) as caught:
        load(text.replace(old, new))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


NETWORK_RULES = {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}} | {
    direction: [
        {
            peers: [{"podSelector": {}, "namespaceSelector": {}}, {"ipBlock": {"cidr": "::/0"}}],
            "ports": [{"port": 80}],
        }
    ]
    for direction, peers in (("ingress", "from"), ("egress", "to"))
}
CLUSTER_PORTS = [
    {protocol: {"destinationPort": {"range": {"start": 1, "end": 2}}}}
    for protocol in ("tcp", "udp", "sctp")
]
CLUSTER_PEERS = [{"namespaces": {}}, {"pods": {"namespaceSelector": {}, "podSelector": {}}}]
CLUSTER_RULES = {
    "tier": "Admin",
    "priority": 1,
    "subject": {"pods": {"namespaceSelector": {}, "podSelector": {}}},
    "ingress": [{"action": "Deny", "from": CLUSTER_PEERS, "protocols": CLUSTER_PORTS}],
    "egress": [
        {"action": "Deny", "to": [*CLUSTER_PEERS, {"nodes": {}}], "protocols": CLUSTER_PORTS}
    ],
}


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        (WEB, [NETWORK_RULES]),
        (CLUSTER, [CLUSTER_RULES, {**CLUSTER_RULES, "subject": {"namespaces": {}}}]),
        (SERVICE, [{}]),
        (PUBLISHED, [{}]),
        (LIMIT, [{}]),
    ],
)
def test_the_schema_is_what_the_parser_takes(monkeypatch, text, specs):
    """Every table of the schema is one that the parser checks, as a whole and at its
    place: what the reference says of fields is made from it."""
    checked = {}
    fields = ManifestNode.fields

    def spy(node, known):
        checked[re.sub(r"\[\d+\]", "[]", node.path)] = known
        return fields(node, known)

    monkeypatch.setattr(ManifestNode, "fields", spy)
    document = yaml.safe_load(text)
    for spec in specs:
        load(json.dumps({**document, "spec": document["spec"] | spec}))
    known = schema.paths(KINDS[document["kind"]].schema, "spec", {id(SELECTOR)})
    tables = {path: item.below for path, item in known if item.below is not None}
    assert {path: checked.get(path) for path in tables} == tables
    assert all(checked[path] is below for path, below in tables.items())


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
    with pytest.raises(PolicyError, match="each document once in a file"):
        load(f"{WEB}---\n{WEB}")


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_generated_policies_survive_the_store(world):
    for policy in world.state.policies:
        assert Policy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_json_writes_a_character_in_two_halves():
    """RFC 8259, section 7: they are one again; a half alone is no text."""
    policy = {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guard"},
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "name": "\U0001f512", "from": [{"namespaces": {}}]}],
        },
    }
    text = json.dumps(policy)
    assert "\\ud83d\\udd12" in text
    (found,) = load(text)
    assert found.ingress[0].name == "\U0001f512"
    with pytest.raises(PolicyError, match=r"spec\.ingress\[0\]\.name: wanted a plain value"):
        load(text.replace("\\udd12", ""))
    with pytest.raises(PolicyError, match="a field's name"):
        load(text.replace('"tier"', '"\\ud83d"'))


NAMED = """\
apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  ports:
  - port: 80
  selector:
    app: web
"""


def selected(text):
    (service,) = load(text)
    return {each.key: next(iter(each.values)) for each in service.selector.requirements}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\t\n"),
        ("\n", " \t \t\n"),
        ("\n", "\t# a comment\n"),
        ("\n", "\t\n\t\n"),
        (": ", ":\t"),
        ("{name: a}", "{\n\tname:\ta\t,\n\tlabels:\n\t{ }\n\t}"),
        ("spec:\n", "---\t\nspec:\n"[4:]),
        ("    app: web", "    ? app\t\n    : web"),
        ("app: web", "app: \t'web'\t"),
        ("app: web", "app: >-\t# folded\n      web"),
        ("app: web", "app: |2-\t\n      web"),
        ("app: web", "app: |-2 \t\n      web"),
        ("app: web", "app: &a\tweb"),
        ("- port: 80", "-\t\n    port: 80"),
    ],
)
def test_tabs_are_white_space(old, new):
    """As in YAML 1.2.2, section 6.1, and in Kubernetes' own library: wherever they do not
    indent, with or without spaces and a comment behind them."""
    assert old in NAMED
    assert selected(NAMED.replace(old, new)) == {"app": "web"}


def test_tabs_within_a_text_are_its_own():
    text = NAMED.replace("{name: a}", "{name: a, annotations: {x: b\tc, y: 'd\te'}}")
    (service,) = load(text.replace("spec:", "  \nspec:"))
    assert service.manifest["metadata"]["annotations"] == {
        "x": "b\tc",
        "y": "d\te",
        "slimnet.io/network": "default",
    }
    text = NAMED.replace("{name: a}", "\n  name: a\n  annotations:\n    x: b\t\n      c\t\n")
    (service,) = load(text)
    assert service.manifest["metadata"]["annotations"]["x"] == "b c"


@pytest.mark.parametrize("old", ["  - port: 80", "    app: web"])
def test_tabs_do_not_indent(old):
    """YAML 1.2.2, section 6.1."""
    with pytest.raises(PolicyError, match=r"line [68]: wanted YAML, .*'\\\\t'"):
        load(NAMED.replace(old, f"\t{old.strip()}"))


@pytest.mark.parametrize("indent", ["\t", 4, None])
def test_json_however_it_is_indented(indent):
    (service,) = load(json.dumps(yaml.safe_load(SERVICE), indent=indent))
    assert service.title == "service:front/shop"


@pytest.mark.parametrize("between", ["", "\n", "\n---\n"])
def test_json_texts_one_behind_the_other(between):
    """As jq writes them and kubectl reads them."""
    two = [json.dumps(yaml.safe_load(each), indent="\t") for each in (SERVICE, LIMIT)]
    assert [each.name for each in load(between.join(two))] == ["shop", "batch"]
    with pytest.raises(PolicyError, match="line 1: wanted YAML"):
        load(f"{json.dumps(yaml.safe_load(SERVICE))} oops")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ("{<<: *web, tier: front}", {"app": "web", "tier": "front"}),
        ("{<<: [{app: x}, *web]}", {"app": "x", "tier": "back"}),
        ("{<<: *web, <<: {more: y}}", {"app": "web", "tier": "back", "more": "y"}),
        ("{app: web, <<: *web}", {"app": "web", "tier": "back"}),
        ("{<<: {<<: *web, app: x}}", {"app": "x", "tier": "back"}),
        ("{<<: {}}", {}),
    ],
)
def test_merge_keys(labels, found):
    """The fields of other tables, behind which those that are written count, and of several
    tables the first that has it (https://yaml.org/type/merge.html)."""
    (policy,) = load(
        f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: a, labels: &web {{app: web, tier: back}}}}
spec:
  podSelector:
    matchLabels: {labels}
"""
    )
    wanted = {each.key: next(iter(each.values)) for each in policy.subject.requirements}
    assert wanted == found
    assert policy.manifest["spec"]["podSelector"]["matchLabels"] == found


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            "{app: x, <<: *web}",
            (
                "line 5: spec.selector.'<<': wanted << in front of app: behind it, Kubernetes "
                "replaces what YAML keeps, got 'app'"
            ),
        ),
        ("{<<: *web, <<: {app: x}}", "wanted << in front of app"),
        ("{<<: web}", "line 5: spec.selector.'<<': wanted a table, or a list of tables, got 'web'"),
        ("{<<: [*web, 5]}", "wanted a table, or a list of tables, got 5"),
        ("{<<: *web, app: y, app: y}", "spec.selector.app: wanted each field once"),
        ("{'<<': *web}", "spec.selector.'<<': wanted a label's key"),
        ("&loop {<<: *loop}", "wanted a document of reasonable size"),
        ("{<<: *web, b: [1]}", "spec.selector.b: wanted a label's value"),
    ],
)
def test_wrong_merge_keys(labels, message):
    with pytest.raises(PolicyError) as caught:
        load(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: &web {app: web}}\nspec:\n"
            f"  selector: {labels}\n  ports: [{{port: 80}}]\n"
        )
    assert message in str(caught.value)


def test_an_anchor_that_is_set_again():
    """YAML 1.2.2, section 3.2.2.2: an alias means the last of that name in front of it."""
    text = NAMED.replace("{name: a}", "{name: &x a, labels: {a: &x web, b: *x}}")
    (service,) = load(text.replace("app: web", "app: *x"))
    assert service.manifest["metadata"]["labels"] == {"a": "web", "b": "web"}
    assert service.manifest["spec"]["selector"] == {"app": "web"}


@pytest.mark.parametrize("text", EVERY)
def test_an_empty_namespace_is_none(text):
    document = yaml.safe_load(text)
    document["metadata"]["namespace"] = ""
    (found,) = load(json.dumps(document))
    assert getattr(found, "namespace", "default") == "default"


def test_what_templates_leave_empty():
    """Kubernetes takes an empty text, list or number for a field that is not there."""
    service = yaml.safe_load(SERVICE)
    service["spec"] = {
        "type": "",
        "clusterIP": "",
        "sessionAffinity": "",
        "loadBalancerIP": "",
        "externalName": "",
        "externalIPs": [],
        "selector": {"app": "web"},
        "ports": [{"port": 80, "name": "", "protocol": "", "targetPort": "", "nodePort": 0}],
    }
    (found,) = load(json.dumps(service))
    (port,) = found.ports
    assert (port.protocol, port.port, port.target) == (Protocol.TCP, 80, 80)
    assert (found.address, found.affinity) == (None, 0)
    published = yaml.safe_load(PUBLISHED)
    published["spec"] |= {"address": "", "targetPort": ""}
    (found,) = load(json.dumps(published))
    assert (found.address, found.target) == (None, 8080)
    with pytest.raises(PolicyError, match="wanted exactly one of .*, got 'none of them'"):
        load(CLUSTER.replace("nodes: {}", "domainNames: []"))


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("AdminNetworkPolicy", "(its successor is ClusterNetworkPolicy of tier Admin), got"),
        (
            "BaselineAdminNetworkPolicy",
            "(its successor is ClusterNetworkPolicy of tier Baseline), got",
        ),
        ("networkpolicy", "(did you mean 'NetworkPolicy'?), got"),
        ("Services", "(did you mean 'Service'?), got"),
        # No misspelling, but kinds of others.
        ("CiliumNetworkPolicy", "EgressLimit, got"),
        ("GlobalNetworkPolicy", "EgressLimit, got"),
        ("ServiceAccount", "EgressLimit, got"),
        ("ServiceEntry", "EgressLimit, got"),
    ],
)
def test_what_is_said_of_other_kinds(kind, hint):
    with pytest.raises(PolicyError) as caught:
        load(WEB.replace("kind: NetworkPolicy", f"kind: {kind}"))
    assert hint in str(caught.value)


OTHERS = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {replicas: 3}
---
apiVersion: crd.projectcalico.org/v1
kind: NetworkPolicy
metadata: {name: calico}
spec: {selector: all()}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: hello}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}
- {apiVersion: v1, kind: Service, metadata: {name: s},
   spec: {selector: {app: s}, ports: [{port: 80}]}}
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: old}
---
"""


def test_documents_of_others_are_passed_over():
    """Where that is asked for; by kind and by the API's group, in lists too."""
    text = OTHERS + WEB
    with pytest.raises(PolicyError, match="line 2: kind: wanted one of"):
        load(text)
    assert [each.name for each in load(text, ignore_unknown=True)] == ["s", "web-in"]
    foreign = [each["manifest"]["metadata"]["name"] for each in read(text) if is_foreign(each)]
    assert foreign == ["web", "calico", "hello", "c", "old"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: NetworkPolicy", "kind: NetworkPolice"),
        ("kind: NetworkPolicy", "Kind: NetworkPolicy"),
        ("kind: NetworkPolicy", "kind: [NetworkPolicy]"),
        ("networking.k8s.io/v1", "networking.k8s.io/v2"),
        ("apiVersion: networking.k8s.io/v1\n", ""),
        ("podSelector", "podSelektor"),
    ],
)
def test_what_is_ours_and_wrong_is_not_passed_over(old, new):
    assert old in WEB
    with pytest.raises(PolicyError):
        load(WEB.replace(old, new), ignore_unknown=True)
