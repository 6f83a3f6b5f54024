# SPDX-License-Identifier: Apache-2.0
"""What differs between two generations of tables."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar, cast

from attrs import define, field
from netaddr import IPAddress, IPNetwork

from slimnet.exceptions import InvalidValue
from slimnet.model import Direction
from slimnet.policy.compile.table import Pairs, PolicyTable
from slimnet.tables import Change, PolicyKey, PolicyRecord, PublishKey, ServiceKey, Tables

__all__ = ["Touched", "altered", "difference", "keyed"]

_Item = TypeVar("_Item")
_Key = TypeVar("_Key", bound=Hashable)
_NOTHING: Pairs = {}
#: The tables that are compared key by key.
_NAMES = ("addresses", "endpoints", "cidrs", "rules", "services", "published", "limits", "hosts")


def keyed(items: Iterable[_Item], key: Callable[[_Item], _Key], what: str) -> dict[_Key, _Item]:
    """The items by what each has alone.

    Raises:
        InvalidValue: two have the same.
    """
    found: dict[_Key, _Item] = {}
    for item in items:
        name = key(item)
        if name in found:
            raise InvalidValue(what, "each once", name)
        found[name] = item
    return found


def altered(old: Mapping[_Key, Any], new: Mapping[_Key, Any]) -> set[_Key]:
    """The keys that came, went, or have another value."""
    if old is new:
        return set()
    changed = {
        key for key, value in new.items() if (known := old.get(key)) is not value and known != value
    }
    return changed.union(old.keys() - new.keys())


@define
class Touched:
    """The keys of each table whose records may differ; of ``policy``, the subjects."""

    addresses: set[tuple[int, IPAddress]] = field(factory=set)
    endpoints: set[int] = field(factory=set)
    cidrs: set[tuple[int, IPNetwork]] = field(factory=set)
    rules: set[int] = field(factory=set)
    services: set[ServiceKey] = field(factory=set)
    published: set[PublishKey] = field(factory=set)
    limits: set[int] = field(factory=set)
    hosts: set[IPAddress] = field(factory=set)
    subjects: set[int] = field(factory=set)


def difference(before: Tables, after: Tables, touched: Touched | None = None) -> Change:
    """The change from ``before`` to ``after``, both of the compiler's own making.

    Args:
        before: the earlier tables.
        after: the later ones.
        touched: where they may differ; ``None``: anywhere.
    """
    old, new = cast("PolicyTable", before.policy), cast("PolicyTable", after.policy)
    subjects = {*old.subjects, *new.subjects} if touched is None else touched.subjects
    records: dict[PolicyKey, PolicyRecord] = {}
    gone: set[PolicyKey] = set()
    for subject in subjects:
        first = old.subjects.get(subject, _NOTHING)
        second = new.subjects.get(subject, _NOTHING)
        for pair in altered(first, second):
            was, is_now = _flat(subject, pair, first), _flat(subject, pair, second)
            changed = altered(was, is_now)
            records.update((key, is_now[key]) for key in changed if key in is_now)
            gone.update(key for key in changed if key not in is_now)
    parts: dict[str, Any] = {}
    lost: dict[str, frozenset[Any]] = {}
    for name in _NAMES:
        was, is_now = getattr(before, name), getattr(after, name)
        if touched is None:
            changed = altered(was, is_now)
        else:
            keys = getattr(touched, name)
            changed = {key for key in keys if was.get(key) != is_now.get(key)}
        parts[name] = {key: is_now[key] for key in changed if key in is_now}
        lost[f"gone_{name}"] = frozenset(key for key in changed if key not in is_now)
    del lost["gone_rules"]  # words without a rule harm nobody
    return Change(
        before.generation,
        Tables(after.generation, policy=records, **parts),
        gone_policy=frozenset(gone),
        **lost,
    )


def _flat(subject: int, pair: tuple[Direction, int], pairs: Pairs) -> dict[PolicyKey, PolicyRecord]:
    direction, peer = pair
    return {
        PolicyKey(subject, peer, direction, *width): record for width, record in pairs.get(pair, ())
    }
