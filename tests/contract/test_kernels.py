# SPDX-License-Identifier: Apache-2.0
"""Which kernels run what is said where people look, as the tests have it."""

import re
import runpy

import pytest
from generate_contract import ROOT

NAMED = runpy.run_path(str(ROOT / "tests/vm/suites.py"))
SUITES, KERNELS = NAMED["SUITES"] | NAMED["MODULE_SUITES"], NAMED["KERNELS"]


def rows():
    """The page's table: cells of each row."""
    text = (ROOT / "docs/howto/machines.rst").read_text()
    table = text[text.index("Which kernels run what") : text.index("What a kernel lacks:")]
    return [
        [" ".join(cell.split()) for cell in re.split(r"\n     - ", row)]
        for row in re.split(r"\n   \* - ", table)[2:]
    ]


def test_the_page_has_the_suites():
    wanted = [
        [
            ", ".join(each.kernels),
            name,
            {path for path in each.arguments if "/" in path},
            each.reason,
        ]
        for name, each in SUITES.items()
    ]
    found = [
        [first, name, set(re.findall(r"``(tests/[^`]+)``", paths)), reason]
        for first, name, paths, reason in rows()
    ]
    assert found == wanted


@pytest.mark.parametrize("name", SUITES)
def test_what_runs_is_there(name):
    paths = [path for path in SUITES[name].arguments if path.startswith("tests/")]
    assert paths
    assert [path for path in paths if not (ROOT / path.partition("::")[0]).exists()] == []


def test_the_first_page_names_the_kernels():
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"\*\*Linux 5\.19.*?(?=\n- |\n\n|\Z)", readme, re.DOTALL)
    assert [version for version in KERNELS if not re.search(rf"\b{version}\b(?!\d)", line)] == []
