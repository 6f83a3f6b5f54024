# SPDX-License-Identifier: Apache-2.0
"""Errors on their way from the agent to its client: JSON, and the same exception again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slimnet import exceptions, records
from slimnet.exceptions import SlimnetError

__all__ = ["STATUS", "from_json", "http_status", "to_json"]

#: Error to the HTTP status (RFC 9110) that carries it; any other is 500.
STATUS: tuple[tuple[type[SlimnetError], int], ...] = (
    (exceptions.InvalidValue, 400),
    (exceptions.NotFound, 404),
    (exceptions.AlreadyExists, 409),
    (exceptions.InUse, 409),
    (exceptions.Conflict, 409),
    (exceptions.CapabilityMissing, 403),
    (exceptions.StoreUnreachable, 503),
)


def http_status(error: SlimnetError) -> int:
    """The HTTP status (RFC 9110) that carries ``error``."""
    return next((code for kind, code in STATUS if isinstance(error, kind)), 500)


def to_json(error: SlimnetError) -> dict[str, Any]:
    """Its class, what it was made with, and its message for other readers."""
    return {
        "error": type(error).__name__,
        "message": str(error),
        "arguments": [records.encode(argument) for argument in error.args],
    }


def from_json(value: Mapping[str, Any]) -> SlimnetError:
    """What :func:`to_json` was given."""
    kind = getattr(exceptions, str(value.get("error")), SlimnetError)
    message = str(value.get("message", "no message"))
    if not (isinstance(kind, type) and issubclass(kind, SlimnetError)):
        kind = SlimnetError
    try:
        error = kind(*value.get("arguments", [message]))
    except TypeError:
        return SlimnetError(message)
    return error
