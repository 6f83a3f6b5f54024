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

#: Those of sockets are numbers of 32 bits (sock_diag(7)).
_INODES = 0xFFFFFFFF

SCHEMA = {
    "endpoint": Field("whose port it becomes, by name; of its own namespace"),
    "port": Field("of the host on which that endpoint lives"),
    "targetPort": Field(
        "the endpoint's port, by number or by the name that it declares; ``port`` by default"
    ),
    "protocol": Field(
        "``TCP``, the default, or ``UDP``, for an endpoint with a network namespace of its own"
    ),
    "address": Field("one IPv4 address of the host; all of its IPv4 addresses by default"),
    "heldBy": Field(
        "inode numbers of sockets that keep the port of the host for the endpoint, as a container "
        "engine's do: the host listens there, and it is published all the same"
    ),
}


def read(spec: ManifestNode) -> dict[str, Any]:
    """The arguments of :class:`~slimnet.policy.PublishedPort` that a ``spec`` gives."""
    spec.fields(SCHEMA)
    number = spec.need("port").number(1, 65535, "a port's number")
    kind, target, where = (spec.get(key) for key in ("protocol", "targetPort", "address"))
    held = spec.get("heldBy")
    carried = protocol(kind)
    if carried not in (Protocol.TCP, Protocol.UDP):
        kind.fail("TCP or UDP: no other protocol is carried from outside to an endpoint")
    return {
        "endpoint": spec.need("endpoint").text("an endpoint's name", SUBDOMAIN.fullmatch),
        "port": number,
        "target": number if target.blank else port(target),
        "protocol": carried,
        "address": None if where.blank else address(where),
        "held": frozenset()
        if held.blank
        else frozenset(each.number(1, _INODES, "an inode number") for each in held.items()),
    }
