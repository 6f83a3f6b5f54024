# SPDX-License-Identifier: Apache-2.0
"""What users write, as values: policies of both kinds, services, published ports, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import attrs
from attrs import field, frozen
from netaddr import AddrFormatError, IPAddress

from slimnet import records
from slimnet.exceptions import PolicyError
from slimnet.model import Direction, Protocol
from slimnet.policy.plain import decode
from slimnet.policy.rule import Peer, Rule, Tier
from slimnet.policy.selector import Selector

__all__ = [
    "DOCUMENTS",
    "ClusterNetworkPolicy",
    "Document",
    "EgressLimit",
    "NetworkPolicy",
    "Policy",
    "PublishedPort",
    "Service",
    "ServicePort",
    "Source",
    "Weight",
]


@frozen
class Source:
    """Where a policy was written.

    Attributes:
        file: the file's name, or empty.
        lines: field (``ingress[0]``, or empty for the document) to line, from 1.
    """

    file: str = ""
    lines: Mapping[str, int] = field(factory=dict, hash=False)

    def at(self, path: str) -> str:
        """``file:line`` of a field, or what of that is known."""
        line = self.lines.get(path)
        if line is None:
            return self.file
        return f"{self.file}:{line}" if self.file else f"line {line}"

    @property
    def prefix(self) -> str:
        """What a refusal of the document begins with; empty where nobody knows its place."""
        where = self.at("")
        return f"{where}: " if where else ""


@frozen(kw_only=True)
class Document:
    """What all kinds have.

    Attributes:
        name: unique among those of its kind, in its namespace where it has one.
        manifest: the document, as plain JSON values.
        source: where it was written.
    """

    name: str
    manifest: Mapping[str, Any] = field(factory=dict, eq=False, repr=False)
    source: Source = field(factory=Source, repr=False)

    @property
    def title(self) -> str:
        """The name by which messages call it."""
        return self.name

    def to_json(self) -> dict[str, Any]:
        """It as JSON values, for the store and for clients: ``kind`` and ``value``, which
        count, and beside them for readers ``manifest``, and ``file`` and ``lines`` of
        where that was written."""
        value = attrs.asdict(self, recurse=False, filter=_is_of_value)
        return {
            "kind": type(self).__name__,
            "value": records.encode(value),
            "manifest": dict(self.manifest),
            "file": self.source.file,
            "lines": dict(self.source.lines),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """What :meth:`to_json` gave, if it is of this kind. The manifest is not looked at.

        Raises:
            PolicyError: it is not that.
        """
        wanted = "what Document.to_json() gives"
        if not isinstance(record, Mapping) or not isinstance(record.get("value"), Mapping):
            raise PolicyError("document", wanted, record)
        kind = next((each for each in DOCUMENTS if each.__name__ == record.get("kind")), None)
        if kind is None or not issubclass(kind, cls):
            raise PolicyError("kind", f"a {cls.__name__}", record.get("kind"))
        try:
            source = {"file": record["file"], "lines": record["lines"]}
            document: Self = decode(
                kind, {**record["value"], "manifest": record["manifest"], "source": source}
            )
        except (TypeError, ValueError, KeyError, AddrFormatError) as error:
            raise PolicyError("document", wanted, f"{type(error).__name__}: {error}") from error
        return document


def _is_of_value(attribute: attrs.Attribute[Any], _value: object) -> bool:
    return attribute.name not in {"manifest", "source"}


@frozen(kw_only=True)
class Policy(Document):
    """What both kinds of policy have.

    Attributes:
        ingress: rules for flows to the subject; ``None`` where it says nothing of them.
        egress: rules for flows from the subject; ``None`` where it says nothing of them.
        mandatory: a backend that cannot hold it against a hostile process refuses it.
    """

    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None
    mandatory: bool = False

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """The rules of one direction."""
        return self.ingress if direction is Direction.INGRESS else self.egress


@frozen(kw_only=True)
class NetworkPolicy(Policy):
    """Kubernetes' NetworkPolicy (networking/v1): additive, one namespace's own.

    Attributes:
        network: the network whose endpoints it is about.
        namespace: the namespace that it belongs to.
        subject: selects the endpoints of that namespace that it isolates, in
            each direction whose rules are not ``None``.
    """

    network: str
    namespace: str
    subject: Selector

    @property
    def title(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@frozen(kw_only=True)
class ClusterNetworkPolicy(Policy):
    """Kubernetes' ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2): ordered,
    for every network's endpoints.

    Attributes:
        tier: before or behind the NetworkPolicies.
        priority: 0 to 1000; the lower is asked first. Equal ones by name.
        subject: the endpoints that it is about.
    """

    tier: Tier
    priority: int
    subject: Peer

    @property
    def title(self) -> str:
        """``cluster:name``."""
        return f"cluster:{self.name}"


@frozen
class ServicePort:
    """One port of a service.

    Attributes:
        protocol: TCP, UDP or SCTP.
        port: as it is dialled.
        target: the endpoints' port, by number, or by the name that each declares.
        name: empty where the service has one port only.
    """

    protocol: Protocol
    port: int
    target: int | str
    name: str = ""


@frozen
class Weight:
    """How much of a service's connections the endpoints of a selector get.

    Attributes:
        selector: by their labels; the first weight that matches counts.
        weight: 0 to 100, beside 1 for whom none matches; 0: no new connections.
    """

    selector: Selector
    weight: int


@frozen(kw_only=True)
class Service(Document):
    """Kubernetes' Service (v1) of type ClusterIP: a virtual address for endpoints.

    Attributes:
        network: its network.
        namespace: its namespace; its endpoints are of it.
        address: its virtual address; ``None`` until the store has given one.
        selector: its endpoints, by their labels.
        ports: at least one.
        affinity: seconds that a client stays with its endpoint after its last
            connect; 0: every connect is chosen anew.
        weights: in order.
    """

    network: str
    namespace: str
    address: IPAddress | None
    selector: Selector
    ports: tuple[ServicePort, ...]
    affinity: int = 0
    weights: tuple[Weight, ...] = ()

    @property
    def title(self) -> str:
        """``service:namespace/name``."""
        return f"service:{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """``network/namespace/name``."""
        return f"{self.network}/{self.namespace}/{self.name}"


@frozen(kw_only=True)
class PublishedPort(Document):
    """A port of the host on which an endpoint lives, as that endpoint's.

    Attributes:
        network: the endpoint's network.
        namespace: the endpoint's namespace.
        endpoint: its name.
        address: of the host; ``None`` for all of them.
        protocol: TCP or UDP.
        port: of the host.
        target: the endpoint's, by number or by the name that it declares.
        held: inode numbers of sockets of the host that keep the port for the endpoint, as a
            container engine's do.
    """

    network: str
    namespace: str
    endpoint: str
    address: IPAddress | None
    protocol: Protocol
    port: int
    target: int | str
    held: frozenset[int] = frozenset()

    @property
    def title(self) -> str:
        """``port:namespace/name``."""
        return f"port:{self.namespace}/{self.name}"


@frozen(kw_only=True)
class EgressLimit(Document):
    """What endpoints may send.

    Attributes:
        network: their network.
        namespace: their namespace.
        subject: selects them; of several limits for one endpoint each lowest number counts.
        rate: bytes a second of all connections of an endpoint; 0: no limit.
        connection_rate: bytes a second of each connection; 0: no limit.
    """

    network: str
    namespace: str
    subject: Selector
    rate: int = 0
    connection_rate: int = 0

    @property
    def title(self) -> str:
        """``limit:namespace/name``."""
        return f"limit:{self.namespace}/{self.name}"


#: Every kind of document.
DOCUMENTS: tuple[type[Document], ...] = (
    ClusterNetworkPolicy,
    NetworkPolicy,
    Service,
    PublishedPort,
    EgressLimit,
)
