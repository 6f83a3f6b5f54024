# SPDX-License-Identifier: Apache-2.0
"""The two kinds of policy, as users wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from slimnet.model import Direction
from slimnet.policy.rule import Peer, Rule, Tier
from slimnet.policy.selector import Selector

__all__ = ["ClusterNetworkPolicy", "NetworkPolicy", "Policy", "Source"]


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


@frozen(kw_only=True)
class Policy:
    """What both kinds have.

    Attributes:
        name: unique in its namespace, or among the cluster's policies.
        ingress: rules for flows to the subject; ``None`` where it says nothing of them.
        egress: rules for flows from the subject; ``None`` where it says nothing of them.
        mandatory: a backend that cannot hold it against a hostile process refuses it.
        manifest: the document, as plain JSON values.
        source: where it was written.
    """

    name: str
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None
    mandatory: bool = False
    manifest: Mapping[str, Any] = field(factory=dict, eq=False, repr=False)
    source: Source = field(factory=Source, repr=False)

    def rules(self, direction: Direction) -> tuple[Rule, ...] | None:
        """The rules of one direction."""
        return self.ingress if direction is Direction.INGRESS else self.egress

    @property
    def title(self) -> str:
        """The name by which messages call it."""
        return self.name

    def to_json(self) -> dict[str, Any]:
        """The manifest and where it was written, as JSON values for the store."""
        return {
            "manifest": dict(self.manifest),
            "file": self.source.file,
            "lines": dict(self.source.lines),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Policy:
        """What :meth:`to_json` gave.

        Raises:
            PolicyError: it is not that.
        """
        from slimnet.policy.manifest import restore  # noqa: PLC0415  # the parser builds policies

        return restore(value)


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
