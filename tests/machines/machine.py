# SPDX-License-Identifier: Apache-2.0
"""A virtual machine that boots Debian from a disk of its own, under systemd.

It shares nothing with this machine, and reaches nothing but the other end of its network card's
cable. Software emulation (TCG), as ``tests/vm`` has it and for the same reason.
"""

import base64
import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/vm"))

from guest import COMMAND_LINE, KERNELS, Guest, _program, find, kernels, qemu  # noqa: E402, F401

MACHINES = KERNELS.parent / "machines"
MEMORY = "1536M"

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module; done
mount -t ext4 /dev/vda /root
mount --move /dev /root/dev
umount /proc
exec switch_root /root /sbin/init
"""

#: What the second serial port leads to: a line is a number and a command, and so is an answer a
#: number, the exit status and what was printed.
COMMANDS = """#!/bin/bash
exec 3<>/dev/ttyS1
stty raw -echo -F /dev/ttyS1
printf '\nready\n' >&3
while read -r number command <&3; do
	base64 -d <<<"$command" >/run/command
	bash /run/command >/run/printed 2>&1 </dev/null 3>&-
	echo "$number $? $(base64 -w0 /run/printed)" >&3
done
"""
COMMANDS_UNIT = """[Service]
ExecStart=/usr/local/sbin/commands
Environment=HOME=/root LC_ALL=C.UTF-8
[Install]
WantedBy=multi-user.target
"""


def cable():
    """Two ends, for a network card each."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Machine(Guest):
    """One machine, booted to run commands as they come.

    Args:
        directory: an unpacked package of a kernel.
        name: its host name.
        disk: a file that is its disk, and is written to.
        end: its network card's end of the cable.
        mac: its network card's address.
    """

    MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
    LOG = "machine"

    def __init__(self, directory, name, *, disk, end, mac):
        self.name, self._disk, self._end, self._mac = name, disk, end, mac
        self._sent, self._answers, self._boots = [], {}, 0
        super().__init__(directory, {}, deadline=None)

    def ready(self, boots, seconds=600):
        """Waits until it has booted that many times."""
        self._await(lambda: self._boots >= boots, f"boot {boots}", seconds)

    def run(self, script, *, status=0, seconds=300):
        """What a script printed, which has to end with that exit status."""
        return self.result(self.send(script), status=status, seconds=seconds)

    def result(self, number, *, status=0, seconds=300):
        """What a script that was sent printed; it has to end with that exit status."""
        script = self._sent[number]
        printed, got = self._answer(number, seconds)
        if got != status:
            journal, _ = self.ask("journalctl --no-pager -n 40 -o short-monotonic", seconds=seconds)
            pytest.fail(f"{self.name}: {script!r} ended with {got}:\n{printed}\n{journal}")
        return printed

    def ask(self, script, *, seconds=300):
        """What a script printed, and its exit status."""
        return self._answer(self.send(script), seconds)

    def send(self, script):
        """Starts a script and does not wait: the number of its answer."""
        number = len(self._sent)
        self._sent.append(script)
        line = base64.b64encode(script.encode()).decode()
        self._port.sendall(f"{number} {line}\n".encode())
        return number

    def until(self, script, seconds=300):
        """Runs it until it succeeds: what it printed then, and how many seconds that took."""
        start = time.monotonic()
        while True:
            printed, status = self.ask(script, seconds=seconds)
            if status == 0:
                return printed, time.monotonic() - start
            if time.monotonic() > start + seconds:
                journal, _ = self.ask("journalctl --no-pager -n 40 -o short-monotonic")
                pytest.fail(f"{self.name}: {script!r} never succeeded:\n{printed}\n{journal}")
            time.sleep(1)

    def trouble(self):
        return f"console of {self.name}, Linux {self.release}:\n{self.console()[-4000:]}"

    def _answer(self, number, seconds):
        self._await(lambda: number in self._answers, repr(self._sent[number]), seconds)
        status, printed = self._answers.pop(number)
        return printed, status

    def _await(self, holds, what, seconds):
        deadline = time.monotonic() + seconds
        with self._changed:
            while not holds():
                if time.monotonic() > deadline or not self._reader.is_alive():
                    pytest.fail(f"{self.name} did not end {what}\n{self.trouble()}")
                self._changed.wait(1)

    def _boot(self, cpus):
        self._port, theirs = socket.socketpair()
        self._undo.callback(self._port.close)
        fds = (self._end.fileno(), theirs.fileno())
        with self._end, theirs:
            self._start(
                [*qemu(), *self.CLOCK, "-machine", "q35", "-monitor", "none"]
                + ["-cpu", "max,la57=off,smap=off,smep=off", "-smp", str(cpus), "-m", MEMORY]
                + ["-display", "none", "-nodefaults"]
                + ["-drive", f"file={self._disk},format=raw,if=virtio,cache=unsafe"]
                + ["-netdev", f"socket,id=cable,fd={fds[0]}"]
                + ["-device", f"virtio-net-pci,netdev=cable,mac={self._mac}"]
                + ["-serial", f"file:{self._work / 'console'}"]
                + ["-chardev", f"socket,id=commands,fd={fds[1]}", "-serial", "chardev:commands"]
                + ["-kernel", self.image, "-initrd", self._initramfs()]
                + ["-append", f"{COMMAND_LINE} net.ifnames=0 rw"],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError), self._port.makefile("rb") as lines:
            for line in lines:
                words = line.decode(errors="replace").split()
                with self._changed:
                    if words == ["ready"]:
                        self._boots += 1
                    elif len(words) >= 2 and words[0].isdigit():
                        printed = base64.b64decode(words[2]).decode() if words[2:] else ""
                        self._answers[int(words[0])] = int(words[1]), printed
                    self._changed.notify_all()

    def _fill(self, root, names):
        _program(root, find("busybox"), "bin/busybox")
        return {"init": INIT.format(modules=names)}
