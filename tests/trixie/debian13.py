# SPDX-License-Identifier: Apache-2.0
"""Engines of Debian 13 in a Debian of their own, one for each host of the machine's.

The first run makes that Debian (``.build/trixie``, some minutes); each host works on a copy of it
that is gone afterwards, with the plugins and the agents of this machine. ``tox run -e trixie``; no
part of CI, for what it installs is much.
"""

import contextlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / ".build/trixie"
MIRROR = "http://deb.debian.org/debian"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES = "podman,netavark,crun,incus-base,incus-client"

# All that is mounted goes with the mount namespace. Network namespaces are the machine's, where
# its agents look for them: what is mounted in /run/netns here is mounted there as well. Nothing
# is unmounted, since that would be done to the machine's too.
BEGIN = """
set -eu
mount -t tmpfs tmpfs "$COPY"
mkdir "$COPY/files" "$COPY/work" "$COPY/root"
mount -t overlay -o "lowerdir=$DEBIAN,upperdir=$COPY/files,workdir=$COPY/work" o "$COPY/root"
cd "$COPY/root"
mkdir -p machine
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/netns
mount --rbind /run/netns run/netns
"""
# The root of the mount namespace, for which a chroot is none: who enters a container's would be
# in the machine's files. Those are in /machine.
END = """
mount --make-private /
pivot_root . machine
cd /
echo ready
exec chroot . sleep infinity
"""


@contextlib.contextmanager
def inside(copy, prepare, **environment):
    """A process in a copy of that Debian, once what its engine needs was made by ``prepare``."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation=unchanged", "bash", "-c", BEGIN + prepare + END],
        env={"PATH": PATH, "COPY": str(copy), "DEBIAN": str(DEBIAN), **environment},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process.pid
        finally:
            process.kill()
