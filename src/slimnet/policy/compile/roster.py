# SPDX-License-Identifier: Apache-2.0
"""The endpoints that can be reached, by name and by address."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from netaddr import IPAddress

from slimnet.exceptions import InvalidValue
from slimnet.model import Endpoint

__all__ = ["DocumentName", "Roster", "Space"]

#: Network and namespace.
Space = tuple[str, str]
#: Network, namespace (both empty for a cluster's policy) and name.
DocumentName = tuple[str, str, str]

_NOBODY: Mapping[str, Endpoint] = MappingProxyType({})


class Roster:
    """Who lives where: on a host that lives, with an address of its network."""

    def __init__(self) -> None:
        self._spaces: dict[Space, dict[str, Endpoint]] = {}
        self._addresses: dict[tuple[str, IPAddress], Endpoint] = {}

    def add(self, endpoint: Endpoint) -> None:
        """A new endpoint.

        Raises:
            InvalidValue: its name or its address is another's.
        """
        field = f"endpoints.{endpoint.full_name}"
        place = (endpoint.network, endpoint.address)
        if self._addresses.setdefault(place, endpoint) is not endpoint:
            raise InvalidValue(f"{field}.address", "one that no other has", endpoint.address)
        names = self._spaces.setdefault((endpoint.network, endpoint.namespace), {})
        if names.setdefault(endpoint.name, endpoint) is not endpoint:
            raise InvalidValue(f"{field}.name", "one that no other has", endpoint.name)

    def drop(self, endpoint: Endpoint) -> None:
        """One that goes."""
        del self._addresses[endpoint.network, endpoint.address]
        space = (endpoint.network, endpoint.namespace)
        del self._spaces[space][endpoint.name]
        if not self._spaces[space]:
            del self._spaces[space]

    def within(self, space: Space) -> Collection[Endpoint]:
        """All of a namespace."""
        return self._spaces.get(space, _NOBODY).values()

    def named(self, name: DocumentName) -> Endpoint | None:
        """The one of this name."""
        return self._spaces.get(name[:2], _NOBODY).get(name[2])

    def at(self, network: str, address: IPAddress) -> Endpoint | None:
        """The one that has this address."""
        return self._addresses.get((network, address))
