# SPDX-License-Identifier: Apache-2.0
"""What endpoints and services are given: identities and addresses."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from netaddr import IPAddress

from slimnet.abc import Store
from slimnet.cluster import change
from slimnet.cluster.change import Guard
from slimnet.contract import SLIM_ADDRESS_SERVICE, SLIM_IDENTITY_FIRST
from slimnet.exceptions import AlreadyExists, InvalidValue
from slimnet.model import Endpoint, Network

__all__ = ["address", "check", "identity", "number"]

#: Below are those that earlier versions counted from 1.
_FIRST = 1 << 24


def check(endpoint: Endpoint) -> None:
    """What the model leaves open: named ports.

    Raises:
        InvalidValue: one is wrong.
    """
    if not isinstance(endpoint.ports, Mapping):
        raise InvalidValue("endpoint.ports", 'such as {"http": ("tcp", 80)}', endpoint.ports)
    for name, port in endpoint.ports.items():
        kind, number = port if isinstance(port, tuple) and len(port) == 2 else (None, None)
        if (
            kind not in ("tcp", "udp", "sctp")
            or isinstance(number, bool)
            or not isinstance(number, int)
            or not 0 < number < 65536
        ):
            raise InvalidValue(f"endpoint.ports.{name}", 'such as ("tcp", 80)', port)


def number(store: Store, key: str) -> Guard:
    """An id for a new endpoint, drawn: a counter would give out again what it gave
    out after a backup that is restored, or in a store that is begun anew, while data
    paths still have the first endpoint of that id.

    Args:
        store: where it has to be free.
        key: the endpoint's.
    """
    while True:
        drawn = _FIRST + secrets.randbelow(SLIM_ADDRESS_SERVICE - _FIRST)
        place = f"ids/{drawn}"
        if store.get(place) is None:
            return Guard(drawn, {place: None}, {place: json.dumps(key).encode()})


def identity(store: Store, endpoint: Endpoint) -> tuple[int, Guard]:
    """The number of a label set: for ever the same, on every host. It may be counted:
    no host tells another one, and tables are replaced as a whole."""
    labels = ",".join(f"{key}={value}" for key, value in sorted(endpoint.labels.items()))
    key = f"identities/{endpoint.network}/{endpoint.namespace}/{labels}"
    found = store.get(key)
    if found:
        return int(found[0]), Guard(0, {}, {})
    fresh = change.counter(store, "identity")
    number = SLIM_IDENTITY_FIRST + fresh.number - 1
    return number, Guard(number, {key: None, **fresh.expect}, {key: b"%d" % number, **fresh.put})


def address(
    store: Store,
    network: Network,
    wanted: Any,
    field: str = "endpoint.address",
    meanwhile: Iterable[str] = (),
) -> IPAddress:
    """An address for an endpoint or a service: the wanted one, or the first that is free.

    Args:
        store: where those in use are.
        network: whose it will be.
        wanted: ``None`` for any.
        field: what errors call it.
        meanwhile: addresses that are not free although the store has them not yet.

    Raises:
        InvalidValue: the wanted one is not of the network, or the network is full.
        AlreadyExists: the wanted one is taken.
    """
    prefix = f"addresses/{network.name}/"
    used = {key.removeprefix(prefix) for key in store.list(prefix)[0]}.union(meanwhile)
    if wanted is not None:
        asked = IPAddress(str(wanted))
        cidr = next((each for each in network.cidrs if asked in each), None)
        if cidr is None:
            ranges = ", ".join(map(str, network.cidrs))
            raise InvalidValue(field, f"an address in {ranges}", str(wanted))
        if cidr.prefixlen < 31 and asked in (cidr.network, cidr.broadcast):
            raise InvalidValue(
                field,
                f"neither network nor broadcast address of {cidr}",
                str(wanted),
            )
        if str(asked) in used:
            holder = store.get(prefix + str(asked))
            kind, _, who = json.loads(holder[0]).partition("/") if holder else ("", "", "another")
            service = "service " if kind == "services" else ""
            raise AlreadyExists(f"address {asked} is that of {service}{who}")
        return asked
    for cidr in network.cidrs:
        edge = 1 if cidr.prefixlen < 31 else 0
        for number in range(cidr.first + edge, cidr.last - edge + 1):
            # Thousands may be used: netaddr would make an object of each.
            text = socket.inet_ntoa(number.to_bytes(4, "big"))
            if text not in used:
                return IPAddress(text)
    raise InvalidValue(field, f"room in network {network.name}", f"{len(used)} addresses in use")
