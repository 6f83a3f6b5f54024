# SPDX-License-Identifier: Apache-2.0
"""Fixtures of every directory whose tests use the lab: a conftest imports them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from lab.cluster import Endpoint, Lab
from lab.paths import LAB_PATHS, NETNS, NOOP, PLAIN, Can, DataPath
from slimnet.linux import netns

__all__ = [
    "add_markers",
    "built",
    "ends",
    "is_long",
    "kernel_faults",
    "lab",
    "labs",
    "namespaces",
    "parametrize",
]

PROGRAMS = Path(__file__).parents[1] / "programs"
#: Of what Go compiles, its own library above all: minutes of it in a virtual machine.
COMPILED = Path(__file__).parents[3] / ".build" / "go"


def add_markers(config: pytest.Config) -> None:
    for line in (
        "container: runs in plain containers too, which say what is right",
        "fresh: the file's lab was no other file's, for its tests look into tables",
        "needs(*can): runs on the data paths that can",
        "lacks(*can): runs on the data paths that cannot, and says what happens there",
        "long(*paths): takes minutes (on these data paths); left out with SLIMNET_LONG=0",
    ):
        config.addinivalue_line("markers", line)


def modes(node: pytest.Item, paths: Mapping[str, DataPath]) -> list[str]:
    """The data paths that a test runs on, and whether it runs without one."""
    needed = {can for mark in node.iter_markers("needs") for can in mark.args}
    lacking = {can for mark in node.iter_markers("lacks") for can in mark.args}
    found = [name for name, path in paths.items() if needed <= path.can and not lacking & path.can]
    if not found:
        raise pytest.UsageError(f"{node.nodeid}: no data path of the lab is like that")
    plain = node.get_closest_marker("container") is not None
    return [*found, PLAIN] if plain else found


def is_long(item: pytest.Item) -> bool:
    """Whether ``tox run -e suites`` leaves it to an environment of its own: ``preload``,
    ``kafka``, ``netns``, which takes as long as any other data path, or ``noop``, where what
    plain containers answer as well is asked of the kernel's own sockets both times."""
    marks = list(item.iter_markers("long"))
    if any(not mark.args for mark in marks):
        return True
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return False
    paths = {path for mark in marks for path in mark.args} | {NETNS}
    if item.get_closest_marker("container") is not None:
        paths.add(NOOP)
    return not paths.isdisjoint(each for each in callspec.params.values() if isinstance(each, str))


def owns_namespace(mode: str, paths: Mapping[str, DataPath]) -> bool:
    return mode == PLAIN or Can.OWN_NAMESPACE in paths[mode].can


def parametrize(metafunc: pytest.Metafunc, paths: Mapping[str, DataPath] = LAB_PATHS) -> None:
    """``mode`` is each data path that is fit for the test; with ``@pytest.mark.container``
    also plain containers, whose answers are the ones that slimnet is held to."""
    places = ["two-hosts", "one-host"]
    if "mode" in metafunc.fixturenames:
        chosen = modes(metafunc.definition, paths)
        if "place" in metafunc.fixturenames:
            plain = metafunc.definition.get_closest_marker("container") is not None
            both = [
                (mode, place)
                for mode in chosen
                # Where a test is about sockets in a network namespace of their own, these
                # are all alike, wherever they are.
                for place in (places[:1] if plain and owns_namespace(mode, paths) else places)
            ]
            metafunc.parametrize(("mode", "place"), both, scope="module")
        else:
            metafunc.parametrize("mode", chosen, scope="module")
    elif "place" in metafunc.fixturenames:
        metafunc.parametrize("place", places)


class Labs:
    """The labs of one process of tests: started when the first test asks, shared by all."""

    def __init__(self) -> None:
        self._running: dict[str, Lab] = {}
        self._user: dict[str, Path] = {}

    def take(self, mode: str, node: pytest.Item) -> Lab:
        """The lab for a test."""
        user = self._user.get(mode)
        if node.get_closest_marker("fresh") is not None and user not in {None, node.path}:
            self.drop(mode)
        self._user[mode] = node.path
        if mode not in self._running:
            self._running[mode] = Lab(mode, hosts=3)
        return self._running[mode]

    def drop(self, mode: str) -> None:
        """The next test gets a new one."""
        self._user.pop(mode, None)
        lab = self._running.pop(mode, None)
        if lab is not None:
            lab.close()

    def close(self) -> None:
        for mode in list(self._running):
            self.drop(mode)


@pytest.fixture(scope="session")
def labs() -> Iterator[Labs]:
    labs = Labs()
    yield labs
    labs.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest, labs: Labs, mode: str) -> Iterator[Lab]:
    """Three hosts of a cluster and one machine that is not in it."""
    try:
        with labs.take(mode, request.node).test() as lab:
            yield lab
    except BaseException:
        labs.drop(mode)
        raise


@pytest.fixture
def ends(lab: Lab, place: str) -> tuple[Endpoint, Endpoint]:
    """A client and a server."""
    client = lab.endpoint(0, install=False)
    return client, lab.endpoint(0 if place == "one-host" else 1)


@pytest.fixture
def namespaces(lab: Lab) -> Iterator[Callable[[], Path]]:
    """Makes empty network namespaces, as engines do, for endpoints that go before them."""
    made: list[Path] = []

    def make() -> Path:
        path = netns.DIRECTORY / f"slt-b{os.getpid()}-{len(made)}"
        netns.create(path)
        made.append(path)
        return path

    yield make
    lab.remove(*lab.endpoints.values())
    for path in made:
        netns.remove(path)


#: What the kernel writes when something is wrong with it.
FAULT = re.compile(
    r"WARNING:|BUG|Oops|KASAN|refcount|\bleak|hung task|lockup|Call Trace|general protection"
)


@pytest.fixture
def kernel_faults() -> Iterator[Callable[[], list[str]]]:
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
def built() -> Iterator[Callable[[str], list[object]]]:
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
        language = name.removeprefix("names of ")
        program = "plain" if language == name else "names"
        if name in ("static", "musl"):
            compiler = {"static": "gcc", "musl": "musl-gcc"}[name]
            run(compiler, "-O2", "-Wall", "-Werror", "-static", PROGRAMS / "plain.c", "-o", target)
        elif name == "dynamic":
            run("gcc", "-O2", "-Wall", "-Werror", PROGRAMS / "plain.c", "-o", target)
        elif name in ("names of musl", "names of glibc"):
            compiler = ["musl-gcc", "-static"] if name == "names of musl" else ["gcc"]
            run(*compiler, "-O2", "-Wall", "-Werror", PROGRAMS / "names.c", "-o", target)
        elif name == "ring":
            run("gcc", "-O2", "-Wall", "-Werror", PROGRAMS / "ring.c", "-o", target, "-luring")
        elif name in ("fuzz", "torn", "v6only"):
            warnings = ("-Wall", "-Wextra", "-Werror")
            source = PROGRAMS / f"{name}.c"
            run("gcc", "-O2", *warnings, source, "-o", target, "-luring", "-pthread")
        elif language == "go":
            source, how = PROGRAMS / f"{program}.go", {"CGO_ENABLED": "0", "GOCACHE": str(COMPILED)}
            run("go", "build", "-o", target, source, **how)
        elif language == "java":
            run("javac", "-d", directory, PROGRAMS / f"{program.title()}.java")
            quick = ["-Xshare:auto", "-XX:TieredStopAtLevel=1"]
            return ["java", *quick, "-cp", directory, program.title()]
        elif language == "node":
            return ["node", PROGRAMS / f"{program}.js"]
        return [target]

    yield build
    shutil.rmtree(directory)
