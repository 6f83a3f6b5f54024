# SPDX-License-Identifier: Apache-2.0
"""Directories that somebody could have made before us."""

import os

import pytest

from slimnet.exceptions import CapabilityMissing, StoreUnreachable
from slimnet.store.sqlite import SqliteStore
from slimnet.trusted import make_trusted, open_trusted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes directories of other users")

USER = 65534


def test_made_where_it_is_missing(tmp_path):
    """Also below one that is everybody's and sticky, as /tmp is."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    make_trusted(tmp_path / "tmp" / "one" / "two", 0o700)
    assert (tmp_path / "tmp" / "one" / "two").stat().st_mode & 0o777 == 0o700
    descriptor = open_trusted(tmp_path / "tmp" / "one" / "two")
    assert os.path.samestat(os.fstat(descriptor), (tmp_path / "tmp" / "one" / "two").stat())
    os.close(descriptor)
    with pytest.raises(FileNotFoundError):
        open_trusted(tmp_path / "none")


def test_what_everybody_uses_is_left_to_everybody(tmp_path):
    """Nobody is told to close /tmp to others, whom much on the machine would miss."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    with pytest.raises(CapabilityMissing, match=r"mode 1777\): take a directory of its own in /"):
        make_trusted(tmp_path / "tmp")


def test_links_of_ones_own_are_followed(tmp_path):
    """/var/run is one to /run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "run").symlink_to("../run")
    (tmp_path / "loop").symlink_to("loop")
    make_trusted(tmp_path / "var" / "run" / "slimnet")
    assert (tmp_path / "run" / "slimnet").is_dir()
    with pytest.raises(OSError, match="loop"):
        open_trusted(tmp_path / "loop")


@pytest.mark.parametrize(
    ("mode", "owner", "group", "said"),
    [
        (0o755, USER, 0, "belongs to user 65534"),
        (0o1755, USER, 0, "belongs to user 65534"),
        (0o777, 0, 0, r"others may write to .* \(mode 0777\): chmod go-w /"),
        (0o770, 0, USER, "others may write to"),
    ],
)
@pytest.mark.parametrize("below", ["", "below"])
def test_anybody_elses_are_refused(tmp_path, mode, owner, group, said, below):
    """The directory itself, and one on the way to it; nothing is made there."""
    there = tmp_path / "there"
    there.mkdir()
    os.chown(there, owner, group)
    there.chmod(mode)
    with pytest.raises(CapabilityMissing, match=said) as caught:
        make_trusted(there / below)
    assert "\n" not in str(caught.value)
    if not below:
        return
    with pytest.raises(StoreUnreachable, match=said):
        SqliteStore(there / below / "store.db")


def test_a_link_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    (tmp_path / "mine").mkdir()
    (tmp_path / "tmp" / "slimnet").symlink_to(tmp_path / "mine")
    os.chown(tmp_path / "tmp" / "slimnet", USER, USER, follow_symlinks=False)
    with pytest.raises(CapabilityMissing, match="belongs to user 65534"):
        open_trusted(tmp_path / "tmp" / "slimnet")


def test_the_last_one_is_nobody_elses_even_if_it_is_sticky(tmp_path):
    """What is made in it next could be there already."""
    tmp_path.chmod(0o1777)
    with pytest.raises(CapabilityMissing, match="mode 1777"):
        open_trusted(tmp_path)
