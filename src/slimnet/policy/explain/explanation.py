# SPDX-License-Identifier: Apache-2.0
"""Why a flow is allowed or denied, stage by stage."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from attrs import evolve, frozen
from netaddr import AddrFormatError, IPAddress

from slimnet import contract, names, wires
from slimnet.exceptions import InvalidValue, NotFound
from slimnet.model import (
    Decision,
    Direction,
    Endpoint,
    Feature,
    Flow,
    Protocol,
    Reason,
    Verdict,
    Way,
    WayKind,
)
from slimnet.policy.compile.compiler import compile as compile_tables
from slimnet.policy.compile.compiler import rule_text
from slimnet.policy.document import Service
from slimnet.policy.explain.decision import Answerer
from slimnet.policy.explain.oracle import Judgement, Oracle
from slimnet.policy.explain.translation import Branch, some, title, translate
from slimnet.policy.state import State
from slimnet.tables import Tables

__all__ = ["Explanation", "Stage", "explain"]

_log = logging.getLogger(__name__)

#: Host name and flow to what that host's data path itself answers, where it can be asked.
Ask = Callable[[str, Flow], Decision | None]

#: Refusals that are some policy's word; every other one is the data path's own.
_POLICY = frozenset({Reason["RULE_DENY"], Reason["DEFAULT_DENY"], Reason["HOST_DENY"]})


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
        doubt: empty; else how tables, policies (the oracle) and data path differ, which
            is a defect of slimnet.
        peer: of a flow to a service, ``namespace/name`` of the endpoint that this stage
            takes to serve it; else empty.
        way: EGRESS: what the data path of ``host`` does with the call, or where it was not
            asked, that it refuses what its host says that it cannot carry; else ``None``.
    """

    direction: Direction
    endpoint: str
    host: str
    allowed: bool
    reason: Reason
    rule: str = ""
    doubt: str = ""
    peer: str = ""
    way: Way | None = None

    @property
    def refusal(self) -> Way | None:
        """The data path's own refusal, before or after what the policy says."""
        way = self.way
        if way is None or way.kind is not WayKind.REFUSED:
            return None
        return None if way.reason in _POLICY or way.reason is self.reason else way


@frozen
class Explanation:
    """The whole way of a flow.

    Attributes:
        allowed: whether every stage allows it and the source's data path carries it; of a
            service, for any of its endpoints.
        source: who opens it: ``namespace/name`` with address, or what the address is.
        destination: likewise.
        protocol: in lower case.
        port: destination port.
        stages: egress, then ingress, as far as there is an endpoint to ask; of a service,
            for each of its endpoints.
        summary: one line; says loudly where a stage is in doubt.
        translation: what becomes of the addresses on the way, in one line; or empty.
        refusal: why the data path refuses it whatever policy says, if it does (of a service,
            for all of its endpoints).
    """

    allowed: bool
    source: str
    destination: str
    protocol: str
    port: int
    stages: tuple[Stage, ...]
    summary: str
    translation: str = ""
    refusal: Reason | None = None


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
    ask: Ask | None = None,
) -> Explanation:
    """Whether a flow is allowed, at which stage it is not, and by which rule.

    Args:
        state: the desired state.
        flow: the flow; its direction does not matter, both are asked. Or without it:
        network: that both ends are seen from.
        source: an address, or an endpoint's ``[[network/]namespace/]name``.
        destination: likewise; or a service's, where no endpoint has that name.
        port: destination port.
        protocol: ``tcp``, ``udp``, ``sctp`` or ``icmp``.
        tables: host name to the tables in force there; compiled afresh by default.
        ask: host name and flow to what that host's data path itself answers, where it
            can be asked.

    Raises:
        NotFound: no such network, endpoint or service.
        InvalidValue: no such protocol or port; or several endpoints are named so.
    """
    if flow is None:
        if protocol.upper() not in Protocol.__members__:
            known = ", ".join(name.lower() for name in Protocol.__members__)
            raise InvalidValue("protocol", f"one of {known}", protocol)
        flow = Flow(
            network,
            _address(state, network, source, "source"),
            _address(state, network, destination, "destination", services=True),
            Protocol[protocol.upper()],
            port,
            Direction.EGRESS,
        )
    if not any(item.name == flow.network for item in state.networks):
        raise NotFound(f"no network {flow.network!r}")
    flow = evolve(flow, direction=Direction.EGRESS)
    judges = _Judges(state, tables or cache(lambda host: compile_tables(state, host)), ask)
    translation = translate(judges.oracle, judges.tables, flow)
    stages: list[Stage] = []
    answers: dict[str, list[str]] = {}
    for branch in translation.branches:
        taken = judges.follow(branch)
        stages += taken
        answers.setdefault(_words(taken), []).append(branch.peer)
    if translation.refusal is not None:
        taken = judges.refuse(flow, translation.refusal)
        stages += taken
        words = f"denied at egress: {_REASONS[translation.refusal.name]}"
        answers[_words(taken) if taken else words] = []
    refusals = {stage.refusal.reason for stage in stages if stage.refusal}
    doubts = dict.fromkeys(stage.doubt for stage in stages if stage.doubt)
    if translation.service and (doubt := judges.doubt_choice(flow, translation.branches)):
        doubts[doubt] = None
    for doubt in doubts:
        _log.error("%s: %s", flow, doubt)
    if len(answers) > 1:
        each = (f"{words} ({some(peers)})" for words, peers in answers.items())
        verdict = f"depends on the endpoint: {'; '.join(each)}"
    elif stages or translation.refusal:
        (verdict,) = answers
    else:
        verdict = "allowed: no endpoint of this network takes part"
    ends = [
        title(judges.oracle, flow.network, address) for address in (flow.source, flow.destination)
    ]
    word = flow.protocol.name.lower()
    summary = f"{ends[0]} to {ends[1]} {word} port {flow.port}: {verdict}"
    return Explanation(
        "allowed" in answers,
        ends[0],
        ends[1],
        word,
        flow.port,
        tuple(stages),
        "; IN DOUBT, a defect of slimnet: ".join([summary, *doubts]),
        translation.text,
        next(iter(refusals)) if len(refusals) == 1 and len(answers) == 1 else None,
    )


