# SPDX-License-Identifier: Apache-2.0
"""Every source file and what it is for, in its own words.

``sources``  each directory's files with the first paragraph of their docstring or, in C, of the
             comment that they start with

A file that says nothing is a warning.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_ROOT = Path(__file__).parents[2]
#: Where the code is.
HOMES = ("src/slimnet", "backends", "stores", "kernel")
_SUFFIXES = (".c", ".h", ".py")
_SKIPPED = {"__pycache__", "build", "dist"}


def directories() -> Iterator[str]:
    """The directories that hold code, relative to the root of the repository."""
    for home in HOMES:
        for path in sorted({_ROOT / home, *(_ROOT / home).rglob("*/")}):
            if _SKIPPED.isdisjoint(path.parts) and any(_files(path)):
                yield path.relative_to(_ROOT).as_posix()


def _files(directory: Path) -> list[Path]:
    return sorted(
        path for path in directory.iterdir() if path.suffix in _SUFFIXES and path.stat().st_size
    )


def purpose(path: Path) -> str:
    """What a file says of itself first, on one line; empty where it says nothing."""
    text = path.read_text()
    if path.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        comments = re.findall(r"^(?:/\*\n)?( ?/?\*.*?)\*/", text, re.MULTILINE | re.DOTALL)
        lines = next((each for each in comments if "SPDX" not in each), "").splitlines()
        said = "\n".join(line.strip().removeprefix("/").lstrip("*").strip() for line in lines)
    return " ".join(said.strip().partition("\n\n")[0].split())


class Sources(Directive):
    """``.. sources::``"""

    def run(self) -> list[nodes.Node]:
        holder = nodes.container()
        for directory in directories():
            lines = [f".. rubric:: {directory}", "", ".. list-table::", "   :widths: 30 70", ""]
            for path in _files(_ROOT / directory):
                said = purpose(path)
                if not said:
                    _LOG.warning("%s does not say what it is for", path.relative_to(_ROOT))
                # What C's comments have in single backquotes is code, not a role of Sphinx.
                shown = re.sub(r"(?<![`:\w])`([^`:]+)`(?!`)", r"``\1``", said)
                lines += [f"   * - ``{path.name}``", f"     - {shown or '?'}"]
            self.state.nested_parse(StringList([*lines, ""], source=directory), 0, holder)
        return holder.children


def setup(app: Sphinx) -> dict[str, object]:
    """Called by Sphinx."""
    app.add_directive("sources", Sources)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
