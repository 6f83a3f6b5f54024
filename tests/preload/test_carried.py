# SPDX-License-Identifier: Apache-2.0
"""Connections of real programs under the shim, on one host and between two."""

import contextlib
import errno
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
from bench import VNI, bench, compile_test, until
from netaddr import IPAddress

from slimnet.contract import SLIM_ADDRESS_SERVICE, SLIM_SERVICE_SLOTS
from slimnet.model import Direction, Reason
from slimnet.tables import ServiceKey, ServiceRecord, Tables
from slimnet_preload import contract

pytestmark = pytest.mark.root

RESET = {errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE}
SERVER = """
    import socket, sys
    plug = socket.create_server(("", 80))
    print("ready", flush=True)
    while True:
        sock, peer = plug.accept()
        sock.sendall(f"{peer} {sock.getpeername()} {sock.getsockname()}".encode())
        sock.close()
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def counts(text: str) -> tuple[int, int, int]:
    right, wrong, refused, *_ = text.split()
    return int(right), int(wrong), int(refused)


@pytest.fixture(params=["one", "two"])
def hosts(request):
    return request.getfixturevalue(request.param)


def test_both_ends_see_overlay_names(hosts):
    """Names are those that a container would see, at accept(2) and later."""
    hosts.serve(1, *python(SERVER))
    said = hosts.run(
        2,
        *python("""
        import socket
        sock = socket.create_connection(("10.1.0.1", 80))
        own, peer = sock.getsockname(), sock.getpeername()
        assert own[0] == "10.1.0.2" and peer == ("10.1.0.1", 80), (own, peer)
        said = sock.recv(200).decode()
        assert said == f"{own} {own} {peer}", (said, own, peer)
        print("right")
        """),
    )
    assert said == "right\n"


def test_no_client_of_prefork_workers_has_anothers_identity(programs, identity, tmp_path):
    """Eight clients of eight endpoints on two hosts, four workers that accept in turn. Each
    connects SLIMNET_CONNECTIONS times."""
    count = int(os.environ.get("SLIMNET_CONNECTIONS", "300"))
    with bench(tmp_path, programs, 2, 9) as made:
        made.serve(1, identity, "server", "80", "4")
        clients = [
            made.popen(
                number,
                [identity, "client", "10.1.0.1", "80", str(count), f"10.1.0.{number}"]
                + (["-n"] if number % 2 else []),
            )
            for number in range(2, 10)
        ]
        for client in clients:
            out, err = client.communicate(timeout=60 + count / 10)
            assert counts(out.decode()) == (count, 0, 0), err


@pytest.mark.parametrize("host", [0, 1])
def test_a_plain_client_is_nobody(two, identity, host):
    """Whoever connects to the port of the host that an endpoint's is gets a reset, at once,
    from a host of the cluster too; and holds nobody up."""
    two.serve(1, identity, "server", "80", "1")
    before = time.monotonic()
    said = two.run(
        None,
        *(identity, "client", str(two.hosts[1].address), "20000", "5", "10.1.0.2"),
        host=two.hosts[host],
    )
    assert counts(said) == (0, 0, 5)
    assert time.monotonic() - before < 10  # three seconds each, and not one after the other
    assert counts(two.run(2, identity, "client", "10.1.0.1", "80", "5", "10.1.0.2")) == (5, 0, 0)
    assert two.hosts[1].control.status().counters[Reason.NO_FLOW] == 5


def test_nobody_listens(hosts):
    """ECONNREFUSED, at once, blocking or not."""
    said = hosts.run(
        2,
        *python("""
        import socket
        for timeout in (None, 5):
            with socket.socket() as sock:
                sock.settimeout(timeout)
                print(sock.connect_ex(("10.1.0.1", 80)))
        """),
    )
    assert said.split() == [str(errno.ECONNREFUSED)] * 2


@pytest.mark.parametrize(
    ("direction", "number"),
    [(Direction.EGRESS, errno.EACCES), (Direction.INGRESS, errno.ECONNREFUSED)],
)
def test_policy_decides_at_both_ends(hosts, direction, number):
    hosts.serve(1, *python(SERVER))
    subject, peer = (2, 1) if direction is Direction.EGRESS else (1, 2)
    hosts.deny(subject, peer, direction)
    hosts.install()
    said = hosts.run(
        2,
        *python("""
        import socket
        print(socket.socket().connect_ex(("10.1.0.1", 80)))
        """),
    )
    assert int(said) == number
    assert hosts.run(3, *python(CLIENT_ONCE)) == "right\n"


CLIENT_ONCE = """
import socket
sock = socket.create_connection(("10.1.0.1", 80))
assert sock.recv(200)
print("right")
"""


@pytest.mark.parametrize("user", [None, 65534], ids=["root", "nobody"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_change_closes_what_it_forbids(programs, count, user):
    """With an ordinary error, and nothing else. An ordinary user's router may close what is
    his own."""
    # Not in pytest's directory, which is its user's alone.
    with tempfile.TemporaryDirectory(prefix="slimnet-") as directory:
        out = Path(directory)
        out.chmod(0o755)
        for each in ("slimnet-router", "libslimnet-shim.so"):
            shutil.copy(programs / each, out)
        with bench(out, out, count, 4, user) as hosts:
            check_closed(hosts)


def test_what_cannot_be_closed_is_tried_again(programs):
    """A process that nobody but root may look into: it is said as long as it lasts."""
    with tempfile.TemporaryDirectory(prefix="slimnet-") as directory:
        out = Path(directory)
        out.chmod(0o755)
        for each in ("slimnet-router", "libslimnet-shim.so"):
            shutil.copy(programs / each, out)
        with bench(out, out, 2, 2, 65534) as hosts:
            hosts.serve(1, *python(SERVER.replace("sock.close()", "sock.recv(1)")))
            client = hosts.serve(
                2,
                *python("""
                import ctypes, socket
                set_dumpable = lambda value: ctypes.CDLL(None).prctl(4, value)
                set_dumpable(0)
                sock = socket.create_connection(("10.1.0.1", 80))
                sock.recv(200)
                print("ready", flush=True)
                input()
                set_dumpable(1)
                try:
                    print("end" if not sock.recv(1) else "data")
                except OSError as error:
                    print(error.errno)
                """),
                stdin=subprocess.PIPE,
            )
            control = hosts.endpoints[2].control
            hosts.deny(2, 1, Direction.EGRESS)
            hosts.install()
            assert control.status().trouble == "connections that policy forbids live on: 1"
            time.sleep(1.5)
            assert control.status().trouble
            assert client.poll() is None
            out_, _ = client.communicate(b"\n", timeout=20)
            # Its kernel does not disconnect a socket at which somebody waits.
            ends = {"end"} if platform.release().startswith("5.10.") else set()
            assert out_.decode().strip() in ends | set(map(str, RESET))
            until = time.monotonic() + 10
            while control.status().trouble:
                assert time.monotonic() < until
                time.sleep(0.05)


def check_closed(hosts):
    hosts.serve(
        1,
        *python("""
        import socket
        plug = socket.create_server(("", 80))
        print("ready", flush=True)
        kept = []
        while True:
            kept.append(plug.accept()[0])
            kept[-1].sendall(b"x")
        """),
    )
    code = python("""
        import socket
        sock = socket.create_connection(("10.1.0.1", 80))
        sock.recv(1)
        print("ready", flush=True)
        try:
            print("end" if not sock.recv(1) else "data")
        except OSError as error:
            print(error.errno)
        """)
    forbidden, allowed = hosts.serve(2, *code), hosts.serve(3, *code)
    hosts.deny(1, 2, Direction.INGRESS)
    hosts.install()
    out, _ = forbidden.communicate(timeout=10)
    # EPIPE: who waits in recv(2) while its own end is disconnected (sk_wait_event()).
    assert int(out) in RESET
    with pytest.raises(subprocess.TimeoutExpired):
        allowed.communicate(timeout=0.5)


def test_live_connections_outlive_the_router(hosts):
    """They go on, and keep their names; new ones are refused with a clear error; a new
    router has listeners and connections again, without the agent."""
    server = hosts.serve(
        1,
        *python("""
        import socket, threading
        plug = socket.create_server(("", 80))
        print("ready", flush=True)
        def serve(sock):
            while sock.recv(1):
                sock.sendall(str(sock.getpeername()).encode())
        while True:
            threading.Thread(target=serve, args=(plug.accept()[0],), daemon=True).start()
        """),
    )
    client = hosts.popen(
        2,
        python("""
        import errno, os, socket, sys
        sock = socket.create_connection(("10.1.0.1", 80))
        own = str(sock.getsockname()).encode()
        def talk(sock):
            sock.sendall(b"x")
            return sock.recv(100)
        assert talk(sock) == own
        print("up", flush=True); sys.stdin.readline()
        assert talk(sock) == own and str(sock.getsockname()).encode() == own
        assert socket.socket().connect_ex(("10.1.0.1", 80)) == errno.ENETDOWN
        print("down", flush=True); sys.stdin.readline()
        again = socket.create_connection(("10.1.0.1", 80))
        assert talk(again) == str(again.getsockname()).encode()
        # Another process has to ask for the names: the router still has them.
        if not os.fork():
            os.dup2(sock.fileno(), 100)
            assert str(socket.socket(fileno=100).getsockname()).encode() == own
            os._exit(0)
        assert os.wait()[1] == 0
        print("right", flush=True)
        """),
        stdin=subprocess.PIPE,
    )
    assert client.stdout.readline() == b"up\n"
    for host in hosts.hosts:
        host.kill()
    client.stdin.write(b"\n")
    client.stdin.flush()
    assert client.stdout.readline() == b"down\n"
    for host in hosts.hosts:
        host.start()
    client.stdin.write(b"\n")
    client.stdin.flush()
    out, err = client.communicate(timeout=20)
    assert out == b"right\n", err.decode()
    assert err.count(b"\n") == 1
    assert b"no router: new connections are refused" in err
    assert server.poll() is None


def test_a_link_that_is_new_leaves_what_is_about_to_connect(two):
    """It was told where to, and waits for a processor: it comes, and is known."""
    server = two.serve(1, *python(SERVER))
    client = two.popen(
        None,
        python(f"""
        import socket, struct, sys
        name = struct.Struct("!16sHxx")
        router = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        router.connect({str(two.socket(2))!r})
        sock = socket.socket()
        calls = ({contract.SLIM_SHIM_VERSION}, {contract.SLIM_SHIM_CONNECT})
        dialled = name.pack(socket.inet_pton(socket.AF_INET6, "::ffff:10.1.0.1"), 80)
        request = struct.pack("=HHI", *calls, 0) + bytes(name.size) + dialled + bytes(name.size)
        socket.send_fds(router, [request], [sock.fileno()])
        answer = router.recv(1000)
        assert not any(answer[8:12]), answer
        print("told", flush=True)
        sys.stdin.readline()
        address, port = name.unpack(answer[-name.size:])
        sock.connect((socket.inet_ntoa(address[12:]), port))
        print(sock.recv(1000).decode())
        """),
        two.hosts[0],
        stdin=subprocess.PIPE,
    )
    assert client.stdout.readline() == b"told\n"
    there = two.hosts[0].control
    two.hosts[1].kill()
    until(lambda: there.status().links == 0)
    two.hosts[1].start()
    until(lambda: there.status().links == 1)
    out, err = client.communicate(b"\n", timeout=20)
    assert out.startswith(b"('10.1.0.2', "), err.decode()
    assert server.poll() is None


def test_an_idle_router_sleeps(two, identity):
    """It wakes up to sweep, once a second, and to say that its links live."""
    two.serve(1, identity, "server", "80", "1")
    assert counts(two.run(2, identity, "client", "10.1.0.1", "80", "1", "10.1.0.2")) == (1, 0, 0)
    before = [sleeps(host) for host in two.hosts]
    time.sleep(3)  # of which this asks how often they woke up
    woken = [sleeps(host) - slept for host, slept in zip(two.hosts, before, strict=True)]
    assert max(woken) < 20


def sleeps(host):
    """How often a host's router had nothing more to do."""
    status = Path(f"/proc/{host.router.pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)[1])


def test_nobody_is_taken_for_another_while_routers_are_killed(programs, identity, tmp_path):
    """0 wrong; what is refused says so."""
    with bench(tmp_path, programs, 2, 5) as made:
        made.serve(1, identity, "server", "80", "4")
        clients = [
            made.popen(
                n, [identity, "client", "10.1.0.1", "80", "5000", f"10.1.0.{n}", *["-n"] * (n % 2)]
            )
            for n in range(2, 6)
        ]
        turn = right = 0
        while any(client.poll() is None for client in clients):
            host = made.hosts[turn % 2]
            # Not before it has done something, however slow the machine is.
            while any(client.poll() is None for client in clients):
                if host.control.status().counters.get(Reason.DEFAULT_ALLOW, 0) >= 100:
                    break
                time.sleep(0.01)
            host.kill()
            host.start()
            turn += 1
        for client in clients:
            out, err = client.communicate()
            known, wrong, refused = counts(out.decode())
            assert wrong == 0, err
            assert known + refused == 5000
            right += known
        assert right > 50
        assert turn > 1


def test_a_bind_conflicts_as_the_kernel_says(one):
    """Equal ports of one endpoint, not those of two, nor of the host."""
    said = one.run(
        1,
        *python("""
        import errno, socket
        def bind(address, port, reuse=0):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse)
            try:
                sock.bind((address, port))
            except OSError as error:
                return errno.errorcode[error.errno]
            sock.listen()
            return sock
        first = bind("10.1.0.1", 80)
        assert first.getsockname() == ("10.1.0.1", 80)
        assert bind("10.1.0.1", 80) == "EADDRINUSE"
        assert bind("0.0.0.0", 80) == "EADDRINUSE"
        loop = bind("127.0.0.1", 80)
        assert loop.getsockname() == ("127.0.0.1", 80)
        wild = bind("", 22)
        assert wild.getsockname() == ("0.0.0.0", 22)
        assert bind("127.0.0.1", 22) == "EADDRINUSE"
        group = [bind("", 81, 1) for _ in range(3)]
        assert all(not isinstance(each, str) for each in group)
        assert bind("", 81) == "EADDRINUSE"
        assert bind("10.99.0.1", 90) == "EADDRNOTAVAIL"
        assert bind("10.1.0.2", 90) == "EADDRNOTAVAIL"
        drawn = bind("", 0)
        port = drawn.getsockname()[1]
        assert port and bind("", port) == "EADDRINUSE"
        first.close()
        assert not isinstance(bind("10.1.0.1", 80), str)
        unbound = socket.socket(); unbound.listen()
        socket.create_connection(("10.1.0.1", unbound.getsockname()[1]))
        print(unbound.accept()[1][0])
        """),
    )
    assert said == "10.1.0.1\n"
    other = "import socket; s = socket.create_server(('', 22)); print(s.getsockname())"
    assert one.run(2, *python(other)) == "('0.0.0.0', 22)\n"


def test_sockets_that_are_bound_connect(hosts):
    """To an explicit port, to port 0, to the own address."""
    hosts.serve(1, *python(SERVER))
    said = hosts.run(
        2,
        *python("""
        import socket
        for source in (("", 5000), ("10.1.0.2", 0), ("10.1.0.2", 5001), ("", 0)):
            sock = socket.create_connection(("10.1.0.1", 80), source_address=source)
            own = sock.getsockname()
            assert own[0] == "10.1.0.2" and own[1] == (source[1] or own[1]), own
            assert sock.recv(200).decode().startswith(str(own))
        print("right")
        """),
    )
    assert said == "right\n"


def test_no_two_live_connections_have_one_name(hosts):
    """Two sockets on one port, and a service with two endpoints behind it: the kernel sees two
    connections, and both would be called the same."""
    service = IPAddress("10.1.255.1")
    slots = tuple(itertools.islice(itertools.cycle([(1, 80), (3, 80)]), SLIM_SERVICE_SLOTS))
    hosts.extra = Tables(
        generation=1,
        addresses={(VNI, service): SLIM_ADDRESS_SERVICE},
        services={ServiceKey(VNI, service, 6, 80): ServiceRecord(1, 0, slots, 2)},
    )
    hosts.install()
    for number in (1, 3):
        hosts.serve(number, *python(SERVER))
    said = hosts.run(
        2,
        *python("""
        import errno, socket
        def bound():
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", 5000))
            return sock
        first = bound()
        first.connect(("10.1.255.1", 80))
        name = first.getsockname()
        assert name == ("10.1.0.2", 5000), name
        for _ in range(20):
            with bound() as other:
                assert other.connect_ex(("10.1.255.1", 80)) == errno.EADDRNOTAVAIL
        # Another name is another connection's.
        free = socket.create_connection(("10.1.255.1", 80))
        assert free.getsockname() != name
        print("right")
        """),
    )
    assert said == "right\n"


def test_dual_stack_sockets(hosts):
    """v4-mapped at both ends, and ::1 as the endpoint's own."""
    hosts.serve(
        1,
        *python("""
        import socket
        plug = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
        assert plug.getsockname()[:2] == ("::", 80)
        own = socket.create_connection(("::1", 80))
        sock, peer = plug.accept()
        assert peer[:2] == own.getsockname()[:2], (peer, own.getsockname())
        assert peer[0] == "::1"
        print("ready", flush=True)
        sock, peer = plug.accept()
        sock.sendall(f"{peer[0]} {sock.getsockname()[0]}".encode())
        """),
    )
    said = hosts.run(
        2,
        *python("""
        import socket
        sock = socket.socket(socket.AF_INET6)
        sock.connect(("::ffff:10.1.0.1", 80))
        print(sock.getsockname()[0], sock.getpeername()[0], sock.recv(100).decode())
        """),
    )
    assert said.split() == ["::ffff:10.1.0.2", "::ffff:10.1.0.1"] * 1 + [
        "::ffff:10.1.0.2",
        "::ffff:10.1.0.1",
    ]


def test_a_non_blocking_connect_is_the_kernels(hosts):
    """EINPROGRESS, readiness of the application's own descriptor by epoll(7), edge-triggered,
    and what connect(2) says afterwards."""
    hosts.serve(1, *python(SERVER))
    said = hosts.run(
        2,
        *python("""
        import errno, select, socket
        for port, wanted in ((80, 0), (81, errno.ECONNREFUSED)):
            sock = socket.socket()
            sock.setblocking(False)
            poll = select.epoll()
            poll.register(sock, select.EPOLLOUT | select.EPOLLIN | select.EPOLLET)
            poll.poll(0)
            first = sock.connect_ex(("10.1.0.1", port))
            if port == 81:
                assert first == wanted, first
                continue
            assert first in (errno.EINPROGRESS, 0), first
            while not any(e & select.EPOLLOUT for _, e in poll.poll(5)):
                pass
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert sock.connect_ex(("10.1.0.1", port)) in (0, errno.EISCONN)
            assert sock.connect_ex(("10.1.0.1", port)) == errno.EISCONN
            assert sock.getpeername() == ("10.1.0.1", 80)
        print("right")
        """),
    )
    assert said == "right\n"


def test_a_thread_in_accept_holds_nobody_up(one):
    """Neither a thread that accepts, nor one that connects, nor close() of others."""
    said = one.run(
        1,
        *python("""
        import socket, threading, time
        idle = socket.create_server(("", 90))
        threads = [threading.Thread(target=idle.accept, daemon=True) for _ in range(20)]
        for each in threads: each.start()
        plug = socket.create_server(("", 80))
        start = time.monotonic()
        def client():
            for _ in range(100):
                socket.create_connection(("10.1.0.1", 80)).close()
        workers = [threading.Thread(target=client) for _ in range(4)]
        for each in workers: each.start()
        for _ in range(400):
            plug.accept()[0].close()
        for each in workers: each.join()
        print(time.monotonic() - start < 20)
        """),
    )
    assert said == "True\n"


def test_null_addresses(one, programs):
    """accept(fd, NULL, NULL), short and null addresses, errno as it was."""
    program = compile_test("calls", programs)
    assert one.run(1, program) == "right\n"


def test_descriptors_that_are_inherited_duplicated_and_passed(one):
    """The router knows a socket in whatever process and by whatever number."""
    said = one.run(
        1,
        *python("""
        import os, socket, subprocess, sys
        plug = socket.create_server(("", 80))
        sock = socket.create_connection(("10.1.0.1", 80))
        child, peer = plug.accept()
        names = f"{child.getsockname()} {child.getpeername()} {plug.getsockname()}"
        code = (
            "import socket, sys\\n"
            "a, b = (socket.socket(fileno=int(n)) for n in sys.argv[1:])\\n"
            "print(a.getsockname(), a.getpeername(), b.getsockname())\\n"
            "print(b.accept()[1][0])\\n"
        )
        socket.create_connection(("10.1.0.1", 80))
        os.dup2(child.fileno(), 77); os.dup2(plug.fileno(), 78)
        # exec with inherited descriptors, as systemd and nginx do it
        run = subprocess.run(
            [sys.executable, "-c", code, "77", "78"], pass_fds=(77, 78), capture_output=True
        )
        assert run.stdout.decode().split("\\n")[:2] == [names, "10.1.0.1"], run
        # SCM_RIGHTS
        left, right = socket.socketpair(socket.AF_UNIX)
        socket.send_fds(left, [b"x"], [child.fileno()])
        if not os.fork():
            copy = socket.socket(fileno=socket.recv_fds(right, 1, 1)[1][0])
            assert copy.getpeername() == peer
            fresh = socket.create_connection(("10.1.0.1", 80))
            assert fresh.getsockname()[0] == "10.1.0.1"
            os._exit(0)
        assert os.wait()[1] == 0
        # A number whose socket was closed behind the shim's back.
        number = child.fileno()
        os.closerange(3, 60)
        again = socket.socket(); assert again.fileno() < 60
        assert again.getsockname() == ("0.0.0.0", 0)
        print("right")
        """),
    )
    assert said == "right\n"


def test_the_switch_is_off(one):
    """SLIMNET_DISABLE=1: the host's own addresses."""
    said = one.run(
        1,
        "env",
        "SLIMNET_DISABLE=1",
        *python("""
        import socket
        plug = socket.create_server(("127.0.0.1", 0))
        sock = socket.create_connection(plug.getsockname())
        print(plug.accept()[1] == sock.getsockname())
        """),
    )
    assert said == "True\n"


def test_other_protocols_are_refused(one):
    """Each would be a way around what is decided."""
    said = one.run(
        1,
        *python("""
        import socket
        for kind, protocol in ((1, 262), (1, 132), (2, 136), (3, 1), (2, 1)):
            try:
                socket.socket(socket.AF_INET, kind, protocol)
            except OSError as error:
                print(error.errno)
        """),
    )
    assert said.split() == [str(errno.EPROTONOSUPPORT)] * 5


def test_the_outside_is_by_egress_policy(one):
    """A host of the cluster is denied unless it is named."""
    said = one.run(
        1,
        *python("""
        import socket
        print(socket.socket().connect_ex(("10.99.0.1", 4789)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for address in ("10.99.0.1", "10.1.0.2"):
                try:
                    sock.sendto(b"x", (address, 5000))
                except OSError as error:
                    print(error.errno)
        """),
    )
    assert said.split() == [str(errno.EACCES), str(errno.EACCES), str(errno.ENETUNREACH)]


def test_fast_open_is_a_connect(hosts):
    """The gift goes behind the handshake, and the decision stands."""
    hosts.serve(
        1,
        *python("""
        import socket
        plug = socket.create_server(("", 80))
        print("ready", flush=True)
        sock, peer = plug.accept()
        sock.sendall(f"{peer[0]} {sock.recv(10).decode()}".encode())
        """),
    )
    said = hosts.run(
        2,
        *python("""
        import socket
        sock = socket.socket()
        assert sock.sendto(b"gift", socket.MSG_FASTOPEN, ("10.1.0.1", 80)) == 4
        print(sock.recv(100).decode())
        """),
    )
    assert said == "10.1.0.2 gift\n"


def test_a_program_of_musl(one, programs, tmp_path):
    """The same shim, loaded by musl's linker."""
    program = compile_test("identity", tmp_path, compiler="musl-gcc")
    one.serve(1, program, "server", "80", "2")
    assert counts(one.run(2, program, "client", "10.1.0.1", "80", "50", "10.1.0.2")) == (50, 0, 0)
    calls = compile_test("calls", tmp_path, compiler="musl-gcc")
    assert one.run(3, calls) == "right\n"


def test_a_router_says_what_is_wrong(programs, tmp_path):
    """One line that names the option; exit 2."""
    right = {"control": "c", "state": "s", "host": "10.99.0.1", "listen": "1.2.3.4:5", "key": "k"}
    (tmp_path / "k").write_text("0" * 32 + "\n")
    for name, value in {
        "host": "h",
        "listen": "10.0.0.1",
        "ports": "9-1",
        "key": "missing",
        "state": "none/s",
    }.items():
        options = [f"--{key}={each}" for key, each in {**right, name: value}.items()]
        done = subprocess.run(
            [programs / "slimnet-router", *options], capture_output=True, cwd=tmp_path, timeout=10
        )
        assert done.returncode == 2
        assert done.stderr.count(b"\n") == 1
        assert f"--{name}".encode() in done.stderr


def test_a_state_file_has_one_router(one):
    done = subprocess.run(
        one.hosts[0].command(
            one.programs / "slimnet-router",
            *("--control", one.directory / "other", "--state", one.hosts[0].directory / "state"),
            *("--host", "10.99.0.1", "--listen", "10.99.0.1:4790"),
            *("--key", one.hosts[0].directory / "key"),
        ),
        capture_output=True,
        timeout=10,
    )
    assert done.returncode == 2
    assert b"another router has it" in done.stderr


@pytest.mark.parametrize("how", ["execve", "execvpe", "posix_spawn", "clear"])
def test_a_program_with_an_environment_of_its_own_stays_in_the_endpoint(one, how):
    """Unless it is told that it shall not."""
    said = one.run(
        1,
        *python(f"""
        import os, sys
        code = "import os, socket; s = socket.create_server(('', 80)); print(s.getsockname()[1])"
        def child(environment):
            argv = [sys.executable, "-c", code]
            if {how!r} == "posix_spawn":
                return os.posix_spawn(sys.executable, argv, environment)
            pid = os.fork()
            if pid:
                return pid
            if {how!r} == "clear":
                os.environ.clear()
                os.environ.update(environment)
                os.execv(sys.executable, argv)
            getattr(os, {how!r})(sys.executable, argv, environment)
        for environment in ({{}}, {{"LD_PRELOAD": ""}}, {{"A": "B"}}):
            assert os.waitpid(child(environment), 0)[1] == 0
        code = "import os; print('SLIMNET_SOCKET' in os.environ)"
        assert os.waitpid(child({{"SLIMNET_DISABLE": "1"}}), 0)[1] == 0
        """),
    )
    assert said.split() == ["80", "80", "80", "False"]


def test_nobody_turns_up_in_the_place_of_a_connection_that_was_given_up(one):
    """What was announced and closed before it came about is taken back: another process of
    the host that binds its port is nobody."""
    one.serve(
        1,
        *python("""
        import socket, sys
        plug = socket.create_server(("", 80), backlog=0)
        kept = [socket.create_connection(("10.1.0.1", 80)) for _ in range(1)]
        print("ready", flush=True)
        sys.stdin.read()
        """),
        stdin=subprocess.PIPE,
    )
    said = one.run(
        2,
        *python("""
        import errno, socket
        sock = socket.socket()
        sock.setblocking(False)
        assert sock.connect_ex(("10.1.0.1", 80)) == errno.EINPROGRESS
        print(sock.getsockname()[1])
        """),
    )
    assert int(said)
    flows = one.hosts[0].control.status().connections
    assert flows == 1  # that of the server to itself


def test_a_connection_that_is_closed_before_it_came_about_is_taken_back_at_once(one):
    one.serve(
        1,
        *python("""
        import socket, time
        plug = socket.socket()
        plug.bind(("", 80)); plug.listen(0)
        kept = [socket.create_connection(("10.1.0.1", 80)) for _ in range(1)]
        print("ready", flush=True)
        time.sleep(60)
        """),
    )
    client = one.serve(
        2,
        *python("""
        import errno, socket, time
        def dial():
            sock = socket.socket()
            sock.setblocking(False)
            assert sock.connect_ex(("10.1.0.1", 80)) == errno.EINPROGRESS
            return sock
        for _ in range(20):
            dial().close()
        print("closed", flush=True)
        time.sleep(60)
        """),
    )
    assert client.poll() is None
    # The server's to itself; the kernel's queue may have taken one more.
    assert one.hosts[0].control.status().connections <= 2


def test_rings_are_refused(one):
    """io_uring_setup(2), which libuv and others call by syscall(3): as where there is none."""
    said = one.run(
        1,
        *python("""
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(425, 8, None) == -1
        print(ctypes.get_errno() == errno.ENOSYS, libc.syscall(39) == os.getpid())
        """),
    )
    assert said == "True True\n"


def test_a_full_disk_ends_no_router(programs, tmp_path):
    """What finds no room in the state file is refused, and says so."""
    (tmp_path / "h1").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", tmp_path / "h1"], check=True
    )
    try:
        with bench(tmp_path, programs, 1, 2) as made:
            full = made.hosts[0].directory / "full"
            with contextlib.suppress(OSError), full.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            code = python("""
                import socket
                plug = socket.create_server(("", 80), backlog=4000)
                kept = []
                try:
                    while len(kept) < 2500:
                        kept.append(socket.create_connection(("10.1.0.1", 80)))
                except OSError as error:
                    print(error.errno)
                """)
            assert int(made.run(1, *code)) == errno.ENOBUFS
            assert made.hosts[0].control.status().counters[Reason.FLOW_FULL] == 1
            full.unlink()
            assert made.hosts[0].router.poll() is None
    finally:
        subprocess.run(["umount", tmp_path / "h1"], check=True)
