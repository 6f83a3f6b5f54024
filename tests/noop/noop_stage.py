# SPDX-License-Identifier: Apache-2.0
"""A stage for the fallback overlay's own objects, where the backend ``noop`` works."""

import contextlib

import pytest

from slimnet.linux import netns
from slimnet.model import Answer
from slimnet.testing._stage import NETWORK, Stage, probed

noop = pytest.importorskip("slimnet_noop")


@contextlib.contextmanager
def staged(*endpoints, hosts=1):
    """The first tables are in force on these hosts, with these endpoints."""
    found = probed(noop.NoopBackend)
    if found.answer is not Answer.YES:
        pytest.skip(f"noop: {found.reason}")
    with Stage(noop.NoopBackend, {}, None) as stage:
        for host in range(hosts):
            stage.open(host)
        stage.attach(*endpoints)
        stage.install(1)
        yield stage


def router(stage, host=0):
    """The namespace of the network's router there."""
    return netns.DIRECTORY / f"slimnet.{stage.context(host).instance}.{NETWORK.vni}"
