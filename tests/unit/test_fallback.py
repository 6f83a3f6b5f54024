# SPDX-License-Identifier: Apache-2.0
"""The pure half of the fallback overlay: tables to ranges to rules."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork

from slimnet.fallback import ruleset
from slimnet.fallback.intervals import flatten
from slimnet.fallback.ruleset import Refusal
from slimnet.model import Direction, Protocol, Reason
from slimnet.policy.explain.decision import AddressRecord, Answerer
from slimnet.tables import CidrRecord, EndpointRecord, PolicyKey, PolicyRecord, Tables

SUBJECT, PEER = 256, 257


@st.composite
def prefixes(draw, bits=8):
    length = draw(st.integers(0, bits))
    first = draw(st.integers(0, 2**bits - 1)) >> (bits - length) << (bits - length)
    return first, first + 2 ** (bits - length) - 1


@given(st.dictionaries(prefixes(), st.integers(0, 3), max_size=12))
def test_flat_ranges_answer_as_the_longest_prefix_does(table):
    flat = list(flatten([(first, last, value) for (first, last), value in table.items()]))
    assert all(a[1] < b[0] for a, b in pairwise(flat))
    for number in range(256):
        holding = [
            (last - first, v) for (first, last), v in table.items() if first <= number <= last
        ]
        wanted = min(holding)[1] if holding else None
        found = [value for first, last, value in flat if first <= number <= last]
        assert found == ([] if wanted is None else [wanted])


def test_neighbours_that_say_the_same_are_one_range():
    assert list(flatten([(0, 1, "a"), (2, 3, "a"), (4, 4, "b")])) == [(0, 3, "a"), (4, 4, "b")]


@st.composite
def policy_keys(draw):
    protocol = draw(st.sampled_from([None, *Protocol]))
    bits = 0 if protocol is None else draw(st.integers(0, 16))
    port = draw(st.integers(0, 65535)) >> (16 - bits) << (16 - bits)
    return PolicyKey(SUBJECT, PEER, Direction.INGRESS, protocol, port, bits)


records = st.builds(
    PolicyRecord, st.booleans(), st.sampled_from([Reason["RULE_ALLOW"]]), st.integers(1, 9)
)


@given(st.dictionaries(policy_keys(), records, max_size=10))
def test_port_ranges_answer_as_the_tables_do(policy):
    """Compared where anything can change: at both ends of every prefix, and beside them."""
    answerer = Answerer(Tables(1, policy=policy), 1)
    edges = {0, 65535}
    for key in policy:
        last = key.port + 2 ** (16 - key.port_bits) - 1
        edges |= {key.port - 1, key.port, last, last + 1}
    for protocol, ranges in ruleset._ports(policy).items():
        for port in (0,) if protocol is Protocol.ICMP else sorted(edges):
            if 0 <= port <= 65535:
                verdict = answerer.verdict(
                    AddressRecord(SUBJECT, 1),
                    AddressRecord(PEER, 2),
                    Direction.INGRESS,
                    protocol,
                    port,
                )
                found = [record.rule for first, last, record in ranges if first <= port <= last]
                assert found == ([verdict.rule] if verdict.rule else [])


@given(
    st.sampled_from([0, *Protocol]),
    st.sampled_from(Direction),
    st.sampled_from(Reason),
    st.integers(0, 2**17 - 1),
)
def test_a_refusal_survives_its_mark(protocol, direction, reason, rule):
    refusal = Refusal(protocol, direction, reason, rule)
    assert 0 <= refusal.mark < 2**32
    assert Refusal.from_mark(refusal.mark) == refusal


def test_every_reason_has_room_in_a_mark():
    assert max(Reason) < 64


def test_an_endpoint_wins_against_a_range_of_its_own_address():
    address, host = IPAddress("10.1.0.5"), IPAddress("192.0.2.1")
    tables = Tables(
        7,
        addresses={(1, address): 1},
        endpoints={1: EndpointRecord(address, host, 1, 300, local=True, wire=None)},
        cidrs={(1, IPNetwork("10.1.0.5/32")): CidrRecord(301)},
    )
    script = ruleset.render(tables, 1, "a_", 4789)
    assert "10.1.0.5 : 300" in script
    assert "10.1.0.5 : 301" not in script


def test_other_networks_are_not_in_the_script():
    address, host = IPAddress("10.1.0.5"), IPAddress("192.0.2.1")
    tables = Tables(
        7,
        addresses={(2, address): 1},
        endpoints={1: EndpointRecord(address, host, 2, 300, local=True, wire=None)},
    )
    assert "10.1.0.5" not in ruleset.render(tables, 1, "a_", 4789)
    assert "10.1.0.5" in ruleset.render(tables, 2, "a_", 4789)
