# SPDX-License-Identifier: Apache-2.0
"""Reading the ``spec`` of a PublishedPort (slimnet.io/v1alpha1)."""

from __future__ import annotations

from typing import Any

from slimnet.model import Protocol
from slimnet.names import SUBDOMAIN
from slimnet.policy.language.node import ManifestNode
from slimnet.policy.language.schema import Field
from slimnet.policy.language.selectorspec import address, port, protocol

__all__ = ["SCHEMA", "read"]

SCHEMA = {
    "endpoint": Field("whose port it becomes, by name; of its own namespace"),
    "port": Field("of the host on which that endpoint lives"),
    "targetPort": Field(
        "the endpoint's port, by number or by the name that it declares; ``port`` by default"
    ),
    "protocol": Field("``TCP``, the default; UDP is not carried from outside"),
    "address": Field("one IPv4 address of the host; all of its IPv4 addresses by default"),
}


def read(spec: ManifestNode) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.PublishedPort` that a ``spec`` gives."""
    spec.fields(SCHEMA)
    number = spec.need("port").number(1, 65535, "a port's number")
    kind, target, where = (spec.get(key) for key in ("protocol", "targetPort", "address"))
    if protocol(kind) is not Protocol.TCP:
        kind.fail("TCP: no other protocol is carried from outside to an endpoint")
    return {
        "endpoint": spec.need("endpoint").text("an endpoint's name", SUBDOMAIN.fullmatch),
        "port": number,
        "target": number if target.blank else port(target),
        "protocol": Protocol.TCP,
        "address": None if where.blank else address(where),
    }
