# SPDX-License-Identifier: Apache-2.0
"""The same files on Debian's kernels, which are older than this machine's: every program is
loaded there, and the suites of suites.py run.

Both machines boot at once and run side by side.
"""

import json
import sys

import pytest
from suites import LONGER, ON, SUITES, on

pytestmark = [pytest.mark.root, pytest.mark.slow]

PYTEST = ["pytest", "--color=no", "-v", "--tb=short", "-p", "no:cacheprovider"]
COMMANDS = {
    kernel: {
        "check": [sys.executable, "-m", "slimnet.cli", "check", "--output=json"],
        **{
            name: ["env", *suite.environment, sys.executable, "-m", *PYTEST, *suite.arguments]
            for name, suite in on(kernel, SUITES | LONGER).items()
        },
    }
    for kernel in ON
}


def test_it_says_what_it_can_do(guest):
    """`slimnet check` loads every program. What 6.1 does not hold it names."""
    output, status, _ = guest.wait("check")
    assert status == 0, output
    (found,) = json.loads(output)
    backends = {each["backend"]: each for each in found["backends"]}
    assert {name: each["answer"] for name, each in backends.items()} == {
        "ebpf": "yes",
        "kmod": "no",  # its module is not loaded: test_module.py
        "noop": "yes",
        "preload": "yes",
    }, "\n".join(each["reason"] for each in backends.values())  # what the verifier said
    assert guest.release in backends["ebpf"]["reason"]
    old = guest.release.startswith("6.1.")
    assert ("IP_PKTINFO" in backends["ebpf"]["reason"]) == old
    assert ("Linux 6.2 or newer" in backends["ebpf"]["remedy"]) == old
    assert f"{'veth' if old else 'netkit'} for containers" in backends["ebpf"]["reason"]
    # In the machine's own network namespace there is the setting.
    assert "tstamp_allow_data" not in backends["ebpf"]["remedy"]


@pytest.mark.parametrize(
    ("guest", "name"),
    [(kernel, name) for kernel in ON for name in on(kernel, SUITES | LONGER)],
    indirect=["guest"],
)
def test_suite(guest, name):
    """It passes, and nothing of it is skipped."""
    guest.passes(name)
