# SPDX-License-Identifier: Apache-2.0
"""The generated files are those of the headers, and a new layout needs a new version."""

import re
import shutil

import generate_contract
import pytest
from generate_contract import CONTRACTS, EBPF, HISTORY, PRELOAD, REASONS, ROOT, SHARED, UAPI

from slimnet import contract
from slimnet_ebpf import contract as private

GENERATED = [HISTORY, REASONS]
GENERATED += [path for each in CONTRACTS for path in (each.module, each.fingerprint) if path]
WRITTEN = sorted(path.relative_to(ROOT) for path in (ROOT / UAPI / "slimnet").glob("*.h"))
FILES = {*GENERATED, *WRITTEN, *EBPF.headers, *PRELOAD.headers}
TABLES = UAPI / "slimnet" / "tables.h"


@pytest.fixture
def tree(tmp_path):
    """A copy of the headers and of what was generated from them."""
    for path in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def replace(path, old, new):
    text = path.read_text()
    assert re.search(old, text), f"{path} has no {old}"
    path.write_text(re.sub(old, new, text, count=1))


def test_nothing_is_stale(capsys):
    """The committed files are what the generator makes of the committed headers."""
    assert generate_contract.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", GENERATED[1:])
def test_an_edited_file_is_stale(tree, path, capsys):
    """A generated file that was changed by hand is named."""
    text = (tree / path).read_text()
    (tree / path).write_text(text.replace(text.split()[-1], "9"))
    assert generate_contract.main(["--check", "--root", str(tree)]) == 1
    assert f"{path}: stale" in capsys.readouterr().err


def test_a_version_cannot_go_back(tree, capsys):
    """A header of an older version than the history's last one is refused."""
    with (tree / HISTORY).open("a") as file:
        file.write(f"{contract.SLIM_ABI_VERSION + 1} 0123456789abcdef\n")
    assert generate_contract.main(["--root", str(tree)]) == 1
    assert f"is below {contract.SLIM_ABI_VERSION + 1}" in capsys.readouterr().err


def test_a_comment_changes_nothing(tree):
    """The fingerprint is of the layout, not of the text."""
    replace(tree / TABLES, r"/\* In place", "/* A new comment. In place")
    assert generate_contract.main(["--check", "--root", str(tree)]) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"struct slim_limit \{", "struct slim_limit {\n\t__u64 more;"),
        (r"SLIM_SERVICE_SLOTS = \d+", "SLIM_SERVICE_SLOTS = 1019"),
        (r"__be32 vni;", "__u32 vni;"),
        (r"__u32 action;", "__u32 deed;"),
    ],
    ids=["a field more", "another value", "another byte order", "another name"],
)
def test_a_new_layout_needs_a_new_version(tree, old, new, capsys):
    """Refused while SLIM_ABI_VERSION stays, taken once it is raised."""
    before = (tree / SHARED.module).read_text()
    replace(tree / TABLES, old, new)
    assert generate_contract.main(["--root", str(tree)]) == 1
    assert "raise SLIM_ABI_VERSION" in capsys.readouterr().err
    assert (tree / SHARED.module).read_text() == before

    version = contract.SLIM_ABI_VERSION + 1
    replace(tree / TABLES, r"SLIM_ABI_VERSION = \d+", f"SLIM_ABI_VERSION = {version}")
    assert generate_contract.main(["--root", str(tree)]) == 0
    assert f"SLIM_ABI_VERSION: Final[int] = {version}\n" in (tree / SHARED.module).read_text()
    history = (tree / HISTORY).read_text().splitlines()
    assert history[:-1] == (ROOT / HISTORY).read_text().splitlines()
    assert history[-1].startswith(f"{version} ")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"__u16 pad;\n(\s+__u32 rule)", r"__u8 pad;\n\1", "hole of 1 bytes before rule"),
        (r"__u32 affinity;", "unsigned long affinity;", "fixed-width"),
        (r"__u8 direction;", "struct slim_cidr *direction;", "fixed-width"),
    ],
    ids=["a hole", "no fixed width", "a pointer"],
)
def test_what_compilers_may_disagree_on_is_refused(tree, old, new, message, capsys):
    """The message names the struct and the field."""
    replace(tree / TABLES, old, new)
    assert generate_contract.main(["--root", str(tree)]) == 1
    assert message in capsys.readouterr().err


def test_the_history_ends_with_this_version():
    """Versions rise, and no two of them have the same layout."""
    lines = [line.split() for line in (ROOT / HISTORY).read_text().splitlines()]
    versions = [int(version) for version, _ in lines]
    assert versions == sorted(set(versions))
    assert len({fingerprint for _, fingerprint in lines}) == len(lines)
    assert lines[-1] == [str(contract.SLIM_ABI_VERSION), contract.FINGERPRINT_HEX]


def test_private_state_is_nobody_elses_business(tree):
    """A change of what the eBPF data path keeps for itself: its own fingerprint is another,
    and what every other data path is built from stays as it is, byte by byte."""
    before = {path: (tree / path).read_text() for path in FILES}
    replace(tree / EBPF.headers[0], r"struct slim_held \{", "struct slim_held {\n\t__u32 more;")
    assert generate_contract.main(["--root", str(tree)]) == 0
    changed = {path for path in FILES if (tree / path).read_text() != before[path]}
    assert changed == {*EBPF.headers, EBPF.module, EBPF.fingerprint}
    assert private.FINGERPRINT_HEX not in (tree / EBPF.fingerprint).read_text()


def test_no_header_that_all_share_reads_a_private_one():
    for path in WRITTEN:
        included = set(re.findall(r"#include ([<\"].*[>\"])", (ROOT / path).read_text()))
        assert included <= {"<linux/types.h>"} | {f'"{each.name}"' for each in WRITTEN}, path
