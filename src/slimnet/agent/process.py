# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: signals, service manager, API."""

from __future__ import annotations

import logging
import signal
from types import FrameType

from slimnet.agent.agent import Agent
from slimnet.agent.notify import notify
from slimnet.agent.routes import Routes
from slimnet.agent.server import Server
from slimnet.agent.site import cgroup_mount
from slimnet.config import Config

__all__ = ["serve"]

_log = logging.getLogger(__name__)


def serve(config: Config) -> None:
    """See :func:`slimnet.agent.serve`."""
    agent = Agent(config)

    def stop(_number: int, _frame: FrameType | None) -> None:
        agent.stop()

    previous = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        agent.start()
        server = Server(
            config.socket,
            Routes(agent),
            # Those of other instances on this machine are below slimnet/ too.
            lambda: [
                cgroup_mount() / "slimnet",
                *(each.cgroup for each in list(agent.endpoints.attached.values())),
            ],
        )
        server.start()
        notify("READY=1")
        _log.info("host %s is ready, %s", config.host, config.socket)
        try:
            agent.run()
        finally:
            notify("STOPPING=1")
            server.close()
    finally:
        agent.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
