# SPDX-License-Identifier: Apache-2.0
"""The scale benchmark runs, and its report is whole. Its figures are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]

SCALE = Path(__file__).parents[1] / "policy" / "scale.py"
SMALL = {"rounds": [1], "connects": [50], "sizes": [10, 100], "policies": [20], "endpoints": [200]}


def test_a_small_run():
    words = [word for name, values in SMALL.items() for word in (f"--{name}", *map(str, values))]
    done = subprocess.run([sys.executable, SCALE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for place in ("one host", "two hosts"):
        for size in ("10", "100"):
            found = report["connect"][place][size]
            assert 0 < found["lowest"] <= found["us"] <= found["highest"]
        assert report["connect"][place]["10"]["ratio"] == 1
    for size in ("10", "100"):
        assert report["tables"][size]["memlock bytes per entry"] > 20
        assert report["tables"][size]["whole ms"] > 0
    assert report["world"]["policy entries"] > 100
    assert report["world"]["one policy, install ms"] > 0
