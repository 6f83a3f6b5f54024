# SPDX-License-Identifier: Apache-2.0
"""slim_way() from the header as it is: what becomes of each kind of connect and datagram.

The cases are a plain function of the library: the mutations of way.h and of what it
stands on run them too.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from decide import Decider, Library
from netaddr import IPAddress, IPNetwork

from slimnet import contract
from slimnet.model import Direction, Endpoint, Host, Network, Protocol, Reason, WayKind, Wire
from slimnet.policy import Operator, Requirement, Selector, State, load
from slimnet.policy import compile as compile_tables
from slimnet.policy.document import Service, ServicePort

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: near-in, annotations: {slimnet.io/network: n}}
spec:
  podSelector: {matchLabels: {name: near}}
  ingress:
  - from: [{podSelector: {matchLabels: {name: own}}}]
    ports: [{port: 81}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: far-in, annotations: {slimnet.io/network: n}}
spec:
  podSelector: {matchLabels: {name: far}}
  policyTypes: [Ingress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: heard-in, annotations: {slimnet.io/network: n}}
spec:
  podSelector: {matchLabels: {name: heard}}
  ingress:
  - from: [{podSelector: {matchLabels: {name: own}}}]
    ports: [{port: 80}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  egress:
  - {action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 23}}}]}
  - {action: Deny, to: [{networks: [198.51.100.9/32]}]}
  - {action: Accept, to: [{networks: [192.0.2.2/32]}]}
"""
NETWORK = Network("n", 5, ["10.1.0.0/16"])
HOSTS = (
    Host("h1", "192.0.2.1", wires={Wire.SYN, Wire.ANNOUNCE}),
    Host("h2", "192.0.2.2", wires={Wire.SYN}),
    Host("h3", "192.0.2.3"),
    Host("h4", "192.0.2.4", wires={Wire.ANNOUNCE}),
)
OWN, NEAR, FAR, MUTE, HEARD = 1, 2, 3, 4, 5
LATE = 0xFF800009
NAMES = {"own": "h1", "near": "h1", "far": "h2", "mute": "h3", "heard": "h4"}
PORT, LOOPBACK = 1, 2  # enum slim_way_source


def _service(number, name):
    return Service(
        name=f"s{number}",
        network="n",
        namespace="default",
        address=IPAddress(f"10.1.255.{number}"),
        selector=Selector((Requirement("name", Operator.IN, frozenset({name})),)),
        ports=(ServicePort(Protocol.TCP, 80, 81), ServicePort(Protocol.UDP, 80, 81)),
    )


def _state(directory):
    file = directory / "policy.yaml"
    file.write_text(POLICY)
    endpoints = [
        Endpoint(
            *("n", name, f"10.1.0.{number}", host),
            id=number,
            labels={"name": name},
            identity=255 + number,
        )
        for number, (name, host) in enumerate(NAMES.items(), 1)
    ]
    endpoints.append(
        Endpoint("n", "late", "10.1.0.9", "h1", id=LATE, labels={"name": "late"}, identity=299)
    )
    services = [_service(1, "near"), _service(2, "far"), _service(3, "nobody"), _service(4, "mute")]
    return State([NETWORK], HOSTS, [], endpoints, load(file), 1, services)


def to(address, port=80, **how):
    return IPAddress(address), port, how


def datagram(address, port=80, **how):
    return to(address, port, stream=False, **how)


def refused(reason, number, **more):
    return {
        "kind": WayKind.REFUSED,
        "reason": Reason[reason],
        "error": number,
        "direction": Direction.EGRESS,
        **more,
    }


def goes(kind, endpoint=0, port=80, reason="DEFAULT_ALLOW", **more):
    return {"kind": kind, "reason": Reason[reason], "error": 0, "endpoint": endpoint} | {
        "port": port,
        **more,
    }


SAME, OUTSIDE, WIRE, SELF = WayKind.SAME_HOST, WayKind.OUTSIDE, WayKind.WIRE, WayKind.SELF
DATAGRAM = refused("DATAGRAM", errno.ENETUNREACH, later=1)
INNER = refused("INNER_ADDRESS", errno.EACCES, later=0)
NO_TABLES = refused("NO_TABLES", errno.EACCES, later=0)
WIRE_PORT = refused("WIRE_PORT", errno.EACCES)
RESOLVER = goes(WayKind.OUTSIDE, port=53, reason="SELF", later=0)

