# SPDX-License-Identifier: Apache-2.0
"""Reading the ``spec`` of an EgressLimit (slimnet.io/v1alpha1).

Rates are quantities of bits a second, as Kubernetes' annotation
``kubernetes.io/egress-bandwidth`` takes them, with its bounds
(k8s.io/component-helpers, ``1k`` to ``1P``).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from slimnet.policy.language.node import ManifestNode
from slimnet.policy.language.schema import Field
from slimnet.policy.language.selectorspec import SELECTOR, selector

__all__ = ["SCHEMA", "read"]

_QUANTITY = re.compile(
    r"(?P<number>[0-9]{1,18}(\.[0-9]{0,9})?)(?P<unit>[kMGTP]|[KMGTP]i|[eE]\+?(?P<power>[0-9]{1,2}))?"
)
_LETTERS = "kMGTP"
_LEAST, _MOST = 10**3, 10**15
_BITS = 8

SCHEMA = {
    "podSelector": Field("the endpoints that it is about; empty: all of the namespace", SELECTOR),
    "rate": Field(
        "what each of them may send in all, in bits a second: a number, or with a unit "
        "``100M``, ``1.5G``, ``512Ki``; ``1k`` to ``1P``; to itself, and acknowledgements: free"
    ),
    "connectionRate": Field("likewise, for each of its connections"),
}


def read(spec: ManifestNode) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.EgressLimit` that a ``spec`` gives."""
    spec.fields(SCHEMA)
    rate, each = spec.get("rate"), spec.get("connectionRate")
    if rate.absent and each.absent:
        spec.fail("rate, connectionRate or both", "neither")
    return {
        "subject": selector(spec.get("podSelector")),
        "rate": 0 if rate.absent else _rate(rate),
        "connection_rate": 0 if each.absent else _rate(each),
    }


def _rate(node: ManifestNode) -> int:
    """Bytes a second."""
    wanted = "bits a second, 1k to 1P, such as 100M (units: k M G T P, Ki Mi Gi Ti Pi)"
    value = node.value
    found = None
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        found = _QUANTITY.fullmatch(str(value))
    if found is None:
        node.fail(wanted)
    number, unit = Decimal(found["number"]), found["unit"] or ""
    if found["power"]:
        number *= 10 ** int(found["power"])
    elif unit:
        steps = _LETTERS.index(unit[0].replace("K", "k")) + 1
        number *= (1024 if unit.endswith("i") else 1000) ** steps
    if not _LEAST <= number <= _MOST:
        node.fail(wanted)
    return int(number) // _BITS
