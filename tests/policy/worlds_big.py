# SPDX-License-Identifier: Apache-2.0
"""A large, regular world, for what is about size."""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress

from slimnet.model import Endpoint, Host, Network, Protocol
from slimnet.policy import Operator, Requirement, Selector, State, parse
from slimnet.policy.document import Service, ServicePort

HOSTS = 10
IN_NAMESPACE = 100
OF_APPLICATION = 10


def big(
    policies: int, endpoints: int, *, replicas: int = OF_APPLICATION, services: int = 0
) -> State:
    """Namespaces of ten applications of ten endpoints, spread over ten hosts.

    Each policy lets one application in from its neighbour and from a range, and out to
    everything but a range. Each service is one application's.

    Args:
        policies: how many.
        endpoints: how many.
        replicas: how many endpoints have the same labels.
        services: how many.
    """
    spaces = [f"n{number}" for number in range(max(1, endpoints // IN_NAMESPACE))]
    return State(
        [Network("default", 1, "10.0.0.0/8")],
        [Host(f"h{number}", f"192.0.2.{number}") for number in range(1, HOSTS + 1)],
        [],
        [
            Endpoint(
                "default",
                f"e{number}",
                f"10.1.{number >> 8}.{number & 255}",
                f"h{number % HOSTS + 1}",
                namespace=spaces[number // IN_NAMESPACE],
                id=number + 1,
                labels={
                    "app": f"a{number // OF_APPLICATION % 10}",
                    "set": f"s{number // replicas}",
                },
                identity=256 + number // replicas,
            )
            for number in range(endpoints)
        ],
        parse([{"manifest": _manifest(number, spaces)} for number in range(policies)]),
        services=[_service(number, spaces) for number in range(services)],
    )


def _service(number: int, spaces: list[str]) -> Service:
    application = f"a{number // len(spaces) % 10}"
    return Service(
        name=f"s{number}",
        network="default",
        namespace=spaces[number % len(spaces)],
        address=IPAddress("10.200.0.0") + number,
        selector=Selector((Requirement("app", Operator.IN, frozenset({application})),)),
        ports=(ServicePort(Protocol.TCP, 80, 8080),),
    )


def _manifest(number: int, spaces: list[str]) -> dict[str, Any]:
    application = number // len(spaces) % 10
    neighbour = {"matchLabels": {"app": f"a{(application - 1) % 10}"}}
    world = {"cidr": "0.0.0.0/0", "except": ["192.168.0.0/16"]}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"p{number}", "namespace": spaces[number % len(spaces)]},
        "spec": {
            "podSelector": {"matchLabels": {"app": f"a{application}"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [{"podSelector": neighbour}], "ports": [{"port": 80}, {"port": 443}]},
                {"from": [{"ipBlock": {"cidr": f"172.16.{number % 256}.0/24"}}]},
            ],
            "egress": [{"to": [{"ipBlock": world}]}, {"to": [{"namespaceSelector": {}}]}],
        },
    }
