# SPDX-License-Identifier: Apache-2.0
"""Waiting for a child, where a signal may be another thread's."""

import subprocess
import sys

import pytest

# In a process of its own: what is awaited here would otherwise be awaited for ever.
CODE = """
import os, subprocess, sys, threading, time
from slimnet.sandbox import relay

for _ in range({threads}):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
relay.block()
child = subprocess.Popen(["sh", "-c", "exit 7"])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
time.sleep(0.2)  # for the thread that takes the signal to take it
status = relay.wait(child.pid, alone=not {threads})
sys.stdout.write(str(status))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("threads", [0, 3])
def test_a_child_that_has_ended_already(threads):
    """Its SIGCHLD is taken by a thread that does not block it, and is lost there."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(threads=threads)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "7"
