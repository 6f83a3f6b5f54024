# SPDX-License-Identifier: Apache-2.0
"""What the commands that talk to an agent share: which agent, and the words
for networks, namespaces, endpoints and labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from slimnet.exceptions import NotFound
    from slimnet.model import Endpoint
    from slimnet.node import Node

__all__ = [
    "age",
    "agent_option",
    "is_named",
    "label_option",
    "labels_of",
    "namespace_option",
    "network_of",
    "network_option",
    "none_named",
    "open_agent",
    "path_of",
    "port_of",
    "ports_of",
    "tell_stale",
    "title",
    "words_of",
]

_F = TypeVar("_F", bound=Callable[..., Any])


def agent_option(function: _F) -> _F:
    """Give a command ``--agent`` too, so that it may stand behind the command."""
    option = click.option(
        "--agent",
        metavar="SOCKET",
        expose_value=False,
        callback=_set_agent,
        help="The agent's socket. [env: SLIMNET_AGENT]",
    )
    return option(function)


def _set_agent(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.find_root().obj = value


def open_agent() -> Node:
    """The node whose agent was named."""
    from slimnet.node import open_node  # noqa: PLC0415  # attrs and the client

    return open_node(agent=click.get_current_context().find_root().obj)


def tell_stale(node: Node) -> None:
    """Say on standard error where the store does not answer: what was shown is what the
    agent knew before."""
    if stale := node.status()["stale"]:
        text = f"{stale}; this is what the agent knew before"
        click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)


def _complete(values: Callable[[Node], list[str]]) -> Callable[..., list[str]]:
    """Names that the agent knows; none where it does not answer."""

    def complete(context: click.Context, _option: Any, incomplete: str) -> list[str]:
        from slimnet.node import open_node  # noqa: PLC0415  # attrs and the client

        root = context.find_root()  # nothing ran yet: what was named is in its parameters
        try:
            with open_node(agent=root.obj or root.params.get("agent")) as node:
                return [each for each in values(node) if each.startswith(incomplete)]
        except Exception:  # noqa: BLE001  # a shell is in the middle of a line
            return []

    return complete


complete_network = _complete(lambda node: [each.name for each in node.networks()])
complete_endpoint = _complete(lambda node: [each.name for each in node.endpoints()])
complete_namespace = _complete(lambda node: [each.name for each in node.namespaces()])
complete_host = _complete(lambda node: [each.name for each in node.host_states()])
complete_policy = _complete(lambda node: [each.name for each in node.policies()])
complete_kind = _complete(lambda node: sorted({type(each).__name__ for each in node.policies()}))


def network_option(function: _F) -> _F:
    """Give a command ``--network``."""
    option = click.option(
        "-n",
        "--network",
        metavar="NETWORK",
        shell_complete=complete_network,
        help="Its network; may be left out where there is one only.",
    )
    return option(function)


def namespace_option(function: _F) -> _F:
    """Give a command ``--namespace``."""
    option = click.option(
        "--namespace",
        metavar="NAMESPACE",
        default="default",
        show_default=True,
        shell_complete=complete_namespace,
        help="Its namespace in the network.",
    )
    return option(function)


def label_option(function: _F) -> _F:
    """Give a command ``--label``."""
    option = click.option(
        "-l",
        "--label",
        "labels",
        metavar="KEY=VALUE",
        multiple=True,
        help="What policies select it by; may be repeated.",
    )
    return option(function)


def labels_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """``("app=web", ...)`` as labels.

    Raises:
        InvalidValue: one is no ``key=value``, or has a key that another has.
    """
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415
    from slimnet.names import is_label  # noqa: PLC0415

    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InvalidValue("--label", "key=value", pair)
        if not is_label(key, value):
            raise InvalidValue("--label", "key and value of a Kubernetes label", pair)
        if key in labels:
            raise InvalidValue("--label", f"one value for {key}", f"{labels[key]} and {value}")
        labels[key] = value
    return labels


def ports_of(pairs: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """``("http=80", "dns=53/udp")`` as named ports.

    Raises:
        InvalidValue: one is no ``name=number[/protocol]``, or has a name that another has.
    """
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415
    from slimnet.names import PORT_NAME, PORT_NAME_WANTED  # noqa: PLC0415

    wanted = f"name=number or name=number/protocol, the name of {PORT_NAME_WANTED}"
    ports: dict[str, tuple[str, int]] = {}
    for pair in pairs:
        name, _, rest = pair.partition("=")
        text, _, protocol = rest.partition("/")
        number = port_of(text)
        if not number or PORT_NAME.fullmatch(name) is None:
            raise InvalidValue("--port", wanted, pair)
        if protocol not in ("", "tcp", "udp", "sctp"):
            raise InvalidValue("--port", "protocol tcp, udp or sctp", pair)
        if name in ports:
            raise InvalidValue("--port", f"one port for {name}", f"{ports[name][1]} and {number}")
        ports[name] = (protocol or "tcp", number)
    return ports


def port_of(text: str) -> int | None:
    """A port's number, 0 to 65535; ``None`` where it is none."""
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and int(text) <= 65535 else None


