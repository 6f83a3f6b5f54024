# SPDX-License-Identifier: Apache-2.0
"""Egress limits as records: what each endpoint of this host may send."""

from __future__ import annotations

from typing import ClassVar

from slimnet.model import Endpoint
from slimnet.policy.compile.follower import Follower
from slimnet.policy.compile.roster import DocumentName, Roster, Space
from slimnet.policy.document import EgressLimit
from slimnet.tables import LimitRecord

__all__ = ["LimitRecords"]


class LimitRecords(Follower[EgressLimit]):
    """Keeps the records of limits, with work in proportion to what a change touches.

    Args:
        host: the name of the host whose endpoints' records are wanted; ``None``: all.
        roster: the endpoints; the owner keeps it.

    Attributes:
        records: a new mapping after each change.
    """

    what: ClassVar[str] = "limits"

    def __init__(self, host: str | None, roster: Roster) -> None:
        super().__init__(roster)
        self._host = host
        self.records: dict[int, LimitRecord] = {}
        self._by_space: dict[Space, dict[DocumentName, EgressLimit]] = {}
        self._stale: dict[int, Endpoint | None] = {}

    def set_document(self, name: DocumentName, limit: EgressLimit | None) -> None:
        near = self._by_space.setdefault(name[:2], {})
        subjects = [near.pop(name).subject] if name in near else []
        self.documents.pop(name, None)
        if limit is not None:
            self.documents[name] = near[name] = limit
            subjects.append(limit.subject)
        for endpoint in self.roster.within(name[:2]):
            if any(subject.matches(endpoint.labels) for subject in subjects):
                self.set_endpoint(endpoint)

    def set_endpoint(self, endpoint: Endpoint) -> None:
        if self._host in {None, endpoint.host}:
            self._stale[endpoint.id] = endpoint

    def drop_endpoint(self, endpoint: Endpoint) -> None:
        if self._host in {None, endpoint.host}:
            self._stale[endpoint.id] = None

    def settle(self) -> set[int]:
        """Take the changes in; the endpoints whose records may differ."""
        stale, self._stale = self._stale, {}
        if stale:
            self.records = dict(self.records)
        for identifier, endpoint in stale.items():
            record = self._record(endpoint) if endpoint is not None else LimitRecord()
            if record == LimitRecord():
                self.records.pop(identifier, None)
            else:
                self.records[identifier] = record
        return set(stale)

    def _record(self, endpoint: Endpoint) -> LimitRecord:
        """Each lowest number of those that select it."""
        space = (endpoint.network, endpoint.namespace)
        found = [
            limit
            for limit in self._by_space.get(space, {}).values()
            if limit.subject.matches(endpoint.labels)
        ]
        return LimitRecord(
            min((limit.rate for limit in found if limit.rate), default=0),
            min((limit.connection_rate for limit in found if limit.connection_rate), default=0),
        )
