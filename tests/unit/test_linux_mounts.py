# SPDX-License-Identifier: Apache-2.0
"""The mount table: read as proc_pid_mountinfo(5) says, whatever paths are in it."""

import os

import pytest

from slimnet.linux import mounts


def device(path):
    number = os.stat(path).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Writes a mount table, which is then the machine's."""

    def write(*lines):
        file = tmp_path / "mountinfo"
        file.write_bytes(b"".join(os.fsencode(line) + b"\n" for line in lines))
        monkeypatch.setattr(mounts, "TABLE", str(file))

    return write


def test_fields(table):
    table(
        "36 35 98:0 /below /mnt rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue",
        "37 36 0:26 / /mnt/x ro - cgroup2 cgroup2 rw,nsdelegate",
    )
    first, second = mounts.table()
    assert (first.kind, first.point, first.root, first.device) == (
        *("ext3", "/mnt", "/below"),
        "98:0",
    )
    assert (second.kind, second.point, second.root) == ("cgroup2", "/mnt/x", "/")
    assert [each.point for each in mounts.table("cgroup2", "bpf")] == ["/mnt/x"]
    assert mounts.table("bpf") == []


@pytest.mark.parametrize(
    "path", ["/a b", "/tab\there", "/new\nline", "/back\\slash", "/hash#", "/\\040", "/caf\udce9"]
)
def test_paths_are_as_the_kernel_writes_them(table, path):
    """Space, tab, newline, backslash and # in octal (fs/seq_file.c, mangle_path())."""
    written = "".join(f"\\{ord(each):03o}" if each in " \t\n\\#" else each for each in path)
    table(f"36 35 0:26 {written} {written} rw - tmpfs none rw")
    (found,) = mounts.table()
    assert (found.point, found.root) == (path, path)


def test_what_is_mounted_over_is_out_of_sight(table, tmp_path):
    here = device(tmp_path)
    table(
        f"36 35 {here} / {tmp_path} rw - tmpfs none rw",
        f"37 35 9999:1 / {tmp_path} rw - tmpfs none rw",
        f"38 35 {here} / {tmp_path}/nowhere rw - tmpfs none rw",
    )
    assert len(mounts.table("tmpfs")) == 3
    assert [(each.point, each.device) for each in mounts.in_sight("tmpfs")] == [
        (str(tmp_path), here)
    ]


def test_this_machine_has_proc():
    assert "/proc" in [each.point for each in mounts.in_sight("proc")]
