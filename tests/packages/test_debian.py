# SPDX-License-Identifier: Apache-2.0
"""The Debian package, built by its one command, installed, used, removed and purged in a
fresh Debian of its own.

The first run makes that Debian (``.build/clean``); each test works on a copy of it that is
gone afterwards, in mount, network and process namespaces of its own.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLEAN = ROOT / ".build/clean"
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

pytestmark = [pytest.mark.root, pytest.mark.slow]

# What is mounted goes with the mount namespace, and what runs with the process namespace.
ENTER = """
set -eu
ip link set lo up
ip link add under type veth peer name other && ip link set other up
ip address add 192.0.2.1/24 dev under && ip link set under up
upper=$(mktemp -d); trap 'umount -R -l "$upper" && rmdir "$upper"' EXIT
mount -t tmpfs tmpfs "$upper"
mkdir "$upper/files" "$upper/work" "$upper/root"
mount -t overlay -o "lowerdir=$CLEAN,upperdir=$upper/files,workdir=$upper/work" o "$upper/root"
cd "$upper/root"
cp "$PACKAGE" slimnet.deb
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
if test -d /sys/fs/cgroup/unified
then mount --bind /sys/fs/cgroup sys/fs/cgroup
     mount --bind /sys/fs/cgroup/unified sys/fs/cgroup/unified
else mount --bind /sys/fs/cgroup sys/fs/cgroup
fi
mount -t bpf bpf sys/fs/bpf
chroot . /bin/bash -eu -c "$SCRIPT"
"""
# As apt does after it has fetched the dependencies, which the clean Debian has.
INSTALL = "dpkg -i /slimnet.deb >/dev/null"
FILES = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp"
FILES += " -o -path /var/lib/dpkg -o -path /var/cache -o -path /var/log \\) -prune -o -print | sort"


def environment(**more):
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/tmp", **more}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [ROOT / "packaging/build", directory], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = directory.glob("*.deb")
    # The wheels are as they would be published.
    assert len(list(directory.glob("slimnet_overlay*.whl"))) == 6
    return made


def field(package, name):
    command = ["dpkg-deb", "--field", package, name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def debian(package):
    """Where every one of the package's dependencies is, and nothing else."""
    if shutil.which("debootstrap", path=PATH) is None:
        pytest.skip("needs debootstrap: run testbed/setup")
    wanted = [each.split()[0] for each in field(package, "Depends").split(",")]
    complete = CLEAN / "complete"
    if not complete.exists() or complete.read_text() != repr(wanted):
        shutil.rmtree(CLEAN, ignore_errors=True)
        packages = f"--include={','.join(dict.fromkeys(wanted))}"
        command = ["debootstrap", "--variant=minbase", packages, SUITE, CLEAN, MIRROR]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        complete.write_text(repr(wanted))
    return CLEAN


@pytest.fixture
def run(debian, package):
    """Runs a script there, which has to succeed; gives what it printed."""

    def call(script):
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", ENTER],
            env=environment(CLEAN=str(debian), PACKAGE=str(package), SCRIPT=script),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_it_comes_and_goes(run):
    """Nothing is started or enabled by the installation; purged, nothing is left."""
    printed = run(f"""
        {FILES} >/tmp/before
        {INSTALL}
        slimnet --version
        slimnet check -o json >/tmp/check || test $? -lt 2
        grep -c ebpf /tmp/check
        CNI_COMMAND=VERSION /usr/lib/cni/slimnet-cni </dev/null | grep -c supportedVersions
        /usr/lib/netavark/slimnet info | grep -c api_version
        ! find /etc/systemd -name 'slimnet*' | grep .
        ! grep -l slimnet /proc/[0-9]*/comm
        test -f /lib/systemd/system/slimnet-agent.service
        test -f /lib/systemd/system/slimnet-docker.service
        dpkg --remove slimnet >/dev/null
        ! command -v slimnet
        dpkg --purge slimnet >/dev/null
        {FILES} >/tmp/after
        diff /tmp/before /tmp/after && echo nothing is left
    """)
    assert printed.startswith("slimnet ")
    assert printed.endswith("nothing is left\n")


def test_it_is_refused_while_endpoints_run(run):
    """As the documentation starts a cluster; the endpoint and its agent do not notice that
    somebody tried, and purge takes key, store and configuration."""
    printed = run(f"""
        {INSTALL}
        slimnet cluster init --host one --address 192.0.2.1 >/dev/null
        slimnet agent >/tmp/agent.log 2>&1 &
        agent=$!
        for i in $(seq 300); do slimnet status >/dev/null 2>&1 && break; sleep 0.1; done
        slimnet network create prod 10.1.0.0/16 >/dev/null
        slimnet run -n prod --name db -- sleep 1000 &
        job=$!
        until slimnet endpoint ls | grep -q db; do sleep 0.1; done
        if dpkg --remove slimnet >/tmp/out 2>&1; then cat /tmp/out; exit 1; fi
        grep -m1 '^slimnet: ' /tmp/out
        slimnet endpoint ls -o json | grep -c '"db"'
        kill -0 $job
        kill $agent; wait $agent || true
        if dpkg --remove slimnet >/tmp/out 2>&1; then cat /tmp/out; exit 1; fi
        grep -m1 '^slimnet: ' /tmp/out
        kill $job; wait $job || true
        for i in $(seq 100); do dpkg --remove slimnet >/tmp/out 2>&1 && break; sleep 0.1; done
        cat /tmp/out >&2
        ls /etc/slimnet /var/lib/slimnet
        dpkg --purge slimnet >/dev/null
        ls -d /etc/slimnet /var/lib/slimnet /run/slimnet 2>&1 | grep -c 'No such file'
        ls /sys/fs/bpf | grep -c slimnet || true
    """)
    lines = printed.splitlines()
    assert "agent" in lines[0]
    assert lines[1] == "1"
    assert "processes" in lines[2]
    assert {"key", "conf.d"} <= set(lines[3:])
    assert lines[-2:] == ["3", "0"]
