# SPDX-License-Identifier: Apache-2.0
"""The oracle's worlds for a machine that has no Python: what the kernel module is asked goes
there as messages, and what it answered comes back to be checked as in tests/policy."""

import struct
import sys
from collections import Counter

from guest import ROOT
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(ROOT / "tests/policy"))

import test_kernel
import test_oracle
import worlds

from slimnet.policy import Oracle
from slimnet.policy import compile as compile_tables
from slimnet_kmod import contract, messages

REQUEST, ACK = 1, 4  # NLM_F_*


class Script:
    """In place of the module's socket: notes requests; or answers them, from a disk."""

    def __init__(self, answers=None):
        self.requests = bytearray()
        self._answers = answers
        self.asked = 0

    def request(self, command, **attributes):
        if self._answers is None:
            attributes = {name: value for name, value in attributes.items() if value is not None}
            message = messages.encode(0, command, REQUEST | ACK, 0, attributes)
            # The kernel's own length is that of the message, without what pads it.
            self.requests += message + bytes(-len(message) % 4)
            return {}
        if command != contract.SLIM_CMD_ASK:
            return {}
        question = attributes["QUESTION"]
        at, self.asked = self.asked * len(question), self.asked + 1
        return {"QUESTION": self._answers[at : at + len(question)]}


class Asked(Exception):
    """What a question ends with while it is only noted."""


class Noting(test_kernel.Family):
    def answer(self, question):
        self._module.request(contract.SLIM_CMD_ASK, QUESTION=question.pack())
        raise Asked


def generated():
    """As many worlds as SLIMNET_POLICY_FLOWS asks for, the same each time."""
    made = []

    @settings(
        max_examples=test_oracle.WORLDS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds.worlds())
    def keep(world):
        made.append(world)

    keep()
    return made


def put(kernel, made, seen):
    """All questions of all worlds."""
    for world in made:
        oracle = Oracle(world.state)
        home = {(each.network, each.address): each.host for each in world.state.endpoints}
        flows = world.flows(test_oracle.FLOWS_OF_A_WORLD)
        for host in worlds.HOSTS:
            kernel.install(compile_tables(world.state, host.name))
            for flow in flows:
                egress = flow.direction.name == "EGRESS"
                if home[flow.network, flow.source if egress else flow.destination] != host.name:
                    continue
                try:
                    test_kernel.check_flow(kernel, oracle, flow, seen)
                except Asked:
                    seen["asked"] += 1


def script(made):
    """The requests, for the program; how many of them are questions."""
    noted, seen = Script(), Counter()
    put(Noting(noted), made, seen)
    return struct.pack("=I", seen["asked"]) + bytes(noted.requests), seen["asked"]


def check(made, answers, asked):
    """What the module answered is what the oracle says; how often it was what."""
    replayed, seen = Script(answers), Counter()
    put(test_kernel.Family(replayed), made, seen)
    assert replayed.asked == asked
    test_oracle.assert_of_every_kind(seen)
    return seen
