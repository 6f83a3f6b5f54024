# SPDX-License-Identifier: Apache-2.0
"""The kernel module, built on this machine against the kernel of a virtual one."""

import os
import shutil
import subprocess

import pytest
from guest import KERNELS, ROOT, release

#: Where the guests find it: <release>/slimnet.ko.
BUILT = KERNELS.parent / "module"


def build(directory):
    """Its sources as they are now, in a copy; the built file.

    Args:
        directory: an unpacked package of a kernel, with its headers.
    """
    (image,) = directory.glob("boot/vmlinuz-*")
    headers = directory / "usr/src" / f"linux-headers-{release(image)}"
    if not headers.exists():
        pytest.skip(f"needs {headers.name}: run testbed/setup")
    work = BUILT / release(image)
    for name in ("module", "uapi"):
        shutil.copytree(
            ROOT / "kernel" / name,
            work / name,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.o", "*.ko", "*.mod*", ".*.cmd", "Module.symvers"),
        )
    done = subprocess.run(
        ["make", "-C", work / "module", f"KERNEL={headers}"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr, done.stdout + done.stderr
    shutil.copy(work / "module" / "slimnet.ko", work / "slimnet.ko")
    return work / "slimnet.ko"
