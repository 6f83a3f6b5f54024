# SPDX-License-Identifier: Apache-2.0
"""Which store is meant: that of a configuration, or one by its URL."""

from __future__ import annotations

from pathlib import Path

from slimnet.abc import Store
from slimnet.config import Config, load_config
from slimnet.exceptions import ConfigError, NotFound
from slimnet.plugins import open_store

__all__ = ["open_configured", "open_named", "where"]


def open_configured(config: Config, *, make: bool = False) -> Store:
    """The store of a configuration.

    Args:
        config: whose.
        make: make an SQLite file that is not there; agents do.

    Raises:
        ConfigError: names the file and the field.
        NotFound: it is an SQLite file that is not on this machine.
        StoreUnreachable: it does not answer.
    """
    scheme, _, rest = config.store.partition("://")
    # The driver makes it: a wrong path would be an empty store.
    if scheme == "sqlite" and not make and not Path("/", rest.lstrip("/")).exists():
        raise NotFound(f"store {config.store}: there is no such file on this machine")
    try:
        return open_store(config.store, config.store_options)
    except ConfigError as error:
        raise config.located(error) from error


def open_named(name: str, *, make: bool = False) -> Store:
    """The store that ``name`` is the URL of, or a configuration file that has one.

    Raises:
        ConfigError, NotFound, StoreUnreachable: as :func:`open_configured`.
    """
    return open_configured(_named(name), make=make)


def where(name: str) -> str:
    """The URL of :func:`open_named`'s store."""
    return _named(name).store


def _named(name: str) -> Config:
    return Config(store=name) if "://" in name else load_config(name)
