# SPDX-License-Identifier: Apache-2.0
"""Reading the ``spec`` of a Service (v1), as far as it can be honoured.

https://kubernetes.io/docs/reference/kubernetes-api/service-resources/service-v1/
"""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress

from slimnet.model import Protocol
from slimnet.names import NAME
from slimnet.policy.document import ServicePort, Weight
from slimnet.policy.language.node import ManifestNode
from slimnet.policy.language.schema import Field
from slimnet.policy.language.selectorspec import SELECTOR, address, labels, port, protocol, selector
from slimnet.policy.selector import Selector

__all__ = ["SCHEMA", "read"]

_DAY = 86400
_AFFINITY = 10800

_PORT = {
    "name": Field("required where there are several"),
    "protocol": Field("``TCP``, ``UDP`` or ``SCTP``; TCP by default"),
    "port": Field("as it is dialled"),
    "targetPort": Field("the endpoints' port, by number or by the name that each declares; "
                        "``port`` by default"),
    "appProtocol": Field("ignored: slimnet reads no byte"),
    "nodePort": Field("use a PublishedPort, which publishes one endpoint's port", refused=True),
}  # fmt: skip
_CLIENT_IP = {"timeoutSeconds": Field("1 to 86400 after its last connect; 10800 by default")}
_AFFINITY_CONFIG = {"clientIP": Field("of affinity ``ClientIP``", _CLIENT_IP)}
_WEIGHT = {
    "selector": Field("of the service's endpoints, these", SELECTOR),
    "weight": Field("0 to 100; 0: no new connections"),
}
_BALANCER = "nothing balances load from outside of the cluster; use a PublishedPort"


def _refused(why: str) -> Field:
    return Field(why, refused=True)


SCHEMA = {
    "type": Field("``ClusterIP``, the default; no other"),
    "selector": Field("labels that its endpoints have, all of them; of its own namespace"),
    "clusterIP": Field(
        "its address, of its network; without one it is given one, and keeps it. Not ``None``"
    ),
    "clusterIPs": Field("at most one, and that is ``clusterIP``", many=True),
    "ipFamilies": Field("``IPv4``", many=True),
    "ipFamilyPolicy": Field("``SingleStack`` or ``PreferDualStack``, which are the same here"),
    "internalTrafficPolicy": Field("``Cluster``: its endpoints on all hosts; no other"),
    "ports": Field("at least one", _PORT, many=True),
    "sessionAffinity": Field(
        "``None``, or ``ClientIP``: an endpoint that connects again comes to the same endpoint"
    ),
    "sessionAffinityConfig": Field("for how long", _AFFINITY_CONFIG),
    "publishNotReadyAddresses": Field("ignored: an endpoint is ready while it is attached"),
    "weights": Field(
        "(slimnet's own) an endpoint's share of new connections, by the first entry that selects "
        "it; 1 where none does",
        _WEIGHT,
        many=True,
    ),
    "allocateLoadBalancerNodePorts": _refused(_BALANCER),
    "externalIPs": _refused(_BALANCER),
    "externalName": _refused("a service is an address, not an alias of a name"),
    "externalTrafficPolicy": _refused(_BALANCER),
    "healthCheckNodePort": _refused(_BALANCER),
    "loadBalancerClass": _refused(_BALANCER),
    "loadBalancerIP": _refused(_BALANCER),
    "loadBalancerSourceRanges": _refused(_BALANCER),
    "trafficDistribution": _refused("endpoints are chosen by weight only, near or far"),
}


def read(spec: ManifestNode) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.Service` that a ``spec`` gives."""
    spec.fields(SCHEMA)
    _only(spec.get("type"), ("ClusterIP",))
    _only(spec.get("internalTrafficPolicy"), ("Cluster",))
    _only(spec.get("ipFamilyPolicy"), ("SingleStack", "PreferDualStack"))
    families, unready, weights = (
        spec.get(key) for key in ("ipFamilies", "publishNotReadyAddresses", "weights")
    )
    for family in () if families.absent else families.items(most=1):
        _only(family, ("IPv4",))
    if not unready.absent:
        unready.truth()
    return {
        "address": _address(spec),
        "selector": _selector(spec.get("selector")),
        "ports": _ports(spec.need("ports")),
        "affinity": _affinity(spec),
        "weights": () if weights.absent else tuple(map(_weight, weights.items())),
    }


def _only(node: ManifestNode, choices: tuple[str, ...]) -> None:
    if not node.blank:
        node.choice(choices)


def _address(spec: ManifestNode) -> IPAddress | None:
    one, several = spec.get("clusterIP"), spec.get("clusterIPs")
    if one.value == "None":
        one.fail("an address, or none for a new one: names are not resolved to endpoints here")
    found = None if one.blank else address(one)
    for each in () if several.absent else several.items(most=1):
        if address(each) != (found or address(each)):
            each.fail(f"clusterIP, {found}")
        found = address(each)
    return found


def _selector(node: ManifestNode) -> Selector:
    if node.absent or not node.table():
        node.fail("labels of its endpoints: nobody else says which they are", "nothing")
    return Selector(tuple(labels(node)))


def _ports(node: ManifestNode) -> tuple[ServicePort, ...]:
    ports: list[ServicePort] = []
    for item in node.items(least=1):
        made = _port(item, named=len(node.value) > 1)
        for other in ports:
            if made.name == other.name:
                item.get("name").fail("each name once")
            if (made.protocol, made.port) == (other.protocol, other.port):
                item.get("port").fail("each port of a protocol once")
        ports.append(made)
    return tuple(ports)


def _port(node: ManifestNode, *, named: bool) -> ServicePort:
    node.fields(_PORT)
    name, kind, target, application = (
        node.get(key) for key in ("name", "protocol", "targetPort", "appProtocol")
    )
    if not application.absent:
        application.text("a protocol's name", bool)
    number = node.need("port").number(1, 65535, "a port's number")
    wanted = "a name of lower-case letters, digits and '-' (RFC 1123)"
    if named and name.blank:
        name.fail(f"{wanted}, since there are several ports", "nothing")
    return ServicePort(
        protocol=Protocol.TCP if kind.blank else protocol(kind),
        port=number,
        target=number if target.blank else port(target),
        name="" if name.blank else name.text(wanted, NAME.fullmatch),
    )


def _affinity(spec: ManifestNode) -> int:
    kind, config = spec.get("sessionAffinity"), spec.get("sessionAffinityConfig")
    if kind.blank or kind.choice(("None", "ClientIP")) == "None":
        if not config.absent:
            config.fail("nothing without sessionAffinity: ClientIP")
        return 0
    if config.absent:
        return _AFFINITY
    client = config.fields(_AFFINITY_CONFIG).get("clientIP")
    if client.absent:
        return _AFFINITY
    seconds = client.fields(_CLIENT_IP).get("timeoutSeconds")
    return _AFFINITY if seconds.absent else seconds.number(1, _DAY, "seconds")


def _weight(node: ManifestNode) -> Weight:
    node.fields(_WEIGHT)
    return Weight(selector(node.need("selector")), node.need("weight").number(0, 100, "a weight"))
