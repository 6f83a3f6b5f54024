# SPDX-License-Identifier: Apache-2.0
"""What cannot hold on a host is refused there, and says why."""

import json

import attrs
import pytest

from slimnet.agent.admission import admit, concerning, publishers, with_documents
from slimnet.exceptions import CannotEnforce, CapabilityMissing, InUse
from slimnet.model import Endpoint, Feature, Host, Namespace, Network
from slimnet.policy import State, Tier, check, load

FULL = Host("h1", "192.0.2.1", backend="ebpf", enforcing=True, features=frozenset(Feature))
BARE = Host("h2", "192.0.2.2", backend="preload")


def endpoint(number, network, name, address, host, app):
    return Endpoint(
        network,
        name,
        address,
        host,
        namespace="shop",
        id=number,
        identity=256 + number,
        labels={"app": app},
    )


STATE = State(
    networks=(Network("prod", 1000, "10.1.0.0/24"), Network("lab", 1001, "10.2.0.0/24")),
    hosts=(FULL, BARE),
    namespaces=(Namespace("prod", "shop", {"team": "a"}),),
    endpoints=(
        endpoint(1, "prod", "web", "10.1.0.1", "h1", "web"),
        endpoint(2, "prod", "db", "10.1.0.2", "h2", "db"),
        endpoint(3, "lab", "db", "10.2.0.1", "h1", "db"),
        endpoint(4, "prod", "old", "10.1.0.3", "gone", "old"),
    ),
)


def one(version, kind, name="x", **spec):
    metadata = {"name": name}
    if kind != "ClusterNetworkPolicy":
        metadata["namespace"] = "shop"
    document = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    return load(json.dumps(document), network="prod")[0]


def policy(app, **more):
    spec = {"podSelector": {"matchLabels": {"app": app}}, "mandatory": True, **more}
    return one("networking.k8s.io/v1", "NetworkPolicy", **spec)


def cluster_policy(**subject):
    return one(
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
        tier="Admin",
        priority=1,
        subject=subject,
        mandatory=True,
    )


def limit(app):
    selector = {"matchLabels": {"app": app}}
    return one("slimnet.io/v1alpha1", "EgressLimit", podSelector=selector, rate="1M")


def port(endpoint, name="x", number=8080, **more):
    return one("slimnet.io/v1alpha1", "PublishedPort", name, endpoint=endpoint, port=number, **more)


def refused(*documents, state=STATE):
    after = with_documents(state, documents)
    admit(after, documents, after.endpoints)


TEAM_A = {"matchLabels": {"team": "a"}}


@pytest.mark.parametrize(
    "document",
    [
        policy("web"),
        policy("nobody"),
        policy("old"),
        policy("db", mandatory=False),
        cluster_policy(namespaces={"matchLabels": {"team": "b"}}),
        cluster_policy(
            pods={"namespaceSelector": TEAM_A, "podSelector": {"matchLabels": {"app": "web"}}}
        ),
        limit("web"),
        limit("nobody"),
        port("web"),
        port("nobody"),
        port("old"),
    ],
    ids=lambda each: each.title,
)
def test_what_can_hold_is_admitted(document):
    refused(document)


WHERE = "endpoint prod/shop/db lives on host h2, whose backend preload"


@pytest.mark.parametrize(
    ("document", "error", "said"),
    [
        (
            policy("db"),
            CannotEnforce,
            f"policy shop/x is mandatory: {WHERE} cannot enforce it against a hostile process",
        ),
        (
            cluster_policy(namespaces=TEAM_A),
            CannotEnforce,
            f"policy cluster:x is mandatory: {WHERE}",
        ),
        (
            cluster_policy(pods={"podSelector": {"matchLabels": {"app": "db"}}}),
            CannotEnforce,
            f"policy cluster:x is mandatory: {WHERE}",
        ),
        (limit("db"), CapabilityMissing, f"limit:shop/x: {WHERE} has no egress limits"),
        (port("db"), CapabilityMissing, f"port:shop/x: {WHERE} has no published ports"),
    ],
)
def test_what_cannot_hold_is_refused(document, error, said):
    with pytest.raises(error) as caught:
        refused(document)
    assert str(caught.value).startswith(f"line 1: {said}")
    assert "\n" not in str(caught.value)
    # Nor may the endpoint come once the document is there.
    with pytest.raises(error):
        admit(STATE, [document], [STATE.endpoints[1]])
    admit(STATE, [document], [STATE.endpoints[0]])


