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
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from attrs import asdict, evolve, field, frozen

from slimnet import directories
from slimnet.agent.client import Client
from slimnet.attached import AttachedEndpoint
from slimnet.config import load_config
from slimnet.exceptions import (
    AgentUnreachable,
    BackendError,
    InvalidValue,
    NotFound,
    SlimnetError,
)
from slimnet.linux import netns
from slimnet.names import NAME
from slimnet.node import Node
from slimnet.place import Place

__all__ = [
    "DEVICE",
    "Container",
    "HostPort",
    "attachments",
    "hardware_address",
    "host",
    "join",
    "leave",
    "let_go",
    "name_of",
    "withdraw",
]

#: What an endpoint's device is called in its namespace.
DEVICE = "eth0"
#: Seconds that the agent may take. Engines and their users wait no longer than ten.
_PATIENCE = 8.0
_SIOCGIFHWADDR = 0x8927
_ODD = re.compile("[^a-z0-9]+")
_DRAWN = re.compile("[0-9a-f]{32,}")


@frozen
class HostPort:
    """A port of the host that is to be the container's.

    Attributes:
        port: of the host.
        target: of the container.
        address: of the host; empty for all.
    """

    port: int
    target: int
    address: str = ""


def _to_texts(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


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


def attachments(owner: str, container: str | None = None) -> Iterator[Container]:
    """Those that are written down, of one of an engine's networks.

    Args:
        owner: which.
        container: of this one only.
    """
    for file in sorted(_directory().glob(f"{owner}@*")):
        with contextlib.suppress(OSError, ValueError, TypeError):  # just removed
            found = Container(**json.loads(file.read_text()))
            if found.owner == owner and container in (None, found.id):
                yield found


def host(agent: str | None = None, patience: float = _PATIENCE) -> Node:
    """The agent of this host, which has to answer soon.

    Args:
        agent: its socket; that of the environment, or of the machine's configuration, by
            default.
        patience: seconds that it may take to answer.
    """
    agent = agent or os.environ.get("SLIMNET_AGENT")
    return Node(Client(Path(agent) if agent else load_config().socket, patience))


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
    container.write()
    try:
        made = node.attach(
            container.network,
            container.name,
            namespace=container.namespace,
            address=address,
            labels=labels or None,
            cgroup=container.cgroup or None,
            netns=container.netns or None,
            closed=container.closed,
        )
        if published:
            node.apply_policy(
                "---\n".join(
                    _document(container, name, port)
                    for name, port in zip(container.published, published, strict=True)
                )
            )
    except AgentUnreachable:
        raise
    except SlimnetError:
        with contextlib.suppress(SlimnetError):
            leave(node, container)
        raise
    return made


def _document(container: Container, name: str, port: HostPort) -> str:
    spec = {"endpoint": container.name, "port": port.port, "targetPort": port.target}
    if port.address:
        spec["address"] = port.address
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
    """Undo :func:`join`, as far as it came; what is not there is no error.

    Raises:
        SlimnetError: it could not, and may be tried again.
    """
    withdraw(node, container)
    try:
        there = node.endpoint(container.network, container.name, container.namespace)
    except (NotFound, BackendError, InvalidValue):
        there = None  # gone, about to go, or another host's by now
    # Another container may have the name: this one's endpoint went with its namespace.
    if there is not None and container.is_at(there.place):
        with contextlib.suppress(NotFound):
            node.detach(container.network, container.name, container.namespace)
    container.file.unlink(missing_ok=True)


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
