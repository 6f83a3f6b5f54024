# SPDX-License-Identifier: Apache-2.0
"""The lab: hosts, endpoints, an outsider.

``Lab("ebpf")`` runs the eBPF backend in each host, in a process of its own;
likewise any other of :data:`~lab.paths.DATA_PATHS`. ``Lab("plain")`` gives
every endpoint a network namespace with its overlay address on one bridge and
no slimnet at all: what a container would see. Tests that say nothing of the
underlay run there too, and so prove what data paths are held to.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from netaddr import IPAddress, IPNetwork

from lab.hands import PATIENCE, Hands
from lab.paths import LAB_PATHS, PLAIN, Can
from lab.wires import Namespace, Underlay
from slimnet import contract, model
from slimnet.abc import Context, Upgrade
from slimnet.linux.cgroup import mount as cgroup_mount
from slimnet.linux.cgroup import remove as remove_cgroup
from slimnet.plugins import backend_class
from slimnet.tables import (
    CidrRecord,
    EndpointRecord,
    HostRecord,
    LimitRecord,
    PolicyKey,
    PolicyRecord,
    PublishKey,
    PublishRecord,
    ServiceKey,
    ServiceRecord,
    Tables,
)

__all__ = ["KEY", "NETWORK", "TENANT", "Endpoint", "Host", "Lab"]

NETWORK = model.Network(name="lab", vni=77, cidrs=("10.77.0.0/16",))
#: Another tenant with the same addresses.
TENANT = model.Network(name="tenant", vni=78, cidrs=("10.77.0.0/16",))
KEY = bytes(range(16))
NOBODY = 65534

_labs = itertools.count()


def each(action: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Do it to all of them at once: a driver mostly waits, for the kernel's grace periods."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        for _ in pool.map(action, items):
            pass


class Host:
    """A host of the cluster (or a machine that is not in it)."""

    def __init__(self, lab: Lab, name: str, *, clustered: bool = True) -> None:
        self.lab = lab
        self.name = name
        self.clustered = clustered
        self.netns = Namespace()
        self.address = lab.underlay.join(self.netns)
        self.instance = f"{lab.name}-{name}"
        self.cgroup = lab.cgroup / name
        self.cgroup.mkdir()
        self._own: dict[int | None, Hands] = {}
        self.backend: Any = None
        self.watcher: Any = None
        self.driver: Hands | None = None
        self.observed = False

    def hands(self, uid: int | None = None) -> Hands:
        """A process of the host itself, no endpoint's; root, or an unprivileged user."""
        if uid not in self._own:
            cgroup = self.cgroup / f"user{uid or 0}"
            cgroup.mkdir(exist_ok=True)
            self._own[uid] = Hands(
                f"{self.name} uid {uid or 0}",
                netns=self.netns.path,
                cgroup=cgroup,
                uid=uid,
                directory=self.lab.directory,
            )
        return self._own[uid]

    def refresh(self) -> None:
        """The host's addresses have changed; new tables come soon after."""
        self.lab.install()

    def rest(self) -> None:
        """End the host's own processes, and with them their sockets."""
        for hands in self._own.values():
            hands.close()
        self._own.clear()

    @property
    def root(self) -> Hands:
        return self.hands()

    @property
    def user(self) -> Hands:
        return self.hands(NOBODY)

    def start_backend(self, *before: Any, upgrade: Upgrade = Upgrade.NO) -> None:
        """Start the data path, or adopt it: in a process of its own, as the agent would.

        Args:
            before: a function, and its arguments, that runs there first.
            upgrade: as of the backend's context.
        """
        context = Context(
            instance=self.instance,
            host=model.Host(
                name=self.name,
                address=self.address,
                wires=frozenset({self.lab.wire}),
                backend=self.lab.backend,
            ),
            interface=Underlay.INTERFACE,
            cgroup=self.cgroup / "endpoints",
            state=self.lab.directory / self.name,
            key=KEY,
            options=self.lab.path.options if self.lab.path else {},
            upgrade=upgrade,
        )
        context.cgroup.mkdir(exist_ok=True)
        context.state.mkdir(exist_ok=True)
        self.driver = Hands(
            f"backend of {self.name}",
            netns=self.netns.path,
            directory=self.lab.directory,
            imports=("lab.watcher", "pyroute2", backend_class(self.lab.backend).__module__),
        )
        if before:
            self.driver.call(*before)
        self.backend, self.watcher = self.driver.call(
            _start_backend, context, deadline=300 * PATIENCE
        )

    def start_install(self, tables: Tables, *, times: int) -> None:
        """Install again and again, in the background, a generation later each time."""
        assert self.driver is not None
        self.driver.start(_install_often, self.backend, tables, times)

    def kill_backend(self) -> None:
        """As kill -9 of the agent."""
        assert self.driver is not None
        self.driver.close()
        self.driver = None

    @contextlib.contextmanager
    def sysctl(self, name: str, value: object) -> Iterator[None]:
        """Set a sysctl of the namespace for a while."""
        path = "/proc/sys/" + name.replace(".", "/")
        before = self.root.call(_read_text, path)
        self.root.call(_write_text, path, str(value))
        try:
            yield
        finally:
            self.root.call(_write_text, path, before)

    def statistic(self, name: str) -> int:
        """A counter of the namespace: ``TcpExtTCPSynRetrans``, ``TcpActiveOpens``..."""
        return int(self.root.call(_statistics)[name])

    def observe(self) -> None:
        """From now on opened and closed connections make events; the earlier
        events are dropped."""
        self.backend.observe(enabled=True)
        self.observed = True
        self.watcher.forget()

    def events(self, count: int, timeout: float = 5.0) -> list[model.Event]:
        """The next ``count`` events; fewer where no more come in time. Where events are told
        late, those of an earlier test's endpoints are not among them."""
        if self.lab.can(Can.TELLS_AT_ONCE):
            return list(self.watcher.take(count, timeout))
        found: list[model.Event] = []
        until = time.monotonic() + timeout
        while len(found) < count and (left := until - time.monotonic()) > 0:
            told = self.watcher.take(count - len(found), left)
            found += [
                each for each in told if not each.endpoint or each.endpoint in self.lab.endpoints
            ]
        return found

    def counters(self) -> dict[model.Reason, int]:
        return dict(self.backend.status().counters)

    def teardown(self) -> None:
        """Remove the data path, and end what drove it; something must drive it for that."""
        if self.backend is not None:
            if self.driver is None or self.driver.process.poll() is not None:
                self.start_backend()
            self.backend.teardown()
            self.backend = None
        if self.driver is not None:
            self.driver.close()
            self.driver = None

    def close(self) -> None:
        self.teardown()
        self.rest()
        assert remove_cgroup(self.cgroup), f"{self.cgroup} has processes"
        self.netns.close()