_REASONS = {
    "DEFAULT_DENY": "a policy selects it and no rule allows this",
    "HOST_DENY": "a host of the cluster, and no rule allows it by name",
    "NO_ENDPOINT": "no endpoint has that overlay address",
    "NO_BACKEND": "no endpoint serves this port of the service",
    "NO_SERVICE_PORT": "the service has no such port",
    "UNREACHABLE": "no wire in common with its host",
    "INNER_ADDRESS": "an inner address, where sockets of endpoints sit",
    "WIRE_PORT": "a wire port, where endpoints' connections arrive",
    "PROTOCOL": "endpoints have TCP and UDP sockets only",
    "DATAGRAM": "datagrams to endpoints, to loopback or to many are not carried",
    "FAMILY": "IPv6 is not carried",
    "NO_TABLES": "its host has no tables yet",
}


def _words(taken: Sequence[Stage]) -> str:
    """What comes of one branch, as connect(2) finds it: an own refusal hides the policies'."""
    for stage in taken:
        if (way := stage.refusal) is not None:
            why = _REASONS.get(way.reason.name, way.reason.name)
            number = errno.errorcode.get(way.error, str(way.error))
            return f"refused by host {stage.host}: {why} ({way.reason.name.lower()}, {number})"
    return next((_denial(stage) for stage in taken if not stage.allowed), "allowed")


def _denial(stage: Stage) -> str:
    word = stage.reason.name
    why = f" by {stage.rule}" if stage.rule else f": {_REASONS.get(word, word)}"
    return f"denied at {stage.direction.name.lower()}{why}"


