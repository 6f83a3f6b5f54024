# SPDX-License-Identifier: Apache-2.0
"""The plugin ``slimnet-cni`` of the Container Network Interface.

It speaks versions 0.4.0, 1.0.0 and 1.1.0 of the specification
(https://www.cni.dev/docs/spec/). A network's configuration::

    {
      "cniVersion": "1.0.0", "name": "prod",
      "plugins": [{
        "type": "slimnet-cni",
        "network": "prod",                        the network of slimnet; its name by default
        "namespace": "default",                   unless the runtime tells a pod's
        "labels": {"app": "web"},                 of every container
        "agent": "/run/slimnet/default/agent.sock",
        "capabilities": {"ips": true, "portMappings": true}
      }]
    }
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slimnet.attached import AttachedEndpoint
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
    leave,
    let_go,
    may_come_later,
    name_of,
    names_of,
    postpone,
    resolver_of,
)
from slimnet.exceptions import AgentUnreachable, InvalidValue, SlimnetError
from slimnet.linux import netns
from slimnet.linux.resolvers import words

__all__ = ["main"]

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
#: Keys of a network's configuration: the specification's, and ours.
_KEYS = frozenset(
    {
        *("cniVersion", "cniVersions", "name", "type", "args", "capabilities", "dns", "ipam"),
        *("ipMasq", "prevResult", "runtimeConfig", "disableCheck", "disableGC"),
        *("cni.dev/attachments", "cni.dev/valid-attachments"),
        *("agent", "labels", "namespace", "network"),
    }
)

# Error codes of the specification, section 5.
_VERSION, _FIELD, _ENVIRONMENT, _DECODE, _CONFIG, _LATER, _UNAVAILABLE = 1, 2, 4, 6, 7, 11, 50
_FAILED = 100


class CniError(Exception):
    """What a runtime is told, with a code of the specification."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Request:
    """What a runtime asks: environment and network configuration, checked.

    Raises:
        CniError: something is missing, or is not what it should be; says which.
    """

    def __init__(self, environment: Mapping[str, str], text: str) -> None:
        self._environment = environment
        self.command = environment.get("CNI_COMMAND", "")
        try:
            config = json.loads(text)
        except ValueError as error:
            raise CniError(_DECODE, f"network configuration: {error}") from error
        if not isinstance(config, dict):
            raise CniError(_DECODE, "network configuration: wanted an object")
        self.config: dict[str, Any] = config
        self.version = config.get("cniVersion", "")
        if self.version not in VERSIONS:
            wanted = ", ".join(VERSIONS)
            raise CniError(_VERSION, f"cniVersion: wanted one of {wanted}, got {self.version!r}")
        for key in config.keys() - _KEYS:
            raise CniError(_FIELD, f"{key}: no such key of slimnet-cni")
        if config.get("ipam"):
            raise CniError(_FIELD, "ipam: slimnet gives addresses itself; leave it out")
        self.name = self._text("name")
        if not ENGINE_NAME.fullmatch(self.name):
            raise CniError(_CONFIG, f"name: wanted letters, digits, _ . and -, got {self.name!r}")
        #: As what is written down of the network's containers says it.
        self.owner = f"cni-{self.name}"
        self.network = self._text("network", self.name)
        self.agent = self._text("agent", "") or None

    def _text(self, key: str, default: str | None = None) -> str:
        value = self.config.get(key, default)
        if not isinstance(value, str) or (default is None and not value):
            raise CniError(_CONFIG, f"{key}: wanted a text, got {value!r}")
        return value

    def _table(self, *keys: str) -> dict[str, Any]:
        found: Any = self.config
        for number, key in enumerate(keys, 1):
            found = found.get(key) or {}
            if not isinstance(found, dict):
                where = ".".join(keys[:number])
                raise CniError(_CONFIG, f"{where}: wanted an object, got {found!r}")
        return dict(found)

    def variable(self, name: str) -> str:
        """One that has to be there."""
        value = self._environment.get(name, "")
        if not value:
            raise CniError(_ENVIRONMENT, f"{name}: wanted by {self.command}, and is not set")
        return value

    @property
    def container(self) -> str:
        """The container's id."""
        value = self.variable("CNI_CONTAINERID")
        if not ENGINE_NAME.fullmatch(value):
            raise CniError(_ENVIRONMENT, f"CNI_CONTAINERID: wanted an id, got {value!r}")
        return value

    @property
    def arguments(self) -> dict[str, str]:
        """CNI_ARGS: ``KEY=VALUE;...``."""
        pairs = (each.split("=", 1) for each in self._environment.get("CNI_ARGS", "").split(";"))
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    @property
    def namespace(self) -> str:
        """A pod's, else that of the configuration."""
        return self.arguments.get("K8S_POD_NAMESPACE") or self._text("namespace", "default")

    @property
    def labels(self) -> dict[str, str]:
        """Of the configuration, and of ``args.cni.labels``, as the conventions have them."""
        found = dict(self._table("labels"))
        given = self._table("args", "cni").get("labels") or []
        if isinstance(given, dict):
            found |= given
        else:
            for each in given:
                if not isinstance(each, dict) or not {"key", "value"} <= each.keys():
                    wanted = 'wanted {"key": ..., "value": ...}'
                    raise CniError(_CONFIG, f"args.cni.labels: {wanted}, got {each!r}")
                found[each["key"]] = each["value"]
        return found

    @property
    def address(self) -> str | None:
        """The one that is asked for."""
        asked = self._table("runtimeConfig").get("ips") or self._table("args", "cni").get("ips")
        if not asked:
            return self.arguments.get("IP")
        if not isinstance(asked, list) or len(asked) != 1 or not isinstance(asked[0], str):
            raise CniError(_CONFIG, f"runtimeConfig.ips: wanted one address, got {asked!r}")
        return asked[0].partition("/")[0]

    @property
    def published(self) -> list[HostPort]:
        """``runtimeConfig.portMappings``."""
        found = []
        for each in self._table("runtimeConfig").get("portMappings") or []:
            if not isinstance(each, dict) or not all(
                isinstance(each.get(key), int) for key in ("hostPort", "containerPort")
            ):
                wanted = "wanted hostPort and containerPort"
                raise CniError(_CONFIG, f"runtimeConfig.portMappings: {wanted}, got {each!r}")
            protocol = str(each.get("protocol") or "tcp").lower()
            if protocol not in PROTOCOLS:
                where = f"runtimeConfig.portMappings: port {each.get('hostPort')}"
                raise CniError(_CONFIG, f"{where}: wanted protocol tcp or udp, got {protocol!r}")
            address = each.get("hostIP") or ""
            found.append(HostPort(each["hostPort"], each["containerPort"], address, protocol))
        return found

    def attachment(self) -> Container:
        """What is asked to be made."""
        device = self.variable("CNI_IFNAME")
        if device != DEVICE:
            raise CniError(_ENVIRONMENT, f"CNI_IFNAME: wanted {DEVICE}, got {device!r}")
        name = name_of(self.arguments.get("K8S_POD_NAME", ""), self.container)
        return Container(
            id=self.container,
            owner=self.owner,
            network=self.network,
            name=name,
            namespace=self.namespace,
            netns=self.variable("CNI_NETNS"),
            agent=self.agent or "",
            published=names_of(name, self.published),
        )

    def written(self) -> list[Container]:
        """What was made for the container."""
        return list(attachments(self.owner, self.container))


