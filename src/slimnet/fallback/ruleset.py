# SPDX-License-Identifier: Apache-2.0
"""The compiled tables of one network as nftables rules of its router.

::

    services  a datagram to the address of a service -> s_<id>: to an endpoint behind it
    doors     from outside, to a published port: to the endpoint whose it is
    forward   mark of this generation: accept            (all but a few packets end here)
              reply: accept; neither new nor known: drop
              from outside:      to a published port, or drop
              from an endpoint:  refused already, by a data path's mark: reset
              from an endpoint:  egress  -> e_<subject's identity>
              to an endpoint:    ingress -> i_<subject's identity>
              ct mark := this generation, accept

    e_<identity>   the peer's own entry; host of the cluster: deny; any peer's entry; allow
    i_<identity>   the same without hosts
                   (the order of slim_decide(), kernel/uapi/slimnet/decide.h)

A connection's first packet costs four look-ups, whatever the number of rules;
every other packet costs one. A datagram's first costs one more. A connection that
an earlier generation allowed has that generation's mark, so its next packet from
the opener is decided again; refused, both ends get a reset.

A packet sees one generation whole. The kernel promises less: it fixes which
*rules* a packet meets as it comes to a base chain, but looks into *sets and maps*
as they are at that moment (nft_do_chain() and nft_genmask_cur() of
net/netfilter), so where a transaction replaces both, a packet that is on its way
through the old rules finds nothing in the old maps. Therefore what was made is
never changed. Tables are written beside those in force, under names that begin
with the other of two :data:`SIDES`; one rule, the only one of the base chain,
leads to them; and what it led to before goes when no packet is in it any more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen
from netaddr import IPNetwork

from slimnet import contract
from slimnet.fallback.door import Door, doors
from slimnet.fallback.intervals import flatten
from slimnet.model import Direction, Protocol, Reason
from slimnet.tables import PolicyKey, PolicyRecord, Tables

__all__ = [
    "ENDPOINT",
    "RESET",
    "SIDES",
    "TABLE",
    "Refusal",
    "closed",
    "removal",
    "render",
    "switch",
]

#: The router's table.
TABLE = "slimnet"
#: What the names of one generation's chains, maps and sets begin with, by turns.
SIDES = ("a_", "b_")
#: What the names of the endpoints' devices begin with, and the router's other devices.
ENDPOINT, VXLAN, UPLINK = "ep", "vxlan0", "uplink0"

#: The mark of a connection's first packet that the data path above has refused in the name of
#: the other end, which has heard of it.
RESET = 0x736C7274
#: A connection that was allowed once and is not any more.
_CLOSED = 0xFFFFFFFF
#: In place of a peer's identity: an overlay address that nobody has.
_NOBODY = contract.SLIM_IDENTITY_ANY
_PORTS = 0xFFFF
#: Of the address of a service, not of an endpoint.
_NOBODY_SERVES = frozenset({Reason["NO_BACKEND"], Reason["NO_SERVICE_PORT"]})
_PREFIX = {Direction.EGRESS: "e", Direction.INGRESS: "i"}
#: The protocols that policies name.
_KNOWN = f"{{ {', '.join(str(protocol.value) for protocol in Protocol)} }}"
# In a set's key, five fields are the most that nft 1.0 prints right.
_REASON_BITS, _RULE_BITS = 6, 17


@frozen
class Refusal:
    """What a refused packet's mark says: who refused it and why."""

    protocol: int
    direction: Direction
    reason: Reason
    rule: int

    @property
    def mark(self) -> int:
        """As 32 bits: protocol 8, direction 1, reason 6, rule 17 (0 when it is larger)."""
        rule = self.rule if self.rule < 1 << _RULE_BITS else 0
        return self.protocol << 24 | self.direction << 23 | self.reason << _RULE_BITS | rule

    @classmethod
    def from_mark(cls, mark: int) -> Refusal:
        """The inverse of :attr:`mark`."""
        return cls(
            mark >> 24,
            Direction(mark >> 23 & 1),
            Reason(mark >> _RULE_BITS & (1 << _REASON_BITS) - 1),
            mark & (1 << _RULE_BITS) - 1,
        )


def _refuse(direction: Direction, reason: Reason, rule: int) -> str:
    return f"{_PREFIX[direction]}_deny_{reason:d}_{rule}"


