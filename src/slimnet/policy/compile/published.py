# SPDX-License-Identifier: Apache-2.0
"""Published ports as records: which ports of this host are endpoints'."""

from __future__ import annotations

from typing import ClassVar

from netaddr import IPAddress

from slimnet.model import Endpoint, Protocol
from slimnet.policy.compile.follower import Follower
from slimnet.policy.compile.roster import DocumentName, Roster
from slimnet.policy.compile.services import target_port
from slimnet.policy.document import PublishedPort
from slimnet.tables import PublishKey, PublishRecord

__all__ = ["Published"]

#: Host, protocol, port.
_Place = tuple[str, Protocol, int]


class Published(Follower[PublishedPort]):
    """Keeps the records of published ports, with work in proportion to what a change touches.

    Where two want one port of a host, at one address or one of them at all, the first by
    name has it.

    Args:
        host: the name of the host whose records are wanted.
        roster: the endpoints; the owner keeps it.

    Attributes:
        records: a new mapping after each change.
        beaten: who goes without on any host, and by whose fault.
    """

    what: ClassVar[str] = "published ports"

    def __init__(self, host: str | None, roster: Roster) -> None:
        super().__init__(roster)
        self._host = host
        self.records: dict[PublishKey, PublishRecord] = {}
        self.beaten: dict[DocumentName, DocumentName] = {}
        self._by_endpoint: dict[DocumentName, set[DocumentName]] = {}
        self._places: dict[DocumentName, _Place] = {}
        self._claims: dict[_Place, set[DocumentName]] = {}
        self._keys: dict[_Place, set[PublishKey]] = {}
        self._stale: set[DocumentName] = set()

    def set_document(self, name: DocumentName, port: PublishedPort | None) -> None:
        self._stale.add(name)
        old = self.documents.pop(name, None)
        if old is not None:
            self._by_endpoint[_endpoint(old)].remove(name)
        if port is not None:
            self.documents[name] = port
            self._by_endpoint.setdefault(_endpoint(port), set()).add(name)

    def set_endpoint(self, endpoint: Endpoint) -> None:
        name = (endpoint.network, endpoint.namespace, endpoint.name)
        self._stale |= self._by_endpoint.get(name, set())

    drop_endpoint = set_endpoint  # either way it is looked up anew

    def settle(self) -> set[PublishKey]:
        """Take the changes in; the keys whose records may differ."""
        stale, self._stale = self._stale, set()
        places = set()
        for name in stale:
            old, new = self._places.pop(name, None), self._place(name)
            if old is not None:
                self._claims[old].remove(name)
                self.beaten.pop(name, None)
                places.add(old)
            if new is not None:
                self._places[name] = new
                self._claims.setdefault(new, set()).add(name)
                places.add(new)
        if places:
            self.records = dict(self.records)
        changed: set[PublishKey] = set()
        for place in places:
            changed |= self._divide(place)
        return changed

    def target(self, name: DocumentName) -> tuple[Endpoint, int] | None:
        """The endpoint of a published port and its port; ``None`` where one is not there."""
        port = self.documents[name]
        endpoint = self.roster.named(_endpoint(port))
        if endpoint is None:
            return None
        number = target_port(endpoint, port)
        return None if number is None else (endpoint, number)

    def _place(self, name: DocumentName) -> _Place | None:
        """Where a document wants its port."""
        found = self.target(name) if name in self.documents else None
        if found is None:
            return None
        port = self.documents[name]
        return found[0].host, port.protocol, port.port

    def _divide(self, place: _Place) -> set[PublishKey]:
        """Who has a port, on which addresses."""
        host, protocol, number = place
        holders: dict[IPAddress | None, DocumentName] = {}
        for name in sorted(self._claims[place]):
            address = self.documents[name].address
            # All addresses, or this one; who wants all of them meets whoever has any.
            rival = holders.get(None) or holders.get(address)
            if address is None:
                rival = next(iter(holders.values()), None)
            if rival is None:
                holders[address] = name
                self.beaten.pop(name, None)
            else:
                self.beaten[name] = rival
        if not self._claims[place]:
            del self._claims[place]
        if host != self._host:
            return set()
        old = self._keys.pop(place, set())
        for key in old:
            del self.records[key]
        for address, name in holders.items():
            found = self.target(name)
            if found is not None:
                key = PublishKey(address, protocol, number)
                self.records[key] = PublishRecord(found[0].id, found[1])
                self._keys.setdefault(place, set()).add(key)
        return old | self._keys.get(place, set())


def _endpoint(port: PublishedPort) -> DocumentName:
    return port.network, port.namespace, port.endpoint
