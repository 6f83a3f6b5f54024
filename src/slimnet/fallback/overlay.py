# SPDX-License-Identifier: Apache-2.0
"""The fallback overlay of one host, whole: attachments and generations over its parts."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import evolve
from netaddr import IPAddress

from slimnet.abc import Context
from slimnet.exceptions import (
    AbiMismatch,
    BackendError,
    CapabilityMissing,
    ConfigError,
    InUse,
    InvalidValue,
)
from slimnet.fallback import nft
from slimnet.fallback.door import doors
from slimnet.fallback.flows import tracked
from slimnet.fallback.outside import Outside, Stamp
from slimnet.fallback.pair import DevicePair
from slimnet.fallback.record import Record
from slimnet.fallback.refusals import counters, refusals
from slimnet.fallback.router import Plug, Router
from slimnet.linux import cgroup, netns
from slimnet.mending import Mending
from slimnet.model import (
    Answer,
    Capabilities,
    Connection,
    Direction,
    Endpoint,
    Event,
    EventKind,
    Network,
    Probe,
    Running,
    Status,
    Wire,
    WireFormat,
)
from slimnet.place import Life, Part, Place
from slimnet.rtnetlink import Rtnetlink
from slimnet.tables import Tables

__all__ = ["CAPABILITIES", "PORT", "Fallback", "find", "life", "place", "probe", "purge"]

#: Raised when names, devices or rules change such that an older process could not adopt them.
ABI = 1
#: IANA's port for VXLAN (RFC 7348).
PORT = 4789
#: Seconds between two looks at the refusals.
_EVERY = 0.5
#: And at the host.
_LOOKING = 1.0
CAPABILITIES = Capabilities(
    enforcing=True,
    wires=frozenset({WireFormat(Wire.VXLAN)}),
    needs=frozenset({Part.CGROUP, Part.NETNS}),
)
#: How many refusals of routers that are gone wait to be read.
_LATE = 4096


def probe() -> Probe:
    """Root, cgroup v2, nftables, and a kernel with VXLAN."""
    if os.geteuid() != 0:
        return Probe(Answer.NO, "not root", "run the agent as root")
    try:
        cgroup.mount()
    except CapabilityMissing as error:
        reason, _, remedy = str(error).partition(": ")
        return Probe(Answer.NO, reason, remedy)
    if not nft.is_here():
        return Probe(Answer.NO, "no libnftables", "install nftables (apt install nftables)")
    missing = _missing_kinds()
    if missing:
        return Probe(Answer.NO, f"kernel without {missing}", f"modprobe {missing.replace(',', '')}")
    found = "VXLAN, veth, cgroup v2 and nftables are here"
    return Probe(Answer.YES, found, capabilities=CAPABILITIES)


def find(instance: str, state: Path) -> Running | None:
    """By the endpoints' records, the namespaces' names and the host's table."""
    records = list(Record.all(state))
    prefix = f"slimnet.{instance}."
    named = set(netns.DIRECTORY.glob(f"{prefix}*"))
    stamp = None
    if nft.is_here():
        stamp = Outside(instance, netns.own(), "", IPAddress(0), PORT).stamp()
    if not records and not named and stamp is None:
        return None
    routers = {path for path in named if path.name.removeprefix(prefix).isdigit()}
    lost = named - {record.netns for record in records} - routers
    return Running(
        (*(record.cgroup for record in records), *sorted(lost)),
        stamp.cluster if stamp is not None else "",
        tuple(record.cgroup for record in records if cgroup.populated(record.cgroup)),
    )


def purge(instance: str, state: Path) -> None:
    """By the names of namespaces, devices, the host's table and the records."""
    host = netns.own()
    for path in netns.DIRECTORY.glob(f"slimnet.{instance}.*"):
        name = path.name.removeprefix(f"slimnet.{instance}.")
        if name.isdigit():
            Router(path, int(name), host, IPAddress(0), "", PORT).down()
        else:
            netns.remove(path)
    if nft.is_here():
        Outside(instance, host, "", IPAddress(0), PORT).remove()
    for file in state.glob("endpoint-*"):
        file.unlink()


