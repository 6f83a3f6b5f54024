# SPDX-License-Identifier: Apache-2.0
"""The same tests on Debian's kernels, which are older than this machine's.

Both machines boot at once and run side by side: much of every test is waiting.
"""

import json
import os
import re
import sys
import time

import pytest
from guest import Guest, kernels
from suites import KERNELS, SUITES

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
#: Of all that runs on both; then it is stuck. `tox -e vm` is to take twelve minutes at most.
SECONDS = int(os.environ.get("SLIMNET_VM_SECONDS", "1500"))


@pytest.fixture(scope="module")
def guests():
    """The machines by version of their kernel, all of them at work."""
    commands = {
        "check": [sys.executable, "-m", "slimnet.cli", "check", "--output=json"],
        **{name: [*PYTEST, *suite.arguments] for name, suite in SUITES.items()},
    }
    running = {}
    try:
        for directory in kernels():
            guest = Guest(directory, commands, deadline=time.monotonic() + SECONDS)
            running[".".join(re.findall(r"\d+", guest.release)[:2])] = guest
        yield running
    finally:
        for guest in running.values():
            guest.close()


@pytest.fixture(params=KERNELS)
def guest(request, guests):
    if request.param not in guests:
        pytest.skip(f"needs Linux {request.param}: run testbed/setup")
    return guests[request.param]


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


@pytest.mark.parametrize("name", SUITES)
def test_suite(guest, name):
    """It passes, and nothing of it is skipped."""
    output, status, seconds = guest.wait(name)
    assert status == 0, output[-20000:]
    passed = int(re.search(r"(\d+) passed", output)[1])
    print(f"Linux {guest.release}: {name}: {passed} passed in {seconds} s")
    assert passed
