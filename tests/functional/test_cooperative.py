# SPDX-License-Identifier: Apache-2.0
"""What becomes of a process that is not held to what its endpoint is, where it may choose."""

from __future__ import annotations

import errno
import shutil
import sys

import pytest
from lab import Can

from slimnet.model import Direction

CONNECT = """
import socket, sys
with socket.socket() as one:
    one.settimeout(10)
    print(one.connect_ex((sys.argv[1], int(sys.argv[2]))))
"""
GO = shutil.which("go", path="/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin")


def connects(endpoint, address, port, *before):
    """The errno of a program that connects."""
    return int(endpoint.run([*before, sys.executable, "-c", CONNECT, address, str(port)]))


@pytest.mark.lacks(Can.ENFORCES)
def test_a_process_that_wants_to_is_the_hosts(lab):
    """No policy of the endpoint's is asked then, which is why a mandatory one is refused; and it
    is nobody in the overlay."""
    how = ["env", "SLIMNET_DISABLE=1"]
    endpoint, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    lab.outside.root.serve(7000)
    lab.isolate(endpoint, Direction.EGRESS)
    lab.install()
    assert connects(endpoint, lab.outside.address, 7000) == errno.EACCES
    assert connects(endpoint, lab.outside.address, 7000, *how) == 0
    assert connects(endpoint, server.address, 80, *how) in {errno.ENETUNREACH, errno.EHOSTUNREACH}


@pytest.mark.lacks(Can.ANY_PROGRAM)
@pytest.mark.parametrize("language", ["static", *(["go"] if GO else [])])
def test_a_program_without_libc_is_the_hosts(lab, built, language):
    """It finds nobody at an overlay address, and nobody of the overlay finds it."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    words = [8080, 4] if language == "static" else [8080]
    server.spawn([*built(language), "server", *words]).ready("ready")
    with pytest.raises(RuntimeError, match="(?i)refused"):
        client.run([*built("dynamic"), "client", server.address, 8080, 1])
    server.serve(8081)
    with pytest.raises(RuntimeError, match="(?i)unreachable"):
        client.run([*built(language), "client", server.address, 8081, 1])


@pytest.mark.lacks(Can.ANY_PROGRAM)
def test_a_ring_is_the_hosts(lab, built):
    """io_uring(7) makes system calls that no library sees."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    server.serve(80)
    said = client.run([*built("ring"), "client", server.address, 80]).split()
    assert said in (["errno", str(errno.ENETUNREACH)], ["errno", str(errno.EHOSTUNREACH)])
