# SPDX-License-Identifier: Apache-2.0
"""From the mirror of the store to tables in force; what fails leaves the last ones."""

from __future__ import annotations

import logging

import attrs

from slimnet.abc import Backend
from slimnet.agent.mirror import Mirror
from slimnet.agent.names import Names
from slimnet.model import Host
from slimnet.policy import Compiler
from slimnet.tables import Change, Tables

__all__ = ["Installer"]

_log = logging.getLogger(__name__)


class Installer:
    """Compiles and installs for one host, and tells its endpoints' names.

    Args:
        backend: what installs.
        host: whose tables they are.
        names: of the endpoints here.
    """

    def __init__(self, backend: Backend, host: Host, names: Names) -> None:
        self._backend = backend
        self._host = host
        self._names = names
        self._compiler = Compiler(host.name)
        #: Those in force; ``None`` before the first of this process.
        self.tables: Tables | None = None
        #: Words of rules that the backend has not heard yet: they decide nothing.
        self._words: dict[int, str] = {}
        #: What kept the last call from its end; empty when nothing did.
        self.trouble = ""

    def apply(self, mirror: Mirror) -> None:
        """Put in force what the mirror holds. Never raises: see :attr:`trouble`."""
        changes = mirror.changes()
        if self.trouble:
            changes = None  # the last state may not be in force, nor its names written
        if mirror.binding:
            self._hinder("; ".join(mirror.binding))
            return
        state = None
        try:
            made = None if changes is None else self._compiler.advance(changes, mirror.revision)
            if made is None:
                state = mirror.state(self._host)
                made = self._compiler.update(state)
        except Exception as error:  # noqa: BLE001  # whatever the store holds, the agent stays
            _log.debug("compile", exc_info=True)
            self._hinder(f"cannot compile: {type(error).__name__}: {error}")
            return
        try:
            self._install(*made)
        except Exception as error:  # noqa: BLE001  # as above, whatever a plugin does
            _log.debug("install", exc_info=True)
            self._hinder(f"cannot install: {type(error).__name__}: {error}")
            return
        try:
            if state is not None:
                self._names.update(state, self._host.name)
        except OSError as error:
            self._hinder(f"cannot write the hosts files: {error}")
            return
        self.trouble = ""

    def _install(self, tables: Tables, change: Change | None) -> None:
        old = self.tables
        # Tables that an earlier process installed have a number, but it does not say what is
        # in them: they may be of this store, of a backup of it, or of another store.
        held = old.generation if old is not None else self._backend.status().generation
        if old is None or self.trouble:
            change = None  # its base may be tables that were compiled and never installed
        elif change is not None and _is_empty(change):
            self._words |= change.set.rules
            self.tables = attrs.evolve(old, rules=tables.rules)
            return
        if tables.generation <= held:
            tables = attrs.evolve(tables, generation=held + 1)
        if old is not None and change is not None:
            # The base is what is installed: revisions in between that changed no table were
            # compiled, and not installed.
            words = {**self._words, **change.set.rules}
            target = attrs.evolve(change.set, generation=tables.generation, rules=words)
            change = attrs.evolve(change, base=old.generation, set=target)
        self._backend.install(tables, change)
        self.tables, self._words = tables, {}
        _log.debug("generation %d is in force", tables.generation)

    def _hinder(self, text: str) -> None:
        if self.trouble != text:
            _log.error("%s; the last tables stay in force", text)
        self.trouble = text


def _is_empty(change: Change) -> bool:
    """Whether nothing differs that decides anything."""
    gone = (each.name for each in attrs.fields(Change) if each.name not in ("base", "set"))
    decisive = {each.name for each in attrs.fields(Tables)} - {"generation", "rules"}
    return not (
        any(getattr(change, name) for name in gone)
        or any(getattr(change.set, name) for name in decisive)
    )
