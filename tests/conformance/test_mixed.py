# SPDX-License-Identifier: Apache-2.0
"""Hosts of two backends that have a wire in common are one cluster: the clauses that need two
hosts, with one of each, either way round."""

import pytest
from attrs import evolve

from slimnet import wires
from slimnet.model import Host
from slimnet.tables import HostRecord
from slimnet.testing._clauses import CLAUSES
from slimnet.testing._stage import Stage

pytestmark = pytest.mark.root

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

    def tables(self, host, *arguments, **content):
        """As a compiler would that reads what each host says of itself."""
        made = super().tables(host, *arguments, **content)
        kinds = [self._first, self._other]
        hosts = [
            Host(f"h{number + 1}", self.address(number), kind.probe().capabilities.wires)
            for number, kind in enumerate(kinds)
        ]
        wire = wires.choose(*hosts)
        return evolve(
            made,
            hosts={each.address: HostRecord(each.name, each.wires) for each in hosts},
            endpoints={
                number: record if record.local else evolve(record, wire=wire)
                for number, record in made.endpoints.items()
            },
        )


@pytest.mark.module
@pytest.mark.parametrize("clause", ACROSS)
@pytest.mark.parametrize("first", ["ebpf", "kmod"])
def test_one_cluster(first, clause):
    from slimnet_ebpf import EbpfBackend
    from slimnet_kmod import KmodBackend

    kinds = [EbpfBackend, KmodBackend]
    with Mixed(*(kinds if first == "ebpf" else reversed(kinds))) as stage:
        CLAUSES[clause](stage)


#: Connections are announced by an agent and a router: not while either is gone.
ANNOUNCED = [clause for clause in ACROSS if clause != "close_lets_go"]


@pytest.mark.parametrize("clause", ANNOUNCED)
@pytest.mark.parametrize("first", ["ebpf", "preload"])
def test_one_cluster_with_announcements(first, clause):
    from slimnet_ebpf import EbpfBackend
    from slimnet_preload import PreloadBackend

    kinds = [EbpfBackend, PreloadBackend]
    with Mixed(*(kinds if first == "ebpf" else reversed(kinds))) as stage:
        CLAUSES[clause](stage)
