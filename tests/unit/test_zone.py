# SPDX-License-Identifier: Apache-2.0
"""What the zone ``slimnet.`` answers."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import pytest
from netaddr import IPAddress

from slimnet.model import Endpoint, Namespace, Network, Protocol
from slimnet.policy import Operator, Requirement, Selector, State
from slimnet.policy.document import Service, ServicePort
from slimnet.resolver import address, search
from slimnet.resolver.zone import Zone


def service(name, at, *ports):
    return Service(
        name=name,
        network="prod",
        namespace="default",
        address=IPAddress(at),
        selector=Selector((Requirement("app", Operator.IN, frozenset({"web"})),)),
        ports=ports,
    )


STATE = State(
    networks=[Network("prod", 1, ["10.1.0.0/16"]), Network("test", 2, ["10.2.0.0/16"])],
    namespaces=[Namespace("prod", "empty"), Namespace("test", "other")],
    endpoints=[
        Endpoint("prod", "web", "10.1.0.1", "h1", id=1, ports={"http": ("tcp", 80)}),
        Endpoint("prod", "db", "10.1.0.2", "h2", "data", id=2),
        Endpoint("test", "web", "10.2.0.1", "h1", id=3),
    ],
    services=[
        service("shop", "10.1.0.3", ServicePort(Protocol.UDP, 53, 53, "dns")),
        service("web", "10.1.0.4", ServicePort(Protocol.TCP, 81, 80, "admin")),
    ],
    revision=7,
)


def ask(name, kind="A", state=STATE):
    return Zone(state, "prod").answer(dns.message.make_query(name, kind))


ANSWERS = {
    ("web.default.prod.slimnet", "A"): ["10.1.0.1"],
    ("WEB.Default.prod.SLIMNET", "A"): ["10.1.0.1"],
    ("web.default.prod.slimnet", "ANY"): ["10.1.0.1"],
    ("db.data.prod.slimnet", "A"): ["10.1.0.2"],
    ("shop.default.prod.slimnet", "A"): ["10.1.0.3"],
    ("1.0.1.10.in-addr.arpa", "PTR"): ["web.default.prod.slimnet."],
    ("3.0.1.10.in-addr.arpa", "PTR"): ["shop.default.prod.slimnet."],
    ("4.0.1.10.in-addr.arpa", "PTR"): ["web.default.prod.slimnet."],  # a service that has its name
    ("_http._tcp.web.default.prod.slimnet", "SRV"): ["0 0 80 web.default.prod.slimnet."],
    ("_dns._udp.shop.default.prod.slimnet", "SRV"): ["0 0 53 shop.default.prod.slimnet."],
    ("localhost", "A"): ["127.0.0.1"],
    ("a.localhost", "AAAA"): ["::1"],
    # There, but not of this type; and what is there because something is below it.
    ("web.default.prod.slimnet", "AAAA"): [],
    ("web.default.prod.slimnet", "MX"): [],
    ("_tcp.web.default.prod.slimnet", "SRV"): [],
    ("default.prod.slimnet", "A"): [],
    ("empty.prod.slimnet", "A"): [],
    ("prod.slimnet", "A"): [],
    ("slimnet", "A"): [],
    ("slimnet", "NS"): ["ns.slimnet."],
}
NOWHERE = {
    ("nobody.default.prod.slimnet", "A"),
    ("web.data.prod.slimnet", "A"),
    ("a.web.default.prod.slimnet", "A"),
    ("_admin._tcp.web.default.prod.slimnet", "SRV"),  # of the service that an endpoint hides
    ("9.9.1.10.in-addr.arpa", "PTR"),
    # Of another network.
    ("web.default.test.slimnet", "A"),
    ("test.slimnet", "A"),
}


@pytest.mark.parametrize(("name", "kind"), ANSWERS)
def test_answers(name, kind):
    reply = ask(name, kind)
    wanted = ANSWERS[name, kind]
    assert [str(each) for rrset in reply.answer for each in rrset] == wanted
    assert reply.flags & dns.flags.AA
    assert reply.rcode() == dns.rcode.NOERROR
    # Whoever hears "no" is told for how long that holds.
    assert [each.rdtype.name for each in reply.authority] == ([] if wanted else ["SOA"])


@pytest.mark.parametrize(("name", "kind"), sorted(NOWHERE))
def test_no_such_name(name, kind):
    reply = ask(name, kind)
    assert (reply.rcode(), reply.answer) == (dns.rcode.NXDOMAIN, [])
    assert reply.authority[0].name.to_text() == "slimnet."


@pytest.mark.parametrize(
    "name",
    ["example.org", "slimnet.example.org", "web", "1.0.2.10.in-addr.arpa", "10.in-addr.arpa",
     "x.1.10.in-addr.arpa", "arpa", "."],
)  # fmt: skip
def test_names_of_others(name):
    assert ask(name) is None


def test_ports_bring_their_address():
    (found,) = ask("_http._tcp.web.default.prod.slimnet", "SRV").additional
    assert (found.name.to_text(), found[0].to_text()) == ("web.default.prod.slimnet.", "10.1.0.1")


def test_every_endpoint_has_a_resolver_of_its_own():
    assert str(address(1)) == "127.128.0.1"
    assert str(address(0xFF800001)) == "127.128.0.1"
    assert str(address(0x00412345)) == "127.193.35.69"


def test_searched_domains():
    assert search("prod", "data") == ("data.prod.slimnet", "prod.slimnet", "slimnet")