def place(context: Context, host: Path, name: str, given: Place) -> Place:
    """Where an endpoint would be attached, whether there is a fallback overlay yet or not:
    a cgroup and a namespace; either may be the caller's. Changes nothing.

    Args:
        context: of the fallback overlay.
        host: path of the host's network namespace.
        name: the endpoint's full name.
        given: by the caller.

    Raises:
        InvalidValue: a namespace that is none, the host's own, or one that was made here for
            another.
    """
    own = _made(context.instance, name)
    if given.netns not in (None, own):
        _check(context.instance, host, given.netns)
    return Place(given.cgroup or context.cgroup / name, given.netns or own)


def life(context: Context, name: str, place: Place) -> Life:
    """Whether an endpoint lives: by the cgroup; and a namespace that was brought has to be
    there. Changes nothing.

    Args:
        context: of the fallback overlay.
        name: the endpoint's full name.
        place: its own.
    """
    path = place.cgroup or context.cgroup / name
    if not path.is_dir() or (place.netns is not None and not netns.number(place.netns)):
        return Life.GONE
    return Life.BUSY if cgroup.populated(path) else Life.IDLE


def _made(instance: str, name: str) -> Path:
    return netns.DIRECTORY / f"slimnet.{instance}.{name}"


def _own(instance: str) -> list[Path]:
    """The namespaces that were made here."""
    return list(netns.DIRECTORY.glob(f"slimnet.{instance}.*"))


def _check(instance: str, host: Path, given: Path) -> None:
    number = netns.number(given)
    if not number:
        raise InvalidValue("endpoint.netns", "a network namespace that exists", str(given))
    if number in (netns.number(host), netns.number(Path("/proc/1/ns/net"))):
        raise InvalidValue("endpoint.netns", "one that is not the host's own", str(given))
    for path in _own(instance):
        if netns.number(path) == number:
            raise InvalidValue("endpoint.netns", f"one that is not {path.name}", str(given))


