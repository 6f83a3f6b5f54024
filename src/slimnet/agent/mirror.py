# SPDX-License-Identifier: Apache-2.0
"""The agent's copy of the store, kept up by its history."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slimnet import records
from slimnet.abc import Revision, Store, StoreEvent
from slimnet.cluster import keys
from slimnet.cluster.keyring import Keyring
from slimnet.cluster.own import FORMAT_KEY, ID_KEY, check_format, check_id
from slimnet.cluster.progress import wanted
from slimnet.exceptions import Conflict, InvalidValue
from slimnet.model import Endpoint, Host, Network
from slimnet.policy.compile.compiler import DocumentChange
from slimnet.policy.document import EgressLimit, Policy, PublishedPort, Service
from slimnet.policy.state import State

__all__ = ["Mirror"]

_log = logging.getLogger(__name__)

#: The first part of a key to how what stands below it is read.
_DECODE: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    keys.NETWORK.kind: records.network,
    keys.HOST.kind: records.host,
    keys.NAMESPACE.kind: records.namespace,
    keys.ENDPOINT.kind: records.endpoint,
    keys.POLICY.kind: Policy.from_json,
    keys.CLUSTER_POLICY.kind: Policy.from_json,
    keys.SERVICE.kind: Service.from_json,
    keys.PUBLISHED_PORT.kind: PublishedPort.from_json,
    keys.EGRESS_LIMIT.kind: EgressLimit.from_json,
}
#: Kinds that :meth:`Mirror.changes` tells by themselves: they say who may, not who there is.
_ALONE = frozenset(
    each.kind for each in (keys.POLICY, keys.CLUSTER_POLICY, keys.PUBLISHED_PORT, keys.EGRESS_LIMIT)
)
#: Without one of these a policy would be weaker than it was written.
_BINDING = frozenset(each.kind for each in (keys.NAMESPACE, keys.POLICY, keys.CLUSTER_POLICY))


class Mirror:
    """Every record of the store, decoded.

    A record that cannot be read is left out and noted in :attr:`problems`.
    For an endpoint, a host, a network, a service or a published port that is
    safe: what is not there is refused. For a policy it is not: then
    :attr:`binding` says so. A limit is not binding: nobody is let in without one.

    Args:
        store: to read.
        cluster: id of the store; another one in its place is not read. Empty: any is.
    """

    def __init__(self, store: Store, cluster: str = "") -> None:
        self.store = store
        self._prefixes = (*(f"{kind}/" for kind in _DECODE), keys.KEYRING.at(), keys.WANTED.at())
        self._prefixes += (FORMAT_KEY,)
        self._cluster = cluster
        #: Which the cluster's keys are; ``None``: it has never changed them.
        self.keyring: Keyring | None = None
        self._own = keys.CLUSTER_ID.at(cluster) if cluster else ""
        if self._own:
            self._prefixes += (self._own,)
        self._made: Revision | None = None
        #: Whether the store was wiped and restored: who set it again takes it back.
        self.remade = False
        #: Of the store, up to which this is a copy; 0 before the first.
        self.revision = 0
        #: Up to which every change that can concern tables was taken over.
        self.followed = 0
        #: Of the last such change that is known: what waits for others to follow.
        self.changed = 0
        #: Key to what is wrong with its record.
        self.problems: dict[str, str] = {}
        #: The keys that nobody here knows, of when the whole store was read last.
        self.unknown: list[str] = []
        #: The revision that somebody waits for all hosts to have in force.
        self.wanted = 0
        #: What :meth:`wait` was told: from which revision on, to which.
        self._told: tuple[Revision, Sequence[StoreEvent], Revision] | None = None
        self._kinds: dict[str, dict[str, Any]] = {kind: {} for kind in _DECODE}
        #: What :meth:`changes` answers next, by key.
        self._changes: dict[str, DocumentChange] | None = None
        self._lock = threading.RLock()
        # Held while the store is asked, which may take long: what is known is read meanwhile.
        self._asking = threading.RLock()

    @property
    def binding(self) -> list[str]:
        """The problems without whose cure no tables may be made."""
        return [text for key, text in self.problems.items() if keys.kind_of(key) in _BINDING]

    def catch_up(self) -> bool:
        """Ask the store what changed since, and take it over; whether that can change any
        tables."""
        with self._asking:
            if self.revision:
                after = self.revision
                try:
                    return self._take_all(
                        *self.store.watch(*self._prefixes, after=after, timeout=0)
                    )
                except Conflict as error:
                    _log.info("reading the whole store again: %s", error)
            self._read()
            return True

    def wait(self, timeout: float) -> None:
        """Wait until something of what it follows changes, for :meth:`take_told` to take
        over, or ``timeout`` seconds. No lock is held meanwhile."""
        after = self.revision
        if not after:  # everything is to be read first
            return
        try:
            self._told = after, *self.store.watch(*self._prefixes, after=after, timeout=timeout)
        except Conflict as error:
            _log.info("the store's history is gone: %s", error)
            self.forget()

    def take_told(self) -> bool:
        """Take over what :meth:`wait` was told; like :meth:`catch_up`, but the store is not
        asked, unless it is to be read anew."""
        with self._asking:
            told, self._told = self._told, None
            if not self.revision:
                return self.catch_up()
            if told is None or told[0] != self.revision:  # it was asked meanwhile, and said more
                return False
            try:
                return self._take_all(*told[1:])
            except Conflict as error:
                _log.info("reading the whole store again: %s", error)
            self._read()
            return True

    def forget(self) -> None:
        """Read the whole store the next time; it goes on answering from its copy."""
        with self._asking, self._lock:
            self.revision = 0

    def state(self, host: Host) -> State:
        """What tables are compiled from, seen from ``host``: the hosts that are
        alive, ``host`` among them even if its lease ran out, and their endpoints."""
        with self._lock:
            hosts = {host.name: host} | {each.name: each for each in self.hosts()}
            networks = {each.name: each for each in self.networks()}

            def of_networks(key: keys.Key) -> tuple[Any, ...]:
                every = self._kinds[key.kind].values()
                return tuple(each for each in every if each.network in networks)

            return State(
                networks=tuple(networks.values()),
                hosts=tuple(hosts.values()),
                namespaces=tuple(self._kinds[keys.NAMESPACE.kind].values()),
                endpoints=tuple(
                    each
                    for each in self.endpoints()
                    if each.host in hosts and each.network in networks
                ),
                policies=(
                    *self._kinds[keys.CLUSTER_POLICY.kind].values(),
                    *self._kinds[keys.POLICY.kind].values(),
                ),
                revision=self.revision,
                services=of_networks(keys.SERVICE),
                published=of_networks(keys.PUBLISHED_PORT),
                limits=of_networks(keys.EGRESS_LIMIT),
            )

    def changes(self) -> list[DocumentChange] | None:
        """What became of policies, published ports and limits since this was asked last;
        ``None`` where more changed than these, or a record of them cannot be read, or could
        not: :meth:`state` has it all."""
        with self._lock:
            found, self._changes = self._changes, {}
        if found is None:
            return None
        return [(was, is_now) for was, is_now in found.values() if was != is_now]

    def all(self, *kinds: str) -> list[Any]:
        """What it knows of these kinds (:attr:`slimnet.cluster.keys.Key.kind`), kind by
        kind, each in the order of the store."""
        with self._lock:
            return [value for each in kinds for _, value in sorted(self._kinds[each].items())]

    def networks(self) -> list[Network]:
        """All networks."""
        with self._lock:
            return list(self._kinds[keys.NETWORK.kind].values())

    def hosts(self) -> list[Host]:
        """The hosts that are alive."""
        with self._lock:
            return list(self._kinds[keys.HOST.kind].values())

    def endpoints(self, host: str | None = None) -> list[Endpoint]:
        """All endpoints, or those of one host."""
        with self._lock:
            every = self._kinds[keys.ENDPOINT.kind].values()
            return [each for each in every if host is None or each.host == host]

    def _take_all(self, events: Sequence[StoreEvent], reached: Revision) -> bool:
        changed = False
        if any(event.key in (self._own, FORMAT_KEY) for event in events):
            # Everything went, or comes again: nothing of it is to be taken for a change.
            raise Conflict("the store was wiped, restored, or is of another format")
        with self._lock:
            for event in events:
                changed |= self._take(event.key, event.value)
                if keys.kind_of(event.key) in _DECODE:
                    self.followed = self.changed = event.revision
            self.revision = reached
        return changed

    def _read(self) -> None:
        pairs, revision = self.store.list("")
        check_format(pairs[FORMAT_KEY][0] if FORMAT_KEY in pairs else None)
        if self._cluster:
            check_id(pairs[ID_KEY][0] if ID_KEY in pairs else None, self._cluster)
            _, made = pairs.get(self._own, (b"", None))
            self.remade |= self._made not in (None, made)
            self._made = made
        unknown = keys.unknown(pairs)
        if unknown and unknown != self.unknown:
            _log.warning("the store holds what is left alone: %s", keys.named(unknown))
        with self._lock:
            self.unknown = unknown
            self.problems.clear()
            self.changed = self.wanted = 0
            self.keyring = None
            self._changes = None
            self._kinds = {kind: {} for kind in _DECODE}
            for key, (value, changed) in pairs.items():
                self._take(key, value)
                if keys.kind_of(key) in _DECODE:
                    self.changed = max(self.changed, changed)
            self.revision = self.followed = revision

    def _take(self, key: str, value: bytes | None) -> bool:
        kind = keys.kind_of(key)
        if key == keys.KEYRING.at():
            self._take_keyring(key, value)
        if key == keys.WANTED.at():
            self.wanted = wanted(value)
        if kind not in _DECODE:
            return False
        unreadable = self.problems.pop(key, None) is not None
        known, found = self._kinds[kind].get(key), None
        if value is not None:
            try:
                found = records.load(key, value, _DECODE[kind])
            except InvalidValue as error:
                self.problems[key] = str(error)
                _log.warning("%s", error)
                unreadable = True
        if found == known and not unreadable:
            return False
        if found is None:
            self._kinds[kind].pop(key, None)
        elif found != known:
            self._kinds[kind][key] = found
        if kind not in _ALONE or unreadable:
            self._changes = None
        elif self._changes is not None:
            was, _ = self._changes.pop(key, (known, None))
            self._changes[key] = (was, found)
        return True

    def _take_keyring(self, key: str, value: bytes | None) -> None:
        """One that cannot be read changes no key of this host."""
        self.problems.pop(key, None)
        try:
            self.keyring = None if value is None else Keyring.load(value)
        except InvalidValue as error:
            self.problems[key] = str(error)
            _log.warning("%s", error)
