# SPDX-License-Identifier: Apache-2.0
"""``slimnet status``."""

from __future__ import annotations

import time
from typing import Any

import click

from slimnet.cli.node import age, agent_option, open_agent
from slimnet.cli.output import Columns, output_option, show, show_one

__all__ = ["status"]


@click.command(
    epilog="""\b
Examples:
  slimnet status
  slimnet status --wait          until every host has what was changed before
  slimnet status -o json | jq .generation

\b
Exit status: 0 all is in force; 1 something stands in its way, and says what.""",
)
@click.option("--wait", is_flag=True, help="First wait until every live host has followed.")
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for --wait.")
@output_option
@agent_option
def status(wait: bool, timeout: float, output: str) -> int:  # noqa: FBT001
    """Show what is in force here, and what is in its way."""
    with open_agent() as node:
        if wait:
            node.wait(timeout=timeout)
        answer = node.status()
        hosts = node.hosts()
    if output != "table":
        show_one({**answer, "hosts": hosts}, output)
    else:
        show_one(answer, output, _COLUMNS)
        click.echo()
        show(hosts, _HOST_COLUMNS, output)
    return 0 if answer["ready"] else 1


def _refusals(answer: Any) -> str:
    counters = answer["counters"]
    told = [f"{count} {reason.replace('_', ' ')}" for reason, count in counters.items() if count]
    return "\n".join(told)


def _features(answer: Any) -> str:
    return ", ".join(each.replace("_", " ") for each in answer["features"])


_HOST_COLUMNS: Columns = {
    "HOST": "name",
    "ADDRESS": "address",
    "BACKEND": "backend",
    "WIRES": "wires",
    "ENFORCING": "enforcing",
    "KEY": "key",
    "FEATURES": _features,
}
_COLUMNS: Columns = {
    "host": lambda answer: f"{answer['host']} ({answer['address']} on {answer['interface']})",
    "instance": "instance",
    "ready": "ready",
    "trouble": lambda answer: "\n".join(answer["trouble"]),
    "backend": "backend",
    "because": "why",
    "enforcing": "enforcing",
    "wires": "wires",
    "features": _features,
    "generation": "generation",
    "revision": "revision",
    "endpoints": lambda answer: len(answer["attached"]),
    "counters": _refusals,
    "store": "store",
    "agent": lambda answer: f"process {answer['pid']}, since {age(time.time() - answer['since'])}",
}
