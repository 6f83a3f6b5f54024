# SPDX-License-Identifier: Apache-2.0
"""What runs on Debian's kernels, and why: docs/howto/machines.rst has the same table.

All of every suite would take hours, for a kernel runs here in software only. What is here
asks a kernel for what it could answer in another way than the machine's own: every program
and hook, every clause of the backends' contract, and the first that applications see.
"""

from typing import NamedTuple


class Suite(NamedTuple):
    """What pytest is given, and what it is there for."""

    arguments: list[str]
    reason: str
    environment: tuple[str, ...] = ()


#: By version, as Debian 12 has them: its own, and the newest of its security archive.
KERNELS = ("6.1", "6.12")

SUITES = {
    "conformance": Suite(
        ["tests/conformance", "-k", "ebpf or noop"],
        "every clause of the contract, by both backends",
    ),
    "policy": Suite(
        ["tests/policy/test_kernel.py"],
        "what the program in the kernel decides is what the oracle does (5,000 flows)",
        ("SLIMNET_POLICY_FLOWS=5000",),
    ),
    "ebpf": Suite(
        [
            "tests/ebpf/test_start.py",
            "tests/ebpf/test_refused.py::test_ip_options_as_control_data",
            "tests/ebpf/test_refused.py::test_a_device_as_control_data",
        ],
        "start, adopt, tear down, and what the kernel leaves open",
    ),
    "functional": Suite(
        [
            # Plain containers say what is right, and are the machine's own.
            *("-k", "not plain"),
            "tests/functional/test_listening.py",
            "tests/functional/test_replay.py",
            "tests/functional/test_names.py",
            "tests/functional/test_hostile.py::test_timestamps_show_no_underlay_address",
        ],
        "who is found listening, SYNs that come again, and the names that sockets say",
    ),
}
