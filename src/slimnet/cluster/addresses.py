# SPDX-License-Identifier: Apache-2.0
"""Which addresses endpoints and services have, and which one is next."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from netaddr import IPAddress

from slimnet.abc import Revision, Store
from slimnet.cluster import keys
from slimnet.exceptions import AlreadyExists, Conflict, InvalidValue
from slimnet.model import Network

__all__ = ["Addresses"]


#: Among how many free addresses a place is drawn where others were quicker, at first and at most.
_SPREAD, _WIDEST = 64, 4096


class Addresses:
    """A copy of what is taken, kept up by the store's history: to give out an address
    costs what changed since the last one, whatever the size of the network. Threads may
    share one.

    It may be behind: who writes an address down expects that nobody has it.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        #: Up to which this is a copy; 0: everything is to be read.
        self._revision: Revision = 0
        #: Network to the addresses in it that are taken, as integers.
        self._taken: defaultdict[str, set[int]] = defaultdict(set)
        #: Network to the first address of a range, to the first that may be free: all
        #: those between are taken.
        self._floors: defaultdict[str, dict[int, int]] = defaultdict(dict)
        #: How many free addresses are left to others, and among how many that was drawn.
        self._passed, self._spread = 0, _SPREAD
        #: Network and address that were chosen last.
        self._chosen = "", 0

    def choose(
        self,
        network: Network,
        wanted: Any,
        field: str = "endpoint.address",
        meanwhile: Collection[str] = (),
        turn: int = 0,
    ) -> IPAddress:
        """An address for an endpoint or a service: the wanted one, or the first that is free.

        Who finds that others were quicker goes some free addresses further and stays there, each
        host at a distance of its own: many that choose at the same time soon never meet, and
        none has to be asked, or told when a host goes, as with blocks that are assigned.

        Args:
            network: whose it will be.
            wanted: ``None`` for any.
            field: what errors call it.
            meanwhile: addresses that are not free although the store has them not yet.
            turn: how often what it was for was attempted before.

        Raises:
            InvalidValue: the wanted one is not of the network, or the network is full.
            AlreadyExists: the wanted one is taken.
            Conflict: others are quicker; try again.
        """
        if wanted is not None:
            return self._wanted(network, wanted, field, meanwhile)
        with self._lock:
            self._follow()
            name, number = self._chosen
            if turn and number in self._taken[name]:
                self._passed = random.randrange(self._spread)  # noqa: S311
                self._spread = min(2 * self._spread, _WIDEST)
            text = self._first(network, meanwhile, self._passed)
            if text is None:  # before that is said, it is made sure of
                self._read()
                text = self._first(network, meanwhile)
            if text is None:
                used = len(self._taken[network.name]) + len(meanwhile)
                room = f"room in network {network.name}"
                raise InvalidValue(field, room, f"{used} addresses in use")
            if self._store.get(keys.ADDRESS.at(network.name, text)) is not None:
                # Somebody just took it; or this is a copy of another store, which was
                # there before this one was put in its place.
                self._revision = 0
                raise Conflict(f"address {text} of network {network.name} is taken")
            address = IPAddress(text)
            self._chosen = network.name, int(address)
        return address

    def _wanted(
        self, network: Network, wanted: Any, field: str, meanwhile: Collection[str]
    ) -> IPAddress:
        asked = IPAddress(str(wanted))
        cidr = next((each for each in network.cidrs if asked in each), None)
        if cidr is None:
            ranges = ", ".join(map(str, network.cidrs))
            raise InvalidValue(field, f"an address in {ranges}", str(wanted))
        if cidr.prefixlen < 31 and asked in (cidr.network, cidr.broadcast):
            raise InvalidValue(
                field,
                f"neither network nor broadcast address of {cidr}",
                str(wanted),
            )
        holder = self._store.get(keys.ADDRESS.at(network.name, asked))
        if holder is not None or str(asked) in meanwhile:
            kind, _, who = json.loads(holder[0]).partition("/") if holder else ("", "", "another")
            service = "service " if kind == "services" else ""
            raise AlreadyExists(f"{field}: address {asked} is that of {service}{who}")
        return asked

    def _first(self, network: Network, meanwhile: Collection[str], passed: int = 0) -> str | None:
        """The first one that is free after so many others, or the last where there are fewer."""
        found = None
        taken, floors = self._taken[network.name], self._floors[network.name]
        for cidr in network.cidrs:
            edge = 1 if cidr.prefixlen < 31 else 0
            first, last = cidr.first + edge, cidr.last - edge
            floor = floors.get(first, first)
            while floor <= last and floor in taken:
                floor += 1
            floors[first] = floor
            for number in range(floor, last + 1):
                if number not in taken:
                    # Many may be tried: netaddr would make an object of each.
                    text = socket.inet_ntoa(number.to_bytes(4, "big"))
                    if text not in meanwhile:
                        found = text
                        if not passed:
                            return found
                        passed -= 1
        return found

    def _follow(self) -> None:
        if not self._revision:
            self._read()
            return
        try:
            events, self._revision = self._store.watch(
                keys.ADDRESS.below(), after=self._revision, timeout=0
            )
        except Conflict:  # the history since then is gone
            self._read()
            return
        for event in events:
            self._note(event.key, taken=event.value is not None)

    def _read(self) -> None:
        pairs, self._revision = self._store.list(keys.ADDRESS.below())
        self._taken.clear()
        self._floors.clear()
        for key in pairs:
            self._note(key, taken=True)

    def _note(self, key: str, *, taken: bool) -> None:
        network, _, text = key.removeprefix(keys.ADDRESS.below()).partition("/")
        try:
            number = int.from_bytes(socket.inet_aton(text), "big")
        except OSError:  # no address: it is in nobody's way
            return
        if taken:
            self._taken[network].add(number)
            return
        self._taken[network].discard(number)
        floors = self._floors[network]
        for first, floor in floors.items():
            if first <= number < floor:
                floors[first] = number
