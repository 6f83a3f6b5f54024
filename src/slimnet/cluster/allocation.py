# SPDX-License-Identifier: Apache-2.0
"""What endpoints are given: ids and identities."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping

from slimnet.abc import Store
from slimnet.cluster import keys
from slimnet.cluster.change import Guard
from slimnet.contract import SLIM_ADDRESS_SERVICE
from slimnet.exceptions import InvalidValue
from slimnet.model import Endpoint
from slimnet.names import PORT_NAME, PORT_NAME_WANTED

__all__ = ["check", "identity", "number"]

#: Below are those that earlier versions counted, from 1 and from SLIM_IDENTITY_FIRST; from 2^24
#: on the compiler makes identities of its own.
_IDS = range(1 << 24, SLIM_ADDRESS_SERVICE)
_IDENTITIES = range(1 << 23, 1 << 24)


def check(endpoint: Endpoint) -> None:
    """What the model leaves open: named ports.

    Raises:
        InvalidValue: one is wrong.
    """
    if not isinstance(endpoint.ports, Mapping):
        raise InvalidValue("endpoint.ports", 'such as {"http": ("tcp", 80)}', endpoint.ports)
    for name, port in endpoint.ports.items():
        if not isinstance(name, str) or PORT_NAME.fullmatch(name) is None:
            raise InvalidValue("endpoint.ports", f"names of {PORT_NAME_WANTED}", name)
        kind, number = port if isinstance(port, tuple) and len(port) == 2 else (None, None)
        if (
            kind not in ("tcp", "udp", "sctp")
            or isinstance(number, bool)
            or not isinstance(number, int)
            or not 0 < number < 65536
        ):
            wanted = 'tcp, udp or sctp, and a number from 1 to 65535, such as ("tcp", 80)'
            raise InvalidValue(f"endpoint.ports.{name}", wanted, port)


def number(store: Store, key: str) -> Guard:
    """An id for a new endpoint. A counter would give out again what it gave out after a
    backup that is restored, or in a store that is begun anew, while data paths still have the
    first endpoint of that id.

    Args:
        store: where it has to be free.
        key: the endpoint's.
    """
    return _draw(store, _IDS, key)


def identity(store: Store, endpoint: Endpoint) -> tuple[int, Guard]:
    """The number of a label set: for ever the same, on every host."""
    labels = ",".join(f"{key}={value}" for key, value in sorted(endpoint.labels.items()))
    key = keys.IDENTITY.at(endpoint.network, endpoint.namespace, labels)
    found = store.get(key)
    if found:
        return int(found[0]), Guard(0, {}, {})
    drawn = _draw(store, _IDENTITIES, key)
    number = drawn.number
    return number, Guard(number, {key: None, **drawn.expect}, {key: b"%d" % number, **drawn.put})


def _draw(store: Store, numbers: range, key: str) -> Guard:
    """A number that is nobody's. Drawn, not counted: two hosts never fight over it."""
    while True:
        drawn = secrets.choice(numbers)
        place = keys.ID.at(drawn)
        if store.get(place) is None:
            return Guard(drawn, {place: None}, {place: json.dumps(key).encode()})
