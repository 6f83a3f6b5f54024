# SPDX-License-Identifier: Apache-2.0
"""Backends and stores by name: stevedore, groups ``slimnet.backends`` and
``slimnet.stores``. Only what is named is imported."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from attrs import frozen
from stevedore.driver import DriverManager
from stevedore.exception import MultipleMatches

from slimnet.abc import Backend, Store
from slimnet.exceptions import BackendUnavailable, ConfigError
from slimnet.model import Answer, Capabilities, Probe, Running

__all__ = [
    "Choice",
    "backend_class",
    "backend_names",
    "choose_backend",
    "look",
    "open_store",
    "probe",
    "running",
    "store_names",
    "suggest",
]

_log = logging.getLogger(__name__)

_BACKENDS = "slimnet.backends"
_STORES = "slimnet.stores"


def backend_names() -> list[str]:
    """The names of the installed backends."""
    return sorted({point.name for point in _points(_BACKENDS)})


def store_names() -> list[str]:
    """The names of the installed stores: the schemes of their URLs."""
    return sorted({point.name for point in _points(_STORES)})


def suggest(wrong: str, choices: Iterable[str]) -> str:
    """``"a, b or c; did you mean 'b'?"``: what would do instead of ``wrong``."""
    names = sorted(choices)
    listed = ", ".join(names) if names else "nothing (none is installed)"
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.6)
    return f"one of: {listed}; did you mean {near[0]!r}?" if near else f"one of: {listed}"


def backend_class(name: str) -> type[Backend]:
    """The backend of that name, imported.

    Raises:
        ConfigError: no such backend is installed.
        BackendUnavailable: it is installed and cannot be imported.
    """
    if name not in backend_names():
        raise ConfigError("backend", suggest(name, ["auto", *backend_names()]), name)

    def failed(_manager: object, _point: object, error: BaseException) -> None:
        raise BackendUnavailable(f"backend {name!r} cannot be imported: {error}") from error

    try:
        driver: Any = DriverManager(_BACKENDS, name, on_load_failure_callback=failed).driver
    except MultipleMatches as error:
        several = {point.dist.name for point in _points(_BACKENDS, name) if point.dist}
        raise BackendUnavailable(
            f"backend {name!r}: more than one distribution has it: {', '.join(sorted(several))}"
        ) from error
    if not (isinstance(driver, type) and issubclass(driver, Backend)):
        raise BackendUnavailable(f"backend {name!r} is no slimnet.abc.Backend but {driver!r}")
    return driver


def probe(name: str) -> Probe:
    """What the backend of that name says of this machine; never raises for an
    installed one."""
    return _answer(name, lambda kind: kind.probe())


def look(name: str) -> Probe:
    """As :func:`probe`, where a start follows (:meth:`slimnet.abc.Backend.look`)."""
    return _answer(name, lambda kind: kind.look())


def _answer(name: str, ask: Callable[[type[Backend]], Probe]) -> Probe:
    try:
        return ask(backend_class(name))
    except ConfigError:
        raise
    except BackendUnavailable as error:
        return Probe(Answer.NO, str(error), "reinstall its distribution")
    except Exception as error:  # noqa: BLE001  # could not tell: the contract's third answer
        _log.debug("probe of backend %s failed", name, exc_info=True)
        return Probe(Answer.UNKNOWN, f"the probe failed: {type(error).__name__}: {error}")


def running(instance: str, state: Path) -> dict[str, Running]:
    """What each installed backend has of an instance on this machine, by its name;
    nothing of those that cannot be imported.

    Args:
        instance: whose.
        state: its directory (:attr:`slimnet.abc.Context.state`).
    """
    found = {}
    for name in backend_names():
        try:
            kind = backend_class(name)
        except BackendUnavailable as error:
            _log.debug("%s", error)
            continue
        there = kind.find(instance, state)
        if there is not None:
            found[name] = there
    return found


@frozen
class Choice:
    """The backend to run.

    Attributes:
        kind: its class.
        why: this one, in a line.
        capabilities: what its probe says that it can do here.
    """

    kind: type[Backend]
    why: str
    capabilities: Capabilities


def choose_backend(name: str, ask: Callable[[str], Probe] = look) -> Choice:
    """The backend to run for a config's ``backend``.

    ``auto`` takes the one of the highest preference whose probe says yes.

    Args:
        name: the config's.
        ask: what a named one has to say yes to: :func:`probe` where no start follows.

    Raises:
        ConfigError: no such backend is installed.
        BackendUnavailable: what the named one was asked, or the probe of all, says no.
    """
    if name != "auto":
        answer = ask(name)
        if answer.answer is Answer.NO:
            raise BackendUnavailable(f"backend {name!r}: {answer.advice}")
        why = f"{name}: named in the configuration; {answer.reason}"
        return Choice(backend_class(name), why, answer.capabilities)

    answers = {each: probe(each) for each in backend_names()}
    able = [each for each, answer in answers.items() if answer]
    if not able:
        said = "; ".join(f"{each}: {answer.reason}" for each, answer in answers.items())
        raise BackendUnavailable(
            f"backend 'auto': no backend can run here ({said or 'none is installed'})"
        )
    best = max(able, key=lambda each: (backend_class(each).preference, each))
    reasons = [f"{best}: {answers[best].reason}"]
    for each, answer in answers.items():
        if each != best:
            reasons.append(f"{each}: {'lower preference' if answer else answer.reason}")
    return Choice(backend_class(best), "; ".join(reasons), answers[best].capabilities)


def open_store(url: str, options: Mapping[str, Any] | None = None) -> Store:
    """Open the store that ``url`` names; its scheme is the driver's name.

    Args:
        url: of the store.
        options: the driver's own.

    Raises:
        ConfigError: no driver for the scheme, or the driver refuses the URL or an option.
        StoreUnreachable: it cannot be reached.
    """
    scheme = url.partition("://")[0]
    if scheme not in store_names():
        raise ConfigError("store", suggest(f"{scheme}://", [f"{n}://" for n in store_names()]), url)

    def failed(_manager: object, _point: object, error: BaseException) -> None:
        wanted = f"a store that can be imported ({error})"
        raise ConfigError("store", wanted, url) from error

    driver: Any = DriverManager(_STORES, scheme, on_load_failure_callback=failed).driver
    store: Store = driver.open(url, options)
    return store


def _points(group: str, name: str | None = None) -> list[EntryPoint]:
    return [point for point in entry_points(group=group) if name in (None, point.name)]
