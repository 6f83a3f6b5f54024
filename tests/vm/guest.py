# SPDX-License-Identifier: Apache-2.0
"""A virtual machine with a kernel of its own, and this machine's files.

Its root is this machine's, read-only by virtiofs, under an overlay on a tmpfs: what runs
in there are the same programs, the same tests and the same object, and what they write is
gone with it. Software emulation (TCG) everywhere, so that it takes the same way, and about
the same time, whether or not a hypervisor allows /dev/kvm. (Where /dev/kvm is PVM's, QEMU
opens it and an ordinary kernel hangs in it, so that probing would not do either.)
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Where testbed/setup unpacks Debian's kernels, which are not installed; or debug-kernel's.
KERNELS = ROOT / ".build" / os.environ.get("SLIMNET_KERNELS", "kernels")
MEMORY = "3072M"
#: What a kernel writes when something is wrong with it, as an expression of grep -E and of Python.
TROUBLE = r"WARNING:|BUG|Oops|KASAN|refcount|\bleak|hung task|lockup|Call Trace|general protection"
#: Landlock and BPF of the security modules, as Debian has them; the rest costs much time here.
#: The check of the timer's interrupts fails, and ends the boot, where the machine is too busy; and
#: what looks for processors that are stuck finds those that wait for one of this machine's. What
#: is stuck indeed meets a deadline.
COMMAND_LINE = (
    "console=ttyS0 panic=-1 loglevel=5 lsm=landlock,bpf audit=0 mitigations=off init_on_alloc=0"
    " nowatchdog rcupdate.rcu_cpu_stall_suppress=1 rcupdate.rcu_expedited=1 no_timer_check"
)

# The guest's memory is shared with virtiofsd; /host has to stay reachable below the overlay.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module; done
mount -t virtiofs -o ro host /host
mount -t tmpfs -o size=75% tmpfs /writable
mkdir /writable/upper /writable/work
mount -t overlay -o lowerdir=/host,upperdir=/writable/upper,workdir=/writable/work root /root
for name in proc sys dev run tmp; do mkdir -p /root/$name; done
mount -t sysfs sys /root/sys
mount -t cgroup2 cgroup /root/sys/fs/cgroup
mount -t bpf bpf /root/sys/fs/bpf
mount -t tmpfs -o mode=755 run /root/run
mount -t tmpfs -o mode=1777 tmp /root/tmp
mount --move /dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
mkdir -p /root/lib/modules/{release}
mount --bind /host{directory}/lib/modules/{release} /root/lib/modules/{release}
ln -sf /proc/self/fd /root/dev/fd
umount /proc
mount -t proc proc /root/proc
# The checkout as it is now, for what is edited meanwhile shows through virtiofs piecemeal.
for name in {sources}; do
	mkdir -p /writable/sources/$name
	cp -a /host{checkout}/$name/. /writable/sources/$name
	mount --bind /writable/sources/$name /root{checkout}/$name
done
cp /job /root/run/job
exec switch_root /root /bin/bash /run/job
"""

# A machine that has nothing but what it is given. Its kernel says everything.
BARE = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /run/netns /tmp
mount -t tmpfs run /run
for module in {modules}; do insmod /modules/$module; done
exec >/dev/ttyS1 2>&1 </dev/null
stty raw -F /dev/ttyS1
ip link set lo up
{commands}
echo "ended"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""

