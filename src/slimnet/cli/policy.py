# SPDX-License-Identifier: Apache-2.0
"""``slimnet policy``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slimnet.cli.node import (
    agent_option,
    complete_endpoint,
    complete_kind,
    complete_policy,
    namespace_option,
    network_of,
    network_option,
    open_agent,
    port_of,
    tell_stale,
)
from slimnet.cli.output import Columns, line, output_option, show, show_one

if TYPE_CHECKING:
    from slimnet.policy import Document, PolicyWarning

__all__ = ["policy"]

_F = TypeVar("_F", bound=Callable[..., Any])

_STAGES: Columns = {
    "DIRECTION": "direction",
    "ENDPOINT": "endpoint",
    "PEER": "peer",
    "HOST": "host",
    "ALLOWED": "allowed",
    "REASON": lambda stage: stage["reason"].replace("_", " "),
    "RULE": "rule",
    "DOUBT": "doubt",
}


def _files_option(function: _F) -> _F:
    """Give a command FILE... and ``--ignore-unknown``."""
    path = click.Path(exists=True, dir_okay=False, allow_dash=True)
    argument = click.argument("files", metavar="FILE...", type=path, nargs=-1, required=True)
    option = click.option(
        "--ignore-unknown",
        is_flag=True,
        help="Pass over documents of other kinds than slimnet's, and say which.",
    )
    return argument(option(function))


def _read(files: Sequence[str], *, ignore_unknown: bool) -> list[dict[str, Any]]:
    """The manifests of files (``-`` is standard input), without those for others than slimnet
    where that was asked for.

    Raises:
        PolicyError: they are no YAML, JSON or TOML; or nothing is in them.
    """
    from slimnet.exceptions import PolicyError  # noqa: PLC0415
    from slimnet.policy import is_foreign, read  # noqa: PLC0415  # YAML and the compiler

    found = [each for file in files for each in read("/dev/stdin" if file == "-" else file)]
    foreign = [each for each in found if is_foreign(each)] if ignore_unknown else []
    if foreign:
        click.echo(f"slimnet: passed over: {', '.join(map(_foreigner, foreign))}", err=True)
    ours = [each for each in found if each not in foreign]
    if not ours:
        raise PolicyError(", ".join(files), "a document of one of slimnet's kinds", "none")
    return ours


def _foreigner(each: Mapping[str, Any]) -> str:
    metadata = each["manifest"].get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    line = each["lines"].get(each["path"], 0)
    where = ":".join(map(str, filter(None, (each["file"], line))))
    return " ".join(str(part) for part in (each["manifest"]["kind"], name, f"({where})") if part)


@click.group()
def policy() -> None:
    """Say who may connect to whom, and to what.

    Documents are Kubernetes NetworkPolicy, ClusterNetworkPolicy and Service, and slimnet's
    PublishedPort and EgressLimit.
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
      ports: [{port: 5432}]

\b
Example: `web` is one address for all endpoints with app=web
  kind: Service
  apiVersion: v1
  metadata: {name: web}
  spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}""",
)
@_files_option
@network_option
@output_option
@agent_option
def apply(
    files: tuple[str, ...],
    ignore_unknown: bool,  # noqa: FBT001
    network: str | None,
    output: str,
) -> None:
    """Put the documents of FILEs in force.

    All of them, or none where one is wrong. What was surely not meant in them is said. A FILE may
    be -, standard input.
    """
    with open_agent() as node:
        documents = node.apply_policy(_read(files, ignore_unknown=ignore_unknown), network)
        warnings = node.check_policy(documents, network)
    names = ", ".join(map(_title, documents))
    line(f"in force: {names}", [_written(each) for each in documents], output)
    _warn(warnings)


def _title(document: Document) -> str:
    address = getattr(document, "address", None)
    return f"{document.title} ({address})" if address is not None else document.title


def _written(document: Document) -> dict[str, Any]:
    record = document.to_json()
    return {name: record[name] for name in ("manifest", "file", "lines")}


def _warn(warnings: Sequence[PolicyWarning]) -> None:
    for each in warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {each}", err=True)


@policy.command()
@output_option
@agent_option
def ls(output: str) -> None:
    """List policies, services, published ports and limits."""
    with open_agent() as node:
        documents = node.policies()
        tell_stale(node)
    show(map(_row, documents), _COLUMNS, output)


_COLUMNS: Columns = {
    "KIND": "kind",
    "NETWORK": "network",
    "NAMESPACE": "namespace",
    "NAME": "name",
    "WHAT": lambda row: _what(row["kind"], row["manifest"]["spec"]),
    "SOURCE": "source",
}


def _row(document: Document) -> dict[str, Any]:
    return {
        "kind": type(document).__name__,
        "network": getattr(document, "network", None),
        "namespace": getattr(document, "namespace", None),
        "name": document.name,
        "mandatory": getattr(document, "mandatory", False),
        "source": document.source.at(""),
        "manifest": document.manifest,
    }


def _what(kind: str, spec: Mapping[str, Any]) -> str:
    """What there is to know at a glance, in the words of the manifest."""
    if kind == "Service":
        ports = ",".join(str(each["port"]) for each in spec["ports"])
        return f"{spec.get('clusterIP') or 'any address'}:{ports}"
    if kind == "PublishedPort":
        target = spec.get("targetPort") or spec["port"]
        return f"{spec.get('address') or '*'}:{spec['port']} to {spec['endpoint']}:{target}"
    if kind == "EgressLimit":
        rates = (("", spec.get("rate")), (" each connection", spec.get("connectionRate")))
        return ", ".join(f"{rate} bit/s{whose}" for whose, rate in rates if rate is not None)
    return "mandatory" if spec.get("mandatory") else ""


@policy.command(
    epilog="""\b
