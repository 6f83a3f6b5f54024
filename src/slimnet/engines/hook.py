# SPDX-License-Identifier: Apache-2.0
"""A program that an engine runs when a container starts, and when it has ended.

It starts while the container's namespaces are there and none of its processes runs: a
container whose endpoint is refused does not start. An engine that is killed runs nothing when
its container has ended. The endpoint then goes with the network namespace; what is written
down, and ports of the host, go when a container of that configuration starts again.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs

from slimnet import directories
from slimnet.engines.confined import leaks
from slimnet.engines.container import (
    PROTOCOLS,
    Asked,
    Container,
    HostPort,
    attachments,
    host,
    join,
    leave,
    let_go,
    may_come_later,
    names_of,
    postpone,
)
from slimnet.exceptions import AgentUnreachable, CapabilityMissing, InvalidValue, SlimnetError
from slimnet.linux import cgroup, libc, netns
from slimnet.linux.resolvers import RESOLV_CONF
from slimnet.node import Node
from slimnet.place import Part, Place

__all__ = ["Hook", "host_port"]

#: Seconds that the agent may take when a container starts: the engine takes some of the ten
#: that its user waits.
_PATIENCE = 7.0


def host_port(text: str, field: str) -> HostPort:
    """``[ADDRESS:]PORT:PORT[/udp]`` as a port of the host.

    Args:
        text: what is written: a port of the host, and the container's.
        field: where.

    Raises:
        InvalidValue: it is none.
    """
    ports, _, protocol = text.partition("/")
    *address, port, target = ports.split(":") if ports.count(":") in (1, 2) else ("", "", "")
    try:
        where = str(ipaddress.IPv4Address(address[0])) if address else ""
        number, inner = int(port), int(target)
        if protocol not in {*PROTOCOLS, ""}:
            raise ValueError(protocol)
    except ValueError:
        wanted = "[ADDRESS:]PORT:PORT[/tcp|/udp], the host's first"
        raise InvalidValue(field, wanted, text) from None
    return HostPort(number, inner, where, protocol or "tcp")


@attrs.frozen
class Hook:
    """What an engine says of the container that it runs a program for.

    Attributes:
        owner: the engine.
        config: path of what the container is started from. Engines give one name to several
            containers; this is one container's only.
        agent: the agent's socket.
    """

    owner: str
    config: str
    agent: str | None = None

    @property
    def _id(self) -> str:
        return quote(self.config, safe="")

    @property
    def node(self) -> Node:
        """The host's agent, which has to answer soon."""
        return host(self.agent, _PATIENCE)

    def start(
        self,
        pid: int,
        root: Path,
        network: str,
        name: str,
        namespace: str,
        *,
        address: str | None = None,
        labels: dict[str, str] | None = None,
        published: Sequence[HostPort] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the container's namespace an endpoint's, with its resolver in the container;
        where that is the host's, its cgroup, closed. Without an agent it is put off, where
        the configuration says so.

        Args:
            pid: the container's first process.
            root: the container's root directory, as that process sees it.
            network: slimnet's.
            name: the endpoint's.
            namespace: the endpoint's.
            address: the one that is asked for.
            labels: the endpoint's.
            published: ports of the host that are the container's.
            config: what an OCI runtime starts it from. Without, it has to have a network
                namespace of its own.

        Raises:
            SlimnetError: it cannot be; nothing is left.
            OSError: the same.
        """
        own = Path(f"/proc/{pid}/ns/net")
        shared = config is not None and own.samefile("/proc/self/ns/net")
        container = Container(
            id=self._id,
            owner=self.owner,
            network=network,
            name=name,
            namespace=namespace,
            netns=str(own),
            agent=self.agent or "",
            published=names_of(name, published),
        )
        asked = Asked(address, labels or {}, published)
        try:
            self._start(container, asked, pid, root, config if shared else None)
        except AgentUnreachable as error:
            if not may_come_later():
                raise
            if shared:
                why = "in the host's network namespace it would have the host's until then"
            elif any(
                each.published for each in attachments(self.owner, self._id) if not each.asked
            ):
                why = "what it had published when it ran before has to be given back first"
            else:
                _show_text(postpone(container, asked), pid, root)
                return
            raise AgentUnreachable(f"{error}; and it joins no network later: {why}") from error

    def _start(
        self,
        container: Container,
        asked: Asked,
        pid: int,
        root: Path,
        config: Mapping[str, Any] | None,
    ) -> None:
        node = self.node
        where = Place(netns=Path(container.netns))
        if config is not None:
            where = _place(node, pid, config)
            container = attrs.evolve(
                container, netns="", cgroup=str(where.cgroup), closed=where.closed
            )
        for each in attachments(self.owner, self._id):
            # A cgroup of that name is this container's again, and has its first process.
            if not (each.cgroup and each.is_at(where)):
                leave(node, each)
        address, labels = asked.address, dict(asked.labels)
        try:
            bare = attrs.evolve(container, published=())
            made = join(node, bare, address=address, labels=labels)
        except AgentUnreachable:
            # What it may still make goes with the namespace. The engine runs the other hook
            # now, which would find what is written down, and wait for the agent once more.
            container.file.unlink(missing_ok=True)
            raise
        try:
            if asked.published:
                join(node, container, address=address, labels=labels, published=asked.published)
            if file := made.place.mounts.get(RESOLV_CONF):
                _show(file, RESOLV_CONF, pid, root)
        except (SlimnetError, OSError):
            with contextlib.suppress(SlimnetError):
                leave(node, container)
            raise

    def stop(self) -> list[str]:
        """Let go of whatever there is of the container; nothing is no error.

        Returns:
            What is left to the agent, in words.

        Raises:
            SlimnetError: it has ports of the host, and they cannot be given back now.
        """
        return let_go(list(attachments(self.owner, self._id)), self.agent)


def _place(node: Node, pid: int, config: Mapping[str, Any]) -> Place:
    """By what a container in the host's network namespace is known, and whether it is to be
    closed: where the kernel can, or else has no need.

    Raises:
        CapabilityMissing: it can be none, or is left what it must not have.
        InvalidValue: it has no cgroup of its own.
    """
    status = node.status()
    if set(status["needs"]) != {Part.CGROUP}:
        raise CapabilityMissing(
            f"the container is in the host's network namespace: backend {status['backend']}"
            " wants one of its own"
        )
    own, there = cgroup.of_process(os.getpid()), cgroup.of_process(pid)
    if own is None or there is None or own.is_relative_to(there):
        raise InvalidValue("cgroup", "one that is the container's alone", str(there))
    closed = Part.CLOSED in status["takes"]
    if not closed and (found := leaks(config)):
        raise CapabilityMissing(
            "the container is in the host's network namespace, and the kernel cannot close it"
            f" (`slimnet check` says more): give it {'; '.join(found)}; or another network"
        )
    return Place(there, closed=closed)


def _show_text(text: str, pid: int, root: Path) -> None:
    """Likewise a resolv.conf(5) of that text: the mount keeps the file, which needs no name."""
    with tempfile.NamedTemporaryFile("w", dir=directories.run()) as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        _show(Path(file.name), RESOLV_CONF, pid, root)


def _root_of(ids: Path) -> int:
    """Who the root of a user namespace is outside of it: user_namespaces(7)."""
    for line in ids.read_text().splitlines():
        inside, outside, _ = map(int, line.split())
        if inside == 0:
            return outside
    return 0


def _show(file: Path, path: str, pid: int, root: Path) -> None:
    """Mount a file of the host in a container, in place of what is there, for reading."""
    owner = [_root_of(Path(f"/proc/{pid}/{kind}_map")) for kind in ("uid", "gid")]
    tree = libc.open_tree(str(file))
    space = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def mount() -> None:
        libc.setns(space, libc.CLONE_NEWNS)
        # Links are the container's, and must not lead out of it.
        os.chroot(root)
        os.chdir("/")
        # Of a container with users of its own: no file system of its knows the host's root.
        libc.setfsid(*owner)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        # Of a link, which often leads to what only the container's init will make, this covers
        # the link itself.
        libc.move_mount(tree, path)
        libc.mount("", path, flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY)

    try:
        netns.apart(mount, libc.CLONE_FS)
    except OSError as error:
        raise OSError(f"{path} of the container: {error.strerror}") from error
    finally:
        os.close(space)
        os.close(tree)
