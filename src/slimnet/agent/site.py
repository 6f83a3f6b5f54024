# SPDX-License-Identifier: Apache-2.0
"""Where an agent works: underlay, cgroup directory and secret of this host."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import tempfile
from importlib import metadata
from pathlib import Path

import attrs
from attrs import frozen
from netaddr import AddrFormatError, IPAddress, IPNetwork

from slimnet.abc import Backend, Context
from slimnet.config import Config
from slimnet.exceptions import ConfigError
from slimnet.linux import cgroup
from slimnet.linux.resolvers import resolv_conf
from slimnet.local import (
    default_interface,
    interface_addresses,
    interface_ranges,
    local_ranges,
)
from slimnet.model import Capabilities, Host
from slimnet.place import Part
from slimnet.rtnetlink import Rtnetlink
from slimnet.trusted import make_trusted
from slimnet.wires import ACCELERATED

__all__ = [
    "Site",
    "able",
    "directory",
    "fingerprint",
    "moved",
    "ranges",
    "read_key",
    "survey",
    "taken",
    "underlay",
]

_log = logging.getLogger(__name__)

#: A host's record is read by every other one.
_RANGES_MAX = 4096


@frozen
class Site:
    """One host as its agent found it."""

    host: Host
    interface: str
    cgroups: Path
    key: bytes

    def context(self, config: Config, backend: type[Backend], cluster: str) -> Context:
        """What ``backend`` is made with, to serve the store with the id ``cluster``."""
        return Context(
            instance=config.instance,
            host=self.host,
            interface=self.interface,
            cgroup=self.cgroups,
            state=config.run / "state",
            key=self.key,
            options=config.options.get(backend.name, {}),
            cluster=cluster,
        )


def survey(config: Config, backend: type[Backend], capabilities: Capabilities) -> Site:
    """Find out what the configuration leaves open, and check the rest.

    Args:
        config: of this host.
        backend: what it runs.
        capabilities: of the backend here.

    Raises:
        ConfigError: an address, an interface or the key file is not as said.
        CapabilityMissing: no cgroup v2, and the backend needs one.
    """
    if Part.CGROUP in capabilities.needs:
        cgroup.mount()
    interface, address = underlay(config)
    key = read_key(config.key_file)
    return Site(
        host=able(
            Host(
                name=config.host,
                address=address,
                backend=backend.name,
                labels=config.labels,
                ranges=ranges(),
                taken=taken(),
                version=_version(),
            ),
            capabilities,
            key,
        ),
        interface=interface,
        cgroups=directory(config),
        key=key,
    )


def directory(config: Config) -> Path:
    """The cgroup below which an instance's endpoints are made; where cgroup v2 is not
    mounted, nothing is. An ordinary user's instance is another than root's of that name."""
    top = cgroup.mount() if cgroup.mounted() else Path("/sys/fs/cgroup")
    whose = "" if os.geteuid() == 0 else f"user.{os.geteuid()}"  # no instance has a dot
    return top / "slimnet" / whose / config.instance


def _version() -> str:
    try:
        return metadata.version("slimnet-overlay")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return ""


def able(host: Host, capabilities: Capabilities, key: bytes) -> Host:
    """A host with what its backend can do there, which has this key."""
    keyed = any(each.wire in ACCELERATED for each in capabilities.wires)
    return attrs.evolve(
        host,
        wires=capabilities.wires,
        enforcing=capabilities.enforcing,
        features=capabilities.features,
        control=capabilities.control,
        key=fingerprint(key) if keyed else "",
    )


def moved(site: Site) -> str:
    """What is wrong where the host has no longer the address that its peers reach it at;
    empty where it has. A look takes some 50 us."""
    address = site.host.address
    with Rtnetlink() as route:
        if route.delivers(address):
            return ""
    return (
        f"underlay.address: {address} is no address of this host any more: give it back to"
        f" {site.interface}, or start the agent again"
    )


def fingerprint(key: bytes) -> str:
    """What tells one key from another and is no way back: 8 bytes of BLAKE2s
    (RFC 7693) over it, personalized so that it is no other hash of slimnet's."""
    return hashlib.blake2s(key, digest_size=8, person=b"slim-key").hexdigest()


