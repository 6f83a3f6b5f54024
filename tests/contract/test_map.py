# SPDX-License-Identifier: Apache-2.0
"""The map of the code is of this code: docs/contributing/map.rst."""

import ast
import re
import sys

from generate_contract import ROOT

sys.path.insert(0, str(ROOT / "docs/_ext"))

import sources

PAGES = ROOT / "docs/contributing"
MAP = (PAGES / "map.rst").read_text()
# The rows' directories, in their order.
ROWS = re.findall(r"^   \* - ``(\S+)/``$", MAP, re.MULTILINE)
# Modules directly in slimnet that are a library's face to what the packages do.
FACES = {"slimnet", "slimnet.node", "slimnet.attached"}


def test_every_directory_of_code_has_one_row():
    """And no row is of a directory that went."""
    assert sorted(ROWS) == sorted(sources.directories())


def test_files_that_it_names_are_there():
    """Each beginning, in its row's directory."""
    rows = re.findall(
        r"^   \* - ``(\S+)/``\n(?:     .*\n)*?     - ((?:``[\w.]+``(?:, )?)+)$", MAP, re.MULTILINE
    )
    assert len(rows) == len(ROWS)
    named = [f"{row}/{name}" for row, names in rows for name in re.findall(r"[\w.]+", names)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_paths_in_the_text_are_there():
    """In these pages ``agent/agent.py`` is in ``src/slimnet`` or in a backend's ``src``, and
    ``compile/rulebook.py`` in a package that the page is about."""
    homes = (
        ROOT,
        ROOT / "src/slimnet",
        *ROOT.glob("src/slimnet/*/"),
        *ROOT.glob("backends/*/src"),
        *ROOT.glob("stores/*/src"),
    )
    lost = [
        f"{page.name}: {path}"
        for page in sorted(PAGES.glob("*.rst"))
        for path in re.findall(r"``(\w[\w./]*/[\w.]*)``", page.read_text())
        if not any((home / path).exists() for home in homes)
    ]
    assert lost == []


def test_every_suite_is_told():
    """In the short form, and in the long one."""
    suites = {f"tests/{path.name}" for path in ROOT.glob("tests/[a-z]*/")}
    for page in (ROOT / "CONTRIBUTING.md", PAGES / "tests.rst"):
        assert suites <= set(re.findall(r"`(tests/\w+)`", page.read_text())), page.name


def test_the_tests_that_are_run_as_examples_are_there():
    """A command that selects no test would be the first thing that a newcomer sees."""
    text = (ROOT / "CONTRIBUTING.md").read_text() + (PAGES / "tests.rst").read_text()
    examples = re.findall(r"(tests/\w+/test_\w+\.py)(?: -k (\w+))?", text)
    assert len(examples) > 2
    lost = [
        (path, word)
        for path, word in examples
        if not re.search(rf"^def test_\w*{word}", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert lost == []


def packages():
    """Package of slimnet to the packages and modules of slimnet that it imports."""
    found = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        module = module.removesuffix(".__init__")
        home = path.parent.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                if name.startswith("slimnet.") and module not in FACES:
                    found.setdefault((home, module), set()).add(name)
    return found


def home_of(name):
    """The row of a dotted name: its package's directory, or the root's for a module there."""
    parts = name.split(".")
    while parts:
        path = "/".join(("src", *parts))
        if path in ROWS:
            return path
        parts.pop()
    raise AssertionError(f"{name} is in no row")


def test_a_package_imports_from_rows_above_its_own():
    """The order of the table is the order of the floors."""
    agent = ROWS.index("src/slimnet/agent")
    upwards = set()
    for (home, module), names in packages().items():
        own = ROWS.index(home)
        for name in names:
            row = home_of(name)
            # A package may gather what is in packages within it.
            within = home != "src/slimnet" and row.startswith(f"{home}/")
            if (ROWS.index(row) > own and not within) or (name in FACES and own < agent):
                upwards.add(f"{module} imports {name}")
    assert upwards == set()
