# SPDX-License-Identifier: Apache-2.0
"""CPython's own tests of sockets pass under the shim as without it, but for what
``cpython.csv`` gives a reason for (``docs/howto/rootless.rst`` shows it).

Of the Python that ``SLIMNET_CPYTHON`` names, or of this one. Minutes, and no part of CI:
``tox run -e cpython``.
"""

import csv
import fnmatch
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench import bench

pytestmark = [pytest.mark.root, pytest.mark.slow]

PYTHON = os.environ.get("SLIMNET_CPYTHON", sys.executable)
HERE = Path(__file__).parent
MODULES = ["test_socket", "test_select", "test_selectors", "test_ssl", "test_asyncio"]
#: Seconds in which nothing may happen before a test counts as one that hangs.
PATIENCE = 60
#: How often what differs is tried by itself: under load tests fail that do not mean it.
TRIES = 2


@pytest.fixture(autouse=True)
def _tests():
    """Debian has them in a package of their own."""
    look = "import importlib.util as u, sys; sys.exit(not u.find_spec('test.test_socket'))"
    if subprocess.run([PYTHON, "-c", look]).returncode:
        package = f"libpython3.{sys.version_info.minor}-testsuite"
        pytest.skip(
            f"no test.test_socket in {PYTHON}: install {package}, or name another Python"
            " (SLIMNET_CPYTHON)"
        )


class Run:
    """A module's tests in an endpoint, or in the host without the shim."""

    def __init__(self, made, number, module, host, directory, only=()):
        self.made, self.number = made, number
        self.words = [module, host, directory / "told", *only]
        self.directory = directory
        directory.mkdir()
        self.file.write_text("")
        (directory / "work").mkdir()
        self.ends = {}
        self.start()

    @property
    def file(self):
        return self.directory / "told"

    def start(self):
        place = self.made.endpoints[self.number] if self.number else self.made.hosts[0]
        shim = []
        if self.number:
            found = self.made.environment(self.number)
            shim = [f"{name}={found[name]}" for name in ("LD_PRELOAD", "SLIMNET_SOCKET")]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                place.command(
                    *("env", "-C", self.directory / "work", *shim),
                    *(PYTHON, HERE / "cpython.py", *self.words),
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.size, self.since = self.file.stat().st_size, time.monotonic()

    def goes_on(self):
        """Whether there is more to wait for. One that hangs, or takes the interpreter with it,
        is passed over."""
        if self.file.stat().st_size != self.size:
            self.size, self.since = self.file.stat().st_size, time.monotonic()
        status = self.process.poll()
        hangs = status is None and time.monotonic() - self.since > PATIENCE
        if status is None and not hangs:
            return True
        self.stop()
        before = dict(self.ends)
        self.ends = {}
        for line in self.file.read_text().splitlines():
            outcome, test = line.split("\t")
            self.ends[test] = outcome
        for test, outcome in self.ends.items():
            if outcome == "begins":
                self.ends[test] = before.get(test) or ("hangs" if hangs else "crashes")
        if status == 0:
            return False
        assert self.ends != before, (self.directory / "log").read_text()[-4000:]
        self.start()
        return True

    def stop(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def compare(made, module, where, directory, only=()):
    """What each test comes to, without and with the shim: side by side, on a host each."""
    directory.mkdir(parents=True)
    names = {"loopback": ("localhost",) * 2, "address": (str(made.hosts[0].address), "10.1.0.1")}
    runs = [
        Run(made, number, f"test.{module}", name, directory / what, only)
        for number, name, what in zip((None, 1), names[where], ("without", "with"), strict=True)
    ]
    try:
        going = list(runs)
        while going := [each for each in going if each.goes_on()]:
            time.sleep(0.2)
    finally:
        for each in runs:
            each.stop()
    without, with_ = (each.ends for each in runs)
    return {
        test: (without.get(test, "is absent"), with_.get(test, "is absent"))
        for test in without.keys() | with_.keys()
    }


def differing(found):
    return {test for test, (without, with_) in found.items() if without != with_}


@pytest.mark.parametrize(
    ("module", "where"),
    [
        *((module, "loopback") for module in MODULES),
        # The others name the loopback themselves.
        ("test_socket", "address"),
        ("test_ssl", "address"),
    ],
)
def test_the_same_as_without(programs, module, where, tmp_path):
    """On the loopback of an endpoint, and at its own address."""
    with bench(tmp_path, programs, 2, 2) as made:
        found = compare(made, module, where, tmp_path / "whole")
        differ = differing(found)
        for number in range(TRIES):
            if differ:
                again = compare(made, module, where, tmp_path / f"again{number}", sorted(differ))
                differ &= differing(again)
    passed = sum(each == ("passes", "passes") for each in found.values())
    print(f"{module}, {where}: {len(found)} tests, {passed} pass with and without")
    with (HERE / "cpython.csv").open(newline="") as file:
        known = [
            each
            for each in csv.DictReader(file)
            if each["module"] == module and each["where"] in (where, "both")
        ]
    unknown, seen = [], set()
    for test in sorted(differ):
        without, with_ = found[test]
        short = test.removeprefix(f"test.{module}.")
        reasons = [each for each in known if fnmatch.fnmatchcase(short, each["test"])]
        seen.update(each["test"] for each in reasons)
        print(f"{short}: {without}, with the shim it {with_}")
        if not reasons:
            unknown.append(short)
    assert not unknown
    # What a reason is given for, and no longer differs, is taken out of the list.
    assert {each["test"] for each in known} <= seen
    assert passed > 5
