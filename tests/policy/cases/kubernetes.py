# SPDX-License-Identifier: Apache-2.0
"""The cases of Kubernetes' end-to-end NetworkPolicy suite, as tables over nine endpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cases.case import Case, Probe, Reach, Step, World

KINDS = ("tcp", "udp", "sctp")
WORLD = World(
    namespaces={name: {"ns": name} for name in "xyz"},
    endpoints={f"{space}/{name}": {"pod": name} for space in "xyz" for name in "abc"},
    ports={f"serve-{number}-{kind}": (kind, number) for number in (80, 81) for kind in KINDS},
)
ALL = Reach.of(WORLD)
DEFAULT_LABEL = "kubernetes.io/metadata.name"
EVERYTHING: dict[str, Any] = {}


def labels(**wanted: str) -> dict[str, Any]:
    return {"matchLabels": wanted}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


def pods(selector: Any) -> dict[str, Any]:
    return {"podSelector": selector}


def spaces(selector: Any, within: Any = None) -> dict[str, Any]:
    return {"namespaceSelector": selector} | ({} if within is None else {"podSelector": within})


def block(cidr: str, *holes: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": cidr, "except": list(holes)} if holes else {"cidr": cidr}}


def port(number: int | str | None = None, protocol: str | None = None) -> dict[str, Any]:
    return {
        key: value for key, value in (("port", number), ("protocol", protocol)) if value is not None
    }


def policy(
    name: str,
    subject: Any,
    *,
    ingress: list[Any] | None = None,
    egress: list[Any] | None = None,
    types: Iterable[str] | None = None,
    namespace: str = "x",
) -> dict[str, Any]:
    """A manifest; without ``types`` it isolates in the directions that are given."""
    given = (("Ingress", ingress), ("Egress", egress))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "podSelector": subject,
            "policyTypes": list(types or (word for word, rules in given if rules is not None)),
            **{word.lower(): rules for word, rules in given if rules is not None},
        },
    }


POD_A = labels(pod="a")


def to_a(name: str, *rules: Any, **options: Any) -> dict[str, Any]:
    """A policy for the ingress of x/a."""
    return policy(name, POD_A, ingress=list(rules), **options)


def once(name: str, policies: list[Any], *probes: Probe) -> Case:
    """A case of one step."""
    return Case(name, WORLD, [Step(name, policies, probes)])


def _from(*peers: Any, ports: list[Any] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"from": list(peers)} if peers else {}
    return rule | ({} if ports is None else {"ports": ports})


def _to(*peers: Any, ports: list[Any] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"to": list(peers)} if peers else {}
    return rule | ({} if ports is None else {"ports": ports})


def _default_deny_ingress(protocol: str) -> Case:
    return once(
        "default-deny-ingress",
        [policy("deny-ingress", EVERYTHING, ingress=[])],
        ALL.deny("*", "x/*").on(protocol, 80),
    )


def _pod_of_other_namespace(protocol: str) -> Case:
    return once(
        "only from a pod in a different namespace based on PodSelector and NamespaceSelector",
        [to_a("from-y-a", _from(spaces(labels(ns="y"), POD_A)))],
        ALL.deny("*", "x/a").allow("y/a", "x/a").on(protocol, 80),
    )


def _ports(protocol: str) -> Case:
    rule = _from(spaces(labels(ns="y")), ports=[port(81, protocol.upper())])
    return once(
        "based on Ports",
        [to_a("from-y-on-81", rule)],
        ALL.deny("[xz]/*", "x/a").on(protocol, 81),
        ALL.deny("*", "x/a").on(protocol, 80),
    )


def _stacked() -> Case:
    first, second = (
        to_a(f"from-y-on-{number}", _from(spaces(labels(ns="y")), ports=[port(number, "TCP")]))
        for number in (81, 80)
    )
    some = ALL.deny("[xz]/*", "x/a")
    return Case(
        "multiple, stacked policies with overlapping podSelectors",
        WORLD,
        [
            Step("port 81", [first], [some.on("tcp", 81), ALL.deny("*", "x/a").on("tcp", 80)]),
            Step("and port 80", [first, second], [some.on("tcp", 81), some.on("tcp", 80)]),
        ],
    )


def _named(protocol: str) -> list[Case]:
    y = spaces(labels(ns="y"))
    return [
        once(
            "ingress access on one named port",
            [policy("on-81", EVERYTHING, ingress=[_from(ports=[port("serve-81-tcp")])])],
            ALL.on(protocol, 81),
            ALL.deny("*", "x/*").on(protocol, 80),
        ),
        once(
            "ingress access from namespace on one named port",
            [to_a("from-y-on-80", _from(y, ports=[port("serve-80-tcp", "TCP")]))],
            ALL.deny("[xz]/*", "x/a").on(protocol, 80),
            ALL.deny("*", "x/a").on(protocol, 81),
        ),
        once(
            "egress access on one named port",
            [policy("to-80", EVERYTHING, egress=[_to(ports=[port("serve-80-tcp")])])],
            ALL.on(protocol, 80),
            ALL.deny("x/*", "*").on(protocol, 81),
        ),
    ]


def _updates() -> list[Case]:
    isolated = ALL.deny("*", "x/a")
    from_label = to_a("from-label", _from(spaces(labels(ns2="updated"))))
    updated_b = {"pod": "b", "pod2": "updated"}
    from_pod = to_a("from-pod", _from(pods({"matchLabels": updated_b})))
    deny = policy("deny-isolated", labels(target="isolated"), ingress=[])
    return [
        Case(
            "updated policy",
            WORLD,
            [
                Step("allow all", [policy("p", EVERYTHING, ingress=[{}])], [ALL.on("tcp", 81)]),
                Step(
                    "deny all",
                    [policy("p", EVERYTHING, ingress=[])],
                    [ALL.deny("*", "x/*").on("tcp", 81)],
                ),
            ],
        ),
        Case(
            "ingress access from updated namespace",
            WORLD,
            [
                Step("before", [from_label], [isolated.on("tcp", 80)]),
                Step(
                    "labelled",
                    [from_label],
                    [isolated.allow("y/*", "*").on("tcp", 80)],
                    namespaces={"y": {"ns": "y", "ns2": "updated"}},
                ),
            ],
        ),
        Case(
            "ingress access from updated pod",
            WORLD,
            [
                Step("before", [from_pod], [isolated.on("tcp", 80)]),
                Step(
                    "labelled",
                    [from_pod],
                    [isolated.allow("x/b", "x/a").on("tcp", 80)],
                    labels={"x/b": updated_b},
                ),
            ],
        ),
        Case(
            "deny ingress access to updated pod",
            WORLD,
            [
                Step("before", [deny], [ALL.on("tcp", 80)]),
                Step(
                    "labelled",
                    [deny],
                    [isolated.on("tcp", 80)],
                    labels={"x/a": {"pod": "a", "target": "isolated"}},
                ),
            ],
        ),
    ]


def _precedence() -> list[Case]:
    cases = []
    for word, rules, table in (
        ("ingress", "ingress", ALL.deny("*", "x/*")),
        ("egress", "egress", ALL.deny("x/*", "*")),
    ):
        some = policy("port-80", EVERYTHING, **{rules: [{"ports": [port(80)]}]})
        every = policy("all", EVERYTHING, **{rules: [{}]})
        cases.append(
            Case(
                f"multiple {word} policies, allow-all taking precedence",
                WORLD,
                [
                    Step("port 80 only", [some], [table.on("tcp", 81)]),
                    Step("and everything", [some, every], [ALL.on("tcp", 81)]),
                ],
            )
        )
    return cases


def _deleted() -> Case:
    both = policy("deny-all", EVERYTHING, ingress=[], egress=[])
    return Case(
        "stop enforcing policies after they are deleted",
        WORLD,
        [
            Step("denied", [both], [ALL.deny("x/*", "*").deny("*", "x/*").on("tcp", 80)]),
            Step("deleted", [], [ALL.on("tcp", 80)]),
        ],
    )


def _blocks() -> list[Case]:
    """Ranges of endpoints' own addresses."""

    def from_a(peer: Any) -> dict[str, Any]:
        return policy("a-to-range", POD_A, egress=[_to(peer)])

    server, x_b = (f"{WORLD.address(name)}/32" for name in ("y/b", "x/b"))
    around = block("0.0.0.0/4", x_b)
    without_b = ALL.deny("x/a", "x/b")
    return [
        once(
            "egress to server in CIDR block",
            [from_a(block(server))],
            ALL.deny("x/a", "*").allow("x/a", "y/b").on("tcp", 80),
        ),
        once("except clause with egress CIDR block", [from_a(around)], without_b.on("tcp", 80)),
        Case(
            "IP overlapping both CIDR and Except is allowed (by 2nd policy)",
            WORLD,
            [
                Step("excepted", [from_a(around)], [without_b.on("tcp", 80)]),
                Step(
                    "updated",
                    [from_a(block(x_b))],
                    [ALL.deny("x/a", "*").allow("x/a", "x/b").on("tcp", 80)],
                ),
                Step(
                    "both",
                    [
                        from_a(around),
                        policy("b-too", POD_A, egress=[_to(block(x_b))]),
                    ],
                    [ALL.on("tcp", 80)],
                ),
            ],
        ),
    ]


