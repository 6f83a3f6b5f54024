# SPDX-License-Identifier: Apache-2.0
"""What the tables ``[backend.<name>]`` of several backends have in common."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from attrs import AttrsInstance, fields, frozen
from netaddr import AddrFormatError, IPNetwork

from slimnet import contract
from slimnet.exceptions import ConfigError

__all__ = ["FIRST_PORT", "SynOptions", "check_names", "check_number"]

#: Below are those of the machine's own services (RFC 6335, section 6): 22 is one. And only root
#: may bind them (ip(7), ip_unprivileged_port_start).
FIRST_PORT = 1024
_WIRE_PORTS = contract.SLIM_WIRE_PORTS + contract.SLIM_BOUND_PORTS


def check_names(where: str, table: Mapping[str, Any], options: type[AttrsInstance]) -> None:
    """Every key is an option.

    Args:
        where: the table, as in ``backend.ebpf``.
        table: as it was configured.
        options: the class that has them.

    Raises:
        ConfigError: a key is not; says which it may have been.
    """
    names = [attribute.name for attribute in fields(options)]
    for key in table:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"{where}.{key}", f"one of {', '.join(names)}{hint}", key)


def check_number(field: str, value: Any, first: int, last: int) -> None:
    """An option is a number of a range, both ends included.

    Raises:
        ConfigError: it is not.
    """
    if type(value) is not int or not first <= value <= last:
        raise ConfigError(field, f"a number from {first} to {last}", value)


@frozen
class SynOptions:
    """The options of a data path that speaks wire ``syn``.

    Attributes:
        inner_range: where the sockets of endpoints sit in the underlay (design 4.5).
        wire_ports: the first of the wire ports, the source-bound ones behind them.
    """

    inner_range: IPNetwork = IPNetwork("240.0.0.0/4")
    wire_ports: int = 4790

    @property
    def ports(self) -> range:
        """All wire ports, the source-bound ones too."""
        return range(self.wire_ports, self.wire_ports + _WIRE_PORTS)

    @classmethod
    def checked(cls, where: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """The table's values, of which those that every such data path has are right.

        Args:
            where: the table, as in ``backend.ebpf``.
            table: as it was configured.

        Raises:
            ConfigError: a key that is unknown or a value that will not do.
        """
        check_names(where, table, cls)
        given = dict(table)
        if "inner_range" in given:
            given["inner_range"] = _inner_range(f"{where}.inner_range", given["inner_range"])
        if "wire_ports" in given:
            last = 65536 - _WIRE_PORTS
            check_number(f"{where}.wire_ports", given["wire_ports"], FIRST_PORT, last)
        return given


def _inner_range(field: str, value: Any) -> IPNetwork:
    wanted = "an IPv4 /4 such as 240.0.0.0/4"
    try:
        network = IPNetwork(value)
    except (AddrFormatError, ValueError, TypeError) as error:
        raise ConfigError(field, wanted, value) from error
    if network.version != 4 or network.prefixlen != 4 or network.ip != network.network:
        raise ConfigError(field, wanted, value)
    return network
