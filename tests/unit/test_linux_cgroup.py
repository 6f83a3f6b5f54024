# SPDX-License-Identifier: Apache-2.0
"""Control groups: found by the mount table, asked and removed as the kernel allows."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimnet.exceptions import CapabilityMissing, InUse, InvalidValue
from slimnet.linux import cgroup, mounts


def device(path):
    number = os.stat(path).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Lets the machine's cgroup2 mounts be these: pairs of a directory, and of what of the
    hierarchy is seen there."""

    def write(*pairs):
        lines = ["22 28 0:21 / /proc rw - proc proc rw\n"]
        for path, root in pairs:
            path.mkdir(parents=True, exist_ok=True)
            point = str(path).replace(" ", "\\040")
            lines.append(f"30 28 {device(path)} {root} {point} rw shared:4 - cgroup2 none rw\n")
        file = tmp_path / "mountinfo"
        file.write_text("".join(lines))
        monkeypatch.setattr(mounts, "TABLE", str(file))

    return write


@pytest.fixture
def group():
    """A fresh cgroup of this machine's, removed with all that is below it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = cgroup.mount() / f"slt-unit-{os.getpid()}"
    made.mkdir()
    yield made
    cgroup.kill(made)
    assert cgroup.remove(made)


def sleeper(place):
    """A process in a cgroup."""
    join = f"open({str(place / 'cgroup.procs')!r}, 'w').write('0'); print(flush=True)"
    program = f"import time; {join}; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


# Where it is


@pytest.mark.parametrize("name", ["cgroup", "cgroup/unified", "elsewhere with spaces"])
def test_mount_is_looked_up(table, tmp_path, name):
    """Pure and hybrid machines (cgroups(7)), and whatever else an administrator does."""
    table((tmp_path / name, "/"))
    assert cgroup.mount() == tmp_path / name


def test_whole_hierarchy_goes_before_a_part(table, tmp_path):
    table((tmp_path / "part", "/docker/x"), (tmp_path / "whole", "/"))
    assert cgroup.mount() == tmp_path / "whole"
    table((tmp_path / "part", "/docker/x"))
    assert cgroup.mount() == tmp_path / "part"


def test_mount_that_something_covers_is_none(table, tmp_path):
    (tmp_path / "seen").mkdir()
    table((tmp_path / "seen", "/"))
    file = tmp_path / "mountinfo"
    covered = f"29 28 9999:1 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    file.write_text(covered + file.read_text())
    assert cgroup.mount() == tmp_path / "seen"
    file.write_text(covered)
    with pytest.raises(CapabilityMissing):
        cgroup.mount()


def test_machine_without(table):
    table()
    with pytest.raises(CapabilityMissing) as missing:
        cgroup.mount()
    assert str(missing.value).startswith("cgroup v2 is not mounted: mount -t cgroup2 ")
    assert isinstance(missing.value, OSError)


# What users name


@pytest.mark.parametrize("path", ["/tmp", "relative", "{top}", "{top}/a/../b", "{top}/nothing"])
def test_no_cgroup_of_a_users(table, tmp_path, path):
    top = tmp_path / "top"
    table((top, "/"))
    with pytest.raises(InvalidValue) as refused:
        cgroup.check(Path(path.format(top=top)), "spec.cgroup")
    assert str(refused.value).startswith("spec.cgroup: wanted a ")


def test_cgroup_of_a_users(table, tmp_path):
    table((tmp_path / "top", "/"))
    named = tmp_path / "top" / "web"
    named.mkdir()
    with pytest.raises(InvalidValue):
        cgroup.check(named, "spec.cgroup")
    (named / "cgroup.procs").touch()
    cgroup.check(named, "spec.cgroup")


# Of a process


@pytest.fixture
def proc(monkeypatch):
    """Lets /proc/<pid>/cgroup say this."""

    def write(text):
        read = Path.read_text
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda path, *rest, **more: (
                text if str(path) == "/proc/7/cgroup" else read(path, *rest, **more)
            ),
        )

    return write


@pytest.mark.parametrize(
    ("root", "line", "below"),
    [
        ("/", "0::/", ""),
        ("/", "0::/slimnet/h/web", "slimnet/h/web"),
        ("/", "0::/slimnet/h/web (deleted)", "slimnet/h/web"),
        # Outside of this process's cgroup namespace (cgroup_namespaces(7)).
        ("/", "0::/../slimnet/h/web", "../slimnet/h/web"),
        # A part is mounted, and paths are the whole hierarchy's.
        ("/docker/x", "0::/docker/x/slimnet/h/web", "slimnet/h/web"),
        ("/docker/x", "0::/docker/y/slimnet", "../y/slimnet"),
    ],
)
def test_of_process(table, proc, tmp_path, root, line, below):
    table((tmp_path / "top", root))
    proc(f"12:cpu,cpuacct:/elsewhere\n1:name=systemd:/init.scope\n{line}\n")
    assert cgroup.of_process(7) == tmp_path / "top" / below


def test_of_process_without_version_2(table, proc, tmp_path):
    table((tmp_path / "top", "/"))
    proc("12:cpu,cpuacct:/elsewhere\n")
    assert cgroup.of_process(7) is None


def test_of_process_that_ended():
    process = subprocess.Popen(["true"])
    process.wait()
    assert cgroup.of_process(process.pid) is None


# Its processes


def test_populated_reads_the_kernels_file(tmp_path):
    events = tmp_path / "cgroup.events"
    assert not cgroup.populated(tmp_path)
    events.write_text("populated 0\nfrozen 1\n")
    assert not cgroup.populated(tmp_path)
    events.write_text("populated 1\nfrozen 0\n")
    assert cgroup.populated(tmp_path)
    assert not cgroup.populated(tmp_path / "gone")
    with pytest.raises(NotADirectoryError):
        cgroup.populated(events)


def test_kill_says_who_does_not_end(tmp_path):
    (tmp_path / "cgroup.events").write_text("populated 1\n")
    with pytest.raises(InUse, match=f"cgroup {tmp_path}: processes do not end"):
        cgroup.kill(tmp_path, timeout=0.02)
    assert (tmp_path / "cgroup.kill").read_text() == "1"


def test_remove_of_what_is_gone(tmp_path):
    assert cgroup.remove(tmp_path / "gone")


def test_remove_says_what_is_in_the_way(tmp_path):
    (tmp_path / "top" / "file").mkdir(parents=True)
    (tmp_path / "top" / "held").touch()
    assert not cgroup.remove(tmp_path / "top")
    (tmp_path / "top" / "held").unlink()
    assert cgroup.remove(tmp_path / "top")
    assert not (tmp_path / "top").exists()
    (tmp_path / "no directory").touch()
    assert list(cgroup.descendants(tmp_path / "no directory")) == []


def test_life_of_a_cgroup(group):
    below = group / "a" / "b"
    below.mkdir(parents=True)
    process = sleeper(below)
    try:
        assert cgroup.populated(group)
        assert cgroup.of_process(process.pid) == below
        assert not cgroup.remove(group)
        assert below.is_dir()
        cgroup.kill(group)
        assert process.wait(5) == -signal.SIGKILL
        assert not cgroup.populated(group)
        assert list(cgroup.descendants(group)) == [below, below.parent, group]
        assert cgroup.remove(below.parent)
        assert not below.parent.exists()
        cgroup.kill(below)  # what is gone has no processes
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_by_its_id(group):
    below = group / "below"
    below.mkdir()
    number = cgroup.number(below)
    assert cgroup.path_of(cgroup.mount(), number) == below
    with cgroup.opened(below) as descriptor:
        assert os.fstat(descriptor).st_ino == number
    assert cgroup.is_cgroup(below / "not" / "made")
    assert not cgroup.is_cgroup(Path("/tmp/not/made"))
    assert cgroup.remove(below)
    deadline = time.monotonic() + 5
    while cgroup.path_of(cgroup.mount(), number) is not None:  # freed after a grace period
        assert time.monotonic() < deadline
    with pytest.raises(FileNotFoundError):
        cgroup.number(below)
