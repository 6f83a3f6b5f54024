# SPDX-License-Identifier: Apache-2.0
"""A kernel that is older than Debian 12's: the last one of Debian 11, unpacked and booted as those
of ``tests/vm`` are. It is fetched with the first run."""

import hashlib
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/vm"))

from guest import KERNELS, Guest, kernels  # noqa: E402

DIRECTORY = KERNELS.parent / "older" / "5.10"
#: Where Debian keeps it, and where it will be once its mirrors do not.
MIRRORS = ("http://deb.debian.org/debian", "http://archive.debian.org/debian")
PACKAGE = (
    "pool/main/l/linux-signed-amd64/linux-image-5.10.0-32-cloud-amd64_5.10.223-1_amd64.deb",
    "fb4a1229952d892138532c1d9f40a7fd0bd408e4dcf969c12e4524b6a89fdcb8",
)
SECONDS = 7200


def fetch():
    path, digest = PACKAGE
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(f"{mirror}/{path}", timeout=60) as answer:
                content = answer.read()
        except OSError:
            continue
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    pytest.fail(f"no mirror of Debian has {path} as it was")


@pytest.fixture(scope="module")
def kernel():
    if not DIRECTORY.is_dir():
        fresh = DIRECTORY.with_name("fresh")
        fresh.mkdir(parents=True, exist_ok=True)
        package = fresh / "package.deb"
        package.write_bytes(fetch())
        subprocess.run(["dpkg-deb", "-x", package, fresh], check=True)
        package.unlink()
        (modules,) = (fresh / "lib/modules").iterdir()
        subprocess.run(["depmod", "-b", fresh, modules.name], check=True)
        fresh.rename(DIRECTORY)
    (directory,) = kernels(DIRECTORY.parent)
    return directory


@pytest.fixture(scope="module")
def guest(request, kernel):
    deadline = time.monotonic() + SECONDS
    machine = Guest(kernel, request.module.COMMANDS, deadline=deadline)
    yield machine
    machine.close()
