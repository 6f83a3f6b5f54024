# SPDX-License-Identifier: Apache-2.0
"""``slimnet store``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimnet.cli.output import output_option, show_one

if TYPE_CHECKING:
    from slimnet.cluster.archive import Archive

__all__ = ["config_option", "store"]

config_option = click.option(
    "--config",
    metavar="FILE",
    envvar="SLIMNET_CONFIG",
    help="This host's. [env: SLIMNET_CONFIG; default: /etc/slimnet/slimnet.toml]",
)
_replace_option = click.option(
    "--replace", is_flag=True, help="Remove first what that store holds already."
)


@click.group()
def store() -> None:
    """Copy a cluster's store, back it up, and restore it.

    These read and write the store itself, without an agent. The cluster's key is in none of
    them: it is a file on every host.
    """


@store.command(
    epilog="""\b
Examples:
  slimnet store backup slimnet.backup
  slimnet store backup - | gzip > slimnet.backup.gz

\b
The agents may run: it is one reading, of one revision. Tokens and what each host has in force
are not in it.""",
)
@click.argument("file", metavar="FILE")
@config_option
@output_option
def backup(file: str, config: str | None, output: str) -> None:
    """Write all that the store holds to a file, or to `-`."""
    from slimnet.cluster.archive import Archive  # noqa: PLC0415  # the library, when it runs
    from slimnet.cluster.which import open_configured  # noqa: PLC0415
    from slimnet.config import load_config  # noqa: PLC0415

    with open_configured(load_config(config)) as there:
        archive = Archive.take(there)
    if file == "-":
        sys.stdout.buffer.write(archive.dump())
        return
    _write(Path(file), archive.dump())
    _tell(archive, output, file=file)


@store.command(
    epilog="""\b
Examples:
  slimnet store restore slimnet.backup
  slimnet store restore --replace slimnet.backup     over what the store holds now

\b
Agents that run follow it again by themselves, when all of it is there; until then their data
paths stay as they are. An agent of another cluster that has endpoints does not follow it.""",
)
@click.argument("file", metavar="FILE")
@_replace_option
@config_option
@output_option
def restore(file: str, replace: bool, config: str | None, output: str) -> None:  # noqa: FBT001
    """Write to an empty store what `slimnet store backup` read."""
    from slimnet.cluster.archive import Archive  # noqa: PLC0415  # the library, when it runs
    from slimnet.cluster.which import open_configured  # noqa: PLC0415
    from slimnet.config import load_config  # noqa: PLC0415

    settings = load_config(config)
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    archive = Archive.load(data, file)
    with open_configured(settings, make=True) as there:
        archive.put(there, replace=replace)
    _tell(archive, output, store=settings.store)


@store.command(
    epilog="""\b
Examples:
  slimnet store copy sqlite:///var/lib/slimnet/store.db etcd://10.0.0.1:2379/slimnet
  slimnet store copy /etc/slimnet/slimnet.toml /root/with-etcd.toml

\b
Each is a URL, or a configuration file whose store is meant: that one has certificates, user and
password too. Stop the agents before, and start them with the new store after; their data paths,
endpoints and connections go on meanwhile.""",
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--live", is_flag=True, help="Copy although agents may still change it.")
@_replace_option
@output_option
def copy(source: str, target: str, live: bool, replace: bool, output: str) -> None:  # noqa: FBT001
    """Copy a store to another one, of whichever driver."""
    from slimnet.cluster.archive import Archive  # noqa: PLC0415  # the library, when it runs
    from slimnet.cluster.which import open_named, where  # noqa: PLC0415
    from slimnet.exceptions import InUse, InvalidValue  # noqa: PLC0415

    if where(source) == where(target):
        raise InvalidValue("TO", "another store than FROM", target)
    with open_named(source) as there:
        archive = Archive.take(there)
        if archive.hosts and not live:
            names = ", ".join(archive.hosts)
            raise InUse(f"hosts {names} follow {where(source)}: stop their agents, and wait for"
                        " their leases to run out; or copy with --live")  # fmt: skip
    with open_named(target, make=True) as other:
        archive.put(other, replace=replace)
    _tell(archive, output, store=where(target))


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for its owner only."""
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, delete=False) as fresh:
        try:
            fresh.write(data)
            fresh.flush()
            os.fsync(fresh.fileno())
            Path(fresh.name).replace(path)
        except BaseException:
            Path(fresh.name).unlink(missing_ok=True)
            raise


def _tell(archive: Archive, output: str, **more: str) -> None:
    if archive.strange:
        from slimnet.cluster.keys import named  # noqa: PLC0415  # the library, when it runs

        names = named(archive.strange)
        text = f"kept as they are, as this version of slimnet does not know them: {names}"
        click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
    row = {"cluster": archive.cluster, "revision": archive.revision, "keys": len(archive.pairs)}
    show_one({**row, **more}, output)
