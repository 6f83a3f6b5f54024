# SPDX-License-Identifier: Apache-2.0
"""What is known of Linux is known in one room, and that room knows nothing of slimnet."""

import ast
from pathlib import Path

import pytest

import slimnet

SOURCE = Path(slimnet.__file__).parent
ROOT = SOURCE.parent.parent
MODULES = [*SOURCE.rglob("*.py"), *(ROOT / "backends").glob("*/src/**/*.py")]


def imports(path):
    """The modules that a file names in its imports, wherever those stand."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{each.name}" for each in node.names)


@pytest.mark.parametrize(
    ("fact", "places"),
    [
        # The second hides every kernel file system from an endpoint, by name.
        ('"cgroup2"', {"linux/cgroup.py", "sandbox/mounts.py"}),
        ('"cgroup.events"', {"linux/cgroup.py"}),
        ('"cgroup.kill"', {"linux/cgroup.py"}),
        ('/mountinfo"', {"linux/mounts.py"}),
        (
            "libc.setns(",
            {
                *("engines/hook.py", "linux/libc.py", "linux/netns.py"),
                *("sandbox/entrance.py", "sandbox/inside.py"),
            },
        ),
        ('/{pid}/stat"', {"linux/process.py"}),
        # What a backend could leave behind anywhere below it.
        ('"/proc/sys', {"linux/sysctl.py", "testing/_snapshot.py"}),
        ("NETLINK_SOCK_DIAG", {"linux/sock_diag.py"}),
        ("SO_NETNS_COOKIE", {"linux/netns.py"}),
    ],
)
def test_a_fact_stands_once(fact, places):
    found = {path for path in MODULES if fact in path.read_text()}
    assert found == {SOURCE / place for place in places}


def test_room_knows_no_slimnet():
    own = {"slimnet.linux", "slimnet.exceptions"}
    for path in (SOURCE / "linux").glob("*.py"):
        for name in imports(path):
            if name.startswith("slimnet"):
                assert name.rpartition(".")[0] in own, f"{path} imports {name}"


@pytest.mark.parametrize("room", ["testing", "testbed"])
def test_laboratory_stands_on_no_backend(room):
    """The fallback overlay is a data path, and what tests data paths needs none."""
    found = list((SOURCE / room).glob("*.py"))
    assert len(found) > 3
    for path in found:
        assert not [each for each in imports(path) if each.startswith("slimnet.fallback")], path
