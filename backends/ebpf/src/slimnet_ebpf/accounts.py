# SPDX-License-Identifier: Apache-2.0
"""Who sent how much by which rule: what the data path wrote down of connections
that ended, and the kernel's own counts of those that live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from slimnet import contract
from slimnet.layout import Layout
from slimnet.linux.sock_diag import LIVE
from slimnet.model import Account, Direction
from slimnet_ebpf import contract as private
from slimnet_ebpf.carrier import Carried
from slimnet_ebpf.maps import Map
from slimnet_ebpf.sockets import SocketDiagnosis

__all__ = ["accounts"]

_KEY = Layout(contract.slim_account_key)
_ACCOUNT = Layout(contract.slim_account)
_SOCKET = Layout(private.slim_socket)
_COUNTS = ("connections", "refused", "sent", "received")


def accounts(table: Map, sockets: SocketDiagnosis, carried: Iterable[Carried]) -> Iterator[Account]:
    """See :meth:`slimnet.abc.Backend.accounts`."""
    # Live connections before the table of ended ones: one that ends in between is then
    # counted twice in this answer, where the other order would leave it out.
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for one in sockets.sockets(traffic=True, states=LIVE):
        record = _SOCKET.unpack(one.storage) if one.storage else {}
        if not record.get("flags", 0) & private.SLIM_SOCKET_ESTABLISHED:
            continue
        accepted = record["flags"] & private.SLIM_SOCKET_ACCEPTED
        direction = contract.SLIM_INGRESS if accepted else contract.SLIM_EGRESS
        entry = found.setdefault(
            (record["endpoint"], record["rule"], direction), dict.fromkeys(_COUNTS, 0)
        )
        sent, received = one.traffic
        entry["connections"] += 1
        entry["sent"] += max(0, sent - (0 if accepted else 1))  # the SYN counts as a byte
        entry["received"] += received
    for each in carried:
        if each.is_open:
            entry = found.setdefault(
                (each.endpoint, each.rule, each.direction), dict.fromkeys(_COUNTS, 0)
            )
            entry["connections"] += 1
            entry["sent"] += each.traffic[0]
            entry["received"] += each.traffic[1]
    for key, value in table.items():
        place = tuple(_KEY.unpack(key).values())
        entry = found.setdefault((place[0], place[1], place[2]), dict.fromkeys(_COUNTS, 0))
        for name, number in _ACCOUNT.unpack(value).items():
            entry[name] += number
    for (endpoint, rule, direction), entry in sorted(found.items()):
        yield Account(endpoint, rule, Direction(direction), **entry)
