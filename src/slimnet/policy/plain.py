# SPDX-License-Identifier: Apache-2.0
"""The values of policies as JSON and back, by the types of their fields.

What the store holds comes back through here and not through the parser of manifests: a
document that was taken once is read for ever, whatever a later parser refuses.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import attrs
from netaddr import IPAddress, IPNetwork

__all__ = ["decode"]


def decode(kind: type, plain: Mapping[str, Any]) -> Any:
    """The value of which :func:`slimnet.records.encode` made ``plain``.

    A field that is missing has its default. One that is unknown is an error: a newer
    build wrote it, and without it a policy may allow more than it says.

    Args:
        kind: an attrs class.
        plain: its fields.

    Raises:
        TypeError, ValueError, KeyError, netaddr.AddrFormatError: it is not that.
    """
    return _decoder(kind)(plain)


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        return _union(inner)
    if origin in {tuple, frozenset}:
        each = _decoder(inner[0])
        return lambda plain: origin(map(each, _checked(plain, list)))
    if origin is Mapping:
        return lambda plain: _checked(plain, dict)
    if attrs.has(kind):
        return _object(kind)
    if issubclass(kind, enum.Enum):
        return lambda plain: kind[_checked(plain, str).upper()]
    if issubclass(kind, (IPAddress, IPNetwork)):
        return lambda plain: kind(_checked(plain, str))
    return lambda plain: _checked(plain, kind)


def _object(kind: type) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    decoders = {item.name: _decoder(hints[item.name]) for item in attrs.fields(kind)}

    def decode_fields(plain: Any) -> Any:
        fields = _checked(plain, dict).items()
        return kind(**{name: decoders[name](value) for name, value in fields})

    return decode_fields


def _union(kinds: tuple[type, ...]) -> Callable[[Any], Any]:
    """Of plain kinds, the one that it is; else ``None``, or the only other kind."""
    plain_kinds = tuple(kind for kind in kinds if kind in {int, str, types.NoneType})
    others = [_decoder(kind) for kind in kinds if kind not in plain_kinds]

    def decode_one(plain: Any) -> Any:
        if type(plain) in plain_kinds or not others:
            return _checked(plain, plain_kinds)
        return others[0](plain)

    return decode_one


def _checked(plain: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(plain, kind) or (isinstance(plain, bool) and kind is not bool):
        raise TypeError(f"wanted {kind}, got {plain!r}")
    return plain
