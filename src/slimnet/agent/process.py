# SPDX-License-Identifier: Apache-2.0
"""The agent as a process: signals, service manager, API."""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path
from types import FrameType

from slimnet.abc import Upgrade
from slimnet.agent import instance
from slimnet.agent.agent import Agent
from slimnet.agent.notify import notify
from slimnet.agent.routes import Routes
from slimnet.agent.server import Server
from slimnet.agent.site import directory, survey
from slimnet.config import Config
from slimnet.exceptions import AbiMismatch, BackendError, InUse
from slimnet.linux import cgroup
from slimnet.model import Capabilities
from slimnet.place import Place
from slimnet.plugins import backend_class

__all__ = ["serve", "teardown", "upgrade"]

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
                *([Place(cgroup.mount() / "slimnet")] if cgroup.mounted() else []),
                *list(agent.endpoints.attached.values()),
            ],
        )
        server.start()
        notify("READY=1")
        # Nothing in front of an error that keeps it from starting: that is the first line.
        _log.info("backend %s (%s)", agent.backend.name, agent.why)
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


def upgrade(config: Config, *, force: bool = False) -> str:
    """See :func:`slimnet.agent.upgrade`."""
    there = instance.running(config)
    if not there:
        return f"instance {config.instance} has no data path"
    agent = Agent(config, Upgrade.CLOSING if force else Upgrade.KEEPING)
    try:
        agent.start()
        agent.sync_strictly()
        status = agent.backend.status()
    finally:
        agent.close()
    before = status.detail.get("replaced")
    what = (
        f"is of contract {status.abi} already"
        if before is None
        else (f"was of contract {before}, and is of {status.abi} now")
    )
    return f"the data path of instance {config.instance} {what}; endpoints: {len(status.endpoints)}"


def teardown(config: Config, *, force: bool = False) -> None:
    """See :func:`slimnet.agent.teardown`."""
    with instance.hold(config):
        there = instance.running(config)
        busy: list[Path] = []
        for found in there.values():
            busy += found.busy
        own = directory(config)
        if there and not busy and cgroup.populated(own):  # of one that cannot say so itself
            busy.append(own)
        if busy and not force:
            raise InUse(f"endpoints with processes: {instance.names(config, busy)}")
        for path in {own, *busy} if force else ():
            if cgroup.is_cgroup(path):
                cgroup.kill(path)
        for name, found in there.items():
            kind = backend_class(name)
            context = survey(config, kind, Capabilities()).context(config, kind, found.cluster)
            try:
                with kind(context) as backend:
                    backend.teardown()
            except AbiMismatch as error:
                _log.warning("%s; what is left of it is removed", error)
                kind.purge(config.instance, context.state)
        left = instance.running(config)
        if left:
            raise BackendError(f"instance {config.instance}: there is still {', '.join(left)}")
        cgroup.remove(own)
        shutil.rmtree(config.run, ignore_errors=True)
