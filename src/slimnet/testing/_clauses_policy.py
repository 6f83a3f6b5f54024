# SPDX-License-Identifier: Apache-2.0
"""The clauses on what is decided, and at every moment."""

from __future__ import annotations

import time

from slimnet.model import Direction, EventKind, Reason
from slimnet.testing._expectations import (
    PROMPT,
    clause,
    expect,
    made,
    refused,
    start,
)
from slimnet.testing._stage import ALLOWED, CAST, FORBIDDEN, Stage

_NOBODY = "10.99.0.200"


@clause
def closed_before_the_first_tables(stage: Stage) -> None:
    """Before the first tables an endpoint reaches nothing and nobody."""
    stage.open(0)
    stage.open(1)
    stage.attach("client", "server", "neighbour")
    expect(stage.backends[0].status().generation == 0, "generation before the first tables is 0")
    stage.serve("h3", ALLOWED)
    serving = _try_to_serve(stage, "server", "neighbour")
    for to in ("server", "neighbour", stage.address(2), stage.address(1), _NOBODY):
        expect(not stage.reach("client", to, ALLOWED), f"client reached {to} without tables")
    stage.install(1)
    for name in {"server", "neighbour"} - serving:
        stage.serve(name, ALLOWED)
    for to in ("server", "neighbour", stage.address(2)):
        made(stage.reach("client", to, ALLOWED), f"client to {to}, with tables")


def _try_to_serve(stage: Stage, *names: str) -> set[str]:
    """Those that could: a backend may refuse to bind before it has tables."""
    serving = set()
    for name in names:
        try:
            stage.serve(name, ALLOWED)
        except OSError:
            continue
        serving.add(name)
    return serving


@clause
def tables_decide(stage: Stage) -> None:
    """Both ends' policies hold, on one host, between two, to the outside; refusals are prompt."""
    start(stage, "client", "server", "stranger", "neighbour")
    stage.serve("client", 9090)
    stage.serve("h2", 7000)
    stage.serve("h3", 7000)
    for to in ("server", "neighbour"):
        reached = made(stage.reach("client", to, ALLOWED), f"client to {to}")
        if not stage.simulated:
            client, other = str(CAST["client"].address), str(CAST[to].address)
            expect(reached.peer == (other, ALLOWED), f"getpeername says {reached.peer}")
            expect(reached.local and reached.local[0] == client, f"getsockname: {reached.local}")
            expect(reached.seen == reached.local, f"the acceptor sees {reached.seen}")
        refused(stage.reach("client", to, FORBIDDEN), f"client to {to}, port {FORBIDDEN}")
        refused(stage.reach("stranger", to, ALLOWED), f"stranger to {to}")
    made(stage.reach("neighbour", "client", 9090), "neighbour to client")
    refused(stage.reach("stranger", "client", 9090), "stranger to client (egress)")
    outside = made(stage.reach("client", stage.address(2), 7000), "client to the outside")
    if outside.seen:
        expect(outside.seen[0] == str(stage.address(0)), f"outside sees {outside.seen}")
    refused(stage.reach("client", stage.address(1), 7000), "client to a host of the cluster")
    refused(stage.reach("client", _NOBODY, ALLOWED), "client to an address that nobody has")


@clause
def what_happened_is_told(stage: Stage) -> None:
    """Refusals are counted and make events; live connections are listed at both ends."""
    start(stage, "client", "server")
    here, there = (stage.backends[host] for host in (0, 1))
    reason = Reason["DEFAULT_DENY"]
    before = there.status().counters.get(reason, 0)
    there.events(0)
    refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port")
    # Where the other host decides, this one hears of it later than the client.
    events = [event for event in there.events(3) if event.kind is EventKind.REFUSED]
    expect(len(events) == 1, f"one refusal, {len(events)} events")
    expect(there.status().counters.get(reason, 0) > before, f"{reason!r} was not counted")
    told = events[0]
    expect(
        (told.endpoint, told.peer_endpoint, told.direction, told.reason)
        == (CAST["server"].id, CAST["client"].id, Direction.INGRESS, reason),
        f"the event says {told}",
    )
    expect(
        (told.source[0], told.destination)
        == (CAST["client"].address, (CAST["server"].address, FORBIDDEN)),
        f"the event says {told.source} to {told.destination}",
    )
    if not stage.simulated:
        stage.resident("client").hold("one", str(CAST["server"].address), ALLOWED)
        for backend, name, other, direction in (
            (here, "client", "server", Direction.EGRESS),
            (there, "server", "client", Direction.INGRESS),
        ):
            found = [
                (item.endpoint, item.peer_endpoint, item.local[0], item.peer[0], item.direction)
                for item in backend.connections()
                if item.state == "ESTAB"
            ]
            one, two = CAST[name], CAST[other]
            wanted = (one.id, two.id, one.address, two.address, direction)
            expect(found == [wanted], f"{name}: wanted the connection {wanted}, got {found}")


