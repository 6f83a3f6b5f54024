# SPDX-License-Identifier: Apache-2.0
"""``slimnet run``."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import click

from slimnet.cli.node import (
    agent_option,
    label_option,
    labels_of,
    namespace_option,
    network_of,
    network_option,
    open_agent,
    ports_of,
)

__all__ = ["run"]


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  slimnet run -n prod --name web -l app=web -- nginx -g 'daemon off;'
  slimnet run -n prod --name db --ip 10.1.0.9 --user postgres -- postgres -D /srv/db
  slimnet run -n prod --name me -- bash            a shell that is an endpoint

\b
Exit status: the command's; 128 + n when signal n ended it; 127 when it is not
there, 126 when it cannot be executed; 2 when slimnet could not start it.

\b
The command sees the host's files, but no cgroupfs, bpffs, store nor agent's or
other daemon's socket: /proc, /dev, /run and /sys are its own. A socket as
standard input or output is replaced by /dev/null; put a pipe in between.""",
)
@network_option
@click.option("--name", metavar="NAME", required=True, help="Its name, and its host name.")
@namespace_option
@click.option("--ip", "address", metavar="ADDRESS", help="[default: the first free one]")
@label_option
@click.option(
    "--port", "ports", metavar="NAME=PORT[/PROTO]", multiple=True, help="A named port; repeatable."
)
@click.option("--user", metavar="USER", help="Run the command as this user. [default: root]")
@click.option("--directory", metavar="DIR", help="Start it there. [default: here]")
@click.option("--no-new-privileges", is_flag=True, help="Set-user-id programs give it nothing.")
@click.option("--no-seccomp", is_flag=True, help="Leave the system call filter out.")
@agent_option
@click.argument("command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    network: str | None,
    name: str,
    namespace: str,
    address: str | None,
    labels: tuple[str, ...],
    ports: tuple[str, ...],
    user: str | None,
    directory: str | None,
    no_new_privileges: bool,  # noqa: FBT001
    no_seccomp: bool,  # noqa: FBT001
    command: tuple[str, ...],
) -> int:
    """Run CMD as an endpoint; the endpoint goes with it.

    Signals are passed on, a terminal is the command's. It has mount, PID, IPC,
    UTS and cgroup namespaces of its own and a container's default
    capabilities without CAP_NET_RAW; its host name is NAME, and every
    endpoint's name resolves.
    """
    from slimnet import sandbox  # noqa: PLC0415  # what only this command needs

    # Whatever ends us while no command is there to take the signal: detach on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _leave)
    with (
        open_agent() as node,
        node.attach(
            network_of(node, network),
            name,
            namespace=namespace,
            address=address,
            labels=labels_of(labels),
            ports=ports_of(ports),
            ephemeral=True,
        ) as attached,
    ):
        try:
            return sandbox.run(
                attached,
                command,
                user=user,
                directory=directory,
                hidden=sandbox.secrets(node),
                no_new_privileges=no_new_privileges,
                seccomp=not no_seccomp,
            )
        except sandbox.CommandNotFound as error:
            click.echo(f"slimnet: {error}", err=True)
            return 127
        except sandbox.NotExecutable as error:
            click.echo(f"slimnet: {error}", err=True)
            return 126


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
