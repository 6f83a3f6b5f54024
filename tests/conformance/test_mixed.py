# SPDX-License-Identifier: Apache-2.0
"""Hosts of two backends that speak wire syn are one cluster: the clauses that need two hosts,
with one of each, either way round."""

import pytest

from slimnet.testing._clauses import CLAUSES
from slimnet.testing._stage import Stage

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
    from slimnet_ebpf import EbpfBackend
    from slimnet_kmod import KmodBackend

    kinds = [EbpfBackend, KmodBackend]
    with Mixed(*(kinds if first == "ebpf" else reversed(kinds))) as stage:
        CLAUSES[clause](stage)
