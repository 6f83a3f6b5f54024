# SPDX-License-Identifier: Apache-2.0
"""Linux 5.10: what needs no more does all that it does elsewhere, and what needs more says so."""

import json
import sys

import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]

PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "--color=no",
    "-v",
    "--tb=short",
    "-p",
    "no:cacheprovider",
]
SUITES = {
    "clauses": ["tests/conformance/test_backends.py", "-k", "test_preload"],
    "programs": [
        *("tests/preload/test_carried.py", "tests/preload/test_shim_programs.py"),
        *("tests/preload/test_announce.py", "tests/preload/test_wrong.py"),
        "tests/preload/test_published_ports.py",
    ],
    "rootless": ["tests/functional/test_rootless.py"],
}
COMMANDS = {
    "check": [sys.executable, "-m", "slimnet.cli", "check", "--output=json"],
    **{
        name: ["env", "SLIMNET_PATIENCE=10", *PYTEST, *arguments]
        for name, arguments in SUITES.items()
    },
}


def test_it_says_what_it_can_do(guest):
    output, status, _ = guest.wait("check")
    assert status == 0, output
    (found,) = json.loads(output)
    said = {
        each["backend"]: (each["answer"], each["reason"], each["remedy"])
        for each in found["backends"]
    }
    assert said["preload"][0] == said["noop"][0] == "yes", said
    reason = f"Linux {guest.release} is too old"
    assert said["ebpf"] == ("no", reason, "use 5.19 or newer (bpf_set_retval)")


@pytest.mark.parametrize("name", SUITES)
def test_suite(guest, name):
    """It passes, and nothing of it is skipped."""
    guest.passes(name)
