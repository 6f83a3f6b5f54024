# SPDX-License-Identifier: Apache-2.0
"""``slimnet testbed``."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from slimnet.cli.node import words_of
from slimnet.cli.output import Columns, line, output_option, show

if TYPE_CHECKING:
    from slimnet.testbed import Testbed

__all__ = ["testbed"]


def _complete(context: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    from slimnet.testbed import Testbed  # noqa: PLC0415

    if option.name == "host":
        name = context.params.get("name") or "default"
        names = [host.name for each in Testbed.all() if each.name == name for host in each.hosts]
    else:
        names = [each.name for each in Testbed.all()]
    return [each for each in names if each.startswith(incomplete)]


_name_option = click.option(
    "--name",
    metavar="T",
    default="default",
    show_default=True,
    shell_complete=_complete,
    help="Which testbed; several may be up at once.",
)


@click.group()
def testbed() -> None:
    """Bring up several hosts on this machine.

    Each is a network namespace with an agent in it. The machine's own network
    namespace is not touched.
    """


@testbed.command(
    epilog="""\b
Examples:
  slimnet testbed up --hosts 3
  slimnet testbed up --name trial --backend noop
  slimnet testbed up --store etcd:3
  slimnet testbed exec h1 -- slimnet status""",
)
@click.option("--hosts", metavar="N", type=int, help="[default: 2, or as many as there are]")
@click.option("--backend", metavar="B", default="auto", show_default=True)
@click.option(
    "--store",
    metavar="S",
    help="What the agents share: sqlite, etcd, or etcd:N for a cluster of N servers."
    " [env: SLIMNET_TESTBED_STORE; default: sqlite]",
)
@_name_option
@output_option
def up(hosts: int | None, backend: str, store: str | None, name: str, output: str) -> None:
    """Bring up a testbed, or complete one."""
    from slimnet.testbed import Testbed  # noqa: PLC0415  # attrs, when it runs

    _need_root()
    begun = time.monotonic()
    if hosts is None:
        hosts = next((len(each.hosts) for each in Testbed.all() if each.name == name), 2)
    bed = Testbed(name, hosts, backend, store=store)
    bed.up()
    show(map(_host, bed.hosts), _HOST_COLUMNS, output)
    if output == "table":
        took = time.monotonic() - begun
        kept = "" if bed.store == "sqlite" else f", store {bed.store}"
        click.echo(
            f"\ntestbed {name} is up, backend {bed.backend}{kept}, {took:.1f} s;"
            f" `slimnet testbed exec{_named(bed)} h1 -- bash` is a shell there",
            err=True,
        )


@testbed.command()
@_name_option
@click.option("--all", "every", is_flag=True, help="Every testbed of this machine.")
@output_option
def down(name: str, every: bool, output: str) -> None:  # noqa: FBT001
    """Remove a testbed and all that is in it.

    Its endpoints' processes are killed.
    """
    from slimnet.testbed import Testbed  # noqa: PLC0415  # attrs, when it runs

    _need_root()
    for each in Testbed.all() if every else [Testbed(name)]:
        there = each.directory.exists()
        each.down()
        text = "is down" if there else "was not up"
        line(f"testbed {each.name} {text}", {"testbed": each.name, "removed": there}, output)


@testbed.command()
@output_option
def ls(output: str) -> None:
    """List the testbeds and their hosts."""
    from slimnet.testbed import Testbed  # noqa: PLC0415  # attrs, when it runs

    rows = [
        {"testbed": each.name, "backend": each.backend, **_host(host)}
        for each in Testbed.all()
        for host in each.hosts
    ]
    show(rows, {"TESTBED": "testbed", **_HOST_COLUMNS, "BACKEND": "backend"}, output)


@testbed.command(
    name="exec",
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  slimnet testbed exec h1 -- slimnet network create prod 10.1.0.0/16
  slimnet testbed exec h2 -- slimnet run -n prod --name web -- nginx -g 'daemon off;'
  slimnet testbed exec --name trial h1 -- ss -tn""",
)
@_name_option
@click.argument("host", shell_complete=_complete)
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, host: str, command: tuple[str, ...]) -> int:
    """Run CMD on HOST.

    In its network namespace, with SLIMNET_AGENT set to its agent's socket.
    """
    from slimnet.testbed import Testbed  # noqa: PLC0415  # attrs, when it runs

    words = words_of(command)
    _need_root()
    there = Testbed.find(name).host(host)
    with there.enter():
        try:
            os.execvpe(words[0], list(words), there.environment())  # noqa: S606
        except FileNotFoundError:
            click.echo(f"slimnet: command not found: {words[0]}", err=True)
            return 127
        except OSError as error:
            click.echo(f"slimnet: {words[0]}: {error.strerror}", err=True)
            return 126


def _need_root() -> None:
    from slimnet.exceptions import CapabilityMissing  # noqa: PLC0415

    if os.geteuid() != 0:
        raise CapabilityMissing("a testbed needs root: use sudo")


def _named(bed: Testbed) -> str:
    return "" if bed.name == "default" else f" --name {bed.name}"


def _host(host: Any) -> dict[str, Any]:
    return {
        "host": host.name,
        "address": str(host.address),
        "netns": str(host.netns),
        "agent": str(host.agent),
        "pid": host.pid,
        "config": str(host.config),
        "log": str(host.log),
    }


_HOST_COLUMNS: Columns = {
    "HOST": "host",
    "ADDRESS": "address",
    "NETNS": "netns",
    "AGENT": lambda row: f"process {row['pid']}" if row["pid"] else "down",
    "SOCKET": "agent",
}