def test_one_port_of_a_host_is_one_endpoints():
    """On all addresses or on one; what replaces itself is no other."""
    state = with_documents(STATE, [port("web", number=8080)])
    second = Endpoint("prod", "api", "10.1.0.9", "h1", namespace="shop")
    state = attrs.evolve(state, endpoints=(*state.endpoints, second))
    refused(port("web", number=8080), state=state)
    refused(port("web", targetPort=81), state=state)
    refused(port("api", "y", 8081), state=state)
    with pytest.raises(InUse, match="port:shop/y: port 8080 of host h1 is port:shop/x"):
        refused(port("api", "y"), state=state)
    with pytest.raises(InUse):
        refused(port("api", "y", address="192.0.2.1"), state=state)
    with pytest.raises(InUse):
        refused(port("api", "y", 9), port("web", "z", 9), state=state)
    one_address = with_documents(state, [port("web", address="192.0.2.1")])
    refused(port("api", "y", address="192.0.2.7"), state=one_address)


def test_where_a_port_is_published():
    documents = [port("web"), port("db", "y"), port("old", "z"), limit("web")]
    found = publishers(STATE, documents, STATE.endpoints)
    assert [(document.name, host) for document, host in found] == [("x", "h1"), ("y", "h2")]


def test_the_state_that_it_becomes():
    """Documents replace those of their kind, network and name; a service keeps its address."""
    shop = one("v1", "Service", selector={"app": "web"}, ports=[{"port": 80}])
    given = attrs.evolve(shop, address="10.1.0.8")
    state = with_documents(STATE, [given, limit("web"), port("web"), policy("web")])
    again = with_documents(state, [shop, limit("db")])
    assert again.services == (given,)
    assert [str(each.subject) for each in again.limits] == ["app in (db)"]
    assert (again.published, again.policies) == (state.published, state.policies)
    assert again.endpoints == STATE.endpoints
    other = attrs.evolve(limit("web"), network="lab")
    assert len(with_documents(again, [other]).limits) == 2


def test_what_concerns_a_document_is_enough_to_check_it():
    """Policies of other namespaces change no warning; of the same one, and the cluster's, do."""
    mine = policy("web", ingress=[{}, {"from": [{"podSelector": {}}]}])
    same = attrs.evolve(policy("web", ingress=[{}]), name="a")
    other = attrs.evolve(policy("web", ingress=[{}]), namespace="other")
    admin, base = (
        attrs.evolve(cluster_policy(namespaces={}), name=tier.lower(), tier=tier) for tier in Tier
    )
    living = STATE.endpoints[:3]
    state = attrs.evolve(STATE, policies=(same, other, admin, base), endpoints=living)
    small = concerning(state, [mine])
    assert set(small.policies) == {same, admin, base, mine}
    assert set(concerning(state, [limit("web"), base]).policies) == set(state.policies)
    titles = {mine.title}
    whole = [each for each in check(with_documents(state, [mine])) if each.policy in titles]
    assert whole
    assert [each for each in check(small) if each.policy in titles] == whole


@pytest.mark.parametrize(
    ("spec", "field"), [({"protocol": "UDP"}, "protocol UDP"), ({"heldBy": [812]}, "heldBy")]
)
def test_what_is_brought_is_brought_to_namespaces_alone(spec, field):
    """Datagrams, and what a socket of the host's listens for; by a host that brings them. TCP and
    UDP have ports of their own."""
    udp = port("web", **spec)
    (first, *others), (web, *rest) = STATE.hosts, STATE.endpoints

    def state(endpoint=web, **host):
        hosts = (attrs.evolve(first, **host), *others)
        return attrs.evolve(STATE, hosts=hosts, endpoints=(endpoint, *rest))

    without = first.features - {Feature.PUBLISHED_DATAGRAMS}
    message = f": {field}: the backend ebpf of host h1 has no such ports$"
    with pytest.raises(CapabilityMissing, match=message):
        refused(udp, state=state(features=without))
    both = {"features": without | {Feature.PUBLISHED_DATAGRAMS}, "shares": True}
    with pytest.raises(CapabilityMissing, match="prod/shop/web is not one with a network namesp"):
        refused(udp, state=state(**both))
    apart = attrs.evolve(web, netns="/run/netns/web")
    refused(port("web", protocol="UDP"), port("web", "y"), state=state(apart, **both))
    refused(udp, state=state(apart, **both))
    refused(udp, state=state(**both | {"shares": False}))
