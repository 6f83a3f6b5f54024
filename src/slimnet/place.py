# SPDX-License-Identifier: Apache-2.0
"""Where an endpoint's processes belong."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

__all__ = ["HOSTS", "Life", "Part", "Place"]

#: The file of a :class:`Place`'s ``mounts`` that every endpoint has: hosts(5).
HOSTS = "/etc/hosts"


class Part(enum.StrEnum):
    """What a place consists of: the fields of :class:`Place`."""

    CGROUP = "cgroup"
    NETNS = "netns"
    ENVIRONMENT = "environment"
    MOUNTS = "mounts"
    CLOSED = "closed"


class Life(enum.Enum):
    """Whether an endpoint lives, as its backend sees it."""

    #: Its place is not there any more.
    GONE = "gone"
    #: Its place is there, without processes that the backend counts.
    IDLE = "idle"
    #: It has processes.
    BUSY = "busy"


def _to_path(value: Path | str | None) -> Path | None:
    return Path(value) if value else None


def _to_mounts(value: Mapping[str, Path | str]) -> dict[str, Path]:
    return {seen: Path(file) for seen, file in value.items()}


@frozen
class Place:
    """What a process needs in order to be an endpoint's; on the way into
    :meth:`slimnet.abc.Backend.attach`, what of it the caller gives.

    Attributes:
        cgroup: the cgroup v2 directory to start it in; ``None``: none in particular.
        netns: path of the network namespace to start it in; ``None``: the host's own.
        environment: what is set in its environment besides.
        mounts: absolute path, as the process sees it, to the file or directory that is to be
            there.
        closed: whether what ``slimnet run`` takes from what it starts is kept from every
            process in ``cgroup`` by the backend, for somebody else starts them, in the host's
            network namespace.
    """

    cgroup: Path | None = field(default=None, converter=_to_path)
    netns: Path | None = field(default=None, converter=_to_path)
    environment: Mapping[str, str] = field(factory=dict, hash=False)
    mounts: Mapping[str, Path] = field(factory=dict, converter=_to_mounts, hash=False)
    closed: bool = False

    def parts(self) -> frozenset[Part]:
        """Those that are there."""
        return frozenset(part for part in Part if getattr(self, part))
