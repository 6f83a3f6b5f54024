# SPDX-License-Identifier: Apache-2.0
"""May this SYN in? The BPF program in the kernel, the library and the oracle agree.

SYNs of generated worlds: valid, forged, from a host that the caller does not live on,
of unknown endpoints, denied. The program is tc ingress itself, run on one frame after
the other (BPF_PROG_TEST_RUN); nobody listens, so that what is admitted is counted as
without a listener.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections import Counter
from pathlib import Path

from attrs import evolve, frozen
from decide import Decider, flow, two_keys
from hypothesis import HealthCheck, given, settings
from netaddr import IPAddress
from test_kernel import kernel  # noqa: F401  # the fixture
from worlds import HOSTS, PORTS, worlds

from slimnet.layout import Layout
from slimnet.model import Protocol, Reason
from slimnet.policy import Oracle
from slimnet.policy import compile as compile_tables
from slimnet_ebpf import contract as private
from slimnet_ebpf import libbpf

sys.path.append(str(Path(__file__).parents[1] / "functional"))

from lab import packets

#: The cluster's, while it rotates.
KEYS = (bytes(range(16)), bytes(range(16, 32)))
WORLDS = 60
SYNS_OF_A_HOST = 100
CONTROL = Layout(private.slim_control)
YES, FORGED, LATER, NO = range(4)
#: What tc does with it: TC_ACT_SHOT, or TC_ACT_UNSPEC, so that the host answers.
RETURNS = {YES: -1, FORGED: -1, LATER: 2, NO: -1}


@frozen
class Wanted:
    """What must be answered to a SYN."""

    answer: int
    reason: Reason


def syns(chance, tables, host):
    """SYNs to a host: packet, port and ids of its option."""
    known = [*tables.endpoints, 9999]
    for _ in range(SYNS_OF_A_HOST):
        source, destination = chance.choice(known), chance.choice(known)
        owner = tables.endpoints.get(source)
        at = owner.host if owner and chance.randrange(6) else chance.choice(HOSTS).address
        syn = packets.Syn(
            str(at),
            str(host.address),
            4790,
            chance.randrange(1024, 65536),
            chance.randrange(1 << 32),
        )
        port = chance.choice(PORTS)
        name = chance.choice([None, chance.randrange(1024, 65536)])
        syn = packets.option(chance.choice(KEYS), syn, port, destination, source, name=name)
        if not chance.randrange(6):
            at = chance.randrange(2, syn.options[1])
            options = bytearray(syn.options)
            options[at] ^= 1 << chance.randrange(8)
            syn = evolve(syn, options=bytes(options))
        yield syn


def wanted(oracle, tables, syn):
    """By what admit.h says at its top, and the oracle for the policy."""
    port, called, calling = (
        int.from_bytes(syn.options[start:end]) for start, end in ((2, 4), (4, 8), (8, 12))
    )
    bare = evolve(syn, options=b"")
    name = int.from_bytes(syn.options[16:18]) if syn.options[1] == 18 else None
    good = [packets.option(key, bare, port, called, calling, name=name) for key in KEYS]
    if syn not in good:
        return Wanted(FORGED, Reason.SYN_TAG)
    source, destination = tables.endpoints.get(calling), tables.endpoints.get(called)
    if source is None or destination is None or not destination.local:
        return Wanted(LATER, Reason.SYN_UNKNOWN)
    if str(source.host) != syn.source or source.vni != destination.vni:
        return Wanted(NO, Reason.SYN_SOURCE)
    network = {each.vni: each.name for each in oracle.state.networks}[source.vni]
    _, asked = flow(network, source.address, destination.address, Protocol.TCP, port)
    judged = oracle.judge(asked)
    return Wanted(YES if judged.allowed else NO, judged.reason)


def library_says(decider, syn):
    """The library's answer and reason."""
    ends = (IPAddress(syn.source), IPAddress(syn.destination), syn.source_port, syn.port)
    answer, reason, rule = decider.admit(KEYS[0], ends, syn.sequence, syn.options, KEYS[1])
    assert bool(rule) is (reason in (Reason.RULE_ALLOW, Reason.RULE_DENY))
    return answer, reason


def check_library(library, world, seen=None, also=None):
    """Every host's SYNs of a world."""
    chance = random.Random(world.seed)
    oracle = Oracle(world.state)
    for host in HOSTS:
        tables = compile_tables(world.state, host.name)
        decider = Decider(library, tables)
        try:
            for syn in syns(chance, tables, host):
                want = wanted(oracle, tables, syn)
                assert library_says(decider, syn) == (want.answer, want.reason), syn
                if also is not None:
                    also(tables, syn, want)
                if seen is not None:
                    seen[want.reason.name] += 1
        finally:
            decider.close()


class Gate:
    """tc ingress of an object that is attached to nothing."""

    def __init__(self, loaded):
        self._kernel = loaded
        maps = loaded.maps
        keys = two_keys(*KEYS)
        maps[private.SLIM_MAP_CONTROL].set(bytes(4), CONTROL.pack(keys=keys))
        self._counters = maps[private.SLIM_MAP_COUNTER]
        self._program = loaded.program("slim_tc_ingress")
        self._installed = None
        self._before = self._counted()

    def __call__(self, tables, syn, want):
        """A SYN comes in; what is counted and returned is what is wanted."""
        if tables is not self._installed:
            self._kernel.install(tables)
            self._installed = tables
        (packet,) = syn.packets()
        returned = self._run(bytes(12) + b"\x08\x00" + packet)
        after = self._counted()
        counted = after - self._before
        self._before = after
        reason = Reason.SYN_NO_LISTENER if want.answer == YES else want.reason
        assert counted == Counter({reason: 1}), syn
        assert returned == RETURNS[want.answer], syn

    def _counted(self):
        counts = Counter()
        for key, value in self._counters.items():
            each = memoryview(value).cast("Q")
            counts[Reason(int.from_bytes(key, sys.byteorder))] = sum(each)
        return counts

    def _run(self, frame):
        size = ctypes.sizeof(libbpf.TestRunOptions)
        options = libbpf.TestRunOptions(sz=size, data_in=frame, data_size_in=len(frame), repeat=1)
        libbpf.check(
            libbpf.library().bpf_prog_test_run_opts(self._program, ctypes.byref(options)), "run"
        )
        return ctypes.c_int32(options.retval).value


def test_kernel_library_and_oracle_agree(kernel, library):  # noqa: F811
    """At least 2,000 SYNs, and of every kind of answer some."""
    seen = Counter()
    gate = Gate(kernel)

    @settings(
        max_examples=WORLDS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds())
    def agree(world):
        check_library(library, world, seen, gate)

    agree()
    assert seen.total() >= 2000
    for kind in (
        *("SYN_TAG", "SYN_UNKNOWN", "SYN_SOURCE"),
        *("RULE_ALLOW", "RULE_DENY", "DEFAULT_ALLOW", "DEFAULT_DENY", "SELF"),
    ):
        assert seen[kind] >= 10, seen
