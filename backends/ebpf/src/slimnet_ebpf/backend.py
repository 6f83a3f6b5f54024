# SPDX-License-Identifier: Apache-2.0
"""The backend ``ebpf``."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attrs import asdict, evolve
from netaddr import IPAddress

from slimnet import contract, fallback, wires
from slimnet.abc import Backend, Context, Upgrade
from slimnet.answers import FlowQuestion
from slimnet.encoding import cidr_key, u32
from slimnet.exceptions import (
    AbiMismatch,
    BackendError,
    BackendUnavailable,
    ConfigError,
    InUse,
    InvalidValue,
)
from slimnet.layout import Layout, to_bytes16
from slimnet.linux import sysctl
from slimnet.linux.netns import Netns
from slimnet.linux.sock_diag import LIVE, REQUESTS, Socket
from slimnet.local import broadcast_addresses, local_ranges
from slimnet.mending import Mending
from slimnet.model import (
    Account,
    Capabilities,
    Connection,
    Decision,
    Endpoint,
    Event,
    EventKind,
    Flow,
    Host,
    Network,
    Opening,
    Probe,
    Reason,
    Running,
    Status,
    Wire,
)
from slimnet.options import FIRST_PORT
from slimnet.place import Life, Place
from slimnet.rtnetlink import Rtnetlink, Watch
from slimnet.tables import Change, Tables
from slimnet_ebpf import contract as private
from slimnet_ebpf import links, requirements
from slimnet_ebpf.accounts import accounts
from slimnet_ebpf.announcer import Announcer, Here
from slimnet_ebpf.carrier import DEVICES, Carrier, ends
from slimnet_ebpf.closing import Closing
from slimnet_ebpf.connections import connections
from slimnet_ebpf.doomed import Doomed
from slimnet_ebpf.endpoints import EndpointAttachments, cgroups_of
from slimnet_ebpf.events import Events
from slimnet_ebpf.found import find, fits
from slimnet_ebpf.keys import steps
from slimnet_ebpf.libbpf import BpfError, possible_cpus
from slimnet_ebpf.limits import Limits
from slimnet_ebpf.maps import Map
from slimnet_ebpf.namespaces import Namespaces, beneath, refuse_another
from slimnet_ebpf.objects import AbiStamp, Object, Program
from slimnet_ebpf.options import INNER_RANGE6, Options, Placement
from slimnet_ebpf.pins import Pins, mount_bpffs
from slimnet_ebpf.probe import probe, refused
from slimnet_ebpf.purge import purge
from slimnet_ebpf.question import announced, ask, sweep
from slimnet_ebpf.renewal import close_inside, compare, of_cgroups
from slimnet_ebpf.revocation import Revoked, forbidden, handshake, may_forbid, revoked
from slimnet_ebpf.sockets import SocketDiagnosis
from slimnet_ebpf.underlay import UnderlayPrograms
from slimnet_ebpf.writer import Writer

__all__ = ["EbpfBackend"]

_log = logging.getLogger(__name__)

_CONTROL = Layout(private.slim_control)
_PORT_RANGE = "net/ipv4/ip_local_port_range"
_PORTS = 65536
_LOOKUP, _LOOKUP_PIN = "slim_lookup", "lookup"
_RATE, _REPACE = "slim_rate", "slim_repace"
_ASK, _SWEEP, _ANNOUNCED = "slim_ask", "slim_sweep", "slim_announced"
_SWEEPING = 2.0
_LOOKING = 1.0
#: Seconds between two looks at what the fallback overlay refused, while somebody reads.
_EVERY = 0.5


class EbpfBackend(Backend):
    """Connections virtualized by cgroup programs, tc and sk_lookup (design, 4).

    Everything is pinned, so the data path goes on without the process.

    Raises:
        ConfigError: an option, the interface or the instance's name will not do.
        CapabilityMissing: the machine lacks something.
        AbiMismatch: what runs here was built from another contract.
        BackendError: the kernel refused.
    """

    name: ClassVar[str] = "ebpf"
    preference: ClassVar[int] = 100
    #: Seconds between two looks at what nothing tells of, as endpoints whose cgroup somebody
    #: has removed and routes of the host to itself that went with an interface.
    pace: float = 10.0
    #: The compiled data path.
    object_path: ClassVar[Path] = requirements.OBJECT

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options = Options.parse(context.options)
        if context.host.address.version != 4:
            raise ConfigError(
                "underlay.address",
                "an IPv4 address (the ebpf backend has no IPv6 underlay yet)",
                str(context.host.address),
            )
        if len(context.key) != 16:
            raise ConfigError("key_file", "a key of 16 bytes", f"{len(context.key)} bytes")
        self._pins = Pins(context.instance)
        requirements.check()
        if self._options.device == fallback.DevicePair.NETKIT:
            self._options.pair()
        mount_bpffs()
        self._mutex = threading.RLock()
        self._closed = False
        # Filled step by step, so that close() after a start that failed undoes what was done.
        self._held = contextlib.ExitStack()
        # None until the start touches the host's network: before, there is nothing to restore.
        self._underlay: UnderlayPrograms | None = None
        try:
            self._start()
        except BaseException:
            self._held.close()
            raise

    @classmethod
    def probe(cls) -> Probe:
        """See :meth:`slimnet.abc.Backend.probe`."""
        return probe(cls.object_path)

    @classmethod
    def look(cls) -> Probe:
        """See :meth:`slimnet.abc.Backend.look`: without the kernel's verifier, which takes
        longer than all the rest of a start."""
        return probe(cls.object_path, load=False)

    @property
    def capabilities(self) -> Capabilities:
        """See :attr:`slimnet.abc.Backend.capabilities`."""
        control = f"{self.context.host.address}:{self._options.announce_port}"
        return evolve(requirements.capabilities(), control=control)

    @classmethod
    def find(cls, instance: str, state: Path) -> Running | None:
        """See :meth:`slimnet.abc.Backend.find`: by the pins, and the fallback
        overlay's own."""
        found, apart = find(instance), beneath(instance, state).find()
        if found is None or apart is None:
            return found or apart
        return evolve(
            found,
            endpoints=found.endpoints + apart.endpoints,
            busy=found.busy + apart.busy,
        )

    @classmethod
    def purge(cls, instance: str, state: Path) -> None:
        """See :meth:`slimnet.abc.Backend.purge`: the pins, and what the record names;
        the fallback overlay by its names."""
        purge(instance)
        beneath(instance, state).purge()

    # Start

    def _start(self) -> None:
        self._netns = Netns()
        self._held.callback(self._netns.close)
        self._watch = self._held.enter_context(contextlib.closing(Watch()))
        ifindex = UnderlayPrograms.ifindex(self.context.interface)
        with self._pins.lock(create=True):
            adopting = self._pins.complete()
            self._waits, closes = False, False
            self._before: AbiStamp | None = None  # of what was replaced
            if not adopting:
                self._load()
            elif self._is_ours():
                self._refuse_another(self._pins.open_map("slim_control"))
            else:
                self._waits, closes = True, self._replace()
            try:
                self._underlay = self._adopt()
                if self._pins.record().get("cluster", "") != self.context.cluster:
                    self._pins.write_record(cluster=self.context.cluster)
                self._write_keys()
                self._write_control(**self._control(ifindex))
                self._follow_host()
                if not self._waits:
                    self._hook(ifindex)
                self._endpoints.reap()
                self._carrier.waits = self._waits
                self._namespaces = Namespaces(
                    self.context,
                    self._netns,
                    self._options.vxlan_port,
                    self._options.pair,
                    self._carrier,
                    self._write_control,
                )
                self._held.callback(self._namespaces.close)
                if closes:
                    self._switch()
            except BaseException:
                if not adopting:
                    self._remove()
                raise

    @property
    def _on_underlay(self) -> UnderlayPrograms:
        """What the start has opened by now."""
        assert self._underlay is not None  # noqa: S101  # for the type checker
        return self._underlay

    def _hook(self, ifindex: int) -> None:
        """Put the programs on the host's side, where they are not there already."""
        self._on_underlay.apply(self.context.interface, ifindex, self._options.ports)
        self._attach_lookup()
        self._endpoints.shelter()

    def _load(self) -> None:
        """Load and pin; what an interrupted start left goes first."""
        self._pins.remove()
        try:
            with self._loaded(lambda name: name not in DEVICES) as loaded:
                self._pins.store(
                    loaded,
                    **asdict(AbiStamp.ours()),
                    inner_range=str(self._options.inner_range),
                )
        except BaseException:
            self._pins.remove()
            self._pins.remove_root()
            raise

    @contextlib.contextmanager
    def _loaded(
        self, wanted: Callable[[str], bool], maps: Mapping[str, Map] | None = None
    ) -> Iterator[Object]:
        """Some programs of the object file, loaded: see :meth:`Object.load`.

        Raises:
            AbiMismatch: it is of another contract.
            BackendUnavailable: it is not there, or the kernel does not take it.
        """
        with self._opened() as loaded:
            _load(loaded, wanted, maps)
            yield loaded

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Object]:
        """The object file with the constants of this host, to be loaded.

        Raises:
            AbiMismatch: it is of another contract.
            BackendUnavailable: it is not there.
        """
        with Object(self.object_path) as loaded:
            ours = AbiStamp.ours()
            if loaded.stamp() != ours:
                raise AbiMismatch(
                    f"{self.object_path} was built from contract {loaded.stamp()}, not {ours}"
                )
            fixed = struct.pack(
                "=4sHH?3xI",
                self._options.inner_range.network.packed,
                self._options.wire_ports,
                self._options.vxlan_port,
                requirements.knows(requirements.CASTS),
                fallback.RESET,
            )
            loaded.set_constant("slim_fixed", fixed)
            yield loaded

    def _load_devices(self) -> dict[str, Program]:
        """Load and pin what is for the devices of endpoints with network namespaces of their
        own, with the first of these: the verifier takes a third of a start for it."""
        maps = {name: self._maps[number] for number, name in private.MAPS.items()}
        with self._loaded(DEVICES.__contains__, maps) as loaded:
            self._pins.add(loaded)
        return self._open_programs()

    def _open_programs(self) -> dict[str, Program]:
        """The pinned programs by name, open until the backend is closed."""
        programs = self._pins.open_programs()
        for program in programs:
            self._held.callback(os.close, program.fd)
        return {program.name: program for program in programs}

    def _is_ours(self) -> bool:
        """Whether what runs is of our own contract.

        Raises:
            AbiMismatch: it is not, and is not to be replaced.
        """
        record = self._pins.record()
        running = AbiStamp.recorded(record)
        if running == AbiStamp.ours():
            return True
        if self.context.upgrade is Upgrade.NO:
            runs = f"runs contract {running}, not {AbiStamp.ours()}"
            if "closing" in record:
                runs = "was being upgraded, and that was interrupted"
            raise AbiMismatch(
                f"instance {self.context.instance} {runs}: slimnet agent --upgrade replaces the"
                " data path, with its endpoints running"
            )
        return False

    def _replace(self) -> bool:
        """Load our programs beside those that run, on their maps where these fit, and pin
        them; :meth:`_switch` puts them in force.

        Returns:
            Whether the endpoints' connections are to be closed.

        Raises:
            AbiMismatch: the data path cannot be replaced.
            InUse: that closes connections, and nobody said that it may.
            ConfigError, BackendError: as of :meth:`_refuse_another`.
            BackendUnavailable: the kernel does not take our programs.
        """
        record = self._pins.record()
        self._before = AbiStamp.recorded(record)
        with contextlib.closing(self._pins.open_map("index")) as index:
            if not fits(index):
                raise AbiMismatch(
                    f"instance {self.context.instance} runs contract {self._before},"
                    " which cannot be replaced with endpoints running: stop them, then run"
                    " slimnet agent --teardown"
                )
        refuse_another(self.context, self._options.vxlan_port)
        with self._opened() as loaded:
            renewal = compare(self._pins, loaded)
            self._refuse_another(renewal.kept.get("slim_control"))
            closes = bool(renewal.lost) or record.get("closing", False)
            if closes and self.context.upgrade is not Upgrade.CLOSING:
                self._refuse_closing(renewal.lost)
            kept = {} if closes else renewal.kept
            devices = any(self._pins.has(name) for name in DEVICES)
            _load(loaded, lambda name: devices or name not in DEVICES, kept)
            # From here on it is neither's, until _switch() has ended.
            self._pins.write_record(own=0, closing=closes)
            self._pins.replace(loaded, kept)
        ours = asdict(AbiStamp.ours()) | {"own": 0}
        self._pins.write_record(**ours, inner_range=str(self._options.inner_range))
        return closes

    def _refuse_closing(self, lost: tuple[str, ...]) -> None:
        """Say what would be closed.

        Raises:
            InUse: there is something.
        """
        with contextlib.closing(SocketDiagnosis()) as diagnosis:
            sockets, live = of_cgroups(diagnosis, cgroups_of(self._pins))
        if (self._pins.maps / "slim_carried").exists():
            with contextlib.closing(self._pins.open_map("slim_carried")) as carried:
                inside = ends(carried)
        else:
            inside = 0
        if sockets or inside:
            what = f"{', '.join(lost)} differ" if lost else "it was begun so"
            raise InUse(
                f"instance {self.context.instance}: to replace contract"
                f" {self._before} by {AbiStamp.ours()} closes"
                f" {live + inside} connections and {len(sockets) - live} other sockets of its"
                f" endpoints ({what}): slimnet agent --upgrade --force does it"
            )

    def _switch(self) -> None:
        """Put our programs where those of the data path before are, and be done."""
        with self._netns.entered():
            links.renew(self._pins.links / _LOOKUP_PIN, self._lookup.fd)
            self._on_underlay.renew()
            self._endpoints.renew()
            self._hook(UnderlayPrograms.ifindex(self.context.interface))
            self._namespaces.renew()
        if self._pins.record()["closing"]:
            self._close_all()
        self._pins.write_record(**asdict(AbiStamp.ours()), closing=None)
        self._waits = False
        _log.info("the data path is of contract %s now", AbiStamp.ours())

    def _close_all(self) -> None:
        """Close what was opened under the data path before, which ours knows nothing of."""
        with self._netns.entered():
            sockets, _ = of_cgroups(self._sockets, cgroups_of(self._pins))
            self._sockets.destroy(sockets)
        for endpoint in self._namespaces.attached():
            if (where := self._namespaces.where(endpoint)) is not None:
                close_inside(where)

    def _refuse_another(self, control: Map | None) -> None:
        """Only a data path that is as the configuration says, in our own network namespace.

        Args:
            control: the map with what it says of itself; ``None``: it cannot be read.

        Raises:
            ConfigError: it cannot become what the configuration says now.
            BackendError: it serves another namespace.
        """
        held = _CONTROL.unpack((control and control.get(u32(0))) or bytes(_CONTROL.size))
        wanted = self._control(0)
        if held["abi_version"]:
            for option, field in (("inner_range", "range"), ("wire_ports", "wire_port")):
                if held[field] != wanted[field]:
                    raise ConfigError(
                        f"backend.ebpf.{option}",
                        "the value that the running data path has (tear it down first)",
                        str(getattr(self._options, option)),
                    )
        lookup = self._pins.links / _LOOKUP_PIN
        inode = links.target_of(lookup) if lookup.exists() else 0
        if inode not in (0, self._netns.inode):
            raise BackendError(
                f"instance {self.context.instance} runs in another network namespace"
            )

    def _adopt(self) -> UnderlayPrograms:
        """Open what is pinned.

        Raises:
            AbiMismatch: something of it is missing.
        """
        lost = [name for name in private.MAPS.values() if not (self._pins.maps / name).exists()]
        if lost:
            raise AbiMismatch(
                f"instance {self.context.instance}: {', '.join(lost)} is missing in"
                f" {self._pins.maps}: stop its endpoints and tear it down"
            )
        self._maps = {
            number: self._held.enter_context(contextlib.closing(self._pins.open_map(name)))
            for number, name in private.MAPS.items()
        }
        self._held.callback(self._pins.release)
        self._pins.hold()
        by_name = self._open_programs()
        self._lookup: Program = by_name[_LOOKUP]
        self._ask: Program = by_name[_ASK]
        self._sweep: Program = by_name[_SWEEP]
        self._announced: Program = by_name[_ANNOUNCED]
        self._sockets = self._held.enter_context(
            contextlib.closing(SocketDiagnosis(self._maps[private.SLIM_MAP_SOCKET].fd))
        )
        self._carrier = Carrier(self._maps, by_name, self._load_devices, self._netns)
        self._writer = Writer(self._maps)
        self._endpoints = EndpointAttachments(
            self._pins,
            list(by_name.values()),
            self._maps,
            self.context.cgroup,
            self._sockets,
            Limits(self._maps[private.SLIM_MAP_LIMIT], by_name[_RATE], by_name[_REPACE]),
            self._writer.set_index,
            self._held.enter_context(contextlib.closing(Closing(self._pins))),
        )
        self._tables: Tables | None = None
        self._events = self._held.enter_context(
            contextlib.closing(Events(self._maps[private.SLIM_MAP_EVENT]))
        )
        self._doomed = self._held.enter_context(
            contextlib.closing(Doomed(self._maps[private.SLIM_MAP_DOOM], self._sockets))
        )
        here = Here(
            to_bytes16(self.context.host.address),
            self._options.announce_port,
            self._options.wire_ports,
            self.context.keys,
        )
        self._announcer = self._held.enter_context(
            contextlib.closing(
                Announcer(
                    self._netns,
                    here,
                    self._maps[private.SLIM_MAP_REMOTE],
                    self._maps[private.SLIM_MAP_TOLD],
                    self._admit,
                )
            )
        )
        self._swept = self._kept = self._looked = time.monotonic()
        self._lack = ""  # what the last look found that could not be put back
        return UnderlayPrograms(self._pins, by_name, self._options.inner_range)

    def _control(self, ifindex: int) -> dict[str, int | bytes]:
        return {
            "abi_version": contract.SLIM_ABI_VERSION,
            "ifindex": ifindex,
            "range": int(self._options.inner_range.network),
            "range6": to_bytes16(INNER_RANGE6.network),
            "underlay": to_bytes16(self.context.host.address),
            "wire_port": self._options.wire_ports,
            "held_limit": self._options.held_ports,
            "netns": self._netns.cookie,
        }

    def _follow_host(self) -> None:
        """What others may change on the host at any time."""
        self._follow_ports()
        self._follow_addresses()

    def _follow_ports(self) -> None:
        given = self._given_ports()
        ports = len(given)
        free = self._free_ports(given)
        self._write_control(
            source_port=free.start,
            source_ports=len(free),
            # At most a quarter of the source ports goes to one wire port at a time: the kernel
            # then finds a free one at once, where it would search when most are taken.
            wire_turn=max(1, min(ports // 4, contract.SLIM_WIRE_TURN)),
            # Endpoints may hold three quarters of the host's source ports; the last is its own.
            port_room=ports * 3 // 4,
        )

    def _follow_addresses(self) -> None:
        own: Map = self._maps[private.SLIM_MAP_OWN]
        found = dict.fromkeys(
            local_ranges([self._options.inner_range]), private.SLIM_OWN_LOCAL
        ) | dict.fromkeys(broadcast_addresses(), private.SLIM_OWN_BROADCAST)
        wanted = {cidr_key((0, each)): u32(what) for each, what in found.items()}
        held = dict(own.items())
        # Added before others are removed: one new range may stand for several old ones, whose
        # addresses must not be nobody's in between.
        own.update(wanted.items() - held.items())
        own.remove(held.keys() - wanted.keys())

    def _write_control(self, **fields: int | bytes) -> None:
        control: Map = self._maps[private.SLIM_MAP_CONTROL]
        held = _CONTROL.unpack(control.get(u32(0)) or b"")
        if held != held | fields:
            control.set(u32(0), _CONTROL.pack(**(held | fields)))

    def _write_keys(self) -> None:
        control: Map = self._maps[private.SLIM_MAP_CONTROL]
        held = _CONTROL.unpack(control.get(u32(0)) or b"")
        for keys in steps(held["keys"], *self.context.keys):
            self._write_control(keys=keys)

    def _given_ports(self) -> range:
        """Those of the host that connections get (networking/ip-sysctl.rst,
        ip_local_port_range)."""
        with self._netns.entered():
            low, high = map(int, sysctl.read(_PORT_RANGE).split())
        return range(low, high + 1)

    def _free_ports(self, given: range) -> range:
        """The most in a row that no connection gets by itself. Where the host leaves none, a few
        of the wire ports, which it reserves."""
        wire = self._options.ports
        first, free = FIRST_PORT, []
        for taken in (*sorted((given, wire), key=lambda each: each.start), range(_PORTS, _PORTS)):
            free.append(range(first, max(first, taken.start)))
            first = max(first, taken.stop)
        return max(free, key=len) or wire[-contract.SLIM_BOUND_PORTS :]

    def _attach_lookup(self) -> list[str]:
        """Attach sk_lookup where it is not so already; what that changed."""
        pin = self._pins.links / _LOOKUP_PIN
        if pin.exists():
            if links.target_of(pin) == self._netns.inode:
                return []
            pin.unlink()  # of a namespace that is gone, or detached by somebody
        ours = links.program_id(self._lookup.fd)
        for number in links.attached(self._netns.fd, self._lookup.attach_type):
            if number != ours and links.program_name(number) == _LOOKUP:
                raise BackendError(
                    "another instance of slimnet serves this network namespace already"
                )
        links.attach(self._lookup.fd, self._netns.fd, self._lookup.attach_type, pin)
        return ["the namespace's lookup program"]

    # The interface

    def place(self, name: str, given: Place) -> Place:
        """See :meth:`slimnet.abc.Backend.place`: a cgroup; and a network namespace, where one
        is given or the option says so."""
        if self._is_apart(given):
            if given.closed:
                wanted = "false, for it has a network namespace of its own"
                raise InvalidValue("endpoint.closed", wanted, given.closed)
            return self._namespaces.place(name, given)
        return self._endpoints.place(name, given)

    def _is_apart(self, given: Place) -> bool:
        """Whether an endpoint has a network namespace of its own."""
        return given.netns is not None or self._options.placement == Placement.NETNS

    def life(self, name: str, place: Place) -> Life:
        """See :meth:`slimnet.abc.Backend.life`: by the cgroup; and a namespace that was
        brought has to be there."""
        return self._namespaces.life(name, place)

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """See :meth:`slimnet.abc.Backend.attach`."""
        with self._locked():
            there = self._endpoints.indexes()
            if endpoint.id in self._namespaces.attached() or (
                endpoint.id not in there and self._is_apart(endpoint.place)
            ):
                return self._namespaces.attach(endpoint, network)
            return self._endpoints.attach(endpoint, network)

    def detach(self, endpoint: int) -> None:
        """See :meth:`slimnet.abc.Backend.detach`."""
        with self._locked():
            self._endpoints.detach(endpoint)
            self._namespaces.detach(endpoint)

    def install(self, tables: Tables, change: Change | None = None) -> None:
        """See :meth:`slimnet.abc.Backend.install`."""
        with self._locked():
            self._follow_host()
            announcing = dict(self._announcing(tables))
            self._namespaces.install(tables, announces=bool(announcing))
            try:
                news = self._writer.install(tables, change, self._endpoints.indexes())
                if self._waits:
                    self._switch()
            except BaseException:
                if self._tables is not None:
                    with contextlib.suppress(BackendError):
                        self._namespaces.install(
                            self._tables, announces=any(self._announcing(self._tables))
                        )
                raise
            with self._netns.entered():
                self._endpoints.limit(tables.limits)
            if news and may_forbid(self._tables, change):
                self._revoke(tables)
            self._tables = tables
            self._announcer.follow(announcing)

    def _announcing(self, tables: Tables) -> Iterator[tuple[bytes, tuple[str, int]]]:
        """The hosts of the cluster that no connection reaches but one that is announced."""
        own = Host("here", self.context.host.address, requirements.capabilities().wires)
        for address, record in tables.hosts.items():
            host = Host(record.name, address, record.wires)
            if address != own.address and wires.choose(own, host) is Wire.ANNOUNCE:
                where, _, port = record.control.rpartition(":")
                known = where and port.isdecimal()
                yield (
                    to_bytes16(address),
                    (where, int(port)) if known else (str(address), contract.SLIM_ANNOUNCE_PORT),
                )

    def _admit(self, announcement: bytes) -> bytes:
        """For the announcer's thread, which is in the host's network namespace."""
        control = _CONTROL.unpack(self._maps[private.SLIM_MAP_CONTROL].get(u32(0)) or b"")
        return announced(self._announced.fd, control["ifindex"], announcement)

    def _revoke(self, tables: Tables) -> None:
        """Close the live connections that the tables forbid, and end the handshakes.
        One that is nowhere to be seen yet is decided again by itself (sockops.h)."""
        self._writer.settle()  # after this no program decides by the generation before
        self._sweep_records(private.SLIM_SWEEP_FLOWS)
        live = self._sockets.sockets(socket.IPPROTO_TCP, socket.IPPROTO_UDP, states=LIVE)
        if lost := self._lost(live):
            # A SYN that is sent again replaces its record, which is missing for a moment, and who
            # is established by now, with the cookie of the request, has none any more. Only
            # where there was none and is none, and is a request in between, is it lost.
            again = self._lost(self._sockets.sockets(states=REQUESTS))
            self._sockets.destroy(again[cookie] for cookie in lost.keys() & again.keys())
        found = list(
            revoked(
                live,
                tables,
                functools.cache(self._endpoints.owners),
                self._is_inner,
                lambda question: ask(self._ask.fd, question),
            )
        )
        self._sockets.destroy(one.socket for one in found)
        if self._namespaces:
            for one, carried in forbidden(
                self._carrier.carried(), tables, lambda question: ask(self._ask.fd, question)
            ):
                where = self._namespaces.where(one.endpoint)
                if where is not None:
                    self._carrier.end(carried, where)
                    found.append(one)
        if not found:
            return
        counter: Map = self._maps[private.SLIM_MAP_COUNTER]
        # The counters are per CPU. No program counts this reason, so CPU 0's is written here.
        key = u32(contract.SLIM_REASON_REVOKED)
        first, *rest = struct.unpack(f"={possible_cpus()}Q", counter.get(key) or b"")
        counter.set(key, struct.pack(f"={possible_cpus()}Q", first + len(found), *rest))
        self._events.tell([_to_event(one) for one in found])

    def _lost(self, sockets: Iterable[Socket]) -> dict[int, Socket]:
        """The handshakes without a record, by the socket's cookie."""
        flows: Map = self._maps[private.SLIM_MAP_FLOW]
        return {
            one.cookie: one
            for one in sockets
            if (key := handshake(one, self._is_inside)) and flows.get(key) is None
        }

    def _is_inside(self, address: IPAddress, port: int) -> bool:
        """Whether an endpoint is reached there only with a record of its handshake."""
        if address == self.context.host.address:
            return self.claims(port)
        return self._is_inner(address)

    def _is_inner(self, address: IPAddress) -> bool:
        return address in (self._options.inner_range if address.version == 4 else INNER_RANGE6)

    def status(self) -> Status:
        """See :meth:`slimnet.abc.Backend.status`."""
        with self._open():
            record = self._pins.record()
            indexes = self._endpoints.indexes()
            values = self._maps[private.SLIM_MAP_COUNTER].items()
            counters = {
                Reason(number): count
                for key, value in values
                if (number := int.from_bytes(key, sys.byteorder))
                and (count := sum(struct.unpack(f"={len(value) // 8}Q", value)))
            }
            generation, apart = self._writer.generation, self._namespaces.status()
            if apart is not None:
                generation = min(generation, apart.generation)
                counters = Counter(counters) + Counter(apart.counters)
            return Status(
                generation=generation,
                endpoints=frozenset(indexes) | self._namespaces.attached(),
                counters=counters,
                abi=str(AbiStamp.recorded(record)),
                detail={
                    "pins": str(self._pins.root),
                    "interface": record.get("interface"),
                    "replaced": self._before and str(self._before),
                    "indexes": indexes,
                },
            )

    def ask(self, flow: Flow, network: Network) -> Decision | None:
        """See :meth:`slimnet.abc.Backend.ask`."""
        with self._open():
            if not self._writer.generation:
                return None
            answer = ask(self._ask.fd, FlowQuestion.of(flow, network))
            if (
                answer is None
                or self._tables is None
                or self._tables.addresses.get((network.vni, flow.source))
                not in self._namespaces.attached()
            ):
                return answer
            return fallback.carried(answer, self._tables)

    @classmethod
    def ports(cls, options: Mapping[str, Any]) -> Mapping[str, range]:
        """See :meth:`slimnet.abc.Backend.ports`: the wire ports."""
        return {"wire_ports": Options.parse(options).ports}

    @classmethod
    def openings(cls, options: Mapping[str, Any]) -> Mapping[Wire, Sequence[Opening]]:
        """See :meth:`slimnet.abc.Backend.openings`."""
        parsed = Options.parse(options)
        wire = Opening("tcp", parsed.ports)
        announced = Opening("tcp", range(parsed.announce_port, parsed.announce_port + 1))
        packets = Opening("udp", range(parsed.vxlan_port, parsed.vxlan_port + 1))
        return {Wire.SYN: [wire], Wire.ANNOUNCE: [announced, wire], Wire.VXLAN: [packets]}

    def claims(self, port: int) -> bool:
        """See :meth:`slimnet.abc.Backend.claims`."""
        return port in self._options.ports or port == self._options.announce_port

    def accounts(self) -> Iterable[Account]:
        """See :meth:`slimnet.abc.Backend.accounts`."""
        with self._open():
            return list(
                accounts(
                    self._maps[private.SLIM_MAP_ACCOUNT],
                    self._sockets,
                    self._carrier.carried() if self._namespaces else (),
                )
            )

    def connections(self) -> Iterable[Connection]:
        """See :meth:`slimnet.abc.Backend.connections`."""
        with self._open():
            return [
                *connections(self._sockets),
                *(self._carrier.connections() if self._namespaces else ()),
                *self._namespaces.connections(),
            ]

    def events(self, timeout: float) -> list[Event]:
        """See :meth:`slimnet.abc.Backend.events`."""
        if self._closed:
            raise BackendError("the backend is closed")
        deadline = time.monotonic() + timeout
        waited = False
        while True:
            try:
                found = self._namespaces.events()
                left = max(0.0, deadline - time.monotonic())
                wait = min(left, _EVERY) if self._namespaces else left
                found += self._events.read(0 if found else wait)
            except BackendError:
                if waited:  # it was closed meanwhile
                    return []
                raise
            if found or not left:
                return found
            waited = True

    def observe(self, *, enabled: bool) -> None:
        """See :meth:`slimnet.abc.Backend.observe`."""
        both = private.SLIM_OBSERVE_OPENED | private.SLIM_OBSERVE_CLOSED
        with self._locked():
            self._write_control(observe=both if enabled else 0)

    def rekey(self, key: bytes, other: bytes | None = None) -> None:
        """See :meth:`slimnet.abc.Backend.rekey`."""
        with self._locked():
            self.context = evolve(self.context, key=key, other_key=other)
            self._write_keys()
            self._announcer.rekey(self.context.keys)

    def close(self) -> None:
        """See :meth:`slimnet.abc.Backend.close`."""
        # The events first: closing them ends events() in another thread and waits for it. With
        # the mutex held, every other call would wait as well.
        if not self._closed:
            self._events.close()
        with self._mutex:
            self._closed = True
            self._held.close()

    def teardown(self) -> None:
        """See :meth:`slimnet.abc.Backend.teardown`."""
        with self._locked():
            busy = self._endpoints.populated()
            if busy:
                names = ", ".join(str(number) for number in busy)
                raise InUse(f"endpoints with processes: {names}")
            self._namespaces.teardown()
            for endpoint in self._endpoints.every():
                self._endpoints.detach(endpoint)
            for path in self._endpoints.kept():
                _log.warning("cgroup %s was an endpoint's: whatever it does is refused", path)
            self._events.close()
            self._remove()
        self.close()

    def _remove(self) -> None:
        """Everything but endpoints; what a crash leaves of it can be removed again."""
        if self._underlay is not None:
            with self._netns.entered():
                self._underlay.restore()
        # An endpoint's cgroup whose maker died before writing it down; and the
        # directories above, unless somebody else has put something there.
        orphans = map(str, self.context.cgroup.glob("*.*.*"))
        for directory in [*orphans, *self._pins.record().get("cgroups", ())]:
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        if self._underlay is not None:
            self._endpoints.unshelter()
        links.end(self._pins.links / _LOOKUP_PIN)
        self._pins.remove()
        self._pins.remove_root()

    def tend(self) -> None:
        """See :meth:`slimnet.abc.Backend.tend`: destroy what is doomed at once; every second
        look at the host, and put back what somebody has taken away; every two sweep out the
        records that nobody came back for; every :attr:`pace` look at every place of those
        tables, and detach endpoints whose cgroup is gone."""
        with self._open():
            self._doomed.destroy()
            now = time.monotonic()
            if now - self._looked >= min(_LOOKING, self.pace):
                self._looked = now
                self._lack = self._mend()
            if now - self._swept >= min(_SWEEPING, self.pace):
                self._swept = now
                with self._pins.lock():
                    due = now - self._kept >= self.pace
                    self._sweep_records(
                        private.SLIM_SWEEP_WHOLE if due else private.SLIM_SWEEP_COUNTED
                    )
                    if due:
                        self._kept = now
                        self._endpoints.reap()
                        self._follow_addresses()
            if self._lack:
                raise BackendError(self._lack)
            self._namespaces.tend()

    def _mend(self) -> str:
        """Put back what the data path needs of the host; what is lacking still."""
        if self._waits:
            return ""
        interface = self.context.interface
        mending = Mending()
        mending.attempt(self._pins.mend)
        if not self._pins.complete():
            return mending.end()
        with self._pins.lock(), self._netns.entered():
            with Rtnetlink() as route:
                link = route.link(interface)
            mending.attempt(self._follow_ports)
            if self._watch.changed():
                mending.attempt(self._follow_addresses)
            mending.attempt(self._attach_lookup)
            mending.attempt(self._endpoints.mend)
            mending.attempt(self._on_underlay.keep_host, self._options.ports)
            if link is None:
                mending.lacks_interface(interface)
            else:
                self._write_control(ifindex=link.index)
                mending.attempt(self._on_underlay.keep_interface, interface, link.index)
        return mending.end()

    def _sweep_records(self, how: int) -> None:
        control = _CONTROL.unpack(self._maps[private.SLIM_MAP_CONTROL].get(u32(0)) or b"")
        with self._netns.entered():
            sweep(self._sweep.fd, control["ifindex"], how)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._mutex:
            if self._closed:
                raise BackendError("the backend is closed")
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._open(), self._pins.lock():
            yield


def _load(
    opened: Object, wanted: Callable[[str], bool], maps: Mapping[str, Map] | None = None
) -> None:
    """:meth:`Object.load`, with what there is to say where the kernel refuses."""
    try:
        opened.load(wanted, maps)
    except BpfError as error:
        raise BackendUnavailable(refused(error).advice) from error


def _to_event(one: Revoked) -> Event:
    source, destination = one.ports
    return Event(
        kind=EventKind.REFUSED,
        time=time.time(),
        endpoint=one.endpoint,
        peer_endpoint=one.peer,
        source=(one.question.source, source),
        destination=(one.question.destination, destination),
        protocol=one.question.protocol,
        direction=one.question.direction,
        reason=Reason["REVOKED"],
        rule=one.rule,
    )