# The console is for what the kernel says; the job's own output goes to a port of its own.
JOB = """
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
exec >/dev/ttyS1 2>&1 </dev/null
stty raw -F /dev/ttyS1
hostname slimnet-guest
ip link set lo up
# The machine's own, before Linux 6.18 each namespace's: what requirements.gaps() asks for.
sysctl -qw net.core.tstamp_allow_data=0
export PYTHONUNBUFFERED=1 SLIMNET_REQUIRE_ALL=1 SLIMNET_LONG=0
cd {root}
echo "kernel: $(uname -r)"
{commands}
echo "ended"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def find(*names):
    for name in names:
        path = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/qemu:/usr/libexec"
        if (found := shutil.which(name, path=path)) is not None:
            return Path(found)
    pytest.skip(f"needs {names[0]}: run testbed/setup")


def kernels(where=KERNELS):
    """The unpacked packages in a directory, the oldest kernel first."""
    found = {path.parent.parent: release(path) for path in where.glob("*/boot/vmlinuz-*")}
    return sorted(found, key=lambda directory: numbers(found[directory]))


def release(image):
    return image.name.removeprefix("vmlinuz-")


def version(directory):
    """Of an unpacked kernel, as "6.1"."""
    (image,) = directory.glob("boot/vmlinuz-*")
    return ".".join(map(str, numbers(release(image))))


def numbers(text):
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def qemu():
    """The emulator's command: this machine's, or ``SLIMNET_QEMU``."""
    given = shlex.split(os.environ.get("SLIMNET_QEMU", ""))
    return given or [find("qemu-system-x86_64")]


def processors():
    """How many a machine may have whose kernel changes its own code, as ftrace does.

    Two, but with QEMU 7.2, Debian 12's, one: on several it runs code as it was before one of them
    changed it, and the kernel panics over a breakpoint that is no longer there. Linux's own
    function tracer, switched on and off while sockets open and close, is enough, with no module
    of ours (6.12, within seconds, twice in three tries); QEMU 10.0 did not fail so.
    """
    said = subprocess.run([*qemu(), "--version"], capture_output=True, text=True, check=True)
    return 2 if numbers(said.stdout) >= (10, 0) else 1


def _program(root, path, name):
    """Copies one with its libraries."""
    shutil.copy(path, root / name)
    libraries = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", libraries):
        (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library[1:])


class Guest:
    """One machine, booted to run commands one after the other.

    Args:
        directory: an unpacked package of a kernel.
        commands: what to run, by name, each a list of words.
        deadline: when all of it has to be done, as of time.monotonic().
        cpus: virtual ones.
    """

    #: What it needs before it sees this machine's files.
    MODULES = ("virtio_pci", "virtiofs", "overlay")
    LOG = "vm"
    CLOCK = ("-accel", "tcg,thread=multi")

    def __init__(self, directory, commands, *, deadline, cpus=1):
        (self.image,) = directory.glob("boot/vmlinuz-*")
        self.directory = directory
        self.release = release(self.image)
        self.output = ""
        self._changed = threading.Condition()
        self._commands = commands
        self._deadline = deadline
        self._undo = contextlib.ExitStack()
        self._work = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="slt-vm-")))
        try:
            self._boot(cpus)
        except BaseException:
            self.close()
            raise

    def close(self):
        self._undo.close()

    def wait(self, name):
        """What the command wrote, its exit status, and how many seconds it took."""
        after = rf"^== {name}\n(.*?)^== {name}: (\d+) in (\d+) s\n"
        with self._changed:
            while (found := re.search(after, self.output, re.DOTALL | re.MULTILINE)) is None:
                if time.monotonic() > self._deadline or not self._reader.is_alive():
                    pytest.fail(f"Linux {self.release} did not end {name}:\n{self.trouble()}")
                self._changed.wait(1)
        return found[1], int(found[2]), int(found[3])

    def passes(self, name):
        """What pytest wrote that one of the commands runs: it passed, and so did every test."""
        output, status, seconds = self.wait(name)
        assert status == 0, output[-20000:]
        passed = int(re.search(r"(\d+) passed", output)[1])
        print(f"Linux {self.release}: {name}: {passed} passed in {seconds} s")
        assert passed
        return output

    def console(self):
        """What the kernel said."""
        return (self._work / "console").read_text(errors="replace")

    def trouble(self):
        return f"{self.output[-6000:]}\nconsole:\n{self.console()[-4000:]}"

    def _boot(self, cpus):
        socket = self._work / "socket"
        self._start(
            [find("virtiofsd"), f"--socket-path={socket}", "-f", "-o", "source=/"]
            + ["-o", "cache=always", "-o", "sandbox=chroot", "-o", "log_level=err"]
        )
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert time.monotonic() < deadline, "virtiofsd did not start"
            time.sleep(0.05)
        self._run(
            [
                *("-chardev", f"socket,id=files,path={socket}"),
                *("-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"),
            ],
            cpus,
        )

    def _run(self, devices, cpus):
        self._machine = self._start(
            [*qemu(), *self.CLOCK]
            + ["-cpu", "max,la57=off,smap=off,smep=off"]
            + ["-smp", str(cpus), "-m", MEMORY, "-nographic", "-no-reboot", "-nic", "none"]
            + ["-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"]
            + ["-machine", "q35,memory-backend=memory", "-monitor", "none"]
            + devices
            + ["-serial", f"file:{self._work / 'console'}", "-serial", "stdio"]
            + ["-kernel", self.image, "-initrd", self._initramfs()]
            + ["-append", COMMAND_LINE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _start(self, command, **options):
        process = subprocess.Popen(command, **options)

        def end():
            process.kill()
            process.wait()

        self._undo.callback(end)
        return process

    def _read(self):
        # For whoever wants to watch: in software a suite takes minutes.
        with (KERNELS.parent / f"{self.LOG}-{self.release}.log").open("w") as log:
            for line in self._machine.stdout:
                text = line.decode(errors="replace").replace("\r", "")
                print(text, end="", file=log, flush=True)
                with self._changed:
                    self.output += text
                    self._changed.notify_all()

    def _initramfs(self):
        """What makes the root, as the kernel unpacks it."""
        root = self._work / "initramfs"
        for name in ("bin", "dev", "host", "modules", "proc", "root", "sys", "writable"):
            (root / name).mkdir(parents=True)
        names = []
        for path in self._modules():
            names.append(path.name)
            shutil.copy(path, root / "modules")
        for name, text in self._fill(root, " ".join(names)).items():
            (root / name).write_text(text)
            (root / name).chmod(0o755)
        listing = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        target = self._work / "initramfs.cpio"
        with target.open("wb") as file:
            subprocess.run(
                [find("cpio"), "-o", "-H", "newc", "--quiet"],
                input=listing.encode(),
                stdout=file,
                cwd=root,
                check=True,
            )
        return target

    def _fill(self, root, names):
        """What is in it; the texts of its scripts."""
        _program(root, find("busybox"), "bin/busybox")
        return {
            "init": INIT.format(
                modules=names,
                release=self.release,
                directory=self.directory,
                checkout=ROOT,
                sources="backends kernel src tests",
            ),
            "job": JOB.format(root=ROOT, commands="\n".join(self._job())),
        }

    def _modules(self):
        """Those and what they need, in the order in which they can be loaded."""
        directory = self.directory / "lib" / "modules" / self.release
        needs = {}
        for line in (directory / "modules.dep").read_text().splitlines():
            path, _, others = line.partition(":")
            needs[path] = [*reversed(others.split()), path]
        names = {Path(path).name.partition(".")[0].replace("-", "_"): path for path in needs}
        # One that is not there is built in.
        wanted = [path for name in self.MODULES if name in names for path in needs[names[name]]]
        return [directory / path for path in dict.fromkeys(wanted)]

    def _job(self):
        for name, words in self._commands.items():
            yield f"start=$(cut -d. -f1 /proc/uptime); echo '== {name}'"
            yield shlex.join(map(str, words))
            yield f"echo '== {name}:' $? in $(($(cut -d. -f1 /proc/uptime) - start)) s"


class Bare(Guest):
    """One with no files of this machine's but a few, at its root: it boots in seconds.

    Args:
        files: paths of them.
        disk: a file that is /dev/vda there.
    """

    MODULES = ("veth", "vxlan", "virtio_pci", "virtio_blk")
    LOG = "bare"
    PROCESSORS: int | None = None

    def __init__(self, directory, commands, *, deadline, files, disk):
        self._files, self._disk = files, disk
        cpus = self.PROCESSORS or processors()
        super().__init__(directory, commands, deadline=deadline, cpus=cpus)

    def _boot(self, cpus):
        disk = f"file={self._disk},format=raw,if=virtio,cache=unsafe"
        self._run(["-drive", disk], cpus)

    def _fill(self, root, names):
        _program(root, find("busybox"), "bin/busybox")
        (root / "sbin").mkdir()
        _program(root, find("ip"), "sbin/ip")
        for path in self._files:
            shutil.copy(path, root / path.name)
        commands = "\n".join(self._job())
        return {"init": BARE.format(modules=names, commands=commands)}


class Counted(Bare):
    """One whose time is what its one processor has carried out: an instruction takes a
    nanosecond, and where there is nothing to do the next timer is due at once. What is measured
    in there is the same however busy this machine is."""

    LOG = "counted"
    CLOCK = ("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off")
    PROCESSORS = 1