Examples:
  slimnet policy rm web-in
  slimnet policy rm guard --cluster
  slimnet policy rm web --kind service""",
)
@click.argument("name", shell_complete=complete_policy)
@network_option
@namespace_option
@click.option(
    "--kind", metavar="KIND", shell_complete=complete_kind,
    help="As `policy ls` says it, in any case.  [default: NetworkPolicy]",
)  # fmt: skip
@click.option("--cluster", is_flag=True, help="A cluster-wide policy.")
@output_option
@agent_option
def rm(
    name: str,
    network: str | None,
    namespace: str,
    kind: str | None,
    cluster: bool,  # noqa: FBT001
    output: str,
) -> None:
    """Remove a policy, service, published port or limit."""
    kind = "ClusterNetworkPolicy" if cluster else kind or "NetworkPolicy"
    with open_agent() as node:
        wide = kind.lower() == "clusternetworkpolicy"
        node.remove_policy(name, None if wide else network_of(node, network), namespace, kind)
    line(f"{kind} {name} removed", {"kind": kind, "removed": name}, output)


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
    help="Where to; a service too.",
)  # fmt: skip
@click.option(
    "--protocol", type=click.Choice(["tcp", "udp", "sctp"]), default="tcp", show_default=True
)
@network_option
@output_option
@agent_option
def explain(source: str, target: str, protocol: str, network: str | None, output: str) -> int:
    """Say whether a connection is allowed, and by which rule."""
    from slimnet.names import find  # noqa: PLC0415  # netaddr

    where, port = _split(target)
    with open_agent() as node:
        endpoints = node.endpoints()
        opener = find(endpoints, source, network, field="--from")
        acceptor = find(endpoints, where, network, field="--to")
        known = opener or acceptor
        answer = node.explain(
            known.network if known else network_of(node, network),
            str(opener.address) if opener else source,
            str(acceptor.address) if acceptor else where,
            port,
            protocol,
        )
        tell_stale(node)
    if output == "table":
        click.echo(answer["summary"])
        if answer["translation"]:
            click.echo(answer["translation"])
        peers = any(stage["peer"] for stage in answer["stages"])
        columns = {title: key for title, key in _STAGES.items() if peers or title != "PEER"}
        show(answer["stages"], columns, output)
        for host in answer["unanswered"]:
            click.echo(f"host {host} did not answer: its data path was not asked", err=True)
    else:
        show_one(answer, output)
    return 0 if answer["allowed"] else 1


@policy.command(
    epilog="""\b
Examples:
  slimnet policy check *.yaml              read them, and say what was surely not meant
  slimnet policy check --strict *.yaml     for a pipeline
  helm template shop | slimnet policy check --ignore-unknown -

\b
Exit status: 0; 1 with --strict, where there is a warning; 2 where a file is wrong.""",
)
@_files_option
@click.option("--strict", is_flag=True, help="A warning makes the exit status 1.")
@network_option
@output_option
@agent_option
def check(
    files: tuple[str, ...],
    ignore_unknown: bool,  # noqa: FBT001
    strict: bool,  # noqa: FBT001
    network: str | None,
    output: str,
) -> int:
    """Say what is wrong with documents.

    They are read, and looked at together with what the agent knows. Nothing is changed. Without an
    agent nobody can say whether a selector selects anything. A FILE may be -, standard input.
    """
    from slimnet.exceptions import AgentUnreachable  # noqa: PLC0415
    from slimnet.policy import parse  # noqa: PLC0415  # YAML and the compiler

    manifests = _read(files, ignore_unknown=ignore_unknown)
    warnings: list[PolicyWarning] = []
    try:
        with open_agent() as node:
            documents = parse(manifests, network=network or node.default_network())
            warnings = node.check_policy(manifests, network)
    except AgentUnreachable as error:
        documents = parse(manifests, network=network or "default")
        if strict:
            raise
        click.echo(f"slimnet: only the files were looked at, not endpoints: {error}", err=True)
    rows = [
        {**_row(each), "warnings": [str(said) for said in warnings if said.policy == each.title]}
        for each in documents
    ]
    show(rows, _COLUMNS, output)
    _warn(warnings)
    return 1 if strict and warnings else 0


def _split(target: str) -> tuple[str, int]:
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415

    where, _, text = target.rpartition(":")
    port = port_of(text)
    if not where or port is None:
        raise InvalidValue("--to", "ENDPOINT:PORT", target)
    return where, port
