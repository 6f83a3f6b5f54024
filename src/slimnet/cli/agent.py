# SPDX-License-Identifier: Apache-2.0
"""``slimnet agent``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from slimnet.config import Config

__all__ = ["agent"]


@click.command(
    epilog="""\b
A whole /etc/slimnet/slimnet.toml, or ~/.config/slimnet/slimnet.toml of a user:
  [underlay]
  interface = "eth0"

\b
Examples:
  slimnet agent                               with the default configuration
  slimnet agent --config host.toml
  slimnet agent --config host.toml --teardown   remove the data path

\b
A stopped agent leaves the data path as it is: connections go on, and so does
policy. --teardown removes it, and refuses while an endpoint has processes.""",
)
@click.option(
    "--config",
    metavar="FILE",
    envvar="SLIMNET_CONFIG",
    help="[env: SLIMNET_CONFIG; default: /etc/slimnet/slimnet.toml, or an ordinary user's own]",
)
@click.option("--teardown", is_flag=True, help="Remove this host's data path, and end.")
def agent(config: str | None, teardown: bool) -> None:  # noqa: FBT001
    """Be this host's agent, until SIGTERM.

    An agent keeps the host's data path at what the store says.
    """
    from slimnet.config import load_config  # noqa: PLC0415  # the library, when it runs
    from slimnet.exceptions import ConfigError  # noqa: PLC0415

    settings = load_config(config)
    try:
        _run(settings, teardown=teardown)
    except ConfigError as error:
        raise settings.located(error) from error


def _run(settings: Config, *, teardown: bool) -> None:
    if teardown:
        from slimnet.agent import teardown as remove  # noqa: PLC0415

        remove(settings)
        return
    import logging  # noqa: PLC0415

    from slimnet.agent import serve  # noqa: PLC0415

    logging.basicConfig(
        level=settings.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    serve(settings)
