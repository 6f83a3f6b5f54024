# SPDX-License-Identifier: Apache-2.0
"""Every clause of :class:`slimnet.abc.Backend`, run on any backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager

from slimnet.abc import Backend, Context
from slimnet.exceptions import BackendUnavailable
from slimnet.model import Answer
from slimnet.testing import _clauses
from slimnet.testing._stage import Reach, Stage, probed

__all__ = ["BACKEND_CLAUSES", "check_backend"]

#: The names of the clauses.
BACKEND_CLAUSES: tuple[str, ...] = tuple(_clauses.CLAUSES)

#: Makes the data path that runs under a context look as if it was built from
#: another contract, for as long as the block lasts.
Mismatch = Callable[[Context], AbstractContextManager[object]]


def check_backend(
    backend: type[Backend],
    *,
    options: Mapping[str, object] | None = None,
    mismatch: Mismatch | None = None,
    reach: Reach | None = None,
    clauses: Collection[str] = BACKEND_CLAUSES,
) -> None:
    """Hold a backend to its contract.

    Each clause has a stage of its own: three hosts on an :class:`Underlay`
    (root is needed), four endpoints with a real process each, and a snapshot
    of what is on the machine before and after.

    Args:
        backend: the class.
        options: its own table of the configuration.
        mismatch: how to make its running data path foreign; without it the
            clause ``another_contract_is_refused`` is left out.
        reach: for a backend without sockets: says whether a connection would
            be made. There are then no hosts and no processes.
        clauses: those of :data:`BACKEND_CLAUSES` to run.

    Raises:
        AssertionError: a clause is broken; the message names it.
        BackendUnavailable: the backend's probe does not say yes.
    """
    found = probed(backend)
    if found.answer is not Answer.YES:
        raise BackendUnavailable(f"{backend.name}: {found.reason}")
    for name in clauses:
        clause = _clauses.CLAUSES[name]
        if mismatch is None and name == "another_contract_is_refused":
            continue
        with Stage(backend, options or {}, reach) as stage:
            stage.mismatch = mismatch
            try:
                clause(stage)
            except AssertionError as error:
                raise AssertionError(f"{backend.name}: {name}: {error}") from error
