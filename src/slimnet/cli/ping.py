# SPDX-License-Identifier: Apache-2.0
"""``slimnet ping``."""

from __future__ import annotations

import statistics
from typing import Any

import click

from slimnet.cli.node import (
    agent_option,
    complete_endpoint,
    network_option,
    open_agent,
    port_of,
)
from slimnet.cli.output import Columns, output_option, show_one

__all__ = ["ping"]


@click.command(
    epilog="""\b
Examples:
  slimnet ping web:80
  slimnet ping prod/shop/db:5432 --from api --count 10
  slimnet ping 10.1.0.9

\b
Exit status: 0 it was carried, accelerated or by the fallback overlay; 1 it was
denied, or nothing answers.""",
)
@click.argument("target", metavar="ENDPOINT[:PORT]", shell_complete=complete_endpoint)
@click.option(
    "--from", "source", metavar="ENDPOINT", shell_complete=complete_endpoint,
    help="An endpoint of this host. [default: a temporary one, without labels]",
)  # fmt: skip
@click.option("--count", type=click.IntRange(1, 1000), default=3, show_default=True)
@click.option("--timeout", type=float, default=3.0, show_default=True, help="Seconds for each.")
@network_option
@output_option
@agent_option
def ping(
    target: str, source: str | None, count: int, timeout: float, network: str | None, output: str
) -> int:
    """Say how ENDPOINT is reached, and how quickly.

    A TCP connection to it is accelerated, or takes the fallback overlay, or is denied, and then it
    says by which rule. Without a PORT, an endpoint that refuses the connection
    has answered too.
    """
    name, port = _split(target)
    with open_agent() as node:
        answer = node.ping(
            name, port=port, source=source, network=network, count=count, timeout=timeout
        )
    show_one({"target": target, **answer} if output == "table" else answer, output, _COLUMNS)
    reached = answer["carried"] in ("accelerated", "fallback") and answer["error"] is None
    return 0 if reached else 1


def _split(target: str) -> tuple[str, int | None]:
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415

    name, colon, text = target.partition(":")
    port = port_of(text)
    if colon and port is None:
        raise InvalidValue("ENDPOINT[:PORT]", "a name or an IPv4 address, and a port", target)
    return name, port


def _round_trip(answer: Any) -> str:
    times = answer["milliseconds"]
    if answer["error"] is not None:
        took = f" after {times[-1]:.3f} ms" if times else ""
        return f"{answer['error']}{took}"
    if len(times) <= 1:
        return "".join(f"{each:.3f} ms" for each in times)
    middle = statistics.median(times)
    return f"{middle:.3f} ms (median of {len(times)}, {min(times):.3f} to {max(times):.3f})"


def _why(answer: Any) -> str:
    if answer["carried"] == "denied":
        return str(answer["explanation"]["summary"])
    return str(answer["why"])


_COLUMNS: Columns = {
    "target": "target",
    "carried": "carried",
    "wire": lambda answer: answer["wire"] or "none needed",
    "connect": _round_trip,
    "why": _why,
}
