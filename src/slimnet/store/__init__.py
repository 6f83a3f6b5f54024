# SPDX-License-Identifier: Apache-2.0
"""Stores: where desired state lives. The contract is :class:`slimnet.abc.Store`;
:func:`slimnet.plugins.open_store` opens one by its URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slimnet.exceptions import Conflict, InvalidValue

__all__ = ["APART", "check_leases", "check_prefixes", "unmet"]

#: What the keys begin with that lie apart (:meth:`slimnet.abc.Store.watch`).
APART = "~"


def check_leases(leases: Mapping[str, int], put: Mapping[str, bytes]) -> None:
    """What :meth:`slimnet.abc.Store.transact` wants of its leases, whatever the driver.

    Raises:
        InvalidValue: one is for a key that is not put.
    """
    for key in leases.keys() - put.keys():
        raise InvalidValue(f"lease of store key {key}", "a key that is put", leases[key])


def check_prefixes(prefixes: Sequence[str]) -> bool:
    """Whether these, to be watched together, are of keys that lie apart.

    Raises:
        InvalidValue: one is, and it is not the only one.
    """
    apart = [each for each in prefixes if each.startswith(APART)]
    if apart and len(prefixes) > 1:
        wanted = f"one prefix, where it begins with {APART}"
        raise InvalidValue("store watch", wanted, ", ".join(prefixes))
    return bool(apart)


def unmet(key: str, wanted: int | None, found: int | None) -> Conflict:
    """What :meth:`slimnet.abc.Store.transact` raises of an expectation that does not hold.

    Args:
        key: of the store.
        wanted: the revision that was expected; ``None``: no such key.
        found: the revision that it has.
    """
    return Conflict(f"store key {key}: expected revision {wanted}, found {found}")
