# SPDX-License-Identifier: Apache-2.0
"""``slimnet network``."""

from __future__ import annotations

import click

from slimnet.cli.node import agent_option, complete_network, open_agent, tell_stale
from slimnet.cli.output import Columns, line, output_option, show

__all__ = ["network"]


@click.group()
def network() -> None:
    """Make, list and remove networks.

    A network is one overlay, of one or more address ranges.
    """


@network.command(
    epilog="""\b
Examples:
  slimnet network create prod 10.1.0.0/16
  slimnet network create lab 10.2.0.0/16 10.3.0.0/16 --vni 4711""",
)
@click.argument("name")
@click.argument("cidrs", metavar="CIDR...", nargs=-1, required=True)
@click.option("--vni", type=int, help="VXLAN network identifier. [default: the first free one]")
@output_option
@agent_option
def create(name: str, cidrs: tuple[str, ...], vni: int | None, output: str) -> None:
    """Make a network of the address ranges CIDR...

    The ranges may overlap no other network's, nothing that a host has on an interface of its own
    (a Docker bridge), and no name server of a host.
    """
    with open_agent() as node:
        made = node.create_network(name, cidrs, vni)
    line(f"network {made.name}: {', '.join(map(str, made.cidrs))}, VNI {made.vni}", made, output)


@network.command()
@output_option
@agent_option
def ls(output: str) -> None:
    """List the networks."""
    with open_agent() as node:
        endpoints = node.endpoints()
        rows = node.networks()
        tell_stale(node)
    count = {
        each.name: sum(1 for endpoint in endpoints if endpoint.network == each.name)
        for each in rows
    }
    columns: Columns = {
        "NETWORK": "name",
        "VNI": "vni",
        "RANGES": "cidrs",
        "ENDPOINTS": lambda row: count[row["name"]],
    }
    show(rows, columns, output)


@network.command()
@click.argument("name", shell_complete=complete_network)
@output_option
@agent_option
def rm(name: str, output: str) -> None:
    """Remove a network, its namespaces and policies.

    Refused while it has endpoints.
    """
    with open_agent() as node:
        node.remove_network(name)
    line(f"network {name} removed", {"removed": name}, output)
