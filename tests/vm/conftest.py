# SPDX-License-Identifier: Apache-2.0
"""Machines with Debian's kernels."""

import os
import time

import pytest
from guest import Guest, kernels, version
from suites import ON

#: Of all that runs on both; then it is stuck. A machine that is busy gives a guest a tenth of the
#: time that it needs.
SECONDS = int(os.environ.get("SLIMNET_VM_SECONDS", "3600"))


@pytest.fixture(scope="module")
def guests(request):
    """The machines by version of their kernel, each at work on its COMMANDS of the module."""
    running = {}
    try:
        for directory in kernels():
            name, deadline = version(directory), time.monotonic() + SECONDS
            if commands := request.module.COMMANDS.get(name):
                running[name] = Guest(directory, commands, deadline=deadline)
        yield running
    finally:
        for guest in running.values():
            guest.close()


@pytest.fixture(params=ON)
def guest(request, guests):
    if request.param not in guests:
        pytest.skip(f"needs Linux {request.param}: run testbed/setup")
    return guests[request.param]
