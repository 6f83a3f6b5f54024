# SPDX-License-Identifier: Apache-2.0
"""What tests may not do, and what they must say."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = {path: path.read_text() for path in sorted(TESTS.rglob("*.py"))}
#: A data path's name, or what tells one from another, in a condition.
BACKEND = re.compile(
    r"\b(if|elif)\b.*\b(mode|backend|path\.backend)\b *[!=]= *[\"'](ebpf|kmod|noop)"
)


def marks(tree, name):
    """Every ``pytest.mark.NAME(...)`` and ``pytest.mark.NAME``."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == name
            and ast.unparse(node.value) == "pytest.mark"
        ):
            yield calls.get(id(node), node)


def capabilities(name):
    """What all ``needs`` or all ``lacks`` of the functional tests name."""
    return {
        ast.unparse(argument).removeprefix("Can.")
        for path in (TESTS / "functional").glob("test_*.py")
        if f"mark.{name}" in FILES[path]
        for call in marks(ast.parse(FILES[path]), name)
        for argument in call.args
    }


def test_nothing_reaches_into_a_backends_maps():
    """The kernel's are read where they are pinned (tests/ebpf/pinned.py)."""
    found = [path.name for path, text in FILES.items() if re.search(r"\._maps\b", text)]
    assert set(found) <= {Path(__file__).name}


def test_an_expected_failure_says_which():
    """``raises=``: any other failure is one. Strict: a success is one too."""
    import tomllib

    for path, text in FILES.items():
        if "mark.xfail" in text and path != Path(__file__):
            for mark in marks(ast.parse(text), "xfail"):
                given = {word.arg for word in getattr(mark, "keywords", ())}
                assert "raises" in given, f"{path.name}:{mark.lineno}"
    with (TESTS.parent / "pyproject.toml").open("rb") as file:
        assert tomllib.load(file)["tool"]["pytest"]["ini_options"]["xfail_strict"] is True


def test_what_a_data_path_cannot_is_tested_too():
    """For each thing that some test needs there is one that says what happens without."""
    needed, lacking = capabilities("needs"), capabilities("lacks")
    assert needed
    assert needed <= lacking, f"nothing is asserted without {sorted(needed - lacking)}"


@pytest.mark.parametrize("directory", ["functional", "policy"])
def test_no_test_asks_for_a_backends_name(directory):
    for path in sorted((TESTS / directory).glob("test_*.py")):
        lines = [line for line in FILES[path].splitlines() if BACKEND.search(line)]
        assert lines == [], path.name


def test_no_two_files_of_a_run_have_one_name():
    """pytest imports a file by its name alone, and collects no second one of that name."""
    runs = re.findall(
        r"\{posargs:(.*?tests/\w.*?)\}", (TESTS.parent / "tox.ini").read_text(), re.DOTALL
    )
    assert len(runs) > 3
    for run in runs:
        folders = re.findall(r"tests/(\w+)(?:\s|$)", run)
        names = [path.name for folder in folders for path in (TESTS / folder).rglob("test_*.py")]
        assert len(names) == len(set(names)), run
