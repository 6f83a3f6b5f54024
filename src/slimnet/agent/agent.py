# SPDX-License-Identifier: Apache-2.0
"""One host's agent: keeps its data path at what the store says.

::

    store --watch--> Mirror --State--> compile() --Tables--> Backend.install()
                        \\--> hosts files          \\--> installed/<host>

It holds nothing that is not in the store or in the data path, so that it may be
killed at any moment; started again it adopts what runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator

import attrs
from netaddr import IPAddress

from slimnet import records
from slimnet.abc import Backend, Store
from slimnet.agent import cgroup, names
from slimnet.agent.feed import Feed
from slimnet.agent.mirror import Mirror
from slimnet.agent.notify import notify, watchdog_interval
from slimnet.agent.site import Site, survey
from slimnet.cluster import Cluster
from slimnet.config import Config
from slimnet.exceptions import (
    AlreadyExists,
    BackendError,
    CannotEnforce,
    InUse,
    InvalidValue,
    NotFound,
    SlimnetError,
    StoreUnreachable,
)
from slimnet.model import Attachment, Endpoint
from slimnet.plugins import choose_backend, open_store
from slimnet.policy import Compiler, Policy
from slimnet.tables import Change, Tables

__all__ = ["Agent"]

_log = logging.getLogger(__name__)


class Agent:
    """The agent of one host.

    Args:
        config: of this host.

    Raises:
        ConfigError, CapabilityMissing, BackendUnavailable, AbiMismatch:
            it cannot work here; nothing was changed.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        backend, self.why = choose_backend(config.backend)
        _log.info("backend %s (%s)", backend.name, self.why)
        self.site: Site = survey(config, backend)
        self.store: Store = open_store(config.store)
        self.cluster = Cluster(self.store)
        self.mirror = Mirror(self.store)
        (config.run / "state").mkdir(parents=True, exist_ok=True)
        self._holders = config.run / "holders"
        self._holders.mkdir(exist_ok=True)
        self.backend: Backend = backend(self.site.context(config, backend))
        self.feed = Feed(self.backend)
        self.since = time.time()
        self._compiler = Compiler(config.host)
        #: What keeps the tables from being what the store says; by what it is about.
        self.trouble: dict[str, str] = {}
        self.tables: Tables | None = None
        self.attached: dict[int, Attachment] = {}
        self._attaching = 0
        self._lease = 0
        self._reported = 0
        self._renewed = 0.0
        self._lock = threading.RLock()
        self._stop = threading.Event()

    # Its life

    def start(self) -> None:
        """Register the host, adopt its endpoints, install the first tables.

        Raises:
            StoreUnreachable: the first time it has to be there.
        """
        with self._lock:
            self._register()
            self.mirror.catch_up()
            self._adopt()
            self._apply()
        self.feed.start()

    def run(self) -> None:
        """Follow the store until :meth:`stop`."""
        beat = watchdog_interval()
        beaten = tended = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if beat is not None and now - beaten >= beat / 2:
                notify("WATCHDOG=1", f"STATUS={self._summary()}")
                beaten = now
            try:
                self._renew(now)
                if now - tended >= 1:
                    self._tend()
                    tended = now
                for _ in self.store.watch("", self.mirror.revision, 0.25):
                    break
                self.sync()
                self.trouble.pop("store", None)
            except ConnectionError as error:
                if "store" not in self.trouble:
                    _log.warning("%s; the data path stays as it is", error)
                self.trouble["store"] = str(error)
                self._stop.wait(0.25)
            except SlimnetError as error:
                if str(error) != self.trouble.get("sync"):
                    _log.warning("%s", error)
                self.trouble["sync"] = str(error)
                self._stop.wait(0.25)
            except Exception as error:  # whatever the store holds, the agent stays
                _log.exception("unexpected")
                self.trouble["sync"] = f"{type(error).__name__}: {error}"
                self._stop.wait(1)
            else:
                self.trouble.pop("sync", None)

    def stop(self) -> None:
        """Make :meth:`run` return; may be called from a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Let go of everything; the data path goes on."""
        self._stop.set()
        self.feed.close()
        with self._lock:
            self.backend.close()
            self.store.close()

    # Following the store

    def sync(self, *, strict: bool = False) -> None:
        """Bring the tables to what the store says now.

        Args:
            strict: raise what keeps them from it.
        """
        with self._lock:
            if self.mirror.catch_up() or "tables" in self.trouble or "install" in self.trouble:
                self._apply()
            for what in ("tables", "install"):
                if strict and what in self.trouble:
                    raise BackendError(self.trouble[what])
            self._report()

    def _apply(self) -> None:
        """Compile and install; what fails leaves the last tables in force."""
        if self.mirror.binding:
            self._hinder("tables", "; ".join(self.mirror.binding))
            return
        state = self.mirror.state(self.site.host)
        try:
            tables, change = self._compiler.update(state)
        except Exception as error:
            _log.debug("compile", exc_info=True)
            self._hinder("tables", f"cannot compile: {type(error).__name__}: {error}")
            return
        self.trouble.pop("tables", None)
        names.write(self.config.run, state.namespaces, state.endpoints)
        self._install(tables, change)

    def _install(self, tables: Tables, change: Change | None) -> None:
        old = self.tables
        if old is None or "install" in self.trouble:
            change = None  # what the data path holds is not what the compiler compared with
        elif change is not None and _is_empty(change):
            return
        if old is not None:
            if tables.generation <= old.generation:  # another, younger store
                tables = attrs.evolve(tables, generation=old.generation + 1)
            if change is not None:
                change = attrs.evolve(
                    change,
                    base=old.generation,  # there may have been empty changes since
                    set=attrs.evolve(change.set, generation=tables.generation),
                )
        try:
            self.backend.install(tables, change)
        except Exception as error:
            _log.debug("install", exc_info=True)
            self._hinder("install", f"cannot install: {type(error).__name__}: {error}")
            return
        self.trouble.pop("install", None)
        self.tables = tables
        _log.debug("generation %d is in force", tables.generation)

    def _hinder(self, what: str, text: str) -> None:
        if self.trouble.get(what) != text:
            _log.error("%s; the last tables stay in force", text)
        self.trouble[what] = text

    def _report(self) -> None:
        """Tell the cluster up to which revision this host has followed."""
        behind = "tables" in self.trouble or "install" in self.trouble
        if behind or self._reported == self.mirror.followed:
            return
        revision = self.mirror.followed
        value = {"revision": revision, "generation": self.tables.generation if self.tables else 0}
        self.store.transact(
            put={f"installed/{self.config.host}": records.dump(value)}, lease=self._lease
        )
        self._reported = revision

    # The host and its lease

    def _register(self) -> None:
        self._lease = self.store.lease(self.config.lease)
        self.cluster.set_host(self.site.host, self._lease)
        self._renewed = time.monotonic()
        self._reported = 0

    def _renew(self, now: float) -> None:
        if now - self._renewed < self.config.lease / 4:
            return
        try:
            self.store.renew(self._lease)
        except NotFound:
            _log.warning("the lease of host %s ran out; registering again", self.config.host)
            self._register()
        self._renewed = now

    # Endpoints

    def attach(self, asked: Mapping[str, Any], holder: int | None) -> dict[str, Any]:
        """Attach an endpoint on this host; it can talk when this returns.

        Args:
            asked: ``network``, ``name`` and, where wanted, ``namespace``,
                ``address``, ``labels``, ``ports``, ``cgroup``.
            holder: the process whose end is the endpoint's, once its cgroup
                is empty too; ``None`` for an endpoint that stays.

        Raises:
            AlreadyExists: it is there and is not what was asked for, or lives.
        """
        asked = {key: value for key, value in asked.items() if value is not None}
        asked.setdefault("namespace", "default")
        network = self.cluster.network(asked["network"])
        with self._attachment_begins():
            held = self._held(asked)
            if held is not None:
                return self._answer(held, created=False)
            spec = {**asked, "host": self.config.host, "cgroup": str(self._place(asked))}
            if "ports" in spec:
                spec["ports"] = {key: tuple(value) for key, value in spec["ports"].items()}
            endpoint, _ = self.cluster.create_endpoint(spec)
            try:
                if holder is not None:
                    _write_holder(self._holders / str(endpoint.id), holder)
                with self._lock:
                    self.sync(strict=True)
                    self.attached[endpoint.id] = self.backend.attach(endpoint, network)
            except BaseException:
                self._forget(endpoint)
                raise
            return self._answer(endpoint, created=True)

    def detach(self, network: str, namespace: str, name: str, *, kill: bool) -> None:
        """Detach an endpoint and remove it.

        Args:
            kill: end its processes first.

        Raises:
            NotFound: there is none.
            InUse: it has processes.
            InvalidValue: it lives on another host.
        """
        endpoint = self.cluster.endpoint(network, namespace, name)
        if endpoint.host != self.config.host:
            if any(each.name == endpoint.host for each in self.cluster.hosts()):
                raise InvalidValue(
                    "endpoint.host", f"an endpoint of {self.config.host}", endpoint.host
                )
            self.cluster.remove_endpoint(endpoint)
            self.sync()
            return
        if kill:
            cgroup.kill(Path(endpoint.cgroup))
        with self._lock:
            self._detach(endpoint)
        self.sync()

    def _detach(self, endpoint: Endpoint) -> None:
        place = Path(endpoint.cgroup)
        if cgroup.populated(place):
            raise InUse(f"endpoint {endpoint.name} has processes in {place}")
        self.backend.detach(endpoint.id)
        self.attached.pop(endpoint.id, None)
        self.cluster.remove_endpoint(endpoint)
        (self._holders / str(endpoint.id)).unlink(missing_ok=True)
        if place.is_relative_to(self.site.cgroups):
            cgroup.remove(place)

    def _forget(self, endpoint: Endpoint) -> None:
        """Undo a failed attach as far as it came; the rest is :meth:`_tend`'s."""
        with self._lock, suppress(Exception):
            self._detach(endpoint)
            self.sync()

    def _held(self, asked: Mapping[str, Any]) -> Endpoint | None:
        """The endpoint that has the name, when it is what was asked for; an
        abandoned one is cleared away."""
        try:
            there = self.cluster.endpoint(asked["network"], asked["namespace"], asked["name"])
        except NotFound:
            return None
        title = f"endpoint {there.network}/{there.namespace}/{there.name}"
        if there.host != self.config.host:
            if any(each.name == there.host for each in self.cluster.hosts()):
                raise AlreadyExists(f"{title} is there, on host {there.host}")
            self.cluster.remove_endpoint(there)
            return None
        holder = self._holders / str(there.id)
        lives = cgroup.populated(Path(there.cgroup))
        if holder.exists():
            if lives or _holder_lives(holder):
                raise AlreadyExists(f"{title} runs already")
        elif there.id in self.attached and _same(asked, there):
            return there
        elif lives:
            raise AlreadyExists(f"{title} is there, not as asked for, and has processes")
        with self._lock:
            self._detach(there)
        return None

    def _place(self, asked: Mapping[str, Any]) -> Path:
        if "cgroup" not in asked:
            return self.site.cgroups / f"{asked['network']}.{asked['namespace']}.{asked['name']}"
        place = Path(asked["cgroup"])
        cgroup.check(place)
        for each in self.mirror.endpoints(self.config.host):
            other = Path(each.cgroup)
            if place.is_relative_to(other) or other.is_relative_to(place):
                raise InvalidValue(
                    "endpoint.cgroup", f"a cgroup apart from {each.name}'s", str(place)
                )
        return place

    def _answer(self, endpoint: Endpoint, *, created: bool) -> dict[str, Any]:
        attachment = self.attached[endpoint.id]
        return {
            "endpoint": records.encode(endpoint),
            "cgroup": str(attachment.cgroup),
            "netns": str(attachment.netns or f"/proc/{os.getpid()}/ns/net"),
            "hosts": str(names.path(self.config.run, endpoint.network, endpoint.namespace)),
            "created": created,
        }

    @contextmanager
    def _attachment_begins(self) -> Iterator[None]:
        """While one is in the making, its record is no orphan."""
        with self._lock:
            self._attaching += 1
        try:
            yield
        finally:
            with self._lock:
                self._attaching -= 1

    def _adopt(self) -> None:
        """Attach those endpoints of the store that live here, and let the others go."""
        networks = {each.name: each for each in self.mirror.state(self.site.host).networks}
        for endpoint in self.mirror.endpoints(self.config.host):
            if endpoint.id in self.attached or endpoint.network not in networks:
                continue
            try:
                if Path(endpoint.cgroup).is_dir():
                    network = networks[endpoint.network]
                    self.attached[endpoint.id] = self.backend.attach(endpoint, network)
                else:
                    _log.info("endpoint %s is gone: no cgroup", endpoint.name)
                    self._detach(endpoint)
            except SlimnetError as error:
                _log.error("endpoint %s: %s", endpoint.name, error)
                self.trouble[f"endpoint {endpoint.name}"] = str(error)
            else:
                self.trouble.pop(f"endpoint {endpoint.name}", None)

    def _tend(self) -> None:
        """Let go of what ended, adopt what nobody attached."""
        with self._lock:
            mine = {each.id: each for each in self.mirror.endpoints(self.config.host)}
            if not self._attaching:
                self._adopt()
                for endpoint in set(self.backend.status().endpoints) - set(mine):
                    with suppress(InUse):  # without a record it may do nothing at all
                        self.backend.detach(endpoint)
                        self.attached.pop(endpoint, None)
            for number, endpoint in mine.items():
                if number not in self.attached:
                    continue
                place = Path(endpoint.cgroup)
                holder = self._holders / str(number)
                abandoned = holder.exists() and not _holder_lives(holder)
                if not place.is_dir() or (abandoned and not cgroup.populated(place)):
                    _log.info("endpoint %s has ended", endpoint.name)
                    with suppress(InUse):
                        self._detach(endpoint)

    # Policies

    def set_policies(self, policies: list[Policy]) -> int:
        """Put policies in force, all at once; on this host when this returns.

        Raises:
            CannotEnforce: one is mandatory, and this host's backend is cooperative.
        """
        for policy in policies:
            if policy.mandatory and not self.backend.enforcing:
                raise CannotEnforce(
                    f"policy {policy.title} is mandatory; backend {self.backend.name} "
                    "cannot enforce it against a hostile process"
                )
        revision = self.cluster.set_policies(policies)
        self.sync(strict=True)
        return revision

    # What it knows

    def _summary(self) -> str:
        if self.trouble:
            return "; ".join(self.trouble.values())
        generation = self.tables.generation if self.tables else 0
        return f"{len(self.attached)} endpoints, generation {generation}"

    def status(self) -> dict[str, Any]:
        """What is in force here, and what stands in its way."""
        status = self.backend.status()
        return {
            "instance": self.config.instance,
            "host": self.config.host,
            "address": str(self.site.host.address),
            "interface": self.site.interface,
            "pid": os.getpid(),
            "since": self.since,
            "backend": self.backend.name,
            "why": self.why,
            "enforcing": self.backend.enforcing,
            "wires": records.encode(self.site.host.wires),
            "store": self.config.store,
            "revision": self.mirror.revision,
            "generation": status.generation,
            "attached": sorted(status.endpoints),
            "counters": records.encode(status.counters),
            "abi": status.abi,
            "detail": records.encode(status.detail),
            "ready": not self.trouble and self.tables is not None,
            "trouble": list(self.trouble.values()) + list(self.mirror.problems.values()),
        }

    def explain(self, **question: Any) -> dict[str, Any]:
        """What the policy says of a flow, and why."""
        from slimnet.policy import explain

        self.sync()
        state = self.mirror.state(self.site.host)
        answer: dict[str, Any] = records.encode(explain(state, **question))
        return answer

    def installed(self) -> dict[str, Any]:
        """Host name to the revision that it follows, of the hosts that are alive."""
        reports = {
            key.partition("/")[2]: records.load(key, value, lambda report: int(report["revision"]))
            for key, (value, _) in self.store.list("installed/")[0].items()
        }
        return {each.name: reports.get(each.name, 0) for each in self.cluster.hosts()}

    def wait(self, revision: int | None, timeout: float) -> dict[str, Any]:
        """Wait until every live host has followed the store to ``revision`` (the
        newest one now, by default).

        Raises:
            SlimnetError: some have not, after ``timeout`` seconds; says which.
        """
        if revision is None:
            self.sync()
            revision = self.mirror.followed
        deadline = time.monotonic() + timeout
        while True:
            installed = self.installed()
            behind = sorted(name for name, at in installed.items() if at < revision)
            if not behind:
                return {"revision": revision, "installed": installed}
            if time.monotonic() > deadline:
                late = ", ".join(f"{name} at {installed[name]}" for name in behind)
                raise SlimnetError(f"not everywhere at revision {revision}: {late}")
            time.sleep(0.02)


def _is_empty(change: Change) -> bool:
    new = change.set
    return not (
        new.addresses
        or new.endpoints
        or new.cidrs
        or new.policy
        or new.rules
        or change.gone_addresses
        or change.gone_endpoints
        or change.gone_cidrs
        or change.gone_policy
    )


def _same(asked: Mapping[str, Any], there: Endpoint) -> bool:
    """Whether ``there`` is what was asked for; what was not said is as it is."""
    address = asked.get("address")
    ports = {key: tuple(value) for key, value in asked.get("ports", there.ports).items()}
    return (
        (address is None or IPAddress(str(address)) == there.address)
        and dict(asked.get("labels", there.labels)) == dict(there.labels)
        and ports == dict(there.ports)
        and str(asked.get("cgroup", there.cgroup)) == there.cgroup
    )


def _write_holder(file: Path, pid: int) -> None:
    file.write_text(f"{pid} {_started(pid)}\n")


def _holder_lives(file: Path) -> bool:
    try:
        pid, started = file.read_text().split()
    except (OSError, ValueError):
        return False
    return _started(int(pid)) == int(started)


def _started(pid: int) -> int:
    """When a process started, in ticks since boot (proc_pid_stat(5)); 0: no such."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *rest = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(rest[18])
