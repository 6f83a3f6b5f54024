# SPDX-License-Identifier: Apache-2.0
"""Small breaks of the core: each must be caught.

Those of decide.h by the comparison with the oracle, those of service.h by that or by the
checks of what it promises (test_pick.py); those of way.h, admit.h and what these stand on
by the cases of test_way.py and the generated SYNs of test_admit.py.
"""

import shutil

import pytest
from decide import KERNEL, Library
from hypothesis import HealthCheck, Phase, given, settings
from test_admit import check_library
from test_oracle import check_world
from test_pick import CHECKS
from test_way import check_ways
from worlds import worlds

#: Found is enough: no example is made small, and every run looks at the same ones.
SEARCH = settings(
    phases=[Phase.generate],
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

MUTATIONS = {
    "an endpoint does not reach itself": ("if (query->self)", "if (0)"),
    "every host is reached": ("if (query->host &&", "if (0 &&"),
    "everybody is a host": ("if (query->host &&", "if (1 &&"),
    "hosts are guarded for ingress": (
        "query->host && query->direction == SLIM_EGRESS",
        "query->host",
    ),
    "any peer is never asked": ("key.peer = SLIM_IDENTITY_ANY;", ";"),
    "ports are not compared": (
        ".prefixlen = SLIM_PREFIX_PORT",
        ".prefixlen = SLIM_PREFIX_ANY_PORT",
    ),
    "the other direction": (".direction = query->direction", ".direction = !query->direction"),
    "one protocol for all": (".protocol = query->protocol", ".protocol = 6"),
    "the port's bytes swapped": (".port = query->port", ".port = __builtin_bswap16(query->port)"),
    "subject and peer swapped": (
        ".subject = slim_htobe32(query->subject)",
        ".subject = slim_htobe32(query->peer)",
    ),
    "identities in host order": (
        "#define slim_htobe32(x) ((slim_force __be32)__builtin_bswap32(x))",
        "#define slim_htobe32(x) (x)",
    ),
    "denied where nothing is said": (
        "{ SLIM_ALLOW, SLIM_REASON_DEFAULT_ALLOW, 0 }",
        "{ SLIM_DENY, SLIM_REASON_DEFAULT_ALLOW, 0 }",
    ),
    "always allowed": ("{ entry->action, entry->reason", "{ SLIM_ALLOW, entry->reason"),
    "the rule forgotten": ("entry->reason, entry->rule", "entry->reason, 0"),
    "hosts are asked before names": (
        "	entry = slim_policy_lookup(env, &key);\n	if (!entry) {",
        "	entry = query->host ? NULL : slim_policy_lookup(env, &key);\n	if (!entry) {",
    ),
}


SERVICE_MUTATIONS = {
    "chance does not choose": ("client, random)]", "client, 0)]"),
    "clients do not choose": ("service ^ random) + client", "service ^ random)"),
    "all services alike": ("slim_service_mix(service ^ random)", "slim_service_mix(random)"),
    "half of the slots": (") >> 32;", ") >> 33;"),
    "affinity is ignored": ("if (!service->affinity)", "if (1)"),
    "affinity for everybody": ("if (!service->affinity)", "if (0)"),
    "somebody where nobody is": ("if (!service->size)", "if (0)"),
    "clients are forgotten": ("	slim_affinity_store(env, &key, &fresh);\n", ""),
    "another endpoint is remembered": (
        "fresh.endpoint = backend->endpoint",
        "fresh.endpoint = service->slots[0].endpoint",
    ),
    "connects do not renew": (
        "	slim_affinity_store(env, &key, &fresh);",
        "	if (!held)\n		slim_affinity_store(env, &key, &fresh);",
    ),
    "clients stay for ever": ("SLIM_SECOND >= now", "SLIM_SECOND >= 0"),
    "clients never stay": ("SLIM_SECOND >= now", "SLIM_SECOND < now"),
    "the clock wraps": (
        "held->time + service->affinity * SLIM_SECOND >= now",
        "now - held->time <= service->affinity * SLIM_SECOND",
    ),
    "the second is short": ("1000000000ULL", "999999999ULL"),
    "nobody is found again": ("if (last < SLIM_SERVICE_SLOTS)", "if (0)"),
    "services share clients": (".service = service->id, .client", ".service = 0, .client"),
    "clients share a place": (".client = client }", ".client = 0 }"),
}


WAY_MUTATIONS = {
    # way.h
    "inner addresses are reached": ("if (slim_inner_has(range, aim->address))", "if (0)"),
    "the wildcard is not one's own": (
        "if (slim_is_any(aim->address) || slim_is_loopback(aim->address)) {",
        "if (slim_is_loopback(aim->address)) {",
    ),
    "loopback is not one's own": (
        "if (slim_is_any(aim->address) || slim_is_loopback(aim->address)) {",
        "if (slim_is_any(aim->address)) {",
    ),
    "no resolver": ("slim_is_resolver(aim->address, aim->port, aim->client)) {", "0) {"),
    "a resolver for bound sockets": ("dialled->source == SLIM_SOURCE_ANY &&", "1 &&"),
    # resolver.h
    "a resolver at every port": ("slim_be16toh(port) == SLIM_RESOLVER_PORT", "1"),
    "a resolver of high ids": ("(endpoint & SLIM_RESOLVER_MASK)", "endpoint"),
    "one resolver for all": (
        "address[3] == slim_htobe32(SLIM_RESOLVER_NETWORK |",
        "(address[3] | slim_htobe32(0xff)) == slim_htobe32(SLIM_RESOLVER_NETWORK | 0xff |",
    ),
    "datagrams to loopback": ("		if (!stream)\n", "		if (0)\n"),
    "loopback is somebody else's": (
        "way->target.endpoint = aim->client;",
        "way->target.endpoint = 0;",
    ),
    "IPv6 is carried": ("if (!slim_is_mapped(aim->address))", "if (0)"),
    "datagrams to many": ("if (!stream && slim_is_multicast(", "if (0 && slim_is_multicast("),
    "connections to many": ("if (!stream && slim_is_multicast(", "if (slim_is_multicast("),
    "a service without endpoints is nobody": ("reason == SLIM_REASON_NO_BACKEND ||", "0 ||"),
    "a port that a service has not": (
        "|| reason == SLIM_REASON_NO_SERVICE_PORT)",
        "|| 0)",
    ),
    "datagrams to a service are refused as connects": (
        "stream ? reason : SLIM_REASON_DATAGRAM",
        "reason",
    ),
    "nobody is outside": (
        "	if (reason)\n		return slim_way_refuse(",
        "	if (0)\n		return slim_way_refuse(",
    ),
    "nobody's errno for datagrams": (
        "reason, stream ? EHOSTUNREACH : ENETUNREACH",
        "reason, EHOSTUNREACH",
    ),
    "datagrams between endpoints": ("if (way->target.peer && !stream)", "if (0)"),
    "datagrams to a link": ("if (!stream && way->target.flags & SLIM_CIDR_BROADCAST)", "if (0)"),
    "connections to a link": (
        "if (!stream && way->target.flags & SLIM_CIDR_BROADCAST)",
        "if (way->target.flags & SLIM_CIDR_BROADCAST)",
    ),
    "wire ports are reached": ("way->target.flags & SLIM_CIDR_HOST &&", "0 &&"),
    "wire ports everywhere": ("way->target.flags & SLIM_CIDR_HOST &&", "1 &&"),
    "wire ports of datagrams": ("!way->target.peer && stream &&", "!way->target.peer &&"),
    "egress is allowed": (
        "	way->rule = verdict.rule;\n	if (verdict.action != SLIM_ALLOW)",
        "	way->rule = verdict.rule;\n	if (0)",
    ),
    "the rule of egress": (
        "	way->rule = verdict.rule;\n	if (verdict.action",
        "	if (verdict.action",
    ),
    "egress is asked as ingress": ("&way->target, SLIM_EGRESS,", "&way->target, SLIM_INGRESS,"),
    "a denial's errno": ("verdict.reason, EACCES)", "verdict.reason, ECONNREFUSED)"),
    "from loopback to others": ("dialled->source == SLIM_SOURCE_LOOPBACK &&", "0 &&"),
    "from loopback to nobody": ("&& way->target.endpoint != aim->client)", ")"),
    "bound to outside": ("if (dialled->source == SLIM_SOURCE_PORT)", "if (0)"),
    "everybody is far": ("peer->flags & SLIM_ENDPOINT_LOCAL)", "peer->flags & 0)"),
    "a wire to everybody": (
        "if (!(way->target.peer->flags & (SLIM_ENDPOINT_WIRE_SYN | SLIM_ENDPOINT_WIRE_ANNOUNCE)))",
        "if (0)",
    ),
    # That every one is would change no answer: the tables have no rules of the others.
    "no listener elsewhere is judged here": (
        "if (way->target.peer->flags & SLIM_ENDPOINT_JUDGED &&",
        "if (0 &&",
    ),
    "ingress is allowed": (
        "	if (verdict.action != SLIM_ALLOW) {\n		way->direction",
        "	if (0) {\n		way->direction",
    ),
    "ingress is asked as egress": (
        "SLIM_INGRESS, dialled->aim.protocol);",
        "SLIM_EGRESS, dialled->aim.protocol);",
    ),
    "whose refusal": ("		way->direction = SLIM_INGRESS;\n", ""),
    "the rule of ingress": ("	way->peer_rule = verdict.rule;\n", ""),
    "ingress is asked for itself": (
        ".endpoint = dialled->aim.client,",
        ".endpoint = way->target.endpoint,",
    ),
    "ingress of another identity": (
        ".identity = way->identity,",
        ".identity = way->target.identity,",
    ),
    "ingress of the dialled port": (".port = way->target.port,", ".port = dialled->aim.port,"),
    **{
        f"a connect before {reason.lower()}": (f"way->reason != SLIM_REASON_{reason}", "1")
        for reason in ("NO_TABLES", "FAMILY", "INNER_ADDRESS", "FOREIGN_ADDRESS")
    },
    # target.h
    "a service's own port": ("target->port = backend->port;", ""),
    "a service is an endpoint": ("target->endpoint == SLIM_ADDRESS_SERVICE", "0"),
    "the overlay has no end": ("return target->flags & SLIM_CIDR_OVERLAY ?", "return 0 ?"),
    "hosts are the world": (".host = !!(target->flags & SLIM_CIDR_HOST)", ".host = 0"),
    "policy of another port": (
        "		.protocol = protocol,\n		.port = target->port,",
        "		.protocol = protocol,\n		.port = 80,",
    ),
    # inner.h
    "half of the inner range": (
        "slim_htobe32(0xf0000000)) == range",
        "slim_htobe32(0xf8000000)) == range",
    ),
    "more than the inner range": (
        "slim_htobe32(0xf0000000)) == range",
        "slim_htobe32(0xe0000000)) == range",
    ),
    "a /32 of IPv6": (
        "address[0] == range->v6[0] && address[1] == range->v6[1]",
        "address[0] == range->v6[0]",
    ),
    # address.h
    "one loopback address": (
        "slim_htobe32(0xff000000)) == slim_htobe32(0x7f000000)",
        "slim_htobe32(0xffffffff)) == slim_htobe32(0x7f000001)",
    ),
    "too much loopback": (
        "slim_htobe32(0xff000000)) == slim_htobe32(0x7f000000)",
        "slim_htobe32(0xfe000000)) == slim_htobe32(0x7e000000)",
    ),
    "every short address is loopback": ("address[3] == slim_htobe32(1);", "address[3];"),
    "half of multicast": (
        "(address[3] & slim_htobe32(0xf0000000)) == slim_htobe32(0xe0000000)",
        "(address[3] & slim_htobe32(0xf8000000)) == slim_htobe32(0xe0000000)",
    ),
    "the wildcard of one family": (
        "(!address[2] || address[2] == slim_htobe32(0xffff))",
        "!address[2]",
    ),
    "all of IPv6 is mapped": (
        "return !address[0] && !address[1] && address[2] == slim_htobe32(0xffff);\n",
        "return address[2] == slim_htobe32(0xffff) || !address[2];\n",
    ),
    # wire.h
    "one wire port less": ("< SLIM_WIRE_PORTS + SLIM_BOUND_PORTS", "< SLIM_WIRE_PORTS"),
}


ADMIT_MUTATIONS = {
    "no tag is wrong": ("return option->tag == slim_tag(", "return 1 || option->tag == slim_tag("),
    "one key only": ("!slim_tag_is_good(keys->key[1], tuple, sequence, option)", "1"),
    "the other key only": ("!slim_tag_is_good(keys->key[0], tuple, sequence, option)", "1"),
    "a forged one is refused": ("return SLIM_ADMIT_FORGED;", "return SLIM_ADMIT_NO;"),
    "the tag covers no sequence number": (
        "tuple->source_port, sequence, option)",
        "tuple->source_port, 0, option)",
    ),
    "the tag covers no source port": (
        "tuple->source_port, sequence, option)",
        "0, sequence, option)",
    ),
    "endpoints of other hosts": ("!(admitted->destination->flags & SLIM_ENDPOINT_LOCAL)", "0"),
    "unknown is refused": ("return SLIM_ADMIT_LATER;", "return SLIM_ADMIT_NO;"),
    "from any host": ("if (!slim_same(admitted->source->host, host) ||", "if ("),
    "into any network": ("admitted->source->vni != admitted->destination->vni", "0"),
    "a stranger is unknown": (
        "		admitted->reason = SLIM_REASON_SYN_SOURCE;",
        "		admitted->reason = SLIM_REASON_SYN_UNKNOWN;",
    ),
    "everybody is admitted": ("return verdict.action == SLIM_ALLOW ?", "return 1 ?"),
    "nobody is admitted": ("return verdict.action == SLIM_ALLOW ?", "return 0 ?"),
    "egress is asked": (
        "&opener, SLIM_INGRESS, IPPROTO_TCP);",
        "&opener, SLIM_EGRESS, IPPROTO_TCP);",
    ),
    "of the wire port": (
        "slim_admit_from(env, tuple->source, option->port,",
        "slim_admit_from(env, tuple->source, tuple->destination_port,",
    ),
    "of the called one's identity": (
        ".identity = admitted->source->identity,",
        ".identity = admitted->destination->identity,",
    ),
    "nobody calls itself": (".endpoint = admitted->source_id,", ".endpoint = 0,"),
    "the ends swapped": (
        "slim_endpoint_lookup(env, admitted->source_id)",
        "slim_endpoint_lookup(env, admitted->destination_id)",
    ),
    "the rule forgotten": ("	admitted->rule = verdict.rule;\n", ""),
}


def broken_library(mutation, directory):
    """The library with the one header that says ``before`` saying ``after``."""
    before, after = mutation
    headers = directory / "uapi"
    shutil.copytree(KERNEL / "uapi", headers)
    texts = {header: header.read_text() for header in (headers / "slimnet").iterdir()}
    ((header, text),) = [found for found in texts.items() if before in found[1]]
    assert text.count(before) == 1
    header.write_text(text.replace(before, after))
    return Library(directory, headers, "-Wno-error")


@settings(SEARCH, max_examples=400)
@given(worlds())
def agree(library, world):
    check_world(world, library, broken=True)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_decision_is_caught(mutation, tmp_path):
    """A header that decides otherwise does not pass."""
    broken = broken_library(MUTATIONS[mutation], tmp_path)
    with pytest.raises(AssertionError):
        agree(broken)


@settings(SEARCH, max_examples=60)
@given(worlds())
def admit(library, world):
    check_library(library, world)


@pytest.mark.parametrize("mutation", WAY_MUTATIONS)
def test_broken_way_is_caught(mutation, tmp_path):
    """A header that leads elsewhere does not pass."""
    broken = broken_library(WAY_MUTATIONS[mutation], tmp_path)
    with pytest.raises(AssertionError):
        check_ways(broken, tmp_path)


@pytest.mark.parametrize("mutation", ADMIT_MUTATIONS)
def test_broken_admission_is_caught(mutation, tmp_path):
    """A header that admits otherwise does not pass."""
    broken = broken_library(ADMIT_MUTATIONS[mutation], tmp_path)
    with pytest.raises(AssertionError):
        admit(broken)


@pytest.mark.parametrize("mutation", SERVICE_MUTATIONS)
def test_broken_choice_is_caught(mutation, tmp_path):
    """A header that chooses otherwise does not pass."""
    broken = broken_library(SERVICE_MUTATIONS[mutation], tmp_path)
    with pytest.raises(AssertionError):
        for check in CHECKS:
            check(broken)
        agree(broken)
