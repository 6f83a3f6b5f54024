# SPDX-License-Identifier: Apache-2.0
"""Killed at any moment, and repaired by the next start or teardown.

A child process runs one step and is killed at the n-th call into the package;
n goes through the whole step in equal strides.
"""

import errno
import os
import signal
import sys

import pytest
from attrs import evolve
from machine import NETWORK, endpoint, wait_for
from test_writer import in_force, some_tables, wanted

from slimnet.linux import cgroup as cgroups
from slimnet_ebpf import maps, pins

pytestmark = pytest.mark.root

MOMENTS = 12
#: Of those in which a step is killed. How long it is depends on what is on the machine meanwhile,
#: and how often it has to ask the kernel: the last moments may come after its end.
ENOUGH = 2 / 3
PACKAGE = os.path.dirname(maps.__file__)


def killed_at(step, moment):
    """Run ``step`` in a child that is killed at its ``moment``-th call; whether it was."""
    child = os.fork()
    if child == 0:
        count = 0

        def watch(frame, event, argument):
            nonlocal count
            code = frame.f_code.co_filename
            if event in ("call", "c_call") and code.startswith(PACKAGE):
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(watch)
            step()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def length(step):
    """How many calls a step makes."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def watch(frame, event, argument):
            nonlocal count
            if event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE):
                count += 1

        try:
            sys.setprofile(watch)
            step()
        finally:
            sys.setprofile(None)
            os.write(write, str(count).encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as answer:
        return int(answer.read())


def moments(step):
    """In equal strides, the last of them well before the end."""
    total = length(step)
    assert total > MOMENTS
    return [1 + total * number // (MOMENTS + 3) for number in range(MOMENTS)]


@pytest.fixture
def kill():
    """Kills a step at a moment, most times: see :data:`ENOUGH`."""
    killed = []
    yield lambda step, moment: killed.append(killed_at(step, moment))
    assert sum(killed) >= ENOUGH * len(killed)


def test_start(machine, kill):
    before = machine.left()
    machine.start().teardown()  # what is imported once is no part of a start
    every = moments(machine.start)
    machine.start().teardown()
    assert before == machine.left()
    for number, moment in enumerate(every):
        kill(machine.start, moment)
        if number % 2:
            # Repaired by a start, and by the one after it.
            machine.start().close()
        machine.start().teardown()
        assert before == machine.left(), moment


def test_attach(machine, kill):
    backend = machine.start()
    backend.install(some_tables(1, [1, 2]))
    backend.attach(endpoint(2), NETWORK)
    before = machine.left()
    one = endpoint(1)
    every = moments(lambda: machine.start().attach(one, NETWORK))
    machine.start().detach(one.id)
    assert before == machine.left()
    for number, moment in enumerate(every):
        kill(lambda: machine.start().attach(one, NETWORK), moment)
        if number % 2:
            attachment = backend.attach(one, NETWORK)
            indexes = backend.status().detail["indexes"]
            assert {101, 102} == indexes.keys()
            assert in_force(backend) == wanted(some_tables(1, [1, 2]), indexes)
            assert cgroups.number(attachment.cgroup)
        backend.detach(one.id)
        leftover = machine.context.cgroup / "prod.default.e1"
        if leftover.exists():  # made, and not yet written down: teardown or attach finds it
            backend.attach(one, NETWORK)
            backend.detach(one.id)
        assert before == machine.left(), moment


def test_detach(machine, kill):
    backend = machine.start()
    before = machine.left()
    one = endpoint(1)
    backend.attach(one, NETWORK)
    backend.detach(one.id)  # what is done once is no part of it
    backend.attach(one, NETWORK)
    every = moments(lambda: machine.start().detach(one.id))
    for moment in every:
        backend.attach(one, NETWORK)
        kill(lambda: machine.start().detach(one.id), moment)
        backend.detach(one.id)
        after = machine.left()
        after["cgroups"] = before["cgroups"]
        assert before == after, moment


HOLDS = """
import socket, sys
s = socket.socket()
while True:
    print(s.connect_ex(("127.0.0.1", 8080)), flush=True)
    if not sys.stdin.readline():
        break
"""


def test_detach_from_a_cgroup_that_stays(machine, kill):
    """Its socket, in a process that has left, is refused at every moment."""
    theirs = machine.cgroup / "theirs"
    theirs.mkdir()
    backend = machine.start()
    one = endpoint(1, cgroup=str(theirs))
    backend.attach(one, NETWORK)
    process = machine.process(theirs, HOLDS)

    def answer():
        return int(process.stdout.readline())

    def again():
        process.stdin.write("\n")
        process.stdin.flush()
        return answer()

    assert answer() == errno.EACCES
    (machine.cgroup / "cgroup.procs").write_text(str(process.pid))
    every = moments(lambda: machine.start().detach(one.id))
    for number, moment in enumerate(every):
        backend.attach(one, NETWORK)
        kill(lambda: machine.start().detach(one.id), moment)
        assert again() == errno.EACCES, moment
        if number % 2:
            machine.start().close()
            assert again() == errno.EACCES, moment
        else:
            backend.attach(one, NETWORK)
            kill(lambda: machine.start().attach(one, NETWORK), moment)
            assert again() == errno.EACCES, moment
        backend.detach(one.id)
        assert again() == errno.EACCES, moment
        assert backend.status().endpoints == frozenset()
    theirs.rmdir()
    process.communicate(timeout=10)
    backend.attach(endpoint(2), NETWORK)
    wait_for(lambda: reaped(backend) == {102})


def reaped(backend):
    """Whose the indexes are, after a while."""
    backend.pace = 0
    backend.tend()
    return {entry.endpoint for entry in backend._endpoints._entries().values()} - {0}


def test_install(machine, kill):
    """Whoever dies half-way leaves the old tables in force, or the new ones."""
    backend = machine.start()
    old, new = some_tables(1, range(1, 50)), some_tables(2, range(20, 90))
    # As each install below finds it: the first ones make more, and are longer.
    backend.install(evolve(new, generation=3))
    backend.install(evolve(old, generation=4))
    for moment in moments(lambda: machine.start().install(evolve(new, generation=5))):
        backend.install(evolve(old, generation=backend.status().generation + 2))
        generation = backend.status().generation
        newer = evolve(new, generation=generation + 1)
        kill(lambda newer=newer: machine.start().install(newer), moment)
        after = machine.start()
        assert after.status().generation in (generation, generation + 1)
        assert in_force(after) == wanted(old if after.status().generation == generation else new)
        after.install(evolve(new, generation=generation + 5))
        assert in_force(after) == wanted(new)


def test_teardown(machine, kill):
    before = machine.left()

    def step():
        machine.start().teardown()

    step()  # what is imported once is no part of it
    machine.start()
    for number, moment in enumerate(moments(step)):
        backend = machine.start()
        backend.attach(endpoint(1), NETWORK)
        backend.close()
        kill(step, moment)
        if number % 2:
            machine.start().close()
        machine.start().teardown()
        assert before == machine.left(), moment


def test_the_lock_is_let_go_by_death(machine):
    """flock, not a file that would be left."""
    machine.start()

    def step():
        with pins.Pins(machine.name).lock():
            os.kill(os.getpid(), signal.SIGKILL)

    assert killed_at(step, 10**9)
    machine.start().install(some_tables(1, [1]))
