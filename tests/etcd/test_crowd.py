# SPDX-License-Identifier: Apache-2.0
"""The benchmark of many agents runs, and what it counts is right. Its times are not looked at."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.slow]

CROWD = Path(__file__).with_name("crowd.py")
SMALL = {"agents": 12, "endpoints": 200, "policies": 20, "processes": 2, "whole": 2, "changes": 3}
SMALL |= {"pause": 0.1}


def test_a_small_run():
    """A change is one transaction, however many hosts there are, and nobody answers it; only
    where somebody waits, each host does once."""
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, CROWD, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for kind in ("policy", "endpoint"):
        found = report[kind]
        assert found["requests"]["Txn"] == 1
        assert found["requests"]["Range"] < SMALL["agents"]
        assert found["requests"]["Watch"] == 0
        assert 0 < found["all agents have it s, median"] <= found["all agents have it s, worst"]
        assert 0 < found["bytes told to an agent, median"] < 2000
    assert report["waited for"]["requests, median"] < 2 * SMALL["agents"]
    assert report["join"]["s, median"] > 0
