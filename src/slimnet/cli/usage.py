# SPDX-License-Identifier: Apache-2.0
"""``slimnet usage``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from slimnet.cli.node import agent_option, is_named, none_named, open_agent, tell_stale, title
from slimnet.cli.output import Columns, output_option, show

__all__ = ["usage"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@click.command(
    epilog="""\b
Examples:
  slimnet usage                       by endpoint, and for each by rule
  slimnet usage --endpoint web        only those of an endpoint of that name
  slimnet usage -o json               bytes as numbers""",
)
@click.option("--endpoint", metavar="NAME", help="Only an endpoint of that name.")
@output_option
@agent_option
def usage(endpoint: str | None, output: str) -> None:
    """Show what this host's endpoints sent and received.

    Counted since each was attached, by the rule that allowed or refused it. EGRESS is what the
    endpoint opened, INGRESS what it accepted.
    """
    with open_agent() as node:
        endpoints = {each.id: each for each in node.endpoints()}
        accounts = node.accounts()
        rules = node.rules()
        tell_stale(node)
    names = {number: title(each) for number, each in endpoints.items()}
    if endpoint is not None and (error := none_named(endpoints.values(), endpoint)):
        raise error
    wanted = [
        each
        for each in accounts
        if endpoint is None
        or (each.endpoint in endpoints and is_named(endpoints[each.endpoint], endpoint))
    ]
    wanted.sort(key=lambda each: (names.get(each.endpoint, ""), each.direction, each.rule))
    columns: Columns = {
        "ENDPOINT": lambda row: names.get(row["endpoint"], f"#{row['endpoint']}"),
        "DIRECTION": "direction",
        "CONNECTIONS": "connections",
        "REFUSED": "refused",
        "SENT": lambda row: size(row["sent"]),
        "RECEIVED": lambda row: size(row["received"]),
        "RULE": "words",
    }
    show([_worded(each, rules) for each in wanted], columns, output)


def _worded(account: Any, rules: Mapping[int, str]) -> dict[str, Any]:
    from slimnet.records import encode  # noqa: PLC0415  # attrs, once there is something

    words = rules.get(account.rule, f"rule {account.rule}, which is no more")
    return {**encode(account), "words": words if account.rule else "no rule"}


def size(number: int) -> str:
    """Bytes as people read them: 999 B, 1.2 MiB."""
    power = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    return f"{number / 1024**power:.1f} {_UNITS[power]}" if power else f"{number} B"
