# SPDX-License-Identifier: Apache-2.0
"""Stores: where desired state lives. The contract is :class:`slimnet.abc.Store`;
:func:`slimnet.plugins.open_store` opens one by its URL."""

from __future__ import annotations

from collections.abc import Mapping

from slimnet.exceptions import Conflict, InvalidValue

__all__ = ["check_leases", "unmet"]


def check_leases(leases: Mapping[str, int], put: Mapping[str, bytes]) -> None:
    """What :meth:`slimnet.abc.Store.transact` wants of its leases, whatever the driver.

    Raises:
        InvalidValue: one is for a key that is not put.
    """
    for key in leases.keys() - put.keys():
        raise InvalidValue(f"lease of store key {key}", "a key that is put", leases[key])


def unmet(key: str, wanted: int | None, found: int | None) -> Conflict:
    """What :meth:`slimnet.abc.Store.transact` raises of an expectation that does not hold.

    Args:
        key: of the store.
        wanted: the revision that was expected; ``None``: no such key.
        found: the revision that it has.
    """
    return Conflict(f"store key {key}: expected revision {wanted}, found {found}")
