# SPDX-License-Identifier: Apache-2.0
"""The clauses: each takes a stage that nothing has happened on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from slimnet.exceptions import AbiMismatch, ConfigError, InUse, SlimnetError
from slimnet.model import Direction, EventKind, Probe, Reason
from slimnet.testing._resident import Reached
from slimnet.testing._snapshot import differences
from slimnet.testing._stage import ALLOWED, CAST, FORBIDDEN, NETWORK, Stage

__all__ = ["CLAUSES"]

#: Seconds in which a refusal must have come: before the first retransmission of a SYN.
_PROMPT = 0.9
_NOBODY = "10.99.0.200"

CLAUSES: dict[str, Callable[[Stage], None]] = {}


def _clause(check: Callable[[Stage], None]) -> Callable[[Stage], None]:
    CLAUSES[check.__name__] = check
    return check


def _expect(holds: object, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _same(before: frozenset[str], after: frozenset[str], when: str) -> None:
    found = differences(before, after)
    _expect(not found, f"{when}:\n{found}")


def _raises(kind: type[Exception], call: Callable[[], object], what: str) -> Exception:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{what}: wanted {kind.__name__}, got no error")


def _made(reached: Reached, what: str) -> Reached:
    _expect(reached, f"{what}: should be allowed, got {reached.text}")
    return reached


def _refused(reached: Reached, what: str) -> None:
    _expect(not reached, f"{what}: should be refused, was made")
    _expect(reached.seconds < _PROMPT, f"{what}: refused after {reached.seconds:.1f} s only")


def _start(stage: Stage, *names: str, generation: int = 1) -> None:
    """Hosts with a data path, endpoints, tables, and servers in those that serve."""
    for host in sorted({int(CAST[name].host[1:]) - 1 for name in names}):
        stage.open(host)
    stage.attach(*names)
    stage.install(generation)
    for name in names:
        if CAST[name].identity == CAST["server"].identity:
            stage.serve(name, ALLOWED, FORBIDDEN)


@_clause
def probe_changes_nothing(stage: Stage) -> None:
    """A probe answers, and leaves the machine as it was."""
    before = stage.snapshot()
    _expect(isinstance(stage.probe(), Probe), "probe() must return a Probe")
    _same(before, stage.snapshot(), "after probe()")


@_clause
def a_wrong_option_is_refused(stage: Stage) -> None:
    """ConfigError names the option, and nothing was changed."""
    before = stage.snapshot()
    options = {"no-such-option": 1}
    error = _raises(ConfigError, lambda: stage.open(0, options), "an unknown option")
    _expect("no-such-option" in str(error), f"the error does not name the option: {error}")
    _same(before, stage.snapshot(), "after a wrong option")


@_clause
def closed_before_the_first_tables(stage: Stage) -> None:
    """Before the first tables an endpoint reaches nothing and nobody."""
    stage.open(0)
    stage.open(1)
    stage.attach("client", "server", "neighbour")
    _expect(stage.backends[0].status().generation == 0, "generation before the first tables is 0")
    stage.serve("h3", ALLOWED)
    serving = _try_to_serve(stage, "server", "neighbour")
    for to in ("server", "neighbour", stage.address(2), stage.address(1), _NOBODY):
        _expect(not stage.reach("client", to, ALLOWED), f"client reached {to} without tables")
    stage.install(1)
    for name in {"server", "neighbour"} - serving:
        stage.serve(name, ALLOWED)
    for to in ("server", "neighbour", stage.address(2)):
        _made(stage.reach("client", to, ALLOWED), f"client to {to}, with tables")


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


@_clause
def tables_decide(stage: Stage) -> None:
    """Both ends' policies hold, on one host, between two, to the outside; refusals are prompt."""
    _start(stage, "client", "server", "stranger", "neighbour")
    stage.serve("client", 9090)
    stage.serve("h2", 7000)
    stage.serve("h3", 7000)
    for to in ("server", "neighbour"):
        reached = _made(stage.reach("client", to, ALLOWED), f"client to {to}")
        if not stage.simulated:
            client, other = str(CAST["client"].address), str(CAST[to].address)
            _expect(reached.peer == (other, ALLOWED), f"getpeername says {reached.peer}")
            _expect(reached.local and reached.local[0] == client, f"getsockname: {reached.local}")
            _expect(reached.seen == reached.local, f"the acceptor sees {reached.seen}")
        _refused(stage.reach("client", to, FORBIDDEN), f"client to {to}, port {FORBIDDEN}")
        _refused(stage.reach("stranger", to, ALLOWED), f"stranger to {to}")
    _made(stage.reach("neighbour", "client", 9090), "neighbour to client")
    _refused(stage.reach("stranger", "client", 9090), "stranger to client (egress)")
    outside = _made(stage.reach("client", stage.address(2), 7000), "client to the outside")
    if outside.seen:
        _expect(outside.seen[0] == str(stage.address(0)), f"outside sees {outside.seen}")
    _refused(stage.reach("client", stage.address(1), 7000), "client to a host of the cluster")
    _refused(stage.reach("client", _NOBODY, ALLOWED), "client to an address that nobody has")


