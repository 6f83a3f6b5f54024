# SPDX-License-Identifier: Apache-2.0
"""``slimnet connections`` and ``slimnet observe``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import click

from slimnet.cli.node import (
    age,
    agent_option,
    is_named,
    none_named,
    open_agent,
    tell_stale,
    title,
)
from slimnet.cli.output import output_option, show, stream

__all__ = ["connections", "observe"]

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}


def _at(end: Any) -> str:
    address, port = end
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


@click.command()
@output_option
@agent_option
def connections(output: str) -> None:
    """List the live connections of this host's endpoints."""
    with open_agent() as node:
        names = {each.id: title(each) for each in node.endpoints()}
        rows = node.connections()
        tell_stale(node)
    now = time.time()

    def name_of(key: str) -> Any:
        return lambda row: names.get(row[key], "outside" if row[key] == 0 else f"#{row[key]}")

    columns = {
        "ENDPOINT": name_of("endpoint"),
        "DIRECTION": "direction",
        "LOCAL": lambda row: _at(row["local"]),
        "PEER": lambda row: _at(row["peer"]),
        "PEER ENDPOINT": name_of("peer_endpoint"),
        "WIRE": lambda row: row["wire"] or "direct",
        "STATE": "state",
        "AGE": lambda row: age(now - row["opened"]) if row["opened"] else "",
    }
    show(rows, columns, output)


@click.command(
    epilog="""\b
Examples:
  slimnet observe                       what happens from now on, until ^C
  slimnet observe --kind refused        only what policy or nobody refused
  slimnet observe --last                the last refusals, and no more
  slimnet observe --count 10 -o json    ten events, one JSON object a line""",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(["opened", "refused", "closed"]),
    multiple=True,
    help="Only these; may be repeated.",
)
@click.option("--endpoint", metavar="NAME", help="Only those of an endpoint of that name.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events.")
@click.option("--last", is_flag=True, help="The refusals that the agent remembers, then end.")
@output_option
@agent_option
def observe(
    kinds: tuple[str, ...],
    endpoint: str | None,
    count: int | None,
    last: bool,  # noqa: FBT001
    output: str,
) -> None:
    """Show connections as they open, are refused and close.

    Those of this host's endpoints, live. A backend may tell of refusals only (noop does).
    """
    with open_agent() as node:
        found = {each.id: each for each in node.endpoints()}
        tell_stale(node)

        def find(number: int) -> Any:
            if number and number not in found:  # attached since
                found.update({each.id: each for each in node.endpoints()})
            return found.get(number)

        def name_of(number: int) -> str:
            there = find(number)
            return "" if there is None else title(there)

        if endpoint is not None and (error := none_named(found.values(), endpoint)):
            if last:
                raise error
            click.echo(f"slimnet: {error}; waiting for it", err=True)

        # Before the heading: who has read that misses nothing that happens afterwards.
        events = node.refusals() if last else node.events()

        def wanted() -> Iterator[Any]:
            for event in events:
                if kinds and event.kind.value not in kinds:
                    continue
                there = None if endpoint is None else find(event.endpoint)
                if endpoint is None or (there is not None and is_named(there, endpoint)):
                    yield event

        columns = {
            "TIME": (12, lambda row: _clock(row["time"])),
            "KIND": (7, "kind"),
            "ENDPOINT": (20, lambda row: name_of(row["endpoint"])),
            "DIRECTION": (9, "direction"),
            "PROTO": (5, lambda row: _PROTOCOLS.get(row["protocol"], row["protocol"])),
            "SOURCE": (21, lambda row: _at(row["source"])),
            "DESTINATION": (21, lambda row: _at(row["destination"])),
            "DETAIL": (0, _detail),
        }
        stream(islice(wanted(), count), columns, output)


def _detail(row: Mapping[str, Any]) -> str:
    if row["kind"] == "closed":
        return f"sent {row['sent']} received {row['received']} in {row['duration']:.3f}s"
    reason = str(row["reason"]).replace("_", " ")
    return f"{reason} (and {row['omitted']} more)" if row["omitted"] else reason


def _clock(seconds: float) -> str:
    whole = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}"