class _Script:
    """The rules of one side as they grow; the chains that answer are made when first named."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.lines: list[str] = []
        self._refusals: set[tuple[Direction, Reason, int]] = set()
        self._allowances: set[Reason] = set()

    def goto(self, direction: Direction, record: PolicyRecord) -> str:
        if record.allow:
            self._allowances.add(record.reason)
            return f"goto {self.side}allow_{record.reason:d}"
        self._refusals.add((direction, record.reason, record.rule))
        return f"goto {self.side}{_refuse(direction, record.reason, record.rule)}"

    def deny(self, direction: Direction, reason: Reason) -> str:
        return self.goto(direction, PolicyRecord(allow=False, reason=reason))

    def chain(self, name: str, *rules: str) -> None:
        self.lines += [f"chain {self.side}{name} {{", *rules, "}"]

    def table(
        self, kind: str, name: str, type_: str, elements: Iterable[str], *, ranges: bool = True
    ) -> None:
        listed = ", ".join(elements)
        body = f"type {type_};" + (" flags interval;" if ranges else "")
        body += f" elements = {{ {listed} }}" if listed else ""
        self.lines.append(f"{kind} {self.side}{name} {{ {body} }}")

    def answers(self) -> list[str]:
        """One chain for each reason to allow and each way to refuse."""
        script = _Script(self.side)
        for reason in sorted(self._allowances):
            script.chain(f"allow_{reason:d}", f"counter name reason_{reason:d}")
        for direction, reason, rule in sorted(self._refusals):
            marks = ", ".join(
                f"{protocol:d} : {Refusal(protocol, direction, reason, rule).mark}"
                for protocol in Protocol
            )
            if reason is Reason["SYN_UNKNOWN"]:
                # The sender's host may have newer tables than this one. Dropped and not
                # refused: the SYN that is sent again finds the newer tables here, too.
                answers = ["drop"]
            elif reason is Reason["NO_ENDPOINT"]:
                answers = ["reject with icmp host-unreachable"]
            else:
                # A reset, though EHOSTUNREACH would say better than ECONNREFUSED that it was not
                # the peer. An ICMP error comes while connect(2) still holds its socket, in
                # whose context a veth delivers the SYN; then the kernel only remembers it
                # (tcp_v4_err()), and the caller hears a second later, of the SYN sent again.
                there = direction is Direction.INGRESS or reason in _NOBODY_SERVES
                answers = [
                    "meta l4proto tcp reject with tcp reset",
                    *(["meta l4proto udp reject with icmp port-unreachable"] if there else ()),
                    "reject with icmp admin-prohibited",
                ]
            script.chain(
                _refuse(direction, reason, rule),
                f"counter name reason_{reason:d}",
                f"meta mark set {Refusal(0, direction, reason, rule).mark}",
                f"meta mark set meta l4proto map {{ {marks} }}",
                "update @refused { ip saddr . th sport . ip daddr . th dport . meta mark }",
                f"ct state established ct mark set {_CLOSED} goto {self.side}closed",
                *answers,
            )
        return script.lines


def _span(network: IPNetwork) -> tuple[int, int]:
    return network.first, network.last


def _dotted(first: int, last: int) -> str:
    ends = (
        ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0)) for number in (first, last)
    )
    return "-".join(dict.fromkeys(ends))


def _ports(
    records: Mapping[PolicyKey, PolicyRecord], default: PolicyRecord | None = None
) -> dict[Protocol, list[tuple[int, int, PolicyRecord]]]:
    """What one subject says to one peer: disjoint port ranges of each protocol, which with
    a default are all ports."""
    result = {}
    for protocol in Protocol:
        # Any protocol is the widest range, a protocol's any port the next: when
        # both span everything, the second must win, so the first is left out.
        whole = [r for k, r in records.items() if k.protocol == protocol and k.port_bits == 0]
        whole = whole or [r for k, r in records.items() if k.protocol is None]
        if not whole and default is not None:
            whole = [default]
        nested = [(0, _PORTS, record) for record in whole]
        for key, record in records.items():
            if key.protocol == protocol and key.port_bits:
                wild = _PORTS >> key.port_bits
                nested.append((key.port & ~wild, key.port | wild, record))
        if protocol is Protocol.ICMP:
            # ICMP has no ports: slim_decide() is asked for port 0, so its record counts.
            nested = [(0, _PORTS, r) for first, last, r in flatten(nested) if first == 0]
        result[protocol] = list(flatten(nested))
    return result


def _subject(
    script: _Script,
    identity: int,
    direction: Direction,
    peers: Mapping[int, Mapping[PolicyKey, PolicyRecord]],
) -> None:
    """The chain and the two maps that decide for one identity and direction."""
    name = f"{_PREFIX[direction]}_{identity}"
    named = [
        f"{peer} . {protocol:d} . {first}-{last} : {script.goto(direction, record)}"
        for peer, records in sorted(peers.items())
        if peer != contract.SLIM_IDENTITY_ANY
        for protocol, ranges in _ports(records).items()
        for first, last, record in ranges
    ]
    rules = []
    # The header's field, and not `meta l4proto`, which nft 1.0.6 turns to the network's byte
    # order where ranges are looked up: Linux 6.12.117 refuses that of a single byte.
    if named:
        script.table("map", f"{name}_named", "mark . inet_proto . inet_service : verdict", named)
        rules.append(f"meta mark . ip protocol . th dport vmap @{script.side}{name}_named")
    if direction is Direction.EGRESS:
        rules.append(f"ip daddr @{script.side}host {script.deny(direction, Reason['HOST_DENY'])}")
    default = PolicyRecord(allow=True, reason=Reason["DEFAULT_ALLOW"])
    anyone = peers.get(contract.SLIM_IDENTITY_ANY)
    if anyone:
        everything = (
            f"{protocol:d} . {first}-{last} : {script.goto(direction, record)}"
            for protocol, ranges in _ports(anyone, default).items()
            for first, last, record in ranges
        )
        kind = "inet_proto . inet_service : verdict"
        script.table("map", f"{name}_any", kind, everything)
        rules.append(f"ip protocol . th dport vmap @{script.side}{name}_any")
        # What that does not answer is nothing that was allowed.
        script.chain(name, *rules, "drop")
    else:
        script.chain(name, *rules, script.goto(direction, default))


def _services(script: _Script, tables: Tables, vni: int) -> None:
    """Who is behind the address of a service, for the first datagram of a flow: conntrack keeps
    to it, and writes the service's address into what comes back. Connections are brought to
    services by the data path that this overlay is beneath."""
    served, unserved, addresses = [], [], set()
    for key, record in sorted(tables.services.items(), key=lambda item: item[1].id):
        if (key.vni, key.address.version) != (vni, 4):
            continue
        addresses.add(str(key.address))
        if key.protocol != Protocol.UDP:
            continue
        slots = [each for each in record.slots if each[0] in tables.endpoints]
        if not slots:
            unserved.append(f"{key.address} . {key.port}")
            continue
        served.append(f"{key.address} . {key.port} : goto {script.side}s_{record.id}")
        # Each has as many slots as its weight says. By the client's address one stays with its
        # endpoint as long as that serves: longer than the affinity's seconds, never shorter.
        choose = "jhash ip saddr" if record.affinity else "numgen random"
        found = [
            f"{_range(first, last)} : {tables.endpoints[endpoint].address} . {port}"
            for first, last, (endpoint, port) in _runs(slots if record.affinity else sorted(slots))
        ]
        script.chain(
            f"s_{record.id}",
            f"meta l4proto udp dnat ip to {choose} mod {len(slots)} map {{ {', '.join(found)} }}",
        )
    kind = "ipv4_addr . inet_service : verdict"
    script.table("map", "service", kind, served, ranges=False)
    script.table("set", "unserved", "ipv4_addr . inet_service", unserved, ranges=False)
    script.table("set", "services", "ipv4_addr", sorted(addresses), ranges=False)
    script.chain("services", f"ip daddr . udp dport vmap @{script.side}service")


def _doors(script: _Script, found: Sequence[Door]) -> None:
    """Whose the ports are that the host brings here; nothing else from outside is for anybody."""
    kind = "inet_proto . inet_service : ipv4_addr . inet_service"
    entries = (
        f"{door.protocol:d} . {door.entry} : {door.endpoint} . {door.target}" for door in found
    )
    script.table("map", "door", kind, entries, ranges=False)
    brought = f"meta l4proto . th dport map @{script.side}door"
    script.chain("doors", f"meta l4proto {{ tcp, udp }} dnat ip to {brought}")
    returns = []
    for protocol in (Protocol.TCP, Protocol.UDP):
        entries = (str(door.entry) for door in found if door.protocol is protocol)
        script.table("set", f"entry_{protocol:d}", "inet_service", entries, ranges=False)
        # Not where it is brought to: a port that is published no more is nobody's, for whoever
        # was brought there, too.
        to = f"ct original proto-dst @{script.side}entry_{protocol:d}"
        returns.append(f"meta l4proto {protocol:d} {to} return")
    script.chain("outside", *returns, "drop")


def _runs(slots: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """The first and the last of each run of slots that are the same endpoint's."""
    first = 0
    for each, run in itertools.groupby(slots):
        length = len(list(run))
        yield first, first + length - 1, each
        first += length


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _decisions(script: _Script, tables: Tables, vni: int, port: int) -> None:
    local = {}
    remote, apart = [], []
    known: list[tuple[int, int, int]] = []
    hosts: list[tuple[int, int, None]] = []
    for (number, network), cidr in tables.cidrs.items():
        if number == vni and network.version == 4:
            known.append((*_span(network), _NOBODY if cidr.overlay else cidr.identity))
            if cidr.host:
                hosts.append((*_span(network), None))
    # Endpoints after ranges: of two intervals that are the same, the later one wins.
    for (number, address), endpoint in tables.addresses.items():
        record = tables.endpoints.get(endpoint)
        if number == vni and record is not None and address.version == 4:
            known.append((int(address), int(address), record.identity))
            if record.local:
                local[address] = record.identity
            else:
                remote.append(str(address))
                if not tables.hears_packets(record):
                    apart.append(str(address))
    script.table(
        "map",
        "peer",
        "ipv4_addr : mark",
        (f"{_dotted(first, last)} : {value}" for first, last, value in flatten(known)),
    )
    script.table("set", "host", "ipv4_addr", (_dotted(a, b) for a, b, _ in flatten(hosts)))
    itself = (f"{address} . {address}" for address in sorted(local))
    script.table("set", "own", "ipv4_addr . ipv4_addr", itself, ranges=False)
    script.table("set", "local", "ipv4_addr", map(str, sorted(local)), ranges=False)
    script.table("set", "remote", "ipv4_addr", remote, ranges=False)
    # Where VXLAN is not heard: what is sent there would be lost without a word.
    script.table("set", "apart", "ipv4_addr", apart, ranges=False)

    subjects = set(local.values())
    policy: dict[tuple[int, Direction], dict[int, dict[PolicyKey, PolicyRecord]]] = {}
    for key, answer in tables.policy.items():
        if key.subject in subjects:
            peers = policy.setdefault((key.subject, key.direction), {})
            peers.setdefault(key.peer, {})[key] = answer
    for identity in sorted(subjects):
        for direction in Direction:
            _subject(script, identity, direction, policy.get((identity, direction), {}))
    for direction, own, other in (
        (Direction.EGRESS, "saddr", "daddr"),
        (Direction.INGRESS, "daddr", "saddr"),
    ):
        prefix = _PREFIX[direction]
        script.table(
            "map",
            f"{prefix}_subject",
            "ipv4_addr : verdict",
            (
                f"{address} : goto {script.side}{prefix}_{local[address]}"
                for address in sorted(local)
            ),
            ranges=False,
        )
        nobody = script.deny(direction, Reason["NO_ENDPOINT"])
        idle = script.deny(Direction.EGRESS, Reason["NO_BACKEND"])
        absent = script.deny(Direction.EGRESS, Reason["NO_SERVICE_PORT"])
        # Masqueraded, what is in such a packet would be any endpoint's of this host (RFC 7348, 7).
        forged = script.deny(Direction.EGRESS, Reason["WIRE_PORT"])
        script.chain(
            "egress" if direction is Direction.EGRESS else "ingress",
            f"meta l4proto != {_KNOWN} " + script.deny(direction, Reason["PROTOCOL"]),
            f"meta mark set {contract.SLIM_IDENTITY_WORLD}",
            f"meta mark set ip {other} map @{script.side}peer",
            *(
                [
                    f"ip daddr . udp dport @{script.side}unserved {idle}",
                    f"meta l4proto udp ip daddr @{script.side}services {absent}",
                ]
                if direction is Direction.EGRESS
                else ()
            ),
            f"meta mark {_NOBODY} {nobody}",
            *(
                [f"ip daddr @{script.side}host udp dport {port} {forged}"]
                if direction is Direction.EGRESS
                else ()
            ),
            f"ip {own} vmap @{script.side}{prefix}_subject",
            nobody,
        )


