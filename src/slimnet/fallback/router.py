# SPDX-License-Identifier: Apache-2.0
"""One network's part of one host: a namespace that routes.

::

    endpoint's namespace          router's namespace               host's namespace
    ----------------------------  -------------------------------  -----------------
    eth0 10.1.0.5/32 ------------ ep0000002a      vxlan0 ~~~~~~~~~~ UDP 4789, underlay
    default via 169.254.1.1                       uplink0 --------- sl000064, masquerade
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from netaddr import IPAddress, IPNetwork

from slimnet.exceptions import BackendError
from slimnet.fallback import nft, ruleset
from slimnet.fallback.pair import DevicePair
from slimnet.linux import libc, netns, sysctl
from slimnet.rtnetlink import Link, Rtnetlink
from slimnet.tables import Tables

if TYPE_CHECKING:
    from pyroute2 import IPRoute

__all__ = [
    "GATEWAY",
    "HOST",
    "OVERHEAD",
    "Plug",
    "Router",
    "device_number",
    "forwarding",
    "uplink_address",
    "uplink_name",
]

#: What endpoints and routers send to. It is on no interface of the endpoint's own link.
GATEWAY = "169.254.1.1"
#: What a router sends to, for the outside; and whom its host's ICMP errors come from there.
HOST = "169.254.1.2"
#: Bytes that VXLAN over IPv4 adds: Ethernet 14, IPv4 20, UDP 8, VXLAN 8 (RFC 7348).
OVERHEAD = 50

# linux/rtnetlink.h, linux/neighbour.h
_ONLINK = 4
_LINK_SCOPE = 253
_PERMANENT = 0x80
_KERNEL, _STATIC = 2, 4
_BLACKHOLE = 6
#: Below it are the numbers that the kernel gives devices by itself, one after the other.
_FIRST_NUMBER = 4096
#: The largest metric: any other route to the same comes first.
_LAST = 0xFFFFFFFF

_SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    # Strict reverse path filtering (RFC 3704) on every device but VXLAN's (below): an endpoint
    # sends from its own address only, and the outside from no endpoint's. `all` is 0, for the
    # kernel takes the larger of `all` and the device's own.
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 1,
    "net/ipv4/conf/all/send_redirects": 0,
    # No rate limit on ICMP errors: a connect whose refusal is not sent would hang.
    "net/ipv4/icmp_ratemask": 0,
    # A TCP packet without a tracked connection starts none: only a SYN is put to the policy.
    "net/netfilter/nf_conntrack_tcp_loose": 0,
    # A segment outside of the window is the receiver's to judge, not conntrack's: as invalid
    # it would be dropped here, and the sender never answered.
    "net/netfilter/nf_conntrack_tcp_be_liberal": 1,
    "net/netfilter/nf_conntrack_timestamp": 1,
    "net/ipv6/conf/all/disable_ipv6": 1,
    "net/ipv6/conf/default/disable_ipv6": 1,
}
# On the VXLAN device a rule compares sources with the tables instead: every router of the
# network has the same gateway address, so ICMP errors of another one would be martians here.
_VXLAN_SYSCTLS = {
    f"net/ipv4/conf/{ruleset.VXLAN}/rp_filter": 0,
    f"net/ipv4/conf/{ruleset.VXLAN}/accept_local": 1,
}


def uplink_name(vni: int) -> str:
    """The host's end of a router's way to the outside."""
    return f"sl{vni:06x}"


def uplink_address(vni: int) -> IPAddress:
    """The router's address towards its host: 0.0.0.0/8 with the VNI in the rest.

    Linux routes that range since 5.3 and nobody else uses it. It is never
    seen outside of the host, which masquerades it.
    """
    return IPAddress(vni)


def _mac(kind: int, number: int) -> str:
    """A locally administered address that says whose it is."""
    return ":".join(f"{octet:02x}" for octet in (0x02, kind, *number.to_bytes(4, "big")))


def _device(endpoint: int) -> str:
    """The router's end of an endpoint's link."""
    return f"{ruleset.ENDPOINT}{endpoint:08x}"


def device_number(endpoint: int) -> int:
    """The number (ifindex) of the router's end of an endpoint's link: the same for no two
    endpoints of a host, in whatever routers they are, so that a program knows by it whose
    packets it sees. Not small: those numbers the kernel gives out."""
    return endpoint if endpoint >= _FIRST_NUMBER else endpoint | 1 << 30


@frozen
class Plug:
    """How an endpoint is connected, by the numbers of devices.

    Attributes:
        device: the router's end of the endpoint's link.
        uplink: the router's end of its way out.
        portal: the host's end of that.
        near: the router's address towards its host.
        macs: destination and source of the frames that the endpoint gets.
    """

    device: int
    uplink: int
    portal: int
    near: IPAddress
    macs: bytes


def forwarding(interface: str) -> str:
    """Its sysctl (Documentation/networking/ip-sysctl.rst)."""
    return f"net/ipv4/conf/{interface}/forwarding"


def _vtep_mac(host: IPAddress) -> str:
    return _mac(0x53, int(host))


def _set(values: Mapping[str, int]) -> None:
    """In the calling thread's namespace; a kernel without IPv6 lacks some."""
    for name, value in values.items():
        if sysctl.exists(name):
            sysctl.write(name, value)


