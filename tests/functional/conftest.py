# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the functional tests: the lab, and where its two ends are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lab import Endpoint, Lab


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "container: runs in plain containers too, which say what is right"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``lab`` is the eBPF data path; with ``@pytest.mark.container`` also plain
    containers, whose answers are the ones that slimnet is held to."""
    if "_lab" in metafunc.fixturenames:
        container = metafunc.definition.get_closest_marker("container") is not None
        metafunc.parametrize("_lab", ["ebpf", "plain"] if container else ["ebpf"], indirect=True, scope="module")
    if "place" in metafunc.fixturenames:
        metafunc.parametrize("place", ["two-hosts", "one-host"])


@pytest.fixture(scope="module")
def _lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    lab = Lab(request.param, hosts=3)
    yield lab
    lab.close()


@pytest.fixture
def lab(_lab: Lab) -> Iterator[Lab]:
    """Three hosts of a cluster and one machine that is not in it."""
    with _lab.test():
        yield _lab


@pytest.fixture
def ends(lab: Lab, place: str) -> tuple[Endpoint, Endpoint]:
    """A client and a server."""
    return lab.endpoint(0), lab.endpoint(0 if place == "one-host" else 1)