def is_named(endpoint: Endpoint, text: str) -> bool:
    """Whether ``--endpoint`` means it: by ``[[network/]namespace/]name``, where what is left out
    in front may be any, or by its title."""
    return text == title(endpoint) or f"/{endpoint.path}".endswith(f"/{text}")


def none_named(endpoints: Iterable[Endpoint], text: str) -> NotFound | None:
    """The error for a ``--endpoint`` that means none of these."""
    from slimnet.names import missing  # noqa: PLC0415

    every = list(endpoints)
    if any(is_named(each, text) for each in every):
        return None
    return missing("endpoint", text, [title(each) for each in every])


def network_of(node: Node, given: str | None) -> str:
    """The network that was named, or the only one that there is.

    Raises:
        InvalidValue: it has to be said.
    """
    if given is not None:
        return given
    from slimnet.exceptions import InvalidValue  # noqa: PLC0415

    names = [each.name for each in node.networks()]
    if len(names) != 1:
        there = ", ".join(names) or "none: `slimnet network create NAME CIDR` makes one"
        raise InvalidValue("--network", f"one of the networks ({there})", None)
    return names[0]


def path_of(node: Node, text: str, network: str | None, namespace: str) -> tuple[str, str, str]:
    """Network, namespace and name of the endpoint that was named: by its name alone, with
    the options that say the rest, or as lists and `slimnet run -d` say it.

    Raises:
        NotFound: there is none.
        InvalidValue: it is no name, or the network has to be said.
    """
    if "/" not in text:
        return network_of(node, network), namespace, text
    from slimnet import names  # noqa: PLC0415
    from slimnet.exceptions import NotFound  # noqa: PLC0415

    found = names.find(node.endpoints(network), text, network)
    if found is None:
        raise NotFound(f"no endpoint {text}")
    return found.network, found.namespace, found.name


def title(endpoint: Endpoint) -> str:
    """``network/namespace/name``, short where the namespace is ``default``."""
    if endpoint.namespace == "default":
        return f"{endpoint.network}/{endpoint.name}"
    return endpoint.path


def words_of(command: tuple[str, ...]) -> tuple[str, ...]:
    """A command behind an argument, without the ``--`` that is kept there.

    Raises:
        click.UsageError: there is none, or an option of ours is where it should be.
    """
    words = command[1:] if command[:1] == ("--",) else command
    if not words:
        raise click.UsageError("Missing argument '-- CMD...'.", click.get_current_context())
    if words == command and words[0].startswith("-"):
        context = click.get_current_context()
        first = next(
            each.make_metavar(context)
            for each in context.command.params
            if isinstance(each, click.Argument)
        )
        raise click.UsageError(f"Option '{words[0]}' has to stand before {first}.", context)
    return words


def age(seconds: float) -> str:
    """A time span in two figures: 12s, 3m, 5h, 2d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(seconds, 0):.0f}s"
