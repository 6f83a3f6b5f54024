# SPDX-License-Identifier: Apache-2.0
"""What the laboratory takes a data path for is what that says of itself."""

from __future__ import annotations

import os
import socket
import sys
import textwrap
from types import SimpleNamespace

import pytest
from lab import Can
from lab.fixtures import is_long
from lab.hands import Mother
from lab.paths import EVERY, WHOLE_HOSTS

from slimnet.exceptions import InvalidValue
from slimnet.linux import netns
from slimnet.model import Feature
from slimnet.place import Part
from slimnet.plugins import backend_names


def test_every_backend_is_in_the_laboratory():
    assert sorted(EVERY) == backend_names()


def test_what_the_backend_states(lab):
    stated = lab.hosts[0].backend.get("capabilities")
    assert stated.enforcing == lab.can(Can.ENFORCES)
    features = stated.features
    if not lab.can(Can.OWN_DEVICES):  # for endpoints that bring a namespace, which none does here
        features -= {Feature.PUBLISHED_DATAGRAMS}
    assert features == {each for each in Feature if lab.can(Can(each))}
    assert lab.wire in {each.wire for each in stated.wires}
    endpoint = lab.endpoint()
    assert lab.path.options or (Part.NETNS in stated.needs) == lab.can(Can.OWN_DEVICES)
    assert (Part.NETNS in stated.needs | stated.takes) == lab.can(Can.TAKES_NAMESPACES)
    assert (endpoint.netns is not endpoint.host.netns) == lab.can(Can.OWN_DEVICES)


CONTAINER, LONG = pytest.mark.container, pytest.mark.long


@pytest.mark.parametrize(
    ("marks", "params", "left"),
    [
        ([], None, False),
        ([LONG], None, True),
        ([LONG], {"engine": "podman"}, True),
        ([LONG(*WHOLE_HOSTS)], None, False),
        ([LONG(*WHOLE_HOSTS)], {"hosts": "noop"}, True),
        ([LONG(*WHOLE_HOSTS)], {"hosts": "ebpf"}, False),
        ([LONG("preload")], {"mode": "noop"}, False),
        ([], {"mode": "ebpf-netns"}, True),
        ([], {"mode": "noop"}, False),
        ([CONTAINER], {"mode": "noop"}, True),
        ([CONTAINER], {"mode": "preload"}, False),
        ([CONTAINER], {"mode": "plain"}, False),
    ],
)
def test_what_ci_leaves_out(marks, params, left):
    """What is long, on data paths for which it is, and what plain containers answer as well."""

    def named(name):
        return [each.mark for each in marks if each.name == name]

    item = SimpleNamespace(
        iter_markers=named, get_closest_marker=lambda name: next(iter(named(name)), None)
    )
    if params is not None:
        item.callspec = SimpleNamespace(params=params)
    assert is_long(item) == left


@pytest.mark.lacks(Can.TAKES_NAMESPACES)
def test_a_namespace_that_is_brought_is_refused(lab):
    """With the reason, before anything is made for it."""
    path = netns.DIRECTORY / f"slt-l{os.getpid()}"
    netns.create(path)
    try:
        before = lab.hosts[0].backend.status().endpoints
        with pytest.raises(InvalidValue, match=r"endpoint\.netns: wanted none \("):
            lab.endpoint(0, netns=path)
        assert lab.hosts[0].backend.status().endpoints == before
    finally:
        netns.remove(path)


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """A module in whose process a child has ended before anybody asks for its pidfd."""
    (tmp_path / "slow_pidfd.py").write_text(
        textwrap.dedent(
            """
            import os
            from pathlib import Path

            def late(pid, opened=os.pidfd_open):
                status = Path(f"/proc/{pid}/stat")
                while status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    pass
                return opened(pid)

            os.pidfd_open = late
            """
        )
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "slow_pidfd"


def test_a_process_that_ends_at_once_leaves_its_mother_alive(slow, tmp_path, capfd):
    mother = Mother([slow], {})
    for _ in range(3):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = mother.fork(theirs, None, tmp_path / "no cgroup", None, {})
            assert process.wait(10) == 0
    assert capfd.readouterr().err.count("No such file or directory") == 3
    mother.close()