#: What every router has before it has tables, and keeps: nothing passes.
_BASE = f"""
table ip {TABLE} {{
{"".join(f"counter reason_{reason:d} {{ }}{chr(10)}" for reason in Reason)}
set refused {{
    typeof ip saddr . th sport . ip daddr . th dport . meta mark
    flags dynamic,timeout; timeout 1m; size 4096;
}}
chain forward {{ type filter hook forward priority filter; policy drop; }}
chain input {{ type filter hook input priority filter; policy drop; }}
chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
chain postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
}}
"""


def _beside(script: _Script, forward: Iterable[str]) -> str:
    """The transaction that writes a side that no packet meets yet."""
    script.chain("closed", "meta l4proto tcp reject with tcp reset", "drop")
    script.chain("forward", *forward)
    return _BASE + "\n".join([f"table ip {TABLE} {{", *script.answers(), *script.lines, "}", ""])


def switch(side: str, generation: int) -> str:
    """The transaction that puts a side in force: its generation is the comment."""
    return f"""
    flush chain ip {TABLE} forward
    flush chain ip {TABLE} input
    flush chain ip {TABLE} prerouting
    flush chain ip {TABLE} postrouting
    table ip {TABLE} {{
    chain forward {{ goto {side}forward comment "generation {generation}"; }}
    # Endpoints can reach the router's own addresses, but no service is there: refused.
    chain input {{
        iifname "lo" accept
        meta l4proto tcp reject with tcp reset
        reject
    }}
    chain prerouting {{
        iifname "{ENDPOINT}*" goto {side}services
        iifname "{UPLINK}" goto {side}doors
    }}
    chain postrouting {{
        oifname "{UPLINK}" masquerade
        # To itself, behind a service of its own: it takes no packet that has its own address.
        ip saddr . ip daddr @{side}own masquerade
    }}
    }}
    """