#: What is dialled by ``own`` (or by ``client``), and what becomes of it.
CASES = (
    (to("10.1.0.2", client=77), NO_TABLES),
    (datagram("8.8.8.8", client=77), NO_TABLES),
    # Inner addresses of either family, and what is beside them.
    *((to(each), INNER) for each in ("240.0.0.80", "255.255.0.80", "fd73:6c69:6d6e:6574::50")),
    (datagram("240.0.0.80"), INNER),
    (to("239.255.255.255"), goes(OUTSIDE)),
    *((to(each), refused("FAMILY", errno.ENETUNREACH)) for each in ("fd73:6c69:6d6e::50",)),
    # The endpoint's own loopback.
    *((to(each), goes(SELF, OWN, reason="SELF")) for each in ("127.0.0.1", "127.255.255.255")),
    *((to(each), goes(SELF, OWN, reason="SELF")) for each in ("0.0.0.0", "::", "::1")),
    (to("::ffff:127.0.0.1", 23), goes(SELF, OWN, 23, "SELF")),
    (to("::ffff:0.0.0.0"), goes(SELF, OWN, reason="SELF")),
    *((datagram(each), DATAGRAM) for each in ("127.0.0.1", "0.0.0.0", "::1", "::")),
    # Its own resolver there, whatever policy says, and nobody else's.
    (datagram("127.128.0.1", 53), RESOLVER),
    (to("127.128.0.1", 53), RESOLVER),
    (to("::ffff:127.128.0.1", 53), RESOLVER),
    (datagram("127.128.0.2", 53, client=NEAR), RESOLVER),
    *((datagram(each, 53), DATAGRAM) for each in ("127.128.0.2", "127.0.0.1", "127.0.0.53")),
    (datagram("127.128.0.9", 53, client=LATE), RESOLVER),
    (datagram("127.128.0.1", 53, client=LATE), DATAGRAM),
    (datagram("127.128.0.1", 54), DATAGRAM),
    (datagram("127.128.0.1", 53, source=LOOPBACK), DATAGRAM),
    (datagram("127.128.0.1", 53, source=PORT), DATAGRAM),
    (to("127.128.0.2", 53), goes(SELF, OWN, 53, "SELF")),
    (to("127.128.0.1", 54), goes(SELF, OWN, 54, "SELF")),
    (to("127.128.0.1", 53, source=PORT), goes(SELF, OWN, 53, "SELF")),
    (to("128.0.0.1"), goes(OUTSIDE)),
    (to("126.255.255.255"), goes(OUTSIDE)),
    # What is not carried.
    (to("2001:db8::1"), refused("FAMILY", errno.ENETUNREACH)),
    (to("::2"), refused("FAMILY", errno.ENETUNREACH)),
    (to("1::"), refused("FAMILY", errno.ENETUNREACH)),
    (datagram("2001:db8::1"), refused("FAMILY", errno.ENETUNREACH, later=0)),
    (datagram("224.0.0.1"), DATAGRAM),
    (datagram("239.255.255.255"), DATAGRAM),
    (to("224.0.0.1"), goes(OUTSIDE)),
    (datagram("223.255.255.255"), goes(OUTSIDE)),
    (datagram("198.51.100.255"), DATAGRAM),  # a link's broadcast address
    (to("198.51.100.255"), goes(OUTSIDE)),
    *((datagram(each), DATAGRAM) for each in ("10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4")),
    # Nobody, and services.
    (to("10.1.9.9"), refused("NO_ENDPOINT", errno.EHOSTUNREACH)),
    (datagram("10.1.9.9"), refused("NO_ENDPOINT", errno.ENETUNREACH, later=1)),
    (to("10.1.255.3"), refused("NO_BACKEND", errno.ECONNREFUSED)),
    (to("10.1.255.1", 81), refused("NO_SERVICE_PORT", errno.ECONNREFUSED)),
    (datagram("10.1.255.3"), DATAGRAM),
    (datagram("10.1.255.1", 81), DATAGRAM),
    (datagram("10.1.255.1"), DATAGRAM),
    (to("10.1.255.1"), goes(SAME, NEAR, 81, ruled=(False, True))),
    (to("10.1.255.2"), goes(WIRE, FAR, 81)),
    (to("10.1.255.4"), refused("UNREACHABLE", errno.EHOSTUNREACH)),
    # On this host: both ends' policies.
    (to("10.1.0.1"), goes(SAME, OWN, reason="SELF")),
    (to("10.1.0.1", 23), goes(SAME, OWN, 23, "SELF")),
    (to("10.1.0.2", 81), goes(SAME, NEAR, 81, ruled=(False, True))),
    (
        to("10.1.0.2"),
        refused("DEFAULT_DENY", errno.ECONNREFUSED, direction=Direction.INGRESS, endpoint=NEAR),
    ),
    (to("10.1.0.1", 81, client=NEAR), goes(SAME, OWN, 81, ruled=(False, False))),
    (to("10.1.0.2", 23), refused("RULE_DENY", errno.EACCES, ruled=(True, False))),
    # On another: this end's only.
    (to("10.1.0.3"), goes(WIRE, FAR)),
    (to("10.1.0.3", 4790), goes(WIRE, FAR, 4790)),
    (to("10.1.0.3", 23), refused("RULE_DENY", errno.EACCES, ruled=(True, False))),
    # Its host hears of connections when they are made: its policy is asked here.
    (to("10.1.0.5"), goes(WIRE, HEARD, ruled=(False, True))),
    (
        to("10.1.0.5", 81),
        refused("DEFAULT_DENY", errno.ECONNREFUSED, direction=Direction.INGRESS, endpoint=HEARD),
    ),
    (to("10.1.0.5", 23), refused("RULE_DENY", errno.EACCES, direction=Direction.EGRESS)),
    (to("10.1.0.4"), refused("UNREACHABLE", errno.EHOSTUNREACH)),
    (to("10.1.0.4", 23), refused("RULE_DENY", errno.EACCES)),
    # Outside, and hosts.
    (to("8.8.8.8"), goes(OUTSIDE)),
    (to("8.8.8.8", 4790), goes(OUTSIDE, port=4790)),
    (datagram("8.8.8.8", 53), goes(OUTSIDE, port=53, later=0)),
    (to("198.51.100.9"), refused("RULE_DENY", errno.EACCES, ruled=(True, False))),
    (datagram("198.51.100.9"), refused("RULE_DENY", errno.EACCES, ruled=(True, False), later=1)),
    (to("192.0.2.3"), refused("HOST_DENY", errno.EACCES)),
    (to("192.0.2.2"), goes(OUTSIDE, reason="RULE_ALLOW", ruled=(True, False))),
    (datagram("192.0.2.2", 4790), goes(OUTSIDE, port=4790, reason="RULE_ALLOW")),
    *((to("192.0.2.2", port), WIRE_PORT) for port in (4790, 4853, 4854, 4885)),
    (to("192.0.2.3", 4790), WIRE_PORT),
    (to("192.0.2.2", 4789), goes(OUTSIDE, port=4789, reason="RULE_ALLOW")),
    (to("192.0.2.2", 4886), goes(OUTSIDE, port=4886, reason="RULE_ALLOW")),
    # From a socket that is bound.
    (to("10.1.0.3", source=PORT), goes(WIRE, FAR)),
    (to("10.1.0.2", 81, source=PORT), goes(SAME, NEAR, 81)),
    (to("8.8.8.8", source=PORT), refused("BOUND_OUTSIDE", errno.EADDRNOTAVAIL)),
    (to("127.0.0.1", source=LOOPBACK), goes(SELF, OWN, reason="SELF")),
    (to("10.1.0.1", source=LOOPBACK), goes(SAME, OWN, reason="SELF")),
    (to("10.1.0.3", source=LOOPBACK), refused("FOREIGN_ADDRESS", errno.EINVAL)),
    (to("10.1.0.4", source=LOOPBACK), refused("FOREIGN_ADDRESS", errno.EINVAL)),
    (to("8.8.8.8", source=LOOPBACK), refused("FOREIGN_ADDRESS", errno.EINVAL, later=0)),
)