class Endpoint(Hands):
    """An endpoint, and the hands in it."""

    def __init__(
        self,
        host: Host,
        record: model.Endpoint,
        netns: Namespace,
        cgroup: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            record.name,
            netns=netns.path,
            cgroup=cgroup,
            directory=host.lab.directory,
            variables=variables,
        )
        self.host = host
        self.record = record
        self.netns = netns

    @property
    def id(self) -> int:
        return self.record.id

    @property
    def address(self) -> str:
        """The overlay address."""
        return str(self.record.address)

    @contextlib.contextmanager
    def sysctl(self, name: str, value: object) -> Iterator[None]:
        """Set a sysctl of the namespace that its sockets live in for a while."""
        before = self.netns.run("sysctl", "-n", name).strip()
        self.netns.sysctl(name, value)
        try:
            yield
        finally:
            self.netns.sysctl(name, before)

    def statistic(self, name: str) -> int:
        """A counter of the namespace that its sockets live in."""
        return int(self.call(_statistics)[name])


class Lab:
    """See the module."""

    def __init__(
        self,
        mode: str = "ebpf",
        *,
        hosts: int = 2,
        routed: bool = False,
        tables: bool = True,
        underlay: Callable[[], Underlay] | None = None,
    ) -> None:
        self.mode = mode
        self.path = LAB_PATHS.get(mode)
        self.backend = self.path.backend if self.path else mode
        self.name = f"slt-l{os.getpid()}-{next(_labs)}"
        self.directory = Path(tempfile.mkdtemp(prefix="slt-"))
        self.directory.chmod(0o777)
        self.cgroup = cgroup_mount() / self.name
        self._undo = contextlib.ExitStack()
        self._undo.callback(shutil.rmtree, self.directory)
        self._numbers = itertools.count(1)
        self._generation = 0
        self.endpoints: dict[int, Endpoint] = {}
        self.policy: dict[PolicyKey, PolicyRecord] = {}
        self.services: dict[ServiceKey, ServiceRecord] = {}
        self.published: dict[PublishKey, PublishRecord] = {}
        self.limits: dict[int, LimitRecord] = {}
        self.hosts: list[Host] = []
        try:
            self.cgroup.mkdir()
            self._undo.callback(self.cgroup.rmdir)
            self.underlay = Underlay(routed=routed) if underlay is None else underlay()
            self._undo.callback(self.underlay.close)
            for number in range(hosts):
                self.hosts.append(self._host(f"h{number}"))
            self.outside = self._host("outside", clustered=False)
            if mode != PLAIN:
                each(Host.start_backend, self.hosts)
                if tables:
                    self.install()
            elif not self.underlay.routed:
                self.outside.netns.ip(f"route add {NETWORK.cidrs[0]} dev {Underlay.INTERFACE}")
        except BaseException:
            self._undo.close()
            raise

    def can(self, what: Can) -> bool:
        """Whether its data path says so; plain containers can whatever containers can."""
        if self.path is None:
            return what in {Can.DATAGRAMS, Can.OWN_DEVICES, Can.OWN_NAMESPACE}
        return what in self.path.can

    def once(self, count: int) -> bool:
        """Whether one attempt that is refused may be counted so often."""
        return count == 1 or (count > 1 and not self.can(Can.DECIDES_AT_CONNECT))

    @property
    def wire(self) -> model.Wire:
        """What its hosts talk to one another with."""
        return model.Wire.VXLAN if self.path is None else self.path.wire

    @property
    def also(self) -> frozenset[model.Wire]:
        """What they carry with that is no connection."""
        return frozenset() if self.path is None else self.path.also

    @property
    def denied(self) -> int:
        """errno of a connect(2) that the endpoint's own egress policy denies."""
        assert self.path is not None
        return self.path.denied

    @property
    def denied_datagram(self) -> int:
        """errno of a datagram that the endpoint's own egress policy denies."""
        assert self.path is not None
        return self.path.denied_datagram or self.denied

    def _host(self, name: str, *, clustered: bool = True) -> Host:
        host = Host(self, name, clustered=clustered)
        self._undo.callback(host.close)
        return host

    def endpoint(
        self,
        host: int = 0,
        *,
        name: str | None = None,
        address: str | None = None,
        network: model.Network = NETWORK,
        netns: Path | None = None,
        install: bool = True,
    ) -> Endpoint:
        """A new endpoint with remote hands; in a namespace that is brought, if one is named."""
        number = next(self._numbers)
        record = model.Endpoint(
            id=1000 + number,
            network=network.name,
            name=name or f"e{number}",
            address=address or f"10.77.{number // 250}.{number % 250 + 1}",
            host=self.hosts[host].name,
            identity=contract.SLIM_IDENTITY_FIRST + number,
            netns=str(netns or ""),
        )
        endpoint = self.attach(self.hosts[host], record, network)
        if install:
            self.install()
        return endpoint

    def attach(self, where: Host, record: model.Endpoint, network: model.Network) -> Endpoint:
        """An endpoint as its record says, on that host; no new tables."""
        if self.mode != PLAIN:
            attachment = where.backend.attach(record, network)
            netns = where.netns if attachment.netns is None else Namespace(attachment.netns)
            endpoint = Endpoint(where, record, netns, attachment.cgroup, attachment.environment)
        else:
            cgroup = where.cgroup / record.name
            cgroup.mkdir()
            endpoint = Endpoint(where, record, self._container(record), cgroup)
        self.endpoints[record.id] = endpoint
        return endpoint

    def _container(self, record: model.Endpoint) -> Namespace:
        netns = Namespace()
        netns.cable("eth0", self.underlay.middle, f"c{record.id}")
        self.underlay.middle.ip(f"link set c{record.id} master bridge")
        netns.ip(f"address add {record.address}/16 dev eth0")
        netns.ip("route add default dev eth0")
        return netns

    def remove(self, *endpoints: Endpoint) -> None:
        """Kill the endpoints' processes and detach them."""
        for endpoint in endpoints:
            endpoint.process.kill()
        for endpoint in endpoints:
            endpoint.close()
            del self.endpoints[endpoint.id]
            if self.mode == PLAIN:
                assert endpoint.cgroup is not None
                endpoint.cgroup.rmdir()
                endpoint.netns.close()
        if self.mode != PLAIN:
            each(lambda endpoint: endpoint.host.backend.detach(endpoint.id), endpoints)
            self.install()

    @contextlib.contextmanager
    def test(self) -> Iterator[Lab]:
        """Whatever a test adds is gone afterwards."""
        try:
            yield self
        finally:
            written = (self.policy, self.services, self.published, self.limits)
            changed = any(written) or bool(self.endpoints)
            for table in written:
                table.clear()
            if changed:
                self.remove(*self.endpoints.values())
            for host in (*self.hosts, self.outside):
                host.rest()
                if host.observed:
                    host.backend.observe(enabled=False)
                    host.observed = False

    # Policy

    def rule(
        self,
        subject: Endpoint,
        direction: model.Direction,
        *,
        peer: Endpoint | int = contract.SLIM_IDENTITY_ANY,
        port: int | None = None,
        allow: bool,
        protocol: int | None = 6,
    ) -> None:
        """Add one policy record; :meth:`install` puts it in force."""
        key = PolicyKey(
            subject=subject.record.identity,
            peer=peer if isinstance(peer, int) else peer.record.identity,
            direction=direction,
            protocol=protocol,
            port=port or 0,
            port_bits=16 if port else 0,
        )
        reason = model.Reason.RULE_ALLOW if allow else model.Reason.RULE_DENY  # type: ignore[attr-defined]
        self.policy[key] = PolicyRecord(allow=allow, reason=reason, rule=len(self.policy) + 1)

    def isolate(self, subject: Endpoint, direction: model.Direction) -> None:
        """Select the endpoint for a direction: denied unless a rule allows."""
        key = PolicyKey(subject.record.identity, contract.SLIM_IDENTITY_ANY, direction)
        self.policy[key] = PolicyRecord(
            allow=False,
            reason=model.Reason.DEFAULT_DENY,  # type: ignore[attr-defined]
        )

    def service(
        self,
        port: int,
        backends: Sequence[tuple[Endpoint, int]],
        *,
        address: str = "10.77.255.1",
        affinity: int = 0,
        protocol: int = socket.IPPROTO_TCP,
    ) -> str:
        """A service with these (endpoint, port) behind it; its address.
        :meth:`install` puts it in force."""
        slots = tuple((endpoint.id, number) for endpoint, number in backends)
        size = contract.SLIM_SERVICE_SLOTS
        self.services[ServiceKey(NETWORK.vni, IPAddress(address), protocol, port)] = ServiceRecord(
            id=900 + port,
            affinity=affinity,
            slots=(slots * size)[:size],
            size=len(slots),
        )
        return address

    def publish(
        self,
        endpoint: Endpoint,
        port: int,
        target: int,
        address: str | None = None,
        protocol: int = socket.IPPROTO_TCP,
    ) -> None:
        """A port of the endpoint's host as that endpoint's own."""
        key = PublishKey(None if address is None else IPAddress(address), protocol, port)
        self.published[key] = PublishRecord(endpoint.id, target)

    def limit(self, endpoint: Endpoint, *, rate: int = 0, connection_rate: int = 0) -> None:
        """What an endpoint may send, in bytes a second."""
        self.limits[endpoint.id] = LimitRecord(rate, connection_rate)

    def tables(self, host: Host, *, without: Endpoint | None = None) -> Tables:
        """What the compiler would make of the lab for this host; ``without``
        an endpoint that it does not know of yet, a generation later."""
        if without is not None:
            self._generation += 1
        addresses = {host.name: IPAddress(host.address) for host in self.hosts}
        vnis = {network.name: network.vni for network in (NETWORK, TENANT)}
        cidrs: dict[tuple[int, IPNetwork], CidrRecord] = {}
        for network in (NETWORK, TENANT):
            for cidr in network.cidrs:
                cidrs[network.vni, cidr] = CidrRecord(
                    identity=contract.SLIM_IDENTITY_WORLD, overlay=True
                )
            for address in addresses.values():
                cidrs[network.vni, IPNetwork(f"{address}/32")] = CidrRecord(
                    identity=contract.SLIM_IDENTITY_HOST, host=True
                )
        records = {
            number: endpoint.record
            for number, endpoint in self.endpoints.items()
            if endpoint is not without
        }
        return Tables(
            generation=self._generation,
            addresses={
                (vnis[record.network], record.address): number for number, record in records.items()
            }
            | {(key.vni, key.address): contract.SLIM_ADDRESS_SERVICE for key in self.services},
            endpoints={
                number: EndpointRecord(
                    address=record.address,
                    host=addresses[record.host],
                    vni=vnis[record.network],
                    identity=record.identity,
                    local=record.host == host.name,
                    wire=self.wire,
                    packets=record.netns != "" or self.can(Can.DATAGRAMS),
                )
                for number, record in records.items()
            },
            cidrs=cidrs,
            policy=dict(self.policy),
            services=dict(self.services),
            published={
                key: record
                for key, record in self.published.items()
                if self.endpoints[record.endpoint].host is host
            },
            limits={
                number: record
                for number, record in self.limits.items()
                if self.endpoints[number].host is host
            },
            hosts={
                addresses[each.name]: HostRecord(
                    each.name, frozenset(map(model.WireFormat, {self.wire} | self.also))
                )
                for each in self.hosts
            },
        )

    def install(self) -> None:
        """Put the lab's state in force on all hosts."""
        if self.mode == PLAIN:
            return
        self._generation += 1
        each(lambda host: host.backend.install(self.tables(host)), self.hosts)

    def install_and_die(self, host: Host) -> None:
        """Put the lab's state in force on one host, whose agent dies right behind the
        switch to the new tables."""
        self._generation += 1
        assert host.driver is not None
        host.driver.start(_install_and_die, host.backend, self.tables(host))
        host.driver.process.wait(10)
        host.kill_backend()

    def close(self) -> None:
        with self._undo:
            if self.endpoints:
                self.remove(*self.endpoints.values())
            each(Host.teardown, self.hosts)


def _start_backend(context: Any) -> Any:
    from lab.hands_process import Reference
    from lab.watcher import Watcher
    from slimnet.plugins import backend_class

    backend = backend_class(context.host.backend)(context)
    return Reference(backend), Reference(Watcher(backend))


def _install_often(backend: Any, tables: Any, times: int) -> None:
    import attrs

    for number in range(1, times + 1):
        backend.install(attrs.evolve(tables, generation=tables.generation + number))


def _install_and_die(backend: Any, tables: Any) -> None:
    backend._revoke = lambda _: os._exit(9)
    backend.install(tables)


def _read_text(path: str) -> str:
    return Path(path).read_text().strip()


def _write_text(path: str, text: str) -> None:
    Path(path).write_text(text)


def _statistics() -> Mapping[str, int]:
    found = {}
    for path in ("/proc/thread-self/net/snmp", "/proc/thread-self/net/netstat"):
        lines = Path(path).read_text().splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            prefix, *names_ = names.split()
            _, *values_ = values.split()
            for name, value in zip(names_, values_, strict=True):
                found[prefix.rstrip(":") + name] = int(value)
    return found
