# SPDX-License-Identifier: Apache-2.0
"""The backend: the fallback overlay by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from slimnet import fallback
from slimnet.abc import Backend, Context
from slimnet.exceptions import ConfigError
from slimnet.fallback import CAPABILITIES, PORT, Fallback
from slimnet.model import (
    Capabilities,
    Connection,
    Endpoint,
    Event,
    Network,
    Opening,
    Probe,
    Running,
    Status,
    Wire,
)
from slimnet.place import Life, Place
from slimnet.tables import Change, Tables

__all__ = ["NoopBackend"]


class NoopBackend(Backend):
    """Every connection over VXLAN, decided by nftables at the endpoint's device.

    Options (``[backend.noop]``):
        port: UDP port of VXLAN, 4789 by default; the same on every host.

    Policy holds against root in the endpoint: the rules are in the router's
    namespace. IPv4 only. Connections that a new generation forbids are reset
    at their next packet. ``opened`` and ``closed`` make no events.
    """

    name: ClassVar[str] = "noop"
    preference: ClassVar[int] = 0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._overlay = Fallback(context, _port(context.options))

    @classmethod
    def openings(cls, options: Mapping[str, Any]) -> Mapping[Wire, Sequence[Opening]]:
        """See :meth:`slimnet.abc.Backend.openings`."""
        port = _port(options)
        return {Wire.VXLAN: [Opening("udp", range(port, port + 1))]}

    @property
    def capabilities(self) -> Capabilities:
        """Policy in a namespace that is not the endpoint's."""
        return CAPABILITIES

    @classmethod
    def probe(cls) -> Probe:
        """Root, cgroup v2, nftables, and a kernel with VXLAN."""
        return fallback.probe()

    @classmethod
    def find(cls, instance: str, state: Path) -> Running | None:
        """By the endpoints' records, the namespaces' names and the host's table."""
        return fallback.find(instance, state)

    @classmethod
    def purge(cls, instance: str, state: Path) -> None:
        """By the same."""
        fallback.purge(instance, state)

    def place(self, name: str, given: Place) -> Place:
        """A cgroup and a namespace; either may be the caller's."""
        return self._overlay.place(name, given)

    def life(self, name: str, place: Place) -> Life:
        """By the cgroup; and a namespace that was brought has to be there."""
        return self._overlay.life(name, place)

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """Make the cgroup and the namespace, and connect it to the network's router."""
        return self._overlay.attach(endpoint, network)

    def detach(self, endpoint: int) -> None:
        """Remove what :meth:`attach` made."""
        self._overlay.detach(endpoint)

    def install(self, tables: Tables, change: Change | None = None) -> None:
        """Everything, whatever ``change`` says."""
        del change
        self._overlay.install(tables)

    def tend(self) -> None:
        """Put back what somebody has taken from the host."""
        self._overlay.tend()

    def status(self) -> Status:
        """Read from the host's table and the routers."""
        return self._overlay.status()

    def connections(self) -> list[Connection]:
        """What conntrack holds in the routers."""
        return self._overlay.connections()

    def events(self, timeout: float) -> list[Event]:
        """The refusals that nftables noted, at most 4,096 and a minute old."""
        return self._overlay.events(timeout)

    def close(self) -> None:
        """Routers, rules and namespaces stay as they are."""
        self._overlay.close()

    def teardown(self) -> None:
        """Endpoints, then routers, then the host's table."""
        self._overlay.teardown()


def _port(options: Mapping[str, Any]) -> int:
    port = options.get("port", PORT)
    for option in options:
        if option != "port":
            raise ConfigError(f"backend.noop.{option}", "the option 'port'", option)
    if not isinstance(port, int) or not 0 < port < 1 << 16:
        raise ConfigError("backend.noop.port", "a port, 1 to 65535", port)
    return port
