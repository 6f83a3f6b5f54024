# SPDX-License-Identifier: Apache-2.0
"""Ordered rules as prefixes: what the longest prefix says is what the first rule says."""

from hypothesis import given
from hypothesis import strategies as st

from slimnet.model import Reason
from slimnet.policy.compile.ladder import (
    ADMIN,
    BASELINE,
    DEFAULT_ALLOW,
    DEFAULT_DENY,
    HOST_DENY,
    NAMESPACED,
    Step,
    ladder,
)
from slimnet.policy.rule import Action
from slimnet.tables import PolicyRecord

PORTS = st.integers(0, 65535)
SPANS = st.tuples(st.sampled_from((6, 17)), PORTS, PORTS).map(
    lambda span: (span[0], min(span[1:]), max(span[1:]))
)


@st.composite
def steps(draw):
    found = []
    for number in range(draw(st.integers(0, 6))):
        stage = draw(st.sampled_from((ADMIN, NAMESPACED, BASELINE)))
        action = Action.ACCEPT if stage == NAMESPACED else draw(st.sampled_from(Action))
        allow = action is Action.ACCEPT
        record = PolicyRecord(allow, Reason["RULE_ALLOW" if allow else "RULE_DENY"], number + 1)
        spans = draw(st.none() | st.lists(SPANS, min_size=1, max_size=3).map(tuple))
        found.append(Step(stage, action, record, spans, exact=draw(st.booleans())))
    return sorted(found, key=lambda step: step.stage)


def first(listed, protocol, port, *, isolated, host):
    """The same by reading the rules one after the other."""
    guarded, over = host, set()
    for step in listed:
        hit = step.spans is None or any(
            kind == protocol and low <= port <= high for kind, low, high in step.spans
        )
        if not hit or step.stage in over or (isolated and step.stage == BASELINE):
            continue
        if step.action is Action.PASS:
            over.add(step.stage)
            guarded = guarded and not step.exact
        elif not (guarded and step.action is Action.ACCEPT and not step.exact):
            return step.record
    if guarded:
        return HOST_DENY
    return DEFAULT_DENY if isolated else DEFAULT_ALLOW


def longest(rungs, protocol, port):
    """The record that the LPM trie answers."""
    fitting = [
        ((kind is not None) + bits, record)
        for (kind, start, bits), record in rungs
        if kind is None or (kind == protocol and start >> (16 - bits) == port >> (16 - bits))
    ]
    return max(fitting, key=lambda item: item[0])[1]


@given(steps(), st.booleans(), st.booleans(), st.lists(PORTS, max_size=5))
def test_longest_prefix_says_what_the_first_rule_says(listed, isolated, host, ports):
    rungs = ladder(listed, isolated=isolated, host=host)
    assert len({width for width, _ in rungs}) == len(rungs)
    edges = {
        edge
        for step in listed
        for _, low, high in step.spans or ()
        for edge in (low - 1, low, high, high + 1)
    }
    for protocol in (1, 6, 17):
        for port in {0, 65535, *ports, *(edges & set(range(65536)))}:
            expected = first(listed, protocol, port, isolated=isolated, host=host)
            assert longest(rungs, protocol, port) == expected, (protocol, port)
