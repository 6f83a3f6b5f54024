# SPDX-License-Identifier: Apache-2.0
"""What decides in the kernel answers every flow as the oracle does: the BPF program, and where
it is loaded the kernel module.

``slim_ask``, and SLIM_CMD_ASK, run the data path's own code over the tables that the backend
writes; here they are the compiler's, of one generated world after the other.
``SLIMNET_POLICY_FLOWS=1000000`` makes the long run.
"""

import contextlib
import itertools
import os
from collections import Counter

import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from test_oracle import FLOWS_OF_A_WORLD, VNIS, WORLDS, assert_of_every_kind, assert_same
from worlds import HOSTS, worlds

from slimnet import contract
from slimnet.answers import FlowQuestion, decision
from slimnet.exceptions import SlimnetError
from slimnet.linux import netns
from slimnet.model import Direction, Reason
from slimnet.policy import Oracle
from slimnet.policy import compile as compile_tables
from slimnet_ebpf import EbpfBackend
from slimnet_ebpf import contract as private
from slimnet_ebpf.libbpf import BpfError
from slimnet_ebpf.objects import Object
from slimnet_ebpf.question import ask
from slimnet_ebpf.writer import Writer
from slimnet_kmod import contract as driven
from slimnet_kmod.module import Module
from slimnet_kmod.tables import commit, prepare


class Kernel:
    """One that has been given tables, and is asked."""

    def __init__(self):
        self._generations = itertools.count(1)
        self.tables = None

    def install(self, tables):
        self.tables = evolve(tables, generation=next(self._generations))
        self.write(self.tables)

    def ask(self, flow):
        return self.answer(
            FlowQuestion(
                VNIS[flow.network],
                flow.direction,
                flow.source,
                flow.destination,
                flow.protocol,
                flow.port,
            )
        )


class Programs(Kernel):
    """The object, loaded and attached to nothing."""

    def __init__(self, loaded):
        super().__init__()
        maps = loaded.maps()
        self.maps = {number: maps[name] for number, name in private.MAPS.items()}
        self._writer = Writer(self.maps)
        self._programs = {each.name: each.fd for each in loaded.programs()}

    def write(self, tables):
        self._writer.install(tables, None, {})

    def program(self, name):
        """Its descriptor."""
        return self._programs[name]

    def answer(self, question):
        return ask(self.program("slim_ask"), question)


class Family(Kernel):
    """The kernel module, in a network namespace that has no endpoint."""

    def __init__(self, opened):
        super().__init__()
        self._module = opened
        opened.request(
            driven.SLIM_CMD_START,
            ABI_VERSION=contract.SLIM_ABI_VERSION,
            FINGERPRINT=contract.FINGERPRINT,
            INSTANCE="policy",
            UNDERLAY=bytes(10) + bytes([255, 255, 198, 18, 0, 1]),
            WIRE_PORT=4790,
            RANGE=bytes([240, 0, 0, 0]),
            KEY=bytes(16),
        )

    def write(self, tables):
        prepare(self._module, tables)
        commit(self._module, tables)

    def answer(self, question):
        asked = self._module.request(driven.SLIM_CMD_ASK, QUESTION=question.pack())
        return decision(asked["QUESTION"])


@contextlib.contextmanager
def family():
    path = netns.DIRECTORY / f"slt-{os.getpid()}-policy"
    netns.create(path)
    try:
        with netns.enter(path):
            opened = Module()
        with contextlib.closing(opened):
            yield Family(opened)
            opened.request(driven.SLIM_CMD_TEARDOWN, FORCE=True)
    finally:
        netns.remove(path)


@contextlib.contextmanager
def programs():
    try:
        with Object(EbpfBackend.object_path) as loaded:
            loaded.load()
            yield Programs(loaded)
    except (BpfError, SlimnetError) as error:
        pytest.skip(f"needs a kernel that loads the data path: {error}")


@pytest.fixture(scope="module", params=["ebpf", pytest.param("kmod", marks=pytest.mark.module)])
def kernel(request):
    if os.geteuid() != 0:
        pytest.skip("needs root, to drive a data path")
    with {"ebpf": programs, "kmod": family}[request.param]() as kernel:
        yield kernel


def check_flow(kernel, oracle, dialled, seen):
    """Where the data path takes a flow, and what it decides there."""
    answer = kernel.ask(dialled)
    assert answer.generation == kernel.tables.generation
    flow = dialled
    if dialled.direction is Direction.EGRESS:
        backing = oracle.backing(dialled)
        if backing is not None and backing.reason is not None:
            assert (answer.verdict.allowed, answer.verdict.reason) == (False, backing.reason)
            assert bool(answer.service) is (backing.reason is Reason["NO_BACKEND"])
            seen[backing.reason.name] += 1
            return
        if backing is not None:
            flow = evolve(dialled, destination=answer.target[0], port=answer.target[1])
            assert flow in backing.flows, dialled
            assert answer.service
            seen["service"] += 1
    judged = oracle.judge(flow)
    assert_same(answer.verdict, kernel.tables, judged, flow)
    seen[judged.reason.name] += 1


@pytest.mark.slow
def test_oracle_and_kernel_agree(kernel):
    """Thousands of flows over hundreds of policy sets, and of every kind of answer some."""
    seen = Counter()
    runs = Counter()

    @settings(
        max_examples=WORLDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds())
    def agree(world):
        runs["worlds"] += 1
        oracle = Oracle(world.state)
        home = {(each.network, each.address): each.host for each in world.state.endpoints}
        flows = world.flows(FLOWS_OF_A_WORLD)
        for host in HOSTS:
            kernel.install(compile_tables(world.state, host.name))
            for flow in flows:
                egress = flow.direction is Direction.EGRESS
                here = flow.source if egress else flow.destination
                if home[flow.network, here] == host.name:
                    check_flow(kernel, oracle, flow, seen)

    agree()
    assert runs["worlds"] >= WORLDS
    assert_of_every_kind(seen)
