# SPDX-License-Identifier: Apache-2.0
"""A container of an engine, as an endpoint of this host.

An engine names a container by an id and, when it goes, often by nothing else. What was made
for it is therefore written down, one file for each of a container's networks, *before* it is
made: whatever is killed in between, the next removal finds what there may be. The files are
below ``/run``, and are gone with the namespaces after a reboot.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, evolve, field, frozen

from slimnet import directories, lock
from slimnet.agent.client import Client
from slimnet.attached import AttachedEndpoint, PlacedEndpoint
from slimnet.config import load_config
from slimnet.exceptions import (
    AgentUnreachable,
    BackendError,
    InvalidValue,
    NotFound,
    SlimnetError,
)
from slimnet.linux import netns
from slimnet.linux.resolvers import RESOLV_CONF, own_resolv_conf
from slimnet.names import NAME
from slimnet.node import Node
from slimnet.place import Place
from slimnet.resolver import OWN, search

__all__ = [
    "DEVICE",
    "ENGINE_NAME",
    "PROTOCOLS",
    "Asked",
    "Container",
    "HostPort",
    "attachments",
    "hardware_address",
    "host",
    "join",
    "join_postponed",
    "leave",
    "let_go",
    "may_come_later",
    "name_of",
    "names_of",
    "postpone",
    "postponed",
    "resolver_of",
    "to_ports",
    "withdraw",
]

#: What an endpoint's device is called in its namespace.
DEVICE = "eth0"
#: What engines call networks and containers, where the name is part of a file's.
ENGINE_NAME = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]*")
#: Seconds that the agent may take. Engines and their users wait no longer than ten.
_PATIENCE = 8.0
_SIOCGIFHWADDR = 0x8927
_ODD = re.compile("[^a-z0-9]+")
_DRAWN = re.compile("[0-9a-f]{32,}")


def _to_address(value: str) -> str:
    return "" if value in ("0.0.0.0", "::") else value  # noqa: S104  # all


def _to_texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _to_numbers(value: Iterable[int]) -> tuple[int, ...]:
    return tuple(value)


#: Of ports that can be the container's.
PROTOCOLS = ("tcp", "udp")


@frozen
class HostPort:
    """A port of the host that is to be the container's.

    Attributes:
        port: of the host.
        target: of the container.
        address: of the host; empty for all.
        protocol: ``tcp`` or ``udp``.
        held: inode numbers of the sockets by which the engine keeps it for the container.
    """

    port: int
    target: int
    address: str = field(default="", converter=_to_address)
    protocol: str = "tcp"
    held: tuple[int, ...] = field(default=(), converter=_to_numbers)


def to_ports(value: Iterable[HostPort | Mapping[str, Any]]) -> tuple[HostPort, ...]:
    """Ports of the host, as they were written down."""
    return tuple(each if isinstance(each, HostPort) else HostPort(**each) for each in value)


@frozen
class Asked:
    """What is asked for a container that started while the agent was down, for when it is back.

    Attributes:
        address: the endpoint's.
        labels: the endpoint's.
        published: ports of the host.
        space: inode number of the container's network namespace, once it is written down: a path
            may lead to another by then, of another process with that id say.
    """

    address: str | None = None
    labels: Mapping[str, str] = field(factory=dict)
    published: tuple[HostPort, ...] = field(default=(), converter=to_ports)
    space: int = 0


def _to_asked(value: Asked | Mapping[str, Any] | None) -> Asked | None:
    return Asked(**value) if isinstance(value, Mapping) else value


@frozen
class Container:
    """One container's part in one network, as it is written down.

    Attributes:
        id: the engine's, of the container.
        owner: which of the engine's networks it is; one container may be in several.
        network: slimnet's network.
        name: the endpoint's.
        namespace: the endpoint's.
        netns: path of the container's network namespace; empty where that is the host's.
        agent: the agent's socket.
        published: names of the PublishedPorts that were made for it.
        cgroup: the container's, by which it is known in the host's network namespace.
        closed: whether the data path keeps from it what its engine leaves it.
        asked: of one that is no endpoint yet.
    """

    id: str
    owner: str
    network: str
    name: str
    namespace: str
    netns: str
    agent: str
    published: tuple[str, ...] = field(default=(), converter=_to_texts)
    cgroup: str = ""
    closed: bool = False
    asked: Asked | None = field(default=None, converter=_to_asked)

    def is_at(self, place: Place) -> bool:
        """Whether an endpoint's place is this container."""
        if self.cgroup:
            return str(place.cgroup) == self.cgroup
        return str(place.netns) == self.netns

    @property
    def file(self) -> Path:
        """Where it is written down."""
        return _directory() / f"{self.owner}@{self.id}"

    def write(self) -> None:
        """Write it down, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_name(f".{self.file.name}")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.replace(self.file)


def _directory() -> Path:
    return directories.run() / "containers"


def _postponed() -> Path:
    """An empty file for each container that is asked for later, named as the container's own:
    looking whether there is any is cheap. Who holds the directory works on such containers."""
    return _directory() / "later"


def attachments(owner: str, container: str | None = None) -> Iterator[Container]:
    """Those that are written down, of one of an engine's networks.

    Args:
        owner: which.
        container: of this one only.
    """
    for file in sorted(_directory().glob(f"{owner}@*")):
        found = _read(file)
        if found is not None and found.owner == owner and container in (None, found.id):
            yield found


def _read(file: Path) -> Container | None:
    with contextlib.suppress(OSError, ValueError, TypeError):  # just removed
        return Container(**json.loads(file.read_text()))
    return None


def host(agent: str | None = None, patience: float = _PATIENCE) -> Node:
    """The agent of this host, which has to answer soon.

    Args:
        agent: its socket; that of the environment, or of the machine's configuration, by
            default.
        patience: seconds that it may take to answer.
    """
    return Node(Client(_agent(agent), patience))


def _agent(given: str | None) -> Path:
    path = given or os.environ.get("SLIMNET_AGENT")
    return Path(path) if path else load_config().socket


def name_of(text: str, container: str) -> str:
    """A name for an endpoint, as near to an engine's name of the container as can be; else
    to the container's id, of a drawn one its beginning."""
    if _DRAWN.fullmatch(container):
        container = container[:12]
    for each in (text, container):
        words = _ODD.sub("-", each.lower()).strip("-")[:63].strip("-")
        if NAME.fullmatch(words):
            return words
    return container[:12].lower()


