# SPDX-License-Identifier: Apache-2.0
"""The table ``[backend.preload]`` of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from attrs import frozen

from slimnet import contract
from slimnet.exceptions import ConfigError
from slimnet.options import FIRST_PORT, check_names

__all__ = ["PreloadOptions"]

_PORTS = re.compile("([0-9]{1,5})-([0-9]{1,5})")


@frozen
class PreloadOptions:
    """What can be configured.

    Attributes:
        port: TCP port at which this host's router hears those of other hosts.
        ports: TCP and UDP ports of the host that endpoints' ports are, ``FIRST-LAST``; best
            below those that the kernel gives away itself (ip_local_port_range).
    """

    port: int = contract.SLIM_ANNOUNCE_PORT
    ports: str = "20000-31999"

    @property
    def range(self) -> range:
        """Of ``ports``."""
        first, last = map(int, self.ports.split("-"))
        return range(first, last + 1)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """Check the table.

        Raises:
            ConfigError: a key that is unknown or a value that will not do.
        """
        check_names("backend.preload", table, cls)
        options = cls(**table)
        port = options.port
        if not isinstance(port, int) or isinstance(port, bool) or not _is_port(port):
            raise ConfigError("backend.preload.port", f"a port, {FIRST_PORT} to 65535", port)
        found = _PORTS.fullmatch(options.ports) if isinstance(options.ports, str) else None
        ends = [int(each) for each in found.groups()] if found is not None else []
        if not ends or ends != sorted(ends) or not all(map(_is_port, ends)):
            wanted = f"FIRST-LAST, two ports from {FIRST_PORT} to 65535"
            raise ConfigError("backend.preload.ports", wanted, options.ports)
        if port in options.range:
            raise ConfigError("backend.preload.port", f"one that is not in {options.ports}", port)
        return options


def _is_port(number: int) -> bool:
    return FIRST_PORT <= number < 1 << 16
