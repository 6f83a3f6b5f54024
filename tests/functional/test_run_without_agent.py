# SPDX-License-Identifier: Apache-2.0
"""A command that runs as an endpoint outlives its agent, and so does its answer."""

import os
import subprocess
import sys
import time

import pytest
from lab.paths import DATA_PATHS, require

from slimnet.testbed import Testbed

pytestmark = pytest.mark.root


@pytest.mark.parametrize("backend", DATA_PATHS)
def test_exit_status_after_the_agent_died(backend):
    require(backend)
    with Testbed(f"slt-d{os.getpid()}-{backend}", hosts=1, backend=backend) as testbed:
        host = testbed.hosts[0]
        with host.node() as node:
            node.create_network("prod", "10.1.0.0/16")
            run = subprocess.Popen(
                [sys.executable, "-m", "slimnet.cli", "run", "-n", "prod", "--name", "job"]
                + ["--", "sh", "-c", "echo started; read line; exit 7"],
                env=os.environ | host.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            with run:
                assert run.stdout.readline() == "started\n"
                host.kill_agent()
                _, errors = run.communicate("\n", timeout=20)
        assert run.returncode == 7, errors
        host.start_agent().wait()
        with host.node() as node:
            deadline = time.monotonic() + 20
            while node.endpoints() and time.monotonic() < deadline:
                time.sleep(0.1)
            assert node.endpoints() == []
