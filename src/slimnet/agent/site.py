# SPDX-License-Identifier: Apache-2.0
"""Where an agent works: underlay, cgroup directory and secret of this host."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import attrs
from attrs import frozen
from netaddr import AddrFormatError, IPAddress, IPNetwork

from slimnet.abc import Backend, Context, Upgrade
from slimnet.cluster.keyring import fingerprint
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
    "moved",
    "ranges",
    "read_keys",
    "survey",
    "taken",
    "underlay",
    "write_keys",
]

_log = logging.getLogger(__name__)

#: A host's record is read by every other one.
_RANGES_MAX = 4096


@frozen
class Site:
    """One host as its agent found it.

    Attributes:
        host: what the others read of it.
        interface: of its underlay.
        cgroups: the directory below which endpoints' are made.
        keys: the cluster's, that which it signs with first.
    """

    host: Host
    interface: str
    cgroups: Path
    keys: tuple[bytes, ...]

    def context(
        self,
        config: Config,
        backend: type[Backend],
        cluster: str,
        upgrade: Upgrade = Upgrade.NO,
    ) -> Context:
        """What ``backend`` is made with, to serve the store with the id ``cluster``."""
        return Context(
            instance=config.instance,
            host=self.host,
            interface=self.interface,
            cgroup=self.cgroups,
            state=config.run / "state",
            key=self.keys[0],
            other_key=self.keys[1] if self.keys[1:] else None,
            options=config.options.get(backend.name, {}),
            cluster=cluster,
            upgrade=upgrade,
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
    keys = read_keys(config.key_file)
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
            fingerprint(keys[0]),
        ),
        interface=interface,
        cgroups=directory(config),
        keys=keys,
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


def able(host: Host, capabilities: Capabilities, key: str) -> Host:
    """A host with what its backend can do there, which has the key of this fingerprint."""
    keyed = any(each.wire in ACCELERATED for each in capabilities.wires)
    return attrs.evolve(
        host,
        wires=capabilities.wires,
        enforcing=capabilities.enforcing,
        features=capabilities.features,
        control=capabilities.control,
        shares=Part.NETNS not in capabilities.needs,
        key=key if keyed else "",
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


def read_keys(path: Path) -> tuple[bytes, ...]:
    """The cluster's secret, made when the file is not there; two while it is changed, that which
    this host signs with first.

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
        found_keys = tuple(bytes.fromhex(line) for line in text.splitlines())
    except ValueError:
        found_keys = ()
    if [len(each) for each in found_keys] not in ([16], [16, 16]):
        raise ConfigError("key_file", "32 hexadecimal digits", f"{path} with something else")
    return found_keys


def write_keys(path: Path, keys: Sequence[bytes]) -> None:
    """What :func:`read_keys` reads; whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as fresh:
            try:
                fresh.write("".join(f"{key.hex()}\n" for key in keys))
                fresh.flush()
                os.fsync(fresh.fileno())
                Path(fresh.name).rename(path)
            except BaseException:
                Path(fresh.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ConfigError("key_file", f"a file to write ({error})", str(path)) from error


def _make_key(path: Path) -> None:
    # NamedTemporaryFile makes it readable for its owner only.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as fresh:
        fresh.write(secrets.token_hex(16) + "\n")
        fresh.flush()
        # Whole or not at all; another agent may be doing the same.
        with contextlib.suppress(FileExistsError):
            os.link(fresh.name, path)
