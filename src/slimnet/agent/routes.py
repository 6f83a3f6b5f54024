# SPDX-License-Identifier: Apache-2.0
"""What the agent's API offers, as a table: ``ROUTES``.

A route is a method, a pattern, a request class and a handler. The class says which
fields the pattern and the body have, so that a handler never sees one that is wrong,
and the docstring of the handler is what ``docs/reference/http.rst`` says.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import attrs
from attrs import frozen

from slimnet import records
from slimnet.agent.agent import Agent
from slimnet.agent.fields import read
from slimnet.agent.ping import explain, ping
from slimnet.agent.requests import (
    Apply,
    Attach,
    Check,
    Detach,
    Explain,
    InNamespace,
    InNetwork,
    Labelled,
    Named,
    NewNetwork,
    Nothing,
    Ping,
    Relabel,
    Wait,
)
from slimnet.agent.server import Caller, Reply, Stream
from slimnet.cluster import keys
from slimnet.cluster.documents import PREFIXES
from slimnet.exceptions import InvalidValue, NotFound
from slimnet.policy import ClusterNetworkPolicy, Document, parse

__all__ = ["ROUTES", "Route", "Routes"]

R = TypeVar("R", bound=attrs.AttrsInstance)
T = TypeVar("T")

_BEAT = 5.0


@frozen
class Route(Generic[R]):
    """One thing that can be asked.

    Attributes:
        method: of HTTP.
        pattern: of the path; ``<name>`` stands for a field of the request.
        request: an attrs class, whose other fields the body has.
        handle: answers it; raises a :class:`~slimnet.SlimnetError` where it cannot.
    """

    method: str
    pattern: str
    request: type[R]
    handle: Callable[[Agent, R], Reply]

    def __str__(self) -> str:
        return f"{self.method} {self.pattern}"

    def match(self, method: str, path: Sequence[str]) -> dict[str, str] | None:
        """The fields that a path holds; ``None`` when it is not of this route."""
        parts = self.pattern.split("/")[1:]
        if method != self.method or len(parts) != len(path):
            return None
        pairs = list(zip(parts, path, strict=True))
        if any(part != came for part, came in pairs if not part.startswith("<")):
            return None
        return {part[1:-1]: came for part, came in pairs if part.startswith("<")}


class Routes:
    """Finds the route of a request and calls its handler.

    Args:
        agent: who is asked.
        routes: in which order to look.
    """

    def __init__(self, agent: Agent, routes: Sequence[Route[Any]] | None = None) -> None:
        self._agent = agent
        self._routes = ROUTES if routes is None else routes

    def __call__(self, method: str, path: list[str], body: dict[str, Any], caller: Caller) -> Reply:
        """Answer one request.

        Raises:
            NotFound: there is no such route; says which are near.
            InvalidValue: a field is missing, unknown, or not of its kind; or the path has
                more parts than it should, or fewer.
        """
        for route in self._routes:
            named = route.match(method, path)
            if named is not None:
                asked = read(route.request, named, body, caller=caller)
                return route.handle(self._agent, asked)
        near = [each for each in self._routes if each.pattern.split("/")[1:3] == path[:2]]
        text = f"{method} /{'/'.join(path)}"
        if alike := [str(each) for each in near if each.method == method]:
            raise InvalidValue("path", " or ".join(alike), text)
        known = f"; it knows {', '.join(map(str, near))}" if near else ""
        raise NotFound(f"the agent knows no {text}{known}")


# Reading


def _known(agent: Agent, asked: Callable[[], list[T]], *kinds: str) -> list[T]:
    """What the store says, or what the agent's copy of it does."""
    return agent.known(asked, lambda: agent.mirror.all(*kinds))


def _status(agent: Agent, _: Nothing) -> Reply:
    """What is in force on this host, and what stands in its way: ``ready``, ``trouble``.
    ``warnings`` are the services that no host carries, or not by the protocol of a port.
    ``installed`` is the store's revision whose tables are in force, ``revision`` the one that
    the agent knows. ``stale`` says why the store does not answer; what is read is then what
    the agent knew before."""
    return agent.status()


def _hosts(agent: Agent, _: Nothing) -> Reply:
    """All hosts that are known, lost ones too: :class:`slimnet.model.HostState`."""
    return records.encode(agent.hosts())


