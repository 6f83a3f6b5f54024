# SPDX-License-Identifier: Apache-2.0
"""The fields of requests: one name means one thing, whatever the route."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from slimnet.exceptions import InvalidValue
from slimnet.plugins import suggest

__all__ = ["check"]

#: As in a policy's text (slimnet.policy.language.node), with what is around it.
_DEPTH_MAX = 40
#: Half of a character beyond 16 bits (RFC 8259, section 7).
_HALF = re.compile("[\ud800-\udfff]")


def _number(low: int, high: int, *kinds: type[int | float]) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    return holds


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "address": ("text", _is_text),
    "applied": ("a list of texts", _is_texts),
    "cgroup": ("text", _is_text),
    "cidrs": ("a list of texts", _is_texts),
    "count": ("a number, 1 to 1000", _number(1, 1000, int)),
    "destination": ("text", _is_text),
    "ephemeral": ("true or false", _is_truth),
    "kill": ("true or false", _is_truth),
    "labels": ("a table", _is_table),
    "name": ("text", _is_text),
    "namespace": ("text", _is_text),
    "netns": ("text", _is_text),
    "network": ("text", _is_text),
    "policies": ("a list of tables", _is_tables),
    "port": ("a port, 0 to 65535", _number(0, 65535, int)),
    "ports": ("a table", _is_table),
    "protocol": ("text", _is_text),
    "revision": ("a revision", _number(0, 2**63, int)),
    "source": ("text", _is_text),
    "target": ("text", _is_text),
    "timeout": ("seconds, at most 600", _number(0, 600, int, float)),
    "vni": ("a number", _number(-(2**63), 2**63, int)),
}


def check(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without the fields that are null.

    Raises:
        InvalidValue: a field is unknown, or not of its kind.
    """
    for name, value in body.items():
        if name not in _FIELDS:
            raise InvalidValue(name, suggest(name, _FIELDS), "an unknown field")
        _check_whole(name, value)
        wanted, holds = _FIELDS[name]
        if value is not None and not holds(value):
            raise InvalidValue(name, wanted, value)
    return {name: value for name, value in body.items() if value is not None}


def _check_whole(name: str, value: Any) -> None:
    """Refuse what JSON can say and nothing here can hold."""
    level = [value]
    for _ in range(_DEPTH_MAX):
        for each in level:
            if isinstance(each, str) and _HALF.search(each):
                raise InvalidValue(name, "text of whole characters", each)
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in ((*each, *each.values()) if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise InvalidValue(name, f"at most {_DEPTH_MAX} levels", "one nested deeper")
