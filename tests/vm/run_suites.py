# SPDX-License-Identifier: Apache-2.0
"""The named suites on Debian's kernels. In software emulation they take longer than all other
tests together, so they are a command of their own::

    tox -e vm -- tests/vm/run_suites.py
"""

import re
import sys

import pytest
from suites import SUITES

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
COMMANDS = {name: [*PYTEST, *suite.arguments] for name, suite in SUITES.items()}


@pytest.mark.parametrize("name", SUITES)
def test_suite(guest, name):
    """It passes, and nothing of it is skipped."""
    output, status, seconds = guest.wait(name)
    assert status == 0, output[-20000:]
    passed = int(re.search(r"(\d+) passed", output)[1])
    print(f"Linux {guest.release}: {name}: {passed} passed in {seconds} s")
    assert passed
