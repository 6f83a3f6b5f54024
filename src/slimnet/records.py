# SPDX-License-Identifier: Apache-2.0
"""Values as JSON and back: what the store holds and what the agent answers.

Addresses, ranges and paths are text; enums are their lower-case names; attrs
values are objects with the names of their fields.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, TypeVar

import attrs
from netaddr import IPAddress, IPNetwork

from slimnet.exceptions import InvalidValue
from slimnet.model import (
    Account,
    Connection,
    Decision,
    Direction,
    Endpoint,
    Event,
    EventKind,
    Feature,
    Flow,
    Host,
    HostState,
    Namespace,
    Network,
    Protocol,
    Reason,
    Verdict,
    Way,
    WayKind,
    Wire,
    WireFormat,
)
from slimnet.place import Place

__all__ = [
    "account",
    "connection",
    "decision",
    "dump",
    "encode",
    "endpoint",
    "event",
    "flow",
    "host",
    "host_state",
    "load",
    "namespace",
    "network",
    "place",
]

T = TypeVar("T")


class _NoRecord(TypeError):
    """What has no place in a record, and where it is."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.path: list[str] = []

    def __str__(self) -> str:
        where = ".".join(reversed(self.path)) or "value"
        kind = type(self.value).__qualname__
        return f"{where}: wanted what a record can hold, got {kind} {self.value!r}"


def encode(value: Any) -> Any:
    """``value`` as what :mod:`json` writes.

    Raises:
        TypeError: it is, or holds, something else; names the field.
    """
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, WireFormat):
        return str(value)
    if attrs.has(type(value)):
        return {
            item.name: _field(item.name, getattr(value, item.name))
            for item in attrs.fields(type(value))
            if not item.name.startswith("_")
        }
    if isinstance(value, Mapping):
        return {(name := _key(key)): _field(name, item) for key, item in value.items()}
    if isinstance(value, AbstractSet):
        return sorted((encode(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [_field(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (IPAddress, IPNetwork, Path)):
        return str(value)
    raise _NoRecord(value)


def _field(name: str, value: Any) -> Any:
    try:
        return encode(value)
    except _NoRecord as error:
        error.path.append(name)
        raise


def _key(key: Any) -> str:
    """A key is text in JSON: the encoded key, unless that is a table or a list."""
    text = encode(key)
    if isinstance(text, (dict, list)):
        raise _NoRecord(key)
    return str(text)


def dump(value: Any) -> bytes:
    """``value`` as the bytes that the store holds."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":")).encode()


def load(key: str, data: bytes, decode: Callable[[Mapping[str, Any]], T]) -> T:
    """What :func:`dump` wrote, as a value again.

    Raises:
        InvalidValue: ``data`` is not such a record; names ``key``.
    """
    try:
        record = json.loads(data)
        if not isinstance(record, Mapping):
            raise TypeError("no JSON object")
        return decode(record)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InvalidValue(f"store key {key}", f"a readable record ({error})", data[:80]) from error


def network(record: Mapping[str, Any]) -> Network:
    """A :class:`~slimnet.model.Network`."""
    return Network(**record)


def namespace(record: Mapping[str, Any]) -> Namespace:
    """A :class:`~slimnet.model.Namespace`."""
    return Namespace(**record)


def host(record: Mapping[str, Any]) -> Host:
    """A :class:`~slimnet.model.Host`. What one of a later version says of itself that this one
    has no word for is left out (fields, wires, features): its endpoints are reached all the same,
    by what both know."""
    fields = {item.name for item in attrs.fields(Host)}
    known = {name: value for name, value in record.items() if name in fields}
    if "wires" in known:
        known["wires"] = [each for each in known["wires"] if each.partition("/")[0] in set(Wire)]
    if "features" in known:
        known["features"] = [each for each in known["features"] if each in set(Feature)]
    return Host(**known)


def host_state(record: Mapping[str, Any]) -> HostState:
    """A :class:`~slimnet.model.HostState`."""
    known = record["host"]
    return HostState(**{**record, "host": None if known is None else host(known)})


def endpoint(record: Mapping[str, Any]) -> Endpoint:
    """An :class:`~slimnet.model.Endpoint`."""
    ports = {name: (str(kind), int(port)) for name, (kind, port) in record["ports"].items()}
    return Endpoint(**{**record, "ports": ports})


def place(record: Mapping[str, Any]) -> Place:
    """A :class:`~slimnet.place.Place`."""
    return Place(**record)


def _end(pair: Any) -> tuple[IPAddress, int]:
    return IPAddress(pair[0]), int(pair[1])


def connection(record: Mapping[str, Any]) -> Connection:
    """A :class:`~slimnet.model.Connection`."""
    return Connection(
        **{
            **record,
            "local": _end(record["local"]),
            "peer": _end(record["peer"]),
            "direction": Direction[record["direction"].upper()],
            "wire": None if record["wire"] is None else Wire(record["wire"]),
        }
    )


def account(record: Mapping[str, Any]) -> Account:
    """An :class:`~slimnet.model.Account`."""
    return Account(**{**record, "direction": Direction[record["direction"].upper()]})


def event(record: Mapping[str, Any]) -> Event:
    """An :class:`~slimnet.model.Event`."""
    return Event(
        **{
            **record,
            "kind": EventKind(record["kind"]),
            "source": _end(record["source"]),
            "destination": _end(record["destination"]),
            "direction": Direction[record["direction"].upper()],
            "reason": Reason[record["reason"].upper()],
        }
    )


def flow(record: Mapping[str, Any]) -> Flow:
    """A :class:`~slimnet.model.Flow`."""
    return Flow(
        **{
            **record,
            "protocol": Protocol[record["protocol"].upper()],
            "direction": Direction[record["direction"].upper()],
        }
    )


def _way(record: Mapping[str, Any] | None) -> Way | None:
    if record is None:
        return None
    return Way(
        WayKind[record["kind"].upper()],
        Reason[record["reason"].upper()],
        record["error"],
        Direction[record["direction"].upper()],
    )


def decision(record: Mapping[str, Any]) -> Decision:
    """A :class:`~slimnet.model.Decision`."""
    verdict, host = record["verdict"], record["host"]
    return Decision(
        **{
            **record,
            "verdict": Verdict(
                verdict["allowed"], Reason[verdict["reason"].upper()], verdict["rule"]
            ),
            "target": _end(record["target"]),
            "host": None if host is None else IPAddress(host),
            "way": _way(record.get("way")),
        }
    )
