# SPDX-License-Identifier: Apache-2.0
"""What the agent's API offers.

=======  ================================  ==========================================
GET      /v1/status                        :meth:`.Agent.status`
GET      /v1/hosts                         live hosts, with the revision they follow
DELETE   /v1/hosts/<name>                  remove what a lost host left
GET      /v1/networks                      all networks
POST     /v1/networks                      ``name``, ``cidrs``, ``vni``
DELETE   /v1/networks/<name>
GET      /v1/namespaces                    all namespaces
PUT      /v1/namespaces/<network>/<name>   ``labels``
DELETE   /v1/namespaces/<network>/<name>
GET      /v1/endpoints                     all endpoints
POST     /v1/endpoints                     attach one here: ``network``, ``name``, ...
DELETE   /v1/endpoints/<net>/<ns>/<name>   detach it: ``kill``
GET      /v1/policies                      all documents, of every kind
POST     /v1/policies                      ``policies``: all of them or none
DELETE   /v1/policies/<net>/<ns>/<name>
DELETE   /v1/clusterpolicies/<name>
DELETE   /v1/services/<net>/<ns>/<name>
DELETE   /v1/publishedports/<...>          the same
DELETE   /v1/egresslimits/<...>            the same
POST     /v1/check                         ``policies``: warnings, were they applied
GET      /v1/tables                        the tables in force, for bug reports
POST     /v1/explain                       ``network``, ``source``, ``destination``, ...
POST     /v1/ping                          ``target``, ``source``, ``port``, ``timeout``
POST     /v1/wait                          ``revision``, ``timeout``
GET      /v1/connections                   of this host's endpoints
GET      /v1/accounts                      what they sent and received, by rule
GET      /v1/rules                         rule id to its words, of the tables in force
GET      /v1/refusals                      the last ones on this host
GET      /v1/events                        lines of JSON, for as long as it is read
=======  ================================  ==========================================
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from slimnet import records
from slimnet.agent.agent import Agent
from slimnet.agent.fields import check
from slimnet.agent.ping import explain, ping
from slimnet.agent.server import Caller, Reply, Stream
from slimnet.cluster.documents import PREFIXES
from slimnet.exceptions import InvalidValue, NotFound
from slimnet.policy import parse

__all__ = ["Routes"]

_BEAT = 5.0


class Routes:
    """Finds the method for a request and calls it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._cluster = agent.cluster

    def __call__(self, method: str, path: list[str], body: dict[str, Any], peer: Caller) -> Reply:
        """Answer one request.

        Raises:
            NotFound: there is no such route.
            InvalidValue: a field of the body is missing or unknown.
        """
        found: Callable[..., Reply] | None = None
        if len(path) > 1 and path[0] == "v1":
            found = getattr(self, f"{method.lower()}_{path[1]}", None)
        if found is None:
            raise NotFound(f"the agent knows no {method} /{'/'.join(path)}")
        fields = check(body)
        if path[1:] == ["endpoints"] and method == "POST":
            fields["peer"] = peer
        try:
            inspect.signature(found).bind(*path[2:], **fields)
        except TypeError as error:
            raise InvalidValue(f"{method} /{'/'.join(path)}", "other fields", str(error)) from error
        return found(*path[2:], **fields)

    # Reading

    def get_status(self) -> Reply:
        return self.agent.status()

    def get_hosts(self) -> Reply:
        installed = self._cluster.installed()
        return [
            {"host": records.encode(each), "installed": installed.get(each.name, 0)}
            for each in self._cluster.hosts()
        ]

    def get_networks(self) -> Reply:
        return records.encode(self._cluster.networks())

    def get_namespaces(self) -> Reply:
        return records.encode(self._cluster.namespaces())

    def get_endpoints(self) -> Reply:
        return records.encode(self._cluster.endpoints())

    def get_policies(self) -> Reply:
        return [each.to_json() for each in self._cluster.documents.all()]

    def get_tables(self) -> Reply:
        tables = self.agent.installer.tables
        if tables is None:
            raise NotFound("no tables are in force yet")
        return {
            "generation": tables.generation,
            "addresses": [[*map(str, key), value] for key, value in tables.addresses.items()],
            "endpoints": records.encode(tables.endpoints),
            "cidrs": [
                [vni, str(cidr), records.encode(value)]
                for (vni, cidr), value in tables.cidrs.items()
            ],
            "policy": _pairs(tables.policy),
            "rules": records.encode(tables.rules),
            "services": _pairs(tables.services),
            "published": _pairs(tables.published),
            "limits": records.encode(tables.limits),
            "hosts": records.encode(tables.hosts),
        }

    def get_connections(self) -> Reply:
        return records.encode(list(self.agent.backend.connections()))

    def get_accounts(self) -> Reply:
        return records.encode(list(self.agent.backend.accounts()))

    def get_rules(self) -> Reply:
        tables = self.agent.installer.tables
        return records.encode({} if tables is None else tables.rules)

    def get_refusals(self) -> Reply:
        return records.encode(list(self.agent.feed.refusals))

    def get_events(self) -> Reply:
        return Stream(self._events())

    def _events(self) -> Iterator[Any]:
        with self.agent.feed.reader() as events:
            yield None
            while True:
                try:
                    yield records.encode(events.get(timeout=_BEAT))
                except queue.Empty:
                    yield None

    # Changing

    def post_networks(self, *, name: str, cidrs: Any, vni: int | None = None) -> Reply:
        network, revision = self._cluster.create_network(name, cidrs, vni)
        self.agent.sync()
        return {"network": records.encode(network), "revision": revision}

    def delete_networks(self, name: str) -> Reply:
        revision = self._cluster.remove_network(name)
        self.agent.sync()
        return {"revision": revision}

    def put_namespaces(self, network: str, name: str, *, labels: dict[str, str]) -> Reply:
        namespace, revision = self._cluster.set_namespace(network, name, labels)
        self.agent.sync_strictly()
        return {"namespace": records.encode(namespace), "revision": revision}

    def delete_namespaces(self, network: str, name: str) -> Reply:
        revision = self._cluster.remove_namespace(network, name)
        self.agent.sync()
        return {"revision": revision}

    def delete_hosts(self, name: str) -> Reply:
        revision = self._cluster.remove_host(name)
        self.agent.sync()
        return {"revision": revision}

    def post_endpoints(self, *, peer: Caller, ephemeral: bool = False, **asked: Any) -> Reply:
        placed = self.agent.endpoints.attach(asked, peer.pid if ephemeral else None)
        return records.encode(placed)

    def delete_endpoints(
        self, network: str, namespace: str, name: str, *, kill: bool = False
    ) -> Reply:
        self.agent.endpoints.detach(network, namespace, name, kill=kill)
        return {}

    def post_policies(self, *, policies: list[dict[str, Any]], network: str = "default") -> Reply:
        made, revision = self.agent.apply(parse(policies, network=network))
        return {"policies": [each.to_json() for each in made], "revision": revision}

    def delete_policies(self, network: str, namespace: str, name: str) -> Reply:
        return self._remove("policies", name, network, namespace)

    def delete_clusterpolicies(self, name: str) -> Reply:
        return self._remove("clusterpolicies", name)

    def delete_services(self, network: str, namespace: str, name: str) -> Reply:
        return self._remove("services", name, network, namespace)

    def delete_publishedports(self, network: str, namespace: str, name: str) -> Reply:
        return self._remove("publishedports", name, network, namespace)

    def delete_egresslimits(self, network: str, namespace: str, name: str) -> Reply:
        return self._remove("egresslimits", name, network, namespace)

    def _remove(self, prefix: str, name: str, *place: str) -> Reply:
        kind = next(each for each, known in PREFIXES.items() if known == prefix)
        revision = self._cluster.documents.remove(kind, name, *place)
        self.agent.sync_strictly()
        return {"revision": revision}

    # Asking

    def post_check(
        self,
        *,
        policies: list[dict[str, Any]] | None = None,
        applied: list[str] | None = None,
        network: str = "default",
    ) -> Reply:
        documents = parse(policies or [], network=network)
        documents += self._cluster.documents.find(applied or [])
        return records.encode(self.agent.check(documents))

    def post_explain(
        self, *, network: str, source: str, destination: str, port: int = 0, protocol: str = "tcp"
    ) -> Reply:
        return explain(
            self.agent,
            network=network,
            source=source,
            destination=destination,
            port=port,
            protocol=protocol,
        )

    def post_ping(
        self,
        *,
        target: str,
        network: str | None = None,
        source: str | None = None,
        port: int | None = None,
        timeout: float = 3.0,
        count: int = 1,
    ) -> Reply:
        return ping(
            self.agent,
            target,
            network=network,
            source=source,
            port=port,
            timeout=timeout,
            count=count,
        )

    def post_wait(self, *, revision: int | None = None, timeout: float = 10.0) -> Reply:
        return {"installed": self.agent.wait(revision, timeout)}


def _pairs(table: Mapping[Any, Any]) -> Reply:
    return [[records.encode(key), records.encode(value)] for key, value in table.items()]
