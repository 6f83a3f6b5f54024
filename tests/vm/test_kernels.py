# SPDX-License-Identifier: Apache-2.0
"""The same files on Debian's kernels, which are older than this machine's: every program is
loaded there. What else runs on them is a command of its own, run_suites.py.

Both machines boot at once and run side by side.
"""

import json
import sys

import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]

COMMANDS = {"check": [sys.executable, "-m", "slimnet.cli", "check", "--output=json"]}


def test_it_says_what_it_can_do(guest):
    """`slimnet check` loads every program. What 6.1 does not hold it names."""
    output, status, _ = guest.wait("check")
    assert status == 0, output
    (found,) = json.loads(output)
    backends = {each["backend"]: each for each in found["backends"]}
    assert {name: each["answer"] for name, each in backends.items()} == {
        "ebpf": "yes",
        "noop": "yes",
    }
    assert guest.release in backends["ebpf"]["reason"]
    old = guest.release.startswith("6.1.")
    assert ("IP_RETOPTS" in backends["ebpf"]["reason"]) == old
    assert ("Linux 6.2 or newer" in backends["ebpf"]["remedy"]) == old
    # In the machine's own network namespace there is the setting.
    assert "tstamp_allow_data" not in backends["ebpf"]["remedy"]
