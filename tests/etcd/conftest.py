# SPDX-License-Identifier: Apache-2.0
"""etcd servers for a test: real ones, on addresses of the loopback that are nobody else's."""

import itertools

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
