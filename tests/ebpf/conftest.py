# SPDX-License-Identifier: Apache-2.0
"""A host for each test that asks for one; and the laboratory, on this data path alone."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))
sys.path.insert(0, str(Path(__file__).parent))

from lab.fixtures import (  # noqa: F401  # fixtures
    add_markers,
    built,
    ends,
    kernel_faults,
    lab,
    labs,
    namespaces,
    parametrize,
)
from lab.paths import DATA_PATHS

from slimnet_ebpf import requirements


def pytest_configure(config: pytest.Config) -> None:
    add_markers(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, {"ebpf": DATA_PATHS["ebpf"]})


@pytest.fixture
def machine():
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not requirements.OBJECT.exists():
        pytest.skip(f"needs {requirements.OBJECT.name}: make -C backends/ebpf")
    from machine import Machine

    machine = Machine()
    try:
        yield machine
    finally:
        machine.undo.close()
