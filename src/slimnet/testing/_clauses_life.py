# SPDX-License-Identifier: Apache-2.0
"""The clauses on beginning, going on and ending."""

from __future__ import annotations

import time
from functools import partial

from attrs import evolve

from slimnet.exceptions import (
    AbiMismatch,
    BackendError,
    ConfigError,
    InUse,
    InvalidValue,
    SlimnetError,
)
from slimnet.model import Probe, Running
from slimnet.place import Life, Part
from slimnet.testing._expectations import (
    clause,
    core,
    expect,
    made,
    raises,
    refused,
    same,
    start,
)
from slimnet.testing._stage import ALLOWED, CAST, FORBIDDEN, NETWORK, Stage


@clause
def probe_changes_nothing(stage: Stage) -> None:
    """A probe answers, and leaves the machine as it was."""
    before = stage.snapshot()
    probed = stage.probe()
    expect(isinstance(probed, Probe), "probe() must return a Probe")
    same(before, stage.snapshot(), "after probe()")


@clause
def what_a_probe_promises_is_there(stage: Stage) -> None:
    """The instance's capabilities are those of the probe, which cannot say where one hears what
    others announce; without a wire, or without a part of a place, it would be no use."""
    probed, backend = stage.probe(), stage.open(0)
    said = evolve(backend.capabilities, control=probed.capabilities.control)
    expect(said == probed.capabilities, f"the probe: {probed.capabilities}; the instance: {said}")
    expect(said.wires, "it speaks no wire")
    expect(said.needs, "it knows endpoints by nothing")


@clause
def a_wrong_option_is_refused(stage: Stage) -> None:
    """ConfigError names the option, and nothing was changed."""
    before = stage.snapshot()
    options = {"no-such-option": 1}
    error = raises(ConfigError, lambda: stage.open(0, options), "an unknown option")
    expect("no-such-option" in str(error), f"the error does not name the option: {error}")
    same(before, stage.snapshot(), "after a wrong option")


@clause
def attach_again_changes_nothing(stage: Stage) -> None:
    """The same attachment, the same machine, with tables and without."""
    backend = stage.open(0)
    for generation in (0, 1):
        if generation:
            stage.install(generation)
        first = backend.attach(CAST["client"], NETWORK)
        before, status = stage.snapshot(), backend.status()
        expect(backend.attach(CAST["client"], NETWORK) == first, "another attachment came back")
        same(before, stage.snapshot(), "after the second attach")
        expect(core(status) == core(backend.status()), "the status changed")


@clause
def the_machine_says_what_runs(stage: Stage) -> None:
    """``find`` reads it from the data path, starting and changing nothing."""
    one, two = "1" * 32, "2" * 32
    before = stage.snapshot()
    expect(stage.find(0) is None, "something was found before anything was started")
    backend = stage.open(0, cluster=one)
    expect(stage.find(0) == Running((), one), f"without endpoints: {stage.find(0)}")
    stage.attach("client")
    backend.install(stage.tables(0, 1))
    with stage.occupied("client"):
        used = Running((stage.cgroup("client"),), one, (stage.cgroup("client"),))
        expect(stage.find(0) == used, f"with a process: {stage.find(0)}")
    backend.close()
    closed = stage.snapshot()
    wanted = Running(used.endpoints, one)
    expect(stage.find(0) == wanted, f"with one endpoint: {stage.find(0)}")
    expect(stage.find(1) is None, "found under another instance's name")
    same(closed, stage.snapshot(), "after find()")
    backend = stage.open(0, cluster=two)
    expect(stage.find(0) == Running(wanted.endpoints, two), f"adopted: {stage.find(0)}")
    backend.teardown()
    expect(stage.find(0) is None, "found after teardown")
    same(before, stage.snapshot(), "after teardown")


@clause
def one_id_is_one_endpoint(stage: Stage) -> None:
    """What has an attached one's id and not its address, network or cgroup is refused."""
    backend = stage.open(0)
    first = backend.attach(CAST["client"], NETWORK)
    stage.install(1)
    moved = evolve(CAST["client"], address=NETWORK.cidrs[0][77])
    others = (
        ("address", moved, NETWORK),
        ("network", CAST["client"], evolve(NETWORK, vni=NETWORK.vni + 1)),
        ("cgroup", stage.given("client", Part.CGROUP), NETWORK),
    )
    before, status = stage.snapshot(), backend.status()
    for what, endpoint, network in others:
        raises(BackendError, partial(backend.attach, endpoint, network), f"another {what}")
        same(before, stage.snapshot(), f"after another {what}")
        expect(core(status) == core(backend.status()), f"another {what} changed the status")
    expect(backend.attach(CAST["client"], NETWORK) == first, "no more what was attached")


