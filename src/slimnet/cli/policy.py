# SPDX-License-Identifier: Apache-2.0
"""``slimnet policy``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from slimnet.cli.node import (
    agent_option,
    complete_endpoint,
    complete_policy,
    find_endpoint,
    namespace_option,
    network_of,
    network_option,
    open_agent,
)
from slimnet.cli.output import Columns, line, output_option, show, show_one

if TYPE_CHECKING:
    from slimnet.policy import Policy

__all__ = ["policy"]

_STAGES: Columns = {
    "DIRECTION": "direction",
    "ENDPOINT": "endpoint",
    "HOST": "host",
    "ALLOWED": "allowed",
    "REASON": lambda stage: stage["reason"].replace("_", " "),
    "RULE": "rule",
    "DOUBT": "doubt",
}
_FILE = click.Path(exists=True, dir_okay=False)


@click.group()
def policy() -> None:
    """Say who may connect to whom.

    Policies are Kubernetes NetworkPolicy and ClusterNetworkPolicy documents.
    """


@policy.command(
    epilog="""\b
Example: only endpoints with app=web reach those with app=db, on port 5432
  kind: NetworkPolicy
  apiVersion: networking.k8s.io/v1
  metadata: {name: db}
  spec:
    podSelector: {matchLabels: {app: db}}
    ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 5432}]""",
)
@click.argument("file", type=_FILE)
@network_option
@output_option
@agent_option
def apply(file: str, network: str | None, output: str) -> None:
    """Put the policies of FILE in force.

    All of them, or none where one is wrong.
    """
    with open_agent() as node:
        policies = node.apply_policy(file, network)
    names = ", ".join(each.title for each in policies) or "no policies in the file"
    line(f"in force: {names}", [each.to_json() for each in policies], output)


@policy.command()
@output_option
@agent_option
def ls(output: str) -> None:
    """List the policies."""
    with open_agent() as node:
        policies = node.policies()
    _show(policies, output)


def _show(policies: Sequence[Policy], output: str) -> None:
    rows = [
        {
            "kind": type(each).__name__,
            "network": getattr(each, "network", None),
            "namespace": getattr(each, "namespace", None),
            "name": each.name,
            "mandatory": each.mandatory,
            "source": each.source.at(""),
            "manifest": each.manifest,
        }
        for each in policies
    ]
    columns = {
        "KIND": "kind",
        "NETWORK": "network",
        "NAMESPACE": "namespace",
        "NAME": "name",
        "SOURCE": "source",
    }
    show(rows, columns, output)


@policy.command()
@click.argument("name", shell_complete=complete_policy)
@network_option
@namespace_option
@click.option("--cluster", is_flag=True, help="A cluster-wide one.")
@output_option
@agent_option
def rm(name: str, network: str | None, namespace: str, cluster: bool, output: str) -> None:  # noqa: FBT001
    """Remove a policy."""
    with open_agent() as node:
        if cluster:
            node.remove_policy(name)
        else:
            node.remove_policy(name, network_of(node, network), namespace)
    line(f"policy {name} removed", {"removed": name}, output)


@policy.command(
    epilog="""\b
Examples:
  slimnet policy explain --from web --to db:5432
  slimnet policy explain --from prod/shop/web --to 192.0.2.7:443
  slimnet policy explain --from 10.1.0.4 --to 10.1.0.9:53 --protocol udp

\b
Exit status: 0 allowed, 1 denied.""",
)
@click.option(
    "--from", "source", metavar="ENDPOINT", required=True, shell_complete=complete_endpoint,
    help="Who connects: [[network/]namespace/]name, or an address.",
)  # fmt: skip
@click.option(
    "--to", "target", metavar="ENDPOINT:PORT", required=True, shell_complete=complete_endpoint,
    help="Where to.",
)  # fmt: skip
@click.option(
    "--protocol", type=click.Choice(["tcp", "udp", "sctp"]), default="tcp", show_default=True
)
@network_option
@output_option
@agent_option
def explain(source: str, target: str, protocol: str, network: str | None, output: str) -> int:
    """Say whether a connection is allowed, and by which rule."""
    where, port = _split(target)
    with open_agent() as node:
        endpoints = node.endpoints()
        opener = find_endpoint(endpoints, source, network)
        acceptor = find_endpoint(endpoints, where, network)
        known = opener or acceptor
        answer = node.explain(
            known.network if known else network_of(node, network),
            str(opener.address) if opener else source,
            str(acceptor.address) if acceptor else where,
            port,
            protocol,
        )
    if output == "table":
        click.echo(answer["summary"])
        show(answer["stages"], _STAGES, output)
    else:
        show_one(answer, output)
    return 0 if answer["allowed"] else 1


@policy.command()
@click.argument("files", metavar="FILE...", type=_FILE, nargs=-1, required=True)
@network_option
@output_option
@agent_option
def check(files: tuple[str, ...], network: str | None, output: str) -> None:
    """Say what is wrong with policy files.

    Nothing is changed.
    """
    from slimnet.policy import load  # noqa: PLC0415  # YAML and the compiler

    policies = [each for file in files for each in load(file, network=network or "default")]
    _show(policies, output)


def _split(target: str) -> tuple[str, int]:
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415

    where, _, port = target.rpartition(":")
    if not where or not port.isdigit() or int(port) > 65535:
        raise InvalidValue("--to", "ENDPOINT:PORT", target)
    return where, int(port)
