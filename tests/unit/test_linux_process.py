# SPDX-License-Identifier: Apache-2.0
"""A process is named by its number and its start, for numbers come again."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from slimnet.linux import process


def test_mark_of_one_that_runs():
    mark = process.mark(os.getpid())
    assert mark.split()[0] == str(os.getpid())
    assert process.alive(mark) == process.alive(f" {mark}\n") == os.getpid()
    # ... within the time that the machine is up (proc_uptime(5)).
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    assert 0 < process.started(os.getpid()) <= up * os.sysconf("SC_CLK_TCK")


def test_number_that_somebody_else_has():
    pid, start = process.mark(os.getpid()).split()
    assert process.alive(f"{pid} {int(start) - 1}") is None


def test_one_that_ended():
    child = subprocess.Popen(["sleep", "60"])
    mark = process.mark(child.pid)
    assert process.alive(mark) == child.pid
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.alive(mark) is None  # a zombie, which nobody has waited for
    child.wait()
    assert process.alive(mark) is None
    assert process.mark(child.pid) == f"{child.pid} 0"
    assert process.alive(process.mark(child.pid)) is None


@pytest.mark.parametrize("text", ["", "1", "one two", "1 2 3", "-1 5", "9" * 30 + " 1"])
def test_no_mark(text):
    assert process.alive(text) is None


def test_name_with_parentheses(tmp_path):
    """proc_pid_stat(5): the name is as the program's file, and may look like other fields."""
    program = tmp_path / "a) R 1 1"
    program.symlink_to("/bin/sleep")
    began = time.clock_gettime(time.CLOCK_BOOTTIME)
    with subprocess.Popen(["sleep", "60"], executable=program) as child:
        try:
            ticks = os.sysconf("SC_CLK_TCK")
            assert abs(process.started(child.pid) / ticks - began) < 5
        finally:
            child.kill()


def test_who_holds_a_socket():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
        assert process.holder(inode) == f"{name} (process {os.getpid()})"
    assert process.holder(inode) == ""
