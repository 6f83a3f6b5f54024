# SPDX-License-Identifier: Apache-2.0
"""Reading records of the store, and saying so where one is not there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from slimnet import records
from slimnet.abc import Revision, Store
from slimnet.cluster import keys
from slimnet.exceptions import InvalidValue
from slimnet.model import Network
from slimnet.names import missing

__all__ = ["everything", "network"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


def everything(store: Store, prefix: str, decode: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """All records below a prefix; those that cannot be read are passed over."""
    found = []
    for key, (data, _) in store.list(prefix)[0].items():
        try:
            found.append(records.load(key, data, decode))
        except InvalidValue as error:
            _log.warning("%s", error)
    return found


def network(store: Store, name: str) -> tuple[Network, Revision]:
    """The network of that name, and the revision that last changed it.

    Raises:
        NotFound: there is none; says which there are.
    """
    key = keys.NETWORK.at(name)
    found = store.get(key)
    if found is None:
        raise missing("network", name, [each.name for each in everything(
            store, keys.NETWORK.below(), records.network)])  # fmt: skip
    return records.load(key, found[0], records.network), found[1]
