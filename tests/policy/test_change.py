# SPDX-License-Identifier: Apache-2.0
"""Tables depend on the state, never on the way there; a change says exactly what differs."""

from unittest import mock

import pytest
import worlds
from attrs import evolve
from cases import CLUSTER, KUBERNETES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds_big import big

from slimnet import contract
from slimnet.policy import Compiler, State, load
from slimnet.policy import compile as compile_tables
from slimnet.policy.compile.number import Numbers


def apply(tables, change):
    """What a backend does with a change."""
    assert change.base == tables.generation
    parts = {}
    names = "addresses endpoints cidrs policy services published limits hosts"
    for name in names.split():
        gone = getattr(change, f"gone_{name}")
        old, new = dict(getattr(tables, name)), dict(getattr(change.set, name))
        assert gone <= old.keys(), f"{name}: what was not there cannot go"
        assert not gone & new.keys(), name
        assert all(old.get(key) != value for key, value in new.items()), f"{name}: nothing new"
        parts[name] = {key: value for key, value in old.items() if key not in gone} | new
    return evolve(tables, generation=change.set.generation, **parts)


def same(first, second):
    """Equal tables but for the words of rules, which a change does not take away."""
    return evolve(first, rules={}) == evolve(second, rules={})


@st.composite
def journeys(draw):
    """States, each a small change from the one before."""
    identities, taken = worlds.Identities(), {}
    endpoints = {}
    policies = {}
    documents = {worlds._services: {}, worlds._published: {}, worlds._limits: {}}
    namespaces = ()
    hosts = worlds.HOSTS
    states = []
    for revision in range(1, draw(st.integers(2, 12))):
        for _ in range(draw(st.integers(1, 3))):
            what = draw(st.integers(0, 17))
            if what < 3 and len(endpoints) < 9:
                endpoint = draw(worlds._endpoints(identities, taken))
                endpoints[endpoint.id] = endpoint
            elif what == 3 and endpoints:
                gone = endpoints.pop(draw(st.sampled_from(sorted(endpoints))))
                del taken[gone.network, str(gone.address)]
                taken["gone", gone.id] = gone.id
            elif what == 4 and endpoints:
                # An endpoint has other labels, ports, or another host.
                key = draw(st.sampled_from(sorted(endpoints)))
                old, labels = endpoints[key], draw(worlds._labels)
                endpoints[key] = evolve(
                    old,
                    labels=labels,
                    ports=draw(worlds._declared),
                    host=draw(st.sampled_from(("h1", "h2"))),
                    identity=identities.of(old.network, old.namespace, labels),
                )
            elif what == 5:
                namespaces = draw(worlds._namespaces())
            elif what == 6 and policies:
                del policies[draw(st.sampled_from(sorted(policies)))]
            elif what == 7 and not draw(st.integers(0, 3)):
                hosts = draw(st.sampled_from((worlds.HOSTS, worlds.HOSTS[:2], worlds.HOSTS[::2])))
            elif what > 9:
                kind = draw(st.sampled_from(list(documents)))
                number = draw(st.integers(0, 3))
                if number in documents[kind] and draw(st.booleans()):
                    del documents[kind][number]
                else:
                    documents[kind][number] = worlds.named(draw, kind, number)
            else:
                number = draw(st.integers(0, 5))
                policies[number] = draw(worlds._policies(number))
        states.append(
            State(
                worlds.NETWORKS,
                hosts,
                namespaces,
                endpoints.values(),
                policies.values(),
                revision,
                *(kind.values() for kind in documents.values()),
            )
        )
    return states


def documents(state):
    """What :meth:`Compiler.advance` takes, by what each has alone."""
    return {
        (type(each), getattr(each, "network", ""), getattr(each, "namespace", ""), each.name): each
        for each in (*state.policies, *state.published, *state.limits)
    }


def rest(state):
    """A state without those."""
    return evolve(state, policies=(), published=(), limits=(), revision=1)


def step(compiler, before, state):
    """To the next state by its documents alone, where nothing else differs; and whether so."""
    if before is not None and rest(before) == rest(state):
        old, new = documents(before), documents(state)
        names = [name for name in {*old, *new} if old.get(name) != new.get(name)]
        made = compiler.advance([(old.get(name), new.get(name)) for name in names], state.revision)
        if made is not None:
            return *made, True
    return *compiler.update(state), False


def check_journey(states, *, by_documents):
    """How many steps were made by their documents alone."""
    compiler, tables, last, advanced = Compiler("h1"), None, None, 0
    for state in states:
        before = tables
        if by_documents:
            tables, change, alone = step(compiler, last, state)
            last, advanced = state, advanced + alone
        else:
            tables, change = compiler.update(state)
        anew = Compiler("h1")
        fresh, _ = anew.update(state)
        assert tables == fresh
        assert compiler.published.beaten == anew.published.beaten
        assert len(tables.policy) == len(list(tables.policy))
        if before is None or change is None:
            assert before is None or by_documents  # two names had one number: all is made anew
        else:
            assert same(apply(before, change), fresh)
    return advanced


