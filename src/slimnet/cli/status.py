# SPDX-License-Identifier: Apache-2.0
"""``slimnet status``."""

from __future__ import annotations

import time
from typing import Any

import click

from slimnet.cli.host import rows_of, seen
from slimnet.cli.node import age, agent_option, complete_host, open_agent
from slimnet.cli.output import Columns, output_option, show, show_one

__all__ = ["status"]


@click.command(
    epilog="""\b
Examples:
  slimnet status
  slimnet status --wait          until every host has what was changed before
  slimnet status --wait --host h2
  slimnet status -o json | jq .generation

\b
Exit status: 0 all is in force; 1 something stands in its way, and says what.""",
)
@click.option("--wait", is_flag=True, help="First wait until every live host has followed.")
@click.option("--host", "hosts", metavar="HOST", multiple=True, shell_complete=complete_host,
              help="With --wait: only for this one; may be repeated.")  # fmt: skip
@click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds for --wait.")
@output_option
@agent_option
def status(wait: bool, hosts: tuple[str, ...], timeout: float, output: str) -> int:  # noqa: FBT001
    """Show what is in force here, and what is in its way."""
    from slimnet.exceptions import (  # noqa: PLC0415  # the library, when it runs
        InvalidValue,
        NotFollowed,
        StoreUnreachable,
    )

    if hosts and not wait:
        raise InvalidValue("--host", "--wait beside it", hosts[0])
    late = ""
    with open_agent() as node:
        if wait:
            try:
                node.wait(timeout=timeout, hosts=hosts or None)
            except NotFollowed as error:
                late = str(error)
            except StoreUnreachable:
                pass  # as the status says
        answer = node.status()
        rows = rows_of(node.host_states())
    if late:
        answer = {**answer, "ready": False, "trouble": [*answer["trouble"], late]}
    if output != "table":
        show_one({**answer, "hosts": rows}, output)
    else:
        show_one(answer, output, _COLUMNS)
        click.echo()
        show(rows, _HOST_COLUMNS, output)
    return 0 if answer["ready"] else 1


def _refusals(answer: Any) -> str:
    counters = answer["counters"]
    told = [f"{count} {reason.replace('_', ' ')}" for reason, count in counters.items() if count]
    return "\n".join(told)


def _features(answer: Any) -> str:
    return ", ".join(each.replace("_", " ") for each in answer.get("features", ()))


_HOST_COLUMNS: Columns = {
    "HOST": "name",
    "SEEN": seen,
    "ADDRESS": "address",
    "BACKEND": "backend",
    "WIRES": "wires",
    "ENFORCING": "enforcing",
    "KEY": "key",
    "FEATURES": _features,
}


def _revision(answer: Any) -> object:
    if answer["installed"] == answer["revision"]:
        return answer["revision"]
    return f"{answer['revision']}, of which {answer['installed']} is in force"


_COLUMNS: Columns = {
    "host": lambda answer: f"{answer['host']} ({answer['address']} on {answer['interface']})",
    "instance": "instance",
    "ready": "ready",
    "trouble": lambda answer: "\n".join(answer["trouble"]),
    "warnings": lambda answer: "\n".join(answer.get("warnings", ())),
    "backend": "backend",
    "because": "why",
    "enforcing": "enforcing",
    "wires": "wires",
    "features": _features,
    "generation": "generation",
    "revision": _revision,
    "endpoints": lambda answer: len(answer["attached"]),
    "counters": _refusals,
    "store": "store",
    "agent": lambda answer: f"process {answer['pid']}, since {age(time.time() - answer['since'])}",
}
