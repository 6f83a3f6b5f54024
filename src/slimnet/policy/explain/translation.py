# SPDX-License-Identifier: Apache-2.0
"""What becomes of a flow's addresses: behind a service, a published port, between hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import evolve, frozen
from netaddr import IPAddress, IPNetwork

from slimnet import wires
from slimnet.model import Endpoint, Flow, Host, Protocol, Reason
from slimnet.policy.explain.oracle import Oracle
from slimnet.policy.state import State
from slimnet.tables import PublishKey, Tables

__all__ = ["Branch", "Translation", "some", "title", "translate"]

#: More endpoints of a service than this are counted, not listed.
_LISTED = 8

_LOOPBACK = {4: IPNetwork("127.0.0.0/8"), 6: IPNetwork("::1/128")}


@frozen
class Branch:
    """One endpoint, or address, that a flow may lead to.

    Attributes:
        egress: the flow as the source's policy is asked.
        ingress: as the destination's is.
        peer: ``namespace/name`` of the endpoint behind a service; else empty.
    """

    egress: Flow
    ingress: Flow
    peer: str = ""


@frozen
class Translation:
    """The answer.

    Attributes:
        branches: one, or one for each endpoint that may serve it; none where it is refused.
        text: one line; empty where the addresses stay as they are.
        refusal: why no policy is asked at all.
        service: the destination is a service that somebody serves.
    """

    branches: tuple[Branch, ...]
    text: str = ""
    refusal: Reason | None = None
    service: bool = False


def translate(oracle: Oracle, tables: Callable[[str], Tables], flow: Flow) -> Translation:
    """What becomes of a flow before policy is asked, and on its way.

    Args:
        oracle: of the desired state.
        tables: host name to the tables of that host.
        flow: as it is dialled.
    """
    state = oracle.state
    source = oracle.endpoint(flow.network, flow.source)
    backing = oracle.backing(flow)
    if backing is not None:
        dialled = f"{title(oracle, flow.network, flow.destination)}:{flow.port}"
        if backing.reason is not None:
            return Translation((), f"{dialled} -> nobody", backing.reason)
        branches, names = [], []
        for served, share in backing.flows.items():
            endpoint = oracle.endpoint(served.network, served.destination)
            name = endpoint.title if endpoint else ""
            branches.append(Branch(served, served, name))
            words = f"{name} ({served.destination}:{served.port})"
            if share * len(backing.flows) != 1:
                words += f" {float(share):.0%}"
            if carried := _carried(state, source, endpoint, flow.protocol):
                words += f" on {carried}"
            names.append(words)
        return Translation(tuple(branches), f"{dialled} -> {some(names)}", service=True)
    if source is not None and (_is_loopback(flow.destination) or not int(flow.destination)):
        own = evolve(flow, destination=source.address)
        text = f"{flow.destination}:{flow.port} -> the endpoint itself"
        return Translation((Branch(own, own),), text)
    published = _published(oracle, tables, flow, source)
    if published is not None:
        return published
    destination = oracle.endpoint(flow.network, flow.destination)
    text = ""
    if destination is not None:
        carried = _carried(state, source, destination, flow.protocol)
        text = f"{flow.destination}:{flow.port} -> {carried}" if carried else ""
    elif source is not None and not _in_overlay(state, flow):
        host = _host(state, source)
        text = f"{flow.source} -> {host.address} (host {host.name}), as the source"
    return Translation((Branch(flow, flow),), text)


def title(oracle: Oracle, network: str, address: IPAddress) -> str:
    """How messages call an address: by whose it is."""
    endpoint = oracle.endpoint(network, address)
    if endpoint is not None:
        return f"{endpoint.title} ({address})"
    host = oracle.host(network, address)
    if host is not None:
        return f"host {host.name} ({address})"
    names = [
        service.title
        for service in oracle.state.services
        if (service.network, service.address) == (network, address)
    ]
    return f"{min(names)} ({address})" if names else str(address)


def some(names: Sequence[str]) -> str:
    """The first of these, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _published(
    oracle: Oracle, tables: Callable[[str], Tables], flow: Flow, source: Endpoint | None
) -> Translation | None:
    """To a port of a host that is an endpoint's; its policy sees whoever comes as an address."""
    state = oracle.state
    near = "" if source is None else source.host
    host = oracle.host(flow.network, flow.destination, near)
    if host is None:
        return None
    found = tables(host.name)
    for address in (flow.destination, None):
        record = found.published.get(PublishKey(address, flow.protocol, flow.port))
        endpoints = (item for item in state.endpoints if record and item.id == record.endpoint)
        endpoint = next(endpoints, None)
        if record is None or endpoint is None:
            continue
        seen = flow.source if source is None else _host(state, source).address
        inner = Flow(
            endpoint.network, seen, endpoint.address, flow.protocol, record.port, flow.direction
        )
        name = title(oracle, endpoint.network, endpoint.address)
        text = f"published {flow.destination}:{flow.port} -> {name} port {record.port}"
        return Translation((Branch(flow, inner),), text)
    return None


def _carried(
    state: State, source: Endpoint | None, destination: Endpoint | None, protocol: Protocol
) -> str:
    """Where a connection between two hosts goes in truth."""
    if source is None or destination is None or source.host == destination.host:
        return ""
    one, other = _host(state, source), _host(state, destination)
    wire = wires.choose(one, other, protocol)
    by = f" by wire {wire}" if wire else ""
    if one.wires and other.wires and wires.choose(one, other) is None:
        by = " by no wire: they have none in common"
    if wires.refused(one, other):
        by += ", which refuses: their keys differ"
    return f"{other.name} ({other.address}){by}"


def _is_loopback(address: IPAddress) -> bool:
    return address in _LOOPBACK[address.version]


def _host(state: State, endpoint: Endpoint) -> Host:
    return next(host for host in state.hosts if host.name == endpoint.host)


def _in_overlay(state: State, flow: Flow) -> bool:
    networks = (item for item in state.networks if item.name == flow.network)
    return any(flow.destination in cidr for item in networks for cidr in item.cidrs)
