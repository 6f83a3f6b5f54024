# SPDX-License-Identifier: Apache-2.0
"""How far hosts have followed the store. They say it when somebody wants to know, so that a change
for which nobody waits makes nobody write: ``wanted`` is a revision, and every host that has it in
force writes ``~installed/<host>`` once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from slimnet import records
from slimnet.abc import Revision, Store
from slimnet.cluster import keys
from slimnet.cluster.change import retry
from slimnet.exceptions import Conflict, InvalidValue, NotFollowed, NotFound

__all__ = ["await_hosts", "want", "wanted"]

#: Seconds after which it is looked which hosts still live, while some are waited for.
_LOOK = 1.0


def wanted(value: bytes | None) -> Revision:
    """The revision that somebody waits for, of the value of ``wanted``; 0 where it is none."""
    try:
        return int(value or 0)
    except ValueError:
        return 0


def await_hosts(
    store: Store, revision: Revision, timeout: float, hosts: Iterable[str] | None = None
) -> dict[str, Revision]:
    """Wait until hosts have a revision in force.

    Args:
        store: that they follow.
        revision: of the store.
        timeout: seconds.
        hosts: their names; by default every one that lives.

    Returns:
        host name to the revision that it has in force, as it last said.

    Raises:
        NotFound: one of ``hosts`` does not live.
        NotFollowed: some have not, after ``timeout`` seconds; says which, and of one that says
            nothing its version.
    """
    asked = None if hosts is None else set(hosts)
    deadline = time.monotonic() + timeout
    reachable = want(store, revision)
    found, at = _said(store)
    names, looked = _live(store), time.monotonic()
    while True:
        if asked is not None and (gone := sorted(asked.difference(names))):
            raise NotFound(f"host {gone[0]!r}: it does not live; there are: {', '.join(names)}")
        there = {name: found.get(name, 0) for name in names if asked is None or name in asked}
        behind = [name for name, reached in there.items() if reached < revision]
        if not behind:
            return there
        left = deadline - time.monotonic()
        if left <= 0:
            late = ", ".join(_late(store, name, found.get(name)) for name in behind)
            raise NotFollowed(f"not everywhere at revision {revision}: {late}")
        try:
            events, at = store.watch(
                keys.INSTALLED.below(), after=at, timeout=max(0, min(left, _LOOK))
            )
        except Conflict:  # its history is gone
            found, at = _said(store)
            continue
        for event in events:
            name = event.key.removeprefix(keys.INSTALLED.below())
            found.pop(name, None)
            if event.value is not None:
                found[name] = _revision(event.key, event.value)
        if time.monotonic() - looked >= _LOOK or any(event.value is None for event in events):
            names, looked = _live(store), time.monotonic()
            if reachable < revision:
                reachable = want(store, revision)


def want(store: Store, revision: Revision) -> Revision:
    """Have every host say when it has this revision in force, or the store's own where that is
    not so far yet: one that never comes would hide all that others want later.

    Returns:
        the revision that is wanted of them.
    """

    def change() -> Revision:
        found, now = store.list(keys.WANTED.at())
        value, changed = found.get(keys.WANTED.at(), (None, None))
        asked = min(revision, now)
        if wanted(value) < asked:
            put = {keys.WANTED.at(): b"%d" % asked}
            store.transact(expect={keys.WANTED.at(): changed}, put=put)
        return asked

    return retry(change)


def _said(store: Store) -> tuple[dict[str, Revision], Revision]:
    pairs, at = store.list(keys.INSTALLED.below())
    return {
        key.removeprefix(keys.INSTALLED.below()): _revision(key, value)
        for key, (value, _) in pairs.items()
    }, at


def _late(store: Store, name: str, reached: Revision | None) -> str:
    """What is known of a host that has not followed."""
    if reached is not None:
        return f"{name} at {reached}"
    found = store.get(keys.HOST.at(name))
    version = ""
    with suppress(InvalidValue):
        if found is not None:
            version = records.load(keys.HOST.at(name), found[0], records.host).version
    of = f"slimnet {version}" if version else "an unknown version"
    return f"{name} says nothing (its agent, of {of}, hangs or is too old for that)"


def _revision(key: str, value: bytes) -> Revision:
    return records.load(key, value, lambda each: int(each["revision"]))


def _live(store: Store) -> list[str]:
    return [key.removeprefix(keys.HOST.below()) for key in store.list(keys.HOST.below())[0]]
