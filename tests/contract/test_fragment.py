# SPDX-License-Identifier: Apache-2.0
"""A change of what is shipped brings its news fragment: ``.ci/fragment`` in repositories made up
for it."""

import re
import shutil
import subprocess
import tomllib

import pytest
from generate_contract import ROOT

FRAGMENT = "changelog.d/12.feature.md"


def git(directory, *words):
    subprocess.run(["git", "-C", directory, *words], check=True, capture_output=True)


def write(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.read_text() + "more\n" if path.exists() else "one\n")


def commit(directory, *names):
    write(directory, *names)
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "a change")


@pytest.fixture
def tree(tmp_path):
    """A branch ``work`` at the one commit of ``main``, which has an old fragment."""
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "config", "user.name", "somebody")
    git(tmp_path, "config", "user.email", "somebody@example.org")
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/fragment", tmp_path / ".ci")
    commit(tmp_path, "changelog.d/README.md", "changelog.d/3.bugfix.md", "src/slimnet/model.py")
    git(tmp_path, "switch", "-q", "-c", "work")
    return tmp_path


def asked(directory, *words):
    done = subprocess.run(
        [directory / ".ci/fragment", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    assert (done.returncode == 1) == bool(done.stderr)
    return done.stderr


@pytest.mark.parametrize(
    "shipped", ["src/slimnet/new.py", "backends/noop/pyproject.toml", "pyproject.toml", "a/new/one"]
)
def test_what_is_shipped_needs_one(tree, shipped):
    """Committed or not; and the file that changed is named."""
    write(tree, shipped)
    assert shipped in asked(tree)
    commit(tree)
    assert shipped in asked(tree)
    commit(tree, FRAGMENT)
    assert asked(tree) == ""


def test_one_is_found_among_many(tree):
    """Whoever writes them has not ended when it is found; the last is of no commit yet."""
    commit(tree, FRAGMENT, *(f"src/slimnet/{'a' * 60}/{number}.py" for number in range(1000)))
    write(tree, "src/slimnet/new.py")
    assert asked(tree) == ""


def test_an_old_fragment_may_be_continued(tree):
    commit(tree, "src/slimnet/model.py", "changelog.d/3.bugfix.md")
    assert asked(tree) == ""


def test_a_fragment_that_went_is_none(tree):
    (tree / "changelog.d/3.bugfix.md").unlink()
    commit(tree, "src/slimnet/model.py")
    assert "src/slimnet/model.py" in asked(tree)


def test_a_release_has_the_changelog_instead(tree):
    (tree / "changelog.d/3.bugfix.md").unlink()
    commit(tree, "pyproject.toml", "CHANGELOG.md")
    assert asked(tree) == ""


def test_pages_and_tests_need_none(tree):
    commit(tree, "docs/design.rst", "tests/unit/test_new.py", "kernel/test/way.c", "README.md",
           "CONTRIBUTING.md", "tox.ini", ".editorconfig", ".ci/run")  # fmt: skip
    assert asked(tree) == ""


@pytest.mark.parametrize("name", ["12.md", "12.feat.md", "feature.md", "12.feature.txt"])
def test_a_name_has_an_issue_and_a_kind(tree, name):
    write(tree, f"changelog.d/{name}")
    assert f"changelog.d/{name}" in asked(tree)


def test_what_others_changed_meanwhile_is_not_ours(tree):
    """The branch is compared with where it left, not with what main is now."""
    git(tree, "switch", "-q", "main")
    commit(tree, "src/slimnet/theirs.py")
    git(tree, "switch", "-q", "work")
    commit(tree, "docs/design.rst")
    assert asked(tree) == ""


def test_a_base_can_be_named(tree):
    commit(tree, "src/slimnet/new.py")
    assert asked(tree, "HEAD") == ""
    assert "no-such" in asked(tree, "no-such")


def test_without_a_base_there_is_nothing_to_compare(tree):
    git(tree, "branch", "-q", "-D", "main")
    write(tree, "src/slimnet/new.py")
    assert asked(tree) == ""


def test_the_kinds_are_those_of_the_readme():
    """And towncrier's own, since its configuration names no others."""
    script = (ROOT / ".ci/fragment").read_text()
    (kinds,) = re.findall(r"\((\w+(?:\|\w+)+)\)\(\\", script)
    page = (ROOT / "changelog.d/README.md").read_text()
    (line,) = re.findall(r"Kinds: (.+?)\.", page)
    assert kinds.split("|") == re.findall(r"`(\w+)`", line)
    towncrier = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    assert {"type", "section"}.isdisjoint(towncrier)
