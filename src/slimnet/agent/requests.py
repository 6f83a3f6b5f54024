# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the agent: the fields of each request, with kind and meaning.

:func:`slimnet.agent.fields.read` makes them from JSON; the reference of the API
is written from them. A field without a kind is filled in by the agent.
"""

from __future__ import annotations

from typing import Annotated, Any

from attrs import frozen

from slimnet.agent.fields import (
    COUNT,
    DOCUMENTS,
    INTEGER,
    PORT,
    REVISION,
    SECONDS,
    TABLE,
    TEXT,
    TEXTS,
    TRUTH,
)
from slimnet.agent.server import Caller

__all__ = [
    "Apply",
    "Attach",
    "Check",
    "Detach",
    "Explain",
    "InNamespace",
    "InNetwork",
    "Labelled",
    "Named",
    "NewNetwork",
    "Nothing",
    "Ping",
    "Relabel",
    "Wait",
]


@frozen
class Nothing:
    """The route says it all."""


@frozen(kw_only=True)
class Named:
    """Something of the cluster."""

    name: Annotated[str, TEXT, "its name"]


@frozen(kw_only=True)
class InNetwork:
    """Something of a network."""

    network: Annotated[str, TEXT, "the network's name"]
    name: Annotated[str, TEXT, "its name"]


@frozen(kw_only=True)
class InNamespace:
    """Something of a namespace."""

    network: Annotated[str, TEXT, "the network's name"]
    namespace: Annotated[str, TEXT, "its namespace"]
    name: Annotated[str, TEXT, "its name"]


@frozen(kw_only=True)
class NewNetwork:
    """A network."""

    name: Annotated[str, TEXT, "its name"]
    cidrs: Annotated[list[str], TEXTS, "its IPv4 ranges"]
    vni: Annotated[int | None, INTEGER, "its VXLAN network id; by default a free one"] = None


@frozen(kw_only=True)
class Labelled(InNetwork):
    """A namespace as it is to be."""

    labels: Annotated[dict[str, Any], TABLE, "name to value; instead of those it has"]


@frozen(kw_only=True)
class Attach:
    """An endpoint that is to be attached."""

    network: Annotated[str, TEXT, "the network's name"]
    namespace: Annotated[str, TEXT, "made when it is new"] = "default"
    name: Annotated[str, TEXT, "unique in its namespace"]
    address: Annotated[str | None, TEXT, "its overlay address; by default a free one"] = None
    labels: Annotated[dict[str, Any] | None, TABLE, "what policies select it by"] = None
    ports: Annotated[dict[str, Any] | None, TABLE, 'named ports: ``{"http": ["tcp", 80]}``'] = None
    cgroup: Annotated[str | None, TEXT, "a cgroup v2 directory; by default one is made"] = None
    netns: Annotated[str | None, TEXT, "path of a network namespace; by default none"] = None
    closed: Annotated[
        bool, TRUTH, "keep from all in its cgroup what ``slimnet run`` takes from a command"
    ] = False
    ephemeral: Annotated[
        bool, TRUTH, "it goes when the process that asks has ended and its cgroup is empty"
    ] = False
    caller: Caller


@frozen(kw_only=True)
class Detach(InNamespace):
    """An endpoint that is to go."""

    kill: Annotated[bool, TRUTH, "end its processes first"] = False


@frozen(kw_only=True)
class Relabel(InNamespace):
    """An endpoint that is to have other labels."""

    labels: Annotated[
        dict[str, Any], TABLE, "name to value, or to ``null`` where it goes; others stay"
    ]
    overwrite: Annotated[bool, TRUTH, "change the value of one that is there"] = False


@frozen(kw_only=True)
class Apply:
    """Documents that are to be in force."""

    policies: Annotated[
        list[dict[str, Any]],
        DOCUMENTS,
        "documents of any kind, each with ``manifest``, and ``file`` and ``lines`` for messages",
    ]
    network: Annotated[str, TEXT, "of those that do not name theirs"] = "default"


@frozen(kw_only=True)
class Check:
    """Documents that may not mean what they say."""

    policies: Annotated[list[dict[str, Any]] | None, DOCUMENTS, "as of ``POST /v1/policies``"] = (
        None
    )
    applied: Annotated[list[str] | None, TEXTS, "keys of others, which are in force"] = None
    network: Annotated[str, TEXT, "of those that do not name theirs"] = "default"


@frozen(kw_only=True)
class Explain:
    """A flow that is asked about."""

    network: Annotated[str, TEXT, "that both ends are seen from"]
    source: Annotated[str, TEXT, "an address, or an endpoint as ``[namespace/]name``"]
    destination: Annotated[str, TEXT, "likewise; or a service, where no endpoint has that name"]
    port: Annotated[int, PORT, "destination port"] = 0
    protocol: Annotated[str, TEXT, "``tcp``, ``udp``, ``sctp`` or ``icmp``"] = "tcp"


@frozen(kw_only=True)
class Ping:
    """Connections that are to be tried."""

    target: Annotated[str, TEXT, "an endpoint as ``[[network/]namespace/]name``, or its address"]
    network: Annotated[str | None, TEXT, "of both, where ``target`` does not say it"] = None
    source: Annotated[
        str | None,
        TEXT,
        "an endpoint of this host, as ``target``; by default a temporary one without labels,"
        " in namespace ``default``",
    ] = None
    port: Annotated[
        int | None, PORT, "TCP port; by default 7, and then a refusal is an answer too"
    ] = None
    timeout: Annotated[float, SECONDS, "for each connect"] = 3.0
    count: Annotated[int, COUNT, "how many connects, one after the other"] = 1


@frozen(kw_only=True)
class Wait:
    """A revision that is to be in force everywhere."""

    revision: Annotated[int | None, REVISION, "of the store; by default that of now"] = None
    timeout: Annotated[float, SECONDS, "how long to wait"] = 10.0
    hosts: Annotated[list[str] | None, TEXTS, "which; by default every live host"] = None
