# SPDX-License-Identifier: Apache-2.0
"""Reading what several kinds share: selectors, addresses and ports."""

from __future__ import annotations

import re

from netaddr import AddrFormatError, IPAddress, IPNetwork

from slimnet.model import Protocol
from slimnet.names import LABEL_KEY, LABEL_VALUE, PORT_NAME
from slimnet.policy.language.node import ManifestNode
from slimnet.policy.language.schema import Field
from slimnet.policy.selector import Operator, Requirement, Selector

__all__ = ["SELECTOR", "address", "cidr", "labels", "port", "protocol", "selector"]

_REQUIREMENT = {
    "key": Field("the label's"),
    "operator": Field("``In``, ``NotIn``, ``Exists`` or ``DoesNotExist``"),
    "values": Field("with ``In`` and ``NotIn``: at least one"),
}
SELECTOR = {
    "matchLabels": Field("labels, each with the value that it must have"),
    "matchExpressions": Field("what else must hold, all of it", _REQUIREMENT, many=True),
}

_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_CIDR = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}")
_WANTED_VALUE = "a label's value: at most 63 letters, digits, '-', '_' and '.'"
_MAPPED = IPNetwork("::ffff:0:0/96")


def selector(node: ManifestNode) -> Selector:
    """A label selector. Null is an empty one, where the field itself is not optional."""
    if node.absent:
        return Selector()
    node.fields(SELECTOR)
    wanted = node.get("matchLabels")
    requirements = [] if wanted.absent else labels(wanted)
    expressions = node.get("matchExpressions")
    if not expressions.absent:
        requirements += [_requirement(item) for item in expressions.items()]
    return Selector(tuple(requirements))


def labels(node: ManifestNode) -> list[Requirement]:
    """A table of labels, each of which must have its value."""
    found = []
    for key, value in node.table().items():
        _key(ManifestNode(key, value.path, value.line, value.file))
        text = value.text(_WANTED_VALUE, LABEL_VALUE.fullmatch)
        found.append(Requirement(key, Operator.IN, frozenset({text})))
    return found


def _key(node: ManifestNode) -> str:
    return node.text("a label's key, such as app or example.org/app", LABEL_KEY.fullmatch)


def _requirement(node: ManifestNode) -> Requirement:
    node.fields(_REQUIREMENT)
    key = _key(node.need("key"))
    operator = Operator(node.need("operator").choice([str(item) for item in Operator]))
    values = node.get("values")
    if operator in {Operator.EXISTS, Operator.DOES_NOT_EXIST}:
        if not values.absent and values.items():
            values.fail(f"no values with {operator}")
        return Requirement(key, operator)
    if values.absent:
        values.fail(f"a list of at least 1, since the operator is {operator}", "nothing")
    texts = [item.text(_WANTED_VALUE, LABEL_VALUE.fullmatch) for item in values.items(least=1)]
    return Requirement(key, operator, frozenset(texts))


def cidr(node: ManifestNode) -> IPNetwork:
    """An address range; bits behind the prefix are dropped, as Kubernetes does."""
    wanted = "an address range such as 10.0.0.0/8 or fd00::/8"
    text = node.text(wanted, _CIDR.fullmatch)
    try:
        network = IPNetwork(text).cidr
    except (AddrFormatError, ValueError):
        node.fail(wanted)
    if network.version == 6 and network in _MAPPED:
        node.fail("IPv4 ranges written as such, not as IPv4-mapped IPv6")
    return network


def address(node: ManifestNode) -> IPAddress:
    """An IPv4 address: overlays and what hosts publish are IPv4."""
    wanted = "an IPv4 address such as 10.1.0.4"
    text = node.text(wanted, _IPV4.fullmatch)
    try:
        return IPAddress(text)
    except (AddrFormatError, ValueError):
        node.fail(wanted)


def protocol(node: ManifestNode) -> Protocol:
    """TCP, UDP or SCTP; TCP where it is absent."""
    return Protocol.TCP if node.absent else Protocol[node.choice(("TCP", "UDP", "SCTP"))]


def port(node: ManifestNode) -> int | str:
    """A port's number, or the name that an endpoint declares."""
    if isinstance(node.value, str):
        return node.text("a port's number, or its name of at most 15 letters", PORT_NAME.fullmatch)
    return node.number(1, 65535, "a port's number or name")
