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
  slimnet agent --upgrade                     after an installation, before a start

\b
A stopped agent leaves the data path as it is: connections go on, and so does
policy. --teardown removes it, and refuses while an endpoint has processes;
with --force it ends these first. --upgrade replaces a data path of another
version, with its endpoints running, and ends. Where it cannot keep their
connections it says how many it would close, and does it with --force only.""",
)
@click.option(
    "--config",
    metavar="FILE",
    envvar="SLIMNET_CONFIG",
    help="[env: SLIMNET_CONFIG; default: /etc/slimnet/slimnet.toml, or an ordinary user's own]",
)
@click.option("--teardown", is_flag=True, help="Remove this host's data path, and end.")
@click.option("--upgrade", is_flag=True, help="Replace another version's data path, and end.")
@click.option(
    "--force",
    is_flag=True,
    help="With --teardown: end what runs in endpoints first. With --upgrade: close what"
    " connections cannot be kept.",
)
def agent(config: str | None, teardown: bool, upgrade: bool, force: bool) -> None:  # noqa: FBT001
    """Be this host's agent, until SIGTERM.

    An agent keeps the host's data path at what the store says.
    """
    from slimnet.config import load_config  # noqa: PLC0415  # the library, when it runs
    from slimnet.exceptions import ConfigError  # noqa: PLC0415

    if teardown and upgrade:
        raise click.UsageError("--teardown or --upgrade, not both")
    if force and not teardown and not upgrade:
        raise click.UsageError("--force goes with --teardown or --upgrade")
    settings = load_config(config)
    try:
        _run(settings, teardown=teardown, upgrade=upgrade, force=force)
    except ConfigError as error:
        raise settings.located(error) from error


def _run(settings: Config, *, teardown: bool, upgrade: bool, force: bool) -> None:
    if upgrade:
        from slimnet.agent import upgrade as replace  # noqa: PLC0415

        click.echo(replace(settings, force=force))
        return
    if teardown:
        from slimnet.agent import teardown as remove  # noqa: PLC0415

        remove(settings, force=force)
        return
    import logging  # noqa: PLC0415

    from slimnet.agent import serve  # noqa: PLC0415
    from slimnet.engines.latecomers import following  # noqa: PLC0415

    logging.basicConfig(
        level=settings.level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    with following(settings.socket):
        serve(settings)
