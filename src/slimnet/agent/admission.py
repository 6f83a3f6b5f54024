# SPDX-License-Identifier: Apache-2.0
"""Whether what users write can hold on the hosts of the endpoints that it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from slimnet.exceptions import CannotEnforce, CapabilityMissing, InUse
from slimnet.model import Endpoint, Feature, Host, Protocol
from slimnet.policy.document import (
    ClusterNetworkPolicy,
    Document,
    EgressLimit,
    NetworkPolicy,
    Policy,
    PublishedPort,
    Service,
)
from slimnet.policy.state import State, namespace_labels

__all__ = ["admit", "check_free", "concerning", "publishers", "with_documents"]

_FEATURES: dict[type[Document], Feature] = {
    PublishedPort: Feature.PUBLISHED_PORTS,
    EgressLimit: Feature.EGRESS_LIMITS,
}


def with_documents(state: State, documents: Iterable[Document]) -> State:
    """The state that it becomes when these are applied."""
    every = (*state.policies, *state.services, *state.published, *state.limits)
    known = {_identity(each): each for each in every}
    for each in documents:
        old = known.get(_identity(each))
        if isinstance(each, Service) and isinstance(old, Service) and each.address is None:
            each = attrs.evolve(each, address=old.address)  # noqa: PLW2901
        known[_identity(each)] = each
    new = list(known.values())
    return attrs.evolve(
        state,
        policies=tuple(each for each in new if isinstance(each, Policy)),
        services=tuple(each for each in new if isinstance(each, Service)),
        published=tuple(each for each in new if isinstance(each, PublishedPort)),
        limits=tuple(each for each in new if isinstance(each, EgressLimit)),
    )


def concerning(state: State, documents: Sequence[Document]) -> State:
    """As :func:`with_documents`, without the NetworkPolicies of namespaces that none of
    ``documents`` belongs to: those select other endpoints, and cannot change a warning about
    ``documents``. With a ClusterNetworkPolicy among them all stay: a rule of tier Baseline is
    asked only where no NetworkPolicy selects the endpoint."""
    after = with_documents(state, documents)
    if any(isinstance(each, ClusterNetworkPolicy) for each in documents):
        return after
    places = {(getattr(each, "network", ""), getattr(each, "namespace", "")) for each in documents}
    return attrs.evolve(
        after,
        policies=tuple(
            each
            for each in after.policies
            if not isinstance(each, NetworkPolicy) or (each.network, each.namespace) in places
        ),
    )


def admit(state: State, documents: Iterable[Document], endpoints: Iterable[Endpoint]) -> None:
    """Refuse documents that cannot hold for endpoints, or endpoints for which they cannot.

    Args:
        state: with the documents and the endpoints.
        documents: those to look at.
        endpoints: those to look at; of hosts that are lost, nothing is known.

    Raises:
        CannotEnforce: a policy is mandatory, and the backend there is cooperative.
        CapabilityMissing: the backend there has no published ports, or no limits; datagrams
            from outside are not brought to the endpoint.
        InUse: the port of the host is another endpoint's.
    """
    hosts = {each.name: each for each in state.hosts}
    for document in documents:
        feature = _FEATURES.get(type(document))
        if feature is None and not (isinstance(document, Policy) and document.mandatory):
            continue
        for endpoint in endpoints:
            host = hosts.get(endpoint.host)
            if host is None or not _is_about(document, endpoint, state):
                continue
            where = (
                f"endpoint {endpoint.path} lives on host {host.name}, "
                f"whose backend {host.backend or 'unknown'}"
            )
            if feature is None:
                if not host.enforcing:
                    raise CannotEnforce(
                        f"{document.source.prefix}policy {document.title} is mandatory: {where}"
                        " cannot enforce it against a hostile process"
                    )
            elif feature not in host.features:
                words = feature.replace("_", " ")
                raise CapabilityMissing(
                    f"{document.source.prefix}{document.title}: {where} has no {words}"
                )
            if isinstance(document, PublishedPort):
                _check_brought(document, endpoint, host)
                _check_apart(document, host, state)


def publishers(
    state: State, documents: Iterable[Document], endpoints: Iterable[Endpoint]
) -> list[tuple[PublishedPort, str]]:
    """The published ports among documents, each with the host on which it is one."""
    return [
        (document, endpoint.host)
        for document in documents
        if isinstance(document, PublishedPort)
        for endpoint in endpoints
        if _is_about(document, endpoint, state)
        and any(each.name == endpoint.host for each in state.hosts)
    ]


def check_free(document: PublishedPort, host: str, listener: str | None) -> None:
    """Refuse to take a port away from the host itself.

    Raises:
        InUse: a socket of the host listens there.
    """
    if listener is not None:
        raise InUse(
            f"{document.source.prefix}{document.title}: host {host} itself listens on"
            f" {listener}:{document.port}"
        )


def _check_brought(document: PublishedPort, endpoint: Endpoint, host: Host) -> None:
    """Datagrams, and what a socket of the host's listens for, are brought to network namespaces
    alone."""
    if document.protocol is Protocol.UDP:
        asked = "protocol UDP"
    elif document.held:
        asked = "heldBy"
    else:
        return
    where = f"{document.source.prefix}{document.title}: {asked}: "
    if Feature.PUBLISHED_DATAGRAMS not in host.features:
        backend = host.backend or "unknown"
        raise CapabilityMissing(
            f"{where}the backend {backend} of host {host.name} has no such ports"
        )
    if host.shares and endpoint.place.netns is None:
        wanted = "one with a network namespace of its own"
        raise CapabilityMissing(f"{where}endpoint {endpoint.path} is not {wanted}")


def _check_apart(document: PublishedPort, host: Host, state: State) -> None:
    """No two endpoints of a host have the same port of it."""
    for other, where in publishers(state, state.published, state.endpoints):
        if (
            where == host.name
            and _identity(other) != _identity(document)
            and (other.protocol, other.port) == (document.protocol, document.port)
            and (other.address is None or document.address in (None, other.address))
        ):
            raise InUse(
                f"{document.source.prefix}{document.title}: port {document.port} of host {where}"
                f" is {other.title}"
            )


def _is_about(document: Document, endpoint: Endpoint, state: State) -> bool:
    if isinstance(document, ClusterNetworkPolicy):
        labels = namespace_labels(endpoint.namespace)
        for each in state.namespaces:
            if (each.network, each.name) == (endpoint.network, endpoint.namespace):
                labels = namespace_labels(each.name, each.labels)
        namespaces, pods = document.subject.namespaces, document.subject.pods
        return (namespaces is None or namespaces.matches(labels)) and (
            pods is None or pods.matches(endpoint.labels)
        )
    if not isinstance(document, (NetworkPolicy, PublishedPort, EgressLimit)):
        return False
    if (document.network, document.namespace) != (endpoint.network, endpoint.namespace):
        return False
    if isinstance(document, PublishedPort):
        return document.endpoint == endpoint.name
    return document.subject.matches(endpoint.labels)


def _identity(document: Document) -> tuple[str, str, str]:
    return type(document).__name__, getattr(document, "network", ""), document.title
