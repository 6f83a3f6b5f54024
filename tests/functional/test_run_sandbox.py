# SPDX-License-Identifier: Apache-2.0
"""What ``slimnet run`` promises of the process that it starts, with real processes.

No agent and no data path here: an endpoint is a cgroup, a network namespace
and a hosts file, and the sandbox needs no more.
"""

import contextlib
import errno
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import attrs
import pytest

from slimnet import sandbox
from slimnet.exceptions import CapabilityMissing, InvalidValue, NotFound
from slimnet.linux import cgroup as cgroups
from slimnet.linux import netns, process
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.place import HOSTS, Place
from slimnet.sandbox import capabilities, landlock, mounts, seccomp

pytestmark = pytest.mark.root

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


@pytest.fixture
def home(tmp_path):
    name = f"slt-run-{os.getpid()}-{time.monotonic_ns() % 10**6}"
    directory = cgroup_mount() / name
    directory.mkdir()
    namespace = netns.DIRECTORY / name
    netns.create(namespace)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.9.0.1 web\n")
    try:
        yield SimpleNamespace(
            endpoint=SimpleNamespace(name="web"),
            place=Place(directory, namespace, mounts={HOSTS: hosts}),
            cgroup=directory,
            netns=namespace,
            hosts=hosts,
        )
    finally:
        cgroups.kill(directory)
        cgroups.remove(directory)
        netns.remove(namespace)
        assert not directory.exists()


def output(home, *argv, **options):
    """What the command writes; it must succeed."""
    with sandbox.spawn(home, argv, stdout=subprocess.PIPE, **options) as process:
        text = process.stdout.read().decode()
    assert process.returncode == 0, text
    return text


def python(home, code, **options):
    """What a Python program in the endpoint prints, as JSON."""
    argv = (sys.executable, "-I", "-c", textwrap.dedent(code))
    return json.loads(output(home, *argv, **options))


def wait_for(what, seconds=10):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def members(home):
    return [int(line) for line in (home.cgroup / "cgroup.procs").read_text().split()]


def test_joins_the_cgroup_before_anything_else(home):
    """In a frozen cgroup the child gets no further than its joining."""
    (home.cgroup / "cgroup.freeze").write_text("1")
    started = threading.Thread(
        target=lambda: sandbox.spawn(home, ["true"], outlive=True).wait(), daemon=True
    )
    started.start()
    try:
        (child,) = wait_for(lambda: members(home))
        for kind in NAMESPACES:
            assert os.readlink(f"/proc/{child}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
        assert (
            "CapEff:\t" + f"{own_capabilities():016x}" in Path(f"/proc/{child}/status").read_text()
        )
    finally:
        (home.cgroup / "cgroup.freeze").write_text("0")
    started.join(10)
    assert not started.is_alive()
    assert members(home) == []


def own_capabilities():
    status = Path("/proc/self/status").read_text()
    return int(status.split("CapEff:")[1].split()[0], 16)


def test_every_process_of_the_command_is_in_the_cgroup(home):
    with sandbox.spawn(home, ["sh", "-c", "sleep 60 & sleep 60"], outlive=True) as process:

        def commands():
            return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in members(home)]

        wait_for(lambda: commands().count("sleep") == 2)
        assert "slimnet-init" in commands()
        process.kill()


def test_enters_the_network_namespace(home):
    there = os.stat(home.netns)
    inode = int(output(home, "stat", "-L", "-c", "%i", "/proc/self/ns/net"))
    assert inode == there.st_ino
    assert inode != os.stat("/proc/self/ns/net").st_ino


def test_has_its_own_namespaces(home):
    inside = output(home, "sh", "-c", "cd /proc/self/ns; readlink " + " ".join(NAMESPACES))
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES]
    assert not set(inside.split()) & set(outside)


def test_moves_nothing_of_the_caller(home):
    def caller():
        return (
            [os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES],
            Path("/proc/self/cgroup").read_text(),
            Path("/proc/self/mountinfo").read_text().count("\n") - elsewhere(),
            socket.gethostname(),
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
            os.getcwd(),
        )

    def elsewhere():  # what other tests on this machine mount meanwhile
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return sum(1 for line in lines if "/netns/" in line or "slt-" in line or "/tmp/" in line)

    before = caller()
    assert sandbox.run(home, ["true"]) == 0
    assert caller() == before


def test_process_one_is_an_init_and_sees_only_its_own(home):
    text = output(home, "sh", "-c", "cat /proc/1/comm; ls /proc | grep -c '^[0-9]*$'; echo $$")
    init, count, own = text.split()
    assert init == "slimnet-init"
    assert int(count) <= 5  # init, sh, ls, grep
    assert int(own) == 2


def test_zombies_are_reaped(home):
    """An orphan becomes a child of init, which takes it in."""
    script = """
        (sh -c 'sleep 0.05' & ) ; sleep 0.4
        grep -l 'State:.Z' /proc/[0-9]*/status | wc -l
    """
    assert output(home, "sh", "-c", script).split() == ["0"]


@pytest.fixture
def more_mounts(tmp_path):
    """cgroupfs and bpffs where nobody expects them."""
    points = [tmp_path / "cg two", tmp_path / "bpf"]
    for point, kind in zip(points, ("cgroup2", "bpf"), strict=True):
        point.mkdir()
        subprocess.run(["mount", "-t", kind, "none", point], check=True)
    yield points
    for point in points:
        subprocess.run(["umount", point], check=True)


