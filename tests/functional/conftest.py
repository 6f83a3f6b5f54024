# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the functional tests: the lab, and where its two ends are."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab import Endpoint, Lab

PROGRAMS = Path(__file__).parent / "programs"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "container: runs in plain containers too, which say what is right"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``lab`` is the eBPF data path; with ``@pytest.mark.container`` also plain
    containers, whose answers are the ones that slimnet is held to."""
    modes = ["ebpf"]
    if metafunc.definition.get_closest_marker("container") is not None:
        modes.append("plain")
    places = ["two-hosts", "one-host"]
    if {"_lab", "place"} <= set(metafunc.fixturenames):
        # Containers are all alike, wherever they are.
        both = [(mode, place) for mode in modes for place in places][:3]
        metafunc.parametrize(("_lab", "place"), both, indirect=["_lab"], scope="module")
    elif "_lab" in metafunc.fixturenames:
        metafunc.parametrize("_lab", modes, indirect=True, scope="module")
    elif "place" in metafunc.fixturenames:
        metafunc.parametrize("place", places)


@pytest.fixture(scope="module")
def _lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(request.param, hosts=3)
    yield lab
    lab.close()


@pytest.fixture
def lab(_lab: Lab) -> Iterator[Lab]:
    """Three hosts of a cluster and one machine that is not in it."""
    with _lab.test():
        yield _lab


@pytest.fixture
def ends(lab: Lab, place: str) -> tuple[Endpoint, Endpoint]:
    """A client and a server."""
    return lab.endpoint(0), lab.endpoint(0 if place == "one-host" else 1)


#: What the kernel writes when something is wrong with it.
FAULT = re.compile(
    r"WARNING:|BUG|Oops|KASAN|refcount|\bleak|hung task|lockup|Call Trace|general protection"
)


@pytest.fixture
def kernel_faults():
    """Lines of trouble that came into the kernel's log since the test began."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)

    def read():
        lines = []
        while True:
            try:
                lines.append(os.read(log, 8192).decode(errors="replace"))
            except BlockingIOError:
                return [line for line in lines if FAULT.search(line)]
            except BrokenPipeError:
                continue  # overwritten before it was read

    yield read
    os.close(log)


@pytest.fixture(scope="session")
def built():
    """Compiles a program once; its command."""
    directory = Path(tempfile.mkdtemp(prefix="slt-"))

    def run(*argv, **environment):
        done = subprocess.run(
            [str(word) for word in argv],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin", "HOME": str(directory)}
            | environment,
            cwd=directory,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    @functools.cache
    def build(name):
        target = directory / name
        if name == "static":
            run("gcc", "-O2", "-Wall", "-Werror", "-static", PROGRAMS / "plain.c", "-o", target)
        elif name == "dynamic":
            run("gcc", "-O2", "-Wall", "-Werror", PROGRAMS / "plain.c", "-o", target)
        elif name == "ring":
            run("gcc", "-O2", "-Wall", "-Werror", PROGRAMS / "ring.c", "-o", target, "-luring")
        elif name in ("fuzz", "v6only"):
            warnings = ("-Wall", "-Wextra", "-Werror")
            source = PROGRAMS / f"{name}.c"
            run("gcc", "-O2", *warnings, source, "-o", target, "-luring", "-pthread")
        elif name == "go":
            run("go", "build", "-o", target, PROGRAMS / "plain.go", CGO_ENABLED="0")
        elif name == "java":
            run("javac", "-d", directory, PROGRAMS / "Plain.java")
            return ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", directory, "Plain"]
        elif name == "node":
            return ["node", PROGRAMS / "plain.js"]
        return [target]

    yield build
    shutil.rmtree(directory)