def ranges() -> tuple[IPNetwork, ...]:
    """What this host tells the others that it is, the widest first."""
    found = sorted(local_ranges(), key=lambda each: (each.prefixlen, each))
    if len(found) > _RANGES_MAX:
        _log.warning("this host delivers %d ranges to itself: the others hear of %d",
                     len(found), _RANGES_MAX)  # fmt: skip
    return tuple(found[:_RANGES_MAX])


def taken() -> dict[IPNetwork, str]:
    """What of this host no network may overlap, the widest first: an endpoint would look for
    its own kind there, and the host beyond its interface."""
    found = {cidr: f"interface {name}" for cidr, name in interface_ranges().items()}
    for line in resolv_conf().splitlines():
        with contextlib.suppress(ValueError, AddrFormatError):  # another option; IPv6
            option, address, *_ = line.split()
            if option == "nameserver":
                found.setdefault(IPNetwork(IPAddress(address, 4)), "a name server")
    widest = sorted(found, key=lambda each: (each.prefixlen, each))
    return {each: found[each] for each in widest[:_RANGES_MAX]}


def underlay(config: Config) -> tuple[str, IPAddress]:
    """The interface and the address of this host's underlay.

    Raises:
        ConfigError: the machine has not what the configuration says.
    """
    wanted = config.underlay
    names = [name for _, name in socket.if_nameindex()]
    owned = interface_addresses()
    wanted_interface = wanted.interface
    if wanted.address is None and wanted.interface is None:
        wanted_interface = default_interface()
    there = ", ".join(f"{name} {address}" for name, address in owned) or "none"
    if wanted_interface is not None and wanted_interface not in names:
        raise ConfigError("underlay.interface", f"one of: {', '.join(names)}", wanted_interface)
    for name, address in owned:
        if wanted.address not in (None, address) or wanted_interface not in (None, name):
            continue
        if wanted.address is None and wanted_interface is None:
            break
        return name, address
    if wanted.address is None and wanted_interface is None:
        raise ConfigError(
            "underlay", f"an address or an interface (no default route; there are: {there})", None
        )
    which = "underlay.interface" if wanted.address is None else "underlay.address"
    got = wanted_interface if wanted.address is None else str(wanted.address)
    raise ConfigError(which, f"one of this host's IPv4 addresses: {there}", got)


def read_key(path: Path) -> bytes:
    """The cluster's secret; made when the file is not there.

    Raises:
        ConfigError: others may read it, or it is no key.
    """
    try:
        make_trusted(path.parent)
        if not path.exists():
            _make_key(path)
        with path.open(encoding="ascii") as file:
            found = os.fstat(file.fileno())
            text = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("key_file", f"a readable file ({error})", str(path)) from error
    if found.st_mode & 0o077:
        got = f"{path} of mode {found.st_mode & 0o777:04o}"
        raise ConfigError("key_file", "mode 0600: a secret", got)
    if found.st_uid not in (0, os.geteuid()):
        owner = "root's own file" if os.geteuid() == 0 else f"user {os.geteuid()}'s own file"
        raise ConfigError("key_file", owner, f"{path} of user {found.st_uid}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 16:
        raise ConfigError("key_file", "32 hexadecimal digits", f"{path} with something else")
    return key


def _make_key(path: Path) -> None:
    # NamedTemporaryFile makes it readable for its owner only.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as fresh:
        fresh.write(secrets.token_hex(16) + "\n")
        fresh.flush()
        # Whole or not at all; another agent may be doing the same.
        with contextlib.suppress(FileExistsError):
            os.link(fresh.name, path)
