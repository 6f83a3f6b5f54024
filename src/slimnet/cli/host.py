# SPDX-License-Identifier: Apache-2.0
"""``slimnet host``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from slimnet.cli.node import age, agent_option, complete_host, open_agent, tell_stale
from slimnet.cli.output import Columns, output_option, show, show_one

if TYPE_CHECKING:
    from slimnet.model import HostState

__all__ = ["host", "rows_of", "seen"]


@click.group()
def host() -> None:
    """List the hosts of the cluster, and remove lost ones."""


@host.command(
    epilog="""\b
Examples:
  slimnet host ls
  slimnet host ls -o json | jq '.[] | select(.lost)'

\b
INSTALLED is the store's revision whose tables are in force there: "7 of 9" where the host
has not followed yet, or did not say so within a second. GENERATION counts the changes of that
host's own tables.""",
)
@output_option
@agent_option
def ls(output: str) -> None:
    """List the hosts, lost ones too.

    A host is lost when its agent has ended, or does not reach the store, for the time of its
    lease. Its data path may go on; the others take it and its endpoints for gone.
    """
    with open_agent() as node:
        states = node.host_states()
        tell_stale(node)
    show(rows_of(states), _COLUMNS, output)


@host.command(
    epilog="""\b
Example:
  slimnet host rm h3""",
)
@click.argument("name", metavar="HOST", shell_complete=complete_host)
@output_option
@agent_option
def rm(name: str, output: str) -> None:
    """Forget a lost host, and remove its endpoints.

    Refused while it lives. Its agent, started again, is there as before, without those endpoints.
    """
    with open_agent() as node:
        node.remove_host(name)
    show_one({"removed": name}, output)


def rows_of(states: Iterable[HostState]) -> list[dict[str, Any]]:
    """Hosts as rows: what is known of each, and what it was last."""
    from slimnet.records import encode  # noqa: PLC0415  # attrs, once there is something

    rows = map(encode, states)
    return [{**row, **(row.pop("host") or {})} for row in rows]


def seen(row: Any) -> str:
    """When a host was seen last."""
    if not row["lost"]:
        return "now"
    return f"{age(time.time() - row['seen'])} ago" if row["seen"] else "unknown"


def _installed(row: Any) -> str:
    if not row["lost"] and row["installed"] < row["wanted"]:
        return f"{row['installed']} of {row['wanted']}"
    return str(row["installed"] or "")


_COLUMNS: Columns = {
    "HOST": "name",
    "STATE": lambda row: "lost" if row["lost"] else "live",
    "SEEN": seen,
    "ADDRESS": "address",
    "VERSION": "version",
    "BACKEND": "backend",
    "KEY": "key",
    "GENERATION": lambda row: row["generation"] or "",
    "INSTALLED": _installed,
    "ENDPOINTS": "endpoints",
}
