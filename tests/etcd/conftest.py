# SPDX-License-Identifier: Apache-2.0
"""etcd servers for a test: real ones, on addresses of the loopback that are nobody else's."""

import contextlib
import itertools
import subprocess
from pathlib import Path

import pytest
from servers import Authority, own_address

from slimnet.testbed.etcd import Etcd
from slimnet_etcd import EtcdStore

_ports = itertools.count(2379, 10)


@pytest.fixture
def serve(tmp_path):
    """Starts servers: how many, and :class:`Etcd`'s own arguments."""
    started = []

    def start(members=1, **more):
        directory = tmp_path / f"etcd{len(started)}"
        started.append(Etcd(directory, own_address(), members, port=next(_ports), **more))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.remove()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def store(server):
    with EtcdStore.open(server.url) as opened:
        yield opened


@pytest.fixture
def authority(tmp_path):
    return lambda name: Authority(tmp_path, name)


@pytest.fixture
def clock(tmp_path):
    """What is started meanwhile has a clock that is wrong by so many hours."""
    library = tmp_path / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)

    @contextlib.contextmanager
    def wrong(hours):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(library))
            patch.setenv("CLOCK_OFF", str(hours * 3600))
            yield

    return wrong
