# SPDX-License-Identifier: Apache-2.0
"""Prose is wrapped: a page can be read, compared and merged line by line."""

import re

import pytest
from generate_contract import ROOT

COLUMNS = 100
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / "changelog.d/README.md",
    *sorted(
        path
        for path in (ROOT / "docs").rglob("*.rst")
        if "_build" not in path.relative_to(ROOT).parts
    ),
]
# Directives whose body stands as it is written.
LITERAL = re.compile(r"\.\. (code-block|doctest|testcode|testoutput|parsed-literal)::")


def prose_of_markdown(lines):
    """Numbered lines outside of fences and tables."""
    fenced = False
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("|"):
            yield number, line


def prose_of_rest(lines):
    """Numbered lines outside of literal blocks and of tables drawn with characters."""
    literal = None  # the indentation of what a literal block belongs to
    for number, line in enumerate(lines, 1):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if literal is not None and text and indent <= literal:
            literal = None
        if literal is None:
            if LITERAL.match(text) or (text.endswith("::") and not text.startswith("..")):
                literal = indent
            if not re.match(r"[+|=]|>>> ", text):
                yield number, line


def too_long(path):
    lines = path.read_text().splitlines()
    prose = prose_of_rest if path.suffix == ".rst" else prose_of_markdown
    return [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} columns"
        for number, line in prose(lines)
        if len(line) > COLUMNS and "://" not in line
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_wrapped(path):
    """At 100 columns, but for addresses, tables, and what is quoted as it is."""
    assert too_long(path) == []


def test_a_long_line_would_be_noticed():
    """In a paragraph, a list and a cell; not in a literal block or a table."""
    long = "word " * 25
    page = f"""\
{long}
- {long}
     - {long}

An example::

   {long}

.. code-block:: console

   $ {long}

| {long} |
"""
    prose = prose_of_rest(page.splitlines())
    assert [number for number, line in prose if len(line) > COLUMNS] == [1, 2, 3]
    fenced = [long, "```console", long, "```", f"| {long} |"]
    assert [number for number, line in prose_of_markdown(fenced) if len(line) > COLUMNS] == [1]
