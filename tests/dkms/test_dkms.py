# SPDX-License-Identifier: Apache-2.0
"""dkms(8) builds, installs and removes the module, in a fresh Debian of its own.

The first run makes that Debian (``.build/chroot``, some minutes); each test works on a copy of
it that is gone afterwards. ``tox run -e dkms``; no part of CI, for what it installs is much.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/vm"))

from guest import KERNELS, kernels, release  # noqa: E402  # a test of another directory's

pytestmark = [pytest.mark.root, pytest.mark.slow]

CHROOT = KERNELS.parent / "chroot"
MIRROR = "http://deb.debian.org/debian"
# All that is mounted goes with the mount namespace. The kernels are where their headers say
# that they are; their modules' directory is a copy, since dkms writes there.
ENTER = """
set -eu
upper=$(mktemp -d); trap 'umount -R "$upper" && rmdir "$upper"' EXIT
mount -t tmpfs tmpfs "$upper"
mkdir "$upper/files" "$upper/work" "$upper/root"
mount -t overlay -o "lowerdir=$CHROOT,upperdir=$upper/files,workdir=$upper/work" o "$upper/root"
cd "$upper/root"
mkdir -p ".$KERNELS" "lib/modules/$RELEASE"
mount --bind -o ro "$KERNELS" ".$KERNELS"
mount -t proc proc proc
cp "$DIRECTORY/lib/modules/$RELEASE"/modules.* "lib/modules/$RELEASE"
ln -s "$DIRECTORY/usr/src/linux-headers-$RELEASE" "lib/modules/$RELEASE/build"
make --silent -C "$ROOT/kernel" dkms DESTDIR="$PWD"
chroot . /bin/sh -eu -c "$SCRIPT"
"""


@pytest.fixture(scope="module")
def debian():
    if shutil.which("debootstrap", path="/usr/sbin:/usr/bin") is None:
        pytest.skip("needs debootstrap: run testbed/setup")
    if not (CHROOT / "complete").exists():
        shutil.rmtree(CHROOT, ignore_errors=True)
        packages = "--include=dkms,gcc,make,libc6-dev,libelf1,kmod"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", CHROOT, MIRROR]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        (CHROOT / "complete").touch()


def environment(**more):
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **more}


def version():
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["version"]


def test_it_has_the_version_of_its_driver():
    text = (ROOT / "kernel/module/dkms.conf").read_text()
    assert re.search(r'^PACKAGE_VERSION="(.+)"$', text, re.MULTILINE)[1] == version()


@pytest.mark.parametrize("directory", kernels(), ids=lambda path: path.name)
def test_dkms_builds_installs_and_removes_it(debian, directory):
    (image,) = directory.glob("boot/vmlinuz-*")
    name = release(image)
    package = f"slimnet/{version()}"
    script = f"""
        cd /lib/modules/{name}
        before=$(find . | sort)
        dkms add {package}
        dkms install -k {name} {package}
        dkms status -k {name}
        find updates -name 'slimnet.ko*'
        modinfo -k {name} slimnet
        modprobe --show-depends -S {name} slimnet >/dev/null 2>&1 || true
        dkms remove --all {package}
        rm -rf /usr/src/slimnet-{version()}
        ! modinfo -k {name} slimnet 2>/dev/null
        test -z "$(dkms status)"
        test ! -e /var/lib/dkms/slimnet
        rmdir updates 2>/dev/null || true
        test "$before" = "$(find . | sort)"
        echo all gone
    """
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", ENTER],
        env=environment(
            CHROOT=str(CHROOT),
            KERNELS=str(KERNELS),
            DIRECTORY=str(directory),
            RELEASE=name,
            ROOT=str(ROOT),
            SCRIPT=script,
            HOME=os.environ.get("HOME", "/root"),
        ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{package}, {name}, x86_64: installed" in done.stdout
    assert re.search(r"^updates/dkms/slimnet\.ko", done.stdout, re.MULTILINE)
    assert re.search(rf"^vermagic: +{re.escape(name)} ", done.stdout, re.MULTILINE)
    assert "alias:          net-pf-16-proto-16-family-slimnet" in done.stdout
    assert done.stdout.rstrip().endswith("all gone")
