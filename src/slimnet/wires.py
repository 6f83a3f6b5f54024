# SPDX-License-Identifier: Apache-2.0
"""By which wire two hosts carry a connection: decided here, for the tables, for
explanations and for ``ping``."""

from __future__ import annotations

from collections.abc import Iterable

from slimnet.model import Host, Protocol, Wire

__all__ = ["ACCELERATED", "apart", "choose", "refused", "spoken"]

#: Those that carry connections and not packets, the better one first. They are of no
#: use between hosts with different keys.
ACCELERATED = (Wire.SYN, Wire.ANNOUNCE)


def choose(one: Host, other: Host, protocol: Protocol = Protocol.TCP) -> Wire | None:
    """The wire that carries a connection from one host to another; ``None`` where both
    speak none in the same version. Only the overlay of packets carries what is not TCP."""
    common = {each.wire for each in one.wires & other.wires}
    usable = (*ACCELERATED, Wire.VXLAN) if protocol is Protocol.TCP else (Wire.VXLAN,)
    return next((wire for wire in usable if wire in common), None)


def refused(one: Host, other: Host) -> bool:
    """Whether each refuses what the other sends by the wire that is chosen, since it has
    another key."""
    return choose(one, other) in ACCELERATED and one.differs_in_key(other)


def spoken(host: Host) -> str:
    """``h1 (ebpf: syn/1)``: what a host is able to, in words."""
    wires = ", ".join(sorted(map(str, host.wires))) or "none"
    return f"{host.name} ({host.backend}: {wires})"


def apart(here: Host, hosts: Iterable[Host]) -> str:
    """What to say of the hosts with which one has no wire in common; empty where there are
    none."""
    others = [each for each in hosts if each.name != here.name and choose(here, each) is None]
    if not others:
        return ""
    return (
        f"{spoken(here)} has no wire in common with {', '.join(map(spoken, others))}:"
        " no connection between them is possible; take one backend, of one version, for all"
    )
