# SPDX-License-Identifier: Apache-2.0
"""The conformance cases of ClusterNetworkPolicy (v1alpha2): 24 tests, 92 sub-cases.

Four namespaces, the houses, of two endpoints each. Most tests have one shape: a subject
house, one house that it reaches on everything or on nothing, one to which a port is
denied, and one to which nothing but a port is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from cases.case import Case, Probe, Reach, Step, World

HOUSES = {
    "gryffindor": "harry-potter",
    "slytherin": "draco-malfoy",
    "hufflepuff": "cedric-diggory",
    "ravenclaw": "luna-lovegood",
}
LABEL = "conformance-house"
WORLD = World(
    namespaces={house: {LABEL: house} for house in HOUSES},
    endpoints={
        f"{house}/{name}-{number}": {LABEL: house}
        for house, name in HOUSES.items()
        for number in (0, 1)
    },
    ports={"web": ("tcp", 80), "dns": ("udp", 53)},
)
ALL = Reach.of(WORLD)
TO_HOSTS = Reach.of(WORLD, hosts=True)
#: The two ports of each protocol that the originals listen on.
PORTS = {"tcp": (80, 8080), "udp": (53, 5353), "sctp": (9003, 9005)}
SPOKEN = {"tcp": "TCP", "udp": "UDP", "sctp": "SCTP"}


def by_name(house: str) -> dict[str, Any]:
    """A house by the label that every namespace has."""
    return {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": house}}}


def by_label(house: str) -> dict[str, Any]:
    """A house by labels of namespace and endpoints."""
    selector = {"matchLabels": {LABEL: house}}
    return {"pods": {"namespaceSelector": selector, "podSelector": selector}}


def ports(*numbers: tuple[str, int]) -> list[dict[str, Any]]:
    return [{kind: {"destinationPort": {"number": number}}} for kind, number in numbers]


def policy(name: str, tier: str, priority: int, subject: Any, **rules: Any) -> dict[str, Any]:
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": tier, "priority": priority, "subject": subject, **rules},
    }


@frozen
class Gress:
    """Rules of the common shape for one direction.

    Attributes:
        direction: "ingress" or "egress".
        subject: whose policy it is.
        whole: the house that is allowed, denied and passed whole, in that order.
        some: the house to which ``denied`` ports are denied, then passed.
        only: the house to which only ``allowed`` ports are allowed.
        denied: protocol to port.
        allowed: protocol to port.
    """

    direction: str
    subject: str
    whole: str
    some: str
    only: str
    denied: Mapping[str, int]
    allowed: Mapping[str, int]

    def rules(self, *, passes: bool, order: str) -> list[dict[str, Any]]:
        """All rules; ``order`` ("Accept", "Deny", "Pass") is what comes first for ``whole``,
        and "pass-port" lets passing come first for ``some`` too."""
        first = "Pass" if order == "pass-port" else order
        actions = [first, *(word for word in ("Accept", "Deny", "Pass") if word != first)]
        rules = [self._rule(word, self.whole) for word in actions if passes or word != "Pass"]
        on = ports(*self.denied.items())
        both = [self._rule("Deny", self.some, on)]
        if passes:
            both.append(self._rule("Pass", self.some, on))
        rules += reversed(both) if order == "pass-port" else both
        rules.append(self._rule("Accept", self.only, ports(*self.allowed.items())))
        rules.append(self._rule("Deny", self.only))
        return rules

    def _rule(self, action: str, house: str, on: Any = None) -> dict[str, Any]:
        peers = "to" if self.direction == "egress" else "from"
        rule = {"name": f"{action}-{house}", "action": action, peers: [by_name(house)]}
        return rule | ({} if on is None else {"protocols": on})

    def judge(self, reach: Reach, protocol: str, port: int, order: str) -> Reach:
        """What these rules deny of a table."""
        denied = [self.whole] if order == "Deny" else []
        if order != "pass-port" and self.denied.get(protocol) == port:
            denied.append(self.some)
        if self.allowed.get(protocol) != port:
            denied.append(self.only)
        for house in denied:
            ends = (f"{self.subject}/*", f"{house}/*")
            reach = reach.deny(*(ends if self.direction == "egress" else reversed(ends)))
        return reach


def probes(gresses: tuple[Gress, ...], protocols: tuple[str, ...], order: str) -> list[Probe]:
    found = []
    for protocol in protocols:
        for port in PORTS[protocol]:
            reach = ALL
            for gress in gresses:
                reach = gress.judge(reach, protocol, port, order)
            found.append(reach.on(protocol, port))
    return found


def ordered(
    title: str,
    tier: str,
    priority: int,
    gresses: tuple[Gress, ...],
    protocols: tuple[str, ...],
    words: tuple[str, str, str],
) -> Case:
    """The common shape: six sub-cases in the Admin tier, four (no Pass) in the Baseline tier.

    The originals reorder one policy's rules from sub-case to sub-case, as is done here,
    and ask about one house; the tables hold all of them.
    """
    passes = tier == "Admin"
    direction, across, at_port = words
    subject = by_name(gresses[0].subject)
    steps = []
    for word, order, place in (
        ("allow", "Accept", across),
        ("allow", "Accept", at_port),
        ("deny", "Deny", across),
        ("deny", "Deny", at_port),
        ("pass", "Pass", across),
        ("pass", "pass-port", at_port),
    )[: 6 if passes else 4]:
        rules = {gress.direction: gress.rules(passes=passes, order=order) for gress in gresses}
        manifest = policy(title.lower(), tier, priority, subject, **rules)
        found = probes(gresses, protocols, order)
        steps.append(Step(f"{word}-{direction} {place}", [manifest], found))
    return Case(f"CNP{tier}Tier{title}", WORLD, steps)


def one_protocol(tier: str, direction: str, protocol: str) -> Case:
    """EgressTCP and its like."""
    low, high = PORTS[protocol]
    houses = {
        "tcp": ("gryffindor", "ravenclaw", "slytherin", "hufflepuff"),
        "udp": ("hufflepuff", "ravenclaw", "slytherin", "gryffindor"),
        "sctp": ("ravenclaw", "gryffindor", "slytherin", "hufflepuff"),
    }[protocol]
    denied = {protocol: high if protocol == "udp" else low}
    allowed = {protocol: high if (protocol, direction) == ("tcp", "egress") else low}
    priority = {"tcp": 3, "udp": 4, "sctp": 5}[protocol] + 3 * (direction == "egress")
    return ordered(
        f"{direction.title()}{SPOKEN[protocol]}",
        tier,
        priority if tier == "Admin" else 10,
        (Gress(direction, *houses, denied, allowed),),
        (protocol,),
        (
            direction,
            f"for {SPOKEN[protocol]} protocol; ensure rule ordering is respected",
            f"for {SPOKEN[protocol]} protocol at the specified port",
        ),
    )


def gress_rules(tier: str) -> Case:
    """Both directions and all protocols in one policy."""
    houses = ("gryffindor", "ravenclaw", "slytherin", "hufflepuff")
    denied = {"tcp": 80, "udp": 53, "sctp": 9003}
    return ordered(
        "Gress",
        tier,
        15 if tier == "Admin" else 10,
        (
            Gress("egress", *houses, denied, {"tcp": 8080, "udp": 5353, "sctp": 9003}),
            Gress("ingress", *houses, denied, {"tcp": 80, "udp": 5353, "sctp": 9003}),
        ),
        ("tcp", "udp", "sctp"),
        (
            "gress",
            "across different protocols",
            "across different protocols at the specified ports",
        ),
    )


def named_port(tier: str, direction: str, protocol: str) -> Case:
    """The common shape again, its one allowed port by name."""
    base = one_protocol(tier, direction, protocol).steps[0]
    manifest = dict(base.policies[0])
    spec = dict(manifest["spec"])
    rules = [dict(rule) for rule in spec[direction]]
    (index,) = (number for number, rule in enumerate(rules) if _is_only(rule))
    rules[index]["protocols"] = [{"destinationNamedPort": "web" if protocol == "tcp" else "dns"}]
    spec[direction] = rules
    manifest["spec"] = spec
    gress = _shape(direction, protocol, {protocol: PORTS[protocol][0]})
    return Case(
        f"CNP{tier}Tier{direction.title()}NamedPort",
        WORLD,
        [
            Step(
                f"allow-{direction} for named port",
                [manifest],
                probes((gress,), (protocol,), "Accept"),
            )
        ],
    )


def _is_only(rule: Mapping[str, Any]) -> bool:
    return rule["action"] == "Accept" and "protocols" in rule


def _shape(direction: str, protocol: str, allowed: Mapping[str, int]) -> Gress:
    subject, only = (
        ("gryffindor", "hufflepuff") if protocol == "tcp" else ("hufflepuff", "gryffindor")
    )
    low, high = PORTS[protocol]
    denied = {protocol: high if protocol == "udp" else low}
    return Gress(direction, subject, "ravenclaw", "slytherin", only, denied, allowed)


NODES = {"nodes": {"matchLabels": {"kubernetes.io/os": "linux"}}}
INTERNET = {"networks": ["0.0.0.0/0", "::/0"]}
#: What the originals listen on in the hosts' own network.
HOST_PORTS = (36363, 36364, 34345, 34346, 37373)


def node_peers(tier: str) -> Case:
    """Hosts are reached where a rule names them, and not by a range that they are in."""
    tcp, other_tcp, udp, other_udp, sctp = HOST_PORTS
    admin = tier == "Admin"
    accept = ports(("tcp", tcp))
    if not admin:
        accept = [{"tcp": {"destinationPort": {"range": {"start": tcp, "end": other_tcp}}}}]
    rules = [{"name": "allow-nodes", "action": "Accept", "to": [NODES], "protocols": accept}]
    if admin:
        rules.append(
            {
                "name": "pass-nodes",
                "action": "Pass",
                "to": [NODES],
                "protocols": ports(("udp", udp)),
            }
        )
    denied = [by_label("slytherin")] if admin else []
    rules.append({"name": "deny-rest", "action": "Deny", "to": [*denied, NODES, INTERNET]})
    subject = by_label("gryffindor") if admin else by_name("gryffindor")
    manifest = policy("node-and-cidr", tier, 75 if admin else 10, subject, egress=rules)
    # Whom no rule allows a host, slimnet denies it, where Kubernetes would not.
    nobody = TO_HOSTS.deny("*", "*")
    allowed = nobody.allow("gryffindor/*", "*")
    to_all = "gryffindor/*"
    steps = [
        Step(
            "allow-egress rule policy for egress-node-peer",
            [manifest],
            [allowed.on("tcp", tcp), *([] if admin else [allowed.on("tcp", other_tcp)])],
        )
    ]
    if admin:
        steps.append(
            Step(
                "pass-egress rule policy for egress-node-peer",
                [manifest],
                [allowed.on("udp", udp)],
            )
        )
    steps.append(
        Step(
            "deny-egress rule policy for egress-node-peer",
            [manifest],
            [
                *([nobody.on("tcp", other_tcp)] if admin else []),
                nobody.on("udp", other_udp),
                nobody.on("sctp", sctp),
                # The range of the internet holds the other endpoints too.
                ALL.deny(to_all, "*").on("udp", other_udp),
            ],
        )
    )
    return Case(f"CNP{tier}TierEgressNodePeers", WORLD, steps)


def inline_cidr_peers(tier: str) -> Case:
    """Ranges that hold endpoints' own addresses."""
    admin = tier == "Admin"
    rules = [
        {"name": "allow-slytherin", "action": "Accept", "to": [by_label("slytherin")]},
        {"name": "deny-internet", "action": "Deny", "to": [INTERNET]},
    ]
    named = ("ravenclaw/luna-lovegood-0", "hufflepuff/cedric-diggory-0")
    some = {
        "name": "allow-some",
        "action": "Accept",
        "to": [{"networks": [f"{WORLD.address(name)}/32" for name in named]}],
    }
    subject = by_label("gryffindor") if admin else by_name("gryffindor")
    before, after = (
        policy("inline-cidr", tier, 85 if admin else 10, subject, egress=listed)
        for listed in (rules, [some, *rules])
    )
    reach = ALL.deny("gryffindor/*", "*")
    to_slytherin = reach.allow("gryffindor/*", "slytherin/*")
    to_some = to_slytherin
    for name in named:
        to_some = to_some.allow("gryffindor/*", name)

    def on(table: Reach) -> list[Probe]:
        return [table.on("tcp", 80), table.on("udp", 53), table.on("sctp", 9003)]

    deny = "deny-egress rule policy for egress-cidr-peer"
    relabelled = {"slytherin": {LABEL: "denied-namespace-label"}}
    return Case(
        f"CNP{tier}TierEgressInlineCIDRPeers",
        WORLD,
        [
            Step(deny, [before], on(to_slytherin)),
            Step(f"{deny}, namespace relabelled", [before], on(reach), relabelled),
            Step(f"{deny}, label restored", [before], on(to_slytherin)),
            Step("allow-egress rule policy for egress-cidr-peer", [after], on(to_some)),
        ],
    )


