# SPDX-License-Identifier: Apache-2.0
"""The kernel module, built on this machine against the kernel of a virtual one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from guest import KERNELS, ROOT, release

#: Where the guests find it: <release>/slimnet.ko.
BUILT = KERNELS.parent / "module"


def build(directory):
    """Its sources as they are now, in a copy; the built file.

    Args:
        directory: an unpacked package of a kernel, with its headers.
    """
    return _build(directory, ["kernel/module", "kernel/uapi"], "slimnet.ko")


def build_caller(directory):
    """The same of the tests' own module, that calls from within the kernel."""
    return _build(directory, ["tests/vm/caller"], "caller.ko")


def _build(directory, sources, file):
    (image,) = directory.glob("boot/vmlinuz-*")
    headers = directory / "usr/src" / f"linux-headers-{release(image)}"
    if not headers.exists():
        pytest.skip(f"needs {headers.name}: run testbed/setup")
    work = BUILT / release(image)
    copies = [work / Path(source).name for source in sources]
    for source, copy in zip(sources, copies, strict=True):
        shutil.copytree(
            ROOT / source,
            copy,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.o", "*.ko", "*.mod*", ".*.cmd", "Module.symvers"),
        )
    done = subprocess.run(
        ["make", "-C", headers, f"M={copies[0]}", "modules"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr, done.stdout + done.stderr
    shutil.copy(copies[0] / file, work / file)
    return work / file
