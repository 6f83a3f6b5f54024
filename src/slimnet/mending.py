# SPDX-License-Identifier: Apache-2.0
"""One look at what a data path needs of its host, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from slimnet.exceptions import BackendError

__all__ = ["Mending"]

_log = logging.getLogger(__name__)


class Mending:
    """Collects what was put back and what could not be. A piece that fails keeps no other
    from being mended: somebody in an endpoint could make one fail for ever."""

    def __init__(self) -> None:
        self._changed: list[str] = []
        self._lacks: list[str] = []

    def attempt(self, piece: Callable[..., Iterable[str] | None], *arguments: object) -> None:
        """Look at one piece.

        Args:
            piece: puts back what is missing and nothing else, and answers with the names of
                that; raises :exc:`slimnet.BackendError` or :exc:`OSError` where it cannot.
            arguments: its own.
        """
        try:
            self._changed.extend(piece(*arguments) or ())
        except (BackendError, OSError) as error:
            self._lacks.append(str(error))

    def lacks_interface(self, interface: str) -> None:
        """The underlay interface is not there, and nobody here can make it."""
        self._lacks.append(
            f"underlay interface {interface} is gone: no connection to or from another host is"
            " possible until it is back"
        )

    def end(self) -> str:
        """What is still lacking, for users; empty when nothing is. What was put back is
        in the log."""
        if self._changed:
            _log.warning("somebody had changed the host; put back: %s", ", ".join(self._changed))
        return "; ".join(self._lacks)
