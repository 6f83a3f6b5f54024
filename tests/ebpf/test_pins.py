# SPDX-License-Identifier: Apache-2.0
"""bpffs as somebody else has mounted it: where the pins may be."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a bpffs")

INSTANCE = f"slt-pins-{os.getpid()}"
PINS = f"/sys/fs/bpf/slimnet/{INSTANCE}"
USER = "setpriv --reuid 65534 --clear-groups"
#: The kernel's own default is 1777: any user of the host can make the first directory.
OPEN = "mount -t bpf -o mode=1777 bpf /sys/fs/bpf"
LOCK = f"""{sys.executable} -c '
from slimnet.exceptions import SlimnetError
from slimnet_ebpf.pins import Pins
try:
    with Pins("{INSTANCE}").lock(create=True):
        print("locked")
except SlimnetError as error:
    print(error)
'"""


def run(*commands):
    """Shell commands in mount and network namespaces of their own."""
    return subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-e", "-c", "\n".join(commands)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_bpffs_that_everybody_may_write_to():
    """As long as nobody has been there before; twice, since the second finds the first's."""
    done = run(OPEN, LOCK, LOCK, f"stat -c %a {PINS}")
    assert done.stdout.split() == ["locked", "locked", "700"], done.stderr


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ([f"{USER} mkdir /sys/fs/bpf/slimnet"], "/sys/fs/bpf/slimnet belongs to user 65534"),
        (
            ["mkdir -m 1777 /sys/fs/bpf/slimnet", f"{USER} mkdir {PINS}"],
            f"{PINS} belongs to user 65534",
        ),
        ([f"mkdir -p {PINS}", f"chmod 1777 {PINS}"], f"others may write to {PINS} (mode 1777)"),
        (["mkdir -m 777 /sys/fs/bpf/slimnet"], "others may write to /sys/fs/bpf/slimnet"),
        # However it is mounted, the kernel adds the sticky bit.
        (["chmod 777 /sys/fs/bpf"], "others may write to /sys/fs/bpf (mode 0777)"),
    ],
    ids=["of-all-instances", "of-the-instance", "the-instance", "in-between", "not-sticky"],
)
def test_a_directory_that_somebody_else_made_first(before, said):
    done = run(OPEN, *before, "find /sys/fs/bpf", "echo then", LOCK, "find /sys/fs/bpf")
    found, then = done.stdout.split("then\n")
    line, _, left = then.partition("\n")
    assert said in line, done.stderr
    assert left == found


def test_the_agent_says_so_in_one_line(tmp_path):
    """And exits with status 2."""
    config = tmp_path / "slimnet.toml"
    config.write_text(
        f'instance = "{INSTANCE}"\nhost = "h1"\nbackend = "ebpf"\nkey_file = "{tmp_path}/key"\n'
        f'store = "sqlite://{tmp_path}/store.db"\n[underlay]\ninterface = "lo"\n'
    )
    done = run(
        "mount -t tmpfs -o mode=755 none /run",
        OPEN,
        f"{USER} mkdir /sys/fs/bpf/slimnet",
        "ip address add 192.0.2.1/32 dev lo",
        "ip link set lo up",
        f"exec timeout 20 {sys.executable} -m slimnet.cli agent --config {config}",
    )
    assert done.returncode == 2, done.stderr
    (line,) = (each for each in done.stderr.splitlines() if " INFO " not in each)
    assert line.startswith("slimnet: ")
    assert "/sys/fs/bpf/slimnet belongs to user 65534" in line
