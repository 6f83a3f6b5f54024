# SPDX-License-Identifier: Apache-2.0
"""The kernel module under strain (trials.c), in machines with nothing but it: what it makes of
sockets, how they end, and that it leaves nothing. Whatever the kernel writes of trouble is a
failure.

``SLIMNET_MODULE_SUITES=whole``: loaded and unloaded 200 times, 1,000 endpoints, 9 rounds of the
host, VXLAN and the module one after the other (``-s`` prints the ratios, of instructions).
``SLIMNET_TRIALS``: these only. ``SLIMNET_KERNELS=debug-kernels`` (``tox run -e debug``): on kernels
that look for what goes wrong in them (debug-kernel), and are measured in nothing.
"""

import os
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from statistics import median

import module
import oracle
import pytest
from guest import ROOT, TROUBLE, Bare, Counted, kernels, numbers
from suites import KERNELS as VERSIONS

sys.path.insert(0, str(ROOT / "tests"))

from wire_reference import syn_option  # of the directory above

pytestmark = [pytest.mark.root, pytest.mark.slow]

#: Of all that runs on both; then it is stuck. A machine that is busy gives a guest a tenth of the
#: time that it needs.
SECONDS = int(os.environ.get("SLIMNET_VM_SECONDS", "3600"))
WHOLE = os.environ.get("SLIMNET_MODULE_SUITES") == "whole"
#: By name, and how often what is done is done.
TRIALS = {
    "names": 0,
    "alias": 0,
    "vectors": 0,
    "fastopen": 0,
    "mptcp": 0,
    "io_uring": 0,
    "kernel": 0,
    "oracle": 0,
    "killed": 0,
    "deleted": 0,
    "forced": 0,
    "endpoints": 1000 if WHOLE else 100,
    "loads": 200 if WHOLE else 10,
    "speed": 9 if WHOLE else 3,
}
#: Those of a machine whose time is counted in instructions.
COUNTED = {"speed"}
#: What nothing points to any more, once the module is gone: twice, for what is on its way then.
SCAN = """
mount -t debugfs debugfs /sys/kernel/debug
for wait in 5 5; do sleep $wait; echo scan >/sys/kernel/debug/kmemleak || exit; done
! grep . /sys/kernel/debug/kmemleak
"""
if DEBUG := os.environ.get("SLIMNET_KERNELS") == "debug-kernels":
    del TRIALS["speed"]
if chosen := os.environ.get("SLIMNET_TRIALS"):
    TRIALS = {name: TRIALS[name] for name in chosen.split()}
COMMANDS = {
    kind: {
        name: ["/trials", "/slimnet.ko", name, count]
        for name, count in TRIALS.items()
        if (name in COUNTED) == (kind is Counted)
    }
    for kind in (Bare, Counted)
}
if DEBUG:
    COMMANDS[Bare]["leaks"] = ["sh", "-c", SCAN]
#: As trials.c has them.
KEY = bytes(range(16))
HOSTS = "198.18.0.1", "198.18.0.2"
CALLING, CALLED, PORT = 11, 12, 80


def vectors():
    """SYNs that a stranger sends in the name of h0: lines for the program."""
    rng = random.Random(16)  # not a secret
    source_port = 20000
    for before in (b"", bytes.fromhex("020405b4"), bytes.fromhex("020405b400000000")):
        for name in (None, 1024, 40000, 65535):
            for wrong in ("", "tag", "name", "key", "sequence"):
                if wrong == "name" and name is None:
                    continue
                source_port += 1
                sequence = rng.randrange(1, 1 << 32)
                option = syn_option(
                    rng.randbytes(16) if wrong == "key" else KEY,
                    *HOSTS,
                    source_port,
                    (sequence + (wrong == "sequence")) % (1 << 32),
                    port=PORT,
                    called=CALLED,
                    calling=CALLING,
                    name=name,
                )
                if wrong == "tag":
                    option = option[:15] + bytes([option[15] ^ 1]) + option[16:]
                elif wrong == "name":
                    option = option[:-1] + bytes([option[-1] ^ 1])
                # Behind the end of the options nothing counts.
                seen = 0 if wrong or before[-1:] == b"\0" else name or source_port
                options = before + option
                options += b"\1" * (-len(options) % 4)
                yield f"{source_port} {sequence} {options.hex()} {seen}\n"


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    directory = tmp_path_factory.mktemp("trials")
    program = directory / "trials"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]
    source = ROOT / "tests/vm/trials.c"
    include = f"-I{ROOT / 'kernel/uapi'}"
    subprocess.run(["gcc", *flags, include, "-static", "-o", program, source], check=True)
    (directory / "vectors").write_text("".join(vectors()))
    worlds = oracle.generated()
    script, asked = oracle.script(worlds)
    (directory / "oracle").write_bytes(script)
    given = [directory / "vectors", directory / "oracle"]
    running = {}
    try:
        for kernel in kernels():
            built = module.build(kernel)
            for kind in (Bare, Counted):
                if not (commands := COMMANDS[kind]):
                    continue
                disk = directory / f"disk-{built.parent.name}-{kind.__name__}"
                with disk.open("wb") as file:
                    file.truncate(1 << 26)
                running[numbers(built.parent.name), kind] = kind(
                    kernel,
                    commands,
                    deadline=time.monotonic() + SECONDS,
                    files=[program, *given, built, module.build_caller(kernel)],
                    disk=disk,
                )
                running[numbers(built.parent.name), kind].oracle = worlds, asked, disk
        yield running
    finally:
        for machine in running.values():
            machine.close()