def removal(made: Iterable[tuple[str, str]]) -> str:
    """The commands that remove what no packet meets.

    Args:
        made: (``chain`` or ``map`` or ``set``, name).
    """
    # Rules name maps, and maps name chains.
    ordered = sorted(made, key=lambda item: item[0] == "chain")
    emptied = [f"flush chain ip {TABLE} {name}" for kind, name in ordered if kind == "chain"]
    return "\n".join([*emptied, *(f"delete {kind} ip {TABLE} {name}" for kind, name in ordered)])


def closed(side: str) -> str:
    """The script of a side that refuses every packet, for before the first tables."""
    script = _Script(side)
    _services(script, Tables(1), 0)
    _doors(script, ())
    script.table("set", "own", "ipv4_addr . ipv4_addr", (), ranges=False)
    return _beside(script, [script.deny(Direction.EGRESS, Reason["NO_TABLES"])])


def render(
    tables: Tables,
    vni: int,
    side: str,
    port: int,
    *,
    serves: bool = False,
    publishes: bool = False,
) -> str:
    """The script of a side that holds ``tables`` for one network.

    Args:
        tables: of this host.
        vni: the network's.
        side: of :data:`SIDES`, where nothing is.
        port: UDP port of VXLAN.
        serves: whether datagrams come to services.
        publishes: whether what is for published ports comes from outside.
    """
    script = _Script(side)
    _decisions(script, tables, vni, port)
    _services(script, tables if serves else Tables(1), vni)
    _doors(script, [door for door in doors(tables) if door.vni == vni] if publishes else ())
    mark = tables.generation % (_CLOSED - 1) + 1
    stranger = script.deny(Direction.INGRESS, Reason["SYN_UNKNOWN"])
    absent = script.deny(Direction.EGRESS, Reason["NO_ENDPOINT"])
    unreachable = script.deny(Direction.EGRESS, Reason["UNREACHABLE"])
    return _beside(
        script,
        [
            f"ct mark vmap {{ {mark} : accept, {_CLOSED} : goto {side}closed }}",
            "ct direction reply accept",
            "ct state related accept",
            # Of other protocols what conntrack has not made out is refused as all of them is.
            f"ct state invalid meta l4proto {_KNOWN} drop",
            # Of its own device: from elsewhere its own address is a stranger's.
            f'iifname "{ENDPOINT}*" ip saddr . ip daddr @{side}own ct mark set {mark} accept',
            f'iifname "{ENDPOINT}*" meta mark {RESET} meta l4proto tcp reject with tcp reset',
            f'iifname "{ENDPOINT}*" jump {side}egress',
            # Policy first, as slim_way() has it: what that refuses is not to be told otherwise.
            f'iifname "{ENDPOINT}*" ip daddr @{side}apart {unreachable}',
            # An endpoint that is this host's and not attached has no device of its own; without
            # this rule the packet would leave by VXLAN again.
            f'oifname "{VXLAN}" ip daddr @{side}local {absent}',
            f'iifname "{UPLINK}" jump {side}outside',
            f'iifname "{VXLAN}" ip saddr != @{side}remote {stranger}',
            f'oifname "{ENDPOINT}*" jump {side}ingress',
            f'iifname != "{ENDPOINT}*" oifname != "{ENDPOINT}*" drop',
            f"ct mark set {mark} accept",
        ],
    )
