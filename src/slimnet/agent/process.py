# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: signals, service manager, API."""

from __future__ import annotations

import logging
import shutil
import signal
from types import FrameType

from slimnet.agent import cgroup
from slimnet.agent.agent import Agent
from slimnet.agent.client import Client
from slimnet.agent.notify import notify
from slimnet.agent.routes import Routes
from slimnet.agent.server import Server
from slimnet.agent.site import cgroup_mount, survey
from slimnet.config import Config
from slimnet.exceptions import AgentUnreachable, InUse
from slimnet.plugins import choose_backend

__all__ = ["serve", "teardown"]

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


def teardown(config: Config) -> None:
    """See :func:`slimnet.agent.teardown`."""
    try:
        Client(config.socket, timeout=5).request("GET", "status")
    except AgentUnreachable:
        pass
    else:
        raise InUse(f"an agent answers on {config.socket}: stop it first")
    kind, _ = choose_backend(config.backend)
    site = survey(config, kind)
    with kind(site.context(config, kind)) as backend:
        backend.teardown()
    cgroup.remove(site.cgroups)
    shutil.rmtree(config.run, ignore_errors=True)
