# SPDX-License-Identifier: Apache-2.0
"""``slimnet run`` and ``slimnet exec``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeVar

import click

from slimnet import directories
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
    words_of,
)

__all__ = ["exec_", "run"]

_F = TypeVar("_F", bound=Callable[..., Any])


def _command_options(function: _F) -> _F:
    """Give a command those of the process that it starts, and that process's words."""
    for option in (
        click.argument(
            "command", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED
        ),
        click.option(
            "--no-new-privileges", is_flag=True, help="Set-user-id programs give it nothing."
        ),
        click.option("--directory", metavar="DIR", help="Start it there. [default: here]"),
        click.option(
            "--user", metavar="USER", help="Run the command as this user. [default: yourself]"
        ),
    ):
        function = option(function)
    return function


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  slimnet run -n prod --name web -l app=web -- nginx -g 'daemon off;'
  slimnet run -n prod --name db --ip 10.1.0.9 --user postgres -- postgres -D /srv/db
  slimnet run -n prod --name me -- bash            a shell that is an endpoint
  slimnet run -n prod -d --name web -- nginx -g 'daemon off;'
  slimnet exec web -- sh -c 'kill 1'               ends that by SIGTERM
  slimnet endpoint rm web --kill                   and by SIGKILL

\b
Exit status: the command's; 128 + n when signal n ended it; 127 when it is not
there, 126 when it cannot be executed; 2 when slimnet could not start it.
With -d it is 0 once the command runs; its own is in no place.

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
@_command_options
@click.option("--no-seccomp", is_flag=True, help="Leave the system call filter out.")
@click.option(
    "-d",
    "--detach",
    is_flag=True,
    help="Come back once CMD runs, and say the endpoint's name; it goes when CMD ends.",
)
@click.option(
    "--log",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="With -d: where CMD's output is appended."
    " [default: /var/log/slimnet/INSTANCE/NETWORK.NAMESPACE.NAME.log]",
)
@agent_option
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
    detach: bool,  # noqa: FBT001
    log: str | None,
    command: tuple[str, ...],
) -> int:
    """Run CMD as an endpoint; the endpoint goes with it.

    Signals are passed on, a terminal is the command's. It has mount, PID, IPC,
    UTS and cgroup namespaces of its own and a container's default
    capabilities without CAP_NET_RAW; its host name is NAME, and every
    endpoint's name resolves, by DNS too.

    An ordinary user's command has none of these: it has the endpoint's
    environment, and is otherwise as it would be without slimnet.
    """
    from slimnet import sandbox  # noqa: PLC0415  # what only these commands need

    if log is not None and not detach:
        raise click.UsageError("--log is for what runs detached: add -d.")
    # Whatever ends us while no command is there to take the signal: detach on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _leave)
    with open_agent() as node, ExitStack() as undo:
        attached = undo.enter_context(
            node.attach(
                network_of(node, network),
                name,
                namespace=namespace,
                address=address,
                labels=labels_of(labels),
                ports=ports_of(ports),
                ephemeral=True,
            )
        )
        options: dict[str, Any] = {
            "user": user,
            "directory": directory,
            "hidden": sandbox.secrets(node),
            "no_new_privileges": no_new_privileges,
            "seccomp": not no_seccomp,
        }
        if not detach:
            return _status(lambda: sandbox.run(attached, command, **options))
        endpoint = attached.endpoint
        default = directories.logs() / node.status()["instance"] / f"{endpoint.full_name}.log"
        file = Path(log or default).absolute()

        def start() -> int:
            with _open_log(file) as output:
                sandbox.spawn(
                    attached,
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    outlive=True,
                    **options,
                )
            undo.pop_all()  # from here on the agent looks when it has ended
            click.echo(endpoint.path)
            click.echo(f"its output goes to {file}", err=True)
            return 0

        return _status(start)


def _open_log(file: Path) -> IO[bytes]:
    file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    return open(file, "ab", opener=lambda path, flags: os.open(path, flags, 0o640))


@click.command(
    name="exec",
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  slimnet exec web -- ps ax                       what runs there
  slimnet exec -n prod --user postgres db -- psql
  slimnet exec web -- sh -c 'kill 1'              ends the first command by SIGTERM

\b
Exit status: as of `slimnet run`.""",
)
@click.argument("endpoint", shell_complete=complete_endpoint)
@network_option
@namespace_option
@_command_options
@agent_option
def exec_(
    endpoint: str,
    network: str | None,
    namespace: str,
    user: str | None,
    directory: str | None,
    no_new_privileges: bool,  # noqa: FBT001
    command: tuple[str, ...],
) -> int:
    """Run CMD beside the command of an endpoint that runs.

    ENDPOINT, as NAME or as [[NETWORK/]NAMESPACE/]NAME, is one of this host in which a
    command of `slimnet run` runs. CMD enters its namespaces and is confined as it
    is: it sees its processes and its files, also those in /run and /dev/shm, and it
    ends when that command does. Signals and the terminal are as of `slimnet run`.
    """
    words = words_of(command)
    with open_agent() as node:
        where, inside, name = path_of(node, endpoint, network, namespace)
        placed = node.endpoint(where, name, inside)
    from slimnet import sandbox  # noqa: PLC0415

    return _status(
        lambda: sandbox.run(
            placed,
            words,
            user=user,
            directory=directory,
            no_new_privileges=no_new_privileges,
            beside=True,
        )
    )


def _status(start: Callable[[], int]) -> int:
    """What it answers, or the exit status that a shell would give where there is no such
    command."""
    from slimnet import sandbox  # noqa: PLC0415

    try:
        return start()
    except sandbox.CommandNotFound as error:
        click.echo(f"slimnet: {error}", err=True)
        return 127
    except sandbox.NotExecutable as error:
        click.echo(f"slimnet: {error}", err=True)
        return 126


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
