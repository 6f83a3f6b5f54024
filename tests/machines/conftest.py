# SPDX-License-Identifier: Apache-2.0
"""A disk with Debian, and on it what ``packaging/build`` made.

The first run makes that Debian (``.build/machines/debian``, some minutes). slimnet is installed
on a copy of it each time, by apt as the documentation says, and is built from the tree as it is.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from machine import COMMANDS, COMMANDS_UNIT, MACHINES, ROOT, Machine, cable, find, kernels

DEBIAN = MACHINES / "debian"
MIRROR = "http://deb.debian.org/debian"
#: A machine that boots; the programs that the endpoints are; and their clients. None of it is
#: slimnet's: what that depends on is apt's to find.
INCLUDE = (
    "systemd-sysv,udev,dbus,iproute2,kmod,ca-certificates,procps,etcd-server,etcd-client,"
    "memcached,libmemcached-tools,nginx-light,curl"
)

# The tree is an overlay over that Debian, in memory; it is gone with the mount namespace.
BUILD = """
set -eu
upper=$(mktemp -d); trap 'umount -R -l "$upper" && rmdir "$upper"' EXIT
mount -t tmpfs -o mode=755 tmpfs "$upper"
mkdir "$upper/files" "$upper/work" "$upper/root"
mount -t overlay -o "lowerdir=$DEBIAN,upperdir=$upper/files,workdir=$upper/work" o "$upper/root"
cd "$upper/root"
cp "$PACKAGE" .
mount -t proc proc proc
apt() { chroot . env DEBIAN_FRONTEND=noninteractive apt-get -y -q --no-install-recommends "$@"; }
apt update
apt install "./${PACKAGE##*/}"
chroot . systemctl --quiet disable etcd memcached nginx
chroot . systemctl --quiet enable systemd-networkd
for unit in e2scrub_all.timer e2scrub_reap apt-daily.timer apt-daily-upgrade.timer
do chroot . systemctl --quiet disable "$unit"
done
umount proc
rm -rf "${PACKAGE##*/}" var/lib/apt/lists/* var/cache/apt/*.bin var/lib/etcd/*
for kernel in $KERNELS
do mkdir -p usr/lib/modules && cp -a "$kernel"/lib/modules/* usr/lib/modules
done
# Empty, and not missing: that would be a first boot, which enables every unit.
: >etc/machine-id
rm -f etc/hostname
# As Debian's installer leaves them; debootstrap gave it this machine's name servers.
echo 127.0.0.1 localhost >etc/hosts
: >etc/resolv.conf
printf '%s' "$COMMANDS" >usr/local/sbin/commands
chmod 755 usr/local/sbin/commands
printf '%s' "$COMMANDS_UNIT" >etc/systemd/system/commands.service
chroot . systemctl --quiet enable commands
mke2fs -q -t ext4 -E root_owner=0:0 -d . "$DISK" 3G
"""


def environment(**more):
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root", **more}


def done(command, **options):
    ended = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, **options
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    return ended.stdout


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """The Debian package."""
    directory = tmp_path_factory.mktemp("dist")
    done([ROOT / "packaging/build", directory])
    (made,) = directory.glob("*.deb")
    return made


@pytest.fixture(scope="session")
def debian():
    """Debian without slimnet."""
    find("debootstrap")
    complete = MACHINES / "complete"
    if not complete.exists() or complete.read_text() != INCLUDE:
        shutil.rmtree(MACHINES, ignore_errors=True)
        MACHINES.mkdir(parents=True)
        options = ["--variant=minbase", f"--include={INCLUDE}"]
        done(["debootstrap", *options, "bookworm", DEBIAN, MIRROR], env=environment())
        complete.write_text(INCLUDE)
    return DEBIAN


@pytest.fixture(scope="session")
def disk(debian, package, tmp_path_factory):
    """A file system on which slimnet is installed and nothing is started or configured."""
    made = tmp_path_factory.mktemp("disk") / "debian.ext4"
    given = environment(
        DEBIAN=str(debian),
        PACKAGE=str(package),
        KERNELS=" ".join(map(str, kernels())),
        COMMANDS=COMMANDS,
        COMMANDS_UNIT=COMMANDS_UNIT,
        DISK=str(made),
    )
    done(["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", BUILD], env=given)
    yield made
    made.unlink()


@pytest.fixture
def machines(disk):
    """Two that boot, of the oldest kernel and of the newest, and a cable between them: the first
    has the newest."""
    found = kernels()
    if len(found) < 2:
        pytest.skip("needs two kernels: run testbed/setup")
    made, disks = [], []
    try:
        for number, (name, kernel, end) in enumerate(
            zip(("first", "second"), (found[-1], found[0]), cable(), strict=True), 1
        ):
            own = Path(f"{disk}.{name}")
            disks.append(own)
            done(["cp", "--reflink=auto", "--sparse=always", disk, own])
            mac = f"52:54:00:00:00:{number:02x}"
            made.append(Machine(kernel, name, disk=own, end=end, mac=mac))
        yield made
    finally:
        for machine in made:
            machine.close()
        for own in disks:
            own.unlink(missing_ok=True)
