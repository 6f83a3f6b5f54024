# SPDX-License-Identifier: Apache-2.0
"""What :meth:`slimnet.Node.attach` gives."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attrs import field, frozen

from slimnet.exceptions import AgentUnreachable, InUse
from slimnet.model import Endpoint
from slimnet.place import HOSTS, Place

if TYPE_CHECKING:
    from slimnet.node import Node

__all__ = ["AttachedEndpoint", "PlacedEndpoint"]

_log = logging.getLogger(__name__)


@frozen
class PlacedEndpoint:
    """An endpoint, and where its processes belong.

    Attributes:
        endpoint: as the store has it.
        place: all that its processes need.
        created: whether it was made now; it was there already otherwise.
    """

    endpoint: Endpoint
    place: Place
    created: bool

    @property
    def cgroup(self) -> Path | None:
        """The cgroup v2 directory to start processes in."""
        return self.place.cgroup

    @property
    def netns(self) -> Path | None:
        """The network namespace to start them in; where that is the host's own, by
        the agent's process: enter it before the agent is restarted."""
        return self.place.netns

    @property
    def hosts(self) -> Path:
        """An ``/etc/hosts`` for them, always up to date."""
        return self.place.mounts[HOSTS]


@frozen
class AttachedEndpoint(PlacedEndpoint):
    """An attached endpoint of this host.

    As a context manager it is detached at the end of the block, unless it was
    there before. What still runs in its cgroup is killed then, but for a
    cgroup that the caller brought: that has to be empty.
    """

    _own_cgroup: bool = field(repr=False)
    _ephemeral: bool = field(repr=False)
    _node: Node = field(repr=False, eq=False)

    def detach(self, *, kill: bool = False) -> None:
        """Remove it.

        Args:
            kill: end its processes first.

        Raises:
            InUse: it has processes.
        """
        each = self.endpoint
        self._node.detach(each.network, each.name, each.namespace, kill=kill)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.created:
            return
        try:
            self.detach(kill=self._own_cgroup)
        except InUse:
            if error is None:
                raise
        except AgentUnreachable:
            if error is None and not self._ephemeral:
                raise
            # No error to the caller: its command has ended, and an agent that starts removes
            # ephemeral endpoints whose holder is gone.
            _log.warning("endpoint %s stays until the agent is back", self.endpoint.name)