def _both_sides() -> Case:
    x_a = spaces(labels(ns="x"), POD_A)
    return once(
        "denying of egress traffic on the client side (even if the server explicitly allows)",
        [
            policy("to-y-a", POD_A, egress=[_to(spaces(labels(ns="y"), POD_A))]),
            policy("y-a-from-x-a", POD_A, ingress=[_from(x_a)], namespace="y"),
            policy("y-b-from-x-a", labels(pod="b"), ingress=[_from(x_a)], namespace="y"),
        ],
        ALL.deny("x/a", "*").deny("*", "y/[ab]").allow("x/a", "y/a").on("tcp", 80),
    )


def _independent() -> Case:
    allow = policy("egress-for-a", POD_A, egress=[{}])
    deny = policy("no-ingress-for-a", POD_A, ingress=[])
    return Case(
        "ingress and egress controlled independently based on PodSelector",
        WORLD,
        [
            Step("egress allowed", [allow], [ALL.on("tcp", 80)]),
            Step("ingress denied", [allow, deny], [ALL.deny("*", "x/a").on("tcp", 80)]),
        ],
    )


def _together() -> Case:
    return once(
        "Ingress, Egress specified together",
        [
            policy(
                "both",
                POD_A,
                ingress=[_from(pods(labels(pod="b")))],
                egress=[_to(ports=[port(80)])],
            )
        ],
        ALL.deny("*", "x/a").allow("x/b", "x/a").on("tcp", 80),
        ALL.deny("x/a", "*").deny("*", "x/a").allow("x/b", "x/a").on("tcp", 81),
    )


