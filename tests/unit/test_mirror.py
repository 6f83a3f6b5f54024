# SPDX-License-Identifier: Apache-2.0
"""The agent's copy of the store depends on what the store holds, never on how it got there."""

import tempfile

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from slimnet import records
from slimnet.agent.mirror import Mirror
from slimnet.model import Endpoint, Host, Namespace, Network
from slimnet.policy import parse
from slimnet.store.sqlite import SqliteStore

HERE = Host("h1", "192.0.2.1")


def document(version, kind, network="prod", **spec):
    annotations = {"slimnet.io/network": network}
    metadata = {"name": "web", "namespace": "default", "annotations": annotations}
    manifest = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    return parse([{"manifest": manifest}])[0].to_json()


RECORDS = {
    "networks/prod": [Network("prod", 1000, "10.1.0.0/24"), Network("prod", 7, "10.2.0.0/24")],
    "hosts/h1": [HERE, attrs.evolve(HERE, labels={"zone": "a"})],
    "hosts/h2": [Host("h2", "192.0.2.2")],
    "namespaces/prod/default": [Namespace("prod", "default", {"a": label}) for label in "xy"],
    "endpoints/prod/default/web": [
        Endpoint("prod", "web", "10.1.0.1", host, id=1, identity=256) for host in ("h1", "h2")
    ],
    "endpoints/prod/default/db": [Endpoint("prod", "db", "10.1.0.2", "h2", id=2, identity=257)],
    "endpoints/gone/default/x": [Endpoint("gone", "x", "10.1.0.2", "h2", id=3, identity=258)],
    "policies/prod/default/p": [{"manifest": 3}, {"kind": "Service", "value": {}}],
    "services/prod/default/shop": [
        document("v1", "Service", selector={"app": app}, ports=[{"port": 80}]) for app in "xy"
    ],
    "services/gone/default/shop": [
        document("v1", "Service", "gone", selector={"app": "x"}, ports=[{"port": 80}])
    ],
    "publishedports/prod/default/web": [
        document("slimnet.io/v1alpha1", "PublishedPort", endpoint="web", port=port)
        for port in (80, 81)
    ],
    "egresslimits/prod/default/web": [document("slimnet.io/v1alpha1", "EgressLimit", rate="1M")],
    "installed/h1": [{"revision": 3}],
    "counters/endpoint": [3],
}

change = st.sampled_from(sorted(RECORDS)).flatmap(
    lambda key: st.tuples(
        st.just(key),
        st.one_of(
            st.none(),
            st.sampled_from(RECORDS[key]).map(records.dump),
            st.sampled_from([b"", b"{", b"[]", b"{}", b"\xff", b"null", b'{"name": []}']),
        ),
    )
)


def view(mirror):
    state = mirror.state(HERE)
    parts = {
        field.name: sorted(map(str, getattr(state, field.name)))
        for field in attrs.fields(type(state))
        if field.name != "revision"
    }
    return parts, dict(mirror.problems), sorted(mirror.binding)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(change, min_size=1, max_size=4), max_size=8))
def test_following_equals_reading(batches):
    """After every sequence of changes, the copy that followed them equals one that is new."""
    with (
        tempfile.TemporaryDirectory() as directory,
        SqliteStore.open(f"sqlite://{directory}/store.db") as store,
    ):
        store.transact(put={"counters/start": b"1"})
        follower = Mirror(store)
        follower.catch_up()
        for batch in batches:
            before = view(follower)
            store.transact(
                put={key: value for key, value in batch if value is not None},
                delete=[key for key, value in batch if value is None],
            )
            changed = follower.catch_up()
            reader = Mirror(store)
            assert reader.catch_up()
            assert view(follower) == view(reader)
            assert follower.revision == reader.revision
            assert changed or view(follower) == before


def test_a_document_of_another_kind_is_none(tmp_path):
    """What stands under services is a service; the rest is left out, and said."""
    (limit,) = RECORDS["egresslimits/prod/default/web"]
    (port, _) = RECORDS["publishedports/prod/default/web"]
    with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as store:
        store.transact(
            put={
                "networks/prod": records.dump(RECORDS["networks/prod"][0]),
                "services/prod/default/web": records.dump(limit),
                "egresslimits/prod/default/web": records.dump(limit),
                "publishedports/prod/default/web": records.dump(port),
            }
        )
        mirror = Mirror(store)
        mirror.catch_up()
        state = mirror.state(HERE)
        assert state.services == ()
        assert [each.title for each in (*state.published, *state.limits)] == [
            "port:default/web",
            "limit:default/web",
        ]
        assert "a Service" in mirror.problems["services/prod/default/web"]
        assert mirror.binding == []
