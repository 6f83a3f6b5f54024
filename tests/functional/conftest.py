# SPDX-License-Identifier: Apache-2.0
"""The lab on every data path that it knows."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab.fixtures import (  # noqa: F401  # fixtures
    add_markers,
    built,
    ends,
    kernel_faults,
    lab,
    labs,
    parametrize,
)


def pytest_configure(config: pytest.Config) -> None:
    add_markers(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc)
