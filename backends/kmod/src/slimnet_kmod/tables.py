# SPDX-License-Identifier: Apache-2.0
"""Tables on their way into the module: made ready out of the data path's sight, then put in
force at once (SLIM_CMD_TABLES_BEGIN, PUT and COMMIT)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slimnet.encoding import encodings
from slimnet.tables import Change, Tables
from slimnet_kmod import contract
from slimnet_kmod.messages import ROOM
from slimnet_kmod.module import Module

__all__ = ["commit", "parts", "prepare"]

_TABLES = {
    "addresses": contract.SLIM_NL_ADDRESSES,
    "endpoints": contract.SLIM_NL_ENDPOINTS,
    "cidrs": contract.SLIM_NL_CIDRS,
    "policy": contract.SLIM_NL_POLICY,
    "services": contract.SLIM_NL_SERVICES,
}


def prepare(module: Module, tables: Tables, change: Change | None = None) -> None:
    """Make tables ready.

    Args:
        module: which holds the data path.
        tables: all of them.
        change: what differs from those in force, where only that is to be sent.

    Raises:
        RequestRefused: nothing changed.
    """
    module.request(
        contract.SLIM_CMD_TABLES_BEGIN,
        GENERATION=tables.generation,
        BASE=None if change is None else change.base,
    )
    for kind in encodings({}):
        if kind.table not in _TABLES:
            continue  # what this data path does not carry
        gone = [] if change is None else [kind.key(key) for key in kind.gone(change)]
        for attribute, items in (
            ("GONE", gone),
            ("RECORDS", [*kind.records(tables if change is None else change.set)]),
        ):
            for part in parts(items):
                module.request(
                    contract.SLIM_CMD_TABLES_PUT,
                    TABLE=_TABLES[kind.table],
                    **{attribute: part},
                )


def commit(module: Module, tables: Tables) -> None:
    """Put in force what was made ready, and close what it forbids.

    Raises:
        RequestRefused: the tables before stay in force.
    """
    module.request(contract.SLIM_CMD_TABLES_COMMIT, GENERATION=tables.generation)


def parts(items: Sequence[bytes]) -> Iterator[bytes]:
    """As few messages as there need be; a table's records, or keys, are all of one length."""
    if items:
        many = ROOM // len(items[0])
        for start in range(0, len(items), many):
            yield b"".join(items[start : start + many])
