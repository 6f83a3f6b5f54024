# SPDX-License-Identifier: Apache-2.0
"""What the clauses are made of."""

from __future__ import annotations

from collections.abc import Callable

from slimnet.testing._resident import Reached
from slimnet.testing._snapshot import differences
from slimnet.testing._stage import ALLOWED, CAST, FORBIDDEN, Stage

__all__ = [
    "CLAUSES",
    "PROMPT",
    "clause",
    "core",
    "expect",
    "made",
    "raises",
    "refused",
    "same",
    "start",
]

#: Seconds in which a refusal must have come: before the first retransmission of a SYN.
PROMPT = 0.9

#: The clauses by name, in order.
CLAUSES: dict[str, Callable[[Stage], None]] = {}


def clause(check: Callable[[Stage], None]) -> Callable[[Stage], None]:
    CLAUSES[check.__name__] = check
    return check


def expect(holds: object, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def same(before: frozenset[str], after: frozenset[str], when: str) -> None:
    found = differences(before, after)
    expect(not found, f"{when}:\n{found}")


def raises(kind: type[Exception], call: Callable[[], object], what: str) -> Exception:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{what}: wanted {kind.__name__}, got no error")


def made(reached: Reached, what: str) -> Reached:
    expect(reached, f"{what}: should be allowed, got {reached.text}")
    return reached


def refused(reached: Reached, what: str) -> None:
    expect(not reached, f"{what}: should be refused, was made")
    expect(reached.seconds < PROMPT, f"{what}: refused after {reached.seconds:.1f} s only")


def start(stage: Stage, *names: str, generation: int = 1) -> None:
    """Hosts with a data path, endpoints, tables, and servers in those that serve."""
    for host in sorted({int(CAST[name].host[1:]) - 1 for name in names}):
        stage.open(host)
    stage.attach(*names)
    stage.install(generation)
    for name in names:
        if CAST[name].identity == CAST["server"].identity:
            stage.serve(name, ALLOWED, FORBIDDEN)


def core(status: object) -> tuple[object, ...]:
    return tuple(getattr(status, name) for name in ("generation", "endpoints", "abi"))
