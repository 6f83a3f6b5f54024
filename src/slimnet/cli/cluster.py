# SPDX-License-Identifier: Apache-2.0
"""``slimnet cluster``."""

from __future__ import annotations

import re
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from slimnet.cli import host as hosts
from slimnet.cli.output import Columns, output_option, show, show_one
from slimnet.cli.store import config_option

if TYPE_CHECKING:
    from slimnet.agent.member import Terms
    from slimnet.cluster.token import Token

__all__ = ["cluster"]

#: Characters that are read of a token.
_LONGEST = 1 << 17
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(_context: click.Context, _option: click.Parameter, text: str) -> float:
    """``90s``, ``10m``, ``1h``, ``7d``."""
    found = re.fullmatch(r"([1-9]\d{0,5})([smhd])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= 366 * _UNITS["d"]:
        raise click.BadParameter(f"wanted 1s to 366d, such as 90s, 10m, 1h or 7d, got {text!r}")
    return float(seconds)


def _terms(function: Any) -> Any:
    for option in (
        click.option(
            "--uses",
            metavar="N",
            type=click.IntRange(1, 100_000),
            default=10,
            show_default=True,
            help="How many hosts may join by the token.",
        ),
        click.option(
            "--expires",
            metavar="TIME",
            callback=_seconds,
            default="1h",
            show_default=True,
            help="When it ends to be good: 90s, 10m, 1h, 7d.",
        ),
    ):
        function = option(function)
    return function


def _options(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> Any:
    """``key=value``, as the table ``[store.<driver>]`` has it: TOML, or text."""
    import tomllib  # noqa: PLC0415  # where there are some

    found: dict[str, Any] = {}
    for each in values:
        key, sign, text = each.partition("=")
        if not sign or not re.fullmatch(r"[a-z_]+", key):
            raise click.BadParameter(f"wanted KEY=VALUE, got {each!r}")
        try:
            found[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


def _wishes(function: Any) -> Any:
    for option in (
        click.option(
            "--option",
            "-O",
            "options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_options,
            help="Of the store's driver, as in its table of the configuration.",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            help="Its underlay address. [default: the configuration's, or the default route's]",
        ),
        click.option(
            "--host",
            metavar="NAME",
            help="Its name in the cluster. [default: the configuration's, or the machine's]",
        ),
    ):
        function = option(function)
    return function


@click.group()
def cluster() -> None:
    """Make a cluster of several machines, and run it.

    `init` on the first machine prints the command for the others. `ls` and `rm` are those of
    `slimnet host`.
    """


@cluster.command(
    epilog="""\b
Examples:
  slimnet cluster init                                      on this machine's SQLite file
  slimnet cluster init --store etcd                         on an etcd that it starts here
  slimnet cluster init --store etcd://10.0.0.1:2379/slimnet
  slimnet cluster init --store etcd://10.0.0.1:2379/slimnet -O ca=/etc/slimnet/etcd-ca.pem
  slimnet cluster init --expires 1d --uses 3

\b
It writes conf.d/cluster.toml beside the configuration, and the cluster's key where there is
none. What the configuration says already, the store among it, holds.""",
)
@click.option(
    "--store",
    metavar="URL",
    help="Or etcd: start one on this machine. [default: the configuration's, or an SQLite file]",
)
@_wishes
@_terms
@config_option
@output_option
def init(
    store: str | None,
    host: str | None,
    address: str | None,
    options: dict[str, Any],
    expires: float,
    uses: int,
    config: str | None,
    output: str,
) -> None:
    """Make this machine the first host of a cluster."""
    from slimnet.agent.member import Terms, Wishes, form, invite  # noqa: PLC0415

    wishes = Wishes(host, address, options)
    if store == "etcd":
        from slimnet.cli.etcd import serve  # noqa: PLC0415

        settings, file = form(config, wishes, serve=serve)
    else:
        settings, file = form(config, wishes, store)
    click.echo(f"wrote {file}: host {settings.host}, store {settings.store}", err=True)
    terms = Terms(uses, expires)
    _print_token(invite(settings, terms), terms, output)


@cluster.command(
    epilog="""\b
Examples:
  slimnet cluster join slimnet1.eNo...
  slimnet cluster join -                         from standard input: no process list has it
  slimnet cluster join --host h2 --address 10.0.0.2 slimnet1.eNo...
  slimnet cluster join --again slimnet1.eNo...   its key was changed while this host was away
  slimnet cluster join -O cert=/etc/slimnet/h2.pem -O key=/etc/slimnet/h2.key slimnet1.eNo...

\b
The store's certificate and key, or its password, are in no token, but of an etcd that `init`
started: each is a file that this machine has to have, where the first one has its own, or where
-O says.""",
)
@click.argument("word", metavar="TOKEN")
@click.option("--again", is_flag=True, help="It is one already: take the key that it has by now.")
@_wishes
@config_option
@output_option
def join(
    word: str,
    *,
    again: bool,
    host: str | None,
    address: str | None,
    options: dict[str, Any],
    config: str | None,
    output: str,
) -> None:
    """Make this machine a host of the cluster that TOKEN is of."""
    from slimnet.agent import member  # noqa: PLC0415
    from slimnet.cluster.token import Token  # noqa: PLC0415
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415

    asked = Token.parse((sys.stdin.read(_LONGEST) if word == "-" else word).strip())
    if again:
        others = {"--host": host, "--address": address, "--option": options}
        if given := [name for name, value in others.items() if value]:
            raise InvalidValue("--again", "no other option", ", ".join(given))
        settings = member.join_again(config, asked)
        show_one({"host": settings.host, "cluster": asked.cluster, "store": settings.store}, output)
        return
    settings, file = member.join(config, asked, member.Wishes(host, address, options))
    row = {"host": settings.host, "cluster": asked.cluster, "store": settings.store}
    show_one({**row, "file": str(file)}, output)
    click.echo("start its agent: systemctl enable --now slimnet-agent, or slimnet agent", err=True)


@cluster.command(
    epilog="""\b
Example:
  systemctl stop slimnet && slimnet cluster leave

\b
Refused while the agent runs, or an endpoint has processes.""",
)
@click.option("--force", is_flag=True, help="End what runs in endpoints first.")
@config_option
@output_option
def leave(force: bool, config: str | None, output: str) -> None:  # noqa: FBT001
    """Take this machine out of its cluster.

    Its data path goes, its endpoints in the store, what `init` or `join` wrote, and the key.
    """
    from slimnet.agent import member  # noqa: PLC0415

    settings = member.leave(config, force=force)
    show_one({"left": settings.host, "store": settings.store}, output)


@cluster.command(
    "rotate-key",
    epilog="""\b
Examples:
  slimnet cluster rotate-key
  slimnet cluster rotate-key --abort           back to the old one, from where it stopped

\b
Every host takes both keys before any signs with the new one, and all do before the old one
goes: no connection is lost or refused. Stopped in between, it goes on when it is run again, on
any host. Tokens to join are removed: they had the old key.""",
)
@click.option("--abort", is_flag=True, help="Go back to the old key.")
@click.option("--leave-lost", is_flag=True, help="Do not wait for lost hosts: they join again.")
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    help="Seconds that hosts may take for each step.",
)
@config_option
@output_option
def rotate_key(
    *, abort: bool, leave_lost: bool, timeout: float, config: str | None, output: str
) -> None:
    """Replace the cluster's key, on every host."""
    from slimnet.agent.rotation import rotate  # noqa: PLC0415
    from slimnet.config import load_config  # noqa: PLC0415

    ring = rotate(
        load_config(config),
        abort=abort,
        leave_lost=leave_lost,
        timeout=timeout,
        say=lambda text: click.echo(text, err=True),
    )
    show_one({"key": ring.key}, output)


cluster.add_command(hosts.ls)
cluster.add_command(hosts.rm)


@cluster.group("token")
def tokens() -> None:
    """Make, list and remove tokens to join.

    These read and write the store itself, without an agent.
    """


@tokens.command(
    epilog="""\b
Examples:
  slimnet cluster token create
  slimnet cluster token create --uses 1 --expires 10m""",
)
@_terms
@config_option
@output_option
def create(expires: float, uses: int, config: str | None, output: str) -> None:
    """Make another token, and print the command that uses it."""
    from slimnet.agent.member import Terms, invite  # noqa: PLC0415
    from slimnet.config import load_config  # noqa: PLC0415

    terms = Terms(uses, expires)
    _print_token(invite(load_config(config), terms), terms, output)


@tokens.command(
    "ls",
    epilog="""\b
Example:
  slimnet cluster token ls""",
)
@config_option
@output_option
def list_tokens(config: str | None, output: str) -> None:
    """List the tokens that have not expired.

    Their secrets are nowhere but in the tokens.
    """
    from slimnet.agent.member import invitations  # noqa: PLC0415
    from slimnet.cluster.which import open_configured  # noqa: PLC0415
    from slimnet.config import load_config  # noqa: PLC0415

    with open_configured(load_config(config)) as store:
        found = invitations(store)
    columns: Columns = {"TOKEN": "id", "USES": "uses", "EXPIRES": _expires, "MADE ON": "host"}
    show(found, columns, output)


@tokens.command(
    "rm",
    epilog="""\b
Example:
  slimnet cluster token rm 1f2e3d4c""",
)
@click.argument("number", metavar="TOKEN")
@config_option
@output_option
def remove_token(number: str, config: str | None, output: str) -> None:
    """Let nobody join by a token any more.

    It is named as `slimnet cluster token ls` does.
    """
    from slimnet.agent.member import withdraw  # noqa: PLC0415
    from slimnet.cluster.which import open_configured  # noqa: PLC0415
    from slimnet.config import load_config  # noqa: PLC0415

    with open_configured(load_config(config)) as store:
        withdraw(store, number)
    show_one({"removed": number}, output)


def _expires(row: Any) -> str:
    return f"in {_written(max(row['expires'] - time.time(), 0))}"


def _written(seconds: float) -> str:
    """As :func:`_seconds` reads it, to two digits or so."""
    unit = next((unit for unit in "dhm" if seconds >= 2 * _UNITS[unit]), "s")
    return f"{seconds / _UNITS[unit]:.0f}{unit}"


def _print_token(token: Token, terms: Terms, output: str) -> None:
    command = f"slimnet cluster join {token}"
    if output == "table":
        click.echo(command)
        hosts_left = "1 host" if terms.uses == 1 else f"{terms.uses} hosts"
        text = f"good for {hosts_left}, {_written(terms.seconds)}"
        click.echo(f"{text}; who has it and reaches the store may join", err=True)
    else:
        row = {"token": str(token), "id": token.id, "cluster": token.cluster}
        show_one({**row, "uses": terms.uses, "seconds": terms.seconds, "command": command}, output)