def _protocols() -> list[Case]:
    return [
        once(
            "ingress allowing any port on a specific protocol",
            [to_a("tcp-only", _from(ports=[port(protocol="TCP")]))],
            ALL.on("tcp", 80),
            ALL.on("tcp", 81),
            ALL.deny("*", "x/a").on("udp", 80),
        ),
        once(
            "not treat 'SCTP' as 'TCP' even if SCTP unsupported",
            [
                policy("deny-ingress", EVERYTHING, ingress=[]),
                to_a("sctp-81", _from(ports=[port(81, "SCTP")])),
            ],
            ALL.deny("*", "x/*").on("tcp", 81),
        ),
        once(
            "properly isolate pods selected by an SCTP-allowing policy",
            [to_a("sctp-80", _from(ports=[port(80, "SCTP")]))],
            ALL.deny("*", "x/a").on("tcp", 81),
        ),
        once(
            "no TCP access when policy specifies only UDP",
            [to_a("udp-81", _from(ports=[port(81, "UDP")]))],
            ALL.deny("*", "x/a").on("tcp", 81),
        ),
    ]


def _default_label() -> list[Case]:
    not_y = spaces(expression(DEFAULT_LABEL, "NotIn", "y"))
    return [
        once(
            "NamespaceSelector MatchLabels using default ns label",
            [to_a("from-y", _from(spaces({"matchLabels": {DEFAULT_LABEL: "y"}})))],
            ALL.deny("[xz]/*", "x/a").on("tcp", 80),
        ),
        once(
            "NamespaceSelector MatchExpressions using default ns label",
            [policy("not-to-y", POD_A, egress=[_to(not_y)])],
            ALL.deny("x/a", "y/*").on("tcp", 80),
        ),
    ]


_FROM_B = ALL.deny("*", "x/a").allow("x/b", "x/a").on("tcp", 80)
_FROM_Y = ALL.deny("[xz]/*", "x/a").on("tcp", 80)
_NOT_X = expression("ns", "NotIn", "x")

