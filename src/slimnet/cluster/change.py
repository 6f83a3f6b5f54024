# SPDX-License-Identifier: Apache-2.0
"""Changes of the store that many may attempt at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from attrs import field, frozen

from slimnet.abc import Revision, Store
from slimnet.cluster import keys
from slimnet.exceptions import Conflict

__all__ = ["Guard", "arrival", "counter", "retry", "ruling"]

T = TypeVar("T")

_ATTEMPTS = 100
#: Counters: of what rules on endpoints; and of endpoints that come or change, whose revision
#: alone says something.
_RULES, _ARRIVALS = "rule", "endpoint"


@frozen
class Guard:
    """Part of a transaction that no two can both do.

    Attributes:
        number: what the counter gives out.
        expect: for :meth:`slimnet.abc.Store.transact`.
        put: for the same.
    """

    number: int = 0
    expect: dict[str, Revision | None] = field(factory=dict)
    put: dict[str, bytes] = field(factory=dict)


def counter(store: Store, what: str) -> Guard:
    """The next number of ``counters/<what>``. What is read after this and written
    in one transaction with it was not changed by another one with the same counter."""
    key = keys.COUNTER.at(what)
    found = store.get(key)
    number = int(found[0]) + 1 if found else 1
    return Guard(number, {key: found[1] if found else None}, {key: b"%d" % number})


def arrival(store: Store) -> Guard:
    """Part of a transaction by which an endpoint comes or changes: whoever rules on endpoints
    meanwhile makes one of the two a :class:`~slimnet.Conflict`. Two arrivals never do, wherever
    they are."""
    rules = counter(store, _RULES)
    return Guard(expect=rules.expect, put={keys.COUNTER.at(_ARRIVALS): b"1"})


def ruling(store: Store) -> Guard:
    """Part of a transaction that depends on which endpoints there are, and what they are: none
    comes or changes between what is read after this and what is written with it."""
    rules, arrivals = counter(store, _RULES), counter(store, _ARRIVALS)
    return Guard(expect={**rules.expect, **arrivals.expect}, put=rules.put)


def retry(change: Callable[[], T]) -> T:
    """Do it again, from reading on, while others are quicker.

    Raises:
        Conflict: they were, a hundred times.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return change()
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, 0.002 * min(attempt + 1, 10)))  # noqa: S311
    raise AssertionError
