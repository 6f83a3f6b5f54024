# SPDX-License-Identifier: Apache-2.0
"""What the data path needs of the host: routes, three sysctls, a qdisc, two filters.

Every change is written down in the record *before* it is made, so that a
start or a teardown after a crash knows what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netaddr import IPAddress, IPNetwork

from slimnet.exceptions import BackendError, ConfigError
from slimnet.linux import sysctl
from slimnet.rtnetlink import Rtnetlink
from slimnet_ebpf import filters, links, reserved
from slimnet_ebpf.objects import Program
from slimnet_ebpf.options import INNER_RANGE6
from slimnet_ebpf.pins import Pins
from slimnet_ebpf.requirements import TSTAMP

__all__ = ["UnderlayPrograms"]

_WAYS = {filters.INGRESS: "ingress", filters.EGRESS: "egress"}

# ARP asks with an address of the interface it asks on, never with an inner one.
_ARP_ANNOUNCE = 2
# A sent packet whose time somebody asks for (timestamping.rst) comes back with its
# headers, underlay and inner addresses among them, but to CAP_NET_RAW only.
_TSTAMP_ALLOW_DATA = 0


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    from pyroute2 import IPRoute  # noqa: PLC0415  # 100 ms; for a kernel without tcx only

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
        with Rtnetlink() as route:
            found = route.link(interface)
        if found is None:
            names = ", ".join(name for _, name in socket.if_nameindex())
            raise ConfigError("underlay.interface", f"one of {names}", interface)
        return found.index

    def apply(self, interface: str, ifindex: int, ports: range) -> None:
        """Bring the host to what the data path needs: :meth:`keep_host`, and
        :meth:`keep_interface`."""
        self.keep_host(ports)
        self.keep_interface(interface, ifindex)

    def keep_host(self, ports: range) -> list[str]:
        """Routes of the inner ranges, and settings; what is so already stays. To look takes
        some 0.2 ms, and is done again and again.

        Args:
            ports: that nobody else is to be given by the kernel.

        Returns:
            What was changed.

        Raises:
            BackendError: the kernel refused, or lo is down.
            OSError: the same, of a sysctl.
        """
        with Rtnetlink() as route:
            lo = route.link("lo")
            if lo is None or not lo.is_up:
                raise BackendError("lo is down: ip link set lo up")
            lost = [
                each
                for each in self._routes
                if (each.version == 4 or _has_ipv6())
                and not route.delivers(IPAddress(each.first, each.version))
            ]
        changed = self._add_routes(lost) if lost else []
        unreserved = reserved.missing(ports)
        if unreserved:  # who writes that setting writes all of it: what is there is theirs
            self._pins.write_record(reserved=unreserved)
            reserved.reserve(ports)
            changed.append(reserved.SETTING)
        if sysctl.exists(TSTAMP):  # else requirements.gaps() says so
            there = int(sysctl.read(TSTAMP))
            if there != _TSTAMP_ALLOW_DATA or "tstamp_allow_data" not in self._pins.record():
                self._pins.write_record(tstamp_allow_data=there)
                sysctl.write(TSTAMP, _TSTAMP_ALLOW_DATA)
                changed.append(TSTAMP)
        return changed

    def keep_interface(self, interface: str, ifindex: int) -> list[str]:
        """What the underlay interface needs; the last one is left, if it was another.

        Args:
            interface: of the underlay.
            ifindex: its number.

        Returns:
            What was changed.

        Raises:
            BackendError: the kernel refused.
            OSError: the same, of a sysctl.
        """
        changed = []
        record = self._pins.record()
        if record.get("ifindex", ifindex) != ifindex:
            self._leave(record)
            record = self._pins.record()
        announce = int(sysctl.read(_arp_announce(interface)))
        if announce != _ARP_ANNOUNCE or "arp_announce" not in record:
            self._pins.write_record(ifindex=ifindex, interface=interface, arp_announce=announce)
            sysctl.write(_arp_announce(interface), _ARP_ANNOUNCE)
            changed.append(_arp_announce(interface))
        return changed + self._attach(interface, ifindex)

    def _attach(self, interface: str, ifindex: int) -> list[str]:
        missing = [
            point
            for point, program in self._points
            if not filters.is_linked(ifindex, self._pin(program))
        ]
        linked = [
            filters.link(ifindex, point, program.fd, self._pin(program))
            for point, program in self._points
            if point in missing
        ]
        if not all(linked):
            missing = [
                point
                for point, program in self._points
                if not filters.is_attached(ifindex, point, links.program_id(program.fd))
            ]
            if missing:
                self._filter(ifindex)
        return [f"{_WAYS[point]} program of {interface}" for point in missing]

    def renew(self) -> None:
        """Let the interface's links run our programs, where they run another load's."""
        for _, program in self._points:
            links.renew(self._pin(program), program.fd)

    def _pin(self, program: Program) -> Path:
        return self._pins.links / program.name.replace("slim_tc_", "tcx-")

    def _filter(self, ifindex: int) -> None:
        with _netlink() as netlink:
            there = any(
                qdisc.get_attr("TCA_KIND") == "clsact"
                for qdisc in netlink.get_qdiscs(index=ifindex)
            )
        if not there or "clsact" not in self._pins.record():
            self._pins.write_record(clsact=not there)
        filters.create_clsact(ifindex)
        for point, program in self._points:
            filters.attach(ifindex, point, program.fd, links.program_id(program.fd))

    def restore(self) -> None:
        """Undo :meth:`apply`; what others have changed meanwhile stays theirs."""
        record = self._pins.record()
        self._leave(record)
        with Rtnetlink() as route:
            for network in self._routes:
                self._deliver(route, network, on=False)
        if "tstamp_allow_data" in record and int(sysctl.read(TSTAMP)) == _TSTAMP_ALLOW_DATA:
            sysctl.write(TSTAMP, record["tstamp_allow_data"])
        reserved.give_back(record.get("reserved", ""))
        self._pins.write_record(reserved=None, tstamp_allow_data=None)

    def _leave(self, record: dict[str, Any]) -> None:
        """Undo what was done on an interface, if it is still there."""
        ifindex = record.get("ifindex")
        names = dict(socket.if_nameindex())
        if ifindex in names:
            self._restore_interface(record, names[ifindex])
        self._pins.write_record(ifindex=None, interface=None, arp_announce=None, clsact=None)

    def _restore_interface(self, record: dict[str, Any], interface: str) -> None:
        ifindex, announce = record["ifindex"], _arp_announce(interface)
        for point, program in self._points:
            links.end(self._pin(program))
            if "clsact" in record:
                filters.detach(ifindex, point, links.program_id(program.fd))
        if record.get("clsact") and not _filters(ifindex):
            filters.destroy_clsact(ifindex)
        if "arp_announce" in record and int(sysctl.read(announce)) == _ARP_ANNOUNCE:
            sysctl.write(announce, record["arp_announce"])

    def _add_routes(self, lost: list[IPNetwork]) -> list[str]:
        with Rtnetlink() as route:
            for network in lost:
                self._deliver(route, network, on=True)
        return [f"route local {network}" for network in lost]

    @staticmethod
    def _deliver(route: Rtnetlink, network: IPNetwork, *, on: bool) -> None:
        try:
            route.deliver(network, on=on)
        except OSError as error:
            if not on and error.errno in (errno.ESRCH, errno.ENOENT, errno.EINVAL):
                return
            raise BackendError(
                f"route local {network} dev lo: {os.strerror(error.errno or 0)}"
            ) from error


def _filters(ifindex: int) -> bool:
    """Whether anybody has filters on the interface."""
    with _netlink() as netlink:
        return any(
            netlink.get_filters(index=ifindex, parent=parent)
            for parent in (0xFFFFFFF2, 0xFFFFFFF3)  # clsact's ingress and egress
        )


def _arp_announce(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/arp_announce"


def _has_ipv6() -> bool:
    """Whether the host uses IPv6; else nothing uses that range either."""
    name = "net/ipv6/conf/lo/disable_ipv6"
    return sysctl.exists(name) and sysctl.read(name) == "0"
