# SPDX-License-Identifier: Apache-2.0
"""Hosts of two backends that speak wire syn are one cluster: the clauses that need two hosts,
with one of each, either way round."""

import pytest

from slimnet.linux import sysctl
from slimnet.testing._clauses import CLAUSES
from slimnet.testing._stage import CAST, Stage

pytestmark = [pytest.mark.root, pytest.mark.module]

ACROSS = (
    "tables_decide",
    "what_happened_is_told",
    "live_connections_follow_the_tables",
    "services_are_dialled",
    "what_is_sent_is_on_account",
    "the_data_path_can_be_asked",
    "close_lets_go",
    "never_unpoliced",
)


class Mixed(Stage):
    """The first host's backend, and the others'."""

    def __init__(self, first, other):
        super().__init__(first, {}, None)
        self._first, self._other = first, other

    def open(self, host, *arguments):
        self._backend = self._first if host == 0 else self._other
        return super().open(host, *arguments)


@pytest.mark.parametrize("clause", ACROSS)
@pytest.mark.parametrize("first", ["ebpf", "kmod"])
def test_one_cluster(first, clause):
    with mixed(first) as stage:
        CLAUSES[clause](stage)


def mixed(first):
    from slimnet_ebpf import EbpfBackend
    from slimnet_kmod import KmodBackend

    kinds = [EbpfBackend, KmodBackend]
    return Mixed(*(kinds if first == "ebpf" else reversed(kinds)))


@pytest.mark.parametrize("first", ["ebpf", "kmod"])
def test_an_alias_of_one_is_read_by_the_other(first):
    """The client's host has few source ports, and takes the next wire port when a quarter of them
    are used: the same ports again. The second connection with one has a name that no packet
    bears but its SYN's option."""
    with mixed(first) as stage:
        with stage.on(0):
            sysctl.write("net/ipv4/ip_local_port_range", "40000 40063")
        for host in (0, 1):
            stage.open(host)
        stage.attach("client", "server")
        stage.install(1)
        stage.serve("server", 8080)
        client = stage.resident("client")
        ports = set()
        for number in range(20):
            made = stage.reach("client", "server", 8080)
            assert made, made.text
            assert made.local == made.seen
            assert made.local[0] == str(CAST["client"].address)
            ports.add(made.local[1])
            client.hold(f"held{number}", str(CAST["server"].address), 8080)
        assert ports - {*range(40000, 40064)}
