# SPDX-License-Identifier: Apache-2.0
"""An instance belongs to one agent, one backend and one store.

======================  ========================================================
which backend runs it   the installed backends say (:meth:`.Backend.find`), out
                        of their data paths
... when that one is    ``<run>/backend``, which the agent writes for this alone:
not installed any more  of an installed backend it decides nothing
which store it serves   the data path, which keeps the store's id
who its agent is        the lock on ``<run>``: the kernel's, gone with the process
======================  ========================================================
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from slimnet import lock, plugins
from slimnet.agent.site import directory
from slimnet.config import Config
from slimnet.exceptions import (
    BackendUnavailable,
    CapabilityMissing,
    ForeignDataPath,
    InUse,
)
from slimnet.model import Answer, Running

__all__ = ["check_store", "choose", "hold", "names", "note", "running"]

#: How many endpoints a message names.
_NAMED = 5


@contextlib.contextmanager
def hold(config: Config) -> Iterator[None]:
    """Be the only agent of the instance, or the only one that tears it down.

    Raises:
        InUse: there is one; says which process.
        CapabilityMissing: the run directory cannot be made.
    """
    with contextlib.ExitStack() as held:
        held.callback(lock.remove_if_idle, config.run)  # where nothing came of it
        try:
            held.enter_context(lock.hold(config.run, wait=False))
        except BlockingIOError:
            pid = lock.holder(config.run)
            process = "" if pid is None else f" (process {pid})"
            raise InUse(
                f"an agent{process} runs instance {config.instance}: stop it first"
            ) from None
        except PermissionError as error:
            remedy = "run it as root" if os.geteuid() == 0 else "let XDG_RUNTIME_DIR be yours"
            raise CapabilityMissing(f"{config.run}: {error.strerror}: {remedy}") from error
        yield


def running(config: Config) -> dict[str, Running]:
    """Each backend that has something of the instance on this machine.

    Raises:
        ForeignDataPath: one had when last an agent ran, and cannot be asked.
    """
    noted = _note(config)
    if noted.exists():
        name = noted.read_text().strip()
        why = "" if name in plugins.backend_names() else "which is not installed"
        try:
            if not why:
                plugins.backend_class(name)
        except BackendUnavailable as error:
            why = f"which cannot be asked: {error}"
        if why:
            raise ForeignDataPath(
                f"instance {config.instance} is run by backend {name!r}, {why}:"
                f" install it again (where nothing of it is left, remove {noted})"
            )
    return plugins.running(config.instance, config.run / "state")


def choose(config: Config, there: Mapping[str, Running]) -> plugins.Choice:
    """The backend to run: ``auto`` stays with the one that runs.

    Args:
        config: of this host.
        there: what :func:`running` found.

    Raises:
        ForeignDataPath: another one runs the instance.
        BackendUnavailable: it cannot run here.
        ConfigError: no such backend is installed.
    """
    others = {name: found for name, found in there.items() if name != config.backend}
    if config.backend == "auto" and len(there) == 1:
        (name,) = there
        answer = plugins.look(name)
        if answer.answer is Answer.NO:
            raise BackendUnavailable(
                f"backend 'auto': {_said(config, there)}, which cannot run here now:"
                f" {answer.advice}"
            )
        why = f"{name}: it runs this instance; {answer.reason}"
        return plugins.Choice(plugins.backend_class(name), why, answer.capabilities)
    if others:
        keep = "" if len(others) > 1 else f', or set backend = "{next(iter(others))}"'
        stop = "stop them and " if any(found.endpoints for found in others.values()) else ""
        raise ForeignDataPath(
            f"{_said(config, others)}: {stop}tear it down (slimnet agent --teardown){keep}"
        )
    return plugins.choose_backend(config.backend)


def check_store(config: Config, cluster: str, found: Running | None) -> None:
    """Whether a data path may follow a store; one without endpoints may follow any.

    Args:
        config: of this host.
        cluster: the store's id; empty when it has none yet.
        found: the data path.

    Raises:
        ForeignDataPath: it has endpoints of another store.
    """
    if found is None or not found.endpoints or found.cluster in ("", cluster):
        return
    this = f"this is {cluster}" if cluster else "this one is new"
    raise ForeignDataPath(
        f"instance {config.instance} serves endpoints of another store"
        f" (cluster {found.cluster}; {this}): {names(config, found.endpoints)}:"
        " restore that store, or stop them and tear it down (slimnet agent --teardown)"
    )


def note(config: Config, backend: str) -> None:
    """Write down which backend runs the instance."""
    fresh = config.run / "backend.new"
    fresh.write_text(f"{backend}\n")
    fresh.rename(_note(config))


def names(config: Config, endpoints: Iterable[Path]) -> str:
    """What users know endpoints by: those that the agent made a cgroup for by its
    name, others by their whole path."""
    own = directory(config)
    every = sorted(path.name if path.parent == own else str(path) for path in endpoints)
    more = f" and {len(every) - _NAMED} more" if every[_NAMED:] else ""
    return ", ".join(every[:_NAMED]) + more


def _said(config: Config, there: Mapping[str, Running]) -> str:
    backends = []
    for name, found in there.items():
        of = names(config, found.endpoints)
        backends.append(f"{name!r} (endpoints {of})" if of else repr(name))
    return f"instance {config.instance} is run by backend {' and '.join(backends)}"


def _note(config: Config) -> Path:
    return config.run / "backend"
