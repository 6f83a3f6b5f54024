# SPDX-License-Identifier: Apache-2.0
"""The programs as this machine compiles them, and hosts to run them on."""

import pytest

pytest.importorskip("slimnet_preload")

from bench import bench, compile_test, make


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    return make(tmp_path_factory.mktemp("preload") / "gcc")


@pytest.fixture(scope="session")
def identity(programs):
    return compile_test("identity", programs)


@pytest.fixture
def one(programs, tmp_path):
    """A host with the endpoints 1 to 4."""
    with bench(tmp_path, programs, 1, 4) as made:
        yield made


@pytest.fixture
def two(programs, tmp_path):
    """Two hosts: the odd endpoints of 1 to 4 on the second, the even ones on the first."""
    with bench(tmp_path, programs, 2, 4) as made:
        yield made