def _add(request: Request) -> dict[str, Any]:
    container = request.attachment()
    try:
        made = join(
            host(request.agent),
            container,
            address=request.address,
            labels=request.labels,
            published=request.published,
        )
    except AgentUnreachable as error:
        if not may_come_later():
            raise
        # A kubelet's: of Podman's containers there is K8S_POD_NAME alone.
        if "K8S_POD_NAMESPACE" in request.arguments:
            why = "a pod's runtime wants its address, and tries again by itself"
            raise AgentUnreachable(f"{error}; and it joins no network later: {why}") from error
        return _postpone(request, container)
    return _result(request, container, made)


def _postpone(request: Request, container: Container) -> dict[str, Any]:
    """It has no device and no address to tell of; where its resolver will be is known."""
    names = postpone(container, Asked(request.address, request.labels, request.published))
    before = request.config.get("prevResult") or {}
    return {
        "interfaces": [],
        "ips": [],
        "routes": [],
        **before,
        "cniVersion": request.version,
        "dns": _names(names),
    }


def _result(request: Request, container: Container, made: AttachedEndpoint) -> dict[str, Any]:
    """Section 5, "ADD Success"; what a plugin before this one made stays in it."""
    before = request.config.get("prevResult") or {}
    interfaces = list(before.get("interfaces") or [])
    address: dict[str, Any] = {
        "address": f"{made.endpoint.address}/32",
        "interface": len(interfaces),
    }
    if request.version == "0.4.0":
        address["version"] = "4"
    path = Path(container.netns)
    interfaces.append({"name": DEVICE, "mac": hardware_address(path), "sandbox": container.netns})
    return {
        **before,
        "cniVersion": request.version,
        "interfaces": interfaces,
        "ips": [*(before.get("ips") or []), address],
        "routes": [*(before.get("routes") or []), {"dst": "0.0.0.0/0"}],
        "dns": _names(resolver_of(made)) or before.get("dns") or {},
    }