class _Judges:
    """Who is asked: a host's tables, its data path, and the policies (by the oracle)."""

    def __init__(self, state: State, tables: Callable[[str], Tables], ask: Ask | None) -> None:
        vnis = {network.name: network.vni for network in state.networks}
        self.tables = tables
        self.oracle = Oracle(state)
        self._answerer = cache(lambda host, network: Answerer(tables(host), vnis[network]))
        self._ask = ask or (lambda _host, _flow: None)

    def follow(self, branch: Branch) -> list[Stage]:
        """Both ends of one branch, as far as they are endpoints."""
        stages = (
            self._stage(evolve(branch.egress, direction=Direction.EGRESS), branch.peer),
            self._stage(evolve(branch.ingress, direction=Direction.INGRESS), branch.peer),
        )
        return [stage for stage in stages if stage is not None]

    def refuse(self, flow: Flow, reason: Reason) -> list[Stage]:
        """The one end of a flow to a service that leads nowhere."""
        stage = self._stage(flow, "", Judgement(False, reason))
        return [] if stage is None else [stage]

    def doubt_choice(self, flow: Flow, branches: tuple[Branch, ...]) -> str:
        """Whether a host takes others than these to serve a flow."""
        source = self.oracle.endpoint(flow.network, flow.source)
        if source is None:
            return ""
        wanted = {(each.egress.destination, each.egress.port) for each in branches}
        tables = self.tables(source.host)
        answerer = self._answerer(source.host, flow.network)
        record = answerer.service(flow.destination, flow.protocol, flow.port)
        slots = set(record.slots) if record else set()
        known = tables.endpoints
        found = {(known[each].address, port) for each, port in slots if each in known}
        # Of more endpoints than there are slots some have none.
        if not found <= wanted or len(found) != min(len(wanted), contract.SLIM_SERVICE_SLOTS):
            return f"the tables of {source.host} have other endpoints for it than the services say"
        asked = self._ask(source.host, flow)
        if asked is not None and asked.target not in wanted:
            address, port = asked.target
            return f"the data path of {source.host} takes it to {address}:{port}"
        return ""

    def _stage(self, flow: Flow, peer: str, judged: Judgement | None = None) -> Stage | None:
        """The end that the flow's direction says; ``None`` where it is no endpoint."""
        egress = flow.direction is Direction.EGRESS
        here = flow.source if egress else flow.destination
        endpoint = self.oracle.endpoint(flow.network, here)
        judged = judged or self.oracle.judge(flow)
        if endpoint is None or judged is None:
            return None
        host = endpoint.host
        rules = self.tables(host).rules
        decision = self._answerer(host, flow.network).decision(
            flow, lambda record, _: record.slots[0]
        )
        verdict = decision.verdict
        rule = rules.get(verdict.rule, "")
        expected = ""
        if judged.policy is not None:
            expected = rule_text(judged.policy, flow.direction, judged.index)
        said = {
            f"the tables of {host} say": (verdict.allowed, verdict.reason, rule),
            "the policies say": (judged.allowed, judged.reason, expected),
        }
        asked = self._ask(host, flow)
        if asked is not None:
            words = rules.get(asked.verdict.rule, f"rule {asked.verdict.rule}")
            said[f"the data path of {host} (generation {asked.generation}) says"] = (
                asked.verdict.allowed,
                asked.verdict.reason,
                words if asked.verdict.rule else "",
            )
        return Stage(
            flow.direction,
            endpoint.title,
            host,
            verdict.allowed,
            verdict.reason,
            rule,
            _doubt(said),
            peer,
            asked.way if asked is not None else self._way(flow, verdict, behind=bool(peer)),
        )

    def _way(self, flow: Flow, verdict: Verdict, *, behind: bool) -> Way | None:
        """What a data path that was not asked refuses by itself, by what its host says that it
        is able to; ``behind``: the destination is one of a service's endpoints."""
        if flow.direction is not Direction.EGRESS:
            return None
        hosts = {host.name: host for host in self.oracle.state.hosts}
        source = self.oracle.endpoint(flow.network, flow.source)
        peer = self.oracle.endpoint(flow.network, flow.destination)
        here = None if source is None else hosts[source.host]
        if here is None or not here.wires:
            return None
        if behind and Feature.SERVICES not in here.features:
            return Way(WayKind.REFUSED, Reason["NO_ENDPOINT"], errno.EHOSTUNREACH)
        there = here if peer is None else hosts[peer.host]
        if not there.wires or wires.choose(here, there, flow.protocol) is not None:
            return None
        if flow.protocol is Protocol.TCP:  # the one that is asked behind the policy
            way = Way(WayKind.REFUSED, Reason["UNREACHABLE"], errno.EHOSTUNREACH)
            return way if verdict.allowed else None
        if flow.protocol is not Protocol.UDP:
            return Way(WayKind.REFUSED, Reason["PROTOCOL"], errno.EPROTONOSUPPORT)
        # To the outside datagrams leave as the host's.
        if peer is None:
            return None
        return Way(WayKind.REFUSED, Reason["DATAGRAM"], errno.ENETUNREACH)


def _doubt(said: Mapping[str, tuple[bool, Reason, str]]) -> str:
    """Empty where all say the same."""
    if len(set(said.values())) == 1:
        return ""
    return ", ".join(
        " ".join(filter(None, (who, "allowed:" if allowed else "denied:", reason.name, rule)))
        for who, (allowed, reason, rule) in said.items()
    )


def _address(
    state: State, network: str, text: str | IPAddress, field: str, *, services: bool = False
) -> IPAddress:
    try:
        address = IPAddress(text)
        mapped = address.version == 6 and address.is_ipv4_mapped()
        return address.ipv4() if mapped else address
    except (AddrFormatError, ValueError):
        pass
    found: Endpoint | Service | None = names.find(state.endpoints, str(text), network, field=field)
    if found is None and services:
        found = names.find(state.services, str(text), network, field=field)
    if found is None or found.address is None:
        kind = "endpoint or service" if services else "endpoint"
        raise NotFound(f"{field}: no {kind} {str(text)!r} in network {network!r}")
    return found.address
