# SPDX-License-Identifier: Apache-2.0
"""What the host's own firewall does to a packet, by its rules (nft(8), "RULES").

The kernel has no call that says so. Here a ruleset is read as the kernel would run it, for one
packet. What is not understood (a match that depends on more than is known of the packet) may be
true or not, and only what is dropped either way counts: a firewall is never blamed for a packet
that it might let through.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen
from netaddr import AddrFormatError, IPAddress, IPNetwork

__all__ = ["Packet", "Ruleset"]

_FAMILIES = ("ip", "inet", "netdev")
_IN = ("ingress", "prerouting", "input")
_OUT = ("output", "postrouting", "egress")
#: Numbers of protocols, as rules may have them too.
_NUMBERS = {"tcp": 6, "udp": 17}


@frozen
class Packet:
    """What is known of an IPv4 packet.

    Attributes:
        interface: by which it comes or leaves.
        incoming: whether it comes.
        source: address; ``None``: not known.
        destination: likewise.
        protocol: ``tcp`` or ``udp``.
        port: destination port; ``None``: not known.
        source_port: likewise.
        state: of its connection, as conntrack has it: ``new``, ``established``.
    """

    interface: str
    incoming: bool
    source: IPAddress | None
    destination: IPAddress | None
    protocol: str
    port: int | None = None
    source_port: int | None = None
    state: str = "new"


class _End(enum.Enum):
    """What becomes of a packet in a chain."""

    ON = "goes on"
    BACK = "returns"
    PASSED = "accepted here"
    DROPPED = "dropped"
    #: Something that is not known decides.
    OPEN = "open"


@frozen
class Ruleset:
    """The rules of a network namespace.

    Attributes:
        listing: what ``nft -j list ruleset`` has, as (kind, object) pairs.
        but: names of tables that are left out.
    """

    listing: Sequence[tuple[str, Mapping[str, Any]]] = field(hash=False)
    but: frozenset[str] = frozenset()

    def drops(self, packet: Packet) -> str | None:
        """The chain that drops or rejects it, in words; ``None`` where none surely does."""
        hooks = _IN if packet.incoming else _OUT
        chains = [
            value
            for kind, value in self.listing
            if kind == "chain"
            and value.get("hook") in hooks
            and value.get("type") == "filter"
            and value["family"] in _FAMILIES
            and value["table"] not in self.but
            and value.get("dev", packet.interface) == packet.interface
        ]
        for chain in sorted(chains, key=lambda each: (hooks.index(each["hook"]), each["prio"])):
            end = self._run(chain, packet, set())
            if end in (_End.ON, _End.BACK) and chain.get("policy") == "drop":
                end = _End.DROPPED
            if end is _End.DROPPED:
                return f"nftables, table {chain['family']} {chain['table']}, chain {chain['name']}"
        return None

    def _run(self, chain: Mapping[str, Any], packet: Packet, above: set[str]) -> _End:
        if chain["name"] in above:
            return _End.OPEN
        home = (chain["family"], chain["table"])
        #: A rule before may have ended it otherwise.
        maybe = False
        for kind, rule in self.listing:
            if kind != "rule" or (rule["family"], rule["table"]) != home:
                continue
            if rule["chain"] != chain["name"]:
                continue
            holds: bool | None = True
            for expression in rule.get("expr", ()):
                ((name, what),) = expression.items()
                if name == "match":
                    fits = self._fits(home, what, packet)
                    if fits is False:
                        break
                    holds = None if fits is None else holds
                    continue
                end = self._verdict(home, name, what, packet, above | {chain["name"]})
                if end is _End.ON:
                    continue
                if holds is None and end is not _End.DROPPED:
                    maybe = True
                    break
                if holds is None:  # dropped here, or not: the rules behind say
                    break
                return _End.OPEN if maybe and end is _End.DROPPED else end
        return _End.OPEN if maybe else _End.ON

    def _verdict(
        self, home: tuple[str, str], name: str, what: Any, packet: Packet, above: set[str]
    ) -> _End:
        if name == "accept":
            return _End.PASSED
        if name in ("drop", "reject"):
            return _End.DROPPED
        if name == "return":
            return _End.BACK
        if name in ("jump", "goto"):
            for kind, chain in self.listing:
                here = kind == "chain" and (chain["family"], chain["table"]) == home
                if here and chain["name"] == what["target"]:
                    end = self._run(chain, packet, above)
                    if name == "goto" and end in (_End.ON, _End.BACK):
                        return _End.BACK
                    return _End.ON if end is _End.BACK else end
            return _End.OPEN
        if name == "vmap":
            for element in self._elements(home, what["data"]):
                key, verdict = element
                fits = self._equal(home, _value(what["key"], packet), key)
                if fits is None:
                    return _End.OPEN
                if fits:
                    ((verdict_name, target),) = verdict.items()
                    return self._verdict(home, verdict_name, target, packet, above)
            return _End.ON
        if name in ("counter", "log", "comment", "notrack", "meta", "mangle", "ct"):
            return _End.ON
        return _End.OPEN  # a limit, a queue, an extension of iptables

    def _fits(self, home: tuple[str, str], what: Mapping[str, Any], packet: Packet) -> bool | None:
        fits = self._equal(home, _value(what["left"], packet), what["right"])
        if what["op"] in ("==", "in"):
            return fits
        if what["op"] == "!=":
            return None if fits is None else not fits
        return None

    def _equal(self, home: tuple[str, str], have: Any, wanted: Any) -> bool | None:
        """Whether a value of the packet is that of a rule, or one of those."""
        if have is None:
            return None
        if isinstance(wanted, list):
            wanted = {"set": wanted}
        if isinstance(wanted, str) and wanted.startswith("@"):
            return _any(self._equal(home, have, each) for each in self._elements(home, wanted))
        if not isinstance(wanted, Mapping):
            return _same(have, wanted)
        ((kind, value),) = wanted.items()
        if kind == "set":
            return _any(self._equal(home, have, each) for each in value)
        if kind == "elem":
            return self._equal(home, have, value["val"])
        try:
            if kind == "prefix":
                return have in IPNetwork(f"{value['addr']}/{value['len']}")
            if kind == "range":
                first, last = (type(have)(each) for each in value)
                return bool(first <= have <= last)
        except (AddrFormatError, TypeError, ValueError):
            pass
        return None

    def _elements(self, home: tuple[str, str], of: Any) -> Iterable[Any]:
        if isinstance(of, Mapping):
            return of.get("set", ())  # type: ignore[no-any-return]
        for kind, value in self.listing:
            here = kind in ("set", "map") and (value["family"], value["table"]) == home
            if here and value["name"] == str(of).removeprefix("@"):
                return value.get("elem", ())  # type: ignore[no-any-return]
        return ()


def _value(left: Any, packet: Packet) -> Any:
    """What the packet has there; ``None`` where that is not known."""
    if not isinstance(left, Mapping):
        return None
    ((kind, what),) = left.items()
    if kind == "meta":
        wanted = ("iif", "iifname") if packet.incoming else ("oif", "oifname")
        if what["key"] in wanted:
            return packet.interface
        return {"l4proto": packet.protocol, "nfproto": "ipv4", "protocol": "ip"}.get(what["key"])
    if kind == "ct" and what.get("key") == "state":
        return packet.state
    if kind == "payload":
        protocol, key = what.get("protocol"), what.get("field")
        if protocol == "ip":
            return {
                "saddr": packet.source,
                "daddr": packet.destination,
                "protocol": packet.protocol,
            }.get(key)
        if protocol in (packet.protocol, "th"):
            return {"dport": packet.port, "sport": packet.source_port}.get(key)
        if protocol in _NUMBERS or protocol in ("ip6", "icmp", "icmpv6"):
            return ""  # a header that it has not: nothing is equal to it
    return None


def _same(have: Any, wanted: Any) -> bool | None:
    if isinstance(have, IPAddress):
        try:
            return have == IPAddress(wanted)
        except (AddrFormatError, TypeError, ValueError):
            return None
    if isinstance(have, str) and isinstance(wanted, str) and wanted.endswith("*"):
        return have.startswith(wanted[:-1])
    return bool(have == wanted or _NUMBERS.get(have, -1) == wanted)


def _any(each: Iterable[bool | None]) -> bool | None:
    found = list(each)
    if True in found:
        return True
    return None if None in found else False