def _names(text: str) -> dict[str, list[str]]:
    """A resolv.conf(5) as the specification's ``dns``."""
    found = words(text)
    if not found:
        return {}
    return {
        "nameservers": found.get("nameserver", []),
        "search": found.get("search", []),
        "options": found.get("options", []),
    }


def _delete(request: Request) -> None:
    """What is not there is no error."""
    for each in let_go(request.written(), request.agent):
        _tell(each)


def _check(request: Request) -> None:
    found = request.written()
    if not found:
        raise CniError(_FAILED, f"container {request.container} is not in {request.name}")
    for each in found:
        there = host(each.agent or request.agent).endpoint(each.network, each.name, each.namespace)
        if str(there.place.netns) != each.netns or not netns.number(Path(each.netns)):
            raise CniError(_FAILED, f"endpoint {each.name}: it is not in {each.netns}")
        before = request.config.get("prevResult") or {}
        wanted = [str(ip.get("address")) for ip in before.get("ips") or ()]
        if wanted and f"{there.endpoint.address}/32" not in wanted:
            got = there.endpoint.address
            raise CniError(_FAILED, f"endpoint {each.name}: wanted {', '.join(wanted)}, got {got}")
        try:
            hardware_address(Path(each.netns))
        except OSError as error:
            text = f"endpoint {each.name}: {DEVICE} in {each.netns}: {error.strerror}"
            raise CniError(_FAILED, text) from error


def _collect(request: Request) -> None:
    """Let go of every container that the runtime does not know; the others are left alone."""
    valid = request.config.get("cni.dev/valid-attachments") or []
    known = {each.get("containerID") for each in valid}
    for each in attachments(request.owner):
        if each.id not in known:
            leave(host(each.agent or request.agent), each)
            _tell(f"removed endpoint {each.name} of container {each.id}")


def _status(request: Request) -> None:
    try:
        status = host(request.agent).status()
    except SlimnetError as error:
        raise CniError(_UNAVAILABLE, str(error)) from error
    if not status["ready"]:
        raise CniError(_UNAVAILABLE, "; ".join(status["trouble"]))


_COMMANDS: dict[str, Callable[[Request], dict[str, Any] | None]] = {
    "ADD": _add,
    "DEL": _delete,
    "CHECK": _check,
    "GC": _collect,
    "STATUS": _status,
}


def main() -> int:
    """Answer one request: the environment and standard input to standard output."""
    version = VERSIONS[-1]
    try:
        command = os.environ.get("CNI_COMMAND", "")
        text = sys.stdin.read()
        if command == "VERSION":
            answer: Any = {"cniVersion": version, "supportedVersions": list(VERSIONS)}
        elif command not in _COMMANDS:
            wanted = ", ".join([*_COMMANDS, "VERSION"])
            raise CniError(_ENVIRONMENT, f"CNI_COMMAND: wanted one of {wanted}, got {command!r}")
        else:
            request = Request(os.environ, text)
            version = request.version
            answer = _COMMANDS[command](request)
    except CniError as error:
        return _fail(version, error.code, error)
    except AgentUnreachable as error:
        return _fail(version, _LATER, error)
    except InvalidValue as error:
        return _fail(version, _CONFIG, error)
    except (SlimnetError, OSError) as error:
        return _fail(version, _FAILED, error)
    if answer is not None:
        sys.stdout.write(f"{json.dumps(answer)}\n")
    return 0


def _tell(text: str) -> None:
    sys.stderr.write(f"slimnet-cni: {text}\n")


def _fail(version: str, code: int, error: Exception) -> int:
    answer = {"cniVersion": version, "code": code, "msg": f"slimnet: {error}"}
    sys.stdout.write(f"{json.dumps(answer)}\n")
    return 1