class Fallback:
    """Every connection over VXLAN, decided by nftables at the endpoint's device: what a
    backend composes for what it does not carry itself. ``noop`` is this and nothing else.
    The methods are those of :class:`slimnet.abc.Backend`, and so are their threads.

    Policy holds against root in the endpoint: the rules are in the router's
    namespace. IPv4 only. Connections that a new generation forbids are reset
    at their next packet. ``opened`` and ``closed`` make no events.

    Args:
        context: of the backend that composes it.
        port: UDP port of VXLAN; the same on every host.
        wraps: as of :class:`Router`.
        serves: likewise.
        publishes: likewise.
        pair: likewise.

    Raises:
        ConfigError: the underlay address is not IPv4.
        AbiMismatch: one of another layout runs; it is left as it was.
    """

    def __init__(
        self,
        context: Context,
        port: int = PORT,
        *,
        wraps: bool = True,
        serves: bool = False,
        publishes: bool = False,
        pair: DevicePair = DevicePair.VETH,
    ) -> None:
        self.context = context
        if context.host.address.version != 4:
            raise ConfigError("underlay.address", "an IPv4 address", str(context.host.address))
        self._port = port
        self._wraps = wraps
        self._serves = serves
        self._publishes = publishes
        self._pair = pair
        self._lock = threading.RLock()
        self._tables: Tables | None = None
        self._late: list[Event] = []  # of routers that are gone
        self._looked = time.monotonic()
        self._lack = ""  # what the last look found that could not be put back
        self._attached: dict[int, list[Record]] | None = None  # for mending, by network
        # Held open: other threads may be in other namespaces when they call.
        self._namespace = os.open(netns.own(), os.O_RDONLY | os.O_CLOEXEC)
        self._closed = False
        try:
            self._host = Path(f"/proc/{os.getpid()}/fd/{self._namespace}")
            self._outside = Outside(
                *(context.instance, self._host, context.interface, context.host.address, port),
                apart=not wraps,
            )
            stamp = self._outside.stamp()
            if stamp is not None and stamp.abi != ABI:
                raise AbiMismatch(
                    f"instance {context.instance}: wanted a data path of ABI {ABI}, got {stamp.abi}"
                    ": it cannot be replaced with endpoints running: stop them, then run"
                    " slimnet agent --teardown"
                )
            context.state.mkdir(parents=True, exist_ok=True)
            for torn in context.state.glob("endpoint-*.new"):  # its writer was killed
                torn.unlink()
            self._stamp = Stamp(ABI, stamp.generation if stamp else 0, context.cluster)
            if stamp != self._stamp:
                self._outside.write(self._stamp)
        except BaseException:
            os.close(self._namespace)
            raise

    # Attachments

    def place(self, name: str, given: Place) -> Place:
        """A cgroup and a namespace; either may be the caller's."""
        return place(self.context, self._host, name, given)

    def _netns(self, name: str) -> Path:
        """Where an endpoint's namespace is mounted that is made here."""
        return _made(self.context.instance, name)

    def life(self, name: str, place: Place) -> Life:
        """By the cgroup; and a namespace that was brought has to be there."""
        return life(self.context, name, place)

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """Make the cgroup and the namespace, and connect it to the network's router."""
        with self._working():
            self._attached = None
            if endpoint.address.version != 4:
                raise BackendError(f"endpoint.address: wanted IPv4, got {endpoint.address}")
            records = self._records()
            record = records.pop(endpoint.id, None)
            wanted = self._record(endpoint, network, record)
            if record is not None:
                record = self._follow(record, wanted)
            if record is not None and record.is_there():
                held = record.vni, record.address, record.place()
                if held != (wanted.vni, wanted.address, wanted.place()):
                    raise BackendError(
                        f"endpoint {endpoint.id}: that id is another's, with address"
                        f" {record.address}, cgroup {record.cgroup} and netns {record.netns}"
                    )
                if record.whole:
                    return record.place()
            for other in records.values():
                if wanted.given and other.given == wanted.given:
                    raise BackendError(
                        f"network namespace {wanted.netns} is endpoint {other.endpoint}'s"
                    )
            self._remove(wanted)  # what a killed process left
            try:
                self._make(wanted)
            except OSError as error:
                self._remove(wanted)
                self._sweep()
                raise BackendError(f"endpoint {endpoint.full_name}: {error}") from error
            except BaseException:
                self._remove(wanted)
                self._sweep()
                raise
            return wanted.place()

    def _follow(self, record: Record, wanted: Record) -> Record:
        """The record of one whose path names another namespace by now, into which its device
        was moved: Docker has none yet when a container gets its device."""
        followed = evolve(record, given=wanted.given)
        if followed == record or evolve(wanted, made=record.made, whole=True) != followed:
            return record
        if not (record.given and Router.is_in(wanted.netns, record.endpoint)):
            return record
        followed.write(self.context.state)
        return followed

    def _record(self, endpoint: Endpoint, network: Network, old: Record | None) -> Record:
        """What is to be known of an endpoint, where this is known of it."""
        place = self.place(endpoint.full_name, endpoint.place)
        assert place.cgroup is not None  # noqa: S101  # for the type checker
        assert place.netns is not None  # noqa: S101  # for the type checker
        own = place.netns == self._netns(endpoint.full_name)
        return Record(
            endpoint=endpoint.id,
            vni=network.vni,
            address=endpoint.address,
            cgroup=place.cgroup,
            made=old.made if old is not None else not place.cgroup.is_dir(),
            netns=place.netns,
            given=0 if own else netns.number(place.netns),
        )

    def _make(self, record: Record) -> None:
        record.write(self.context.state)
        router = self._router(record.vni)
        if not router.exists():
            router.up()
            if self._tables is not None:
                router.install(self._tables)
            self._outside.open({*self._networks(), record.vni})
            self._publish()
        if not record.given:
            netns.create(record.netns)
        router.plug(record.endpoint, record.address, record.netns)
        record.cgroup.mkdir(parents=True, exist_ok=True)
        evolve(record, whole=True).write(self.context.state)

    def detach(self, endpoint: int) -> None:
        """Remove what :meth:`attach` made. The cgroup goes first: the kernel
        refuses that while it has processes."""
        with self._working():
            self._attached = None
            record = self._records().get(endpoint)
            if record is not None:
                self._refuse_if_used(record)
                self._remove(record)
                self._sweep()

    def _refuse_if_used(self, record: Record) -> None:
        if cgroup.populated(record.cgroup):
            raise _used(record)

    def _remove(self, record: Record) -> None:
        # The kernel's answer leaves no moment in which a process could enter.
        if record.made and not cgroup.remove(record.cgroup):
            raise _used(record)
        self._router(record.vni).unplug(record.endpoint)
        if not record.given:
            netns.remove(record.netns)
        record.remove(self.context.state)

    def _sweep(self) -> None:
        """Remove the routers that have no endpoint."""
        wanted = {record.vni for record in self._records().values()}
        unused = set(self._networks()) - wanted
        if unused:
            self._outside.open(wanted)
            self._publish(wanted)
            for vni in unused:
                router = self._router(vni)
                if router.exists():
                    self._late += self._refusals(router)
                    self._outside.keep(counters([router.path]))
                router.down()
            del self._late[:-_LATE]

    def attached(self) -> frozenset[int]:
        """The ids of the endpoints that there is a record of, half made ones included."""
        return frozenset(self._records())

    def plugged(self) -> dict[int, tuple[Record, Path, Plug]]:
        """The connected endpoints: the record, the router's namespace, and how."""
        with self._working():
            records = self._records()
            return {
                endpoint: (records[endpoint], router.path, plug)
                for router in self._routers()
                for endpoint, plug in router.plugs().items()
                if endpoint in records
            }

    # Tables

    def install(self, tables: Tables) -> None:
        """One transaction for each router; a flow passes only one. Everything
        is written."""
        with self._working():
            try:
                self._install(tables)
            except BaseException:
                if self._tables is not None:
                    with contextlib.suppress(BackendError):
                        self._install(self._tables)
                raise
            self._stamp = Stamp(ABI, tables.generation, self.context.cluster)
            self._outside.write(self._stamp)
            self._tables = tables

    def _install(self, tables: Tables) -> None:
        self._outside.admit(_peers(tables))
        for router in self._routers():
            if router.generation() != tables.generation:
                router.install(tables)
        self._publish(tables=tables)

    def _publish(self, networks: Iterable[int] | None = None, tables: Tables | None = None) -> None:
        """Of the networks that have a router here."""
        tables = tables or self._tables
        if self._publishes and tables is not None:
            vnis = set(self._networks() if networks is None else networks)
            self._outside.publish([door for door in doors(tables) if door.vni in vnis])

    def tend(self) -> None:
        """Every second look at the host, and put back what somebody has taken away.

        Raises:
            BackendError: something cannot be, and what follows from that.
        """
        with self._working():
            now = time.monotonic()
            if now - self._looked >= _LOOKING and self._tables is not None:
                self._looked = now
                self._lack = self._mend(self._tables)
            if self._lack:
                raise BackendError(self._lack)

    def _mend(self, tables: Tables) -> str:
        """What is lacking still."""
        if self._attached is None:
            self._attached = {}
            for record in self._records().values():
                if record.whole:
                    self._attached.setdefault(record.vni, []).append(record)
        mending = Mending()
        with netns.enter(self._host), Rtnetlink() as route:
            lower = route.link(self.context.interface)
            mending.attempt(self._outside.mend, self._stamp, _peers(tables), self._attached)
        if lower is None:
            mending.lacks_interface(self.context.interface)
        for vni, records in self._attached.items():
            router = self._router(vni)
            mending.attempt(router.mend, lower, tables)
            if netns.exists(router.path):
                plugged = router.endpoints()
                for record in records:
                    if record.endpoint not in plugged and netns.number(record.netns):
                        mending.attempt(self._plug, router, record)
        return mending.end()

    @staticmethod
    def _plug(router: Router, record: Record) -> list[str]:
        router.plug(record.endpoint, record.address, record.netns)
        return [f"device of endpoint {record.endpoint}"]

    # What it says

    def status(self) -> Status:
        """Read from the host's table and the routers."""
        with self._working():
            stamp = self._outside.stamp()
            routers = self._routers()
            generations = [stamp.generation if stamp else 0]
            generations += [router.generation() or 0 for router in routers]
            return Status(
                generation=min(generations),
                endpoints=frozenset().union(*(router.endpoints() for router in routers)),
                counters=Counter(self._outside.kept())
                + Counter(counters(router.path for router in routers)),
                abi=f"noop-{stamp.abi}" if stamp else "",
                detail={"networks": sorted(self._networks())},
            )

    def connections(self) -> list[Connection]:
        """What conntrack holds in the routers."""
        with self._working():
            records = {(r.vni, r.address): r.endpoint for r in self._records().values()}
            found = []
            for router in self._routers():
                for flow in tracked(router.path):
                    for direction, local, peer in (
                        (Direction.EGRESS, flow.source, flow.destination),
                        (Direction.INGRESS, flow.reached, flow.source),
                    ):
                        endpoint = records.get((router.vni, local[0]))
                        if endpoint is None:
                            continue
                        other = self._endpoint_at(router.vni, peer)
                        remote = other and (router.vni, peer[0]) not in records
                        found.append(
                            Connection(
                                endpoint=endpoint,
                                peer_endpoint=other,
                                local=local,
                                peer=peer,
                                direction=direction,
                                wire=Wire.VXLAN if remote else None,
                                state=flow.state,
                                opened=flow.opened,
                            )
                        )
            return found

    def _endpoint_at(self, vni: int, where: tuple[IPAddress, int]) -> int:
        owner = self._tables.addresses.get((vni, where[0]), 0) if self._tables else 0
        # A service's address is no endpoint's.
        return owner if self._tables and owner in self._tables.endpoints else 0

    def events(self, timeout: float) -> list[Event]:
        """The refusals that nftables noted, at most 4,096 and a minute old."""
        deadline = time.monotonic() + timeout
        while True:
            with self._working():
                found, self._late = self._late, []
                for router in self._routers():
                    found += self._refusals(router)
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            time.sleep(min(_EVERY, left))

    def _refusals(self, router: Router) -> Iterator[Event]:
        for refused in refusals(router.path):
            source = self._endpoint_at(router.vni, refused.source)
            destination = self._endpoint_at(router.vni, refused.destination)
            egress = refused.why.direction is Direction.EGRESS
            yield Event(
                kind=EventKind.REFUSED,
                time=refused.time,
                endpoint=source if egress else destination,
                peer_endpoint=destination if egress else source,
                source=refused.source,
                destination=refused.destination,
                protocol=refused.why.protocol,
                direction=refused.why.direction,
                reason=refused.why.reason,
                rule=refused.why.rule,
            )

    # The end

    def close(self) -> None:
        """Routers, rules and namespaces stay as they are."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._namespace)

    def teardown(self) -> None:
        """Endpoints, then routers, then the host's table."""
        with self._working():
            records = list(self._records().values())
            for record in records:
                self._refuse_if_used(record)
            for record in records:
                self.detach(record.endpoint)
            self._sweep()
            self._outside.remove()
            with contextlib.suppress(OSError):  # the caller's, or it has others
                self.context.cgroup.rmdir()
            self.close()

    # Where things are

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise BackendError(f"instance {self.context.instance}: this backend is closed")
            yield

    def _router(self, vni: int) -> Router:
        return Router(
            netns.DIRECTORY / f"slimnet.{self.context.instance}.{vni}",
            vni,
            self._host,
            self.context.host.address,
            self.context.interface,
            self._port,
            wraps=self._wraps,
            serves=self._serves,
            publishes=self._publishes,
            pair=self._pair,
        )

    def _networks(self) -> list[int]:
        """The VNIs that have a router here."""
        prefix = f"slimnet.{self.context.instance}."
        names = (path.name.removeprefix(prefix) for path in _own(self.context.instance))
        return sorted(int(name) for name in names if name.isdigit())

    def _routers(self) -> list[Router]:
        return [self._router(vni) for vni in self._networks()]

    def _records(self) -> dict[int, Record]:
        return {record.endpoint: record for record in Record.all(self.context.state)}


def _peers(tables: Tables) -> set[IPAddress]:
    """The hosts that VXLAN may come from."""
    return {
        record.host
        for record in tables.endpoints.values()
        if not record.local and record.host.version == 4
    }


def _used(record: Record) -> InUse:
    return InUse(f"endpoint {record.endpoint}: processes in {record.cgroup}")


def _missing_kinds() -> str:
    """The kinds of device that this kernel cannot make, tried where it harms nobody."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415  # as in flows.py

    missing = []

    def attempt() -> None:
        with netns.netlink() as route:
            for kind, options in (
                ("vxlan", {"vxlan_id": 1}),
                ("veth", {"peer": "peer0"}),
            ):
                try:
                    route.link("add", ifname=f"{kind}0", kind=kind, **options)
                except NetlinkError:
                    missing.append(kind)

    netns.apart(attempt)
    return ", ".join(missing)
