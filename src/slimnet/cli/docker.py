# SPDX-License-Identifier: Apache-2.0
"""``slimnet docker-plugin``."""

from __future__ import annotations

from pathlib import Path

import click

from slimnet.cli.node import agent_option

__all__ = ["docker_plugin"]


@click.command(
    "docker-plugin",
    epilog="""\b
Then, once on each host:
  docker network create -d slimnet --ipam-driver slimnet --subnet 10.1.0.0/16 prod

\b
It may be stopped at any time: containers that run go on. Docker waits some
seconds for it when it starts or stops one.""",
)
@click.option(
    "--socket",
    metavar="PATH",
    default="/run/docker/plugins/slimnet.sock",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Where Docker looks; its name is the driver's.",
)
@click.option(
    "--docker",
    metavar="PATH",
    default="/run/docker.sock",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Docker's own socket, which tells names and labels of containers.",
)
@agent_option
def docker_plugin(socket: Path, docker: Path) -> None:
    """Be Docker's network and IPAM driver, until SIGTERM.

    Containers of its networks are endpoints of this host.
    """
    import logging  # noqa: PLC0415  # the library, when it runs

    from slimnet.engines.docker import serve  # noqa: PLC0415

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(socket, click.get_current_context().find_root().obj, docker)
