# SPDX-License-Identifier: Apache-2.0
"""The agent: one per host, between the store and the data path.

``slimnet agent --config FILE`` calls :func:`serve`.
"""

from __future__ import annotations

from slimnet.config import Config

__all__ = ["serve", "teardown", "upgrade"]


def serve(config: Config) -> None:
    """Be the agent of this host, until SIGTERM or SIGINT; the data path goes on then.

    Raises:
        ConfigError, CapabilityMissing, BackendUnavailable, AbiMismatch, StoreUnreachable,
            ForeignDataPath, InUse: it cannot work here; nothing was changed.
    """
    from slimnet.agent import process  # noqa: PLC0415  # clients import this package too

    process.serve(config)


def upgrade(config: Config, *, force: bool = False) -> str:
    """Replace this host's data path, where it is another version's, with its endpoints
    running, and bring it to what the store says.

    Args:
        config: of this host.
        force: also where connections of endpoints are closed for it.

    Returns:
        what became of it.

    Raises:
        InUse: an agent runs, or connections would be closed; says how many. Nothing changed.
        AbiMismatch: its backend cannot replace it; says what to do. Nothing changed.
        BackendError: it is half done, fail closed, and may be tried again.
    """
    from slimnet.agent import process  # noqa: PLC0415  # as above

    return process.upgrade(config, force=force)


def teardown(config: Config, *, force: bool = False) -> None:
    """Remove this host's data path, with all that it left on the machine, whichever
    backend it is of.

    Args:
        config: of this host.
        force: end the processes of endpoints first, with SIGKILL: none of them goes on
            without policy.

    Raises:
        InUse: an agent runs, or an endpoint has processes; nothing was removed.
        ForeignDataPath: it is of a backend that is not installed; nothing was removed.
    """
    from slimnet.agent import process  # noqa: PLC0415  # as above

    process.teardown(config, force=force)
