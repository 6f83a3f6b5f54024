# SPDX-License-Identifier: Apache-2.0
"""The table ``[backend.kmod]`` of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self

from attrs import fields, frozen
from netaddr import AddrFormatError, IPNetwork

from slimnet import contract
from slimnet.exceptions import ConfigError
from slimnet.fallback import PORT

__all__ = ["KmodOptions"]

_WIRE_PORTS = contract.SLIM_WIRE_PORTS + contract.SLIM_BOUND_PORTS
#: Below are those of the machine's own services (RFC 6335, section 6): 22 is one.
_FIRST_PORT = 1024


@frozen
class KmodOptions:
    """What can be configured.

    Attributes:
        inner_range: where the sockets of endpoints sit in the underlay (design 4.5).
        wire_ports: the first of the wire ports, the source-bound ones behind them.
        vxlan_port: UDP port of the fallback overlay; the same on every host.
    """

    inner_range: IPNetwork = IPNetwork("240.0.0.0/4")
    wire_ports: int = 4790
    vxlan_port: int = PORT

    @property
    def ports(self) -> range:
        """All wire ports, the source-bound ones too."""
        return range(self.wire_ports, self.wire_ports + _WIRE_PORTS)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """Check the table.

        Raises:
            ConfigError: a key that is unknown or a value that will not do.
        """
        names = [attribute.name for attribute in fields(cls)]
        for key in table:
            if key not in names:
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise ConfigError(f"backend.kmod.{key}", f"one of {', '.join(names)}{hint}", key)
        given = dict(table)
        if "inner_range" in given:
            given["inner_range"] = _inner_range(given["inner_range"])
        for name, first, last in (
            ("wire_ports", _FIRST_PORT, 65536 - _WIRE_PORTS),
            ("vxlan_port", 1, 65535),
        ):
            value = given.get(name, first)
            if type(value) is not int or not first <= value <= last:
                raise ConfigError(f"backend.kmod.{name}", f"a number from {first} to {last}", value)
        return cls(**given)


def _inner_range(value: Any) -> IPNetwork:
    try:
        network = IPNetwork(value)
        if (network.version, network.prefixlen, network.ip) == (4, 4, network.network):
            return network
    except (AddrFormatError, ValueError, TypeError):
        pass
    raise ConfigError("backend.kmod.inner_range", "an IPv4 /4 such as 240.0.0.0/4", value)
