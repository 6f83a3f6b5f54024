# SPDX-License-Identifier: Apache-2.0
"""``slimnet endpoint``."""

from __future__ import annotations

import click

from slimnet.cli.node import (
    agent_option,
    complete_endpoint,
    label_option,
    labels_of,
    namespace_option,
    network_of,
    network_option,
    open_agent,
    path_of,
    ports_of,
    tell_stale,
    title,
)
from slimnet.cli.output import Columns, line, output_option, show, show_one

__all__ = ["endpoint"]


@click.group()
def endpoint() -> None:
    """Attach, label, list and remove endpoints.

    An endpoint is one overlay address on one host.
    """


@endpoint.command(
    epilog="""\b
Examples:
  slimnet endpoint add web -n prod -l app=web --port http=80
  slimnet endpoint add web -n prod --cgroup /sys/fs/cgroup/machine/web
  slimnet endpoint add web -n prod --cgroup /sys/fs/cgroup/web --closed
  slimnet endpoint add web -n prod --netns /run/netns/web

\b
Whatever is started in the cgroup that is printed is that endpoint:
  echo $$ > /sys/fs/cgroup/slimnet/default/prod.default.web/cgroup.procs

`slimnet run` does that, and gives the command namespaces of its own besides.""",
)
@click.argument("name")
@network_option
@namespace_option
@click.option("--ip", "address", metavar="ADDRESS", help="[default: the first free one]")
@label_option
@click.option(
    "--port", "ports", metavar="NAME=PORT[/PROTO]", multiple=True, help="A named port; repeatable."
)
@click.option("--cgroup", metavar="DIRECTORY", help="An existing one. [default: one is made]")
@click.option("--netns", metavar="PATH", help="An existing network namespace; not with preload.")
@click.option(
    "--closed",
    is_flag=True,
    help="Keep from all in the cgroup what `slimnet run` takes from a command: for a container"
    " in the host's network namespace. ebpf, with the BPF LSM.",
)
@output_option
@agent_option
def add(
    name: str,
    network: str | None,
    namespace: str,
    address: str | None,
    labels: tuple[str, ...],
    ports: tuple[str, ...],
    cgroup: str | None,
    netns: str | None,
    closed: bool,  # noqa: FBT001  # click's
    output: str,
) -> None:
    """Attach the endpoint NAME on this host.

    It stays until it is removed, with or without processes.
    """
    with open_agent() as node:
        made = node.attach(
            network_of(node, network),
            name,
            namespace=namespace,
            address=address,
            labels=labels_of(labels),
            ports=ports_of(ports),
            cgroup=cgroup,
            netns=netns,
            closed=closed,
        )
    answer = {
        "endpoint": title(made.endpoint),
        "address": made.endpoint.address,
        "id": made.endpoint.id,
        "cgroup": made.cgroup,
        "netns": made.netns,
        "hosts": made.hosts,
        "created": made.created,
    }
    show_one(answer, output)


@endpoint.command()
@network_option
@output_option
@agent_option
def ls(network: str | None, output: str) -> None:
    """List the endpoints of all hosts.

    Those of a host that is lost say so: its agent has ended, or does not reach the store.
    """
    from slimnet.records import encode  # noqa: PLC0415  # attrs, once there is something

    with open_agent() as node:
        lost = {each.name for each in node.host_states() if each.lost}
        rows = [{**encode(each), "lost": each.host in lost} for each in node.endpoints(network)]
        tell_stale(node)
    columns: Columns = {
        "NETWORK": "network",
        "NAMESPACE": "namespace",
        "NAME": "name",
        "ADDRESS": "address",
        "HOST": lambda row: f"{row['host']} (lost)" if row["lost"] else row["host"],
        "ID": "id",
        "LABELS": "labels",
    }
    show(rows, columns, output)


@endpoint.command(
    epilog="""\b
Examples:
  slimnet endpoint label web -n prod quarantine=yes       cut it off, where a policy says so
  slimnet endpoint label web -n prod quarantine-          and let it back in
  slimnet endpoint label web -n prod --overwrite track=stable"""
)
@click.argument("name", shell_complete=complete_endpoint)
@click.argument("changes", metavar="KEY=VALUE|KEY-...", nargs=-1, required=True)
@network_option
@namespace_option
@click.option("--overwrite", is_flag=True, help="Change the value of a label that is there.")
@output_option
@agent_option
def label(
    name: str,
    changes: tuple[str, ...],
    network: str | None,
    namespace: str,
    overwrite: bool,  # noqa: FBT001
    output: str,
) -> None:
    """Change the labels of an endpoint that runs.

    KEY=VALUE sets one, KEY- removes it, others stay. It may live on any host.
    Policies, services and limits that select it apply from then on, on this
    host when the command returns, and its live connections are judged again.
    """
    wanted = _changes(changes)
    with open_agent() as node:
        where, inside, plain = path_of(node, name, network, namespace)
        before = [
            each.labels
            for each in node.endpoints(where)
            if (each.namespace, each.name) == (inside, plain)
        ]
        made = node.label_endpoint(where, plain, wanted, inside, overwrite=overwrite)
    for key, value in wanted.items():
        if value is None and before and key not in before[0]:
            click.echo(f"label {key} not found", err=True)
    labels = ", ".join(f"{key}={value}" for key, value in made.labels.items())
    line(f"endpoint {title(made)}: {labels or 'no labels'}", made, output)


def _changes(words: tuple[str, ...]) -> dict[str, str | None]:
    """``("app=web", "track-")`` as labels, those that go with ``None``.

    Raises:
        InvalidValue: one is neither, or one label is named twice.
    """
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415

    found: dict[str, str | None] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key = word.removesuffix("-")
        if not key or (not equals and key == word):
            raise InvalidValue("label", "key=value, or key- to remove it", word)
        if key in found:
            raise InvalidValue("label", f"label {key} once", " ".join(words))
        found[key] = value if equals else None
    return found


@endpoint.command()
@click.argument("name", shell_complete=complete_endpoint)
@network_option
@namespace_option
@click.option("--kill", is_flag=True, help="End its processes first.")
@output_option
@agent_option
def rm(name: str, network: str | None, namespace: str, kill: bool, output: str) -> None:  # noqa: FBT001
    """Remove an endpoint.

    One of this host, or of a host that is lost. Refused while it has
    processes, unless --kill is given.
    """
    with open_agent() as node:
        where, inside, plain = path_of(node, name, network, namespace)
        node.detach(where, plain, inside, kill=kill)
    show_one({"removed": f"{where}/{inside}/{plain}"}, output)