def both_ways(action: str, inward: str | None = None) -> dict[str, Any]:
    """Slytherin's traffic with the subject, in both directions."""
    peer = by_label("slytherin")
    return {
        "ingress": [{"name": "in", "action": inward or action, "from": [peer]}],
        "egress": [{"name": "out", "action": action, "to": [peer]}],
    }


_IN = ALL.deny("slytherin/*", "gryffindor/*")
_OUT = ALL.deny("gryffindor/*", "slytherin/*")
_NEITHER = _IN.deny("gryffindor/*", "slytherin/*")


def _tcp(reach: Reach) -> list[Probe]:
    return [reach.on("tcp", port) for port in PORTS["tcp"]]


def priority_field() -> Case:
    gryffindor = by_label("gryffindor")
    deny = policy("deny-50", "Admin", 50, gryffindor, **both_ways("Deny"))
    late, early = (
        policy("pass-60-then-40", "Admin", number, gryffindor, **both_ways("Pass"))
        for number in (60, 40)
    )
    base = policy("default", "Baseline", 10, gryffindor, **both_ways("Accept"))
    return Case(
        "CNPAdminTierPriorityField",
        WORLD,
        [
            Step(
                "Deny traffic from slytherin to gryffindor respecting admin CNP",
                [deny, late, base],
                _tcp(_NEITHER),
            ),
            Step(
                "Deny traffic to slytherin from gryffindor respecting admin CNP",
                [deny, late, base],
                _tcp(_NEITHER),
            ),
            Step(
                "respect admin CNP priority field; thus passing both ingress and egress "
                "traffic over to baseline CNP",
                [deny, early, base],
                _tcp(ALL),
            ),
        ],
    )


