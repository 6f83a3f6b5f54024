# SPDX-License-Identifier: Apache-2.0
"""What on this host stands between it and another one: its own firewall, the kernel's reverse path
filter (networking/ip-sysctl.rst, ``rp_filter``), and a route that sends from another address.

Nothing is sent for that. What is not understood is no obstacle.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from attrs import frozen
from netaddr import IPAddress

from slimnet.fallback import nft
from slimnet.linux import sysctl
from slimnet.linux.firewall import Packet, Ruleset
from slimnet.local import interface_addresses, interface_ranges
from slimnet.model import Opening, Wire
from slimnet.rtnetlink import Rtnetlink

__all__ = ["Obstacle", "firewall", "obstacles"]

_STRICT = 1
#: Of a range so many ports are tried: a firewall names ranges, and not each second port.
_TRIED = 100


@frozen
class Obstacle:
    """One thing that stands in the way.

    Attributes:
        text: what, in one line.
        remedy: what to do about it.
    """

    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}"


def firewall() -> Ruleset:
    """The host's own rules, in the calling thread's network namespace; not slimnet's.

    Raises:
        BackendError: libnftables is not there or refuses.
    """
    listing = nft.listing("ruleset")
    own = {
        value["table"]
        for kind, value in listing
        if kind == "chain" and value["table"].partition("-")[0] == "slimnet"
    }
    return Ruleset(listing, frozenset(own))


def obstacles(
    rules: Ruleset,
    interface: str,
    address: IPAddress,
    peer: IPAddress | None,
    wire: Wire,
    openings: Sequence[Opening],
) -> list[Obstacle]:
    """What stands between this host and another one, in the calling thread's network namespace.

    Args:
        rules: of :func:`firewall`.
        interface: of the underlay.
        address: of this host.
        peer: the other one's; ``None``: anybody.
        wire: by which they talk.
        openings: where this host hears others, and others hear it, on that wire.
    """
    towards = _neighbour(interface, address) if peer is None else peer
    found = [] if towards is None else list(_routes(interface, address, towards, wire))
    for opening in openings:
        found += _dropped(rules, interface, address, peer, opening)
    return found


def _neighbour(interface: str, address: IPAddress) -> IPAddress | None:
    """Another address of the interface's subnet, which a host may have that is not known yet."""
    own = {each for _, each in interface_addresses()}
    for cidr, name in interface_ranges().items():
        if name == interface and address in cidr:
            return next((each for each in cidr.iter_hosts() if each not in own), None)
    return None


def _routes(interface: str, address: IPAddress, peer: IPAddress, wire: Wire) -> Iterator[Obstacle]:
    with Rtnetlink() as route:
        way = route.way(peer)
    if way is None:
        yield Obstacle(f"no route to {peer}", "add one by the underlay interface")
        return
    index, source = way
    settings = [f"net/ipv4/conf/{name}/rp_filter" for name in ("all", interface)]
    # The kernel takes the larger of the two.
    strict = max(int(sysctl.read(name)) for name in settings if sysctl.exists(name)) == _STRICT
    leaves = socket.if_indextoname(index) if index else ""
    if strict and leaves != interface:
        yield Obstacle(
            f"rp_filter=1 drops what comes from {peer} by {interface}, for the route back is by"
            f" {leaves or 'none'}",
            f"sysctl -w net.ipv4.conf.{interface}.rp_filter=2, or mend the route",
        )
    if wire is Wire.SYN and source not in (None, address):
        yield Obstacle(
            f"connections to {peer} leave with the source {source}, not with this host's {address}",
            f"say `src {address}` in that route (ip route change)",
        )


def _dropped(
    rules: Ruleset, interface: str, address: IPAddress, peer: IPAddress | None, opening: Opening
) -> Iterator[Obstacle]:
    ports = opening.ports
    tried = sorted({*ports[:: max(1, len(ports) // _TRIED)], ports[-1]})
    for incoming in (True, False):
        source, destination = (peer, address) if incoming else (address, peer)
        whose = f"{'from' if incoming else 'to'} {peer or 'other hosts'}"
        for answers in (False, True) if opening.protocol == "tcp" else (False,):
            dropped: dict[int, str] = {}
            for port in tried:
                chain = rules.drops(
                    Packet(
                        interface,
                        incoming,
                        source,
                        destination,
                        opening.protocol,
                        port=None if answers else port,
                        source_port=port if answers else None,
                        state="established" if answers else "new",
                    )
                )
                if chain is not None:
                    dropped[port] = chain
            if not dropped:
                continue
            chain = next(iter(dropped.values()))
            what = str(opening) if len(dropped) == len(tried) else f"some of {opening}"
            if answers:
                text = f"the firewall ({chain}) drops answers {whose} of connections to {what}"
                yield Obstacle(text, "accept `ct state established`")
            else:
                text = f"the firewall ({chain}) drops {what} {whose}"
                yield Obstacle(text, f"let {opening} {'in' if incoming else 'out'}")