def test_no_cgroupfs_and_no_bpffs_in_sight(home, more_mounts):
    text = output(home, "cat", "/proc/self/mountinfo")
    kinds = {line.partition(" - ")[2].split()[0] for line in text.splitlines()}
    assert kinds & mounts.FORBIDDEN <= {"nsfs"}  # those are in /run, which is covered
    assert "proc" in kinds
    code = "from slimnet.sandbox import mounts; print(mounts.in_sight(mounts.FORBIDDEN))"
    assert output(home, sys.executable, "-c", code) == "[]\n"
    for path in ("/sys/fs/cgroup", "/sys/fs/bpf", *more_mounts):
        if Path(path).exists():
            assert output(home, "ls", "-A", str(path)) == ""
    assert (more_mounts[0] / "cgroup.procs").exists()  # the caller's are as they were


def test_no_secret_in_sight(home, tmp_path):
    hidden = tmp_path / "store"
    hidden.mkdir()
    (hidden / "store.db").write_text("secret")
    single = tmp_path / "agent.sock"
    single.write_text("secret")
    seen = output(home, "sh", "-c", f"ls -A {hidden}; cat {single}", hidden=[hidden, single])
    assert seen == ""
    for path in sandbox.HIDDEN:
        assert output(home, "sh", "-c", f"ls -A {path} 2>/dev/null || true") == ""


def test_run_is_new_and_has_the_directories_that_programs_expect(home):
    listed = output(home, "sh", "-c", "find /run -type s -o -type p; find /run -type f").split()
    assert listed == []
    expected = {
        entry.name for entry in os.scandir("/run")
        if entry.is_dir(follow_symlinks=False) and entry.name != "slimnet"
    }  # fmt: skip
    there = set(output(home, "ls", "-A", "/run").split())
    assert there <= expected
    assert "lock" in there


@pytest.mark.parametrize(
    "attempt",
    [
        ": >> /proc/sys/kernel/core_pattern",
        ": >> /proc/sys/net/ipv4/ip_forward",
        ": >> /etc/hosts",
        "mkdir /sys/fs/slt",
    ],
)
def test_what_is_the_hosts_is_read_only(home, attempt):
    with sandbox.spawn(home, ["sh", "-c", attempt], stderr=subprocess.PIPE) as process:
        message = process.stderr.read().decode()
    assert process.returncode != 0
    assert "Read-only" in message


def test_devices_are_a_containers(home):
    listed = set(output(home, "ls", "-A", "/dev").split())
    assert listed == {
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    }  # fmt: skip
    assert (
        output(home, "sh", "-c", "head -c 4 /dev/zero | wc -c; echo x > /dev/null").strip() == "4"
    )


def test_names(home):
    text = output(home, "sh", "-c", "hostname; cat /etc/hostname; getent hosts web")
    assert text.split() == ["web", "web", "10.9.0.1", "web"]


