# SPDX-License-Identifier: Apache-2.0
"""The fields that manifests may have: what the parser checks against, and the
reference page is made from."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from attrs import frozen

__all__ = ["Field", "Schema", "paths"]


@frozen
class Field:
    """One field of a table.

    Attributes:
        meaning: in a line; of a refused one, why.
        below: the fields of the table that it is, or that each of its entries is.
        many: whether it is a list.
        refused: whether Kubernetes knows it and slimnet cannot honour it.
    """

    meaning: str
    below: Schema | None = None
    many: bool = False
    refused: bool = False


Schema = Mapping[str, Field]


def paths(
    schema: Schema, above: str = "", stop: Container[int] = ()
) -> Iterator[tuple[str, Field]]:
    """Every field with its path (``spec.ingress[].from[].ipBlock``), in order.

    Args:
        schema: of a table.
        above: the table's own path.
        stop: ids of tables that are told already; the caller may add to them on the way.
    """
    for name, item in schema.items():
        path = f"{above}.{name}" if above else name
        path += "[]" if item.many else ""
        known = id(item.below) in stop
        yield path, item
        if item.below is not None and not known:
            yield from paths(item.below, path, stop)
