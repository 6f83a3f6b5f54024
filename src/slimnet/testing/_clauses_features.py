# SPDX-License-Identifier: Apache-2.0
"""The clauses on live connections, on what a backend says of itself, and on each
feature that it declares."""

from __future__ import annotations

import time
from collections.abc import Callable

from slimnet.model import Direction, Feature, Flow, Protocol, Reason
from slimnet.tables import LimitRecord, PublishKey, PublishRecord
from slimnet.testing._expectations import clause, expect, made, refused, start
from slimnet.testing._resident import Reached, Resident
from slimnet.testing._stage import ALLOWED, CAST, FORBIDDEN, NETWORK, SERVICE, Stage

_RATE = 1 << 18


@clause
def live_connections_follow_the_tables(stage: Stage) -> None:
    """What new tables forbid ends within a second; what they allow never notices."""
    start(stage, "client", "server", "neighbour")
    stage.install(2, both=True)
    if stage.simulated:
        return
    client = stage.resident("client")
    for to in ("server", "neighbour"):
        for port in (ALLOWED, FORBIDDEN):
            client.hold(f"{to} {port}", str(CAST[to].address), port)
    stage.install(3)
    deadline = time.monotonic() + 1
    for to in ("server", "neighbour"):
        expect(_talks(client, f"{to} {ALLOWED}"), f"{to}: an allowed connection broke")
        while _talks(client, f"{to} {FORBIDDEN}"):
            expect(time.monotonic() < deadline, f"{to}: a forbidden connection lives on")
        expect(_talks(client, f"{to} {ALLOWED}"), f"{to}: an allowed connection broke")


@clause
def the_data_path_can_be_asked(stage: Stage) -> None:
    """:meth:`~slimnet.abc.Backend.ask` answers as connects are decided, and counts nothing;
    a backend that cannot be asked always says so."""
    start(stage, "client", "server", "stranger")
    here, there = stage.backends[0], stage.backends[1]
    counted = [backend.status().counters for backend in (here, there)]
    client, server, stranger = (CAST[name].address for name in ("client", "server", "stranger"))
    egress, ingress = Direction.EGRESS, Direction.INGRESS
    asked = [
        (here, client, server, ALLOWED, egress, Reason["DEFAULT_ALLOW"]),
        (here, stranger, client, ALLOWED, egress, Reason["RULE_DENY"]),
        (here, client, stage.address(1), 7000, egress, Reason["HOST_DENY"]),
        (here, client, client, 7000, egress, Reason["SELF"]),
        (here, client, NETWORK.cidrs[0][200], ALLOWED, egress, Reason["NO_ENDPOINT"]),
        (there, client, server, ALLOWED, ingress, Reason["RULE_ALLOW"]),
        (there, client, server, FORBIDDEN, ingress, Reason["DEFAULT_DENY"]),
        (there, stranger, server, ALLOWED, ingress, Reason["DEFAULT_DENY"]),
    ]
    answered = set()
    for backend, source, destination, port, direction, reason in asked:
        flow = Flow(NETWORK.name, source, destination, Protocol.TCP, port, direction)
        answer = backend.ask(flow, NETWORK)
        answered.add(answer is not None)
        if answer is not None:
            expect(answer.verdict.reason is reason, f"{flow}: {answer.verdict}, not {reason!r}")
            allowed = "ALLOW" in reason.name or reason.name == "SELF"
            expect(answer.verdict.allowed is allowed, f"{flow}: {answer.verdict}")
            expect(answer.generation == 1, f"{flow}: by generation {answer.generation}")
    expect(len(answered) == 1, "answered some questions and not others")
    again = [backend.status().counters for backend in (here, there)]
    expect(counted == again, "a question was counted")