def _networks(agent: Agent, _: Nothing) -> Reply:
    """All networks."""
    return records.encode(_known(agent, agent.cluster.networks, keys.NETWORK.kind))


def _namespaces(agent: Agent, _: Nothing) -> Reply:
    """All namespaces."""
    return records.encode(_known(agent, agent.cluster.namespaces, keys.NAMESPACE.kind))


def _endpoints(agent: Agent, _: Nothing) -> Reply:
    """All endpoints, of every host."""
    return records.encode(_known(agent, agent.cluster.endpoints, keys.ENDPOINT.kind))


def _policies(agent: Agent, _: Nothing) -> Reply:
    """All documents, of every kind."""
    found = _known(agent, agent.cluster.documents.all, *PREFIXES.values())
    return [each.to_json() for each in found]


def _connections(agent: Agent, _: Nothing) -> Reply:
    """The live connections of this host's endpoints."""
    return records.encode(list(agent.backend.connections()))


def _accounts(agent: Agent, _: Nothing) -> Reply:
    """What this host's endpoints sent and received, by rule."""
    return records.encode(list(agent.backend.accounts()))


def _rules(agent: Agent, _: Nothing) -> Reply:
    """Rule id to its words, of the tables in force on this host."""
    tables = agent.installer.tables
    return records.encode({} if tables is None else tables.rules)


def _refusals(agent: Agent, _: Nothing) -> Reply:
    """The last refusals on this host, oldest first."""
    return records.encode(list(agent.feed.refusals))


def _events(agent: Agent, _: Nothing) -> Reply:
    """What happens on this host, as lines of JSON for as long as they are read. The first
    is empty: from then on none is missed. So is one every five seconds without events."""

    def lines() -> Iterator[Any]:
        with agent.feed.reader() as events:
            yield None
            while True:
                try:
                    yield records.encode(events.get(timeout=_BEAT))
                except queue.Empty:
                    yield None

    return Stream(lines())


# Changing


def _create_network(agent: Agent, asked: NewNetwork) -> Reply:
    """A new network: ``network``, ``revision``."""
    agent.tell_ranges()  # the others told theirs some seconds ago at the most
    network, revision = agent.cluster.create_network(asked.name, asked.cidrs, asked.vni)
    agent.sync()
    return {"network": records.encode(network), "revision": revision}


def _remove_network(agent: Agent, asked: Named) -> Reply:
    """Remove a network without endpoints: ``revision``."""
    revision = agent.cluster.remove_network(asked.name)
    agent.sync()
    return {"revision": revision}


def _set_namespace(agent: Agent, asked: Labelled) -> Reply:
    """Make a namespace, or give it other labels: ``namespace``, ``revision``."""
    namespace, revision = agent.cluster.set_namespace(asked.network, asked.name, asked.labels)
    agent.sync_strictly()
    return {"namespace": records.encode(namespace), "revision": revision}


def _remove_namespace(agent: Agent, asked: InNetwork) -> Reply:
    """Remove a namespace without endpoints: ``revision``."""
    revision = agent.cluster.remove_namespace(asked.network, asked.name)
    agent.sync()
    return {"revision": revision}


def _remove_host(agent: Agent, asked: Named) -> Reply:
    """Forget a lost host, and remove the endpoints that it left: ``revision``."""
    revision = agent.cluster.remove_host(asked.name)
    agent.sync()
    return {"revision": revision}


def _attach(agent: Agent, asked: Attach) -> Reply:
    """Attach an endpoint on this host: ``endpoint``, ``cgroup``, ``netns``, ``hosts``,
    and whether it was ``created`` by this."""
    own = ("ephemeral", "caller")
    said = {
        each.name: value
        for each in attrs.fields(Attach)
        if each.name not in own and (value := getattr(asked, each.name)) is not None
    }
    return records.encode(
        agent.endpoints.attach(said, asked.caller.pid if asked.ephemeral else None)
    )


def _detach(agent: Agent, asked: Detach) -> Reply:
    """Detach an endpoint of this host and remove it, or remove one of a lost host."""
    agent.endpoints.detach(asked.network, asked.namespace, asked.name, kill=asked.kill)
    return {}


def _endpoint(agent: Agent, asked: InNamespace) -> Reply:
    """An endpoint of this host, and where its processes belong: as of ``POST
    /v1/endpoints``."""
    return records.encode(agent.endpoints.find(**attrs.asdict(asked)))


