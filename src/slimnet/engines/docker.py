# SPDX-License-Identifier: Apache-2.0
"""The plugin for Docker: its remote network driver and IPAM driver.

Both are asked over a Unix socket in a directory where Docker looks for plugins; the socket's
name is the driver's (https://docs.docker.com/engine/extend/plugin_api/, and ``docs/remote.md``
and ``docs/ipam.md`` of libnetwork, which is in Docker's own repository today).

How a container gets its device::

    CreateEndpoint   looks whether it can be had
    Join             the endpoint is attached to a namespace that only waits, its device goes to
                     the host's namespace, and Docker is told its name
    (Docker)         the container's namespace is made, and the device is moved there, renamed and
                     given its address and routes, before the container's process starts
    (then)           the endpoint's path names the container's namespace, not the waiting one

A container has no namespace yet when Docker asks, and nothing is asked once it has: were it
attached only then, its process would start without a network, and Docker could not be told what
went wrong (:mod:`.postponed` is the one exception). So the endpoint has a path of its own, which is
a symbolic link. When Docker takes its namespace away the link leads nowhere, by which the agent
knows that the endpoint is gone, whether this plugin runs or not.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import logging
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import evolve
from netaddr import AddrFormatError, IPAddress, IPNetwork

from slimnet import directories
from slimnet.agent.client import UnixConnection
from slimnet.agent.notify import notify
from slimnet.agent.server import Server
from slimnet.engines.container import (
    DEVICE,
    Container,
    HostPort,
    attachments,
    host,
    join,
    leave,
    may_come_later,
    name_of,
    names_of,
    withdraw,
)
from slimnet.engines.postponed import Postponed
from slimnet.exceptions import (
    AgentUnreachable,
    AlreadyExists,
    InvalidValue,
    NotFound,
    SlimnetError,
)
from slimnet.fallback.router import GATEWAY
from slimnet.linux import netns
from slimnet.model import Network
from slimnet.names import is_label, missing
from slimnet.node import Node
from slimnet.policy import Service

__all__ = ["Plugin", "serve"]

_log = logging.getLogger(__name__)

#: What this IPAM driver calls its addresses: a network that has others is refused.
_SPACE = "slimnet"
#: The label of a container that says its endpoint's namespace.
_NAMESPACE = "slimnet.io/namespace"
#: Docker's own options (netlabel of libnetwork).
_OWN = "com.docker."
_PORTS = "com.docker.network.portmap"
_GENERIC = "com.docker.network.generic"
_GATEWAY = "com.docker.network.gateway"
_PROTOCOLS = {6: "tcp", 17: "udp"}
#: Seconds that Docker's API may take: a container that starts waits for it.
_PATIENCE = 2.0
#: Seconds between two looks at a container that starts, at one that takes long, and at all.
_SOON, _LATER, _EVERY = 0.005, 1.0, 5.0
#: Seconds after which a start takes long.
_LONG = 20.0


class Engine:
    """What Docker's API says (https://docs.docker.com/engine/api/).

    The plugin protocol tells a driver neither a container's name nor its labels.

    Args:
        path: its socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _get(self, path: str) -> Any:
        """``None`` where nobody answers; what is not there is empty."""
        connection = UnixConnection(self._path, _PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            return json.loads(body) if response.status == 200 else {}
        except (OSError, http.client.HTTPException, ValueError) as error:
            _log.debug("docker on %s: %s", self._path, error)
            return None
        finally:
            connection.close()

    def name(self, network: str, endpoint: str) -> str | None:
        """The name of an endpoint's container; empty: Docker knows no such endpoint; ``None``:
        it does not say."""
        found = self._get(f"/networks/{quote(network)}")
        if found is None:
            return None
        for each in (found.get("Containers") or {}).values():
            if each.get("EndpointID") == endpoint:
                return str(each.get("Name") or "")
        return ""

    def knows(self, driver: str, endpoint: str) -> bool | None:
        """Whether Docker has such an endpoint in any of a driver's networks; ``None``: it does
        not say."""
        wanted = quote(json.dumps({"driver": [driver]}))
        networks = self._get(f"/networks?filters={wanted}")
        if networks is None:
            return None
        names = [self.name(str(each["Id"]), endpoint) for each in networks]
        return True if any(names) else None if None in names else False

    def labels(self, name: str) -> dict[str, str]:
        """A container's labels."""
        wanted = quote(json.dumps({"name": [f"^/{name}$"]}))
        for each in self._get(f"/containers/json?all=1&filters={wanted}") or ():
            return dict(each.get("Labels") or {})
        return {}


class Plugin:
    """Answers Docker's questions: a route of :class:`slimnet.agent.server.Server`.

    Args:
        name: the driver's.
        agent: the agent's socket; as of :func:`slimnet.engines.container.host`.
        docker: Docker's socket.
    """

    def __init__(self, name: str, agent: str | None, docker: Path) -> None:
        self.name = name
        #: As what is written down of its containers says it.
        self.owner = f"docker-{name}"
        self._agent = agent
        self._engine = Engine(docker)
        #: Endpoint to the address that Docker was given for it.
        self._asked: dict[str, IPAddress] = {}
        #: Addresses that were given out, and that no endpoint has yet.
        self._promised: dict[IPAddress, float] = {}
        #: Network to the addresses that were in use when the agent was asked last.
        self._holders: dict[str, dict[IPAddress, str]] = {}
        #: Addresses that were drawn without it.
        self._drawn: set[IPAddress] = set()
        #: Endpoints whose container's namespace the agent knows.
        self._told: set[str] = set()
        #: Docker that was killed asks to delete, after its restart, what is just being made.
        self._busy = [threading.RLock() for _ in range(64)]
        self._lock = threading.Lock()
        self._news = threading.Event()

    def __call__(
        self, method: str, segments: list[str], body: dict[str, Any], caller: object
    ) -> dict[str, Any]:
        """Answer one question; what went wrong is in the answer, as the protocol has it."""
        del method, caller
        question = "/".join(segments)
        try:
            answer = _ANSWERS.get(question)
            if answer is None:
                raise NotFound(f"{question}: no question that slimnet knows")
            return answer(self, body)
        except (SlimnetError, OSError) as error:
            _log.info("%s: %s", question, error)
            key = "Error" if question.startswith("IpamDriver.") else "Err"
            return {key: f"slimnet: {error}"}

    def _held(self, endpoint: str) -> threading.RLock:
        """One endpoint is worked on by one thread at a time."""
        return self._busy[hash(endpoint) % len(self._busy)]

    def _node(self) -> Node:
        return host(self._agent)

    # Addresses

    def request_pool(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Which network of slimnet it is: by its range, by name, or the only one."""
        options = dict(body.get("Options") or {})
        name = options.pop("network", None)
        for key, value in options.items():
            raise InvalidValue(f"ipam-opt {key}", "network alone", value)
        if body.get("V6"):
            raise InvalidValue("ipv6", "IPv4 only", "an IPv6 network")
        if body.get("SubPool"):
            raise InvalidValue("ip-range", "none: slimnet gives addresses", body["SubPool"])
        node = self._node()
        networks = {each.name: each for each in node.networks()}
        pool = body.get("Pool")
        if pool:
            found = [each for each in networks.values() if IPNetwork(pool) in each.cidrs]
            if not found or name not in (None, found[0].name):
                there = ", ".join(str(cidr) for each in networks.values() for cidr in each.cidrs)
                raise InvalidValue("subnet", f"a network's range: {there or 'there is none'}", pool)
            network = found[0]
        else:
            name = name or node.default_network()
            if name not in networks:
                raise missing("network", name, list(networks))
            network = networks[name]
        pool = str(pool or network.cidrs[0])
        return {
            "PoolID": f"{network.name}@{pool}",
            "Pool": pool,
            # Else Docker would ask for an address of the network.
            "Data": {_GATEWAY: f"{GATEWAY}/32"},
        }

    def request_address(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The one that is asked for, or one that is free.

        Docker wants it before it says for whom: it becomes an endpoint's in Join, where the
        agent refuses one that somebody else took meanwhile. So that hardly happens, it is
        drawn, where the agent itself takes the first one that is free. Without an agent, where
        the configuration lets containers start, it is one that was free when last it answered.
        """
        asked = str(body.get("Address") or "")
        if (body.get("Options") or {}).get("RequestAddressType") == _GATEWAY:
            raise InvalidValue("gateway", "none: slimnet has its own", asked)
        name, _, text = str(body.get("PoolID")).partition("@")
        pool = IPNetwork(text)
        try:
            holders = self._holders[name] = _holders(self._node(), name)
            blind = False
        except AgentUnreachable:
            if not may_come_later():
                raise
            holders, blind = dict(self._holders.get(name, {})), True
        with self._lock:
            now = time.monotonic()
            self._promised = {k: v for k, v in self._promised.items() if now - v < _LONG}
            for each in self._promised:
                holders.setdefault(each, "another container, which is about to start")
            address = _wanted(pool, asked, holders) if asked else _free(pool, holders)
            self._promised[address] = now
            self._drawn.discard(address)
            if blind and not asked:
                self._drawn.add(address)
        return {"Address": f"{address}/32", "Data": {}}

    def release_address(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """It was an endpoint's, and went with it; or Docker does not want it."""
        with self._lock, contextlib.suppress(AddrFormatError, ValueError):
            self._promised.pop(IPAddress(str(body.get("Address"))), None)
        return {}

    # Networks

    def create_network(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Look whether it is one of slimnet's: everything else is the cluster's to know."""
        options = dict(body.get("Options") or {})
        for key, value in (options.get(_GENERIC) or {}).items():
            raise InvalidValue(f"opt {key}", "none of the driver; --ipam-opt network=NAME", value)
        if options.get("com.docker.network.internal"):
            raise InvalidValue("internal", "a policy that denies egress", "an internal network")
        if body.get("IPv6Data"):
            raise InvalidValue("ipv6", "IPv4 only", "an IPv6 network")
        for each in body.get("IPv4Data") or []:
            if each.get("AddressSpace") != _SPACE:
                raise InvalidValue(
                    "ipam-driver", "slimnet's (--ipam-driver), as the driver", each["AddressSpace"]
                )
            if each.get("AuxAddresses"):
                raise InvalidValue("aux-address", "none: slimnet gives addresses", "some")
        return {}

    # Containers

    def create_endpoint(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Look whether it can be made, and who it is for: Join does the rest."""
        device = body.get("Interface") or {}
        if device.get("MacAddress"):
            raise InvalidValue("mac-address", "none: it is slimnet's", device["MacAddress"])
        for key, value in (body.get("Options") or {}).items():
            if not key.startswith(_OWN):
                raise InvalidValue(f"driver-opt {key}", "none", value)
        _published(body)
        self._asked[str(body["EndpointID"])] = IPNetwork(device["Address"]).ip
        return {"Interface": {}}

    def join(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Attach the endpoint, and leave its device where Docker finds it."""
        with self._held(str(body["EndpointID"])):
            return self._join(body)

    def _join(self, body: Mapping[str, Any]) -> dict[str, Any]:
        endpoint = str(body["EndpointID"])
        address = self._asked.get(endpoint)
        if address is None:
            raise NotFound(f"endpoint {endpoint[:12]}: this plugin was started anew; try again")
        node = self._node()
        try:
            network = _network(node, address)
        except AgentUnreachable:
            if not may_come_later():
                raise
            network = None
        name = self._engine.name(str(body["NetworkID"]), endpoint)
        later = Postponed(
            _later(endpoint),
            endpoint=endpoint,
            docker=str(body["NetworkID"]),
            network=network.name if network else "",
            address=str(address),
            sandbox=str(body["SandboxKey"]),
            device=_device(endpoint),
            drawn=address in self._drawn,
        )
        try:
            if name is None or network is None:
                later.write()
                later.plug()
            else:
                self._attach(node, later, name, _wait_in_namespace)
                _lay_out(endpoint)
                _key(endpoint).symlink_to(later.sandbox)
        except BaseException:
            with contextlib.suppress(SlimnetError, OSError):
                self._forget(endpoint)
            raise
        self._news.set()
        return {
            "InterfaceName": {"SrcName": _device(endpoint), "DstPrefix": DEVICE.rstrip("0")},
            "Gateway": GATEWAY,
            "StaticRoutes": [
                {"Destination": f"{GATEWAY}/32", "RouteType": 1},
                # A container of several networks has another's default route, maybe.
                *(
                    {"Destination": str(cidr), "RouteType": 0, "NextHop": GATEWAY}
                    for cidr in (network.cidrs if network else ())
                ),
            ],
        }

    def _attach(self, node: Node, what: Postponed, name: str, lead: Callable[[str], None]) -> None:
        """Make a namespace the endpoint of the container of that name.

        Args:
            node: this host's.
            what: it is to be.
            name: the container's; empty: Docker knows none.
            lead: makes the endpoint's path lead to its namespace, once it is written down.
        """
        labels = self._engine.labels(name) if name else {}
        container = Container(
            id=what.endpoint,
            owner=self.owner,
            network=what.network,
            name=name_of(name, what.endpoint),
            namespace=labels.pop(_NAMESPACE, "default"),
            netns=str(_path(what.endpoint)),
            agent=self._agent or "",
        )
        container.write()
        lead(what.endpoint)
        join(
            node,
            evolve(container, published=names_of(container.name, what.published)),
            address=what.address or None,
            # An image's may be texts of any kind.
            labels={key: value for key, value in labels.items() if is_label(key, value)},
            published=what.published,
        )

    def publish(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Publish the container's ports: asked for one of its networks only."""
        ports = _published(body)
        with self._held(str(body["EndpointID"])):
            later = Postponed.read(_later(str(body["EndpointID"])))
            if later is not None:
                evolve(later, published=ports).write()
            for each in self._written(body) if ports else ():
                named = evolve(each, published=names_of(each.name, ports))
                join(self._node(), named, published=ports)
        return {}

    def withdraw(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Undo :meth:`publish`."""
        with self._held(str(body["EndpointID"])):
            for each in self._written(body):
                if each.published:
                    withdraw(self._node(), each).write()
        return {}

    def leave(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Undo :meth:`join`, as far as it came. An agent that does not answer lets go of the
        endpoint by itself when it is back, for its namespace is gone."""
        with self._held(str(body["EndpointID"])):
            written = (_path(str(body["EndpointID"])), _later(str(body["EndpointID"])))
            if any(each.is_symlink() or each.exists() for each in written):
                self._forget(str(body["EndpointID"]))
        return {}

    def delete_endpoint(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Likewise, where nobody called :meth:`leave`."""
        self._asked.pop(str(body["EndpointID"]), None)
        return self.leave(body)

    def _written(self, body: Mapping[str, Any]) -> list[Container]:
        return list(attachments(self.owner, str(body["EndpointID"])))

    def _forget(self, endpoint: str) -> None:
        # First what says that the endpoint is there: tend() does not take it up again.
        for path in (_key(endpoint), _path(endpoint)):
            path.unlink(missing_ok=True)
        later = Postponed.read(_later(endpoint))
        if later is not None:
            later.file.unlink(missing_ok=True)
            later.unplug()
        self._told.discard(endpoint)
        netns.remove(_waiting(endpoint))
        for each in attachments(self.owner, endpoint):
            try:
                leave(self._node(), each)
            except AgentUnreachable as error:
                _log.warning("%s; it removes endpoint %s when it is back", error, each.name)
                if not each.published:  # which would stay: tend() tries again
                    each.file.unlink(missing_ok=True)

    # What Docker does without a question

    def tend(self, stop: threading.Event) -> None:
        """Follow containers into their namespaces, and clear away what went, until ``stop``."""
        looked = -_EVERY
        while not stop.is_set():
            self._news.clear()
            now = time.monotonic()
            waiting = list(self._waiting())
            for container, age in waiting:
                self._attempt(container.id, functools.partial(self._follow, age=age))
            if now - looked >= _EVERY:
                looked = now
                for container in attachments(self.owner):
                    self._attempt(container.id, self._look)
            for later in Postponed.all(_directory()):
                if not self._catch_up(later):
                    break
            starts = any(age < _LONG for _, age in waiting)
            self._news.wait(_SOON if starts else _LATER)

    def _attempt(self, endpoint: str, work: Callable[[Container], None]) -> None:
        held = self._held(endpoint)
        if not held.acquire(blocking=False):  # the next time
            return
        try:
            for container in attachments(self.owner, endpoint):  # as it is by now
                work(container)
        except (SlimnetError, OSError) as error:
            _log.warning("endpoint %s: %s", endpoint[:12], error)
        finally:
            held.release()

    def _waiting(self) -> Iterator[tuple[Container, float]]:
        """Those whose device Docker is to move, and for how many seconds."""
        for key in _directory().glob("*.key"):
            with contextlib.suppress(FileNotFoundError):
                age = time.time() - key.lstat().st_mtime
                for each in attachments(self.owner, key.stem):
                    yield each, age

    def _follow(self, container: Container, *, age: float) -> None:
        key = _key(container.id)
        if netns.number(key) and not _is_laid_out(container.id):
            # One step: at no moment does the path lead nowhere, which would be its end.
            key.replace(_path(container.id))
            netns.remove(_waiting(container.id))
            self._tell(container)
        elif age > _LONG and self._engine.knows(self.name, container.id) is False:
            _log.info("removed endpoint %s, which Docker has forgotten", container.name)
            self._forget(container.id)

    def _catch_up(self, later: Postponed) -> bool:
        """Attach an endpoint whose container's name Docker says by now, and its network the agent;
        false: one of them says nothing, and there is no use in asking for another."""
        held = self._held(later.endpoint)
        if not held.acquire(blocking=False):  # the next time
            return True
        try:
            if _is_laid_out(later.endpoint) or not later.file.exists():
                return True
            name = self._engine.name(later.docker, later.endpoint)
            if name is None:
                return False
            if not name or not netns.number(Path(later.sandbox)):
                if time.time() - later.file.stat().st_mtime > _LONG:
                    _log.info(
                        "removed endpoint %s, which Docker has forgotten", later.endpoint[:12]
                    )
                    self._forget(later.endpoint)
                return True
            node = self._node()
            what = evolve(later, network=_network(node, IPAddress(later.address)).name)
            later.unplug()
            lead = functools.partial(_lead, where=Path(later.sandbox))
            try:
                self._attach(node, what, name, lead)
            except AlreadyExists as error:
                if not later.drawn:
                    raise
                self._attach(node, evolve(what, address=""), name, lead)
                _log.warning("container %s has another address than Docker shows: %s", name, error)
            later.file.unlink()
            self._told.add(later.endpoint)
        except AgentUnreachable:
            return False
        except (SlimnetError, OSError) as error:
            _log.warning("endpoint %s: %s", later.endpoint[:12], error)
        finally:
            held.release()
        return True

    def _tell(self, container: Container) -> None:
        join(self._node(), container)
        self._told.add(container.id)

    def _look(self, container: Container) -> None:
        if not netns.number(_path(container.id)):
            _log.info("removed endpoint %s of a container that is gone", container.name)
            self._forget(container.id)
        elif container.id not in self._told and not _key(container.id).is_symlink():
            self._tell(container)


# Where things are


def _directory() -> Path:
    return directories.run() / "docker"


def _path(endpoint: str) -> Path:
    """The endpoint's network namespace, as the agent knows it."""
    return _directory() / endpoint


def _key(endpoint: str) -> Path:
    """Leads to where Docker will mount the container's namespace, until it has."""
    return _directory() / f"{endpoint}.key"


def _later(endpoint: str) -> Path:
    """What is written down of one whose container has no name yet."""
    return _directory() / f"{endpoint}.later"


def _waiting(endpoint: str) -> Path:
    """A namespace in which the endpoint is until its container has one."""
    return netns.DIRECTORY / f"docker-{endpoint[:12]}"


def _device(endpoint: str) -> str:
    """Its device in the host's namespace, where Docker looks for it."""
    return f"slim{endpoint[:10]}"


def _wait_in_namespace(endpoint: str) -> None:
    waiting = _waiting(endpoint)
    netns.remove(waiting)
    netns.create(waiting)
    _lead(endpoint, waiting)


def _lead(endpoint: str, where: Path) -> None:
    """Make the endpoint's path lead to a namespace."""
    _directory().mkdir(parents=True, exist_ok=True)
    _path(endpoint).unlink(missing_ok=True)
    _path(endpoint).symlink_to(where)


def _lay_out(endpoint: str) -> None:
    with netns.own().open() as here, netns.netlink(_waiting(endpoint)) as inside:
        (index,) = inside.link_lookup(ifname=DEVICE)
        inside.link("set", index=index, state="down")
        inside.link("set", index=index, ifname=_device(endpoint), net_ns_fd=here.fileno())


def _is_laid_out(endpoint: str) -> bool:
    try:
        return socket.if_nametoindex(_device(endpoint)) > 0
    except OSError:
        return False


# Docker's words


def _network(node: Node, address: IPAddress) -> Network:
    """The network that an address is of."""
    for each in node.networks():
        if any(address in cidr for cidr in each.cidrs):
            return each
    raise NotFound(f"address {address}: its network is gone")


def _holders(node: Node, network: str) -> dict[IPAddress, str]:
    """Addresses of a network that are in use, and who has them."""
    holders = {each.address: f"endpoint {each.path}" for each in node.endpoints(network)}
    for document in node.policies():
        if isinstance(document, Service) and document.address is not None:
            holders[document.address] = document.title
    return holders


def _wanted(pool: IPNetwork, asked: str, holders: Mapping[IPAddress, str]) -> IPAddress:
    address = IPAddress(asked)
    if address not in pool:
        raise InvalidValue("ip", f"an address in {pool}", asked)
    if address in holders:
        raise AlreadyExists(f"ip: address {asked} is that of {holders[address]}")
    return address


def _free(pool: IPNetwork, holders: Mapping[IPAddress, str]) -> IPAddress:
    edge = 1 if pool.prefixlen < 31 else 0
    first, last = pool.first + edge, pool.last - edge
    drawn = (random.randint(first, last) for _ in range(32))  # noqa: S311  # no secret
    for each in itertools.chain(drawn, range(first, last + 1)):
        address = IPAddress(each, 4)
        if address not in holders:
            return address
    raise InvalidValue("ip", f"room in {pool}", f"{len(holders)} addresses in use")


def _published(body: Mapping[str, Any]) -> list[HostPort]:
    found = []
    for each in (body.get("Options") or {}).get(_PORTS) or []:
        port, last = each.get("HostPort") or 0, each.get("HostPortEnd") or 0
        title = f"publish: port {each.get('Port')}"
        protocol = _PROTOCOLS.get(each.get("Proto"))
        if protocol is None:
            raise InvalidValue(title, "protocol tcp or udp", {132: "sctp"}.get(each["Proto"]))
        if not port or last not in (0, port):
            raise InvalidValue(title, "one port of the host", f"{port}-{last}" if port else None)
        found.append(HostPort(port, each["Port"], each.get("HostIP") or "", protocol))
    return found


def _nothing(_plugin: Plugin, _body: Mapping[str, Any]) -> dict[str, Any]:
    return {}


_ANSWERS: dict[str, Callable[[Plugin, Mapping[str, Any]], dict[str, Any]]] = {
    "Plugin.Activate": lambda *_: {"Implements": ["NetworkDriver", "IpamDriver"]},
    # Docker of each host has its own; what they lead to is the cluster's.
    "NetworkDriver.GetCapabilities": lambda *_: {"Scope": "local", "ConnectivityScope": "global"},
    "NetworkDriver.CreateNetwork": Plugin.create_network,
    "NetworkDriver.DeleteNetwork": _nothing,
    "NetworkDriver.CreateEndpoint": Plugin.create_endpoint,
    "NetworkDriver.DeleteEndpoint": Plugin.delete_endpoint,
    "NetworkDriver.EndpointOperInfo": lambda *_: {"Value": {}},
    "NetworkDriver.Join": Plugin.join,
    "NetworkDriver.Leave": Plugin.leave,
    "NetworkDriver.ProgramExternalConnectivity": Plugin.publish,
    "NetworkDriver.RevokeExternalConnectivity": Plugin.withdraw,
    "NetworkDriver.DiscoverNew": _nothing,
    "NetworkDriver.DiscoverDelete": _nothing,
    "IpamDriver.GetCapabilities": _nothing,
    "IpamDriver.GetDefaultAddressSpaces": lambda *_: {
        "LocalDefaultAddressSpace": _SPACE,
        "GlobalDefaultAddressSpace": _SPACE,
    },
    "IpamDriver.RequestPool": Plugin.request_pool,
    "IpamDriver.ReleasePool": _nothing,
    "IpamDriver.RequestAddress": Plugin.request_address,
    "IpamDriver.ReleaseAddress": Plugin.release_address,
}


def serve(path: Path, agent: str | None, docker: Path) -> None:
    """Answer Docker on a socket until SIGTERM.

    Args:
        path: of the socket; its name without the suffix is the driver's.
        agent: the agent's socket; that of the configuration by default.
        docker: Docker's own socket.

    Raises:
        CapabilityMissing: others may write to the socket's directory.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    plugin = Plugin(path.stem, agent, docker)
    server = Server(path, plugin, lambda: ())
    server.start()
    notify("READY=1")
    _log.info("driver %s is ready, %s", plugin.name, path)
    try:
        plugin.tend(stop)
    finally:
        notify("STOPPING=1")
        server.close()