@clause
def services_are_dialled(stage: Stage) -> None:
    """A service's address leads to an endpoint behind it, which policy is asked for."""
    start(stage, "client", "server", "stranger", "neighbour")
    if Feature.SERVICES not in stage.backends[0].capabilities.features:
        return
    stage.install(2, service=("server", "neighbour"))
    reached = made(stage.reach("client", SERVICE, 80), "client to the service")
    if reached.peer:
        expect(reached.peer == (str(SERVICE), 80), f"getpeername says {reached.peer}")
    refused(stage.reach("stranger", SERVICE, 80), "stranger to the service")
    refused(stage.reach("client", SERVICE, 81), "client to another port of the service")
    stage.install(3, service=())
    refused(stage.reach("client", SERVICE, 80), "client to a service without endpoints")
    stage.install(4)
    refused(stage.reach("client", SERVICE, 80), "client to a service that is gone")


@clause
def ports_are_published(stage: Stage) -> None:
    """A port of the host is the endpoint's, with the client's own address; and then no more."""
    start(stage, "client")
    if Feature.PUBLISHED_PORTS not in stage.backends[0].capabilities.features:
        return
    stage.serve("client", 9090)
    _published(stage, Protocol.TCP, 8090, 9090, Resident.connect)


@clause
def datagrams_are_published(stage: Stage) -> None:
    """So is a port of UDP, of an endpoint with a network namespace of its own."""
    start(stage, "client")
    features = stage.backends[0].capabilities.features
    if Feature.PUBLISHED_DATAGRAMS not in features or stage.places["client"].netns is None:
        return
    if not stage.simulated:
        stage.resident("client").serve_datagrams(9053)
    _published(stage, Protocol.UDP, 8053, 9053, Resident.exchange)


def _published(
    stage: Stage,
    protocol: Protocol,
    port: int,
    target: int,
    reach: Callable[[Resident, str, int], Reached],
) -> None:
    key = PublishKey(None, protocol, port)
    stage.install(2, published={key: PublishRecord(CAST["client"].id, target)})
    if stage.simulated:
        return
    outside, address = stage.resident("h3"), str(stage.address(0))
    reached = made(reach(outside, address, port), "outside to the published port")
    expect(reached.seen and reached.seen[0] == str(stage.address(2)), f"the server sees {reached}")
    stage.install(3)
    refused(reach(outside, address, port), "outside, when it is taken back")


@clause
def what_is_sent_is_on_account(stage: Stage) -> None:
    """Where a backend counts, it counts by endpoint, rule and direction."""
    start(stage, "client", "server")
    made(stage.reach("client", "server", ALLOWED), "client to server")
    refused(stage.reach("client", "server", FORBIDDEN), "client to server, forbidden")
    if not list(stage.backends[1].accounts()):
        return
    deadline = time.monotonic() + 2
    while True:
        found = {
            (each.endpoint, each.rule, each.direction): each
            for each in stage.backends[1].accounts()
        }
        server = CAST["server"].id
        by_rule = found.get((server, 1, Direction.INGRESS))
        by_none = found.get((server, 0, Direction.INGRESS))
        if by_rule and by_none and (by_rule.connections, by_none.refused) == (1, 1):
            return
        expect(time.monotonic() < deadline, f"the accounts say {found}")


@clause
def limits_hold_packets_back(stage: Stage) -> None:
    """A limited endpoint sends about what it may, an unlimited one beside it more."""
    start(stage, "client", "server", "neighbour")
    if stage.simulated or Feature.EGRESS_LIMITS not in stage.backends[0].capabilities.features:
        return
    limit = LimitRecord(rate=_RATE)
    stage.install(2, limits={CAST["client"].id: limit})
    client = stage.resident("client")
    held = client.send(str(CAST["server"].address), ALLOWED, 2 * _RATE)
    expect(held > 1, f"two seconds' worth of bytes went in {held:.2f} s")
    stage.install(3)
    # A busy machine may take its time once, and an emulated one takes some of it each time.
    free = min(client.send(str(CAST["server"].address), ALLOWED, 2 * _RATE) for _ in range(3))
    expect(free < held / 2, f"{held:.2f} s with a limit, {free:.2f} s without one")


def _talks(resident: Resident, name: str) -> bool:
    try:
        return resident.talk(name)
    except OSError:
        return False
