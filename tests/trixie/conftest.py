# SPDX-License-Identifier: Apache-2.0
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))
sys.path.insert(0, str(Path(__file__).parent))

from debian13 import DEBIAN, MIRROR, PACKAGES, PATH


@pytest.fixture(scope="session")
def debian():
    if shutil.which("debootstrap", path=PATH) is None:
        pytest.skip("needs debootstrap: run testbed/setup")
    complete = DEBIAN / "complete"
    if not complete.exists() or complete.read_text() != PACKAGES:
        shutil.rmtree(DEBIAN, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}"]
        environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}
        done = subprocess.run(
            [*command, "trixie", DEBIAN, MIRROR],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        complete.write_text(PACKAGES)
