# SPDX-License-Identifier: Apache-2.0
"""The names of endpoints on one host: each one's hosts file and resolver."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from slimnet.agent import hostsfile
from slimnet.linux.resolvers import RESOLV_CONF, name_servers, own_resolv_conf
from slimnet.model import Endpoint
from slimnet.place import HOSTS, Place
from slimnet.policy import State
from slimnet.resolver import OWN, address, search
from slimnet.resolver.resolver import Resolver

__all__ = ["Names"]

_log = logging.getLogger(__name__)


class Names:
    """What endpoints of this host are told of names.

    Args:
        run: the instance's directory: ``hosts/NETWORK/NAMESPACE`` and ``resolv/ID`` in it.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._resolver = Resolver(name_servers)
        (run / "resolv").mkdir(parents=True, exist_ok=True)
        #: Endpoint id to why it has no resolver: its names are those of its hosts file, and
        #: other names are the host's servers' affair.
        self._trouble: dict[int, str] = {}
        #: What the hosts files were written from.
        self._written: object = None

    def update(self, state: State, host: str) -> None:
        """Names are as in ``state``, for the endpoints of this host.

        Raises:
            OSError: the hosts files cannot be written.
        """
        self._resolver.update(state)
        here = {(each.network, each.namespace) for each in state.endpoints if each.host == host}
        # Whoever has mounted one goes on seeing what changes.
        there = {(each.network, each.name) for each in state.namespaces}
        here |= there & hostsfile.written(self._run)
        what = (here, state.endpoints, state.services)
        if what != self._written:
            self._written = None
            hostsfile.write(self._run, *what)
            self._written = what

    def add(self, endpoint: Endpoint, place: Place) -> None:
        """Give an attached endpoint a resolver, if it has none where it is."""
        trouble = self._resolver.add(endpoint, place.netns)
        if not trouble:
            domains = search(endpoint.network, endpoint.namespace)
            where = address(endpoint.id) if place.netns is None else OWN
            text = own_resolv_conf(str(where), domains)
            self._file(endpoint.id).write_text(text)
            self._trouble.pop(endpoint.id, None)
        elif os.geteuid() == 0 and self._trouble.get(endpoint.id) != trouble:
            # To an ordinary user's agent the port is closed on every host: no news.
            _log.warning("no resolver for endpoint %s: %s", endpoint.name, trouble)
            self._trouble[endpoint.id] = trouble

    def remove(self, endpoint: int) -> None:
        """The endpoint is gone; one without a resolver is no error."""
        self._resolver.remove(endpoint)
        self._file(endpoint).unlink(missing_ok=True)
        self._trouble.pop(endpoint, None)

    def files(self, endpoint: Endpoint) -> dict[str, Path]:
        """The files that its processes are to see, by the path at which they see them."""
        files = {HOSTS: hostsfile.path(self._run, endpoint.network, endpoint.namespace)}
        if self._resolver.serves(endpoint.id):
            files[RESOLV_CONF] = self._file(endpoint.id)
        return files

    def warnings(self) -> list[str]:
        """A line for each endpoint without a resolver."""
        return [f"endpoint {number}: no resolver: {why}" for number, why in self._trouble.items()]

    def close(self) -> None:
        """Endpoints that run have their files, and no resolver until the next agent."""
        self._resolver.close()

    def _file(self, endpoint: int) -> Path:
        return self._run / "resolv" / str(endpoint)
