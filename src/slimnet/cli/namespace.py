# SPDX-License-Identifier: Apache-2.0
"""``slimnet namespace``."""

from __future__ import annotations

import click

from slimnet.cli.node import (
    agent_option,
    complete_namespace,
    label_option,
    labels_of,
    network_of,
    network_option,
    open_agent,
    tell_stale,
)
from slimnet.cli.output import line, output_option, show

__all__ = ["namespace"]


@click.group()
def namespace() -> None:
    """Label, list and remove namespaces.

    A namespace is a group of endpoints within a network; policies belong to one.
    """


@namespace.command(
    name="set",
    epilog="""\b
Examples:
  slimnet namespace set shop -n prod -l team=shop -l stage=live
  slimnet namespace set shop -n prod              without labels""",
)
@click.argument("name")
@network_option
@label_option
@output_option
@agent_option
def set_(name: str, network: str | None, labels: tuple[str, ...], output: str) -> None:
    """Make the namespace NAME, or label it anew.

    These labels take the place of those that it has.
    """
    with open_agent() as node:
        made = node.set_namespace(network_of(node, network), name, labels_of(labels))
    line(f"namespace {made.network}/{made.name}: {', '.join(labels) or 'no labels'}", made, output)


@namespace.command()
@network_option
@output_option
@agent_option
def ls(network: str | None, output: str) -> None:
    """List the namespaces and their labels."""
    with open_agent() as node:
        rows = node.namespaces(network)
        tell_stale(node)
    show(rows, {"NETWORK": "network", "NAMESPACE": "name", "LABELS": "labels"}, output)


@namespace.command()
@click.argument("name", shell_complete=complete_namespace)
@network_option
@output_option
@agent_option
def rm(name: str, network: str | None, output: str) -> None:
    """Remove a namespace and its policies.

    Refused while it has endpoints.
    """
    with open_agent() as node:
        where = network_of(node, network)
        node.remove_namespace(where, name)
    line(f"namespace {where}/{name} removed", {"network": where, "removed": name}, output)
