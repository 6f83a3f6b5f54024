# SPDX-License-Identifier: Apache-2.0
"""Programs that are attached to nothing and run when they are called: ``slim_ask``, which
answers a question over the tables in force, and ``slim_sweep``.

Source: the kernel's ``Documentation/bpf/bpf_prog_run.rst``.
"""

from __future__ import annotations

import ctypes
import errno
import random
import struct

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.layout import Layout, from_bytes16, to_bytes16
from slimnet.model import Decision, Direction, Reason, Verdict, Way, WayKind
from slimnet_ebpf.libbpf import BpfError, TestRunOptions, check, library

__all__ = ["FlowQuestion", "ask", "sweep"]

_QUESTION = Layout(contract.slim_question)
_VERDICT = Layout(contract.slim_verdict)
_NOBODY = bytes(16)
_SKB = struct.Struct("=8xI28xI")  # mark and ifindex of struct __sk_buff
# The kernel runs such a program on nothing shorter than an Ethernet frame.
_PACKET = bytes(64)


@frozen
class FlowQuestion:
    """A flow, with what a data path knows of it (struct slim_question).

    Attributes:
        vni: the network that both addresses are seen from.
        direction: whose policy is asked: EGRESS the source's, INGRESS the destination's.
        source: overlay or outside address.
        destination: likewise, or a service's.
        protocol: IP protocol number.
        port: destination port.
    """

    vni: int
    direction: Direction
    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int


def ask(program: int, question: FlowQuestion) -> Decision:
    """What the data path would do with a flow now. Counts and keeps nothing.

    Args:
        program: descriptor of the loaded ``slim_ask``.
        question: the flow.
    """
    data = _QUESTION.pack(
        vni=question.vni,
        direction=int(question.direction),
        source=to_bytes16(question.source),
        destination=to_bytes16(question.destination),
        port=question.port,
        protocol=question.protocol,
        random=random.getrandbits(32),  # chooses among a service's endpoints, as in connect()
        verdict=b"",
    )
    found = _QUESTION.unpack(_run(program, data, "ask the data path"))
    verdict = _VERDICT.unpack(found["verdict"])
    way = None
    if question.direction is Direction.EGRESS:
        way = Way(
            WayKind(found["way"]),
            Reason(found["way_reason"]),
            found["way_error"],
            Direction(found["way_direction"]),
        )
    return Decision(
        verdict=Verdict(
            verdict["action"] == contract.SLIM_ALLOW, Reason(verdict["reason"]), verdict["rule"]
        ),
        generation=found["generation"],
        subject=found["subject"],
        peer=found["peer"],
        endpoint=found["endpoint"],
        service=found["service"],
        target=(from_bytes16(found["target"]), found["target_port"]),
        host=from_bytes16(found["host"]) if found["host"] != _NOBODY else None,
        way=way,
    )


def sweep(program: int, interface: int, how: int) -> None:
    """Remove the records of handshakes that nobody came back for or that the tables in
    force deny, and of source-bound connections that nobody can be confused by. The
    calling thread is in the underlay's network namespace.

    Args:
        program: descriptor of the loaded ``slim_sweep``.
        interface: number of the underlay interface: the program looks up sockets as for
            a packet that came in there. If it is gone, so is whoever would answer.
        how: ``SLIM_SWEEP_COUNTED`` leaves out the tables in which nobody has a record by the
            counts of them, which takes microseconds in place of milliseconds;
            ``SLIM_SWEEP_WHOLE`` looks at all of them, and puts the counts right;
            ``SLIM_SWEEP_FLOWS``, for new tables, at all handshakes.
    """
    what = "sweep the data path's records"
    try:
        _run(program, _PACKET, what, _SKB.pack(how, interface))
    except BpfError as error:
        if error.errno != errno.ENODEV:
            raise
        _run(program, _PACKET, what, _SKB.pack(how, 0))


def _run(program: int, data: bytes, what: str, context: bytes = b"") -> bytes:
    """What a program makes of these bytes in place of a packet."""
    answer = ctypes.create_string_buffer(len(data))
    options = TestRunOptions(
        sz=ctypes.sizeof(TestRunOptions),
        ctx_in=context or None,
        ctx_size_in=len(context),
        data_in=data,
        data_out=ctypes.addressof(answer),
        data_size_in=len(data),
        data_size_out=len(answer),
        repeat=1,
    )
    check(library().bpf_prog_test_run_opts(program, ctypes.byref(options)), what)
    return answer.raw
