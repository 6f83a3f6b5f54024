# SPDX-License-Identifier: Apache-2.0
"""Maglev: shares by weight, and little moves when a backend comes or goes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimnet import contract
from slimnet.policy.compile.maglev import table

SLOTS = contract.SLIM_SERVICE_SLOTS
WEIGHTS = st.dictionaries(
    st.integers(0, 9999).map("default/shop/e{}".format), st.integers(1, 100), min_size=1
).map(lambda found: tuple(sorted(found.items())))


def owners(weights):
    """Each slot's backend by name."""
    return [weights[position][0] for position in table(weights)]


def backends(count, weight=1):
    return tuple(sorted((f"default/shop/web-{number}", weight) for number in range(count)))


@given(WEIGHTS)
def test_shares_are_by_weight(weights):
    """A backend's slots are its weight's share of them, but for what rounding can do.

    A slot cannot be divided, so that up to one is lost or won for each backend; together
    these are shared out by weight as well. Whose share is less than one slot has one.
    """
    found = Counter(owners(weights))
    whole = sum(weight for _, weight in weights)
    for name, weight in weights:
        bound = 1 + len(weights) * weight / whole
        assert found[name] >= 1
        assert abs(found[name] - SLOTS * weight / whole) <= bound


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 1021])
def test_equal_weights_differ_by_one_slot(count):
    found = Counter(owners(backends(count)))
    assert len(found) == count
    assert max(found.values()) - min(found.values()) <= 1


def test_more_backends_than_slots():
    """As many as there are slots get one each."""
    assert set(Counter(owners(backends(2000))).values()) == {1}


@pytest.mark.parametrize(
    ("count", "moved"),
    # Measured: 0, 3.2, 5.2 and 4.4 of 100. Were the slots simply dealt out in turn, nine of
    # ten would move at ten backends.
    [(2, 0.0), (10, 0.033), (30, 0.053), (100, 0.045)],
)
def test_few_others_move(count, moved):
    """The most slots, as a part of all, that another backend gets though the one that had
    it stays: over every single backend that leaves. One that joins is the same read
    backwards."""
    weights = backends(count)
    before = owners(weights)
    worst = 0
    for position, (name, _) in enumerate(weights):
        after = owners(weights[:position] + weights[position + 1 :])
        worst = max(
            worst, sum(was not in (name, now) for was, now in zip(before, after, strict=True))
        )
    assert worst / SLOTS <= moved


def test_a_weight_moves_no_more_than_its_slots():
    """A backend is half drained: what others lose to each other is little (measured: 2.4 of
    100)."""
    weights = backends(10, 100)
    before = owners(weights)
    lighter = ((weights[0][0], 50), *weights[1:])
    after = owners(lighter)
    moved = sum(was not in (weights[0][0], now) for was, now in zip(before, after, strict=True))
    assert moved / SLOTS <= 0.025
