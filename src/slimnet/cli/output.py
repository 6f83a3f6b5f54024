# SPDX-License-Identifier: Apache-2.0
"""``-o table|json|yaml``: one list of rows, three ways to show it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

__all__ = ["Columns", "line", "output_option", "show", "show_one", "stream"]

_F = TypeVar("_F", bound=Callable[..., Any])

#: Heading to the key of a row, or to what makes the cell of a row.
Columns = Mapping[str, str | Callable[[Mapping[str, Any]], object]]

# What a cell says, and its colour on a terminal.
_COLOURS = {
    "accelerated": "green",
    "allowed": "green",
    "yes": "green",
    "true": "green",
    "opened": "green",
    "fallback": "yellow",
    "unknown": "yellow",
    "warning": "yellow",
    "closed": "cyan",
    "lost": "red",
    "no": "red",
    "false": "red",
    "denied": "red",
    "refused": "red",
    "unreachable": "red",
}


def output_option(function: _F) -> _F:
    """Give a command ``-o``."""
    option = click.option(
        "-o",
        "--output",
        "output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="How to show the answer.",
    )
    return option(function)


def show(rows: Iterable[Any], columns: Columns, output: str) -> None:
    """Show values (attrs objects or mappings): all fields as JSON or YAML, or
    ``columns`` of them as a table."""
    records = _plain(list(rows))
    if output == "table":
        _table(records, columns)
    else:
        _dump(records, output)


def show_one(value: Any, output: str, columns: Columns | None = None) -> None:
    """Show one value; as a table it has a line for each of ``columns``."""
    record = _plain(value)
    if output != "table":
        _dump(record, output)
        return
    # What has nothing to say is left out.
    cells = {title: _cell(record, key) for title, key in (columns or dict(_keys(record))).items()}
    width = max(map(len, cells), default=0)
    for title, cell in cells.items():
        if not cell:
            continue
        head, *more = cell.split("\n")
        click.echo(f"{click.style(title.ljust(width), bold=True)}  {_styled(head)}")
        for text in more:
            click.echo(" " * (width + 2) + text)


def stream(rows: Iterable[Any], columns: Mapping[str, tuple[int, Any]], output: str) -> None:
    """Show values as they come: a line each; columns have their widths with them."""
    if output == "table":
        heads = (title.ljust(width) for title, (width, _) in columns.items())
        click.secho(" ".join(heads).rstrip(), bold=True)
        sys.stdout.flush()
    for row in rows:
        record = _plain(row)
        if output == "json":
            click.echo(json.dumps(record))
        elif output == "yaml":
            click.echo("---")
            _dump(record, output)
        else:
            cells = ((_cell(record, key), width) for width, key in columns.values())
            click.echo(" ".join(_styled(cell, width) for cell, width in cells).rstrip())
        sys.stdout.flush()


def line(text: str, value: Any, output: str) -> None:
    """Say what a change did: ``text`` for people, ``value`` for programs."""
    if output == "table":
        click.echo(text)
    else:
        _dump(_plain(value), output)


def _plain(value: Any) -> Any:
    from slimnet.records import encode  # noqa: PLC0415  # attrs, once there is something

    return encode(value)


def _keys(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ((key.replace("_", " "), key) for key in record)


def _dump(value: Any, output: str) -> None:
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    else:
        import yaml  # noqa: PLC0415  # 20 ms

        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def _cell(record: Mapping[str, Any], key: str | Callable[[Mapping[str, Any]], object]) -> str:
    value = key(record) if callable(key) else record.get(key)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={text}" for name, text in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)


def _styled(cell: str, width: int = 0) -> str:
    colour = _COLOURS.get(cell)
    padded = cell.ljust(width)
    return click.style(padded, fg=colour) if colour else padded


def _table(records: Sequence[Mapping[str, Any]], columns: Columns) -> None:
    rows = [[_cell(record, key) for key in columns.values()] for record in records]
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and _rich_table(columns, rows):
        return
    widths = [
        max(len(title), *(len(row[at]) for row in rows)) if rows else len(title)
        for at, title in enumerate(columns)
    ]
    heads = (title.ljust(width) for title, width in zip(columns, widths, strict=True))
    click.secho("  ".join(heads).rstrip(), bold=True)
    for row in rows:
        cells = (_styled(cell, width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _rich_table(columns: Columns, rows: Sequence[Sequence[str]]) -> bool:
    """On a terminal, where rich is installed: wraps what is too wide."""
    try:
        from rich.console import Console  # noqa: PLC0415  # an extra, and 60 ms
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console().print(table)
    return True
