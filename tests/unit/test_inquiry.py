# SPDX-License-Identifier: Apache-2.0
"""Questions from host to host, over a real store."""

import threading
import time

import pytest

from slimnet import records
from slimnet.agent import inquiry
from slimnet.agent.inquiry import Inquiries
from slimnet.exceptions import AgentUnreachable, InUse, NotFound, SlimnetError
from slimnet.store.sqlite import SqliteStore


@pytest.fixture
def store(tmp_path):
    with SqliteStore.open(f"sqlite://{tmp_path}/store.db") as opened:
        yield opened


def left(store):
    return [*store.list("~inquiries/")[0], *store.list("~answers/")[0]]


def refuse():
    raise InUse("taken")


ANSWERS = {"sum": lambda a, b: a + b, "none": lambda: None, "refuse": refuse, "fail": lambda: {}[1]}


@pytest.fixture
def there(store, monkeypatch):
    """Host h2, which follows the store as an agent does, on however slow a machine."""
    monkeypatch.setattr(inquiry, "PATIENCE", 60)
    stop = threading.Event()

    def follow():
        host = Inquiries(store, "h2", ANSWERS)
        while not stop.is_set():
            if host.wait(0.05):
                host.answer()

    thread = threading.Thread(target=follow)
    thread.start()
    yield
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_asked_and_answered(store, there):
    here = Inquiries(store, "h1", {})
    assert here.ask("h2", "sum", a=2, b=3) == 5
    assert here.ask("h2", "none") is None
    assert left(store) == []


def test_errors_are_answers(store, there):
    here = Inquiries(store, "h1", {})
    with pytest.raises(InUse, match="taken"):
        here.ask("h2", "refuse")
    with pytest.raises(SlimnetError, match="host h2: KeyError"):
        here.ask("h2", "fail")
    with pytest.raises(NotFound, match="host h2 does not know that question"):
        here.ask("h2", "weather")
    with pytest.raises(SlimnetError, match="host h2: TypeError"):
        here.ask("h2", "sum", c=1)
    assert here.ask("h2", "sum", a=1, b=1) == 2
    assert left(store) == []


def test_oneself_is_asked_directly(store):
    before = store.list("")[1]
    assert Inquiries(store, "h1", ANSWERS).ask("h1", "sum", a=1, b=2) == 3
    assert store.list("")[1] == before


def test_a_host_that_does_not_answer(store):
    begin = time.monotonic()
    with pytest.raises(AgentUnreachable, match="the agent of host h3 did not answer in 2 s"):
        Inquiries(store, "h1", {}).ask("h3", "sum", a=1, b=2)
    assert 2 <= time.monotonic() - begin < 30
    assert left(store) == []


def test_what_is_asked_of_others_is_theirs(store):
    """A host neither answers nor even hears of it."""
    host = Inquiries(store, "h1", ANSWERS)
    store.transact(put={"~inquiries/h2/1": b"{}"})
    assert host.wait(0) is False
    store.transact(put={"~inquiries/h2/2": b"{}", "~inquiries/h11/1": b"{}"})
    assert host.wait(0.2) is False
    store.transact(put={"~inquiries/h2/3": b"{}", "~inquiries/h1/1": b"{}"})
    assert host.wait(30) is True
    host.answer()
    assert host.wait(0) is False
    assert left(store) == [
        "~inquiries/h1/1",
        "~inquiries/h11/1",
        *(f"~inquiries/h2/{number}" for number in (1, 2, 3)),
        "~answers/1",
    ]


def test_nobody_waits_any_more(store):
    """No answer is written to a question that is gone, or whose lease is."""
    host = Inquiries(store, "h2", ANSWERS)
    record = records.dump({"question": "none", "fields": {}, "lease": 77})
    store.transact(put={"~inquiries/h2/1": record})
    assert host.wait(0)
    store.transact(delete=["~inquiries/h2/1"])
    host.answer()
    store.transact(put={"~inquiries/h2/2": record})
    assert host.wait(30)
    host.answer()
    assert left(store) == ["~inquiries/h2/2"]


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"question": []}', b'{"fields": 3}'])
def test_a_question_that_cannot_be_read(store, record):
    lease = store.lease(60)
    store.transact(put={"~inquiries/h2/1": record}, leases={"~inquiries/h2/1": lease})
    host = Inquiries(store, "h2", ANSWERS)
    assert host.wait(0)
    host.answer()
    assert b"error" in store.get("~answers/1")[0]


def test_the_lease_clears_up_after_one_that_was_killed(store, run_out, there):
    """Both keys go with the lease of the question."""
    lease = store.lease(60)
    record = {"question": "sum", "fields": {"a": 1, "b": 2}, "lease": lease}
    revision = store.transact(
        put={"~inquiries/h2/1": records.dump(record)}, leases={"~inquiries/h2/1": lease}
    )
    (event,), _ = store.watch("~answers/", after=revision, timeout=30)
    assert b"3" in event.value
    run_out()
    assert left(store) == []