@clause
def a_given_place_is_used_or_refused(stage: Stage) -> None:
    """A cgroup or a network namespace of the caller's, or both: one that the backend
    does not need is refused with the reason, and nothing changed; one that it needs is
    where the endpoint's processes are, policed as any other, and stays after detach."""
    start(stage, "client", "server", generation=1)
    backend = stage.backends[0]
    stage.leave("client")
    backend.detach(CAST["client"].id)
    for parts in ({Part.CGROUP}, {Part.NETNS}, {Part.CGROUP, Part.NETNS}):
        endpoint = stage.given("client", *parts)
        what = f"a given {' and '.join(sorted(parts))}"
        before, status = stage.snapshot(), backend.status()
        theirs = stage.snapshot_of_given()
        usable = backend.capabilities.needs | backend.capabilities.takes
        if parts - usable:
            error = raises(InvalidValue, partial(backend.attach, endpoint, NETWORK), what)
            reasons = [f"endpoint.{part}: wanted none (" for part in parts - usable]
            expect(any(each in str(error) for each in reasons), f"{what}: no reason: {error}")
            same(before, stage.snapshot(), f"after {what} that was refused")
            expect(core(status) == core(backend.status()), "the status changed")
            stage.take_back()
            continue
        stage.attach_as(endpoint)
        for part in parts:
            place = getattr(stage.places["client"], part)
            expect(str(place) == getattr(endpoint, part), f"{what}: attached in {place}")
        life = partial(backend.life, endpoint.full_name, endpoint.place)
        expect(life() is Life.IDLE, f"{what}: {life()} without processes")
        # Of a given namespace every process is the endpoint's, in whatever cgroup.
        within = parts if parts == {Part.NETNS} else {Part.CGROUP, Part.NETNS}
        with stage.occupied("client", within):
            made(stage.reach("client", "server", ALLOWED), f"{what}: client to server")
            refused(stage.reach("client", "server", FORBIDDEN), f"{what}: the forbidden port")
            if Part.CGROUP in parts:
                expect(life() is Life.BUSY, f"{what}: {life()} with a process")
                raises(InUse, lambda: backend.detach(CAST["client"].id), f"{what}: detach")
        backend.detach(endpoint.id)
        expect(not backend.status().endpoints, f"{what}: still attached after detach")
        same(theirs, stage.snapshot_of_given(), f"after {what} was detached")
        stage.take_back()
        expect(life() is Life.GONE, f"{what}: {life()} when it is gone")


@clause
def detach_refuses_while_it_is_used(stage: Stage) -> None:
    """InUse while there are processes, which stay policed; what is not attached is no error."""
    start(stage, "client", "server")
    backend = stage.backends[0]
    endpoint = CAST["client"].id
    backend.detach(4711)
    with stage.occupied("client"):
        raises(InUse, lambda: backend.detach(endpoint), "detach with a process")
        expect(endpoint in backend.status().endpoints, "detached all the same")
        made(stage.reach("client", "server", ALLOWED), "client to server, after InUse")
        refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port, after InUse")
    backend.detach(endpoint)
    expect(endpoint not in backend.status().endpoints, "still attached after detach")
    expect(not stage.cgroup("client").exists(), "its cgroup is still there")
    backend.detach(endpoint)


@clause
def close_lets_go(stage: Stage) -> None:
    """The data path goes on, and the next backend adopts it."""
    start(stage, "client", "server")
    if not stage.simulated:
        stage.resident("client").hold("live", str(CAST["server"].address), ALLOWED)
    refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port")
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
            raises(SlimnetError, partial(getattr(backend, name), *arguments), f"closed: {name}")
    same(before, stage.snapshot(), "after close")
    if not stage.simulated:
        expect(stage.resident("client").talk("live"), "a live connection broke")
        made(stage.reach("client", "server", ALLOWED), "client to server, after close")
        refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port, after close")
    for host in (0, 1):
        adopted = stage.open(host)
        found = adopted.status()
        expect(core(found) == core(status[host]), "the adopted status differs")
        for reason, count in status[host].counters.items():
            expect(found.counters.get(reason, 0) >= count, f"the count of {reason!r} was lost")
    known = dict(stage.places)
    stage.attach("client", "server")
    expect(known == stage.places, "adopted, but attached anew")
    stage.install(2, both=True)
    made(stage.reach("client", "server", FORBIDDEN), "the new generation, after adoption")
    if not stage.simulated:
        expect(stage.resident("client").talk("live"), "a live connection broke")


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


