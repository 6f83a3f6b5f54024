# SPDX-License-Identifier: Apache-2.0
"""A store that a later version has written, and hosts of this one."""

import json
import time

import pytest
from machines import Machines, join, slimnet
from traffic import Traffic

from slimnet.cluster.which import open_named
from slimnet.linux import netns

pytestmark = pytest.mark.root


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
def test_a_store_of_a_later_format(tmp_path, kind):
    """Named in one line, by the agent that runs, by one that is started, and by commands; none
    changes anything, connections come and go as before, and all goes on when it is back."""
    machines = Machines(tmp_path, kind, settings="lease = 3.0\n")
    right = "the store is of format '2', and this version of slimnet knows none after 1: upgrade"
    try:
        machines.up()
        one, two, _ = machines.hosts
        join(machines, one, two)
        with (
            Traffic(one, two, tmp_path) as traffic,
            netns.enter(machines.underlay.switch),
            open_named(machines.url) as store,
        ):
            own = f"cluster/{json.loads(store.get('cluster')[0])}"
            store.transact(put={"format": b"2", own: b"{}"})
            deadline = time.monotonic() + 60
            while right not in slimnet(one, "status", "-o", "json", status=None):
                assert time.monotonic() < deadline
            time.sleep(4)  # longer than the lease
            before = machines.held()
            traffic.goes_on()
            one.stop_agent()
            traffic.goes_on()
            for words in (
                ("agent",),
                ("cluster", "token", "create"),
                ("cluster", "rotate-key"),
                ("cluster", "leave", "--force"),
            ):
                line = slimnet(one, *words, status=2)
                assert right in line, words
            after = machines.held()
            assert {name for name in after if after[name] != before.get(name)} == set()
            traffic.goes_on()
            store.transact(delete=["format"])
            one.start_agent().wait()
            with one.node() as node:
                node.create_network("more", "10.9.0.0/16")
                node.wait()
            traffic.goes_on()
            assert traffic.reports()[-1]["failed"] == []
    finally:
        machines.down()
