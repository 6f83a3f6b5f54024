# SPDX-License-Identifier: Apache-2.0
"""Reading what both kinds of policy share: selectors and address ranges."""

from __future__ import annotations

import re

from netaddr import AddrFormatError, IPNetwork

from slimnet.policy.node import Node
from slimnet.policy.selector import Operator, Requirement, Selector

__all__ = ["cidr", "selector"]

_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_CIDR = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}")
_WANTED_VALUE = "a label's value: at most 63 letters, digits, '-', '_' and '.'"
_MAPPED = IPNetwork("::ffff:0:0/96")


def selector(node: Node) -> Selector:
    """A label selector. Null is an empty one, where the field itself is not optional."""
    if node.absent:
        return Selector()
    node.fields({"matchLabels", "matchExpressions"})
    requirements: list[Requirement] = []
    labels = node.get("matchLabels")
    if not labels.absent:
        for key, value in labels.table().items():
            _key(Node(key, value.path, value.line, value.file))
            text = value.text(_WANTED_VALUE, _VALUE.fullmatch)
            requirements.append(Requirement(key, Operator.IN, frozenset({text})))
    expressions = node.get("matchExpressions")
    if not expressions.absent:
        requirements += [_requirement(item) for item in expressions.items()]
    return Selector(tuple(requirements))


def _key(node: Node) -> str:
    return node.text("a label's key, such as app or example.org/app", _KEY.fullmatch)


def _requirement(node: Node) -> Requirement:
    node.fields({"key", "operator", "values"})
    key = _key(node.need("key"))
    operator = Operator(node.need("operator").choice([str(item) for item in Operator]))
    values = node.get("values")
    if operator in {Operator.EXISTS, Operator.DOES_NOT_EXIST}:
        if not values.absent and values.items():
            values.fail(f"no values with {operator}")
        return Requirement(key, operator)
    if values.absent:
        values.fail(f"a list of at least 1, since the operator is {operator}", "nothing")
    texts = [item.text(_WANTED_VALUE, _VALUE.fullmatch) for item in values.items(least=1)]
    return Requirement(key, operator, frozenset(texts))


def cidr(node: Node) -> IPNetwork:
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
