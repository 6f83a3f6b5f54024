# SPDX-License-Identifier: Apache-2.0
"""The library's face: one host, through its agent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from slimnet import records
from slimnet.agent.client import Client
from slimnet.attached import AttachedEndpoint, PlacedEndpoint
from slimnet.config import Config, load_config
from slimnet.exceptions import InvalidValue, PolicyError
from slimnet.model import (
    Account,
    Connection,
    Endpoint,
    Event,
    Host,
    HostState,
    Namespace,
    Network,
)
from slimnet.names import missing

if TYPE_CHECKING:
    from slimnet.policy import Document, PolicyWarning

    #: A file's path, or a text, or a manifest as slimnet.policy.read() makes them.
    Source = str | os.PathLike[str] | Mapping[str, Any]
    #: One, or several of them.
    Sources = Source | Iterable[Source]

__all__ = ["Node", "open_node"]

T = TypeVar("T", Endpoint, Namespace)


def open_node(
    config: str | os.PathLike[str] | Config | None = None,
    *,
    agent: str | os.PathLike[str] | None = None,
) -> Node:
    """Talk to the agent of this host.

    Args:
        config: a configuration or its file, which say where the agent's socket
            is; the default one otherwise.
        agent: the agent's socket itself; ``SLIMNET_AGENT`` by default.

    Raises:
        AgentUnreachable: no agent answers there.
        ConfigError: the configuration is wrong.
    """
    if agent is None and config is None:
        agent = os.environ.get("SLIMNET_AGENT") or None
    if agent is None:
        agent = (config if isinstance(config, Config) else load_config(config)).socket
    node = Node(Client(Path(agent)))
    node.status()
    return node


class Node:
    """One host of a cluster. Made by :func:`open_node`; threads may share it.

    Every method raises :class:`~slimnet.AgentUnreachable` when the agent does
    not answer, and what changes something :class:`~slimnet.StoreUnreachable` when
    the agent cannot reach the store. What only reads answers then with what the
    agent knew before; ``stale`` of :meth:`status` says so. What changes something is in
    force on this host when the method returns; :meth:`wait` waits for the other hosts.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def agent(self) -> Path:
        """The agent's socket."""
        return self._client.path

    # Networks and namespaces

    def create_network(
        self, name: str, cidrs: str | Iterable[str], vni: int | None = None
    ) -> Network:
        """Make a network.

        Args:
            name: unique in the cluster.
            cidrs: one or more IPv4 ranges, each with its length, that overlap no other
                network's, no range that a host has on an interface, and no host's name server.
            vni: 1 to 2^24 - 1; the first free one from 1000 by default.

        Raises:
            InvalidValue: a range or the VNI is wrong.
            AlreadyExists: the name or the VNI is taken.
        """
        ranges = [cidrs] if isinstance(cidrs, str) else [str(each) for each in cidrs]
        answer = self._client.request("POST", "networks", name=name, cidrs=ranges, vni=vni)
        return records.network(answer["network"])

    def networks(self) -> list[Network]:
        """All networks."""
        return [records.network(each) for each in self._client.request("GET", "networks")]

    def remove_network(self, name: str) -> None:
        """Remove a network, its namespaces and what was written for them.

        Raises:
            NotFound: there is none of that name.
            InUse: it has endpoints.
        """
        self._client.request("DELETE", "networks", name)

    def set_namespace(self, network: str, name: str, labels: Mapping[str, str]) -> Namespace:
        """Make a namespace, or give it these labels instead of its own.

        Raises:
            NotFound: no such network.
            InvalidValue: a name or a label is wrong.
        """
        answer = self._client.request("PUT", "namespaces", network, name, labels=dict(labels))
        return records.namespace(answer["namespace"])

    def namespaces(self, network: str | None = None) -> list[Namespace]:
        """All namespaces, or those of one network.

        Raises:
            NotFound: there is no network of that name.
        """
        found = [records.namespace(each) for each in self._client.request("GET", "namespaces")]
        return self._of(network, found)

    def remove_namespace(self, network: str, name: str) -> None:
        """Remove a namespace and what was written for it.

        Raises:
            NotFound: there is none of that name.
            InUse: it has endpoints.
        """
        self._client.request("DELETE", "namespaces", network, name)

    # Endpoints

    def attach(
        self,
        network: str,
        name: str,
        *,
        namespace: str = "default",
        address: str | None = None,
        labels: Mapping[str, str] | None = None,
        ports: Mapping[str, tuple[str, int]] | None = None,
        cgroup: str | os.PathLike[str] | None = None,
        netns: str | os.PathLike[str] | None = None,
        closed: bool = False,
        ephemeral: bool = False,
    ) -> AttachedEndpoint:
        """Attach an endpoint on this host. Processes that are started in its
        ``cgroup`` (and ``netns``) are that endpoint.

        Attaching what is there already and equal changes nothing. One whose
        processes have ended is replaced.

        Args:
            network: the network's name.
            name: unique in its namespace.
            namespace: made when it is new.
            address: its overlay address; the first free one by default.
            labels: what policies select it by.
            ports: named ports, as ``{"http": ("tcp", 80)}``.
            cgroup: an existing cgroup v2 directory, of a container say; one is
                made by default.
            netns: path of an existing network namespace, of a container say, which has
                no ``eth0`` and no default route: it gets the endpoint's, and loses them
                when the endpoint is detached. Any process in it is the endpoint then.
                Only of a backend that works by namespaces (``kmod``, ``noop``).
            closed: keep from every process in the cgroup what ``slimnet run`` takes from a
                command: for a container in the host's network namespace.
            ephemeral: it goes by itself when this process has ended and its
                cgroup is empty.

        Raises:
            NotFound: no such network.
            InvalidValue: an argument is wrong.
            AlreadyExists: its name or address is taken.
            CannotEnforce: a mandatory policy selects it, and this host cannot hold it.
            CapabilityMissing: it has a published port or a limit, or is to be closed, and
                this host cannot.
            BackendError: the data path refused; nothing was changed.
        """
        answer = self._client.request(
            "POST",
            "endpoints",
            network=network,
            name=name,
            namespace=namespace,
            address=None if address is None else str(address),
            labels=None if labels is None else dict(labels),
            ports=None if ports is None else {key: list(value) for key, value in ports.items()},
            cgroup=None if cgroup is None else os.path.abspath(cgroup),  # noqa: PTH100
            netns=None if netns is None else os.path.abspath(netns),  # noqa: PTH100
            closed=closed,
            ephemeral=ephemeral,
        )
        return AttachedEndpoint(
            endpoint=records.endpoint(answer["endpoint"]),
            place=records.place(answer["place"]),
            created=answer["created"],
            own_cgroup=cgroup is None,
            ephemeral=ephemeral,
            node=self,
        )

    def detach(
        self, network: str, name: str, namespace: str = "default", *, kill: bool = False
    ) -> None:
        """Detach an endpoint of this host and remove it, or remove one of a
        host that is lost.

        Raises:
            NotFound: there is none of that name.
            InUse: it has processes, and ``kill`` was not asked for.
            InvalidValue: it lives on another host.
        """
        self._client.request("DELETE", "endpoints", network, namespace, name, kill=kill)

    def label_endpoint(
        self,
        network: str,
        name: str,
        labels: Mapping[str, str | None],
        namespace: str = "default",
        *,
        overwrite: bool = False,
    ) -> Endpoint:
        """Change labels of an endpoint that runs, on whatever host; those that are not named
        stay. What selects it by them applies to it from then on, and its live connections
        are judged again: those that are not allowed any more are closed.

        Args:
            network: its network.
            name: its name.
            labels: name to value; to ``None`` for one that goes, if it is there.
            namespace: its namespace.
            overwrite: change the value of one that is there.

        Returns:
            The endpoint as it is now.

        Raises:
            NotFound: there is none of that name.
            AlreadyExists: a label is there with another value, and ``overwrite`` was not
                asked for; nothing was changed.
            InvalidValue: a name or a value is none of a label.
            CannotEnforce: with these labels a mandatory policy selects it, and its host
                cannot hold it.
            CapabilityMissing: likewise for a limit.
        """
        answer = self._client.request(
            "PATCH",
            "endpoints",
            network,
            namespace,
            name,
            labels=dict(labels),
            overwrite=overwrite,
        )
        return records.endpoint(answer["endpoint"])

    def endpoints(self, network: str | None = None) -> list[Endpoint]:
        """All endpoints of the cluster, or those of one network.

        Raises:
            NotFound: there is no network of that name.
        """
        found = [records.endpoint(each) for each in self._client.request("GET", "endpoints")]
        return self._of(network, found)

    def _of(self, network: str | None, found: list[T]) -> list[T]:
        mine = [each for each in found if network in (None, each.network)]
        if network is not None and not mine:
            there = [each.name for each in self.networks()]
            if network not in there:
                raise missing("network", network, there)
        return mine

    def endpoint(self, network: str, name: str, namespace: str = "default") -> PlacedEndpoint:
        """An endpoint of this host that is attached, and where its processes belong.

        Raises:
            NotFound: there is none of that name.
            InvalidValue: it lives on another host.
            BackendError: it is not attached; says why.
        """
        answer = self._client.request("GET", "endpoints", network, namespace, name)
        return PlacedEndpoint(
            records.endpoint(answer["endpoint"]), records.place(answer["place"]), created=False
        )

    def run(self, network: str, name: str, argv: Sequence[str], **options: Any) -> int:
        """Run a command as an endpoint, with namespaces of its own, and answer its
        exit status. The endpoint goes with it.

        Args:
            network: as of :meth:`attach`.
            name: as of :meth:`attach`; also its host name.
            argv: the command.
            options: as of :meth:`attach`.
        """
        from slimnet import sandbox  # noqa: PLC0415  # what most callers never need

        with self.attach(network, name, ephemeral=True, **options) as attached:
            return sandbox.run(attached, argv, hidden=sandbox.secrets(self))

    def exec(
        self,
        network: str,
        name: str,
        argv: Sequence[str],
        namespace: str = "default",
        **options: Any,
    ) -> int:
        """Run one more command in an endpoint of this host, beside the one that
        :meth:`run` or ``slimnet run`` started: in its namespaces, confined as it is. Ends
        with it. Answers the exit status.

        Args:
            network: its network.
            name: its name.
            argv: the command.
            namespace: its namespace.
            options: as of :func:`slimnet.sandbox.spawn`: ``user``, ``directory``, ...

        Raises:
            NotFound: there is none of that name, or no such command runs in it.
            InvalidValue: it lives on another host, or an option is wrong.
            BackendError: it is not attached; says why.
        """
        from slimnet import sandbox  # noqa: PLC0415  # what most callers never need

        placed = self.endpoint(network, name, namespace)
        return sandbox.run(placed, argv, beside=True, **options)

    # Policies, services, published ports, limits

    def apply_policy(
        self, source: Sources, network: str | None = None, *, ignore_unknown: bool = False
    ) -> list[Document]:
        """Put the documents of files, or of texts, in force: all or none.

        Args:
            source: a path, or YAML as Kubernetes has it, or a manifest as
                :func:`slimnet.policy.read` makes them; or several of them.
            network: of those that do not name theirs; the only network there is
                by default, else ``default``.
            ignore_unknown: pass over documents that are not slimnet's
                (:func:`slimnet.policy.is_foreign`).

        Returns:
            The documents, with the addresses that services were given.

        Raises:
            PolicyError: says which field of which line; or there is no document.
            NotFound: no such network.
            AlreadyExists: a service's address is taken.
            CannotEnforce: a mandatory policy, and a backend that cannot hold it.
            CapabilityMissing: a published port or a limit, and a backend without.
            InUse: a host itself listens on a port to be published.
        """
        from slimnet.policy import Document  # noqa: PLC0415  # YAML and a compiler

        answer = self._client.request(
            "POST", "policies", **self._written(source, network, ignore_unknown)
        )
        return [Document.from_json(each) for each in answer["policies"]]

    def check_policy(
        self,
        source: Sources | Iterable[Document],
        network: str | None = None,
        *,
        ignore_unknown: bool = False,
    ) -> list[PolicyWarning]:
        """What in these documents was surely not meant, were they applied to what is
        there: a selector that selects nothing, a rule that never decides.

        Args:
            source: as of :meth:`apply_policy`; or what that answered, for what is now
                in force of it.
            network: likewise.
            ignore_unknown: likewise.

        Raises:
            PolicyError: says which field of which line; or there is no document.
        """
        from slimnet.cluster.documents import key  # noqa: PLC0415
        from slimnet.policy import Document, PolicyWarning  # noqa: PLC0415

        sources = [source] if isinstance(source, (str, os.PathLike, Mapping)) else list(source)
        applied = [key(each) for each in sources if isinstance(each, Document)]
        written = [each for each in sources if not isinstance(each, Document)]
        body = {**self._written(written, network, ignore_unknown), "applied": applied}
        answer = self._client.request("POST", "check", patience=240, **body)
        return [PolicyWarning(**each) for each in answer]

    def _written(
        self,
        source: Sources,
        network: str | None,
        ignore_unknown: bool,  # noqa: FBT001
    ) -> dict[str, Any]:
        """The manifests of files or texts as they stand, for the agent to parse, and the
        network of those that do not name theirs."""
        from slimnet.policy import is_foreign, read  # noqa: PLC0415  # YAML

        sources = [source] if isinstance(source, (str, os.PathLike, Mapping)) else list(source)
        manifests: list[Mapping[str, Any]] = []
        for each in sources:
            manifests += [each] if isinstance(each, Mapping) else read(each)
        if ignore_unknown:
            manifests = [each for each in manifests if not is_foreign(each)]
        if sources and not manifests:
            raise PolicyError("documents", "one of slimnet's kinds", "none")
        return {
            "policies": manifests,
            "network": self.default_network() if network is None else network,
        }

    def policies(self) -> list[Document]:
        """All policies, services, published ports and limits."""
        from slimnet.policy import Document  # noqa: PLC0415

        return [Document.from_json(each) for each in self._client.request("GET", "policies")]

    def remove_policy(
        self,
        name: str | Document,
        network: str | None = None,
        namespace: str = "default",
        kind: str | None = None,
    ) -> None:
        """Remove a policy, a service, a published port or a limit.

        Args:
            name: its name; or the document itself, which says the rest.
            network: its network; the only one there is by default. A
                ClusterNetworkPolicy has none.
            namespace: its namespace.
            kind: as in its manifest, in any case; NetworkPolicy by default.

        Raises:
            NotFound: there is none of that name.
            InvalidValue: there is no such kind.
        """
        from slimnet.cluster.documents import PREFIXES  # noqa: PLC0415
        from slimnet.policy import ClusterNetworkPolicy, Document  # noqa: PLC0415

        if isinstance(name, Document):
            kind = type(name).__name__
            network = getattr(name, "network", None)
            namespace = getattr(name, "namespace", namespace)
            name = name.name
        kind = kind or "NetworkPolicy"
        made = next((each for each in PREFIXES if each.__name__.lower() == kind.lower()), None)
        if made is None:
            raise InvalidValue(
                "kind", f"one of {', '.join(each.__name__ for each in PREFIXES)}", kind
            )
        wide = made is ClusterNetworkPolicy
        place = () if wide else (network or self.default_network(), namespace)
        self._client.request("DELETE", PREFIXES[made], *place, name)

    def default_network(self) -> str:
        """The network of what names none: the only one there is, else ``default``."""
        names = [each.name for each in self.networks()]
        return names[0] if len(names) == 1 else "default"

    def explain(
        self, network: str, source: str, destination: str, port: int, protocol: str = "tcp"
    ) -> dict[str, Any]:
        """Whether ``source`` may open this to ``destination``, and by which rule.

        Args:
            network: that both are seen from.
            source: an address, or an endpoint's ``[[network/]namespace/]name``.
            destination: likewise; or a service's, where no endpoint has that name.
            port: destination port.
            protocol: ``tcp``, ``udp`` or ``sctp``.

        Returns:
            :class:`slimnet.policy.Explanation` as JSON, and ``unanswered``: the
            hosts whose data path was not asked, since they did not answer.
        """
        answer: dict[str, Any] = self._client.request(
            "POST",
            "explain",
            network=network,
            source=str(source),
            destination=str(destination),
            port=port,
            protocol=protocol,
        )
        return answer

    # What happens

    def connections(self) -> list[Connection]:
        """The live connections of this host's endpoints."""
        return [records.connection(each) for each in self._client.request("GET", "connections")]

    def accounts(self) -> list[Account]:
        """What the endpoints of this host sent and received, by rule; nothing where
        the backend does not count."""
        return [records.account(each) for each in self._client.request("GET", "accounts")]

    def rules(self) -> dict[int, str]:
        """Rule id to its words (``default/web ingress[0] (web.yaml:7)``), of the
        tables in force on this host."""
        return {int(key): text for key, text in self._client.request("GET", "rules").items()}

    def events(self) -> Iterator[Event]:
        """Connections opened, refused and closed on this host, as they happen, from
        the call on and until the caller stops reading.

        Raises:
            AgentUnreachable: the agent does not answer, or has ended meanwhile.
        """
        lines = self._client.lines("events")
        next(lines)  # empty: the agent listens from here on
        return (records.event(each) for each in lines if each is not None)

    def refusals(self) -> list[Event]:
        """The last refusals on this host, oldest first."""
        return [records.event(each) for each in self._client.request("GET", "refusals")]

    def hosts(self) -> list[Host]:
        """The hosts that are alive."""
        return [each.host for each in self.host_states() if each.host and not each.lost]

    def host_states(self) -> list[HostState]:
        """All hosts that are known, by name: those that are alive, and those that were
        lost and have not been removed."""
        return [records.host_state(each) for each in self._client.request("GET", "hosts")]

    def remove_host(self, name: str) -> None:
        """Forget a lost host, and remove the endpoints that it left.

        Raises:
            InUse: it lives.
            NotFound: there is none of that name.
        """
        self._client.request("DELETE", "hosts", name)

    def status(self) -> dict[str, Any]:
        """What is in force on this host, and what stands in its way
        (``ready`` and ``trouble``). ``warnings`` says which services nobody reaches, for want
        of a host that carries them.

        ``installed`` is the store's revision whose tables are in force, and ``revision`` the
        one that the agent knows: it has work to do while they differ. ``generation`` counts
        the changes of this host's own tables, and is no revision. ``stale`` says why the
        store does not answer; empty while it does.
        """
        answer: dict[str, Any] = self._client.request("GET", "status")
        return answer

    def wait(
        self,
        revision: int | None = None,
        timeout: float = 10.0,
        hosts: Iterable[str] | None = None,
    ) -> dict[str, int]:
        """Wait until hosts have what the store holds now (or at ``revision``) in force.

        Args:
            revision: of the store.
            timeout: seconds.
            hosts: their names; by default every live host, one whose agent does not answer
                among them until its lease runs out.

        Returns:
            host name to the revision that it follows.

        Raises:
            NotFound: one of ``hosts`` does not live.
            NotFollowed: some have not, after ``timeout`` seconds; says which.
        """
        answer = self._client.request(
            "POST",
            "wait",
            patience=timeout,
            revision=revision,
            timeout=timeout,
            hosts=None if hosts is None else list(hosts),
        )
        installed: dict[str, int] = answer["installed"]
        return installed

    def ping(
        self,
        target: str,
        *,
        port: int | None = None,
        source: str | None = None,
        network: str | None = None,
        count: int = 1,
        timeout: float = 3.0,
    ) -> dict[str, Any]:
        """How a TCP connection to ``target`` would be carried, and how long a real
        one takes to be made.

        Args:
            target: an endpoint as ``[[network/]namespace/]name``, or its address.
            port: where to; without one, a refusal of the connection by the
                target (nobody listens on port 7) counts as an answer.
            source: an endpoint of this host; a temporary one, without labels,
                by default.
            network: of both.
            count: how many connections, one after the other.
            timeout: seconds for each.

        Returns:
            ``carried`` is ``accelerated``, ``fallback``, ``denied`` or
            ``unreachable``, ``why`` and ``wire`` say how; ``milliseconds`` has
            the time of each connection, ``error`` an errno's name or ``None``;
            ``explanation`` is that of :meth:`explain`.
        """
        answer: dict[str, Any] = self._client.request(
            "POST",
            "ping",
            patience=timeout * (count + 1),
            target=target,
            port=port,
            source=source,
            network=network,
            count=count,
            timeout=timeout,
        )
        return answer

    def close(self) -> None:
        """Nothing stays open between two calls; for ``with``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
