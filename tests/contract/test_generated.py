# SPDX-License-Identifier: Apache-2.0
"""The generated files are those of the header, and a new layout needs a new version."""

import re
import shutil

import generate_contract
import pytest
from generate_contract import HEADER, HISTORY, MODULE, ROOT

from slimnet import contract

FILES = (HEADER, MODULE, HISTORY, generate_contract.FINGERPRINT)


@pytest.fixture
def tree(tmp_path):
    """A copy of the header and of what was generated from it."""
    for path in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def replace(path, old, new):
    text = path.read_text()
    assert re.search(old, text), f"{path} has no {old}"
    path.write_text(re.sub(old, new, text, count=1))


def test_nothing_is_stale(capsys):
    """The committed files are what the generator makes of the committed header."""
    assert generate_contract.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", [MODULE, generate_contract.FINGERPRINT])
def test_an_edited_file_is_stale(tree, path, capsys):
    """A generated file that was changed by hand is named."""
    with (tree / path).open("a") as file:
        file.write("\n")
    assert generate_contract.main(["--check", "--root", str(tree)]) == 1
    assert f"{path}: stale" in capsys.readouterr().err


def test_a_version_cannot_go_back(tree, capsys):
    """A header of an older version than the history's last one is refused."""
    with (tree / HISTORY).open("a") as file:
        file.write(f"{contract.ABI_VERSION + 1} 0123456789abcdef\n")
    assert generate_contract.main(["--root", str(tree)]) == 1
    assert f"is below {contract.ABI_VERSION + 1}" in capsys.readouterr().err


def test_a_comment_changes_nothing(tree):
    """The fingerprint is of the layout, not of the text."""
    replace(tree / HEADER, r"/\* The wire", "/* A new comment. The wire")
    assert generate_contract.main(["--check", "--root", str(tree)]) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"struct slim_limit \{", "struct slim_limit {\n\t__u64 more;"),
        (r"SLIM_INNER_PORT = \d+", "SLIM_INNER_PORT = 474"),
        (r"__be32 vni;", "__u32 vni;"),
        (r"__u32 action;", "__u32 deed;"),
    ],
    ids=["a field more", "another value", "another byte order", "another name"],
)
def test_a_new_layout_needs_a_new_version(tree, old, new, capsys):
    """Refused while SLIM_ABI_VERSION stays, taken once it is raised."""
    before = (tree / MODULE).read_text()
    replace(tree / HEADER, old, new)
    assert generate_contract.main(["--root", str(tree)]) == 1
    assert "raise SLIM_ABI_VERSION" in capsys.readouterr().err
    assert (tree / MODULE).read_text() == before

    version = contract.ABI_VERSION + 1
    replace(tree / HEADER, r"SLIM_ABI_VERSION = \d+", f"SLIM_ABI_VERSION = {version}")
    assert generate_contract.main(["--root", str(tree)]) == 0
    assert f"ABI_VERSION: Final[int] = {version}\n" in (tree / MODULE).read_text()
    history = (tree / HISTORY).read_text().splitlines()
    assert history[:-1] == (ROOT / HISTORY).read_text().splitlines()
    assert history[-1].startswith(f"{version} ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"__u32 pad;\n(\s+__be32 address)", r"__u16 pad;\n\1", "hole of 2 bytes before address"),
        (r"__u32 held_limit;", "unsigned long held_limit;", "fixed-width"),
        (r"__u8 direction;", "struct slim_cidr *direction;", "fixed-width"),
    ],
    ids=["a hole", "no fixed width", "a pointer"],
)
def test_what_compilers_may_disagree_on_is_refused(tree, old, new, message, capsys):
    """The message names the struct and the field."""
    replace(tree / HEADER, old, new)
    assert generate_contract.main(["--root", str(tree)]) == 1
    assert message in capsys.readouterr().err


def test_the_history_ends_with_this_version():
    """Versions rise, and no two of them have the same layout."""
    lines = [line.split() for line in (ROOT / HISTORY).read_text().splitlines()]
    versions = [int(version) for version, _ in lines]
    assert versions == sorted(set(versions))
    assert len({fingerprint for _, fingerprint in lines}) == len(lines)
    assert lines[-1] == [str(contract.ABI_VERSION), contract.FINGERPRINT_HEX]