def integration() -> Case:
    subject = {"namespaces": {"matchLabels": {LABEL: "gryffindor"}}}
    slytherin = {"namespaceSelector": {"matchLabels": {LABEL: "slytherin"}}}
    deny, pass_in, pass_both = (
        policy("pass-example", "Admin", 10, subject, **both_ways(out, inward))
        for out, inward in (("Deny", "Deny"), ("Deny", "Pass"), ("Pass", "Pass"))
    )
    base = policy("default", "Baseline", 10, subject, **both_ways("Deny"))
    between = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "allow-slytherin", "namespace": "gryffindor"},
        # A selector that is written and empty (null) selects everything, as in the original.
        "spec": {
            "podSelector": None,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [slytherin]}],
            "egress": [{"to": [slytherin]}],
        },
    }
    # The network policy allows Slytherin only.
    isolated = ALL
    for house in ("gryffindor", "hufflepuff", "ravenclaw"):
        isolated = isolated.deny(f"{house}/*", "gryffindor/*").deny("gryffindor/*", f"{house}/*")
    neither = isolated.deny("slytherin/*", "gryffindor/*").deny("gryffindor/*", "slytherin/*")
    inwards = isolated.deny("gryffindor/*", "slytherin/*")
    word = "policy for admin CNP and respect the match for"
    return Case(
        "CNPAdminTierIntegration",
        WORLD,
        [
            Step(
                "Deny traffic from slytherin to gryffindor respecting admin CNP",
                [deny, between, base],
                _tcp(neither),
            ),
            Step(
                "Deny traffic to slytherin from gryffindor respecting admin CNP",
                [deny, between, base],
                _tcp(neither),
            ),
            Step(f"pass-ingress {word} network policy", [pass_in, between, base], _tcp(inwards)),
            Step(f"pass-egress {word} network policy", [pass_both, between, base], _tcp(isolated)),
            Step(
                f"pass-ingress {word} baseline cluster network policy",
                [pass_both, base],
                _tcp(_NEITHER),
            ),
            Step(
                f"pass-egress {word} baseline cluster network policy",
                [pass_both, base],
                _tcp(_NEITHER),
            ),
        ],
    )


CLUSTER: tuple[Case, ...] = (
    *(
        case
        for tier, named in (
            ("Admin", (("egress", "tcp"), ("ingress", "udp"))),
            ("Baseline", (("egress", "udp"), ("ingress", "tcp"))),
        )
        for case in (
            *(named_port(tier, *how) for how in named),
            node_peers(tier),
            inline_cidr_peers(tier),
            *(
                one_protocol(tier, direction, protocol)
                for direction in ("egress", "ingress")
                for protocol in PORTS
            ),
            gress_rules(tier),
        )
    ),
    integration(),
    priority_field(),
)