@pytest.fixture(params=VERSIONS)
def version(request, machines):
    if all(numbers(request.param) != found for found, _ in machines):
        pytest.skip(f"needs Linux {request.param}: run testbed/setup")
    return numbers(request.param)


@pytest.mark.parametrize("name", [name for each in COMMANDS.values() for name in each])
def test_trial(machines, version, name):
    machine = machines[version, Counted if name in COUNTED else Bare]
    output, status, seconds = machine.wait(name)
    assert status == 0, output[-4000:]
    print(f"Linux {machine.release}: {name} {TRIALS.get(name) or ''} in {seconds} s")
    if name == "vectors":
        check_vectors(output)
    elif name == "oracle":
        worlds, asked, disk = machine.oracle
        seen = oracle.check(worlds, disk.read_bytes(), asked)
        print(f"{asked} questions: {dict(seen)}")
    elif name == "speed":
        check_ratios(output)


def check_ratios(output):
    """Medians of the rounds, beside the host's own. They are no times: it is the same number of
    instructions each time, but for what the kernel does besides."""
    found = defaultdict(list)
    for what, way, thousands in re.findall(r"^speed (\w+) (\w+) (\S+)$", output, re.MULTILINE):
        found[what, way].append(float(thousands))
    assert len(found) == 9
    for what, most in {"connect": 1.4, "request": 1 / 0.95, "bulk": 1 / 0.95}.items():
        host, vxlan, kmod = (median(found[what, way]) for way in ("host", "vxlan", "kmod"))
        print(
            f"  {what}: host {host:.1f} thousand instructions, kmod {kmod:.1f}"
            f" ({kmod / host:.2f}), vxlan {vxlan:.1f} ({vxlan / host:.2f})"
        )
        assert kmod / host < most
        assert kmod < vxlan


def check_vectors(output):
    """What the module said in its SYNs, byte by byte, one with and one without a name."""
    names = re.findall(r"^name (\d+)$", output, re.MULTILINE)
    syns = re.findall(r"^syn (\S+) (\S+) (\d+) (\d+) (\S+)$", output, re.MULTILINE)
    assert len(names) == len(syns) == 4
    kinds = set()
    for name, (source, destination, source_port, sequence, options) in zip(
        map(int, names), syns, strict=True
    ):
        assert bytes.fromhex(source) == bytes([198, 18, 0, 1])
        assert bytes.fromhex(destination) == bytes([198, 18, 0, 2])
        option = syn_option(
            KEY,
            *HOSTS,
            int(source_port),
            int(sequence),
            port=PORT,
            called=CALLED,
            calling=CALLING,
            name=None if name == int(source_port) else name,
        )
        assert option.hex() in options
        kinds.add(len(option))
    assert kinds == {16, 18}
    assert f"{len([*vectors()])} vectors" in output


def test_the_kernel_is_well(machines, version):
    for kind, commands in COMMANDS.items():
        for name in commands:
            machines[version, kind].wait(name)
        if commands:
            console = machines[version, kind].console()
            assert re.findall(f".*(?:{TROUBLE}).*", console) == []
