# SPDX-License-Identifier: Apache-2.0
"""The keys of a cluster's store: all that is written there, by pattern.

Values are JSON. ``docs/reference/agent.rst`` has its table from here.

What begins with ``~`` is told to nobody who does not name it (:meth:`slimnet.abc.Store.watch`):
what each host writes of itself, and what is between two hosts. If all N hosts were told what each
of them writes, that were N squared messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

__all__ = [
    "ADDRESS",
    "ANSWER",
    "CLUSTER",
    "CLUSTER_ID",
    "CLUSTER_POLICY",
    "COUNTER",
    "EGRESS_LIMIT",
    "ENDPOINT",
    "FORMAT",
    "HELD",
    "HOST",
    "ID",
    "IDENTITY",
    "INQUIRY",
    "INSTALLED",
    "KEYRING",
    "KEYS",
    "NAMESPACE",
    "NETWORK",
    "POLICY",
    "PUBLISHED_PORT",
    "SEEN",
    "SERVICE",
    "TOKEN",
    "WANTED",
    "Key",
    "kind_of",
    "named",
    "unknown",
]

_NAMED = 10


@frozen
class Key:
    """Keys of one kind.

    Attributes:
        pattern: ``<name>`` stands for what differs.
        meaning: of the value, for the reference.
        passing: whether it says what is so now, and nothing to a store that is restored, as
            what goes with a lease does.
    """

    pattern: str
    meaning: str
    passing: bool = False

    @property
    def kind(self) -> str:
        """The first part: no two kinds have the same, but :data:`CLUSTER` and its id."""
        return self.pattern.partition("/")[0]

    def at(self, *parts: object) -> str:
        """The key with these parts for those in brackets."""
        if len(parts) != self.pattern.count("<"):
            raise TypeError(f"{self.pattern}: {len(parts)} parts")
        return "/".join((self.kind, *map(str, parts)))

    def below(self, *parts: object) -> str:
        """The prefix of those keys that begin with these parts."""
        return "/".join((self.kind, *map(str, parts), ""))


NETWORK = Key("networks/<network>", "a :class:`~slimnet.Network`")
HOST = Key("hosts/<host>", "a live :class:`~slimnet.Host`; goes when its lease runs out")
WANTED = Key(
    "wanted",
    "a revision that somebody waits for all hosts to have in force; each says when it has",
    passing=True,
)
INSTALLED = Key(
    "~installed/<host>",
    "the revision that host has in force, as it last said: when somebody waited for it; leased",
    passing=True,
)
SEEN = Key(
    "~seen/<host>",
    "what that host last said of itself, and when: a :class:`~slimnet.model.HostState`. Stays"
    " until the host is removed",
)
NAMESPACE = Key("namespaces/<network>/<name>", "a :class:`~slimnet.model.Namespace`")
ENDPOINT = Key("endpoints/<network>/<namespace>/<name>", "an :class:`~slimnet.Endpoint`")
ADDRESS = Key("addresses/<network>/<address>", "the key of the endpoint or the service that has it")
POLICY = Key("policies/<network>/<namespace>/<name>", "a NetworkPolicy")
SERVICE = Key("services/<network>/<namespace>/<name>", "a Service")
PUBLISHED_PORT = Key("publishedports/<network>/<namespace>/<name>", "a PublishedPort")
EGRESS_LIMIT = Key("egresslimits/<network>/<namespace>/<name>", "an EgressLimit")
CLUSTER_POLICY = Key("clusterpolicies/<name>", "a ClusterNetworkPolicy")
INQUIRY = Key(
    "~inquiries/<host>/<id>",
    "a question to that host's agent; leased, and gone after two seconds",
    passing=True,
)
ANSWER = Key("~answers/<id>", "the answer to it; tied to the same lease", passing=True)
TOKEN = Key(
    "tokens/<id>",
    "what a token to join may still do: how often, and the cluster's key, sealed with the token's"
    " secret; leased, and gone when it expires",
    passing=True,
)
KEYRING = Key(
    "keyring",
    "which the cluster's keys are: fingerprints, and while one follows another the new one,"
    " sealed with the old one",
    passing=True,
)
HELD = Key(
    "~keys/<host>",
    "the fingerprints of the keys that host takes, that which it signs with first; leased",
    passing=True,
)
IDENTITY = Key(
    "identities/<network>/<namespace>/<labels>", "the number of a distinct label set, for ever"
)
ID = Key(
    "ids/<number>",
    "the key of the endpoint whose id it is, or of the label set. They are drawn, not counted",
)
COUNTER = Key("counters/<what>", "grows with every change that no two may make at once")
CLUSTER = Key(
    "cluster",
    "the store's own id, made with its first use. A data path with endpoints follows no"
    " other store",
)
CLUSTER_ID = Key("cluster/<id>", "empty: that it exists is expected by every change of this store")

FORMAT = Key(
    "format",
    "the number of the format that all this is in, where it is not the first. A version that does"
    " not know it changes nothing, and leaves what it has in force as it is",
)

#: All of them, in the order of the reference.
KEYS = (
    NETWORK,
    NAMESPACE,
    ENDPOINT,
    ADDRESS,
    POLICY,
    SERVICE,
    PUBLISHED_PORT,
    EGRESS_LIMIT,
    CLUSTER_POLICY,
    HOST,
    WANTED,
    INSTALLED,
    SEEN,
    INQUIRY,
    ANSWER,
    TOKEN,
    KEYRING,
    HELD,
    IDENTITY,
    ID,
    COUNTER,
    CLUSTER,
    CLUSTER_ID,
    FORMAT,
)

_KINDS = frozenset(each.kind for each in KEYS)


def kind_of(key: str) -> str:
    """The first part of a key (:attr:`Key.kind`)."""
    return key.partition("/")[0]


def unknown(keys: Iterable[str]) -> list[str]:
    """Those that are of no kind: a later version writes them, or wrote them once. They are named
    and left alone."""
    return sorted(key for key in keys if kind_of(key) not in _KINDS)


def named(keys: Sequence[str]) -> str:
    """The first of many keys, for a message."""
    return ", ".join(keys[:_NAMED]) + (" ..." if keys[_NAMED:] else "")