def _label(agent: Agent, asked: Relabel) -> Reply:
    """Give an endpoint of any host other labels: ``endpoint``, ``revision``."""
    endpoint, revision = agent.endpoints.label(**attrs.asdict(asked))
    agent.sync_strictly()
    return {"endpoint": records.encode(endpoint), "revision": revision}


def _apply(agent: Agent, asked: Apply) -> Reply:
    """Put documents in force, all of them or none: ``policies`` with the addresses of
    services, ``revision``."""
    made, revision = agent.apply(parse(asked.policies, network=asked.network))
    return {"policies": [each.to_json() for each in made], "revision": revision}


def _remover(kind: type[Document]) -> Callable[[Agent, Any], Reply]:
    def remove(agent: Agent, asked: Named | InNamespace) -> Reply:
        revision = agent.cluster.documents.remove(kind, **attrs.asdict(asked))
        agent.sync_strictly()
        return {"revision": revision}

    remove.__doc__ = f"Remove a document of kind {kind.__name__}: ``revision``."
    return remove


# Asking


def _check(agent: Agent, asked: Check) -> Reply:
    """What is surely not meant in documents, were they applied; nothing is changed."""
    documents = parse(asked.policies or [], network=asked.network)
    documents += agent.cluster.documents.find(asked.applied or [])
    return records.encode(agent.check(documents))


def _explain(agent: Agent, asked: Explain) -> Reply:
    """Whether a flow is allowed, and by which rule: :class:`slimnet.policy.Explanation`,
    and the hosts that did not answer as ``unanswered``."""
    return explain(agent, asked)


def _ping(agent: Agent, asked: Ping) -> Reply:
    """How a TCP connection is carried, and how long a real one takes: as
    :meth:`slimnet.Node.ping` answers it."""
    return ping(agent, asked)


def _wait(agent: Agent, asked: Wait) -> Reply:
    """Wait until every live host follows the store, or those that are named:
    ``installed``, by host."""
    return {"installed": agent.wait(asked.revision, asked.timeout, asked.hosts)}


#: All that the agent answers, in the order of the reference.
ROUTES: tuple[Route[Any], ...] = (
    Route("GET", "/v1/status", Nothing, _status),
    Route("GET", "/v1/hosts", Nothing, _hosts),
    Route("DELETE", "/v1/hosts/<name>", Named, _remove_host),
    Route("GET", "/v1/networks", Nothing, _networks),
    Route("POST", "/v1/networks", NewNetwork, _create_network),
    Route("DELETE", "/v1/networks/<name>", Named, _remove_network),
    Route("GET", "/v1/namespaces", Nothing, _namespaces),
    Route("PUT", "/v1/namespaces/<network>/<name>", Labelled, _set_namespace),
    Route("DELETE", "/v1/namespaces/<network>/<name>", InNetwork, _remove_namespace),
    Route("GET", "/v1/endpoints", Nothing, _endpoints),
    Route("POST", "/v1/endpoints", Attach, _attach),
    Route("GET", "/v1/endpoints/<network>/<namespace>/<name>", InNamespace, _endpoint),
    Route("PATCH", "/v1/endpoints/<network>/<namespace>/<name>", Relabel, _label),
    Route("DELETE", "/v1/endpoints/<network>/<namespace>/<name>", Detach, _detach),
    Route("GET", "/v1/policies", Nothing, _policies),
    Route("POST", "/v1/policies", Apply, _apply),
    *(
        Route("DELETE", f"/v1/{prefix}/<name>", Named, _remover(kind))
        if kind is ClusterNetworkPolicy
        else Route(
            "DELETE", f"/v1/{prefix}/<network>/<namespace>/<name>", InNamespace, _remover(kind)
        )
        for kind, prefix in PREFIXES.items()
    ),
    Route("POST", "/v1/check", Check, _check),
    Route("POST", "/v1/explain", Explain, _explain),
    Route("POST", "/v1/ping", Ping, _ping),
    Route("POST", "/v1/wait", Wait, _wait),
    Route("GET", "/v1/connections", Nothing, _connections),
    Route("GET", "/v1/accounts", Nothing, _accounts),
    Route("GET", "/v1/rules", Nothing, _rules),
    Route("GET", "/v1/refusals", Nothing, _refusals),
    Route("GET", "/v1/events", Nothing, _events),
)
