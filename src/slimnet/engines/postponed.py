# SPDX-License-Identifier: Apache-2.0
"""A container of Docker's that cannot be an endpoint yet.

A daemon that starts begins with the containers that it is to start by itself, and answers no
question before they run. But only its API says what a container is called and which labels it has,
and without them no policy would hold for the endpoint. So until it answers the container has a
device that leads nowhere: as on a network whose cable is not in, nothing is refused, nothing
arrives, and what is sent again arrives later. The same holds for one that starts while the agent
is down, where the configuration lets it (``engines.without_agent = "later"``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from attrs import asdict, field, frozen
from pyroute2.netlink.exceptions import NetlinkError

from slimnet.engines.container import HostPort, to_ports
from slimnet.exceptions import BackendError
from slimnet.linux import netns

__all__ = ["Postponed"]


@frozen
class Postponed:
    """One, as it is written down.

    Attributes:
        file: where.
        endpoint: Docker's id of it.
        docker: Docker's id of the network.
        network: slimnet's name of it; empty where no agent was there to say it.
        address: the endpoint's; empty for any.
        drawn: the address is one that nobody asked for, and that another may have meanwhile.
        sandbox: path at which Docker mounts the container's network namespace.
        device: the name of its device in the host's namespace, where Docker takes it from.
        published: ports of the host that are to be its.
    """

    file: Path
    endpoint: str
    docker: str
    network: str
    address: str
    sandbox: str
    device: str
    drawn: bool = False
    published: tuple[HostPort, ...] = field(default=(), converter=to_ports)

    @classmethod
    def all(cls, directory: Path) -> Iterator[Postponed]:
        """Those that are written down below ``directory``."""
        for file in sorted(directory.glob("*.later")):
            found = cls.read(file)
            if found is not None:
                yield found

    @classmethod
    def read(cls, file: Path) -> Postponed | None:
        """What is written down there, if anything is."""
        with contextlib.suppress(OSError, ValueError, TypeError):  # just removed
            return cls(file, **json.loads(file.read_text()))
        return None

    def write(self) -> None:
        """Write it down, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".fresh")
        fresh.write_text(json.dumps({k: v for k, v in asdict(self).items() if k != "file"}))
        fresh.replace(self.file)

    def plug(self) -> None:
        """Make its device in the calling thread's namespace, which is the host's.

        Raises:
            BackendError: the kernel refuses.
        """
        try:
            with netns.netlink() as here:
                here.link("add", ifname=self.device, kind="veth", peer=self._end)
        except NetlinkError as error:
            raise BackendError(f"device {self.device}: {error}") from error

    def unplug(self) -> None:
        """Remove the device, wherever it is by now: by its other end, which stayed. What is not
        there is no error."""
        with netns.netlink() as here, contextlib.suppress(NetlinkError):
            for index in here.link_lookup(ifname=self._end):
                here.link("del", index=index)

    @property
    def _end(self) -> str:
        return f"{self.device}p"
