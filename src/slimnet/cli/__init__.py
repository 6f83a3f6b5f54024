# SPDX-License-Identifier: Apache-2.0
"""The command line: ``slimnet``.

A sub-command is imported when it is called, and what it needs of the library
when it runs: ``slimnet --help`` imports neither attrs nor pyroute2.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from slimnet.cli.lazy import LazyGroup

__all__ = ["main", "slimnet"]

_COMMANDS = {
    "agent": "slimnet.cli.agent:agent",
    "backends": "slimnet.cli.check:backends",
    "check": "slimnet.cli.check:check",
    "cluster": "slimnet.cli.cluster:cluster",
    "completion": "slimnet.cli.completion:completion",
    "connections": "slimnet.cli.observe:connections",
    "docker-plugin": "slimnet.cli.docker:docker_plugin",
    "endpoint": "slimnet.cli.endpoint:endpoint",
    "exec": "slimnet.cli.run:exec_",
    "hook": "slimnet.cli.hook:hook",
    "host": "slimnet.cli.host:host",
    "namespace": "slimnet.cli.namespace:namespace",
    "network": "slimnet.cli.network:network",
    "observe": "slimnet.cli.observe:observe",
    "ping": "slimnet.cli.ping:ping",
    "policy": "slimnet.cli.policy:policy",
    "run": "slimnet.cli.run:run",
    "status": "slimnet.cli.status:status",
    "store": "slimnet.cli.store:store",
    "testbed": "slimnet.cli.testbed:testbed",
    "usage": "slimnet.cli.usage:usage",
}


@click.group(
    cls=LazyGroup,
    commands_at=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
First steps, as root, on one machine:
  slimnet check                                   what works here, and what to do
  slimnet testbed up --hosts 2                    two hosts, with an agent each
  slimnet testbed exec h1 -- slimnet network create prod 10.1.0.0/16
  slimnet testbed exec h2 -- slimnet run -n prod --name web -- nginx -g 'daemon off;' &
  until slimnet testbed exec h1 -- slimnet ping web:80; do sleep 1; done
  slimnet testbed exec h1 -- slimnet run -n prod --name me -- curl http://web/
  slimnet testbed down

\b
Exit status: 0 done; 1 the answer is no (ping, check, policy explain, policy
check --strict); 2 an error, said in one line. `slimnet run` and `slimnet exec` exit with their
command's status.""",
)
@click.option(
    "--agent",
    metavar="SOCKET",
    envvar="SLIMNET_AGENT",
    help="The agent's socket. [env: SLIMNET_AGENT; default: the configuration's]",
)
@click.version_option(package_name="slimnet-overlay", message="%(prog)s %(version)s")
@click.pass_context
def slimnet(context: click.Context, agent: str | None) -> None:
    """An overlay network for containers that works on connections, not packets."""
    context.obj = agent
    if os.environ.get("NO_COLOR"):
        context.color = False


def main() -> NoReturn:
    """The entry point. An error is one line on standard error and status 2."""
    try:
        status = slimnet.main(prog_name="slimnet", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error, err=True)
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), getattr(error, "ctx", None))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has what it wanted; say nothing at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from slimnet.exceptions import SlimnetError  # noqa: PLC0415  # only in case of need

        # What the machine refuses is the user's to know too, and no defect of ours.
        if not isinstance(error, (SlimnetError, OSError)):
            raise
        _fail(str(error), None)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, context: click.Context | None) -> NoReturn:
    line = " ".join(message.split())
    if context is not None:
        line += f" (see `{context.command_path} --help`)"
    click.echo(f"{click.style('slimnet:', fg='red')} {line}", err=True, color=_colour())
    sys.exit(2)


def _colour() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None
