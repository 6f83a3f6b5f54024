# SPDX-License-Identifier: Apache-2.0
"""The host's own part: its table ``slimnet-<instance>``.

It says which generation is in force, lets the routers' connections out under
the host's address, lets VXLAN in from the hosts of the cluster alone, and brings
what comes to published ports to the routers. With no router there is nothing in
it that runs.

Of its sets, what is the same before and after is not touched: the kernel does not
keep what a packet finds in a set to the rules that it met (:mod:`.ruleset`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import frozen
from netaddr import IPAddress

from slimnet.fallback import nft
from slimnet.fallback.door import Door
from slimnet.fallback.router import HOST, forwarding, uplink_address, uplink_name
from slimnet.linux import netns, sysctl
from slimnet.model import Protocol, Reason
from slimnet.rtnetlink import Rtnetlink

__all__ = ["Outside", "Stamp"]

#: In no network of anybody's (RFC 5737): what leads there is the default route.
_SOMEWHERE = IPAddress("192.0.2.1")
#: ICMP errors (RFC 792).
_ERRORS = "destination-unreachable, time-exceeded, parameter-problem"
#: The chains of published ports; the last is jumped to.
_PUBLISHING = ("come", "sent_here", "from_here", "published")


@frozen
class Stamp:
    """What the table says of the data path: the layout it was made in, its generation,
    and the id of the store that it serves."""

    abi: int
    generation: int
    cluster: str = ""

    def lines(self) -> list[str]:
        """As text; an older process reads the first line only."""
        of = [f"cluster {self.cluster}"] if self.cluster else []
        return [f"abi {self.abi} generation {self.generation}", *of]

    @classmethod
    def parse(cls, lines: list[str]) -> Stamp:
        """The inverse of :meth:`lines`."""
        words = " ".join(lines).split()
        said = dict(zip(words[::2], words[1::2], strict=True))
        return cls(int(said["abi"]), int(said["generation"]), said.get("cluster", ""))


class Outside:
    """The host's table of one instance.

    Args:
        instance: whose it is.
        host: path of the host's network namespace.
        interface: the underlay interface.
        address: of the underlay, where alone VXLAN is heard.
        port: UDP port of VXLAN.
        apart: whether TCP that comes to published ports over the underlay is brought by others:
            what is left of it was refused.
    """

    def __init__(
        self,
        instance: str,
        host: Path,
        interface: str,
        address: IPAddress,
        port: int,
        *,
        apart: bool = False,
    ) -> None:
        self._name = f"slimnet-{instance}"
        self._host = host
        self._interface = interface
        self._address = address
        self._port = port
        self._apart = apart
        self._seen: int | None = None  # nft.changes() at the last look
        self._led: tuple[int, int] | None = None  # the ways out that it was opened for
        self._ways: set[str] = set()  # the interfaces that have to forward
        self._forwarding: set[str] = set()  # those of them that did not before
        self._doors: list[Door] | None = None  # what is published; before the first: unknown

    def stamp(self) -> Stamp | None:
        """What the table says, ``None`` where there is none."""
        found = nft.listing(f"chain ip {self._name} about", self._host)
        lines = [value["comment"] for kind, value in found if kind == "rule"]
        return Stamp.parse(lines) if lines else None

    def write(self, stamp: Stamp) -> None:
        """State what is in force."""
        rules = " ".join(f'return comment "{line}";' for line in stamp.lines())
        nft.apply(
            f"""
            table ip {self._name} {{
                chain about {{ }}
                set peers {{ type ipv4_addr; }}
            }}
            flush chain ip {self._name} about
            table ip {self._name} {{ chain about {{ {rules} }}; }}
            """,
            self._host,
        )

    def kept(self) -> dict[Reason, int]:
        """What routers that are gone had counted."""
        return {
            Reason(int(value["name"].removeprefix("reason_"))): int(value["packets"])
            for kind, value in nft.listing(f"counters table ip {self._name}", self._host)
            if kind == "counter"
        }

    def keep(self, counts: Mapping[Reason, int]) -> None:
        """Add what a router has counted that is about to go."""
        total = self.kept()
        table = f"ip {self._name}"
        lines = [
            f"delete counter {table} reason_{reason:d}" for reason in counts if reason in total
        ]
        lines += [
            f"add counter {table} reason_{reason:d} "
            f"{{ packets {total.get(reason, 0) + count} bytes 0; }}"
            for reason, count in counts.items()
        ]
        if lines:
            nft.apply("\n".join(lines), self._host)

    def admit(self, hosts: Iterable[IPAddress]) -> None:
        """Let VXLAN in from these hosts, and from no others."""
        lines = self._changes("peers", map(str, hosts))
        if lines:
            nft.apply("\n".join(lines), self._host)

    def _changes(self, name: str, wanted: Iterable[str]) -> list[str]:
        """The commands after which a set holds this and nothing else."""
        now, then = set(self._elements(name)), set(wanted)
        return [
            f"{verb} element ip {self._name} {name} {{ {_listed(elements)} }}"
            for verb, elements in (("add", then - now), ("delete", now - then))
            if elements
        ]

    def _elements(self, name: str) -> list[str]:
        for kind, value in nft.listing(f"set ip {self._name} {name}", self._host):
            if kind == "set":
                return [str(element) for element in value.get("elem", ())]
        return []

    def open(self, networks: Iterable[int]) -> None:
        """Let the routers of these networks out, and no others.

        Replies are forwarded only where the interface that they come in by is
        set to forward. The set ``forwarding`` holds those that were not, to
        set back, and nothing else is forwarded from them.
        """
        vnis = sorted(networks)
        # Both: somebody may have removed the table, or it is another process's.
        changed = set(self._elements("forwarding")) | self._forwarding
        self._ways = self._ways_out() if vnis else set()
        changed |= {name for name in self._ways if not _forwards(name, self._host)}
        self._forwarding = changed if vnis else set()
        if vnis:
            # Written first: a crash leaves no change unrecorded, and nothing is forwarded
            # without these rules.
            self._rules(vnis, sorted(changed))
        with netns.enter(self._host):
            for name in changed:
                with contextlib.suppress(FileNotFoundError):  # the interface has gone
                    sysctl.write(forwarding(name), 1 if vnis else 0)
        if not vnis:
            made = self._made()
            table = f"ip {self._name}"
            lines = [f"flush chain {table} {name}" for kind, name in made if kind == "chain"]
            lines += [f"delete {kind} {table} {name}" for kind, name in made]
            nft.apply("\n".join(lines), self._host)
            self._doors = []

    def publish(self, doors: list[Door]) -> None:
        """Bring what comes to these ports of the host to the routers, from wherever it comes, the
        host itself included; and nothing else."""
        if doors == self._doors:
            return
        table = f"ip {self._name}"
        emptied = "\n".join(f"flush chain {table} {name}" for name in _PUBLISHING)
        refused = (
            f'iifname "{self._interface}" ip daddr {self._address} meta l4proto tcp return'
            if self._apart
            else ""
        )
        if doors:
            script = f"""
                table {table} {{
                    set ours {{ type ifname; }}
                    chain published {{ }}
                    chain come {{ type nat hook prerouting priority dstnat; }}
                    chain sent_here {{ type nat hook output priority -100; }}
                    chain from_here {{ type nat hook postrouting priority srcnat; }}
                }}
                {emptied}
                table {table} {{
                    # Above all addresses that a host may have are a data path's own
                    # (slimnet/inner.h).
                    chain published {{
                        fib daddr type != local return
                        ip daddr 240.0.0.0/4 return
                        {_brought(doors)}
                    }}
                    chain come {{
                        {refused}
                        jump published
                    }}
                    chain sent_here {{ jump published; }}
                    # From the host's own loopback it comes under an address that can be answered.
                    chain from_here {{
                        oifname @ours ip saddr 127.0.0.0/8 snat ip to {self._address}
                    }}
                }}
            """
            nft.apply(script, self._host)
        elif {name for _, name in self._made()} & {*_PUBLISHING}:
            removed = "\n".join(f"delete chain {table} {name}" for name in _PUBLISHING)
            nft.apply(f"{emptied}\n{removed}", self._host)
        self._doors = doors

    def mend(self, stamp: Stamp, hosts: Iterable[IPAddress], networks: Iterable[int]) -> list[str]:
        """Write the table again where somebody has changed it (``nft flush ruleset`` is how
        firewalls are loaded), and forward where somebody has stopped that. The calling
        thread is in the host's namespace; a look at what has not changed takes some 0.2 ms.

        Args:
            stamp: as of :meth:`write`.
            hosts: as of :meth:`admit`.
            networks: as of :meth:`open`.

        Returns:
            What was changed.
        """
        found = []
        vnis, hosts = sorted(networks), set(hosts)
        seen = nft.changes()
        if seen != self._seen and not self._is_whole(stamp, hosts, vnis):
            self.write(stamp)
            self.admit(hosts)
            self.open(vnis)
            doors, self._doors = self._doors or [], None
            self.publish(doors)
            found.append(f"nftables table {self._name}")
        self._seen = seen  # our own changes are looked at once, the next time
        if vnis:
            with Rtnetlink() as route:
                link = route.link(self._interface)
                led = (link.index if link else 0, route.outgoing(_SOMEWHERE))
            stopped = [name for name in self._ways if not _forwards(name, self._host)]
            if led != self._led or stopped:
                self.open(vnis)
                self._led = led
            found += [forwarding(name) for name in stopped]
        return found

    def _is_whole(self, stamp: Stamp, hosts: set[IPAddress], vnis: list[int]) -> bool:
        lines, peers, chains = [], set(), set()
        for kind, value in nft.listing(f"table ip {self._name}", self._host):
            if kind == "rule":
                chains.add(value["chain"])
                if value["chain"] == "about":
                    lines.append(value["comment"])
            elif kind == "set" and value["name"] == "peers":
                peers = {IPAddress(each) for each in value.get("elem", ())}
        wanted = {"about", "early", "sent", "forward", "out"}
        wanted |= {*_PUBLISHING} if self._doors else set()
        return lines == stamp.lines() and peers == hosts and (not vnis or chains == wanted)

    def _rules(self, vnis: list[int], changed: list[str]) -> None:
        table = f"ip {self._name}"
        guard = ""
        # Where the host forwards on all devices already, it is a router with rules of its
        # own, and this guard would drop what it forwards.
        if changed and not _forwards("all", self._host):
            guard = "iifname @forwarding ip daddr != @near drop"
        elements = [
            *self._changes("near", (str(uplink_address(vni)) for vni in vnis)),
            *self._changes("ours", map(uplink_name, vnis)),
            *self._changes("forwarding", changed),
        ]
        nft.apply(
            f"""
            table {table} {{
                chain early {{ type filter hook prerouting priority raw; }}
                chain sent {{ type filter hook output priority raw; }}
                chain forward {{ type filter hook forward priority filter; }}
                chain out {{ type nat hook postrouting priority srcnat; }}
                set near {{ type ipv4_addr; }}
                set ours {{ type ifname; }}
                set forwarding {{ type ifname; }}
            }}
            {chr(10).join(elements)}
            flush chain {table} early
            flush chain {table} sent
            flush chain {table} forward
            flush chain {table} out
            table {table} {{
                # The tunnels' own packets are no connections. VXLAN proves
                # nothing, so at least it must come from where an endpoint is, and to the
                # address by which no endpoint of any host may send it. What is for all on a
                # link of the host is for the host too, and policy knows no such address.
                chain early {{
                    iifname @ours fib daddr type {{ broadcast, multicast }} drop
                    udp dport {self._port} ip saddr @peers ip daddr {self._address} notrack accept
                    udp dport {self._port} fib daddr type local drop
                }}
                # The host's own ICMP errors come from its address otherwise, which is no business
                # of an endpoint.
                chain sent {{
                    udp dport {self._port} notrack
                    oifname @ours icmp type {{ {_ERRORS} }} ip saddr set {HOST}
                }}
                chain forward {{
                    ct state established accept
                    iifname != @ours ip daddr @near ct status dnat accept
                    ip daddr @near ct state != related drop
                    iifname @ours oifname @ours drop
                    {guard}
                }}
                chain out {{ ip saddr @near masquerade; }}
            }}
            """,
            self._host,
        )

    def _made(self) -> list[tuple[str, str]]:
        return [
            (kind, value["name"])
            for kind, value in nft.listing(f"table ip {self._name}", self._host)
            if kind in ("chain", "set") and value["name"] not in ("about", "peers")
        ]

    def _ways_out(self) -> set[str]:
        """The interfaces by which a connection to the outside may leave."""
        with netns.netlink(self._host) as route:
            ways = {entry.get_attr("RTA_OIF") for entry in route.get_default_routes(family=2)}
            names = {
                str(route.get_links(index)[0].get_attr("IFLA_IFNAME"))
                for index in ways
                if index is not None
            }
        return names | {self._interface}

    def remove(self) -> None:
        """Remove the table; removing what is not there is no error."""
        if nft.listing(f"table ip {self._name}", self._host, terse=True):
            self.open(())
            nft.apply(f"delete table ip {self._name}", self._host)


def _brought(doors: Iterable[Door]) -> str:
    """The rules that translate, those for one address of the host first."""
    rules = []
    for protocol, some in itertools.product((Protocol.TCP, Protocol.UDP), (True, False)):
        port = f"{protocol.name.lower()} dport"
        to = [
            f"{f'{door.address} . ' if some else ''}{door.port} :"
            f" {uplink_address(door.vni)} . {door.entry}"
            for door in doors
            if door.protocol is protocol and (door.address is not None) is some
        ]
        if to:
            what = f"ip daddr . {port}" if some else port
            rules.append(f"dnat ip to {what} map {{ {', '.join(to)} }}")
    return "\n".join(rules)


def _listed(elements: Iterable[str]) -> str:
    """Quoted, since the name of an interface need not look like one word."""
    return ", ".join(f'"{element}"' for element in sorted(elements))


def _forwards(interface: str, host: Path) -> bool:
    """Whether it does; one that is gone is not to be changed."""
    with netns.enter(host):
        name = forwarding(interface)
        return not sysctl.exists(name) or sysctl.read(name) != "0"