RELAXED = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@RELAXED
@given(journeys(), st.booleans())
def test_tables_depend_on_the_state_only(states, by_documents):
    """A compiler that saw every step has the tables of one that saw only the last; also where
    it was told of documents alone."""
    check_journey(states, by_documents=by_documents)


@RELAXED
@given(journeys(), st.booleans())
def test_twins(states, by_documents):
    """Likewise where names often hash to the same number."""
    real = Numbers._hash

    def narrow(self, name, again):
        return self._first + real(self, name, again) % 48

    with mock.patch.object(Numbers, "_hash", narrow):
        check_journey(states, by_documents=by_documents)


@pytest.mark.parametrize("suite", [KUBERNETES, CLUSTER], ids=["kubernetes", "cluster"])
def test_cases_one_after_another(suite):
    """All steps of the public suites as one journey: each replaces all policies at once,
    where one often takes up what another lets go of (a named port, a selector)."""
    steps = [(case.world, step) for case in suite for step in case.steps]
    states = [world.state(step, number) for number, (world, step) in enumerate(steps, 1)]
    assert check_journey(states, by_documents=False) == 0
    assert check_journey(states, by_documents=True) > len(states) / 2


def test_one_change_touches_little():
    """One policy of a hundred, one endpoint of a thousand: the change holds only theirs."""
    state = big(100, 1000)
    compiler = Compiler("h1")
    compiler.update(state)
    (more,) = load(
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: p0, namespace: n0}
        spec:
          podSelector: {matchLabels: {app: a0}}
          ingress: [{ports: [{port: 81}]}]
        """
    )
    policies = tuple(more if item.name == "p0" else item for item in state.policies)
    _, change = compiler.update(evolve(state, policies=policies, revision=2))
    assert {key.subject for key in change.set.policy} == {256}
    assert {key.subject for key in change.gone_policy} == {256}
    assert not change.set.endpoints
    new = evolve(state.endpoints[5], id=5000, name="new", address="10.2.0.1")
    grown = evolve(state, policies=policies, endpoints=(*state.endpoints, new), revision=3)
    _, change = compiler.update(grown)
    assert change.set.addresses.keys() == {(1, new.address)}
    assert change.set.endpoints.keys() == {5000}
    assert not change.set.policy
    assert not change.set.cidrs


def test_from_everybody_is_one_entry():
    """What allows every endpoint takes no entry for each of them; the world and the
    hosts have their own."""
    state = big(0, 300)
    policies = load(
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: all, namespace: n0}
        spec:
          podSelector: {matchLabels: {app: a0}}
          ingress: [{from: [{namespaceSelector: {}}]}]
        """
    )
    tables = compile_tables(evolve(state, policies=policies), "h1")
    allowed = {key.peer: record.allow for key, record in tables.policy.items()}
    outside = (contract.SLIM_IDENTITY_WORLD, contract.SLIM_IDENTITY_HOST)
    assert allowed == {contract.SLIM_IDENTITY_ANY: True, **dict.fromkeys(outside, False)}


def test_address_of_no_range_is_left_out():
    """An endpoint whose address is not its network's is nobody."""
    state = big(0, 100)
    stranger = evolve(state.endpoints[0], id=1000, address="192.168.0.1")
    compiler = Compiler("h1")
    before, _ = compiler.update(state)
    after, _ = compiler.update(evolve(state, endpoints=(*state.endpoints, stranger)))
    assert after == before
    again, _ = compiler.update(state)
    assert again == before


def test_oldest_members_keep_the_identity():
    """A newer endpoint that a range tells apart from the rest of its group gets a number
    of its own; the others keep the store's."""
    state = big(0, 100)
    policies = load(
        """
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {name: one, namespace: n0}
        spec:
          podSelector: {}
          ingress: [{from: [{ipBlock: {cidr: 10.9.0.0/16}}]}]
        """
    )
    state = evolve(state, policies=policies)
    old = compile_tables(state, "h1").endpoints
    assert {identifier: record.identity for identifier, record in old.items()} == {
        item.id: item.identity for item in state.endpoints
    }
    newer = evolve(state.endpoints[0], id=1000, name="newer", address="10.9.0.1")
    new = compile_tables(evolve(state, endpoints=(newer, *state.endpoints)), "h1").endpoints
    assert {key: record for key, record in new.items() if key != 1000} == old
    assert new[1000].identity >= 2**24
