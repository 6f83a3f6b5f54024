# SPDX-License-Identifier: Apache-2.0
"""The driver ``slimnet`` of Podman's networks, a plugin of netavark.

Podman and netavark start it as ``slimnet-netavark create``, ``setup NETNS``, ``teardown NETNS`` or
``info``, with JSON on its standard input (netavark's ``plugin-API.md``, API version 1.0.0). It
answers on standard output; an error is ``{"error": ...}`` and status 1. Options of a network::

    podman network create --driver slimnet
      -o network=prod             the network of slimnet; the network's name by default
      -o namespace=default        of the containers' endpoints
      -o label.app=web            of every container
      -o agent=/run/slimnet/default/agent.sock
      prod
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from attrs import evolve

from slimnet.agent.listening import listeners
from slimnet.engines.container import (
    DEVICE,
    ENGINE_NAME,
    PROTOCOLS,
    Asked,
    Container,
    HostPort,
    attachments,
    hardware_address,
    host,
    join,
    let_go,
    may_come_later,
    name_of,
    names_of,
    postpone,
    resolver_of,
)
from slimnet.exceptions import AgentUnreachable, InvalidValue, SlimnetError
from slimnet.linux.process import ancestors, sockets
from slimnet.linux.resolvers import words
from slimnet.model import Protocol
from slimnet.names import missing

__all__ = ["main"]

_API = "1.0.0"
_OPTIONS = ("network", "namespace", "agent")
_LABEL = "label."


class PodmanNetwork:
    """A network as Podman has it, checked.

    Raises:
        InvalidValue: something is not what it should be; says which.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.name = _text(config, "name")
        if not ENGINE_NAME.fullmatch(self.name):
            raise InvalidValue("name", "letters, digits, _ . and -", self.name)
        #: As what is written down of the network's containers says it.
        self.owner = f"netavark-{self.name}"
        self.options = _options(config)
        self.network = self.options.get("network", self.name)
        self.agent = self.options.get("agent")

    def created(self) -> dict[str, Any]:
        """What Podman is to keep of it, with the ranges of slimnet's network, by which Podman
        looks at an address that is asked for.

        Raises:
            NotFound: slimnet has no network of that name.
        """
        for key, wanted in _NONE.items():
            if self._config.get(key):
                raise InvalidValue(key, wanted, self._config[key])
        ipam = _table(self._config, "ipam_options").get("driver") or "none"
        if ipam != "none":
            raise InvalidValue("ipam_options.driver", "none: slimnet gives addresses", ipam)
        networks = {each.name: each for each in host(self.agent).networks()}
        if self.network not in networks:
            raise missing("network", self.network, list(networks))
        cidrs = [str(each) for each in networks[self.network].cidrs]
        for each in self._config.get("subnets") or []:
            for key in ("gateway", "lease_range"):
                if each.get(key):
                    raise InvalidValue(f"subnets.{key}", "none: it is slimnet's", each[key])
            if each.get("subnet") not in cidrs:
                where = f"a range of network {self.network}: {', '.join(cidrs)}"
                raise InvalidValue("subnets.subnet", where, each.get("subnet"))
        return {
            **self._config,
            "subnets": [{"subnet": each} for each in cidrs],
            "dns_enabled": False,  # by aardvark-dns: slimnet's own resolver answers
            "ipam_options": {"driver": "none"},
        }


#: What else Podman can ask of a network, and slimnet has not.
_NONE = {
    "internal": "a policy that denies egress",
    "ipv6_enabled": "IPv4 only",
    "network_dns_servers": "none: endpoints have slimnet's resolver",
    "network_interface": "none: it is slimnet's",
    "routes": "none: they are slimnet's",
}


class PodmanRequest:
    """What netavark asks for a container, checked.

    Raises:
        InvalidValue: something is not what it should be; says which.
    """

    def __init__(self, asked: Mapping[str, Any], space: str) -> None:
        self._asked = asked
        self._space = space
        self._own = _table(asked, "network_options")
        self.network = PodmanNetwork(_table(asked, "network"))
        self.id = _text(asked, "container_id")
        if not ENGINE_NAME.fullmatch(self.id):
            raise InvalidValue("container_id", "an id", self.id)
        self.options = {**self.network.options, **_options(self._own, "network_options.options")}

    @property
    def labels(self) -> dict[str, str]:
        """Of the network, and of the container's own part in it."""
        found = self.options.items()
        return {key[len(_LABEL) :]: value for key, value in found if key.startswith(_LABEL)}

    @property
    def address(self) -> str | None:
        """The one that is asked for."""
        asked = self._own.get("static_ips") or []
        if len(asked) > 1:
            raise InvalidValue("network_options.static_ips", "one address", asked)
        return str(asked[0]) if asked else None

    @property
    def published(self) -> list[HostPort]:
        """Ports of the host, of a range each by itself."""
        found = []
        for each in self._asked.get("port_mappings") or []:
            port, target = each.get("host_port"), each.get("container_port")
            if not (isinstance(port, int) and isinstance(target, int)):
                raise InvalidValue("port_mappings", "host_port and container_port", each)
            protocol = each.get("protocol") or "tcp"
            if protocol not in PROTOCOLS:
                raise InvalidValue(f"port_mappings: port {port}", "protocol tcp or udp", protocol)
            address, count = each.get("host_ip") or "", each.get("range") or 1
            found += [
                HostPort(port + more, target + more, address, protocol) for more in range(count)
            ]
        return found

    def container(self) -> Container:
        """What is asked to be made."""
        device = self._own.get("interface_name")
        if device != DEVICE:
            raise InvalidValue("network_options.interface_name", DEVICE, device)
        if self._own.get("static_mac"):
            raise InvalidValue(
                "network_options.static_mac", "none: it is slimnet's", self._own["static_mac"]
            )
        name = name_of(str(self._asked.get("container_name") or ""), self.id)
        return Container(
            id=self.id,
            owner=self.network.owner,
            network=self.network.network,
            name=name,
            namespace=self.options.get("namespace", "default"),
            netns=self._space,
            agent=self.network.agent or "",
            published=names_of(name, self.published),
        )

    def written(self) -> list[Container]:
        """What was made for the container."""
        return list(attachments(self.network.owner, self.id))