@_clause
def what_happened_is_told(stage: Stage) -> None:
    """Refusals are counted and make events; live connections are listed at both ends."""
    _start(stage, "client", "server")
    here, there = (stage.backends[host] for host in (0, 1))
    reason = Reason["DEFAULT_DENY"]
    before = there.status().counters.get(reason, 0)
    there.events(0)
    _refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port")
    _expect(there.status().counters.get(reason, 0) > before, f"{reason!r} was not counted")
    events = [event for event in there.events(3) if event.kind is EventKind.REFUSED]
    _expect(len(events) == 1, f"one refusal, {len(events)} events")
    told = events[0]
    _expect(
        (told.endpoint, told.peer_endpoint, told.direction, told.reason)
        == (CAST["server"].id, CAST["client"].id, Direction.INGRESS, reason),
        f"the event says {told}",
    )
    _expect(
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
            _expect(found == [wanted], f"{name}: wanted the connection {wanted}, got {found}")


@_clause
def install_is_atomic(stage: Stage) -> None:
    """The generation says what is in force; what every generation allows never notices."""
    _start(stage, "client", "server", "neighbour")
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
            _expect(found == generation, f"h{host + 1} says {found} after {generation}")
        for to in ("server", "neighbour"):
            reached = stage.reach("client", to, FORBIDDEN)
            _expect(bool(reached) == (generation % 2 == 0), f"{generation}: {to}: {reached}")
    if not stage.simulated:
        _expect(client.talk("live"), "a live connection broke")
        for loop in ("across", "beside"):
            result = client.stop(loop)
            _expect(result["succeeded"], f"{loop}: never ran: {result}")
            _expect(not result["failed"], f"{loop}: failed meanwhile: {result}")
            _expect(result["slowest"] < _PROMPT, f"{loop}: stalled meanwhile: {result}")


@_clause
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
    _made(stage.reach("neighbour", "client", 9090), "neighbour to client")
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
        _expect(not stage.reach("stranger", address, port), f"stranger: {to} made")
    if not stage.simulated:
        _made(stage.reach("client", "server", ALLOWED), "client to server, afterwards")
        for name in loops:
            result = stage.resident("stranger").stop(name)
            _expect(result["failed"], f"{name}: never ran: {result}")
            _expect(not result["succeeded"], f"stranger: {name}: made meanwhile: {result}")


@_clause
def attach_again_changes_nothing(stage: Stage) -> None:
    """The same attachment, the same machine, with tables and without."""
    backend = stage.open(0)
    for generation in (0, 1):
        if generation:
            stage.install(generation)
        first = backend.attach(CAST["client"], NETWORK)
        before, status = stage.snapshot(), backend.status()
        _expect(backend.attach(CAST["client"], NETWORK) == first, "another attachment came back")
        _same(before, stage.snapshot(), "after the second attach")
        _expect(_core(status) == _core(backend.status()), "the status changed")


@_clause
def a_given_cgroup_is_used(stage: Stage) -> None:
    """``endpoint.cgroup`` is where the endpoint's processes are."""
    backend = stage.open(0)
    endpoint = stage.given("client")
    attachment = backend.attach(endpoint, NETWORK)
    _expect(str(attachment.cgroup) == endpoint.cgroup, f"the attachment says {attachment.cgroup}")
    backend.detach(endpoint.id)
    _expect(not backend.status().endpoints, "still attached after detach")


@_clause
def detach_refuses_while_it_is_used(stage: Stage) -> None:
    """InUse while there are processes, which stay policed; what is not attached is no error."""
    _start(stage, "client", "server")
    backend = stage.backends[0]
    endpoint = CAST["client"].id
    backend.detach(4711)
    with stage.occupied("client"):
        _raises(InUse, lambda: backend.detach(endpoint), "detach with a process")
        _expect(endpoint in backend.status().endpoints, "detached all the same")
        _made(stage.reach("client", "server", ALLOWED), "client to server, after InUse")
        _refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port, after InUse")
    backend.detach(endpoint)
    _expect(endpoint not in backend.status().endpoints, "still attached after detach")
    _expect(not stage.attachments["client"].cgroup.exists(), "its cgroup is still there")
    backend.detach(endpoint)


@_clause
def close_lets_go(stage: Stage) -> None:
    """The data path goes on, and the next backend adopts it."""
    _start(stage, "client", "server")
    if not stage.simulated:
        stage.resident("client").hold("live", str(CAST["server"].address), ALLOWED)
    _refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port")
    status = {host: backend.status() for host, backend in stage.backends.items()}
    before = stage.snapshot()
    for host, backend in stage.backends.items():
        backend.close()
        backend.close()
        calls: dict[str, tuple[object, ...]] = {
            "attach": (CAST["client"], NETWORK),
            "detach": (CAST["client"].id,),
            "install": (stage.tables(host, 2),),
            "status": (),
            "connections": (),
            "events": (0,),
            "teardown": (),
        }
        for name, arguments in calls.items():
            _raises(SlimnetError, partial(getattr(backend, name), *arguments), f"closed: {name}")
    _same(before, stage.snapshot(), "after close")
    if not stage.simulated:
        _expect(stage.resident("client").talk("live"), "a live connection broke")
        _made(stage.reach("client", "server", ALLOWED), "client to server, after close")
        _refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port, after close")
    for host in (0, 1):
        adopted = stage.open(host)
        found = adopted.status()
        _expect(_core(found) == _core(status[host]), "the adopted status differs")
        for reason, count in status[host].counters.items():
            _expect(found.counters.get(reason, 0) >= count, f"the count of {reason!r} was lost")
    known = dict(stage.attachments)
    stage.attach("client", "server")
    _expect(known == stage.attachments, "adopted, but attached anew")
    stage.install(2, both=True)
    _made(stage.reach("client", "server", FORBIDDEN), "the new generation, after adoption")
    if not stage.simulated:
        _expect(stage.resident("client").talk("live"), "a live connection broke")


def _core(status: object) -> tuple[object, ...]:
    return tuple(getattr(status, name) for name in ("generation", "endpoints", "abi"))


#: Each ends with client and neighbour attached, and the second tables.
_WAYS: tuple[tuple[str, ...], ...] = (
    ("+client", "+neighbour", "1", "2"),
    ("2", "+neighbour", "+client"),
    ("+stranger", "+client", "1", "-stranger", "+neighbour", "2"),
    ("+client", "2", "-client", "+neighbour", "+client", "reopen", "+client"),
    ("1", "+neighbour", "reopen", "+client", "2", "2"),
    ("2", "reopen", "+client", "+neighbour", "2"),
    ("1", "+client", "-client", "-client", "2", "+neighbour", "reopen", "+client", "2"),
)


@_clause
def the_state_counts_not_the_way(stage: Stage) -> None:
    """Calls in any order that end in one state end in one data path."""
    seen = set()
    for way in _WAYS:
        backend = stage.open(0)
        for step in way:
            if step == "reopen":
                backend.close()
                backend = stage.open(0)
            elif step.isdigit():
                stage.install(int(step), both=step == "2")
            elif step[0] == "+":
                stage.attach(step[1:])
            else:
                backend.detach(CAST[step[1:]].id)
        stage.serve("neighbour", ALLOWED, FORBIDDEN, FORBIDDEN + 1)
        stage.serve("client", 9090)
        flows = [
            bool(stage.reach("client", "neighbour", port))
            for port in (ALLOWED, FORBIDDEN, FORBIDDEN + 1)
        ]
        flows.append(bool(stage.reach("neighbour", "client", 9090)))
        _expect(flows == [True, True, False, True], f"after {' '.join(way)}: {flows}")
        seen.add(_core(backend.status()))
        for name in ("client", "neighbour"):
            stage.leave(name)
        backend.teardown()
    _expect(len(seen) == 1, f"the status depends on the way: {seen}")


@_clause
def another_contract_is_refused(stage: Stage) -> None:
    """AbiMismatch, and what runs is left as it was."""
    _start(stage, "client", "server")
    for backend in stage.backends.values():
        backend.close()
    before = stage.snapshot()
    if stage.mismatch is None:
        raise RuntimeError("this clause needs a mismatch")
    with stage.on(0), stage.mismatch(stage.context(0)):
        foreign = stage.snapshot()
        _raises(AbiMismatch, lambda: stage.open(0), "a data path of another contract")
        _same(foreign, stage.snapshot(), "after AbiMismatch")
        if not stage.simulated:
            _made(stage.reach("client", "server", ALLOWED), "client to server, after AbiMismatch")
            _refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port")
    _same(before, stage.snapshot(), "after the mismatch was over")
    _expect(stage.open(0).status().generation == 1, "not adopted after the mismatch was over")


@_clause
def teardown_leaves_nothing(stage: Stage) -> None:
    """It refuses while an endpoint is used, changing nothing; then it removes everything."""
    before = stage.snapshot()
    stage.open(0).teardown()
    _same(before, stage.snapshot(), "after the teardown of an unused backend")
    _start(stage, "client", "neighbour", generation=3)
    backend = stage.backends[0]
    stage.leave("neighbour")
    with stage.occupied("client"):
        used, status = stage.snapshot(), backend.status()
        _raises(InUse, backend.teardown, "teardown with a process")
        _same(used, stage.snapshot(), "after a teardown that was refused")
        _expect(_core(status) == _core(backend.status()), "the status changed")
        _expect(not stage.reach("client", "neighbour", FORBIDDEN), "unpoliced after InUse")
    backend.teardown()
    _same(before, stage.snapshot(), "after teardown")
    _raises(SlimnetError, backend.status, "status after teardown")
    _expect(stage.open(0).status().generation == 0, "the next data path begins with tables")
