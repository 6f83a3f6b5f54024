# SPDX-License-Identifier: Apache-2.0
"""Where slimnet keeps its files.

Those of root are the machine's (hier(7)). An ordinary user's are that user's own (XDG Base
Directory Specification 0.8)::

                      root              an ordinary user
    configuration()   /etc/slimnet      $XDG_CONFIG_HOME/slimnet   (~/.config)
    state()           /var/lib/slimnet  $XDG_STATE_HOME/slimnet    (~/.local/state)
    logs()            /var/log/slimnet  $XDG_STATE_HOME/slimnet/log
    run()             /run/slimnet      $XDG_RUNTIME_DIR/slimnet   (/run/user/<uid>)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from slimnet.exceptions import ConfigError

__all__ = ["MACHINE", "configuration", "logs", "run", "state"]

#: Root's: what no endpoint's process is to see.
MACHINE = (Path("/etc/slimnet"), Path("/run/slimnet"), Path("/var/lib/slimnet"))
_CONFIGURATION, _RUN, _STATE = MACHINE


def configuration() -> Path:
    """The directory of what users write: configuration and key.

    Raises:
        ConfigError: an ordinary user has no home directory, and names none.
    """
    if _is_root():
        return _CONFIGURATION
    return _named("XDG_CONFIG_HOME", lambda: _home() / ".config")


def state() -> Path:
    """The directory of what outlives a reboot: the store.

    Raises:
        ConfigError: as of :func:`configuration`.
    """
    if _is_root():
        return _STATE
    return _named("XDG_STATE_HOME", lambda: _home() / ".local" / "state")


def logs() -> Path:
    """The directory of the output of detached commands.

    Raises:
        ConfigError: as of :func:`configuration`.
    """
    return Path("/var/log/slimnet") if _is_root() else state() / "log"


def run() -> Path:
    """The directory of what is gone after a reboot: sockets, and the agent's state."""
    if _is_root():
        return _RUN
    return _named("XDG_RUNTIME_DIR", _session)


def _is_root() -> bool:
    return os.geteuid() == 0


def _named(variable: str, default: Callable[[], Path]) -> Path:
    """Of a directory that is not absolute the specification says that it is ignored."""
    named = Path(os.environ.get(variable, ""))
    return (named if named.is_absolute() else default()) / "slimnet"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        user = os.geteuid()
        raise ConfigError("HOME", f"the home directory of user {user}", None) from None


def _session() -> Path:
    """Where no session made one the specification asks for a replacement of the user's own."""
    session = Path("/run/user", str(os.geteuid()))
    replacement = Path("/tmp", f"user-{os.geteuid()}")  # noqa: S108  # checked when it is made
    return session if session.is_dir() else replacement
