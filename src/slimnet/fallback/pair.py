# SPDX-License-Identifier: Apache-2.0
"""Two devices that are one link, an end of it in another network namespace."""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any

from slimnet.linux import netns

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = ["DevicePair"]

# enum netkit_action and enum netkit_mode, linux/if_link.h
_PASS, _DROP = 0, 2
_L2 = 0


class DevicePair(enum.StrEnum):
    """Which of the kernel's."""

    #: What the one end sends waits in a queue of the processor's for the other to receive it.
    VETH = "veth"
    #: What the peer sends is first put to BPF programs of the other, the primary end, which may
    #: send it on at once; without any it is dropped. The peer can change nothing of that.
    #: Linux 6.7, CONFIG_NETKIT (drivers/net/netkit.c).
    NETKIT = "netkit"

    def add(self, route: IPRoute, peer: dict[str, Any], **primary: Any) -> None:
        """Make both ends, which are down.

        Args:
            route: of the namespace of the primary end.
            peer: attributes of the other end: ``ifname``, ``net_ns_fd`` and more.
            primary: of the primary end.

        Raises:
            pyroute2.netlink.exceptions.NetlinkError: the kernel refused.
        """
        if self is DevicePair.VETH:
            route.link("add", kind="veth", peer=peer, **primary)
            return
        _teach_netkit()
        attributes = [[f"IFLA_{name.upper()}", value] for name, value in peer.items()]
        route.link(
            "add",
            kind="netkit",
            IFLA_NETKIT_PEER_INFO={"attrs": attributes},
            IFLA_NETKIT_POLICY=_PASS,
            IFLA_NETKIT_PEER_POLICY=_DROP,
            # With Ethernet headers, as a veth has them: programs and neighbours are the same.
            IFLA_NETKIT_MODE=_L2,
            **primary,
        )

    def is_known(self) -> bool:
        """Whether this kernel makes such for us: tried, once, where it harms nobody."""
        return _is_known(self)


@functools.cache
def _is_known(pair: DevicePair) -> bool:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415  # as in flows.py

    def attempt() -> None:
        with netns.netlink() as route:
            pair.add(route, {"ifname": "peer0"}, ifname="link0")

    try:
        netns.apart(attempt)
    except (NetlinkError, OSError):
        return False
    return True


@functools.cache
def _teach_netkit() -> None:
    """Tell pyroute2 of a netkit's attributes, which it does not know (0.9)."""
    from pyroute2.netlink import nla  # noqa: PLC0415  # as in flows.py
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg, ifinfveth  # noqa: PLC0415

    class Netkit(nla):  # type: ignore[misc]
        prefix = "IFLA_NETKIT_"
        nla_map = (
            ("IFLA_NETKIT_UNSPEC", "none"),
            ("IFLA_NETKIT_PEER_INFO", "peer_info"),
            ("IFLA_NETKIT_PRIMARY", "uint8"),
            ("IFLA_NETKIT_POLICY", "uint32"),
            ("IFLA_NETKIT_PEER_POLICY", "uint32"),
            ("IFLA_NETKIT_MODE", "uint32"),
        )

        @staticmethod
        def peer_info(*_: object, **__: object) -> type:
            return ifinfveth  # type: ignore[no-any-return]  # a link's header and attributes

    ifinfmsg.ifinfo.register_link_kind(module={"netkit": Netkit})
