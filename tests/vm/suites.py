# SPDX-License-Identifier: Apache-2.0
"""What runs on Debian's kernels, and why: docs/howto/machines.rst has the same table.

All of every suite would take hours, for a kernel runs here in software only. What is here
asks a kernel for what it could answer in another way than the machine's own: every program
and hook, the clauses of the contract, and the first that applications see.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

#: By version, as Debian 12 has them: its own, and the newest of its security archive.
KERNELS = ("6.1", "6.12")
OLD, NEW = KERNELS[:1], KERNELS[1:]
#: Those that this run is about: all, or what it was told.
ON = tuple(os.environ.get("SLIMNET_VM_KERNELS", "").split()) or KERNELS


class Suite(NamedTuple):
    """What pytest is given, what it is there for, and on which kernels CI runs it: what ebpf is
    asked on the older, on the newer what only that has, and the module, for each of them keeps a
    processor busy for minutes."""

    arguments: list[str]
    reason: str
    kernels: tuple[str, ...]
    environment: tuple[str, ...] = ()


def on(kernel: str, suites: Mapping[str, Suite]) -> dict[str, Suite]:
    """Those that run there: with ``SLIMNET_LONG=0`` CI's, else all, or those that
    ``SLIMNET_VM_SUITES`` names."""
    named = os.environ.get("SLIMNET_VM_SUITES", "").split()
    short = os.environ.get("SLIMNET_LONG") == "0"
    return {
        name: suite
        for name, suite in suites.items()
        if (name in named if named else not short or kernel in suite.kernels)
    }


#: Each loads every program, which a processor in software verifies for some ten seconds: those
#: that ask for what a kernel of another version could answer otherwise.
CLAUSES = (
    "live_connections_follow or services_are_dialled or ports_are_published or is_on_account"
    " or limits_hold or probe_promises or what_happened_is_told"
)
NETNS = "ebpf_netns and tables_decide"
#: Most of the overlay's take minutes each.
OVERLAY = "noop and teardown_leaves_nothing"

SUITES = {
    "conformance": Suite(
        [
            "tests/conformance/test_backends.py",
            "-k",
            f"(test_ebpf and not netns and ({CLAUSES})) or ({NETNS}) or ({OVERLAY})",
        ],
        "the contract's clauses that a kernel answers: by ebpf, its placement netns, and noop",
        OLD,
    ),
    "policy": Suite(
        ["tests/policy/test_kernel.py"],
        "what the program in the kernel decides is what the oracle does (2,500 flows)",
        OLD,
        ("SLIMNET_POLICY_FLOWS=2500",),
    ),
    "ebpf": Suite(
        [
            "tests/ebpf/test_start.py::test_what_is_on_the_host_while_it_runs",
            "tests/ebpf/test_start.py::test_without_tcx",
            "tests/ebpf/test_start.py::test_probe_says_what_this_kernel_leaves_open",
            "tests/ebpf/test_start.py::test_a_new_process_adopts",
            "tests/ebpf/test_refused.py::test_ip_options_as_control_data",
            "tests/ebpf/test_refused.py::test_a_device_as_control_data",
            "tests/ebpf/test_closed.py",
        ],
        "how it is attached and adopted, what the kernel leaves open, and closed endpoints",
        OLD,
    ),
    "devices": Suite(
        [
            "tests/ebpf/test_start.py::test_probe_says_what_this_kernel_leaves_open",
            "tests/ebpf/test_devices.py::test_root_in_there_changes_nothing_of_a_netkit",
            "tests/functional/test_brought_namespace.py::test_a_connection_and_its_names",
            *("-k", "probe_says or netkit or (ebpf and brought and not made)"),
        ],
        "what it says that the kernel has, and placement netns, from 6.7 on with netkit",
        NEW,
    ),
    "functional": Suite(
        [
            *("-k", "ebpf and (not one-host and not brought or one-host and brought)"),
            "tests/functional/test_brought_namespace.py::test_a_connection_and_its_names",
            "tests/functional/test_root_in_a_namespace.py::test_with_anothers_address",
            "tests/functional/test_replay.py",
            "tests/functional/test_names.py",
            "tests/functional/test_hostile.py::test_timestamps_show_no_underlay_address",
        ],
        "SYNs that come again, the names that sockets say, and root in placement netns, between"
        " two hosts; and between that and placement host the names on one",
        OLD,
    ),
}

#: What takes an hour or two, and CI leaves out.
LONGER = {
    "namespaces": Suite(
        [
            *(
                f"tests/functional/test_{name}.py"
                for name in (
                    "root_in_a_namespace",
                    "brought_namespace",
                    "published",
                    "policy",
                    "names",
                    "revocation",
                    "datagrams",
                    "hostile",
                    "service_address",
                    "path_mtu",
                    "outside",
                    "limits",
                    "survival",
                    "styles",
                )
            ),
            *("-k", "ebpf-netns or (ebpf and brought)"),
        ],
        "placement netns, on 6.12 with netkit",
        (),
        ("SLIMNET_LONG=1", "SLIMNET_PATIENCE=10"),
    ),
}

#: Of the kernel module, in machines where it is loaded (test_module.py).
MODULE_CLAUSES = (
    "what_a_probe_promises_is_there or tables_decide or live_connections_follow_the_tables"
    " or what_happened_is_told or teardown_leaves_nothing or purge_leaves_nothing"
    " or are_published"
)
NAMES = "connected_both_ends or accept4_names_the_client or v4_mapped_connect"
MODULE_SUITES = {
    "netlink": Suite(
        ["tests/kmod"],
        "every request that is wrong is refused by name, and changes nothing",
        NEW,
        ("SLIMNET_NOISE=3000",),
    ),
    "clauses": Suite(
        ["tests/conformance/test_backends.py", "-k", f"kmod and ({MODULE_CLAUSES})"],
        "the contract's clauses that sockets are needed for",
        NEW,
    ),
    "laboratory": Suite(
        [
            "tests/functional/test_names.py",
            "tests/functional/test_keys.py",
            "tests/functional/test_service_address.py",
            "tests/functional/test_limits.py::test_accounts_by_rule",
            "-k",
            f"kmod and ({NAMES} or key_changes or datagrams_come_to or by_rule)",
        ],
        "the names that sockets say, connections while the key changes, datagrams to a service,"
        " accounts",
        NEW,
    ),
    "mixed": Suite(
        [
            "tests/conformance/test_mixed.py::test_one_cluster",
            "-k",
            "tables_decide or live_connections",
        ],
        "a host of ebpf and one of kmod are one cluster, either way round",
        NEW,
    ),
}