def _setup(request: PodmanRequest) -> dict[str, Any]:
    container = request.container()
    address, labels, published = request.address, request.labels, _held(request.published)
    try:
        made = join(
            host(request.network.agent),
            container,
            address=address,
            labels=labels,
            published=published,
        )
    except AgentUnreachable:
        if not may_come_later():
            # There is no teardown of what was not set up. What the agent may still make it lets
            # go of with the namespace, but for ports of the host.
            if not published:
                container.file.unlink(missing_ok=True)
            raise
        return _status({}, postpone(container, Asked(address, labels, published)))
    device = {
        "mac_address": hardware_address(Path(container.netns)),
        "subnets": [{"ipnet": f"{made.endpoint.address}/32"}],
    }
    return _status({DEVICE: device}, resolver_of(made))


def _held(ports: list[HostPort]) -> list[HostPort]:
    """Each with the sockets by which Podman keeps it: since Podman 5 it listens on the host's port
    before it asks a driver, and leaves that to conmon(8) to hold."""
    if not ports:
        return ports
    theirs = set().union(*map(sockets, ancestors(os.getpid())))
    listening = {
        each: [one for _, one in listeners(Protocol[each.upper()]) if one.inode in theirs]
        for each in {port.protocol for port in ports}
    }
    return [
        evolve(
            port, held=[one.inode for one in listening[port.protocol] if one.ports[0] == port.port]
        )
        for port in ports
    ]


def _status(interfaces: dict[str, Any], resolver: str) -> dict[str, Any]:
    found = words(resolver)
    return {
        "interfaces": interfaces,
        "dns_server_ips": found.get("nameserver", []),
        "dns_search_domains": found.get("search", []),
    }


def _teardown(request: PodmanRequest) -> None:
    """What is not there is no error."""
    for each in let_go(request.written(), request.network.agent):
        sys.stderr.write(f"slimnet-netavark: {each}\n")


def _table(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    if not isinstance(value, dict | None):
        raise InvalidValue(key, "an object", value)
    return value or {}


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidValue(key, "a text", value)
    return value


def _options(config: Mapping[str, Any], title: str = "options") -> dict[str, str]:
    """Of a network; of a container's part in one the namespace and labels alone."""
    known = _OPTIONS if title == "options" else ("namespace",)
    options = _table(config, "options")
    for key in options:
        if key not in known and not key.startswith(_LABEL):
            wanted = f"{', '.join(known)} or {_LABEL}KEY"
            raise InvalidValue(title, wanted, key)
    return options


def _answer(arguments: list[str]) -> dict[str, Any] | None:
    match arguments:
        case ["info"]:
            return {"version": metadata.version("slimnet-overlay"), "api_version": _API}
        case ["create"]:
            return PodmanNetwork(_input()).created()
        case ["setup", space]:
            return _setup(PodmanRequest(_input(), space))
        case ["teardown", space]:
            _teardown(PodmanRequest(_input(), space))
            return None
    wanted = "create, setup NETNS, teardown NETNS or info"
    raise InvalidValue("command", wanted, " ".join(arguments) or None)


def _input() -> dict[str, Any]:
    try:
        found = json.load(sys.stdin)
    except ValueError as error:
        raise InvalidValue("input", "JSON", str(error)) from error
    if not isinstance(found, dict):
        raise InvalidValue("input", "an object", found)
    return found


def main() -> int:
    """Answer one request: the command line and standard input to standard output."""
    try:
        answer = _answer(sys.argv[1:])
    except (SlimnetError, OSError) as error:
        sys.stdout.write(f"{json.dumps({'error': f'slimnet: {error}'})}\n")
        return 1
    if answer is not None:
        sys.stdout.write(f"{json.dumps(answer)}\n")
    return 0
