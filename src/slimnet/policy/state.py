# SPDX-License-Identifier: Apache-2.0
"""What the compiler starts from: the whole desired state, at one revision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from attrs import field, frozen

from slimnet.model import Endpoint, Host, Namespace, Network
from slimnet.policy.document import EgressLimit, Policy, PublishedPort, Service

__all__ = ["State", "host_labels", "namespace_labels"]


def _many() -> Any:
    def convert(items: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(items)

    return field(default=(), converter=convert)


@frozen
class State:
    """Everything that tables are compiled from.

    Attributes:
        networks: every network.
        hosts: every host of the cluster.
        namespaces: those with labels of their own; an endpoint's namespace
            that is not here has none but its name.
        endpoints: every endpoint, with ``id`` and ``identity`` filled in.
        policies: every policy, of both kinds.
        revision: the store's; becomes the tables' generation.
        services: every service.
        published: every published port.
        limits: every egress limit.
    """

    networks: tuple[Network, ...] = _many()
    hosts: tuple[Host, ...] = _many()
    namespaces: tuple[Namespace, ...] = _many()
    endpoints: tuple[Endpoint, ...] = _many()
    policies: tuple[Policy, ...] = _many()
    revision: int = 1
    services: tuple[Service, ...] = _many()
    published: tuple[PublishedPort, ...] = _many()
    limits: tuple[EgressLimit, ...] = _many()


def namespace_labels(name: str, labels: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """A namespace's labels with the one that Kubernetes adds to every namespace."""
    return {**labels, "kubernetes.io/metadata.name": name}


def host_labels(host: Host) -> dict[str, str]:
    """A host's labels with those that Kubernetes gives every node, where it has none of its own."""
    return {"kubernetes.io/hostname": host.name, "kubernetes.io/os": "linux", **host.labels}