def test_the_hosts_file_is_live(home):
    """The agent rewrites it in home; the bind mount shows it at once."""
    with sandbox.spawn(
        home,
        ["sh", "-c", "getent hosts late || echo none; read go; getent hosts late"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"none\n"
        descriptor = os.open(home.hosts, os.O_WRONLY)
        os.pwrite(descriptor, b"10.9.0.7 late\n", 0)
        os.ftruncate(descriptor, 14)
        os.close(descriptor)
        text, _ = process.communicate(b"go\n")
    assert text.split() == [b"10.9.0.7", b"late"]


def test_resolvers_without_loopback(home, tmp_path):
    """In a mount namespace of the test's own, with a resolv.conf to hand."""
    loopback = "nameserver 127.0.0.53\nnameserver ::1\n"
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"search example.org\n{loopback}nameserver 192.0.2.53\noptions edns0\n")
    assert resolv_inside(home, resolv) == (
        "search example.org\nnameserver 192.0.2.53\noptions edns0\n"
    )


def test_resolvers_that_are_all_on_loopback(home, tmp_path):
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 127.0.0.1\n")
    assert "127.0.0.1" not in resolv_inside(home, resolv)


def resolv_inside(home, resolv):
    code = f"""
        from pathlib import Path
        from types import SimpleNamespace
        from slimnet import sandbox
        from slimnet.place import Place
        place = Place({str(home.cgroup)!r}, {str(home.netns)!r},
            mounts={{"/etc/hosts": {str(home.hosts)!r}}})
        home = SimpleNamespace(endpoint=SimpleNamespace(name="web"), place=place)
        raise SystemExit(sandbox.run(home, ["cat", "/etc/resolv.conf"]))
    """
    return subprocess.run(
        [
            "unshare", "-m", "sh", "-c",
            f'mount --bind {resolv} "$(realpath /etc/resolv.conf)" && exec "$0" -c "$1"',
            sys.executable, textwrap.dedent(code),
        ],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


def test_capabilities(home):
    """A runtime's default set without CAP_NET_RAW; after an execve, as root."""
    text = output(home, "grep", "^Cap", "/proc/self/status")
    sets = {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines()}
    kept = capabilities.mask()
    assert kept == 0xA80425FB & ~(1 << 13)  # docker's, without CAP_NET_RAW
    assert sets == {"CapInh": 0, "CapAmb": 0, "CapPrm": kept, "CapEff": kept, "CapBnd": kept}


def test_init_has_no_more_than_the_command(home):
    text = output(home, "grep", "-E", "^(Cap(Prm|Eff|Bnd)|Seccomp:)", "/proc/1/status")
    assert {line.split()[1] for line in text.splitlines()} == {f"{capabilities.mask():016x}", "2"}


REFUSED = {
    "raw socket": ("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", errno.EPERM),
    "packet socket": ("socket.socket(17, socket.SOCK_RAW)", errno.EAFNOSUPPORT),
    "vsock": ("socket.socket(40, socket.SOCK_STREAM)", errno.EAFNOSUPPORT),
    "smc": ("socket.socket(43, socket.SOCK_STREAM)", errno.EAFNOSUPPORT),
    "alg": ("socket.socket(38, socket.SOCK_SEQPACKET)", errno.EAFNOSUPPORT),
    "unshare user": ("call(libc.unshare, 0x10000000)", errno.EPERM),
    "unshare net": ("call(libc.unshare, 0x40000000)", errno.EPERM),
    "setns": ("call(libc.setns, os.open('/proc/self/ns/net', 0), 0)", errno.EPERM),
    "mount": ("call(libc.mount, b'none', b'/mnt', b'tmpfs', 0, None)", errno.EPERM),
    "umount": ("call(libc.umount2, b'/proc', 2)", errno.EPERM),
    "open_tree": ("call(libc.syscall, 428, -100, b'/', 1)", errno.EPERM),
    "bpf": ("call(libc.syscall, NUMBERS['bpf'], 0, None, 0)", errno.EPERM),
    "keyctl": ("call(libc.syscall, NUMBERS['keyctl'], 0, -3, 0)", errno.EPERM),
    "open_by_handle_at": ("call(libc.syscall, NUMBERS['open_by_handle_at'], -100, None, 0)", errno.EPERM),  # noqa: E501
    "userfaultfd": ("call(libc.syscall, NUMBERS['userfaultfd'], 1)", errno.EPERM),
    "clone into a user namespace": ("call(libc.syscall, NUMBERS['clone'], 0x10000011, None)", errno.EPERM),  # noqa: E501
    "clone3": ("call(libc.syscall, 435, None, 0)", errno.ENOSYS),
    "block device": ("os.mknod('/tmp/slt-node', 0o60600, os.makedev(254, 0))", errno.EPERM),
    "character device": ("os.mknod('/tmp/slt-node', 0o20600, os.makedev(1, 1))", errno.EPERM),
    "type into the terminal": ("fcntl.ioctl(0, 0x5412, b'x')", errno.EPERM),
    "kernel module": ("call(libc.syscall, NUMBERS['finit_module'], 0, b'', 0)", errno.EPERM),
}  # fmt: skip


def test_what_leads_out_is_refused(home):
    """Every way at once, to be quick; each with its errno."""
    numbers = {
        name: pair[list(seccomp.MACHINES).index(os.uname().machine)]
        for name, pair in seccomp.NUMBERS.items()
    }
    code = f"""
        import ctypes, fcntl, json, os, socket
        NUMBERS = {numbers!r}
        libc = ctypes.CDLL(None, use_errno=True)
        def call(function, *arguments):
            if function(*arguments) < 0:
                raise OSError(ctypes.get_errno(), "")
        answers = {{}}
        for name, action in {[(name, action) for name, (action, _) in REFUSED.items()]!r}:
            try:
                eval(action)
                answers[name] = 0
            except OSError as error:
                answers[name] = error.errno
        print(json.dumps(answers))
    """
    assert python(home, code) == {name: number for name, (_, number) in REFUSED.items()}


@pytest.mark.parametrize("filtered", [True, False])
def test_the_original_destination_is_not_told(home, filtered):
    """Connection tracking's answer would be the underlay's address; a data path's hook comes
    when it is in the caller's memory."""
    ruleset = "table ip t { chain c { type filter hook input priority 0; ct state new accept; }; }"
    inside = ["nsenter", f"--net={home.netns}"]
    subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
    subprocess.run([*inside, "nft", ruleset], check=True)
    code = """
        import json, socket
        listener = socket.create_server(("127.0.0.1", 8080))
        opened = socket.create_connection(("127.0.0.1", 8080))
        child, _ = listener.accept()
        answers = []
        for level, option in ((0, 80), (41, 80), (1, 80), (0, 1)):
            try:
                answers.append(child.getsockopt(level, option, 16)[:4].hex())
            except OSError as error:
                answers.append(error.errno)
        print(json.dumps(answers))
    """
    told = [errno.ENOENT, errno.ENOENT] if filtered else ["02001f90", errno.EOPNOTSUPP]
    found = python(home, code, seccomp=filtered)
    assert found == [*told, errno.ENOPROTOOPT, "00000000"]


@pytest.mark.parametrize(
    ("family", "kind", "protocol"), [(17, 3, 0x300), (17, 2, 0x300), (2, 3, 1), (10, 3, 58)]
)
def test_no_raw_or_packet_socket_through_io_uring(home, built, family, kind, protocol):
    """A ring passes by seccomp; the capability is missing all the same. No hook of a
    data path ever sees a packet socket."""
    ring = [str(word) for word in built("ring")]
    words = [str(word) for word in ("socket", family, kind, protocol)]
    by_the_host = subprocess.run([*ring, *words], capture_output=True, text=True)
    assert by_the_host.stdout == "done\n", "the test proves nothing"
    assert output(home, *ring, *words) == f"errno {errno.EPERM}\n"
    assert output(home, *ring, "socket", "2", "1", "0") == "done\n"


def test_what_programs_need_is_there(home):
    """Threads, processes, every ordinary socket, FIFOs, shared memory, terminals."""
    code = """
        import json, os, socket, threading, multiprocessing.shared_memory as shm, tempfile
        done = []
        thread = threading.Thread(target=lambda: done.append("thread"))
        thread.start(); thread.join()
        if (pid := os.fork()) == 0:
            os._exit(0)
        done.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            socket.socket(family, socket.SOCK_STREAM).close()
            socket.socket(family, socket.SOCK_DGRAM).close()
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
        os.mkfifo(tempfile.mkdtemp() + "/fifo")
        block = shm.SharedMemory(create=True, size=4096); block.close(); block.unlink()
        a, b = os.openpty()
        done.append(os.ttyname(b).startswith("/dev/pts/"))
        print(json.dumps(done))
    """
    assert python(home, code) == ["thread", 0, True]


def test_another_abi_is_refused(home, tmp_path):
    """i386 system calls have other numbers; the filter does not let them through."""
    if os.uname().machine != "x86_64":
        pytest.skip("i386 system calls exist on x86_64 only")
    source = tmp_path / "abi.c"
    source.write_text(
        'int main(void) { long r; __asm__ volatile("int $0x80" : "=a"(r)'
        ' : "a"(20) : "memory", "r8", "r9", "r10", "r11"); return r == -38 ? 0 : 1; }'
    )
    program = tmp_path / "abi"
    subprocess.run(["gcc", "-O1", "-o", program, source], check=True)
    assert sandbox.run(home, [str(program)]) == 0


def test_seccomp_may_be_left_out(home):
    assert output(home, "grep", "^Seccomp:", "/proc/self/status", seccomp=False).split()[1] == "0"


@pytest.mark.parametrize("asked", [False, True])
def test_no_new_privileges_is_a_choice(home, asked):
    text = output(home, "grep", "^NoNewPrivs:", "/proc/self/status", no_new_privileges=asked)
    assert text.split()[1] == str(int(asked))


def test_abstract_sockets_of_the_host_are_out_of_reach(home):
    """In the same network namespace, where only Landlock stands between."""
    if not landlock.scopes():
        pytest.skip("no Landlock scopes (Linux 6.12)")
    place = attrs.evolve(home.place, netns="/proc/self/ns/net")
    here = SimpleNamespace(endpoint=home.endpoint, place=place)
    name = f"\0slt-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(name)  # from outside it is there
        code = f"""
            import json, socket
            own = socket.socket(socket.AF_UNIX); own.bind({name + "-own"!r}); own.listen()
            socket.socket(socket.AF_UNIX).connect({name + "-own"!r})
            try:
                socket.socket(socket.AF_UNIX).connect({name!r})
                print(json.dumps(0))
            except OSError as error:
                print(json.dumps(error.errno))
        """
        assert python(here, code) == errno.EPERM


def test_no_descriptor_is_inherited(home, tmp_path):
    descriptors = [os.open(tmp_path, os.O_RDONLY), socket.socket().detach()]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    try:
        listed = output(home, "ls", "/proc/self/fd").split()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert listed == ["0", "1", "2", "3"]  # 3 is ls's own


@pytest.mark.parametrize("kind", ["socket", "directory"])
def test_standard_input_is_no_way_out(home, kind, tmp_path):
    """A socket or a directory there becomes /dev/null."""
    ours, theirs = socket.socketpair()
    given = theirs if kind == "socket" else os.open(tmp_path, os.O_RDONLY)
    with ours, theirs:
        assert output(home, "readlink", "/proc/self/fd/0", stdin=given).strip() == "/dev/null"
    if kind == "directory":
        os.close(given)


def test_standard_output_that_is_a_socket_is_replaced(home):
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = sandbox.spawn(home, ["echo", "leak"], stdout=theirs)
        assert process.wait() == 0
        assert ours.recv(100) == b""


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status(home, status):
    assert sandbox.run(home, ["sh", "-c", f"exit {status}"]) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_death_by_signal(home, number):
    assert sandbox.run(home, ["sh", "-c", f"kill -{number.value} $$"]) == 128 + number


@pytest.mark.parametrize(
    "number",
    [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGWINCH,
     signal.SIGTSTP, signal.SIGCONT, signal.SIGRTMIN + 3],
)  # fmt: skip
def test_signals_reach_the_command(home, number):
    code = f"""
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [{int(number)}])
        print("ready", flush=True)
        print(signal.sigtimedwait([{int(number)}], 10).si_signo, flush=True)
    """
    argv = [sys.executable, "-I", "-c", textwrap.dedent(code)]
    with sandbox.spawn(home, argv, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"%d\n" % number
    assert process.returncode == 0


def test_signals_of_the_caller_of_run_reach_the_command(home):
    """run() in the main thread of a process of its own, which gets SIGTERM."""
    with caller(
        home, ["sh", "-c", "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done"]
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 42


def caller(home, argv, *, beside=False, **options):
    code = f"""
        from types import SimpleNamespace
        from slimnet import sandbox
        from slimnet.place import Place
        place = Place({str(home.cgroup)!r}, {str(home.netns)!r},
            mounts={{"/etc/hosts": {str(home.hosts)!r}}})
        home = SimpleNamespace(endpoint=SimpleNamespace(name="web"), place=place)
        raise SystemExit(sandbox.run(home, {argv!r}, beside={beside}))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options},
    )


def test_no_signal_is_lost_before_the_command_runs(home):
    """One that comes right after the start is delivered once the command is there."""
    for _ in range(5):
        with caller(home, ["sleep", "30"]) as process:
            wait_for(lambda: members(home))
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 128 + signal.SIGTERM


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_the_command_ends_with_its_caller(home, end):
    with caller(home, ["sh", "-c", "echo ready; sleep 60"]) as process:
        assert process.stdout.readline() == b"ready\n"
        assert members(home)
        process.kill()
    wait_for(lambda: not members(home))


def test_what_the_command_left_running_ends_with_it(home):
    assert sandbox.run(home, ["sh", "-c", "setsid sleep 60 & setsid sleep 60 & exit 5"]) == 5
    wait_for(lambda: not members(home))


def test_killing_the_process_kills_all(home):
    process = sandbox.spawn(home, ["sh", "-c", "trap '' TERM INT; setsid sleep 60 & wait"])
    process.kill()
    process.wait()
    wait_for(lambda: not members(home))


def test_killing_the_cgroup_is_an_end(home):
    process = sandbox.spawn(home, ["sleep", "60"])
    (home.cgroup / "cgroup.kill").write_text("1")
    assert process.wait(10) == -signal.SIGKILL


def layers(home):
    """The processes above the command: who stays outside, and the init."""
    init = wait_for(lambda: [pid for pid in members(home) if name(pid) == "slimnet-init"])[0]
    return {"outside": int(stat_of(init)[1]), "init": init}


def name(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""


def stat_of(pid):
    """State, parent, ... (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@pytest.mark.parametrize("layer", ["outside", "init"])
@pytest.mark.parametrize("end", ["its own", "SIGTERM"])
def test_stopping_what_is_between_hangs_nobody(home, tmp_path, layer, end):
    """SIGSTOP to one of ours, by the host's root: nobody else would continue it, so that
    neither the command's end nor a signal would come through."""
    flag = tmp_path / "end"
    code = f"trap 'exit 42' TERM; echo ready; until [ -e {flag} ]; do sleep 0.02; done; exit 7"
    with caller(home, ["sh", "-c", code]) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            os.kill(layers(home)[layer], signal.SIGSTOP)
            time.sleep(0.1)
            if end == "SIGTERM":
                process.send_signal(signal.SIGTERM)
                assert process.wait(5) == 42
            else:
                flag.touch()
                assert process.wait(5) == 7
        finally:
            process.kill()
    wait_for(lambda: not members(home))


def test_job_control(home):
    """SIGTSTP stops the command and its caller, as a shell expects of a job; SIGCONT
    continues both."""
    with caller(home, ["sh", "-c", "echo ready; exec sleep 60"], process_group=0) as process:
        assert process.stdout.readline() == b"ready\n"
        command = wait_for(lambda: [pid for pid in members(home) if name(pid) == "sleep"])[0]
        process.send_signal(signal.SIGTSTP)
        wait_for(lambda: stat_of(command)[0] == "T")
        wait_for(lambda: stat_of(process.pid)[0] == "T")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: stat_of(command)[0] == "S")
        wait_for(lambda: stat_of(process.pid)[0] == "S")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM


def test_no_such_command(home):
    with pytest.raises(
        sandbox.CommandNotFound, match="command not found: no-such-program"
    ) as caught:
        sandbox.run(home, ["no-such-program"])
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert members(home) == []


def test_not_executable(home):
    with pytest.raises(sandbox.NotExecutable, match="/etc/passwd"):
        sandbox.run(home, ["/etc/passwd"])


def test_no_command(home):
    with pytest.raises(InvalidValue, match="argv"):
        sandbox.run(home, [])


def test_no_such_directory(home):
    with pytest.raises(InvalidValue, match="directory"):
        sandbox.run(home, ["true"], directory="/no/such")


def test_no_such_user(home):
    with pytest.raises(InvalidValue, match="user"):
        sandbox.run(home, ["true"], user="no-such-user")


def test_a_cgroup_that_is_gone_is_an_error(home):
    place = attrs.evolve(home.place, cgroup=home.cgroup / "gone")
    gone = SimpleNamespace(endpoint=home.endpoint, place=place)
    with pytest.raises(sandbox.CapabilityMissing, match="cannot run true as an endpoint"):
        sandbox.run(gone, ["true"])


def test_user(home):
    assert output(home, "id", "-un", user="nobody").strip() == "nobody"
    text = output(home, "grep", "^Cap[PE]", "/proc/self/status", user="nobody")
    assert {line.split()[1] for line in text.splitlines()} == {"0" * 16}


def test_directory_and_environment(home, monkeypatch):
    monkeypatch.setenv("SLIMNET_AGENT", "/somewhere")
    monkeypatch.setenv("HOSTNAME", "the-host")
    text = output(home, "sh", "-c", "pwd; echo $SLIMNET_AGENT $HOSTNAME", directory="/usr")
    assert text.split() == ["/usr", "web"]
    assert output(home, "/usr/bin/env", environment={"ONLY": "this"}).split() == ["ONLY=this"]


def test_from_a_thread(home):
    """run() elsewhere than in the main thread: no signals, but all the rest."""
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(sandbox.run(home, ["sh", "-c", "kill -9 $$"]))
    )
    thread.start()
    thread.join()
    assert answers == [137]


def test_many_at_once(home):
    processes = [sandbox.spawn(home, ["sh", "-c", f"exit {number}"]) for number in range(8)]
    assert [process.wait() for process in processes] == list(range(8))


# A terminal


def on_terminal(home, argv, talk, *, beside=False):
    """Run a caller of run() as the leader of a session on a new terminal; give
    ``talk`` the terminal, and return the caller's status and all output."""
    code = f"""
        import os, sys
        from types import SimpleNamespace
        from slimnet import sandbox
        from slimnet.place import Place
        place = Place({str(home.cgroup)!r}, {str(home.netns)!r},
            mounts={{"/etc/hosts": {str(home.hosts)!r}}})
        home = SimpleNamespace(endpoint=SimpleNamespace(name="web"), place=place)
        status = sandbox.run(home, {argv!r}, beside={beside})
        print("back", os.tcgetpgrp(0) == os.getpgrp(), flush=True)
        raise SystemExit(status)
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(code)])
    seen = b""

    def read_until(text, seconds=10):
        nonlocal seen
        deadline = time.monotonic() + seconds
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 4096)
                except OSError:  # EIO: everybody has closed it
                    assert text in seen, seen
        return seen

    try:
        talk(terminal, read_until)
        read_until(b"back")
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 4096):
                seen += chunk
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()
    finally:
        os.close(terminal)


GREETER = ["sh", "-c", "printf 'who? '; read x; echo hello $x; tty"]
SHELL = ["env", "PS1=$ ", "bash", "--norc", "--noprofile", "-i"]


def greet(terminal, read_until):
    """Talk to GREETER."""
    read_until(b"who? ")
    os.write(terminal, b"me\n")
    read_until(b"hello me")


def suspend(terminal, read_until):
    """^Z, which nobody could undo, for a command that then reads a line."""
    read_until(b"ready")
    os.write(terminal, b"\x1a")
    time.sleep(0.2)
    os.write(terminal, b"go\n")
    read_until(b"went on")


def control_jobs(terminal, read_until):
    """Stop and end a job of SHELL's."""
    read_until(b"$ ")
    os.write(terminal, b"sleep 60\n")
    time.sleep(0.5)
    os.write(terminal, b"\x1a")
    read_until(b"Stopped")
    os.write(terminal, b"kill %1; wait; jobs; exit 9\n")


def test_the_terminal_is_the_commands(home):
    """It reads and writes there; a process in the background would be stopped."""
    status, seen = on_terminal(home, GREETER, greet)
    assert status == 0
    assert "back True" in seen
    assert "/dev/console" in seen  # runtimes put the caller's terminal there


def test_interrupt_ends_the_command_and_not_its_caller(home):
    def talk(terminal, read_until):
        read_until(b"ready")
        os.write(terminal, b"\x03")

    status, seen = on_terminal(home, ["sh", "-c", "echo ready; exec sleep 60"], talk)
    assert status == 128 + signal.SIGINT
    assert "back True" in seen


def test_suspend_hangs_nobody(home):
    """^Z on a command that is no shell: nothing could continue it, so it goes on."""
    status, _ = on_terminal(home, ["sh", "-c", "echo ready; read x; echo went on"], suspend)
    assert status == 0


def test_a_shell_has_job_control(home):
    status, seen = on_terminal(home, SHELL, control_jobs)
    assert status == 9
    assert "no job control" not in seen
    assert "back True" in seen


def test_nothing_types_into_the_terminal(home):
    """TIOCSTI would put words into the mouth of the shell outside."""
    code = """
        import fcntl
        try:
            fcntl.ioctl(0, 0x5412, b"x")
        except OSError as error:
            print("errno", error.errno)
    """
    argv = [sys.executable, "-I", "-c", textwrap.dedent(code)]
    status, seen = on_terminal(home, argv, lambda *_: None)
    assert status == 0
    assert f"errno {errno.EPERM}" in seen


# Beside a command that runs


@contextlib.contextmanager
def first(home, argv=("sleep", "60"), **options):
    """The command beside which others run."""
    process = sandbox.spawn(home, argv, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_beside_is_in_the_same_namespaces(home):
    """All but the caller's own; so it sees the first command's processes and files."""
    script = "echo here > /run/mark; echo here > /dev/shm/mark; exec sleep 60"
    with first(home, ["sh", "-c", script]):
        (command,) = wait_for(lambda: [pid for pid in members(home) if name(pid) == "sleep"])
        kinds = " ".join(NAMESPACES)
        inside = output(home, "sh", "-c", f"cd /proc/self/ns; readlink {kinds}", beside=True)
        assert inside.split() == [os.readlink(f"/proc/{command}/ns/{kind}") for kind in NAMESPACES]
        seen = output(home, "sh", "-c", "hostname; cat /run/mark /dev/shm/mark", beside=True)
        assert seen.split() == ["web", "here", "here"]
        names = output(home, "sh", "-c", "cat /proc/[0-9]*/comm", beside=True).split()
        assert {"slimnet-init", "sleep", "slimnet-exec", "sh"} <= set(names)
        assert "10.9.0.1" in output(home, "cat", "/etc/hosts", beside=True)


def test_beside_is_in_the_cgroup(home):
    with (
        first(home),
        sandbox.spawn(home, ["sh", "-c", "sleep 61 & sleep 61"], beside=True, outlive=True) as more,
    ):
        wait_for(lambda: [name(pid) for pid in members(home)].count("sleep") == 3)
        assert {"slimnet-init", "slimnet-exec"} <= {name(pid) for pid in members(home)}
        more.kill()


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("asked", [True, False])
def test_beside_is_confined_as_the_first_one(home, filtered, asked):
    """Whatever its caller would have it be."""
    with first(home, seccomp=filtered, no_new_privileges=asked):
        text = output(home, "cat", "/proc/self/status", beside=True, seccomp=not filtered)
    status = {key: value.strip() for key, _, value in (x.partition(":") for x in text.split("\n"))}
    kept = f"{capabilities.mask() & own_capabilities():016x}"
    assert [status[f"Cap{each}"] for each in ("Prm", "Eff", "Bnd")] == [kept] * 3
    assert [status[f"Cap{each}"] for each in ("Inh", "Amb")] == ["0" * 16] * 2
    assert (status["Seccomp"] == "2") is filtered
    assert (status["NoNewPrivs"] == "1") is asked


def lasting(table):
    """A mount table without network namespaces, which come and go on the machine."""
    return [line for line in table.splitlines() if " - nsfs " not in line]


def test_beside_what_leads_out_is_out_of_sight(home):
    """The same mounts, and no descriptor but three."""
    with first(home, ["sh", "-c", "cat /proc/self/mountinfo > /dev/shm/seen; exec sleep 60"]):
        wait_for(lambda: "sleep" in [name(pid) for pid in members(home)])
        seen = output(home, "sh", "-c", "cat /proc/self/mountinfo", beside=True)
        assert lasting(seen) == lasting(output(home, "cat", "/dev/shm/seen", beside=True))
        assert output(home, "ls", "/proc/self/fd", beside=True).split() == ["0", "1", "2", "3"]


def test_beside_options(home, tmp_path):
    with first(home):
        assert output(home, "id", "-un", beside=True, user="nobody").strip() == "nobody"
        assert output(home, "pwd", beside=True, directory="/usr").strip() == "/usr"
        assert output(home, "pwd", beside=True).strip() == os.getcwd()
        assert output(home, "/usr/bin/env", beside=True, environment={"A": "b"}) == "A=b\n"
        with sandbox.spawn(
            home, ["cat"], beside=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as cat:
            assert cat.communicate(b"through pipes")[0] == b"through pipes"
        with pytest.raises(sandbox.CommandNotFound, match="no-such-program"):
            sandbox.run(home, ["no-such-program"], beside=True)
        with pytest.raises(sandbox.NotExecutable):
            sandbox.run(home, ["/etc/passwd"], beside=True)
        with pytest.raises(InvalidValue, match="directory"):
            sandbox.run(home, ["true"], beside=True, directory=tmp_path / "none")


@pytest.mark.parametrize("status", [0, 7, 255])
def test_beside_exit_status(home, status):
    """And what it starts and leaves goes on, with the first command as its init."""
    with first(home):
        argv = ["sh", "-c", f"setsid sleep 62 & exit {status}"]
        assert sandbox.run(home, argv, beside=True) == status
        # Its shell has ended; what that left may still be on its way to being `sleep`.
        wait_for(lambda: [name(pid) for pid in members(home)].count("sleep") == 2)
        left = [pid for pid in members(home) if "62" in command_line(pid)]
        assert len(left) == 1
        init = layers(home)["init"]
        wait_for(lambda: int(stat_of(left[0])[1]) == init)
        os.kill(left[0], signal.SIGKILL)
        wait_for(lambda: left[0] not in members(home))  # and is reaped
        assert sandbox.run(home, ["sh", "-c", "kill -9 $$"], beside=True) == 137


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_beside_signals_reach_the_command(home):
    script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done"
    with first(home), caller(home, ["sh", "-c", script], beside=True) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 42


def test_beside_job_control(home):
    argv = ["sh", "-c", "echo ready; exec sleep 63"]
    with first(home), caller(home, argv, beside=True, process_group=0) as process:
        assert process.stdout.readline() == b"ready\n"
        (command,) = wait_for(
            lambda: [pid for pid in members(home) if command_line(pid)[1:2] == ["63"]]
        )
        process.send_signal(signal.SIGTSTP)
        wait_for(lambda: stat_of(command)[0] == "T")
        wait_for(lambda: stat_of(process.pid)[0] == "T")
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: stat_of(command)[0] == "S")
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM


@pytest.mark.parametrize("user", [None, "nobody"])
def test_beside_ends_with_its_caller_and_the_first_stays(home, user):
    with first(home) as command:
        more = sandbox.spawn(home, ["sleep", "64"], beside=True, user=user)
        assert len([pid for pid in members(home) if name(pid) == "sleep"]) == 2
        more.kill()
        more.wait()
        wait_for(lambda: [name(pid) for pid in members(home)].count("sleep") == 1)
        assert command.poll() is None


def test_beside_ends_with_the_first(home):
    with first(home) as command:
        more = sandbox.spawn(home, ["sh", "-c", "trap '' TERM INT; sleep 65"], beside=True)
        command.send_signal(signal.SIGTERM)
        assert command.wait(5) == 128 + signal.SIGTERM
        assert more.wait(5) == 128 + signal.SIGKILL
    assert members(home) == []


def test_beside_ends_the_first_from_inside(home):
    """`kill 1`: its init passes the signal on."""
    script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.05; done"
    with first(home, ["sh", "-c", script], stdout=subprocess.PIPE) as command:
        assert command.stdout.readline() == b"ready\n"
        sandbox.run(home, ["sh", "-c", "kill 1"], beside=True)
        assert command.wait(5) == 42


def test_beside_nothing(home):
    """No sandbox runs there: never, not with other processes in the cgroup, not any more."""
    said = "endpoint web: no command of `slimnet run` runs in it"
    with pytest.raises(NotFound, match=said):
        sandbox.run(home, ["true"], beside=True)
    with subprocess.Popen(["sleep", "60"]) as other:
        (home.cgroup / "cgroup.procs").write_text(str(other.pid))
        with pytest.raises(NotFound, match=said):
            sandbox.run(home, ["true"], beside=True)
        other.kill()
    with first(home):
        assert sandbox.run(home, ["true"], beside=True) == 0
    wait_for(lambda: not members(home))
    with pytest.raises(NotFound, match=said):
        sandbox.run(home, ["true"], beside=True)


def test_beside_the_oldest(home):
    """Of several sandboxes in one cgroup."""
    with first(home, ["sh", "-c", "echo old > /run/mark; exec sleep 60"]) as old:
        wait_for(lambda: "sleep" in [name(pid) for pid in members(home)])
        time.sleep(0.05)  # a tick is 10 ms
        with first(home, ["sh", "-c", "echo new > /run/mark; exec sleep 60"]):
            wait_for(lambda: [name(pid) for pid in members(home)].count("sleep") == 2)
            assert output(home, "cat", "/run/mark", beside=True) == "old\n"
            old.kill()
            old.wait()
            wait_for(lambda: [name(pid) for pid in members(home)].count("sleep") == 1)
            assert output(home, "cat", "/run/mark", beside=True) == "new\n"


def test_beside_many_at_once(home):
    with first(home):
        several = [
            sandbox.spawn(home, ["sh", "-c", f"exit {number}"], beside=True) for number in range(6)
        ]
        assert [process.wait() for process in several] == list(range(6))


def test_beside_the_terminal_is_the_commands(home):
    """It is /dev/console for this one alone."""
    with first(home):
        for _ in range(2):
            status, seen = on_terminal(home, GREETER, greet, beside=True)
            assert status == 0
            assert "back True" in seen
            assert "/dev/console" in seen
        script = "test ! -c /dev/console"
        assert sandbox.run(home, ["sh", "-c", script], beside=True) == 0


def test_beside_interrupt_and_suspend(home):
    """As of the first command: ^C ends it and not its caller, ^Z hangs nobody, and a shell
    has job control."""

    def talk(terminal, read_until):
        suspend(terminal, read_until)
        os.write(terminal, b"\x03")

    with first(home) as command:
        argv = ["sh", "-c", "echo ready; read x; echo went on; exec sleep 60"]
        status, seen = on_terminal(home, argv, talk, beside=True)
        assert status == 128 + signal.SIGINT
        assert "back True" in seen
        status, seen = on_terminal(home, SHELL, control_jobs, beside=True)
        assert status == 9
        assert "no job control" not in seen
        assert command.poll() is None


def test_what_a_place_has_below_run_is_there(home):
    """And nothing else of what was there; its directory may not be written to."""
    directory = Path(f"/run/slimnet/{home.cgroup.name}")
    (directory / "socket").mkdir(parents=True)
    (directory / "secret").touch()
    there = socket.socket(socket.AF_UNIX)
    try:
        there.bind(str(directory / "socket" / "s"))
        there.listen()
        home.place = attrs.evolve(
            home.place,
            mounts={**home.place.mounts, str(directory / "socket"): directory / "socket"},
        )
        code = f"""
            import json, os, socket
            found = [os.listdir({str(directory)!r}), os.listdir({str(directory / "socket")!r})]
            with socket.socket(socket.AF_UNIX) as one:
                one.connect({str(directory / "socket" / "s")!r})
            try:
                open({str(directory / "socket" / "new")!r}, "w")
            except OSError as error:
                found.append(error.strerror)
            print(json.dumps(found))
        """
        assert python(home, code) == [["socket"], ["s"], "Read-only file system"]
    finally:
        there.close()
        subprocess.run(["rm", "-r", directory], check=True)


def preloading(place, tmp_path):
    """A place that is known by a library, and what its constructor prints."""
    source, library = tmp_path / "said.c", tmp_path / "said.so"
    source.write_text(
        "#include <unistd.h>\n__attribute__((constructor)) static void said(void)\n"
        '{ if (write(1, "preloaded ", 10) < 0) _exit(1); }\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    return attrs.evolve(place, environment={"LD_PRELOAD": str(library), "SLIMNET_SOCKET": "/s"})


def test_a_library_of_the_place_is_preloaded(home, tmp_path):
    home.place = preloading(home.place, tmp_path)
    assert output(home, "echo", "hello").endswith("preloaded hello\n")


def test_no_command_starts_without_a_library_that_it_may_not_read(home, tmp_path):
    home.place = preloading(home.place, tmp_path)
    os.chmod(tmp_path / "said.so", 0o600)
    with pytest.raises(CapabilityMissing) as raised:
        sandbox.spawn(home, ["echo", "hello"], user="nobody")
    assert "cannot run echo as an endpoint" in str(raised.value)
    assert "said.so: Permission denied" in str(raised.value)


ORDINARY = 64321


@pytest.fixture
def ordinary(tmp_path):
    """Runs a Python program as an ordinary user, with a place that is known by its library."""
    place = preloading(Place(), tmp_path)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and directory != Path("/"):
            os.chmod(directory, directory.stat().st_mode | 0o055)

    def run(code, **options):
        program = textwrap.dedent(
            f"""
            from types import SimpleNamespace
            from slimnet import sandbox
            from slimnet.exceptions import SlimnetError
            from slimnet.place import Place
            home = SimpleNamespace(
                endpoint=SimpleNamespace(name="web"),
                place=Place(environment={dict(place.environment)!r}),
            )
            """
        ) + textwrap.dedent(code)
        # One capability, to read: Python itself may be in a home directory.
        argv = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups"]
        argv += [f"--{each}-caps=-all,+dac_read_search" for each in ("inh", "ambient")]
        return subprocess.run(
            [*argv, sys.executable, "-c", program], capture_output=True, text=True, **options
        )

    return run


def test_an_ordinary_user_gives_a_command_the_environment(ordinary):
    """Its exit status comes back, and so does the command that is not there."""
    done = ordinary(
        """
        argv = ["sh", "-c", "echo $SLIMNET_SOCKET $(id -u) $LEFT$SLIMNET_AGENT; exit 7"]
        print(sandbox.run(home, argv))
        """,
        env={**os.environ, "LEFT": "left", "SLIMNET_AGENT": "out of sight"},
    )
    assert done.stdout.replace("preloaded ", "") == f"/s {ORDINARY} left\n7\n", done.stderr
    assert "preloaded" in done.stdout
    done = ordinary("sandbox.run(home, ['no-such-command'])")
    assert "CommandNotFound: command not found: no-such-command" in done.stderr


def test_signals_reach_an_ordinary_users_command(ordinary):
    done = ordinary(
        """
        import os, signal, threading
        def later():
            import time
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=later).start()
        print(sandbox.run(home, ["sleep", "60"]))
        """,
        timeout=20,
    )
    assert done.stdout.replace("preloaded ", "") == "143\n", done.stderr


def test_an_ordinary_users_command_ends_with_the_caller(ordinary):
    done = ordinary(
        """
        import subprocess
        process = sandbox.spawn(home, ["sleep", "60"], stdout=subprocess.DEVNULL)
        print(process.pid)
        """
    )
    wait_for(lambda: process.started(int(done.stdout)) == 0)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sandbox.spawn(home, ['true'], user='root')", "running as user root needs root: use sudo"),
        (
            "home.place = Place(cgroup='/sys/fs/cgroup/x'); sandbox.spawn(home, ['true'])",
            "running as an endpoint needs root: use sudo",
        ),
        (
            "sandbox.spawn(home, ['true'], directory='/nowhere')",
            "directory: wanted one that can be entered, got '/nowhere'",
        ),
    ],
)
def test_what_an_ordinary_user_cannot_have_is_refused(ordinary, code, said):
    assert said in ordinary(code).stderr