def names_of(endpoint: str, ports: Iterable[HostPort]) -> tuple[str, ...]:
    """Of the PublishedPorts of an endpoint."""
    return tuple(
        f"{endpoint}-{each.port}" + ("" if each.protocol == "tcp" else f"-{each.protocol}")
        for each in ports
    )


def resolver_of(placed: PlacedEndpoint) -> str:
    """The resolv.conf(5) of an endpoint's resolver; empty where it has none."""
    file = placed.place.mounts.get(RESOLV_CONF)
    return "" if file is None else file.read_text()


def join(
    node: Node,
    container: Container,
    *,
    address: str | None = None,
    labels: dict[str, str] | None = None,
    published: Sequence[HostPort] = (),
) -> AttachedEndpoint:
    """Make a container's namespace, or its cgroup, an endpoint's, with its ports of the host.
    The same again answers the same.

    Raises:
        SlimnetError: it could not; nothing is left, but where the agent did not answer: what
            it may still make goes with :func:`leave`, or with the namespace.
    """
    before = _read(container.file)
    container.write()
    try:
        made = _make(node, container, Asked(address, labels or {}, published))
    except AgentUnreachable:
        raise
    except SlimnetError:
        # Ports of those names that it did not publish are another's, who has its name.
        own = before.published if before is not None else ()
        with contextlib.suppress(SlimnetError):
            leave(node, evolve(container, published=own))
        raise
    return made


def _make(node: Node, container: Container, asked: Asked) -> AttachedEndpoint:
    made = node.attach(
        container.network,
        container.name,
        namespace=container.namespace,
        address=asked.address,
        labels=asked.labels or None,
        cgroup=container.cgroup or None,
        netns=container.netns or None,
        closed=container.closed,
    )
    if not asked.published:
        return made
    pairs = zip(container.published, asked.published, strict=True)
    try:
        node.apply_policy("\n---\n".join(_document(container, *pair) for pair in pairs))
    except AgentUnreachable:
        raise
    except SlimnetError:
        with contextlib.suppress(SlimnetError):
            _undo(node, container)
        raise
    return made


def _document(container: Container, name: str, port: HostPort) -> str:
    spec: dict[str, Any] = {
        "endpoint": container.name,
        "port": port.port,
        "targetPort": port.target,
        "protocol": port.protocol.upper(),
    }
    if port.address:
        spec["address"] = port.address
    if port.held:
        spec["heldBy"] = list(port.held)
    return json.dumps(
        {
            "apiVersion": "slimnet.io/v1alpha1",
            "kind": "PublishedPort",
            "metadata": {
                "name": name,
                "namespace": container.namespace,
                "annotations": {"slimnet.io/network": container.network},
            },
            "spec": spec,
        }
    )


