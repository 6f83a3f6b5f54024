# SPDX-License-Identifier: Apache-2.0
"""The table ``[backend.ebpf]`` of the configuration."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self

from attrs import fields, frozen
from netaddr import AddrFormatError, IPNetwork

from slimnet import contract
from slimnet.exceptions import ConfigError

__all__ = ["Options"]

_WIRE_PORTS = contract.SLIM_WIRE_PORTS + contract.SLIM_BOUND_PORTS
#: Below are those of the machine's own services (RFC 6335, section 6): 22 is one.
_FIRST_PORT = 1024
#: The IPv6 half of the inner range: a unique local /64 (RFC 4193), "slimnet" in hex.
INNER_RANGE6 = IPNetwork("fd73:6c69:6d6e:6574::/64")


def _inner_range(value: Any) -> IPNetwork:
    wanted = "an IPv4 /4 such as 240.0.0.0/4"
    try:
        network = IPNetwork(value)
    except (AddrFormatError, ValueError, TypeError) as error:
        raise ConfigError("backend.ebpf.inner_range", wanted, value) from error
    if network.version != 4 or network.prefixlen != 4 or network.ip != network.network:
        raise ConfigError("backend.ebpf.inner_range", wanted, value)
    return network


def _number(name: str, low: int, high: int, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"backend.ebpf.{name}", f"a number from {low} to {high}", value)
    return value


@frozen
class Options:
    """What can be configured.

    Attributes:
        inner_range: where the sockets of endpoints sit (design 4.5).
        wire_ports: the first of the wire ports, the source-bound ones behind them.
        held_ports: how many ports of the host one endpoint may hold with ``bind(0)``, beside
            what its share of them allows.
        announce_port: TCP port at which this host hears what hosts announce that do not speak
            wire syn; nobody listens there while the cluster has none.
    """

    inner_range: IPNetwork = IPNetwork("240.0.0.0/4")
    wire_ports: int = 4790
    held_ports: int = 65535
    announce_port: int = contract.SLIM_ANNOUNCE_PORT

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
                raise ConfigError(f"backend.ebpf.{key}", f"one of {', '.join(names)}{hint}", key)
        last = 65536 - _WIRE_PORTS
        given = dict(table)
        if "inner_range" in given:
            given["inner_range"] = _inner_range(given["inner_range"])
        if "wire_ports" in given:
            _number("wire_ports", _FIRST_PORT, last, given["wire_ports"])
        if "held_ports" in given:
            _number("held_ports", 1, 65535, given["held_ports"])
        if "announce_port" in given:
            _number("announce_port", _FIRST_PORT, 65535, given["announce_port"])
        made = cls(**given)
        if made.announce_port in made.ports:
            wanted = f"one that is not in {made.ports.start}-{made.ports.stop - 1}"
            raise ConfigError("backend.ebpf.announce_port", wanted, made.announce_port)
        return made
