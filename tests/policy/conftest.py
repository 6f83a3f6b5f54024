# SPDX-License-Identifier: Apache-2.0
"""The policy engine against the C that decides, and against its oracle."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from decide import Library


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """slim_decide() from the header as it is."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    return Library(tmp_path_factory.mktemp("decide"))
