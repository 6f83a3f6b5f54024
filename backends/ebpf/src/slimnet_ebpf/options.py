# SPDX-License-Identifier: Apache-2.0
"""The table ``[backend.ebpf]`` of the configuration."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Self

from attrs import frozen
from netaddr import IPNetwork

from slimnet import contract
from slimnet.exceptions import ConfigError
from slimnet.fallback import PORT, DevicePair
from slimnet.options import FIRST_PORT, SynOptions, check_number

__all__ = ["NETKIT_NEEDS", "Options", "Placement"]

#: The IPv6 half of the inner range: a unique local /64 (RFC 4193), "slimnet" in hex.
INNER_RANGE6 = IPNetwork("fd73:6c69:6d6e:6574::/64")
#: What a kernel needs to have netkit.
NETKIT_NEEDS = "Linux 6.7 with CONFIG_NETKIT"
#: Of :attr:`Options.device`: netkit, where the kernel has it.
AUTO = "auto"


class Placement(enum.StrEnum):
    """Whose network namespace the sockets of an endpoint are in."""

    HOST = "host"
    NETNS = "netns"


@frozen
class Options(SynOptions):
    """What can be configured, beside :class:`~slimnet.options.SynOptions`.

    Attributes:
        held_ports: how many ports of the host one endpoint may hold with ``bind(0)``, beside
            what its share of them allows.
        announce_port: TCP port at which this host hears what hosts announce that do not speak
            wire syn; nobody listens there while the cluster has none.
        placement: ``host`` or ``netns``: where an endpoint is put whose caller gives no
            network namespace; one that is given is always used.
        vxlan_port: UDP port of the fallback overlay, for those in namespaces of their own;
            the same on every host.
        device: ``veth`` or ``netkit``: what devices those get, with their next start; or
            ``auto``.
    """

    held_ports: int = 65535
    announce_port: int = contract.SLIM_ANNOUNCE_PORT
    placement: str = Placement.HOST
    vxlan_port: int = PORT
    device: str = AUTO

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """Check the table.

        Raises:
            ConfigError: a key that is unknown or a value that will not do.
        """
        made = cls(**cls.checked("backend.ebpf", table))
        check_number("backend.ebpf.held_ports", made.held_ports, 1, 65535)
        check_number("backend.ebpf.announce_port", made.announce_port, FIRST_PORT, 65535)
        check_number("backend.ebpf.vxlan_port", made.vxlan_port, 1, 65535)
        for field, value, known in (
            ("placement", made.placement, list(Placement)),
            ("device", made.device, [AUTO, *DevicePair]),
        ):
            if value not in known:
                raise ConfigError(f"backend.ebpf.{field}", f"one of {', '.join(known)}", value)
        if made.announce_port in made.ports:
            wanted = f"one that is not in {made.ports.start}-{made.ports.stop - 1}"
            raise ConfigError("backend.ebpf.announce_port", wanted, made.announce_port)
        return made

    def pair(self) -> DevicePair:
        """What devices endpoints in namespaces of their own get.

        Raises:
            ConfigError: this kernel has no such.
        """
        if self.device == AUTO:
            return DevicePair.NETKIT if DevicePair.NETKIT.is_known() else DevicePair.VETH
        if self.device == DevicePair.NETKIT and not DevicePair.NETKIT.is_known():
            wanted = f"{AUTO} or {DevicePair.VETH}, for netkit needs {NETKIT_NEEDS}"
            raise ConfigError("backend.ebpf.device", wanted, self.device)
        return DevicePair(self.device)
