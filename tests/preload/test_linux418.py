# SPDX-License-Identifier: Apache-2.0
"""Router, shim and an ordinary user's agent need nothing that Linux 4.18 does not have: what is
newer is taken from them, and from the programs and tests themselves, by a filter of system
calls (``linux418.c``, which says what it cannot take)."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from bench import bench, compile_test
from test_carried import python

from slimnet.model import Direction

pytestmark = pytest.mark.root

TESTS = Path(__file__).parents[1]
LIVES_ON = "connections that policy forbids live on: 1 (closing them needs Linux 5.6, or root)"


@pytest.fixture(scope="module")
def linux418(tmp_path_factory):
    # Not in pytest's directory, which is its user's alone.
    with tempfile.TemporaryDirectory(prefix="slimnet-") as directory:
        Path(directory).chmod(0o755)
        yield compile_test("linux418", Path(directory))


def test_what_is_newer_is_not_there(linux418):
    """Each of what the filter is about: else the tests below would say nothing."""
    code = """
        import errno, os, socket

        def error_of(what, *arguments):
            try:
                what(*arguments)
            except OSError as error:
                return errno.errorcode[error.errno]

        stream = socket.socket()
        print(
            error_of(os.pidfd_open, os.getpid()),  # 5.3
            error_of(stream.setsockopt, socket.SOL_SOCKET, 61, 0),  # SO_TXTIME, 4.19
            error_of(stream.getsockopt, socket.IPPROTO_TCP, 37),  # TCP_TX_DELAY, 5.3
            error_of(stream.getsockopt, socket.IPPROTO_IP, 51),  # IP_LOCAL_PORT_RANGE, 6.3
            error_of(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262),  # MPTCP, 5.6
            error_of(stream.getsockopt, socket.SOL_SOCKET, 60),  # SO_ZEROCOPY, 4.14
            error_of(stream.getsockopt, socket.IPPROTO_TCP, 36),  # TCP_INQ, 4.18
        )
    """
    said = subprocess.run([linux418, *python(code)], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [
        *("ENOSYS", "ENOPROTOOPT", "ENOPROTOOPT", "ENOPROTOOPT", "EPROTONOSUPPORT"),
        *("None", "None"),
    ]


@pytest.mark.parametrize(
    ("tests", "which", "least"),
    [
        ("preload/test_shim_programs.py", "nginx or redis or memcached or asyncio", 7),
        ("preload/test_carried.py", "both_ends or outlive_the or non_blocking or musl", 11),
        ("preload/test_published_ports.py", "killed_router", 1),
        ("functional/test_rootless.py", "check or talk or adopts", 4),
    ],
)
def test_nothing_newer_is_needed(linux418, tests, which, least):
    """The same tests, router by router and program by program."""
    inner = linux418.with_name("inner")  # short: a socket's path has 108 bytes
    done = subprocess.run(
        [
            *(linux418, sys.executable, "-m", "pytest", "-q", "--tb=short"),
            *("-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={inner}"),
            *("-k", which, TESTS / tests),
        ],
        capture_output=True,
        text=True,
        # What this run was told besides (processes, coverage) is not for that one.
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (passed,) = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert int(passed) >= least, done.stdout


def test_an_ordinary_user_closes_nothing(linux418, programs):
    """Before Linux 5.6 another process' socket is out of reach without root. It says so for as
    long as such a connection lives; a new one is refused."""
    with tempfile.TemporaryDirectory(prefix="slimnet-") as directory:
        out = Path(directory)
        out.chmod(0o755)
        for each in ("slimnet-router", "libslimnet-shim.so"):
            shutil.copy(programs / each, out)
        with bench(out, out, 1, 2, 65534, through=[linux418]) as made:
            made.serve(
                1,
                *python("""
                import socket
                plug = socket.create_server(("", 80))
                print("ready", flush=True)
                while True:
                    sock = plug.accept()[0]
                    while byte := sock.recv(1):
                        sock.sendall(byte)
                    sock.close()
                """),
            )
            client = made.serve(
                2,
                *python("""
                import socket
                sock = socket.create_connection(("10.1.0.1", 80))
                print("ready", flush=True)
                input()
                sock.sendall(b"x")
                print(sock.recv(1).decode(), flush=True)
                input()
                sock.close()
                try:
                    socket.create_connection(("10.1.0.1", 80), 5)
                except OSError as error:
                    print(type(error).__name__)
                """),
                stdin=subprocess.PIPE,
            )
            control = made.hosts[0].control
            made.deny(2, 1, Direction.EGRESS)
            made.install()
            assert control.status().trouble == LIVES_ON
            client.stdin.write(b"\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"x\n"
            time.sleep(2)
            assert control.status().trouble == LIVES_ON
            assert client.communicate(b"\n", timeout=20)[0] == b"PermissionError\n"
            until = time.monotonic() + 20
            while control.status().trouble:
                assert time.monotonic() < until
                time.sleep(0.1)
