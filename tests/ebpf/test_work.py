# SPDX-License-Identifier: Apache-2.0
"""Work in proportion: none for what is not asked for."""

from __future__ import annotations

from slimnet.linux import cgroup as cgroups
from slimnet.tables import Change, Tables
from slimnet_ebpf import links

MEGABYTE = 1 << 20


def test_a_change_that_denies_nothing_does_not_look(lab, ends):
    """Work in proportion to the change: no socket is listed for a new endpoint."""
    client, server = ends
    listener = server.listen(80)
    sock = client.connect(server.address, 80)
    child, _ = listener.accept()
    host = client.host
    generation = host.backend.status().generation
    tables = lab.tables(host)
    newer = Tables(
        generation + 10,
        tables.addresses,
        tables.endpoints,
        tables.cidrs,
        tables.policy,
    )
    calls = host.driver.call(
        _install_counting, host.backend, newer, Change(generation, Tables(newer.generation))
    )
    assert calls == 0
    sock.sendall(b"ping")
    assert child.recv(4) == b"ping"
    lab._generation = newer.generation


def _install_counting(backend, tables, change) -> int:
    calls = 0
    dump = backend._sockets.sockets

    def counting(*arguments, **options):
        nonlocal calls
        calls += 1
        return dump(*arguments, **options)

    backend._sockets.sockets = counting
    try:
        backend.install(tables, change)
    finally:
        del backend._sockets.sockets
    return calls


def test_no_program_runs_where_there_is_no_limit(lab):
    """Per packet there is slim_guard alone, which lets TCP pass at once."""
    free, held = lab.endpoint(0), lab.endpoint(0)
    lab.limit(held, rate=MEGABYTE)
    lab.install()
    assert [programs(each.cgroup, "egress") for each in (free, held)] == [
        ["slim_guard"],
        ["slim_guard", "slim_rate"],
    ]
    assert [programs(each.cgroup, "ingress") for each in (free, held)] == [[], []]
    lab.limits.clear()
    lab.install()
    assert programs(held.cgroup, "egress") == ["slim_guard"]


def programs(cgroup, way):
    """What runs for each packet of a cgroup's sockets."""
    number = {"ingress": links.ATTACH_CGROUP_INGRESS, "egress": links.ATTACH_CGROUP_EGRESS}[way]
    with cgroups.opened(cgroup) as fd:
        return [links.program_name(each) for each in links.attached(fd, number)]