@contextmanager
def _told(what: str) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415  # as in flows.py

    try:
        yield
    except NetlinkError as error:
        raise BackendError(f"{what}: {error.args[-1]}") from error


class Router:
    """Makes, fills and removes a network's router on one host.

    Args:
        path: where its namespace is mounted.
        vni: the network's.
        host: path of the host's network namespace.
        address: the host's underlay address, IPv4.
        interface: the host's underlay interface.
        port: UDP port of VXLAN.
        wraps: whether all that endpoints send is wrapped, and so their packets have to be
            smaller by that; else those that are too large for it are told (RFC 1191).
        serves: whether datagrams to the address of a service come to an endpoint behind it.
        publishes: whether published ports of the host lead to endpoints by it.
        pair: what new links to endpoints and to the host are. Of :attr:`DevicePair.NETKIT` whoever
            makes the router puts programs on its ends and on the host's end of its way out.
    """

    def __init__(
        self,
        path: Path,
        vni: int,
        host: Path,
        address: IPAddress,
        interface: str,
        port: int,
        *,
        wraps: bool = True,
        serves: bool = False,
        publishes: bool = False,
        pair: DevicePair = DevicePair.VETH,
    ) -> None:
        self.path = path
        self.vni = vni
        self._host = host
        self._address = address
        self._interface = interface
        self._port = port
        self._wraps = wraps
        self._serves = serves
        self._publishes = publishes
        self._pair = pair

    def up(self) -> None:
        """Make it, closed. What a killed process left half made is made anew."""
        if self.exists():
            return
        self.down()
        netns.create(self.path)
        try:
            with _told(f"network {self.vni}"):
                self._make()
            first, _ = ruleset.SIDES
            script = ruleset.closed(first) + ruleset.switch(first, 0)
            nft.apply(script, self.path)  # last: what exists is whole
        except BaseException:
            self.down()
            raise

    def exists(self) -> bool:
        """Whether it is there, whole."""
        return netns.exists(self.path) and self.generation() is not None

    def _make(self) -> None:
        with netns.enter(self.path):
            _set(_SYSCTLS)
        with (
            netns.netlink(self._host) as host,
            netns.netlink(self.path) as route,
            self.path.open() as here,
        ):
            lower = host.link_lookup(ifname=self._interface)
            if not lower:
                raise BackendError(f"underlay interface {self._interface}: there is none")
            self._make_vxlan(host, route, here.fileno(), lower[0])
            self._make_uplink(host, here.fileno())
            self._lead_out(host, route)

    def _make_vxlan(self, host: IPRoute, route: IPRoute, here: int, lower: int) -> None:
        mtu = host.get_links(lower)[0].get_attr("IFLA_MTU")
        # Made from the host's namespace, so that its UDP socket is there.
        host.link(
            "add",
            ifname=ruleset.VXLAN,
            kind="vxlan",
            net_ns_fd=here,
            address=_vtep_mac(self._address),
            mtu=mtu - OVERHEAD,
            vxlan_id=self.vni,
            vxlan_link=lower,
            vxlan_local=str(self._address),
            vxlan_port=self._port,
            vxlan_learning=False,
            vxlan_udp_csum=0,  # RFC 7348, 4.1: it SHOULD be zero
        )
        with netns.enter(self.path):
            _set(_VXLAN_SYSCTLS)
        self._up(route, ruleset.VXLAN)

    def _make_uplink(self, host: IPRoute, here: int) -> None:
        """The way to the outside."""
        self._pair.add(
            host,
            {"ifname": ruleset.UPLINK, "net_ns_fd": here, "address": _mac(0x54, self.vni)},
            ifname=uplink_name(self.vni),
            address=_mac(0x55, self.vni),
        )

    def _lead_out(self, host: IPRoute, route: IPRoute) -> None:
        """Both ends of it up, and with all that goes when one is down."""
        above = self._up(host, uplink_name(self.vni))
        uplink = self._up(route, ruleset.UPLINK)
        near = str(uplink_address(self.vni))
        host.neigh(
            "replace", ifindex=above, dst=near, lladdr=_mac(0x54, self.vni), state=_PERMANENT
        )
        # systemd-networkd removes what is not the kernel's own (networkd.conf(5),
        # ManageForeignRoutes=), each time that it starts.
        host.route("replace", dst=f"{near}/32", oif=above, scope=_LINK_SCOPE, proto=_KERNEL)
        route.addr("replace", index=uplink, address=near, prefixlen=32)
        route.neigh(
            "replace", ifindex=uplink, dst=HOST, lladdr=_mac(0x55, self.vni), state=_PERMANENT
        )
        route.route("replace", dst="default", gateway=HOST, oif=uplink, flags=_ONLINK)
        # The source address of the ICMP errors that this router sends.
        route.addr("replace", index=1, address=GATEWAY, prefixlen=32)
        with netns.enter(self._host):
            name = uplink_name(self.vni)
            # From and to the host's own loopback, for what is published.
            local = f"net/ipv4/conf/{name}/route_localnet"
            _set(
                {
                    forwarding(name): 1,
                    local: int(self._publishes),
                    f"net/ipv6/conf/{name}/disable_ipv6": 1,
                }
            )

    def mend(self, lower: Link | None, tables: Tables) -> list[str]:
        """Make again what somebody has taken away of it; what is there is not touched. A look
        takes some 0.3 ms.

        Args:
            lower: the underlay interface; ``None``: it is not there, and VXLAN has to wait.
            tables: in force.

        Returns:
            What was made.

        Raises:
            BackendError: the kernel refused.
        """
        if not netns.exists(self.path):
            self.up()
            self.install(tables)
            return [f"network {self.vni}"]
        with netns.enter(self._host), Rtnetlink() as host:
            above = host.link(uplink_name(self.vni))
            led = host.leads(IPNetwork(uplink_address(self.vni)))
            forwards = above is not None and sysctl.read(forwarding(uplink_name(self.vni))) != "0"
        with netns.enter(self.path), Rtnetlink() as route:
            vxlan, uplink = route.link(ruleset.VXLAN), route.link(ruleset.UPLINK)
        ups = all(link is not None and link.is_up for link in (above, uplink))
        across = vxlan is not None and lower is not None and vxlan.lower == lower.index
        found = []
        with _told(f"network {self.vni}"):
            if not (ups and led and forwards):
                self._mend_uplink(above)
                found.append(f"way out of network {self.vni}")
            # The kernel removes it with the interface that it is on.
            if lower is not None and not across:
                self._mend_vxlan(lower.index, vxlan, tables)
                found.append(f"VXLAN of network {self.vni}")
        return found

    def _mend_uplink(self, above: Link | None) -> None:
        with (
            netns.netlink(self._host) as host,
            netns.netlink(self.path) as route,
            self.path.open() as here,
        ):
            if above is None:
                self._make_uplink(host, here.fileno())
            self._lead_out(host, route)

    def _mend_vxlan(self, lower: int, old: Link | None, tables: Tables) -> None:
        with (
            netns.netlink(self._host) as host,
            netns.netlink(self.path) as route,
            self.path.open() as here,
        ):
            if old is not None:
                route.link("del", index=old.index)
            self._make_vxlan(host, route, here.fileno(), lower)
            self._connect(route, tables)

    @staticmethod
    def _up(route: IPRoute, name: str) -> int:
        index: int = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, state="up")
        return index

    def down(self) -> None:
        """Remove it and all its devices; removing what is not there is no error."""
        with netns.netlink(self._host) as host:
            for index in host.link_lookup(ifname=uplink_name(self.vni)):
                host.link("del", index=index)
        if netns.exists(self.path):
            with netns.netlink(self.path) as route:
                for link in route.get_links():
                    # Devices die with their namespace, but some time later.
                    if link["index"] != 1:
                        _ignore(errno.ENODEV, route.link, "del", index=link["index"])
        netns.remove(self.path)

    # Endpoints

    def plug(self, endpoint: int, address: IPAddress, there: Path) -> None:
        """Connect an endpoint's namespace, which has no ``eth0`` and no default route.

        Raises:
            BackendError: it has, or the kernel refused.
        """
        name = _device(endpoint)
        with (
            _told(f"endpoint {endpoint}"),
            netns.netlink(self.path) as route,
            netns.netlink(there) as inside,
            there.open() as namespace,
        ):
            if inside.link_lookup(ifname="eth0") or inside.get_default_routes(family=2):
                wanted = "a network namespace without eth0 and without a default route"
                raise BackendError(f"endpoint.netns: wanted {wanted}, got {str(there)!r}")
            vxlan = route.get_links(ifname=ruleset.VXLAN)[0]
            mtu = vxlan.get_attr("IFLA_MTU") + (0 if self._wraps else OVERHEAD)
            self._pair.add(
                route,
                {
                    "ifname": "eth0",
                    "net_ns_fd": namespace.fileno(),
                    "address": _mac(0x51, endpoint),
                    "mtu": mtu,
                },
                ifname=name,
                index=device_number(endpoint),
                address=_mac(0x50, endpoint),
                mtu=mtu,
            )
            # At which the endpoint's resolver is; whoever made the namespace may have left it down.
            inside.link("set", index=1, state="up")
            # Only of eth0: loopback keeps ::1, for programs that do not start without it.
            with netns.enter(there):
                _set({"net/ipv6/conf/eth0/disable_ipv6": 1})
            eth0 = self._up(inside, "eth0")
            inside.addr("replace", index=eth0, address=str(address), prefixlen=32)
            inside.neigh(
                "replace", ifindex=eth0, dst=GATEWAY, lladdr=_mac(0x50, endpoint), state=_PERMANENT
            )
            # Not "replace": what somebody else has led elsewhere stays so.
            inside.route("add", dst="default", gateway=GATEWAY, oif=eth0, flags=_ONLINK)
            index = self._up(route, name)
            route.neigh(
                "replace",
                ifindex=index,
                dst=str(address),
                lladdr=_mac(0x51, endpoint),
                state=_PERMANENT,
            )
            route.route("replace", dst=f"{address}/32", oif=index, scope=_LINK_SCOPE)

    @staticmethod
    def is_in(there: Path, endpoint: int) -> bool:
        """Whether a namespace has the endpoint's end of its link, under whatever name."""
        with _told(f"endpoint {endpoint}"), netns.netlink(there) as inside:
            mac = _mac(0x51, endpoint)
            return any(inside.link_lookup(address=mac, kind=pair.value) for pair in DevicePair)

    def unplug(self, endpoint: int) -> None:
        """Disconnect an endpoint; one that is not connected is no error."""
        if netns.exists(self.path):
            with netns.netlink(self.path) as route:
                for index in route.link_lookup(ifname=_device(endpoint)):
                    route.link("del", index=index)

    def plugs(self) -> dict[int, Plug]:
        """How each endpoint is connected; nothing while the way out is not there."""
        with netns.enter(self._host), Rtnetlink() as host:
            above = host.link(uplink_name(self.vni))
        with netns.enter(self.path):
            there = {name: number for number, name in socket.if_nameindex()}
        uplink = there.get(ruleset.UPLINK)
        if above is None or uplink is None:
            return {}
        return {
            endpoint: Plug(
                number,
                uplink,
                above.index,
                uplink_address(self.vni),
                b"".join(
                    bytes.fromhex(_mac(kind, endpoint).replace(":", "")) for kind in (0x51, 0x50)
                ),
            )
            for name, number in there.items()
            if name.startswith(ruleset.ENDPOINT)
            for endpoint in [int(name.removeprefix(ruleset.ENDPOINT), 16)]
        }

    def endpoints(self) -> frozenset[int]:
        """The ids of the endpoints that are connected."""
        with netns.enter(self.path):
            names = [name for _, name in socket.if_nameindex()]
        return frozenset(
            int(name.removeprefix(ruleset.ENDPOINT), 16)
            for name in names
            if name.startswith(ruleset.ENDPOINT)
        )

    # Tables

    def install(self, tables: Tables) -> None:
        """Put tables in force: routes that are new, rules, then routes that went.

        Raises:
            BackendError: the old rules stay in force.
        """
        with _told(f"network {self.vni}"), netns.netlink(self.path) as route:
            stale = self._connect(route, tables)
            self._replace(tables)
            for undo, arguments in stale:
                _ignore(errno.ESRCH, undo, "del", **arguments)

    def _replace(self, tables: Tables) -> None:
        """Write these tables beside those in force, switch, and remove the others."""
        made, rule = self._made(), self._in_force()
        free, used = ruleset.SIDES
        if rule is not None and {"goto": {"target": f"{free}forward"}} in rule["expr"]:
            free = used
        left = [item for item in made if item[1].startswith(free)]  # by one that was killed
        script = ruleset.removal(left) + ruleset.render(
            *(tables, self.vni, free, self._port),
            serves=self._serves,
            publishes=self._publishes,
        )
        nft.apply(script, self.path)
        nft.apply(ruleset.switch(free, tables.generation), self.path)
        libc.membarrier()  # packets that met the old rule first are through
        nft.apply(ruleset.removal(item for item in made if item not in left), self.path)

    def _made(self) -> list[tuple[str, str]]:
        """The maps, sets and chains that scripts made, of both sides."""
        objects = nft.listing(f"table ip {ruleset.TABLE}", self.path, terse=True)
        return [
            (kind, str(value["name"]))
            for kind, value in objects
            if kind in ("map", "set", "chain")
            and "hook" not in value
            and value["name"] != "refused"
        ]

    def _in_force(self) -> dict[str, Any] | None:
        """The rule that leads to the generation in force."""
        for kind, value in nft.listing(f"chain ip {ruleset.TABLE} forward", self.path):
            if kind == "rule" and "comment" in value:
                return value
        return None

    def generation(self) -> int | None:
        """Of the rules in force, 0 before the first tables; ``None``: no rules at all."""
        rule = self._in_force()
        return None if rule is None else int(rule["comment"].removeprefix("generation "))

    def _connect(
        self, route: IPRoute, tables: Tables
    ) -> list[tuple[Callable[..., object], dict[str, object]]]:
        """Bring in what the tables name and is missing; answer what they do not name."""
        links = route.link_lookup(ifname=ruleset.VXLAN)
        if not links:  # the underlay interface is gone, and took it along: see mend()
            return []
        vxlan = links[0]
        # The network's whole ranges are routed here, so that a connect to an address that no
        # endpoint has meets the rules, which count and refuse it.
        want: dict[str, str | None] = {
            str(network): None
            for (vni, network), record in tables.cidrs.items()
            if vni == self.vni and record.overlay and network.version == 4
        }
        hosts = {}
        for record in tables.endpoints.values():
            if record.vni == self.vni and not record.local and record.address.version == 4:
                want[f"{record.address}/32"] = str(record.host)
                hosts[str(record.host)] = _vtep_mac(record.host)
        stale: list[tuple[Callable[..., object], dict[str, object]]] = []

        known = {
            n.get_attr("NDA_DST"): n.get_attr("NDA_LLADDR")
            for n in route.get_neighbours(ifindex=vxlan, family=2)
        }
        for host, mac in hosts.items():
            if known.get(host) != mac:
                route.fdb("append", ifindex=vxlan, lladdr=mac, dst=host)
                route.neigh("replace", ifindex=vxlan, dst=host, lladdr=mac, state=_PERMANENT)
        for host in known.keys() - hosts.keys():
            mac = known[host]
            stale.append((route.neigh, {"ifindex": vxlan, "dst": host, "lladdr": mac}))
            stale.append((route.fdb, {"ifindex": vxlan, "lladdr": mac, "dst": host}))

        have = {}
        guarded = set()
        for entry in route.get_routes(family=2, table=254):
            target = f"{entry.get_attr('RTA_DST')}/{entry['dst_len']}"
            if entry["type"] == _BLACKHOLE:
                guarded.add(target)
            elif entry.get_attr("RTA_OIF") == vxlan:
                have[target] = entry.get_attr("RTA_GATEWAY")
            elif want.get(target, "") is None:
                # A policy's range that is one endpoint's address, and the endpoint is here.
                del want[target]
        for target, gateway in want.items():
            if target not in have or have[target] != gateway:
                via = {"gateway": gateway, "flags": _ONLINK} if gateway else {"scope": _LINK_SCOPE}
                route.route("replace", dst=target, oif=vxlan, proto=_STATIC, **via)
        gone = sorted(have.keys() - want.keys())
        stale += [(route.route, {"dst": target, "oif": vxlan}) for target in gone]
        # Without VXLAN the way out would be the route to everybody, for what is meant for other
        # hosts' endpoints. Not refused: what is sent again finds VXLAN made anew.
        guard = {"type": "blackhole", "priority": _LAST}
        ranges = {target for target, gateway in want.items() if gateway is None}
        for target in ranges - guarded:
            route.route("add", dst=target, proto=_STATIC, **guard)
        return stale + [(route.route, {"dst": target, **guard}) for target in guarded - ranges]


def _ignore(number: int, function: Callable[..., object], *arguments: str, **options: Any) -> None:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415  # as in flows.py

    try:
        function(*arguments, **options)
    except NetlinkError as error:
        if error.code != number:
            raise
