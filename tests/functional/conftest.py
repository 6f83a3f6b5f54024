# SPDX-License-Identifier: Apache-2.0
"""The lab on every data path that it knows."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab.fixtures import (  # noqa: F401  # fixtures
    add_markers,
    built,
    ends,
    is_long,
    kernel_faults,
    lab,
    labs,
    namespaces,
    parametrize,
)

from slimnet.linux import netns
from slimnet.testing import Resident


@pytest.fixture
def space():
    """Makes network namespaces, as container engines do."""
    made = []

    def make():
        path = netns.DIRECTORY / f"slt-space{os.getpid()}-{len(made)}"
        netns.create(path)
        made.append(path)
        return path

    yield make
    for path in made:
        netns.remove(path)


@pytest.fixture
def resident():
    """Starts processes in attached endpoints of hosts with agents."""
    with contextlib.ExitStack() as stack:

        def start(host, placed):
            return stack.enter_context(
                Resident(placed.cgroup, host.where.netns, placed.netns, placed.place.environment)
            )

        yield start


def pytest_configure(config: pytest.Config) -> None:
    add_markers(config)


def pytest_collection_modifyitems(config, items):
    if os.environ.get("SLIMNET_LONG") == "0":
        left = [item for item in items if is_long(item)]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc)


def pytest_terminal_summary(terminalreporter):
    """The blocks of pages that were not run, or not compared, each with its reason."""
    said = (
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "left out"
    )
    for number, line in enumerate(dict.fromkeys(said)):
        if number == 0:
            terminalreporter.section("blocks of pages that are left out")
        terminalreporter.line(line)
