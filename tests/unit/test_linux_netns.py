# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: made, named, entered by one thread, and left again."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from slimnet.linux import libc, mounts, netns


def here():
    return os.stat("/proc/thread-self/ns/net").st_ino


@pytest.fixture
def path():
    """Where a namespace can be made; removed afterwards."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    there = netns.DIRECTORY / f"slt-unit-{os.getpid()}"
    yield there
    netns.remove(there)


def test_import_costs_little():
    code = "import sys, slimnet.linux.netns; print('pyroute2' in sys.modules)"
    argv = [sys.executable, "-c", code]
    assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout == "False\n"


def test_own_is_the_callers_for_every_thread():
    mine, seen = netns.own(), []
    thread = threading.Thread(target=lambda: seen.extend((mine.stat().st_ino, netns.own())))
    thread.start()
    thread.join()
    assert seen[0] == here()
    assert seen[1] != mine


def test_what_is_no_namespace(tmp_path):
    assert not netns.exists(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert not netns.exists(tmp_path / "file")
    netns.remove(tmp_path / "nothing")
    netns.remove(tmp_path / "file")  # the mount point of one that a killed process left
    assert not (tmp_path / "file").exists()
    with pytest.raises(FileNotFoundError), netns.enter(tmp_path / "nothing"):
        pass


@pytest.mark.root
def test_what_is_no_namespace_is_not_entered(tmp_path):
    before = here()
    (tmp_path / "file").touch()
    refused = pytest.raises(OSError, match=r"setns .*/file: Invalid argument")
    with refused, netns.enter(tmp_path / "file"):
        pass
    assert here() == before


def test_life(path):
    before = here()
    netns.create(path)
    assert netns.exists(path)
    assert here() == before
    with netns.netlink(path) as route:
        (link,) = route.get_links()
    assert (link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_OPERSTATE")) == ("lo", "UNKNOWN")
    assert link["flags"] & 1  # IFF_UP
    netns.remove(path)
    assert not path.exists()


def test_name_that_is_taken_stays_the_others(path):
    netns.create(path)
    inode = path.stat().st_ino
    with pytest.raises(FileExistsError, match=f"network namespace {path}: File exists"):
        netns.create(path)
    assert (netns.exists(path), path.stat().st_ino) == (True, inode)


def test_nothing_is_left_of_one_that_the_kernel_refused(path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "mount: Operation not permitted")

    monkeypatch.setattr(libc, "mount", refuse)
    with pytest.raises(PermissionError, match=f"namespace {path}: mount: Operation not perm"):
        netns.create(path)
    assert not path.exists()


def test_one_thread_enters(path):
    netns.create(path)
    before, seen = here(), []

    def other():
        entered.wait()
        seen.append(here())

    entered = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    with netns.enter(path):
        assert here() == path.stat().st_ino != before
        entered.set()
        thread.join()
        child = subprocess.run(
            ["stat", "-L", "-c", "%i", "/proc/self/ns/net"], capture_output=True, check=True
        )
        assert int(child.stdout) == here()
    assert (seen, here()) == ([before], before)


def test_entered_by_a_descriptor_and_left_on_an_error(path):
    netns.create(path)
    before = here()
    with path.open() as file, contextlib.suppress(ZeroDivisionError), netns.enter(file.fileno()):
        assert here() == path.stat().st_ino
        1 / 0  # noqa: B018
    assert here() == before


@pytest.mark.root
def test_apart():
    before, inside = here(), []
    netns.apart(lambda: inside.extend((here(), sorted(os.listdir("/proc/self/task")))))
    assert inside[0] != before == here()
    assert len(inside[1]) > 1  # in a thread of its own

    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        netns.apart(fail)


def test_held(path):
    netns.create(path)
    inode = path.stat().st_ino
    with netns.enter(path):
        held = netns.Netns()
        with held.entered():
            assert here() == inode
    assert (held.inode, here() != inode) == (inode, True)
    netns.remove(path)
    with held.entered():  # the descriptor keeps it
        assert here() == inode
    assert held.cookie != netns.Netns().cookie
    held.close()
    held.close()
    assert not Path(f"/proc/self/fd/{held.fd}").exists()


@pytest.fixture
def own_run():
    """Runs a function where ``/run`` is of its own, and private, as in a container."""
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def run(action):
        def scene():
            libc.mount("", "/", "none", libc.MS_PRIVATE | libc.MS_REC)
            while mounted():
                libc.umount("/run/netns")
            libc.mount("tmpfs", "/run", "tmpfs")
            action()

        netns.apart(scene, libc.CLONE_NEWNS)

    return run


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def mounted():
    return sorted(each.point for each in mounts.table() if each.point.startswith("/run/netns"))


def test_a_namespace_is_removed_also_after_others_were_made_with_ip_netns(own_run):
    """``ip netns add`` makes of /run/netns a mount of its own, if it is none."""

    def scene():
        ours = netns.DIRECTORY / "ours"
        netns.create(ours)
        ip("netns", "add", "theirs")
        netns.create(netns.DIRECTORY / "later")
        assert mounted() == [
            "/run/netns", "/run/netns/later", "/run/netns/ours", "/run/netns/theirs",
        ]  # fmt: skip
        netns.remove(ours)
        netns.create(ours)
        netns.remove(ours)
        netns.remove(netns.DIRECTORY / "later")
        assert mounted() == ["/run/netns", "/run/netns/theirs"]
        ip("netns", "exec", "theirs", "true")
        ip("netns", "del", "theirs")
        assert os.listdir(netns.DIRECTORY) == []

    own_run(scene)


def test_a_namespace_made_before_its_directory_was_a_mount_is_removed(own_run):
    """As slimnet made them once, and others do: it is mounted twice then, and the mount
    below has no path. What others made stays, also what is mounted twice."""

    def scene():
        netns.DIRECTORY.mkdir()
        for name in ("ours", "kept"):
            file = netns.DIRECTORY / name
            file.touch()
            netns.apart(lambda file=file: libc.mount(str(netns.own()), str(file), "", libc.MS_BIND))
        ip("netns", "add", "theirs")
        ours, kept = netns.DIRECTORY / "ours", netns.DIRECTORY / "kept"
        assert mounted().count(str(ours)) == 2
        number = netns.number(kept)
        netns.remove(ours)
        assert (sorted(os.listdir(netns.DIRECTORY)), mounted().count(str(ours))) == (
            ["kept", "theirs"],
            0,
        )
        assert (netns.number(kept), mounted().count(str(kept))) == (number, 2)
        ip("netns", "exec", "theirs", "true")
        netns.create(ours)
        netns.remove(ours)

    own_run(scene)


def test_several_that_make_the_first_namespace_mount_its_directory_once(own_run):
    def scene():
        make = """
import sys
from pathlib import Path
from slimnet.linux import netns
netns.create(Path(sys.argv[1]))
"""
        several = [[sys.executable, "-c", make, f"/run/netns/n{number}"] for number in range(4)]
        several += [["ip", "netns", "add", f"i{number}"] for number in range(4)]
        makers = [subprocess.Popen(argv) for argv in several]
        assert [each.wait() for each in makers] == [0] * 8
        assert mounted().count("/run/netns") == 1

    own_run(scene)
