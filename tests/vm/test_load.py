# SPDX-License-Identifier: Apache-2.0
"""Debian's own kernel loads the data path: its verifier is older than this machine's.

Booted in QEMU by software, with an initramfs of a shell, bpftool and the object.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from slimnet_ebpf import requirements

#: Where testbed/setup unpacks Debian's kernel, which is not installed.
KERNELS = Path(__file__).parents[2] / ".build" / "kernel" / "boot"
BOOT_SECONDS = 240

INIT = """#!/bin/busybox sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sys /sys
$busybox mount -t bpf bpf /sys/fs/bpf
echo "kernel: $($busybox uname -r)"
/bin/bpftool prog loadall /object /sys/fs/bpf/slimnet >/log 2>&1
echo "status: $?"
$busybox tail -n 20 /log
echo "programs: $($busybox ls /sys/fs/bpf/slimnet | $busybox tr '\\n' ' ')"
$busybox poweroff -f
"""


def find(program):
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"needs {program}")
    return Path(found).resolve()


@pytest.fixture
def kernel():
    found = sorted(KERNELS.glob("vmlinuz-*"))
    if not found:
        pytest.skip(f"needs a kernel in {KERNELS}: run testbed/setup")
    return found[-1]


@pytest.fixture
def initramfs(tmp_path):
    """Everything that runs in there, as the kernel unpacks it."""
    root = tmp_path / "root"
    programs = {find("busybox"): "bin/busybox", find("bpftool"): "bin/bpftool"}
    libraries = subprocess.run(["ldd", *programs], capture_output=True, text=True).stdout
    files = {Path(name): name.lstrip("/") for name in re.findall(r"(/\S+) \(0x", libraries)}
    files |= programs | {requirements.OBJECT: "object"}
    for source, target in files.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / target)
    for directory in ("proc", "sys"):
        (root / directory).mkdir()
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        [find("cpio"), "-o", "-H", "newc", "--quiet"],
        input=names.encode(),
        capture_output=True,
        cwd=root,
        check=True,
    ).stdout
    target = tmp_path / "initramfs"
    target.write_bytes(archive)
    return target


@pytest.mark.slow
def test_debians_kernel_loads_the_object(kernel, initramfs):
    """Every program, with nothing relaxed."""
    done = subprocess.run(
        [find("qemu-system-x86_64"), "-m", "1024", "-nographic", "-no-reboot"]
        + ["-kernel", kernel, "-initrd", initramfs]
        + ["-append", "console=ttyS0 quiet panic=-1"],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=BOOT_SECONDS,
    )
    output = done.stdout.replace("\r", "")
    version = kernel.name.removeprefix("vmlinuz-")
    assert f"kernel: {version}\n" in output, output
    assert "status: 0\n" in output, output
    programs = re.search(r"programs: (.*)", output)[1].split()
    sources = (Path(requirements.OBJECT).parents[2] / "bpf" / "slimnet.bpf.c").read_text()
    assert sorted(programs) == sorted(re.findall(r"^int (slim_\w+)\(", sources, re.MULTILINE))
