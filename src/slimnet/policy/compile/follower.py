# SPDX-License-Identifier: Apache-2.0
"""Documents whose records follow endpoints: services, published ports, limits."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import ClassVar, Generic, TypeVar

from slimnet.model import Endpoint
from slimnet.policy.compile.difference import altered, keyed
from slimnet.policy.compile.roster import DocumentName, Roster
from slimnet.policy.document import EgressLimit, PublishedPort, Service

__all__ = ["Follower", "follower_name"]

_Document = TypeVar("_Document", Service, PublishedPort, EgressLimit)


class Follower(abc.ABC, Generic[_Document]):
    """Keeps the records of all documents of one kind, with work in proportion to what a
    change touches.

    Args:
        roster: the endpoints; the owner keeps it.

    Attributes:
        documents: by name.
    """

    #: How messages call the kind.
    what: ClassVar[str]

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.documents: dict[DocumentName, _Document] = {}

    def place(self, documents: Iterable[_Document]) -> None:
        """These are all there are from now on.

        Raises:
            InvalidValue: two have one name.
        """
        new = keyed(documents, follower_name, self.what)
        for name in altered(self.documents, new):
            self.set_document(name, new.get(name))

    @abc.abstractmethod
    def set_document(self, name: DocumentName, document: _Document | None) -> None:
        """A document comes, changes, or (``None``) goes."""

    @abc.abstractmethod
    def set_endpoint(self, endpoint: Endpoint) -> None:
        """A new endpoint."""

    @abc.abstractmethod
    def drop_endpoint(self, endpoint: Endpoint) -> None:
        """An endpoint goes. (One that changes goes and comes.)"""


def follower_name(document: Service | PublishedPort | EgressLimit) -> DocumentName:
    """By what such a document differs from all others of its kind."""
    return document.network, document.namespace, document.name
