# SPDX-License-Identifier: Apache-2.0
"""The contract of :class:`slimnet.abc.Store`, clause by clause."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

from slimnet.abc import Revision, Store, StoreEvent
from slimnet.exceptions import (
    ConfigError,
    Conflict,
    InvalidValue,
    NotFound,
    StoreUnreachable,
)

__all__ = ["check_store"]

#: Seconds that a short lease takes at first, and how often twice as many are tried where the
#: store needs longer than that for what is to be done before the lease has run out.
_LEASE = 0.5
_LONGER = 4


def check_store(
    url: str,
    opened: Callable[[str], Store],
    *,
    patience: float = 5.0,
    away: Callable[[], AbstractContextManager[object]] | None = None,
    forget: Callable[[], object] | None = None,
) -> list[str]:
    """Run every clause of the contract on a store.

    Works below a prefix of its own and removes what it wrote; other keys are
    not touched.

    Args:
        url: of the store.
        opened: opens it, such as ``SqliteStore.open``; called several times, as
            several processes would.
        patience: seconds for what takes the store a while.
        away: nobody reaches the store while its block lasts; by default only a store
            that was closed is tried.
        forget: has the store lose its history; by default a revision that is yet to come
            stands for one that is gone.

    Returns:
        the names of the clauses that were run.

    Raises:
        AssertionError: names the clause that does not hold.
    """
    clauses = [
        _refuses_foreign_url,
        _unreachable_when_closed,
        _put_and_get,
        _lists_below_a_prefix,
        _transaction_is_whole,
        _expectations,
        _nothing_done_is_no_revision,
        _counters_lose_nothing,
        _transaction_of_many_keys,
        _value_of_a_mebibyte,
        _too_much_is_refused,
        _watch_tells_in_order,
        _watch_ends_by_itself,
        _watch_wakes_up,
        _watch_tells_of_deletion,
        _watch_takes_prefixes,
        _watch_is_woken_by_its_own_only,
        _watch_passes_over_the_rest,
        _what_lies_apart_is_told_to_whom_names_it,
        _apart_is_watched_alone,
        _forgotten_history_is_a_conflict,
        _lease_of_each_key,
        _lease_runs_out,
        _lease_is_renewed,
        _lease_moves_with_a_put,
        _lease_of_a_key_that_is_not_put,
        _unknown_lease,
        _survives_closing,
        _closes_twice,
    ]
    if away is not None:
        clauses += [_watch_that_is_cut, _unreachable_when_away]
    if forget is not None:
        clauses.append(_history_that_was_compacted)
    for clause in clauses:
        brief = _LEASE
        while not _holds(
            clause, url, opened, patience, away or nullcontext, forget or (lambda: None), brief
        ):
            brief *= 2
    return [clause.__name__.strip("_") for clause in clauses]


def _holds(
    clause: Callable[[_Trial], None],
    url: str,
    opened: Callable[[str], Store],
    patience: float,
    away: Callable[[], AbstractContextManager[object]],
    forget: Callable[[], object],
    brief: float,
) -> bool:
    """Whether it was quick enough to say so with leases of ``brief`` seconds.

    Raises:
        AssertionError: the clause does not hold.
    """
    prefix = f"check-store/{time.time_ns()}/"
    store = opened(url)
    other = opened(url)
    try:
        clause(_Trial(url, opened, store, other, prefix, patience, away, forget, brief))
    except _SlowError as error:
        if brief < _LEASE * 2**_LONGER:
            return False
        raise AssertionError(f"{clause.__name__.strip('_')}: {error}") from error
    except AssertionError as error:
        raise AssertionError(f"{clause.__name__.strip('_')}: {error}") from error
    finally:
        store.close()
        with opened(url) as cleaner:
            cleaner.transact(delete=list(cleaner.list(prefix)[0]))
        other.close()
    return True


class _SlowError(Exception):
    """Whatever came of it, a lease may have run out before."""


class _Trial:
    """One clause's playground: two openers of one store, and a prefix."""

    def __init__(
        self,
        url: str,
        opened: Callable[[str], Store],
        store: Store,
        other: Store,
        prefix: str,
        patience: float,
        away: Callable[[], AbstractContextManager[object]],
        forget: Callable[[], object],
        brief: float,
    ) -> None:
        self.url = url
        self.opened = opened
        self.store = store
        self.other = other
        self.prefix = prefix
        self.patience = patience
        self.away = away
        self.forget = forget
        self.brief = brief

    def told(
        self, store: Store, after: Revision, timeout: float = 0
    ) -> list[tuple[str, bytes | None, Revision]]:
        """What a watcher of everything here is told."""
        events, _ = store.watch(self.prefix, after=after, timeout=timeout)
        return [(each.key, each.value, each.revision) for each in events]

    def told_of(self, prefix: str, after: Revision, count: int) -> list[StoreEvent]:
        """So many changes, which may come one after another."""
        found: list[StoreEvent] = []
        deadline = time.monotonic() + self.patience
        while len(found) < count and (left := deadline - time.monotonic()) > 0:
            events, after = self.store.watch(prefix, after=after, timeout=left)
            found += events
        return found

    def key(self, name: str) -> str:
        return self.prefix + name

    def eventually(self, holds: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self.patience + self.brief * 4
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    @contextmanager
    def within(self, seconds: float, *, since: float | None = None) -> Iterator[None]:
        """What is done here is done before a lease of so many seconds runs out.

        Raises:
            _SlowError: it took longer.
        """
        begin = time.monotonic() if since is None else since
        try:
            yield
        finally:
            took = time.monotonic() - begin
            if took >= seconds:
                raise _SlowError(f"the store took {took:.1f} s, a lease {seconds} s")


def _refuses_foreign_url(trial: _Trial) -> None:
    for url in ("", "nonsense", "no-such-store://x"):
        try:
            trial.opened(url).close()
        except ConfigError:
            continue
        raise AssertionError(f"opening {url!r} should be a ConfigError")


def _put_and_get(trial: _Trial) -> None:
    key = trial.key("a")
    _equal(None, trial.store.get(key), "a key that is not there")
    first = trial.store.transact(put={key: b"1"})
    _equal((b"1", first), trial.store.get(key), "what was put")
    _equal((b"1", first), trial.other.get(key), "what another opener sees")
    second = trial.other.transact(put={key: bytes(range(256))})
    _true(second > first, "every change has a greater revision")
    _equal((bytes(range(256)), second), trial.store.get(key), "what was put over it")
    third = trial.store.transact(delete=[key])
    _true(third > second, "a deletion has a revision too")
    _equal(None, trial.other.get(key), "a key that was deleted")


def _lists_below_a_prefix(trial: _Trial) -> None:
    below = {trial.key(name): name.encode() for name in ("x/1", "x/2", "x/ü", "x/ÿ\U0001f600")}
    revision = trial.store.transact(put={**below, trial.key("w"): b"", trial.key("y"): b""})
    found, at = trial.other.list(trial.key("x/"))
    _equal({key: (value, revision) for key, value in below.items()}, found, "the keys below x/")
    _true(at >= revision, "the list's revision is not older than what it lists")
    _equal(sorted(found), list(found), "keys are in order")
    _equal({}, trial.store.list(trial.key("none/"))[0], "below a prefix that nothing has")


def _transaction_is_whole(trial: _Trial) -> None:
    a, b, c = (trial.key(name) for name in "abc")
    trial.store.transact(put={a: b"1", c: b"1"})
    revision = trial.store.transact(put={a: b"2", b: b"2"}, delete=[c])
    found = trial.store.list(trial.prefix)[0]
    _equal({a: (b"2", revision), b: (b"2", revision)}, found, "one revision for all of it")


def _transaction_of_many_keys(trial: _Trial) -> None:
    guard, lease = trial.key("guard"), trial.store.lease(60)
    start = trial.store.transact(put={guard: b"1"})
    put = {trial.key(f"many/{number:04}"): b"%d" % number for number in range(1000)}
    leases = dict.fromkeys(list(put)[::2], lease)
    try:
        trial.store.transact(expect={guard: None}, put=put, leases=leases)
    except Conflict:
        _equal({}, trial.store.list(trial.key("many/"))[0], "a conflict changes nothing of it")
    else:
        raise AssertionError("an expectation of a large transaction does not hold: Conflict")
    revision = trial.store.transact(expect={guard: start}, put=put, leases=leases)
    found, _ = trial.other.list(trial.key("many/"))
    _equal({key: (value, revision) for key, value in put.items()}, found, "a thousand keys")
    told = trial.told(trial.other, start)
    _equal([(key, value, revision) for key, value in put.items()], sorted(told), "are told of")
    gone = trial.store.transact(expect={guard: start}, delete=[*put, trial.key("none")])
    _equal({}, trial.other.list(trial.key("many/"))[0], "a thousand keys that are deleted")
    told = trial.told(trial.other, revision)
    _equal([(key, None, gone) for key in put], sorted(told, key=str), "are told of")
    both = trial.key("both")
    trial.store.transact(put={both: b"1"})
    trial.store.transact(put={both: b"2"}, delete=[both, both])
    _equal(b"2", (trial.store.get(both) or [None])[0], "what is deleted and put at once")


def _value_of_a_mebibyte(trial: _Trial) -> None:
    key, start = trial.key("large"), trial.store.list(trial.prefix)[1]
    value = bytes(range(256)) * 4095  # with its key and what is around it
    guards = [trial.key(f"none/{number}") for number in range(64)]
    revision = trial.store.transact(expect=dict.fromkeys(guards), put={key: value})
    _whole(trial, key, value, start, revision)


def _whole(trial: _Trial, key: str, value: bytes, start: Revision, revision: Revision) -> None:
    _true(trial.other.get(key) == (value, revision), "a large value is got whole")
    found, _ = trial.other.list(trial.prefix)
    _true(found.get(key) == (value, revision), "and listed whole")
    _true((key, value, revision) in trial.told(trial.other, start), "and told whole")


def _too_much_is_refused(trial: _Trial) -> None:
    large, small = trial.key("large"), trial.key("small")
    several = {trial.key(f"large/{number}"): bytes(2**20) for number in range(4)}
    guards = {trial.key(f"none/{number}"): None for number in range(500)}
    attempts: list[tuple[str, dict[str, bytes], dict[str, None]]] = [
        (large, {small: b"1", large: bytes(2**21)}, {}),
        (trial.key("large/"), {small: b"1", **several}, {}),
        ("", {small: b"1"}, guards),
    ]
    for name, put, expect in attempts:
        _, start = trial.store.list(trial.prefix)
        try:
            revision = trial.store.transact(expect=expect, put=put)
        except InvalidValue as error:
            _true(name in str(error), f"the refusal names {name}: {error}")
            _equal({}, trial.other.list(trial.prefix)[0], "what is refused changes nothing")
            _equal([], trial.told(trial.other, start), "and nobody is told of it")
            continue
        for key, value in put.items():
            _whole(trial, key, value, start, revision)
        trial.store.transact(delete=put)


def _expectations(trial: _Trial) -> None:
    a, b = trial.key("a"), trial.key("b")
    first = trial.store.transact(expect={a: None}, put={a: b"1"})
    for expect in ({a: None}, {a: first - 1}, {a: first, b: first}):
        try:
            trial.other.transact(expect=expect, put={a: b"no", b: b"no"}, delete=[a])
        except Conflict:
            pass
        else:
            raise AssertionError(f"{expect} does not hold and was no Conflict")
        found = trial.store.list(trial.prefix)[0]
        _equal({a: (b"1", first)}, found, "a conflict changes nothing")
    second = trial.other.transact(expect={a: first, b: None}, put={b: b"2"})
    _equal((b"2", second), trial.store.get(b), "what holds goes through")


def _nothing_done_is_no_revision(trial: _Trial) -> None:
    _, before = trial.store.list(trial.prefix)
    trial.store.transact(delete=[trial.key("none")])
    trial.store.transact()
    _equal([], trial.told(trial.other, before), "deleting what is not there is no change")


def _counters_lose_nothing(trial: _Trial) -> None:
    key = trial.key("counter")
    trial.store.transact(put={key: b"0"})
    failures: list[BaseException] = []

    def count() -> None:
        try:
            with trial.opened(trial.url) as mine:
                for _ in range(25):
                    _increment(mine, key)
        except BaseException as error:  # noqa: BLE001  # told below, in the right thread
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _equal([], failures, "errors while four openers count")
    found = trial.store.get(key)
    _equal(b"100", found and found[0], "four openers that count to 25 each")


def _increment(store: Store, key: str) -> None:
    while True:
        found = store.get(key)
        value, revision = found or (b"0", None)
        try:
            store.transact(expect={key: revision}, put={key: b"%d" % (int(value) + 1)})
        except Conflict:
            continue
        return


def _watch_tells_in_order(trial: _Trial) -> None:
    _, start = trial.store.list(trial.prefix)
    a, b = trial.key("a"), trial.key("b")
    first = trial.store.transact(put={a: b"1"})
    trial.store.transact(put={f"check-store-else{trial.prefix}": b""})
    trial.store.transact(delete=[f"check-store-else{trial.prefix}"])
    second = trial.store.transact(put={a: b"2", b: b"2"})
    told = trial.told(trial.other, start)
    wanted = [(a, b"1", first), (a, b"2", second), (b, b"2", second)]
    _equal(wanted, [told[0], *sorted(told[1:])] if told else told, "every change, oldest first")
    told = trial.told(trial.other, first)
    _equal(wanted[1:], sorted(told), "only changes after the revision")


def _watch_ends_by_itself(trial: _Trial) -> None:
    _, start = trial.store.list(trial.prefix)
    begin = time.monotonic()
    _equal([], trial.told(trial.store, start, 0.2), "nothing happened")
    took = time.monotonic() - begin
    _true(0.15 <= took < 0.2 + trial.patience, f"a timeout of 0.2 s took {took:.2f} s")


def _watch_wakes_up(trial: _Trial) -> None:
    _, start = trial.store.list(trial.prefix)
    key = trial.key("late")
    timer = threading.Timer(0.1, lambda: trial.other.transact(put={key: b"1"}))
    timer.start()
    begin = time.monotonic()
    told = trial.told(trial.store, start, trial.patience * 4)
    took = time.monotonic() - begin
    timer.join()
    _equal([(key, b"1")], [each[:2] for each in told], "a change while waiting")
    _true(took < trial.patience, f"it took {took:.2f} s to tell")


def _watch_tells_of_deletion(trial: _Trial) -> None:
    key = trial.key("a")
    start = trial.store.transact(put={key: b"1"})
    gone = trial.store.transact(delete=[key])
    told = trial.told(trial.other, start)
    _equal([(key, None, gone)], told, "a deletion has no value")


def _watch_takes_prefixes(trial: _Trial) -> None:
    a, b, c, ab = (trial.key(name) for name in ("a/1", "b/1", "c/1", "ab"))
    _, start = trial.store.list(trial.prefix)
    first = trial.store.transact(put={a: b"1", b: b"1", c: b"1", ab: b"1"})
    second = trial.store.transact(put={c: b"2"}, delete=[b])
    third = trial.store.transact(put={a: b"3"})
    prefixes = (trial.key("b/"), trial.key("a/"), trial.key("none/"))
    events, reached = trial.other.watch(*prefixes, after=start, timeout=0)
    told = [(each.key, each.value, each.revision) for each in events]
    wanted = [(a, b"1", first), (b, b"1", first), (b, None, second), (a, b"3", third)]
    told[:2] = sorted(told[:2], key=str)  # those of one revision have no order
    _equal(wanted, told, "what changed below two of three prefixes")
    _true(reached >= third, "the answer holds up to the last change at least")


def _watch_is_woken_by_its_own_only(trial: _Trial) -> None:
    _, start = trial.store.list(trial.prefix)
    elsewhere, mine = trial.key("else/1"), trial.key("mine/1")

    def change() -> None:
        for _ in range(5):
            last.append(trial.other.transact(put={elsewhere: b""}))
            time.sleep(0.05)

    last: list[Revision] = []
    thread = threading.Thread(target=change)
    begin = time.monotonic()
    thread.start()
    events, _ = trial.store.watch(trial.key("mine/"), after=start, timeout=1)
    took = time.monotonic() - begin
    thread.join()
    _equal([], list(events), "what changed elsewhere")
    _true(took >= 0.9, f"a wait of 1 s took {took:.2f} s although only others' keys changed")
    revision = trial.other.transact(put={mine: b"1"})
    events, reached = trial.store.watch(trial.key("mine/"), after=start, timeout=0)
    _equal([(mine, b"1", revision)], [(e.key, e.value, e.revision) for e in events], "its own")
    _true(reached >= revision > last[-1], "the answer holds up to it at least")


def _watch_passes_over_the_rest(trial: _Trial) -> None:
    _, start = trial.store.list(trial.prefix)
    revision = trial.store.transact(put={trial.key("else/1"): b""})
    events, reached = trial.other.watch(trial.key("mine/"), after=start, timeout=0)
    _equal([], list(events), "what changed elsewhere")
    _true(reached >= revision, f"the answer holds up to {revision}, where others' changes end")
    mine = trial.key("mine/1")
    later = trial.store.transact(put={mine: b"1"})
    events, _ = trial.other.watch(trial.key("mine/"), after=reached, timeout=0)
    _equal([(mine, later)], [(each.key, each.revision) for each in events], "what comes after it")


def _what_lies_apart_is_told_to_whom_names_it(trial: _Trial) -> None:
    own = f"~{trial.prefix}"
    apart, other, beside = (f"{own}{name}" for name in ("mine/1", "else/1", "mine/2"))
    near = trial.key("mine/1")
    try:
        pairs, start = trial.store.list(own)
        _equal({}, pairs, "nothing lies apart at first")
        first = trial.store.transact(put={apart: b"1", other: b"1"})
        _equal({apart, other}, set(trial.other.list(own)[0]), "it is listed as all others")
        begin = time.monotonic()
        events, _ = trial.store.watch("", after=start, timeout=0.5)
        foreign = [each for each in events if each.key in (apart, other)]
        _equal([], foreign, "it is told to nobody who does not name it")
        _true(events or time.monotonic() - begin >= 0.4, "and wakes none of them")
        second = trial.other.transact(put={near: b"2", apart: b"2"})
        near_only = [(each.key, each.value) for each in trial.told_of(trial.prefix, start, 1)]
        _equal([(near, b"2")], near_only, "what was changed together with it")
        third = trial.other.transact(put={beside: b"3"}, delete=[apart])
        found = trial.told_of(f"{own}mine/", start, 4)
        told = [(each.key, each.value, each.revision) for each in found]
        wanted = [(apart, b"1", first), (apart, b"2", second), (apart, None, third)]
        told[2:] = sorted(told[2:], key=str)
        _equal([*wanted, (beside, b"3", third)], told, "every change, to whom names it")
    finally:
        trial.store.transact(delete=trial.store.list(own)[0])


def _apart_is_watched_alone(trial: _Trial) -> None:
    _, start = trial.store.list(trial.prefix)
    for prefixes in (("~a/", trial.prefix), (trial.prefix, "~a/"), ("~a/", "~b/")):
        try:
            trial.store.watch(*prefixes, after=start, timeout=0)
        except InvalidValue:
            continue
        raise AssertionError(f"watching {prefixes} should be InvalidValue")


def _forgotten_history_is_a_conflict(trial: _Trial) -> None:
    _, now = trial.store.list(trial.prefix)
    try:
        told = trial.told(trial.store, now + 1_000_000)
    except Conflict:
        return
    _equal([], told, "a revision that is yet to come")


def _lease_runs_out(trial: _Trial) -> None:
    tied, free = trial.key("tied"), trial.key("free")
    start = trial.store.transact(put={free: b"1"})
    with trial.within(trial.brief):
        lease = trial.store.lease(trial.brief)
        trial.store.transact(put={tied: b"1"}, leases={tied: lease})
        _true(trial.other.get(tied) is not None, "a leased key is there at first")
    _true(trial.eventually(lambda: trial.other.get(tied) is None), "and goes with its lease")
    _true(trial.other.get(free) is not None, "a key without a lease stays")
    told = [(each.key, each.value) for each in trial.told_of(trial.prefix, start, 2)]
    _equal([(tied, b"1"), (tied, None)], told, "a watcher is told that it went")


def _lease_is_renewed(trial: _Trial) -> None:
    key = trial.key("tied")
    seconds, begun = trial.brief * 4, time.monotonic()
    lease = trial.store.lease(seconds)
    with trial.within(seconds, since=begun):
        trial.store.transact(put={key: b"1"}, leases={key: lease})
    for _ in range(6):
        time.sleep(trial.brief)
        before = time.monotonic()
        with trial.within(seconds, since=begun):
            trial.store.renew(lease)
        begun = before
    with trial.within(seconds, since=begun):
        _true(trial.other.get(key) is not None, "a renewed lease holds its key")
    _true(trial.eventually(lambda: trial.other.get(key) is None), "and loses it after the last")
    _raises_not_found(lambda: trial.store.renew(lease), "renewing a lease that ran out")


def _lease_moves_with_a_put(trial: _Trial) -> None:
    again, free = trial.key("again"), trial.key("free")
    long = trial.store.lease(60)
    with trial.within(trial.brief):
        short = dict.fromkeys((again, free), trial.store.lease(trial.brief))
        trial.store.transact(put={again: b"1", free: b"1"}, leases=short)
        trial.store.transact(put={again: b"2"}, leases={again: long})
        trial.store.transact(put={free: b"2"})
    time.sleep(trial.brief * 2)
    found = [trial.other.get(key) for key in (again, free)]
    values = [each and each[0] for each in found]
    _equal([b"2", b"2"], values, "a later put ties a key to its own lease, or to none")


def _lease_of_each_key(trial: _Trial) -> None:
    long = trial.store.lease(60)
    brief, lasting, free = (trial.key(name) for name in ("brief", "lasting", "free"))
    put = dict.fromkeys((brief, lasting, free), b"1")
    with trial.within(trial.brief):
        short = trial.store.lease(trial.brief)
        trial.store.transact(put=put, leases={brief: short, lasting: long})
    _true(trial.eventually(lambda: trial.other.get(brief) is None), "a key goes with its lease")
    found = sorted(trial.other.list(trial.prefix)[0])
    _equal([free, lasting], found, "those of another lease or of none, put with it, stay")


def _lease_of_a_key_that_is_not_put(trial: _Trial) -> None:
    lease, key, other = trial.store.lease(60), trial.key("a"), trial.key("b")
    try:
        trial.store.transact(put={key: b"1"}, leases={other: lease})
    except InvalidValue:
        _equal(None, trial.other.get(key), "and nothing was put")
        return
    raise AssertionError("a lease for a key that is not put should be InvalidValue")


def _unknown_lease(trial: _Trial) -> None:
    key = trial.key("a")
    _raises_not_found(lambda: trial.store.renew(2**40), "renewing an unknown lease")
    _raises_not_found(
        lambda: trial.store.transact(put={key: b"1"}, leases={key: 2**40}), "putting with one"
    )
    _equal(None, trial.other.get(key), "and nothing was put")


def _survives_closing(trial: _Trial) -> None:
    key = trial.key("a")
    revision = trial.store.transact(put={key: b"1"})
    trial.store.close()
    with trial.opened(trial.url) as again:
        _equal((b"1", revision), again.get(key), "what another opener finds later")
        _equal([(key, b"1", revision)], trial.told(again, revision - 1), "its history is there too")


def _closes_twice(trial: _Trial) -> None:
    for store, _ in itertools.product((trial.store, trial.other), range(2)):
        store.close()


def _unreachable_when_closed(trial: _Trial) -> None:
    lease = trial.store.lease(60)
    trial.store.close()
    _unreachable(trial, trial.store, lease, "a store that was closed")


def _unreachable_when_away(trial: _Trial) -> None:
    key = trial.key("before")
    revision = trial.store.transact(put={key: b"1"})
    lease = trial.store.lease(60)
    with trial.away():
        _unreachable(trial, trial.store, lease, "a store that is away")
        try:
            trial.opened(trial.url).close()
        except StoreUnreachable:
            pass
        else:
            raise AssertionError("opening one that is away should raise StoreUnreachable")
    _equal((b"1", revision), trial.store.get(key), "what a store has that is back")
    _equal([(key, b"1", revision)], trial.told(trial.store, revision - 1), "its history")
    trial.store.renew(lease)


def _watch_that_is_cut(trial: _Trial) -> None:
    a, b = trial.key("a"), trial.key("b")
    _, start = trial.store.list(trial.prefix)
    told: list[tuple[str, bytes | None, Revision]] = []
    failures: list[BaseException] = []
    cut, changed, over = (threading.Event() for _ in range(3))

    def follow() -> None:
        after = start
        while not over.is_set():
            try:
                events, after = trial.store.watch(trial.prefix, after=after, timeout=0.5)
            except StoreUnreachable:
                cut.set()
                changed.wait()  # what it is not told of while it is away
                continue
            except BaseException as error:  # noqa: BLE001  # told below, in the right thread
                failures.append(error)
                return
            told.extend((each.key, each.value, each.revision) for each in events)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        first = trial.other.transact(put={a: b"1"})
        _true(trial.eventually(lambda: bool(told or failures)), "a watcher is told before the cut")
        with trial.away():
            cut.wait(2)  # one that asks others meanwhile is not cut
        second = trial.other.transact(put={b: b"2"})
        third = trial.other.transact(delete=[a])
        changed.set()
        trial.eventually(lambda: len(told) >= 3 or bool(failures))
    finally:
        over.set()
        changed.set()
        thread.join()
    _equal([], failures, "errors of a watcher that was cut")
    wanted = [(a, b"1", first), (b, b"2", second), (a, None, third)]
    _equal(wanted, told, "with the same revision again nothing is lost and nothing told twice")


def _history_that_was_compacted(trial: _Trial) -> None:
    key = trial.key("a")
    start = trial.store.transact(put={key: b"1"})
    for value in (b"2", b"3"):
        last = trial.store.transact(put={key: value})
    told: list[tuple[str, bytes | None, Revision]] = []

    def follow() -> None:
        with suppress(StoreUnreachable):  # it was closed, as something else does not hold
            told.extend(trial.told(trial.store, last, trial.patience * 2))

    thread = threading.Thread(target=follow)
    thread.start()
    trial.forget()
    with trial.opened(trial.url) as fresh:
        try:
            fresh.watch(trial.prefix, after=start, timeout=0)
        except Conflict:
            pass
        else:
            raise AssertionError("a history that is gone was no Conflict")
        found, at = fresh.list(trial.prefix)
        _equal({key: (b"3", last)}, found, "the keys stay")
        fourth = trial.other.transact(put={key: b"4"})
        _equal([(key, b"4", fourth)], trial.told(fresh, at), "what is told after a new list")
    thread.join()
    _equal([(key, b"4", fourth)], told, "one that knew everything waits on")


def _unreachable(trial: _Trial, store: Store, lease: int, what: str) -> None:
    """Every method raises this error, and no other that a socket or a file may have raised."""
    key = trial.key("a")
    calls: Mapping[str, Callable[[], object]] = {
        "get": lambda: store.get(key),
        "list": lambda: store.list(trial.prefix),
        "transact": lambda: store.transact(put={key: b"1"}),
        "watch": lambda: store.watch(trial.prefix, after=0, timeout=0),
        "lease": lambda: store.lease(60),
        "renew": lambda: store.renew(lease),
    }
    for name, call in calls.items():
        try:
            call()
        except StoreUnreachable:
            continue
        except Exception as error:
            came = f"{type(error).__name__}: {error}"
            raise AssertionError(f"{what}: {name} wants StoreUnreachable, got {came}") from error
        raise AssertionError(f"{what}: {name} should raise StoreUnreachable")


def _raises_not_found(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except NotFound:
        return
    raise AssertionError(f"{what} should be NotFound")


def _equal(wanted: object, got: object, what: str) -> None:
    if wanted != got:
        raise AssertionError(f"{what}: wanted {wanted!r}, got {got!r}")


def _true(holds: object, what: str) -> None:
    if not holds:
        raise AssertionError(what)