def check_ways(library, directory):
    """Every case."""
    decider = Decider(library, compile_tables(_state(directory), "h1"))
    try:
        decider.add_range(
            NETWORK.vni,
            IPNetwork("198.51.100.255/32"),
            identity=contract.SLIM_IDENTITY_WORLD,
            flags=contract.SLIM_CIDR_BROADCAST,
        )
        for (address, port, how), wanted in CASES:
            call = {"client": OWN, **how}
            got = decider.way(NETWORK.vni, call.pop("client"), address, port, **call)
            got["ruled"] = bool(got["rule"]), bool(got["peer_rule"])
            assert {key: got[key] for key in wanted} == wanted, (address, port, how, got)
    finally:
        decider.close()


def test_ways(library, tmp_path):
    check_ways(library, tmp_path)


@pytest.mark.parametrize("compiler", [["clang-19"], ["gcc", "-O3", "-flto"]], ids=["clang", "lto"])
def test_ways_of_another_compiler(compiler, tmp_path):
    check_ways(Library(tmp_path, compiler=compiler), tmp_path)


def test_ways_under_sanitizers(tmp_path):
    """AddressSanitizer wants to be loaded first: in a process of its own."""
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from decide import KERNEL, Library; from test_way import check_ways\n"
        "options = ['-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all']\n"
        "directory = Path(sys.argv[1])\n"
        "check_ways(Library(directory, KERNEL / 'uapi', *options), directory)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, Path(__file__).parent],
        env={**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
