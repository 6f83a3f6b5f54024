# SPDX-License-Identifier: Apache-2.0
"""Containers that started while the agent was down, and are endpoints once it is back.

With ``engines.without_agent = "later"`` a plugin or a hook that finds no agent lets its container
start without a network: the container's namespace has a loopback of its own and no other device,
so nothing leaves it and nothing comes in. What is asked for is written down
(:func:`slimnet.engines.container.postpone`), and the next agent's process asks for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from slimnet.engines.container import join_postponed, postponed
from slimnet.exceptions import AgentUnreachable, SlimnetError

__all__ = ["Latecomers", "following"]

_log = logging.getLogger(__name__)

#: Seconds between two looks, and the most between two tries for one that is refused.
_EVERY, _LONGEST = 0.5, 60.0


class Latecomers:
    """Those of one agent.

    Args:
        agent: its socket.
    """

    def __init__(self, agent: Path) -> None:
        self._agent = agent
        #: Container to when it is tried again, and after how many seconds once more.
        self._refused: dict[str, tuple[float, float]] = {}

    def join(self) -> None:
        """Make endpoints of those that can be by now. One that is refused keeps its loopback
        alone, and is tried again: the log says why."""
        waiting = list(postponed())
        self._refused = {name: self._refused[name] for name in waiting if name in self._refused}
        for name in waiting:
            when, delay = self._refused.get(name, (0.0, 2 * _EVERY))
            if time.monotonic() < when:
                continue
            try:
                self._join(name)
            except AgentUnreachable:  # it is on its way up
                return
            except (SlimnetError, OSError) as error:
                _log.warning("container %s, which started without the agent: %s", name, error)
                self._refused[name] = time.monotonic() + delay, min(2 * delay, _LONGEST)

    def _join(self, name: str) -> None:
        made = join_postponed(name, self._agent)
        if made is not None:
            _log.info("joined endpoint %s, which started without the agent", made.endpoint.path)


@contextlib.contextmanager
def following(agent: Path) -> Iterator[None]:
    """While the block lasts, containers that wait for this agent become its endpoints.

    Args:
        agent: its socket.
    """
    stop = threading.Event()
    latecomers = Latecomers(agent)

    def follow() -> None:
        while not stop.wait(_EVERY):
            latecomers.join()

    thread = threading.Thread(target=follow, name="latecomers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)
