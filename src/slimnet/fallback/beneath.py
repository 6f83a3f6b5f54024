# SPDX-License-Identifier: Apache-2.0
"""The fallback overlay beneath the data path of another backend."""

from __future__ import annotations

import contextlib
from pathlib import Path

from attrs import evolve, frozen

from slimnet.abc import Context
from slimnet.fallback.overlay import find, purge
from slimnet.model import Running

__all__ = ["Beneath"]


@frozen
class Beneath:
    """Where one is, and what is there of it.

    Attributes:
        backend: the name of the backend that composes it.
        instance: the backend's.
        state: the backend's directory of records.
    """

    backend: str
    instance: str
    state: Path

    @property
    def name(self) -> str:
        """Its instance: none that a configuration can name, so that what is this backend's
        is never taken for ``noop``'s."""
        return f"{self.instance}_{self.backend}"

    @property
    def directory(self) -> Path:
        """Of its records, by which it is found: no other backend's."""
        return self.state / f"{self.backend}-fallback"

    def context(self, context: Context) -> Context:
        """Its context, of the backend's."""
        return evolve(context, instance=self.name, state=self.directory, options={})

    def find(self) -> Running | None:
        """See :func:`slimnet.fallback.find`."""
        return find(self.name, self.directory)

    def purge(self) -> None:
        """See :func:`slimnet.fallback.purge`."""
        purge(self.name, self.directory)
        self.forget()

    def forget(self) -> None:
        """Remove the directory of records, if nothing is in it."""
        with contextlib.suppress(OSError):
            self.directory.rmdir()
