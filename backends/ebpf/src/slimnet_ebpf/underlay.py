# SPDX-License-Identifier: Apache-2.0
"""What the data path needs of the host: routes, three sysctls, a qdisc, two filters.

Every change is written down in the record *before* it is made, so that a
start or a teardown after a crash knows what to do.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netaddr import IPNetwork

from slimnet.exceptions import BackendError, ConfigError
from slimnet.linux import sysctl
from slimnet_ebpf import filters, links, reserved
from slimnet_ebpf.objects import Program
from slimnet_ebpf.options import INNER_RANGE6
from slimnet_ebpf.pins import Pins
from slimnet_ebpf.requirements import TSTAMP

__all__ = ["UnderlayPrograms"]

_log = logging.getLogger(__name__)

_LOCAL_TABLE = 255
_SCOPE_HOST = 254
_UP = 1
# ARP asks with an address of the interface it asks on, never with an inner one.
_ARP_ANNOUNCE = 2
# A sent packet whose time somebody asks for (timestamping.rst) comes back with its
# headers, underlay and inner addresses among them, but to CAP_NET_RAW only.
_TSTAMP_ALLOW_DATA = 0


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    from pyroute2 import IPRoute  # noqa: PLC0415  # 150 ms that a probe need not pay

    with IPRoute() as route:
        yield route


class UnderlayPrograms:
    """The host's side, in the current network namespace.

    Args:
        pins: of the instance; they hold the record.
        programs: by name.
        inner_range: the IPv4 range of inner addresses.
    """

    def __init__(self, pins: Pins, programs: dict[str, Program], inner_range: IPNetwork) -> None:
        self._pins = pins
        self._points = [
            (filters.INGRESS, programs["slim_tc_ingress"]),
            (filters.EGRESS, programs["slim_tc_egress"]),
        ]
        self._routes = [inner_range, INNER_RANGE6]

    @staticmethod
    def ifindex(interface: str) -> int:
        """The number of the underlay interface.

        Raises:
            ConfigError: there is none of that name.
        """
        with _netlink() as netlink:
            found = netlink.link_lookup(ifname=interface)
            if not found:
                names = ", ".join(link.get_attr("IFLA_IFNAME") for link in netlink.get_links())
                raise ConfigError("underlay.interface", f"one of {names}", interface)
            return int(found[0])

    def apply(self, interface: str, ifindex: int, ports: range) -> None:
        """Bring the host to what the data path needs; what is so already stays.

        Args:
            interface: of the underlay.
            ifindex: its number.
            ports: that nobody else is to be given by the kernel.
        """
        record = self._pins.record()
        if record.get("ifindex", ifindex) != ifindex:
            self.restore()
            record = self._pins.record()
        with _netlink() as netlink:
            if not netlink.get_links(ifname="lo")[0]["flags"] & _UP:
                raise BackendError("lo is down: ip link set lo up")
            self._add_routes(netlink)
            if "arp_announce" not in record:
                there = int(sysctl.read(TSTAMP)) if sysctl.exists(TSTAMP) else None
                self._pins.write_record(
                    ifindex=ifindex,
                    interface=interface,
                    arp_announce=int(sysctl.read(_arp_announce(interface))),
                    tstamp_allow_data=there,
                )
            sysctl.write(_arp_announce(interface), _ARP_ANNOUNCE)
            if "reserved" not in record:
                self._pins.write_record(reserved=reserved.missing(ports))
            reserved.reserve(ports)
            if sysctl.exists(TSTAMP):  # else requirements.gaps() says so
                sysctl.write(TSTAMP, _TSTAMP_ALLOW_DATA)
            linked = [
                filters.link(ifindex, point, program.fd, self._pin(program))
                for point, program in self._points
            ]
            if not all(linked):
                self._filter(netlink, ifindex)

    def _pin(self, program: Program) -> Path:
        return self._pins.links / program.name.replace("slim_tc_", "tcx-")

    def _filter(self, netlink: Any, ifindex: int) -> None:
        if "clsact" not in self._pins.record():
            there = any(
                qdisc.get_attr("TCA_KIND") == "clsact"
                for qdisc in netlink.get_qdiscs(index=ifindex)
            )
            self._pins.write_record(clsact=not there)
        filters.create_clsact(ifindex)
        for point, program in self._points:
            filters.attach(ifindex, point, program.fd, links.program_id(program.fd))

    def restore(self) -> None:
        """Undo :meth:`apply`; what others have changed meanwhile stays theirs."""
        record = self._pins.record()
        ifindex = record.get("ifindex")
        with _netlink() as netlink:
            links = netlink.get_links()
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in links}
            if ifindex in names:
                self._restore_interface(netlink, record, names[ifindex])
            for network in self._routes:
                self._route(netlink, "del", network)
        if "tstamp_allow_data" in record and int(sysctl.read(TSTAMP)) == _TSTAMP_ALLOW_DATA:
            sysctl.write(TSTAMP, record["tstamp_allow_data"])
        reserved.give_back(record.get("reserved", ""))
        self._pins.write_record(
            reserved=None,
            ifindex=None,
            interface=None,
            arp_announce=None,
            tstamp_allow_data=None,
            clsact=None,
        )

    def _restore_interface(self, netlink: Any, record: dict[str, Any], interface: str) -> None:
        ifindex, announce = record["ifindex"], _arp_announce(interface)
        for point, program in self._points:
            links.end(self._pin(program))
            if "clsact" in record:
                filters.detach(ifindex, point, links.program_id(program.fd))
        if record.get("clsact") and not any(
            netlink.get_filters(index=ifindex, parent=parent)
            for parent in (0xFFFFFFF2, 0xFFFFFFF3)  # clsact's ingress and egress
        ):
            filters.destroy_clsact(ifindex)
        if "arp_announce" in record and int(sysctl.read(announce)) == _ARP_ANNOUNCE:
            sysctl.write(announce, record["arp_announce"])

    def _add_routes(self, netlink: Any) -> None:
        for network in self._routes:
            try:
                self._route(netlink, "replace", network)
            except BackendError:
                if network.version == 4:
                    raise
                # Without IPv6 on the host nothing uses that range.
                _log.info("no route for %s: IPv6 is off here", network)

    @staticmethod
    def _route(netlink: Any, command: str, network: IPNetwork) -> None:
        from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

        try:
            netlink.route(
                command,
                dst=str(network),
                family=10 if network.version == 6 else 2,
                type="local",
                table=_LOCAL_TABLE,
                scope=_SCOPE_HOST if network.version == 4 else 0,
                oif=netlink.link_lookup(ifname="lo")[0],
            )
        except NetlinkError as error:
            if command == "del" and error.code in (errno.ESRCH, errno.ENOENT, errno.EINVAL):
                return
            raise BackendError(f"route local {network} dev lo: {error.args[-1]}") from error


def _arp_announce(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/arp_announce"
