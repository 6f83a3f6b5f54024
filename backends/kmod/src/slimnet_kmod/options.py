# SPDX-License-Identifier: Apache-2.0
"""The table ``[backend.kmod]`` of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from attrs import frozen

from slimnet.fallback import PORT
from slimnet.options import SynOptions, check_number

__all__ = ["KmodOptions"]


@frozen
class KmodOptions(SynOptions):
    """What can be configured, beside :class:`~slimnet.options.SynOptions`.

    Attributes:
        vxlan_port: UDP port of the fallback overlay; the same on every host.
    """

    vxlan_port: int = PORT

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """Check the table.

        Raises:
            ConfigError: a key that is unknown or a value that will not do.
        """
        made = cls(**cls.checked("backend.kmod", table))
        check_number("backend.kmod.vxlan_port", made.vxlan_port, 1, 65535)
        return made
