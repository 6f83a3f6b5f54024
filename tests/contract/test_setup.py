# SPDX-License-Identifier: Apache-2.0
"""The set-up may be run at any time, and is quick when there is nothing to do."""

import os
import subprocess
import time

import pytest
from generate_contract import ROOT

pytestmark = pytest.mark.root


def set_up():
    start = time.monotonic()
    done = subprocess.run(
        [ROOT / "testbed/setup"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, time.monotonic() - start


def test_the_second_time_it_finds_everything_there():
    """It installs nothing, builds nothing and takes less than two seconds."""
    set_up()
    output, seconds = set_up()
    assert "done in" not in output
    assert "ready" in output.splitlines()[-1]
    assert seconds < 2


def test_it_leaves_no_policy_behind():
    """Debian's own decision on starting daemons is not ours to keep."""
    path = "/usr/sbin/policy-rc.d"
    if os.path.exists(path):
        with open(path) as file:
            assert "slimnet" not in file.read()
    assert (ROOT / ".venv/bin/slimnet").exists()


def test_the_python_of_the_machine_makes_the_environment():
    """And it holds all four distributions, editable."""
    listing = subprocess.run(
        [ROOT / ".venv/bin/pip", "list", "--editable", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    plugins = {f"slimnet-overlay-{name}" for name in ("ebpf", "etcd", "noop")}
    assert {"slimnet-overlay", *plugins} <= {
        line.partition("==")[0].lower() for line in listing.splitlines()
    }
