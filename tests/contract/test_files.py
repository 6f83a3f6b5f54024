# SPDX-License-Identifier: Apache-2.0
"""Files that other tools read: what can be checked without running them is."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import click
import pytest
from generate_contract import ROOT

from slimnet.cli import slimnet

sys.path.insert(0, str(ROOT / "tests/vm"))

from guest import kernels, release  # of another directory's tests

PYTHON, C = "Apache-2.0", "GPL-2.0-only OR BSD-2-Clause"
# It calls what the kernel gives to modules of its own licence only.
MODULE = "GPL-2.0-only"
# Directories that are not ours: made by tools, or by whoever works in the tree.
SKIPPED = {".build", ".git", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox",
           ".venv", "__pycache__", "_build", "dist", "LICENSES", "node_modules"}  # fmt: skip


def files():
    for directory, below, names in os.walk(ROOT):
        below[:] = sorted(set(below) - SKIPPED)
        for name in sorted(names):
            yield (ROOT / directory / name).relative_to(ROOT)


def tool(name):
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}; ./testbed/setup installs it")
    return name


def run(*command, **environment):
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_source_says_its_licence_in_its_first_lines():
    """Line 1, or line 2 behind a #! line; what users copy from the docs needs none."""
    lacking = []
    for path in files():
        if path.is_relative_to("docs/examples"):
            continue
        if path.suffix in (".c", ".h"):
            licence = MODULE if path.is_relative_to("kernel/module") else C
        elif path.suffix in (".py", ".nix", ".toml", ".sh") or path.name in (
            "setup",
            "test",
            "demo",
        ):
            licence = PYTHON
        else:
            continue
        lines = (ROOT / path).read_text().splitlines()[:2]
        if not any(
            re.search(rf"SPDX-License-Identifier: {licence}( \*/)?$", line) for line in lines
        ):
            lacking.append(str(path))
    assert lacking == []


def test_licence_texts_are_there():
    """One for each identifier that a file may name."""
    assert {path.stem for path in (ROOT / "LICENSES").iterdir()} == {
        PYTHON,
        *C.split(" OR "),
    }


def test_the_flake_parses():
    """It cannot be built here: there is no Nix store."""
    run(tool("nix-instantiate"), "--parse", "flake.nix", NIX_STATE_DIR="/tmp", NIX_STORE_DIR="/tmp")


def test_the_flake_has_what_the_distribution_needs():
    """The library's dependencies and the command line's, no more and no less."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["cli"]]
    flake = (ROOT / "flake.nix").read_text()
    listed = re.search(
        r"slimnet-overlay = .*?dependencies = with python; \[(.*?)\]", flake, re.DOTALL
    )
    assert set(listed[1].split()) == {re.match(r"[\w-]+", each)[0] for each in needed}


def test_the_vagrantfile_is_valid(tmp_path):
    """It cannot be brought up here: there is no box and no hypervisor."""
    run(
        tool("vagrant"),
        "validate",
        "--ignore-provider",
        VAGRANT_CWD=str(ROOT / "testbed"),
        VAGRANT_HOME=str(tmp_path),
        VAGRANT_DOTFILE_PATH=str(tmp_path / "dotfile"),
    )


@pytest.mark.parametrize("name", ["testbed/Vagrantfile", "flake.nix"])
def test_what_two_machines_are_told(name):
    """Both begin a cluster on etcd; every command and option in them is one."""
    word = "agent|cluster|host|network|run|status"
    told = re.findall(
        rf"""\bslimnet ((?:{word})\b(?:[^\n'"|&]|"[^"\n]*")*)""", (ROOT / name).read_text()
    )
    assert any(re.match(r'cluster init --store "?etcd://', each) for each in told), told
    for each in told:
        command, words = slimnet, shlex.split(each)
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0))
            assert command is not None, each
        command.make_context("slimnet", words)


def test_the_vagrantfile_is_valid_shell(tmp_path):
    """shellcheck finds nothing in what its machines run."""
    scripts = re.findall(
        r"<<~'SHELL'\n(.*?)\nSHELL", (ROOT / "testbed/Vagrantfile").read_text(), re.DOTALL
    )
    assert len(scripts) == 2
    for number, script in enumerate(scripts):
        path = tmp_path / f"{number}.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        run(tool("shellcheck"), str(path))


@pytest.mark.parametrize(
    "script", ["testbed/setup", "testbed/test", "testbed/demo", ".ci/run", ".ci/fragment"]
)
def test_a_script_is_clean(script):
    """Executable, and shellcheck finds nothing."""
    assert os.access(ROOT / script, os.X_OK)
    run(tool("shellcheck"), script)


def test_shared_headers_are_clean():
    """gcc, clang and sparse find nothing in them."""
    tool("sparse")
    run("make", "-C", "kernel", "lint")


def test_every_ignored_lint_rule_says_why():
    """A rule is switched off with a reason beside it."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    ignored = tomllib.loads("\n".join(lines))["tool"]["ruff"]["lint"]["ignore"]
    reasons = {
        match[1]: match[2] for line in lines if (match := re.match(r'    "(\w+)", +# (.+)', line))
    }
    assert [rule for rule in ignored if not reasons.get(rule)] == []


@pytest.mark.parametrize("directory", kernels(), ids=lambda path: path.name)
def test_the_kernel_module_is_written_as_the_kernel_is(directory, tmp_path):
    """checkpatch and sparse find nothing in it, against each kernel's headers."""
    tool("sparse")
    checkpatch = ROOT / ".build/checkpatch/checkpatch.pl"
    if not checkpatch.exists():
        pytest.skip("needs checkpatch; ./testbed/setup fetches it")
    (image,) = directory.glob("boot/vmlinuz-*")
    headers = directory / "usr/src" / f"linux-headers-{release(image)}"
    for name in ("module", "uapi"):
        shutil.copytree(ROOT / "kernel" / name, tmp_path / name)
    make = ["make", "-C", tmp_path / "module", f"KERNEL={headers}", f"CHECKPATCH={checkpatch}"]
    run(*make, "lint")
    main = tmp_path / "module/main.c"
    main.write_text(main.read_text().replace("if (!place)\n", "if( !place )\n", 1))
    assert subprocess.run([*make, "lint"], capture_output=True, check=False).returncode != 0
