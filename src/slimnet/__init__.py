# SPDX-License-Identifier: Apache-2.0
"""slimnet: an overlay network for containers that works on connections, not packets.

The way through the code:

- :func:`open_node`, :class:`Node`: what an integrator calls (:mod:`slimnet.node`)
- :mod:`slimnet.agent`: one per host, between the store and the data path
- :mod:`slimnet.cluster`: networks, endpoints and policies in a store
- :mod:`slimnet.policy`: what users write, compiled to :mod:`slimnet.tables`
- :mod:`slimnet.abc`: what a backend and a store have to do
- :mod:`slimnet.model`: the values that they all talk about
- :mod:`slimnet.contract`: what crosses to C, generated from its headers
- :mod:`slimnet.linux`: what is known of the kernel, one module for each of its things
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimnet.abc import Backend, Context, Store
    from slimnet.attached import AttachedEndpoint
    from slimnet.config import Config, load_config
    from slimnet.exceptions import (
        AbiMismatch,
        AgentUnreachable,
        AlreadyExists,
        BackendError,
        BackendUnavailable,
        CannotEnforce,
        CapabilityMissing,
        ConfigError,
        Conflict,
        ForeignDataPath,
        InUse,
        InvalidValue,
        NotFollowed,
        NotFound,
        PolicyError,
        SlimnetError,
        StoreUnreachable,
    )
    from slimnet.model import (
        Connection,
        Direction,
        Endpoint,
        Event,
        EventKind,
        Flow,
        Host,
        Namespace,
        Network,
        Probe,
        Protocol,
        Reason,
        Status,
        Verdict,
        Wire,
    )
    from slimnet.node import Node, open_node

# Imported when they are first asked for: `slimnet --help` needs none of them.
_HOME = {
    "slimnet.abc": ["Backend", "Context", "Store"],
    "slimnet.attached": ["AttachedEndpoint"],
    "slimnet.config": ["Config", "load_config"],
    "slimnet.exceptions": [
        "AbiMismatch",
        "AgentUnreachable",
        "AlreadyExists",
        "BackendError",
        "BackendUnavailable",
        "CannotEnforce",
        "CapabilityMissing",
        "ConfigError",
        "Conflict",
        "ForeignDataPath",
        "InUse",
        "InvalidValue",
        "NotFollowed",
        "NotFound",
        "PolicyError",
        "SlimnetError",
        "StoreUnreachable",
    ],
    "slimnet.model": [
        "Connection",
        "Direction",
        "Endpoint",
        "Event",
        "EventKind",
        "Flow",
        "Host",
        "Namespace",
        "Network",
        "Probe",
        "Protocol",
        "Reason",
        "Status",
        "Verdict",
        "Wire",
    ],
    "slimnet.node": ["Node", "open_node"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AbiMismatch",
    "AgentUnreachable",
    "AlreadyExists",
    "AttachedEndpoint",
    "Backend",
    "BackendError",
    "BackendUnavailable",
    "CannotEnforce",
    "CapabilityMissing",
    "Config",
    "ConfigError",
    "Conflict",
    "Connection",
    "Context",
    "Direction",
    "Endpoint",
    "Event",
    "EventKind",
    "Flow",
    "ForeignDataPath",
    "Host",
    "InUse",
    "InvalidValue",
    "Namespace",
    "Network",
    "Node",
    "NotFollowed",
    "NotFound",
    "PolicyError",
    "Probe",
    "Protocol",
    "Reason",
    "SlimnetError",
    "Status",
    "Store",
    "StoreUnreachable",
    "Verdict",
    "Wire",
    "load_config",
    "open_node",
]


def __getattr__(name: str) -> Any:
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
