# SPDX-License-Identifier: Apache-2.0
"""A lab that follows a desired state, with tables of the compiler's making."""

from __future__ import annotations

from collections.abc import Collection

from attrs import evolve

from lab.cluster import Endpoint, Host, Lab, each
from slimnet.model import WireFormat
from slimnet.policy import Compiler, State

__all__ = ["Compiled"]


class Compiled(Lab):
    """The hosts and the endpoints of a state.

    Every :meth:`follow` compiles and installs as an agent does: one compiler for
    each host, and with the tables what differs from the ones before.

    Args:
        state: the lab's hosts stand for its hosts, in their order, and have
            underlay addresses of their own.
        later: names of hosts that speak the wire in its next version only.
        mode: of the lab.
    """

    def __init__(self, state: State, mode: str = "ebpf", *, later: Collection[str] = ()) -> None:
        super().__init__(mode, hosts=len(state.hosts), tables=False)
        self.state = state
        self._later = later
        try:
            self._compilers = {
                host.name: (Compiler(host.name), own)
                for host, own in zip(state.hosts, self.hosts, strict=True)
            }
            networks = {network.name: network for network in state.networks}
            for record in state.endpoints:
                self.attach(self.host(record.host), record, networks[record.network])
            self.follow(state)
        except BaseException:
            self.close()
            raise

    def host(self, name: str) -> Host:
        """The lab's host that stands for that of the state."""
        return self._compilers[name][1]

    def follow(self, state: State) -> None:
        """Put another state in force on all hosts."""
        self._generation += 1
        hosts = [
            evolve(
                host,
                address=self.host(host.name).address,
                wires={WireFormat(self.wire, 2 if host.name in self._later else 1)},
            )
            for host in state.hosts
        ]
        self.state = evolve(state, hosts=hosts, revision=self._generation)
        made = [(host, compiler.update(self.state)) for compiler, host in self._compilers.values()]
        each(lambda item: item[0].backend.install(*item[1]), made)

    def install(self) -> None:
        """Put the state in force again, a generation later."""
        self.follow(self.state)

    def remove(self, *endpoints: Endpoint) -> None:
        gone = {endpoint.id for endpoint in endpoints}
        left = [item for item in self.state.endpoints if item.id not in gone]
        self.state = evolve(self.state, endpoints=left)
        super().remove(*endpoints)

    def called(self, namespace: str, name: str) -> Endpoint:
        """The endpoint of that name."""
        (endpoint,) = (
            item
            for item in self.endpoints.values()
            if (item.record.namespace, item.record.name) == (namespace, name)
        )
        return endpoint