def withdraw(node: Node, container: Container) -> Container:
    """Publish its ports no more; the container without them.

    Raises:
        SlimnetError: it could not, and may be tried again.
    """
    for name in container.published:
        with contextlib.suppress(NotFound):
            node.remove_policy(name, container.network, container.namespace, "PublishedPort")
    return evolve(container, published=())


def leave(node: Node, container: Container) -> None:
    """Undo :func:`join` or :func:`postpone`, as far as it came; what is not there is no error.

    Raises:
        SlimnetError: it could not, and may be tried again.
    """
    if container.asked is not None:
        with lock.hold(_postponed()):
            container = _read(container.file) or container
            if container.asked is not None:  # there is nothing of it in the agent
                container.file.unlink(missing_ok=True)
                (_postponed() / container.file.name).unlink(missing_ok=True)
                return
    _undo(node, container)
    container.file.unlink(missing_ok=True)


def _undo(node: Node, container: Container) -> None:
    withdraw(node, container)
    try:
        there = node.endpoint(container.network, container.name, container.namespace)
    except (NotFound, BackendError, InvalidValue):
        there = None  # gone, about to go, or another host's by now
    # Another container may have the name: this one's endpoint went with its namespace.
    if there is not None and container.is_at(there.place):
        with contextlib.suppress(NotFound):
            node.detach(container.network, container.name, container.namespace)


def may_come_later() -> bool:
    """Whether a container may start while the agent is down.

    Raises:
        ConfigError: the configuration is wrong.
    """
    return load_config().without_agent == "later"


def postpone(container: Container, asked: Asked) -> str:
    """Write down that a container is to be made an endpoint's when its agent is back. Until then
    its network namespace has its own loopback and nothing else.

    Args:
        container: with a network namespace of its own.
        asked: as :func:`join` would ask for it.

    Returns:
        The resolv.conf(5) of the resolver that the endpoint will have.

    Raises:
        InvalidValue: it has no network namespace.
    """
    space = netns.number(Path(container.netns))
    if not space:
        raise InvalidValue("netns", "a network namespace", container.netns)
    agent = container.agent or str(_agent(None))
    evolve(container, agent=agent, asked=evolve(asked, space=space)).write()
    with lock.hold(_postponed()):
        (_postponed() / container.file.name).touch()
    return own_resolv_conf(str(OWN), search(container.network, container.namespace))


def postponed() -> Iterator[str]:
    """Names of the containers that are no endpoints yet."""
    with contextlib.suppress(FileNotFoundError):
        yield from sorted(os.listdir(_postponed()))  # noqa: PTH208  # names


def join_postponed(name: str, agent: Path) -> AttachedEndpoint | None:
    """What :func:`postpone` has put off, if it is this agent's.

    Args:
        name: as of :func:`postponed`.
        agent: its socket.

    Returns:
        Its endpoint; nothing where the container has ended, or another agent is meant.

    Raises:
        SlimnetError: it could not; nothing is left in the agent, and it may be tried again.
    """
    with lock.hold(_postponed()):
        marker, container = _postponed() / name, _read(_directory() / name)
        asked = None if container is None else container.asked
        if container is None or asked is None:
            marker.unlink(missing_ok=True)
            return None
        if container.agent != str(agent):
            return None
        if netns.number(Path(container.netns)) != asked.space:
            container.file.unlink(missing_ok=True)
            marker.unlink(missing_ok=True)
            return None
        made = _make(host(container.agent), container, asked)
        evolve(container, asked=None).write()
        marker.unlink(missing_ok=True)
    return made


def let_go(containers: Iterable[Container], agent: str | None = None) -> list[str]:
    """:func:`leave` for containers that have ended. An agent that does not answer is no error:
    it lets go of the endpoint by itself once the namespace is gone. Ports of the host it would
    keep.

    Args:
        containers: which.
        agent: of those for which none is written down.

    Returns:
        What is left to the agent, in words.
    """
    left = []
    for each in containers:
        try:
            leave(host(each.agent or agent), each)
        except AgentUnreachable as error:
            if each.published:
                raise
            left.append(f"{error}; it removes the endpoint when it is back")
            each.file.unlink(missing_ok=True)
    return left


def hardware_address(path: Path) -> str:
    """That of the endpoint's device in a namespace (netdevice(7)).

    Raises:
        OSError: it has none.
    """
    with netns.enter(path), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("16s24x", DEVICE.encode()))
    return answer[18:24].hex(":")
