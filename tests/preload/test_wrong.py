# SPDX-License-Identifier: Apache-2.0
"""What is wrong around a process: its environment, its router, its descriptors, its memory. A
message, once, on standard error, of a program that connects something; and an honest errno."""

import contextlib
import errno
import os
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from test_carried import SERVER, python

from slimnet_preload import contract

pytestmark = pytest.mark.root

#: Three times, so that a message could come three times.
CONNECT = textwrap.dedent("""
    import os, socket
    for _ in range(3):
        with socket.socket() as sock:
            print(sock.connect_ex(("10.1.0.1", 80)))
""")


def run(one, where, code=CONNECT, **more):
    """A process of the host whose environment says this; what it said, and its complaints."""
    words = [f"SLIMNET_SOCKET={where}", *(f"{name}={value}" for name, value in more.items())]
    preload = f"LD_PRELOAD={one.programs / 'libslimnet-shim.so'}"
    done = subprocess.run(
        one.hosts[0].command("env", preload, *words, sys.executable, "-c", code),
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return done.stdout.split(), done.stderr.splitlines()


@pytest.mark.parametrize("how", ["missing", "file", "directory", "long"])
def test_a_socket_that_is_none(one, how):
    """No connection of the host in its stead."""
    path = {
        "missing": one.directory / "nothing",
        "file": one.directory / "plain",
        "directory": one.directory,
        "long": "/" + "x" * 200,
    }[how]
    (one.directory / "plain").touch()
    said, complaints = run(one, path)
    assert said == [str(errno.ENETDOWN)] * 3
    (line,) = complaints
    assert line.startswith("slimnet: ")
    assert str(path)[:100] in line
    assert line.endswith(": no router: new connections are refused")


def test_who_connects_nothing_hears_nothing(one):
    """Whatever its environment says."""
    for where in ("", one.directory / "nothing"):
        assert run(one, where, "print(1)") == (["1"], [])


def test_the_switch_needs_no_router(one):
    assert run(one, one.directory / "nothing", "print(1)", SLIMNET_DISABLE="1") == (["1"], [])


def test_a_router_of_another_version(one):
    """Its answers are not taken for what they are not."""
    path = one.directory / "other"
    plug = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    plug.bind(str(path))
    plug.listen()

    def answer():
        while True:
            try:
                sock, _ = plug.accept()
            except OSError:
                return
            with sock:
                while sock.recv(1000):
                    version = (contract.SLIM_SHIM_VERSION + 1).to_bytes(2, sys.byteorder)
                    sock.send(version + bytes(74))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    said, complaints = run(one, path)
    assert said == [str(errno.EPROTO)] * 3
    assert complaints == [f"slimnet: {path}: a router of another version"]
    plug.shutdown(socket.SHUT_RDWR)
    plug.close()
    thread.join(10)


def test_a_shim_of_another_version(one):
    """The router says so, ends the connection, and goes on."""
    said = subprocess.run(
        one.hosts[0].command(
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import socket
            for data in (b"", b"x", bytes(68), bytes([9, 0]) + bytes(66), bytes(4000)):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    sock.connect({str(one.socket(1))!r})
                    sock.send(data)
                    answer = sock.recv(1000)
                    print(int.from_bytes(answer[8:12], "little") if answer else 0, sock.recv(1))
            """),
        ),
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()
    assert said == ["0 b''"] + [f"{errno.EPROTO} b''"] * 4
    one.serve(1, *python(SERVER))
    assert run(one, one.socket(2)) == (["0"] * 3, [])


def test_a_full_table_of_descriptors(one):
    """EMFILE, as of socket(2) itself; and nothing is said, for nothing is wrong with slimnet."""
    one.serve(1, *python(SERVER))
    said, complaints = run(
        one,
        one.socket(2),
        textwrap.dedent("""
        import errno, os, resource, socket
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        sock = socket.socket()
        held = []
        try:
            while True:
                held.append(os.dup(0))
        except OSError as error:
            assert error.errno == errno.EMFILE
        print(sock.connect_ex(("10.1.0.1", 80)))
        os.close(held.pop())
        os.close(held.pop())
        print(sock.connect_ex(("10.1.0.1", 80)))
        """),
    )
    assert said == [str(errno.EMFILE), "0"]
    assert complaints == []


def spent(pid):
    """Seconds of a processor."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def test_a_router_without_descriptors(one):
    """It waits until it has some, and is not busy with that; then who waited is answered."""
    one.serve(1, *python(SERVER))
    pid = one.hosts[0].router.pid
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # What it has fills the table: numbers are given from the lowest.
    full = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()) + 1
    before = spent(pid)
    with contextlib.ExitStack() as held:
        held.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, limit)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (full, limit[1]))
        for _ in range(full):
            sock = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sock.connect(str(one.socket(2)))
        time.sleep(2)
        assert spent(pid) - before < 0.25
    assert run(one, one.socket(2)) == (["0"] * 3, [])


def test_no_memory_for_what_is_remembered(one):
    """Names are asked of the router then: slower, and the same."""
    one.serve(1, *python(SERVER))
    said, complaints = run(
        one,
        one.socket(2),
        textwrap.dedent("""
        import resource, socket
        sock = None
        resource.setrlimit(resource.RLIMIT_AS, (1, resource.RLIM_INFINITY))
        sock = socket.socket()
        sock.connect(("10.1.0.1", 80))
        name, peer = sock.getsockname(), sock.getpeername()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(name[0], *peer)
        """),
    )
    assert said == ["10.1.0.2", "10.1.0.1", "80"]
    assert complaints == []