@clause
def install_is_atomic(stage: Stage) -> None:
    """The generation says what is in force; what every generation allows never notices."""
    start(stage, "client", "server", "neighbour")
    server, neighbour = (str(CAST[name].address) for name in ("server", "neighbour"))
    if not stage.simulated:
        client = stage.resident("client")
        client.loop("across", server, ALLOWED)
        client.loop("beside", neighbour, ALLOWED)
        client.hold("live", server, ALLOWED)
    for generation in range(2, 12):
        stage.install(generation, both=generation % 2 == 0)
        stage.install(generation, both=generation % 2 == 0)
        for host, backend in stage.backends.items():
            found = backend.status().generation
            expect(found == generation, f"h{host + 1} says {found} after {generation}")
        for to in ("server", "neighbour"):
            reached = stage.reach("client", to, FORBIDDEN)
            expect(bool(reached) == (generation % 2 == 0), f"{generation}: {to}: {reached}")
    if not stage.simulated:
        expect(client.talk("live"), "a live connection broke")
        for loop in ("across", "beside"):
            result = client.stop(loop)
            expect(result["succeeded"], f"{loop}: never ran: {result}")
            expect(not result["failed"], f"{loop}: failed meanwhile: {result}")
            expect(result["slowest"] < PROMPT, f"{loop}: stalled meanwhile: {result}")


@clause
def never_unpoliced(stage: Stage) -> None:
    """Whatever happens to the backend, what is forbidden is never made."""
    stage.open(0)
    stage.open(1)
    stage.attach("stranger", "server", "neighbour", "client")
    stage.serve("h2", 7000)
    loops = {
        "across": (CAST["server"].address, ALLOWED),
        "beside": (CAST["neighbour"].address, ALLOWED),
        "egress": (CAST["client"].address, 9090),
        "host": (stage.address(1), 7000),
    }
    if not stage.simulated:
        for name, (address, port) in loops.items():
            stage.resident("stranger").loop(name, str(address), port)
        time.sleep(0.1)
    stage.install(1)
    for name in ("server", "neighbour"):
        stage.serve(name, ALLOWED)
    stage.serve("client", 9090)
    made(stage.reach("neighbour", "client", 9090), "neighbour to client")
    for generation in range(2, 7):
        stage.attach("stranger", "server", "neighbour", "client")
        stage.install(generation, both=generation % 2 == 0)
        for host in (0, 1):
            stage.backends[host].close()
            if not stage.simulated:
                time.sleep(0.05)
            stage.open(host)
        if generation % 2:
            stage.attach("stranger", "server", "neighbour", "client")
        stage.leave("client")
        stage.backends[0].detach(CAST["client"].id)
        stage.attach("client")
        stage.install(generation, both=generation % 2 == 0)
        stage.serve("client", 9090)
    for to, (address, port) in loops.items():
        expect(not stage.reach("stranger", address, port), f"stranger: {to} made")
    if not stage.simulated:
        made(stage.reach("client", "server", ALLOWED), "client to server, afterwards")
        for name in loops:
            result = stage.resident("stranger").stop(name)
            expect(result["failed"], f"{name}: never ran: {result}")
            expect(not result["succeeded"], f"stranger: {name}: made meanwhile: {result}")
