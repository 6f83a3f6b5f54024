# SPDX-License-Identifier: Apache-2.0
"""Programs that are attached to nothing and run when they are called: ``slim_ask``, which
answers a question over the tables in force, ``slim_announced``, and ``slim_sweep``.

Source: the kernel's ``Documentation/bpf/bpf_prog_run.rst``.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from slimnet.answers import FlowQuestion, decision
from slimnet.model import Decision
from slimnet_ebpf.libbpf import BpfError, TestRunOptions, check, library

__all__ = ["announced", "ask", "sweep"]

_SKB = struct.Struct("=8xI28xI")  # mark and ifindex of struct __sk_buff
# The kernel runs such a program on nothing shorter than an Ethernet frame.
_PACKET = bytes(64)


def ask(program: int, question: FlowQuestion) -> Decision:
    """What the data path would do with a flow now. Counts and keeps nothing.

    Args:
        program: descriptor of the loaded ``slim_ask``.
        question: the flow.
    """
    return decision(_run(program, question.pack(), "ask the data path"))


def announced(program: int, interface: int, announcement: bytes) -> bytes:
    """Write the record of a handshake that another host announced, or withdraw it. The
    calling thread is in the underlay's network namespace.

    Args:
        program: descriptor of the loaded ``slim_announced``.
        interface: number of the underlay interface.
        announcement: a struct slim_announcement.

    Returns:
        The same with its answer.
    """
    return _run(program, announcement, "take in an announcement", _SKB.pack(0, interface))


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