#: All 42 of the TCP suite in its order, then UDP's and SCTP's.
KUBERNETES: tuple[Case, ...] = (
    _default_deny_ingress("tcp"),
    once(
        "default-deny-all",
        [policy("deny-all", EVERYTHING, ingress=[], egress=[])],
        ALL.deny("x/*", "*").deny("*", "x/*").on("tcp", 80),
    ),
    once(
        "allow traffic from pods within server namespace based on PodSelector",
        [to_a("from-b", _from(pods(labels(pod="b"))))],
        _FROM_B,
    ),
    once(
        "allow ingress traffic for a target",
        [
            policy("deny-all", EVERYTHING, ingress=[]),
            to_a("all-to-a", _from(spaces(EVERYTHING, EVERYTHING))),
        ],
        ALL.deny("*", "x/*").allow("*", "x/a").on("tcp", 80),
    ),
    once(
        "allow ingress traffic from pods in all namespaces",
        [to_a("from-all", _from(spaces({"matchLabels": {}})))],
        ALL.on("tcp", 80),
    ),
    once(
        "allow traffic only from a different namespace, based on NamespaceSelector",
        [to_a("from-y", _from(spaces(labels(ns="y"))))],
        _FROM_Y,
    ),
    once(
        "PodSelector with MatchExpressions",
        [to_a("from-b", _from(pods(expression("pod", "In", "b"))))],
        _FROM_B,
    ),
    once(
        "NamespaceSelector with MatchExpressions",
        [to_a("from-y", _from(spaces(expression("ns", "In", "y"))))],
        _FROM_Y,
    ),
    once(
        "PodSelector or NamespaceSelector",
        [to_a("either", _from(spaces(_NOT_X), pods(labels(pod="b"))))],
        ALL.deny("x/c", "x/a").on("tcp", 80),
    ),
    once(
        "PodSelector and NamespaceSelector",
        [to_a("both", _from(spaces(_NOT_X, labels(pod="b"))))],
        ALL.deny("*", "x/a").allow("[yz]/b", "x/a").on("tcp", 80),
    ),
    once(
        "Multiple PodSelectors and NamespaceSelectors",
        [to_a("several", _from(spaces(_NOT_X, expression("pod", "In", "b", "c"))))],
        ALL.deny("x/*", "x/a").deny("[yz]/a", "x/a").on("tcp", 80),
    ),
    once(
        "any PodSelectors",
        [to_a("any", _from(pods(labels(pod="b")), pods(labels(pod="c"))))],
        ALL.deny("*", "x/a").allow("x/[bc]", "x/a").on("tcp", 80),
    ),
    _pod_of_other_namespace("tcp"),
    _ports("tcp"),
    _stacked(),
    once(
        "allow-all",
        [policy("allow-all", EVERYTHING, ingress=[{}])],
        ALL.on("tcp", 80),
        ALL.on("tcp", 81),
    ),
    *_named("tcp"),
    *_updates()[:3],
    once(
        "deny ingress from pods on other namespaces",
        [policy("own", EVERYTHING, ingress=[_from(pods({"matchLabels": {}}))])],
        ALL.deny("[yz]/*", "x/*").on("tcp", 80),
    ),
    *_updates()[3:],
    once(
        "deny egress from pods based on PodSelector",
        [policy("no-egress", POD_A, egress=[])],
        ALL.deny("x/a", "*").on("tcp", 80),
    ),
    once(
        "deny egress from all pods in a namespace",
        [policy("no-egress", EVERYTHING, egress=[])],
        ALL.deny("x/*", "*").on("tcp", 80),
    ),
    _together(),
    _both_sides(),
    once(
        "egress to a server in a different namespace based on PodSelector and NamespaceSelector",
        [policy("to-y-a", POD_A, egress=[_to(spaces(labels(ns="y"), POD_A))])],
        ALL.deny("x/a", "*").allow("x/a", "y/a").on("tcp", 80),
    ),
    *_protocols()[:1],
    *_precedence(),
    _deleted(),
    *_blocks(),
    _independent(),
    *_protocols()[1:],
    *_default_label(),
    *(
        Case(f"{kind.upper()}: {case.name}", case.world, case.steps)
        for kind in ("udp", "sctp")
        for case in (_default_deny_ingress(kind), _ports(kind), _pod_of_other_namespace(kind))
    ),
)
