# SPDX-License-Identifier: Apache-2.0
"""Why a flow is allowed or denied, stage by stage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from attrs import frozen
from netaddr import AddrFormatError, IPAddress

from slimnet.exceptions import InvalidValue, NotFound
from slimnet.model import Direction, Endpoint, Flow, Protocol, Reason
from slimnet.policy.compiler import compile as compile_tables
from slimnet.policy.compiler import rule_text
from slimnet.policy.decision import Answerer
from slimnet.policy.oracle import Oracle
from slimnet.policy.state import State
from slimnet.tables import Tables

__all__ = ["Explanation", "Stage", "explain"]

_log = logging.getLogger(__name__)


@frozen
class Stage:
    """One end's policy and what it says.

    Attributes:
        direction: EGRESS is decided on the source's host, INGRESS on the destination's.
        endpoint: ``namespace/name`` of the endpoint whose policy is asked.
        host: the name of the host that decides.
        allowed: what its tables say.
        reason: why.
        rule: the rule in words, with file and line where they are known; or empty.
        doubt: empty; else how the tables and the oracle differ, which is a defect of slimnet.
    """

    direction: Direction
    endpoint: str
    host: str
    allowed: bool
    reason: Reason
    rule: str = ""
    doubt: str = ""


@frozen
class Explanation:
    """The whole way of a flow.

    Attributes:
        allowed: whether every stage allows it.
        source: who opens it: ``namespace/name`` with address, or what the address is.
        destination: likewise.
        protocol: in lower case.
        port: destination port.
        stages: egress, then ingress, as far as there is an endpoint to ask.
        summary: one line.
    """

    allowed: bool
    source: str
    destination: str
    protocol: str
    port: int
    stages: tuple[Stage, ...]
    summary: str


def explain(
    state: State,
    flow: Flow | None = None,
    *,
    network: str = "default",
    source: str | IPAddress = "",
    destination: str | IPAddress = "",
    port: int = 0,
    protocol: str = "tcp",
    tables: Callable[[str], Tables] | None = None,
) -> Explanation:
    """Whether a flow is allowed, at which stage it is not, and by which rule.

    Args:
        state: the desired state.
        flow: the flow; its direction does not matter, both are asked. Or without it:
        network: that both ends are seen from.
        source: an address, or an endpoint's ``name`` or ``namespace/name``.
        destination: likewise.
        port: destination port.
        protocol: ``tcp``, ``udp``, ``sctp`` or ``icmp``.
        tables: host name to the tables in force there; compiled afresh by default.

    Raises:
        NotFound: no such network or endpoint.
        InvalidValue: no such protocol or port.
    """
    if flow is None:
        if protocol.upper() not in Protocol.__members__:
            known = ", ".join(name.lower() for name in Protocol.__members__)
            raise InvalidValue("protocol", f"one of {known}", protocol)
        flow = Flow(
            network,
            _address(state, network, source, "source"),
            _address(state, network, destination, "destination"),
            Protocol[protocol.upper()],
            port,
            Direction.EGRESS,
        )
    vni = next((item.vni for item in state.networks if item.name == flow.network), None)
    if vni is None:
        raise NotFound(f"no network {flow.network!r}")
    ask = tables or cache(lambda host: compile_tables(state, host))
    oracle = Oracle(state)
    stages = []
    for direction, address in (
        (Direction.EGRESS, flow.source),
        (Direction.INGRESS, flow.destination),
    ):
        endpoint = _endpoint(state, flow.network, address)
        if endpoint is not None:
            turned = Flow(
                flow.network,
                flow.source,
                flow.destination,
                flow.protocol,
                flow.port,
                direction,
            )
            stages.append(_stage(turned, endpoint, ask(endpoint.host), vni, oracle))
    denial = next((stage for stage in stages if not stage.allowed), None)
    words = f"{flow.protocol.name.lower()} port {flow.port}"
    names = [_words(state, flow.network, address) for address in (flow.source, flow.destination)]
    if denial is not None:
        verdict = f"denied at {denial.direction.name.lower()}"
        verdict += f" by {denial.rule}" if denial.rule else f": {_REASONS[denial.reason.name]}"
    else:
        verdict = "allowed" if stages else "allowed: no endpoint of this network takes part"
    return Explanation(
        denial is None,
        names[0],
        names[1],
        flow.protocol.name.lower(),
        flow.port,
        tuple(stages),
        f"{names[0]} to {names[1]} {words}: {verdict}",
    )


_REASONS = {
    "DEFAULT_DENY": "a policy selects it and no rule allows this",
    "HOST_DENY": "a host of the cluster, and no rule allows it by name",
    "NO_ENDPOINT": "no endpoint has that overlay address",
}


def _stage(flow: Flow, endpoint: Endpoint, tables: Tables, vni: int, oracle: Oracle) -> Stage:
    egress = flow.direction is Direction.EGRESS
    here, there = (flow.source, flow.destination) if egress else (flow.destination, flow.source)
    answerer = Answerer(tables, vni)
    subject, peer = answerer.site(here), answerer.site(there)
    judged = oracle.judge(flow)
    rule = ""
    if not peer.endpoint and peer.overlay:
        allowed, reason = False, Reason["NO_ENDPOINT"]
    else:
        verdict = answerer.verdict(subject, peer, flow.direction, flow.protocol, flow.port)
        allowed, reason = verdict.allowed, verdict.reason
        rule = tables.rules.get(verdict.rule, "")
    doubt = ""
    if judged is not None:
        expected = ""
        if judged.policy is not None:
            expected = rule_text(judged.policy, flow.direction, judged.index)
        if (allowed, reason, rule) != (judged.allowed, judged.reason, expected):
            doubt = (
                f"the tables of {endpoint.host} say {reason.name} {rule}, "
                f"the policies say {judged.reason.name} {expected}"
            )
            _log.error("%s: %s", flow, doubt)
    return Stage(
        flow.direction,
        f"{endpoint.namespace}/{endpoint.name}",
        endpoint.host,
        allowed,
        reason,
        rule,
        doubt,
    )


def _endpoint(state: State, network: str, address: IPAddress) -> Endpoint | None:
    hosts = {host.name for host in state.hosts}
    ranges = [cidr for item in state.networks if item.name == network for cidr in item.cidrs]
    if not any(address in cidr for cidr in ranges):
        return None
    return next(
        (
            item
            for item in state.endpoints
            if item.network == network and item.address == address and item.host in hosts
        ),
        None,
    )


def _address(state: State, network: str, text: str | IPAddress, field: str) -> IPAddress:
    try:
        return IPAddress(text)
    except (AddrFormatError, ValueError):
        pass
    namespace, slash, name = str(text).rpartition("/")
    found = [
        item.address
        for item in state.endpoints
        if item.network == network
        and item.name == name
        and (not slash or item.namespace == namespace)
    ]
    if len(found) > 1:
        raise InvalidValue(field, "namespace/name, since several have that name", text)
    if not found:
        raise NotFound(f"{field}: no endpoint {str(text)!r} in network {network!r}")
    return found[0]


def _words(state: State, network: str, address: IPAddress) -> str:
    endpoint = _endpoint(state, network, address)
    if endpoint is not None:
        return f"{endpoint.namespace}/{endpoint.name} ({address})"
    for host in state.hosts:
        if host.address == address:
            return f"host {host.name} ({address})"
    return str(address)
