# SPDX-License-Identifier: Apache-2.0
"""The kernel module on Debian's kernels: built, loaded, held to the suites of suites.py, and
unloaded; whatever the kernel says of trouble meanwhile is a failure.

``SLIMNET_MODULE_SUITES=whole`` (``tox run -e module``) runs every clause and every test of the
laboratory instead, which takes hours; names of WHOLE run these parts of it, and
``SLIMNET_VM_KERNELS=6.12`` runs them on that kernel alone.
"""

import json
import os
import re
import sys

import module
import pytest
from guest import ROOT, TROUBLE, kernels
from suites import MODULE_SUITES, ON, on

pytestmark = [pytest.mark.root, pytest.mark.slow]

PYTEST = ["pytest", "--color=no", "-v", "--tb=short", "-p", "no:cacheprovider"]
LOAD = """
file={built}/$(uname -r)/slimnet.ko
for needed in $(modinfo -F depends $file | tr , ' '); do modprobe $needed || exit; done
insmod $file && cat /proc/modules
"""
UNLOAD = "rmmod slimnet && ! grep '^slimnet ' /proc/modules"
EVERY = sorted(ROOT.glob("tests/functional/test_*.py"))
#: Those of container engines, which an emulated machine takes minutes to start.
ENGINES = [path for path in EVERY if "from lab.engines import" in path.read_text()]
FILES = [path for path in EVERY if path not in ENGINES]
#: In parts of an hour or two.
WHOLE = {
    "clauses": ["tests/conformance/test_backends.py", "-k", "kmod"],
    "mixed": [
        *("tests/conformance/test_mixed.py", "tests/conformance/test_side_by_side.py"),
        *("-k", "kmod or (one_cluster and not announcements)"),
    ],
    "netlink": ["tests/kmod"],
    "policy": ["tests/policy/test_kernel.py", "-k", "kmod"],
    **{
        f"functional-{letters}": [
            *(str(path) for path in FILES if path.match(f"test_[{letters}]*")),
            *("-k", "kmod"),
        ]
        for letters in ("a-b", "c-g", "h-l", "m-o", "p", "q-r", "s-z")
    },
    "functional-engines": [*map(str, ENGINES), "-k", "kmod"],
}
CHOSEN = os.environ.get("SLIMNET_MODULE_SUITES", "")


def suites(kernel):
    if CHOSEN:
        names = WHOLE if CHOSEN == "whole" else CHOSEN.split()
        return {name: ([], WHOLE[name]) for name in names}
    return {
        name: (each.environment, each.arguments) for name, each in on(kernel, MODULE_SUITES).items()
    }


COMMANDS = {
    kernel: {
        "load": ["sh", "-c", LOAD.format(built=module.BUILT)],
        "check": [sys.executable, "-m", "slimnet.cli", "check", "--output=json"],
        **{
            name: [
                "env",
                "SLIMNET_PATIENCE=10",
                *environment,
                sys.executable,
                "-m",
                *PYTEST,
                *arguments,
            ]
            for name, (environment, arguments) in suites(kernel).items()
        },
        "unload": ["sh", "-c", UNLOAD],
        "trouble": ["sh", "-c", f"dmesg | grep -E '{TROUBLE}'"],
    }
    for kernel in ON
}


@pytest.fixture(scope="module")
def built():
    """Before the machines start: they see it."""
    for directory in kernels():
        module.build(directory)


@pytest.fixture
def loaded(built, guest):
    output, status, _ = guest.wait("load")
    assert status == 0, output
    assert re.search(r"^slimnet \d+ 0 ", output, re.MULTILINE)
    return guest


def test_it_says_what_it_can_do(loaded):
    output, status, _ = loaded.wait("check")
    assert status == 0, output
    (found,) = json.loads(output)
    (kmod,) = [each for each in found["backends"] if each["backend"] == "kmod"]
    assert kmod["answer"] == "yes"
    assert kmod["reason"].startswith(f"Linux {loaded.release}, module slimnet ")


@pytest.mark.parametrize(
    ("guest", "name"),
    [(kernel, name) for kernel in ON for name in suites(kernel)],
    indirect=["guest"],
)
def test_suite(loaded, name):
    """It passes, and nothing of it is skipped or left out for the lack of the module."""
    assert not re.search(r"left out:.* kernel module", loaded.passes(name))


def test_it_can_be_unloaded(loaded):
    output, status, _ = loaded.wait("unload")
    assert status == 0, output


def test_the_kernel_is_well(loaded):
    output, status, _ = loaded.wait("trouble")
    assert (output.strip(), status) == ("", 1)
