# SPDX-License-Identifier: Apache-2.0
"""What may be a name, and the one way to say whose it is: ``[[network/]namespace/]name``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol, TypeVar

from netaddr import IPAddress

from slimnet.exceptions import InvalidValue, NotFound

__all__ = [
    "LABEL_KEY",
    "LABEL_VALUE",
    "NAME",
    "NAME_WANTED",
    "PORT_NAME",
    "PORT_NAME_WANTED",
    "SUBDOMAIN",
    "SUBDOMAIN_WANTED",
    "find",
    "is_label",
    "missing",
]

_NAME = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = "[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_LABEL = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"

#: Of networks, namespaces, endpoints, hosts, services and instances: a label of RFC 1123
#: (section 2.1), which DNS, Kubernetes and paths of cgroups all accept.
NAME = re.compile(_NAME)
NAME_WANTED = "lower-case letters, digits and '-', at most 63 (RFC 1123)"
#: Of the other documents, as Kubernetes has it: labels of RFC 1123 with dots between.
SUBDOMAIN = re.compile(_SUBDOMAIN)
SUBDOMAIN_WANTED = "a name of lower-case letters, digits, '-' and '.' (RFC 1123)"
#: Key and value of a Kubernetes label.
LABEL_KEY = re.compile(f"({_SUBDOMAIN}/)?{_LABEL}")
LABEL_VALUE = re.compile(f"({_LABEL})?")
#: Of a port as an endpoint declares it: an IANA service name (RFC 6335, section 5.1).
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
PORT_NAME_WANTED = "at most 15 lower-case letters, digits and '-', one of them a letter (RFC 6335)"


def is_label(key: object, value: object) -> bool:
    """Whether these are key and value of a Kubernetes label."""
    return (
        isinstance(key, str)
        and LABEL_KEY.fullmatch(key) is not None
        and isinstance(value, str)
        and LABEL_VALUE.fullmatch(value) is not None
    )


def missing(kind: str, name: str, names: list[str]) -> NotFound:
    """The error for a name that nothing has; says which there are."""
    there = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    return NotFound(f"{kind} {name!r}: there is none; there are: {there or 'none at all'}")


class _Named(Protocol):
    @property
    def network(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def address(self) -> IPAddress | None: ...
    @property
    def path(self) -> str: ...


T = TypeVar("T", bound=_Named)


def find(
    among: Iterable[T], text: str, network: str | None = None, *, field: str = "endpoint"
) -> T | None:
    """The endpoint or service that ``[[network/]namespace/]name`` names.

    A bare name is first that of namespace ``default``. ``network/name``, as lists show
    what is of namespace ``default``, will do where no namespace is called so. An address
    stands for the name of whose it is.

    Args:
        among: endpoints, services.
        text: as above.
        network: only those of it; ``None`` for all.
        field: what ``text`` is, for messages.

    Raises:
        InvalidValue: ``text`` is nothing of the kind, or several are named so.
    """
    *places, name = text.split("/")
    if len(places) > 2 or not all((*places, name)):
        raise InvalidValue(field, "[[network/]namespace/]name or an address", text)
    named = [
        each
        for each in among
        if network in {None, each.network}
        and (each.name == name or (each.address is not None and str(each.address) == name))
    ]
    if not places:
        mine = [each for each in named if (each.namespace, each.name) == ("default", name)]
        named = mine or named
    elif len(places) == 1:
        there = [each for each in named if each.namespace == places[0]]
        named = there or [each for each in named if each.network == places[0]]
    else:
        named = [each for each in named if [each.network, each.namespace] == places]
    if len(named) > 1:
        raise InvalidValue(field, f"one of {', '.join(each.path for each in named)}", text)
    return named[0] if named else None
