# SPDX-License-Identifier: Apache-2.0
"""From the JSON of a request to a request class: checked, completed, and told apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, get_type_hints

import attrs
from attrs import frozen

from slimnet.exceptions import InvalidValue
from slimnet.plugins import suggest

__all__ = [
    "COUNT",
    "DOCUMENTS",
    "INTEGER",
    "PORT",
    "REVISION",
    "SECONDS",
    "TABLE",
    "TEXT",
    "TEXTS",
    "TRUTH",
    "FieldKind",
    "RequestField",
    "fields",
    "read",
]

R = TypeVar("R", bound=attrs.AttrsInstance)

#: As in a policy's text (slimnet.policy.language.node), with what is around it.
_DEPTH_MAX = 40
#: Half of a character beyond 16 bits (RFC 8259, section 7).
_HALF = re.compile("[\ud800-\udfff]")


@frozen
class FieldKind:
    """What a field may hold.

    Attributes:
        wanted: the same in words, for errors and the reference.
        holds: whether a JSON value other than null is of this kind.
    """

    wanted: str
    holds: Callable[[Any], bool]


@frozen
class RequestField:
    """One field of a request.

    Attributes:
        kind: what it may hold.
        meaning: for the reference.
        default: what it is where the request does not say it, or says null;
            :data:`attrs.NOTHING` where it has to.
    """

    kind: FieldKind
    meaning: str
    default: Any

    @property
    def is_required(self) -> bool:
        """Whether a request has to say it."""
        return self.default is attrs.NOTHING


def _number(low: int, high: int, *types: type[int | float]) -> Callable[[Any], bool]:
    # JSON has no integers of its own, and Python's bool is an int: true is no number here.
    def holds(value: Any) -> bool:
        return isinstance(value, types) and not isinstance(value, bool) and low <= value <= high

    return holds


def _list_of(item: type) -> Callable[[Any], bool]:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(each, item) for each in value)

    return holds


TEXT = FieldKind("text", lambda value: isinstance(value, str))
TEXTS = FieldKind("a list of texts", _list_of(str))
TRUTH = FieldKind("true or false", lambda value: isinstance(value, bool))
TABLE = FieldKind("a table", lambda value: isinstance(value, dict))
DOCUMENTS = FieldKind("a list of tables", _list_of(dict))
INTEGER = FieldKind("a number", _number(-(2**63), 2**63, int))
COUNT = FieldKind("a number, 1 to 1000", _number(1, 1000, int))
PORT = FieldKind("a port, 0 to 65535", _number(0, 65535, int))
REVISION = FieldKind("a revision", _number(0, 2**63, int))
SECONDS = FieldKind("seconds, at most 600", _number(0, 600, int, float))


@cache
def fields(request: type[attrs.AttrsInstance]) -> Mapping[str, RequestField]:
    """What a client says in a request, by name.

    Args:
        request: an attrs class. A field that clients say is annotated with its kind and
            its meaning: ``Annotated[str, TEXT, "..."]``; any other is the agent's own.
    """

    def said() -> Iterator[tuple[str, RequestField]]:
        hints = get_type_hints(request, include_extras=True)
        for each in attrs.fields(request):
            if metadata := getattr(hints[each.name], "__metadata__", None):
                kind, meaning = metadata
                yield each.name, RequestField(kind, meaning, each.default)

    return dict(said())


def read(request: type[R], named: Mapping[str, str], body: Mapping[str, Any], **own: Any) -> R:
    """The request that a client makes.

    Args:
        request: its class.
        named: the fields that the path holds.
        body: the others; null is as good as nothing.
        own: what the agent knows itself; what the class has no place for is left out.

    Raises:
        InvalidValue: a field is unknown, missing, or not of its kind.
    """
    known = fields(request)
    for name, value in body.items():
        if name not in known or name in named:
            others = known.keys() - named.keys()
            wanted = suggest(name, others) if others else "no field, for this takes none"
            raise InvalidValue(name, wanted, "an unknown field")
        _check_whole(name, value)
        if value is not None and not known[name].kind.holds(value):
            raise InvalidValue(name, known[name].kind.wanted, value)
    values = {**named, **{name: value for name, value in body.items() if value is not None}}
    for name, field in known.items():
        if field.is_required and name not in values:
            raise InvalidValue(
                name, f"{field.kind.wanted}, since this field is required", "nothing"
            )
    values |= {each.name: own[each.name] for each in attrs.fields(request) if each.name in own}
    return request(**values)


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
