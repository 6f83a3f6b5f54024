# SPDX-License-Identifier: Apache-2.0
"""``slimnet hook``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from slimnet.cli.node import (
    agent_option,
    label_option,
    labels_of,
    namespace_option,
    network_of,
    network_option,
)

__all__ = ["hook"]


@click.group()
@click.pass_context
def hook(context: click.Context) -> None:
    """Be the hook of a container engine.

    The engine runs it when a container starts and when it has ended: in between,
    the container's network namespace is an endpoint.
    """
    if context.invoked_subcommand == "lxc" and "LXC_NAME" in os.environ:
        _speak_to_who_waits()


@hook.command(
    epilog="""\b
In a container's configuration:
  lxc.net.0.type = empty
  lxc.hook.start-host = /usr/bin/slimnet hook lxc -n prod -l app=web
  lxc.hook.post-stop = /usr/bin/slimnet hook lxc"""
)
@network_option
@namespace_option
@click.option("--name", metavar="NAME", help="[default: the container's]")
@click.option("--ip", "address", metavar="ADDRESS", help="[default: the first free one]")
@label_option
@click.option(
    "-p",
    "--publish",
    metavar="[ADDRESS:]PORT:PORT[/udp]",
    multiple=True,
    help="A port of the host, and the container's; may be repeated.",
)
@agent_option
@click.argument("words", metavar="[WORDS]...", nargs=-1)
def lxc(
    network: str | None,
    namespace: str,
    name: str | None,
    address: str | None,
    labels: tuple[str, ...],
    publish: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    """Be LXC's hooks start-host and post-stop.

    What is wrong is said on standard error, and the container does not start. LXC
    puts that into its log at level DEBUG; `lxc-start -F` shows it.
    LXC adds WORDS: the container's name, and which hook it is.
    """
    from slimnet.engines.container import name_of  # noqa: PLC0415  # attrs and the client
    from slimnet.engines.hook import Hook, host_port  # noqa: PLC0415
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415

    called = os.environ.get("LXC_NAME")
    if not called:
        raise InvalidValue("LXC_NAME", "a container's name: LXC runs this", None)
    agent = click.get_current_context().find_root().obj
    one = Hook("lxc", os.environ.get("LXC_CONFIG_FILE") or called, agent)
    # By the container's lxc.hook.version: 1 sets a variable, 0 adds name, section and kind.
    kind = os.environ.get("LXC_HOOK_TYPE") or "".join(words[2:3])
    if kind == "post-stop":
        for each in one.stop():
            click.echo(f"slimnet: {each}", err=True)
        return
    if kind != "start-host":
        raise InvalidValue("hook", "lxc.hook.start-host or lxc.hook.post-stop", f"lxc.hook.{kind}")
    one.start(
        int(os.environ["LXC_PID"]),
        Path("/"),
        network_of(one.node, network),
        name or name_of("", called),
        namespace,
        address=address,
        labels=labels_of(labels),
        published=[host_port(each, "--publish") for each in publish],
    )


@hook.command(
    epilog="""\b
In a bundle's config.json:
  "annotations": {"slimnet.io/network": "prod", "slimnet.io/labels": "app=web"},
  "hooks": {
    "createRuntime": [{"path": "/usr/bin/slimnet", "args": ["slimnet", "hook", "oci"]}],
    "poststop": [{"path": "/usr/bin/slimnet", "args": ["slimnet", "hook", "oci"]}]
  }"""
)
@agent_option
def oci() -> None:
    """Be the hooks createRuntime and poststop of an OCI runtime.

    The container's state comes on standard input. What is asked for is in its
    annotations slimnet.io/network, namespace, name, address, labels and publish;
    a container without slimnet.io/network is left alone.
    """
    from slimnet.engines.oci import ContainerState  # noqa: PLC0415  # attrs and the client

    state = ContainerState.parse(sys.stdin.read())
    for each in state.take(click.get_current_context().find_root().obj):
        click.echo(f"slimnet: {each}", err=True)


def _speak_to_who_waits() -> None:
    """LXC keeps what a hook says for its log, at level DEBUG. Where LXC itself runs in the
    foreground, its standard error is where somebody looks; else its log at any level, if that
    stands in the container's configuration, as Incus has it."""
    from slimnet.linux import libc  # noqa: PLC0415  # ctypes, for this command only

    try:
        theirs = libc.pidfd_getfd(os.pidfd_open(os.getppid()), 2)
    except OSError:  # not ours to ask, or a kernel before 5.6
        return
    if os.path.samestat(os.fstat(theirs), Path(os.devnull).stat()):
        try:
            log = _log(os.environ["LXC_CONFIG_FILE"])
            theirs = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except (OSError, LookupError):
            return
    os.dup2(theirs, 2)


def _log(config: str) -> Path:
    """LXC's log by a container's configuration; both are where LXC is, a chroot perhaps."""
    there = Path(f"/proc/{os.getppid()}/root")
    lines = (there / config.lstrip("/")).read_text().splitlines()
    words = {
        key.strip(): value.strip() for key, _, value in (each.partition("=") for each in lines)
    }
    return there / words["lxc.log.file"].lstrip("/")
