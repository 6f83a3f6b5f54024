# SPDX-License-Identifier: Apache-2.0
"""The kernel's log is the laboratory's to read."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))

from lab.fixtures import kernel_faults  # noqa: F401  # a fixture