@clause
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
        expect(flows == [True, True, False, True], f"after {' '.join(way)}: {flows}")
        seen.add(core(backend.status()))
        for name in ("client", "neighbour"):
            stage.leave(name)
        backend.teardown()
    expect(len(seen) == 1, f"the status depends on the way: {seen}")


@clause
def another_contract_is_refused(stage: Stage) -> None:
    """AbiMismatch, and what runs is left as it was."""
    start(stage, "client", "server")
    for backend in stage.backends.values():
        backend.close()
    before = stage.snapshot()
    if stage.mismatch is None:
        raise RuntimeError("this clause needs a mismatch")
    with stage.on(0), stage.mismatch(stage.context(0)):
        foreign = stage.snapshot()
        raises(AbiMismatch, lambda: stage.open(0), "a data path of another contract")
        same(foreign, stage.snapshot(), "after AbiMismatch")
        if not stage.simulated:
            made(stage.reach("client", "server", ALLOWED), "client to server, after AbiMismatch")
            refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port")
    same(before, stage.snapshot(), "after the mismatch was over")
    expect(stage.open(0).status().generation == 1, "not adopted after the mismatch was over")


@clause
def teardown_leaves_nothing(stage: Stage) -> None:
    """It refuses while an endpoint is used, changing nothing; then it removes everything."""
    before = stage.snapshot()
    stage.open(0).teardown()
    same(before, stage.snapshot(), "after the teardown of an unused backend")
    start(stage, "client", "neighbour", generation=3)
    backend = stage.backends[0]
    stage.leave("neighbour")
    with stage.occupied("client"):
        used, status = stage.snapshot(), backend.status()
        raises(InUse, backend.teardown, "teardown with a process")
        same(used, stage.snapshot(), "after a teardown that was refused")
        expect(core(status) == core(backend.status()), "the status changed")
        expect(not stage.reach("client", "neighbour", FORBIDDEN), "unpoliced after InUse")
    backend.teardown()
    same(before, stage.snapshot(), "after teardown")
    raises(SlimnetError, backend.status, "status after teardown")
    expect(stage.open(0).status().generation == 0, "the next data path begins with tables")


@clause
def tending_changes_nothing_in_force(stage: Stage) -> None:
    """Housekeeping, however often and whether anybody reads events: the same status, the
    same machine, and connections go on. What nobody has taken away is not made again."""
    start(stage, "client", "server")
    if not stage.simulated:
        stage.resident("client").hold("live", str(CAST["server"].address), ALLOWED)
    before = {host: core(backend.status()) for host, backend in stage.backends.items()}
    left = stage.snapshot()
    for _ in range(3):
        for backend in stage.backends.values():
            backend.tend()
        if not stage.simulated:
            time.sleep(0.7)  # a look at the host is due every second
    same(left, stage.snapshot(), "after tending")
    now = {host: core(backend.status()) for host, backend in stage.backends.items()}
    expect(now == before, f"the status changed: {before}, {now}")
    made(stage.reach("client", "server", ALLOWED), "client to server")
    refused(stage.reach("client", "server", FORBIDDEN), "the forbidden port")
    if not stage.simulated:
        expect(stage.resident("client").talk("live"), "a live connection broke")


@clause
def purge_leaves_nothing(stage: Stage) -> None:
    """Without starting or adopting anything; what is not there is no error."""
    before = stage.snapshot()
    stage.purge(0)
    same(before, stage.snapshot(), "after a purge of nothing")
    start(stage, "client", "neighbour")
    for name in ("client", "neighbour"):
        stage.leave(name)
    stage.backends[0].close()
    stage.purge(0)
    same(before, stage.snapshot(), "after purge")
    expect(stage.find(0) is None, f"after purge there is {stage.find(0)}")
    expect(stage.open(0).status().generation == 0, "the next data path begins with tables")
