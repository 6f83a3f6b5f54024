# SPDX-License-Identifier: Apache-2.0
"""Published ports that lead to an endpoint by its router: two translations, of the host's port to
one of the router's (outside.py), and of that to the endpoint's (ruleset.py)."""

from __future__ import annotations

from collections import defaultdict

from attrs import frozen
from netaddr import IPAddress

from slimnet.model import Protocol
from slimnet.tables import PublishKey, Tables

__all__ = ["Door", "doors"]


@frozen
class Door:
    """A port of the host that is an endpoint's.

    Attributes:
        protocol: TCP or UDP.
        address: of the host; ``None`` for all of them.
        port: of the host.
        vni: of the endpoint's network.
        entry: the port of that network's router, where each door has one of its own.
        endpoint: the endpoint's address.
        target: the endpoint's port.
    """

    protocol: Protocol
    address: IPAddress | None
    port: int
    vni: int
    entry: int
    endpoint: IPAddress
    target: int


def doors(tables: Tables) -> list[Door]:
    """Those of this host's endpoints that packets are brought to, in a fixed order."""
    found = []
    taken: defaultdict[tuple[int, Protocol], set[int]] = defaultdict(set)

    def order(key: PublishKey) -> tuple[int, int, int]:
        return key.protocol, key.port, -1 if key.address is None else int(key.address)

    for key in sorted(tables.published, key=order):
        record = tables.published[key]
        endpoint = tables.endpoints.get(record.endpoint)
        if endpoint is None or not (endpoint.local and endpoint.packets):
            continue
        if 6 in {endpoint.address.version, key.address.version if key.address else 4}:
            continue
        # A port that two have at two addresses: the second has another one at the router.
        used = taken[endpoint.vni, Protocol(key.protocol)]
        entry = key.port if key.port not in used else max(set(range(1, 65536)) - used)
        used.add(entry)
        found.append(
            Door(
                protocol=Protocol(key.protocol),
                address=key.address,
                port=key.port,
                vni=endpoint.vni,
                entry=entry,
                endpoint=endpoint.address,
                target=record.port,
            )
        )
    return found
