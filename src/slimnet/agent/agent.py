# SPDX-License-Identifier: Apache-2.0
"""One host's agent: keeps its data path at what the store says.

::

    store --watch--> Mirror --State--> Compiler --Tables--> Backend.install()
      ^                                                          |
      '---- hosts/<host>, and when asked ~installed/<host> <-----'

It holds nothing that is not in the store or in the data path, so that it may be
killed at any moment; started again it adopts what runs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import attrs
from netaddr import IPAddress

from slimnet import records, wires
from slimnet.abc import Backend, Upgrade
from slimnet.agent import instance
from slimnet.agent.admission import admit, check_free, concerning, publishers, with_documents
from slimnet.agent.endpoints import Endpoints
from slimnet.agent.feed import Feed
from slimnet.agent.inquiry import Inquiries
from slimnet.agent.installer import Installer
from slimnet.agent.keyholder import KeyHolder
from slimnet.agent.listening import cut_off
from slimnet.agent.mirror import Mirror
from slimnet.agent.names import Names
from slimnet.agent.notify import notify, watchdog_interval
from slimnet.agent.obstacles import firewall, obstacles
from slimnet.agent.site import Site, able, moved, ranges, survey, taken
from slimnet.cluster import Cluster, keys
from slimnet.cluster.keyring import Keyring, fingerprint
from slimnet.cluster.own import OwnStore, store_id
from slimnet.cluster.progress import await_hosts, want
from slimnet.cluster.ranges import overlapped
from slimnet.config import Config
from slimnet.exceptions import (
    BackendError,
    ConfigError,
    InvalidValue,
    NotFollowed,
    NotFound,
    SlimnetError,
    StoreUnreachable,
)
from slimnet.model import Host, HostState, Protocol, Wire
from slimnet.place import Place
from slimnet.plugins import open_store
from slimnet.policy import Document, PolicyWarning, State, uncarried
from slimnet.policy import check as policy_check
from slimnet.trusted import make_trusted

__all__ = ["Agent"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after which a host says again that it is there, for those who ask when it was
#: seen last. Each is a change of the store, where to renew a lease is none.
_SEEN = 60.0
#: Seconds that hosts have to say what they have in force, for who lists them.
_PATIENCE = 1.0
#: Seconds until the store is asked again that did not answer, or refused: the first time, and at
#: most. Each time it is read whole, and it may be that very load which it cannot bear.
_AGAIN, _AGAIN_MAX = 0.25, 2.0


class Agent:
    """The agent of one host: registers it and starts or adopts its data path.

    Args:
        config: of this host.
        upgrade: what is to become of a data path of another contract.

    Raises:
        ConfigError: a value is wrong; nothing was changed.
        CapabilityMissing: the machine lacks something; nothing was changed.
        BackendUnavailable: the backend cannot run here; nothing was changed.
        AbiMismatch: a data path of another ABI runs; it goes on.
        ForeignDataPath: one of another backend or store runs; it goes on.
        InUse: the instance has an agent.
        StoreUnreachable: the first time it has to be there.
    """

    def __init__(self, config: Config, upgrade: Upgrade = Upgrade.NO) -> None:
        self.config = config
        self._held = ExitStack()
        try:
            self._begin(config, upgrade)
        except BaseException:
            self._held.close()
            raise

    def _begin(self, config: Config, upgrade: Upgrade) -> None:
        self._held.enter_context(instance.hold(config))
        there = instance.running(config)
        choice = instance.choose(config, there)
        backend, self.why = choice.kind, choice.why
        self.site: Site = survey(config, backend, choice.capabilities)
        self._ports = backend.ports(config.options.get(backend.name, {}))
        if backend.name not in there:  # one that runs goes on, and status says so
            self._refuse_cut_off(backend.name)
        store = self._held.enter_context(open_store(config.store, config.store_options))
        instance.check_store(config, store_id(store), there.get(backend.name))
        # Before it says that it is there: who has been away may have other keys to take.
        self.keys = KeyHolder(config.key_file, config.host)
        with suppress(InvalidValue):  # the mirror names it
            self.keys.follow(Keyring.read(store)[0])
        self._take_keys()
        self.store = OwnStore(store)
        self.cluster = Cluster(self.store)
        self.mirror = Mirror(self.store, self.store.id)
        self.inquiries = Inquiries(
            self.store,
            config.host,
            {"ask": self._decide, "listens": self._listens, "obstacles": self._obstacles},
        )
        self.since = time.time()
        #: The revision that was wanted, and what of it this host said that it has in force.
        self._reported = (0, 0)
        #: The store's revision whose tables are in force; 0 before the first.
        self._installed = 0
        self._lock = threading.RLock()
        self._stop = threading.Event()
        #: What the store, or what it holds, does to us; empty when all is well.
        self._trouble = ""
        #: Why the store does not answer; empty when it does.
        self.stale = ""
        #: Why the data path's housekeeping failed; empty when it did not.
        self._untended = ""
        #: Who listens where the data path cuts them off; empty where nobody does.
        self._cut_off = ""
        #: What of the host's underlay is not as it was at the start; empty when all is.
        self._moved = ""
        self._register()
        make_trusted(config.run / "state")
        context = self.site.context(config, backend, self.store.id, upgrade)
        self.backend: Backend = backend(context)
        self._held.callback(self.backend.close)
        shares = self.backend.place("n.n.n", Place()).netns is None
        host = able(self.site.host, self.backend.capabilities, self.keys.name)
        self._tell(attrs.evolve(host, shares=shares))
        instance.note(config, backend.name)
        self.feed = Feed(self.backend)
        self.names = Names(config.run)
        self._held.callback(self.names.close)
        self.installer = Installer(self.backend, self.site.host, self.names)
        self.endpoints = Endpoints(
            *(self.site, config.run, self.backend, self.cluster, self.mirror, self.names),
            self.sync,
        )

    def start(self) -> None:
        """Adopt the endpoints that run, install the first tables, read events."""
        with self._lock:
            self.mirror.catch_up()
            self._follow_keys()
            self.endpoints.adopt()
            self.installer.apply(self.mirror)
            self._report()
        self._look_for_cut_off()
        self.feed.start()

    def run(self) -> None:
        """Follow the store until :meth:`stop`."""
        answering = threading.Thread(target=self.answer, name="slimnet-answers", daemon=True)
        answering.start()
        try:
            self._run()
        finally:
            self._stop.set()
            answering.join()

    def answer(self) -> None:
        """Answer the questions of other hosts until :meth:`stop`."""
        while not self._stop.is_set():
            try:
                if self.inquiries.wait(0.25):
                    with self._lock:
                        self.sync()  # what was written before the question is in force
                        self.inquiries.answer()
            except StoreUnreachable as error:  # the loop says so
                _log.debug("no questions: %s", error)
                self._stop.wait(_AGAIN)
            except Exception:  # noqa: BLE001  # the agent stays, whatever is asked
                _log.exception("questions of other hosts")
                self._stop.wait(1)

    def _run(self) -> None:
        beat = watchdog_interval()
        beaten = tended = 0.0
        again = _AGAIN
        while not self._stop.is_set():
            now = time.monotonic()
            if beat is not None and now - beaten >= beat:
                notify("WATCHDOG=1", f"STATUS={self._summary()}")
                beaten = now
            try:
                self._tend()
                self._renew(now)
                if now - tended >= 1:
                    self._moved = moved(self.site)
                    self.endpoints.tend()
                    tended = now
                self.mirror.wait(0.25)
                with self._lock:
                    self._settle(self.mirror.take_told())
                if self.mirror.remade:
                    _log.info("the store was restored; registering again")
                    self._register()
                    self.mirror.remade = False
            except StoreUnreachable as error:
                self.mirror.forget()  # what answers next may be another store, or a backup
                self.stale = str(error)
                self._hinder(str(error))
                self._stop.wait(again)
                again = min(2 * again, _AGAIN_MAX, self.config.lease / 4)
            except SlimnetError as error:
                self._hinder(str(error))
                self._stop.wait(0.25)
            except Exception as error:  # noqa: BLE001  # the agent stays, whatever happens
                text = f"{type(error).__name__}: {error}"
                if text != self._trouble:
                    _log.exception("unexpected")
                self._hinder(text)
                self._stop.wait(1)
            else:
                again = _AGAIN
                self.stale = ""
                self._hinder("")

    def stop(self) -> None:
        """Make :meth:`run` return; a signal handler may call it."""
        self._stop.set()

    def close(self) -> None:
        """Let go of everything; the data path goes on."""
        self._stop.set()
        self.feed.close()
        with self._lock:
            self._held.close()

    def sync(self) -> str:
        """Bring the tables to what the store says now; answers what hinders it."""
        with self._lock:
            return self._settle(self.mirror.catch_up())

    def _settle(self, changed: bool) -> str:  # noqa: FBT001  # of the mirror
        """Bring the tables to what the mirror holds; answers what hinders it."""
        if changed or self.installer.trouble:
            self.installer.apply(self.mirror)
        self._follow_keys()
        self._report()
        return self.installer.trouble

    def sync_strictly(self) -> None:
        """Like :meth:`sync`, but raises what keeps the tables from being in force.

        Raises:
            BackendError: says what that is.
        """
        hindrance = self.sync()
        if hindrance:
            raise BackendError(f"host {self.config.host}: {hindrance}")

    def known(self, asked: Callable[[], T], copied: Callable[[], T]) -> T:
        """What the store says; where it does not answer, or is another one, what this
        agent knew before. :attr:`stale` says so then."""
        if not self.stale:
            try:
                return asked()
            except StoreUnreachable as error:
                self.stale = str(error)
        return copied()

    def hosts(self) -> list[HostState]:
        """All hosts that are known; where the store does not answer, those that lived."""

        def copied() -> list[HostState]:
            return [
                HostState(
                    each.name, each, lost=False, endpoints=len(self.mirror.endpoints(each.name))
                )
                for each in self.mirror.hosts()
            ]

        def asked() -> list[HostState]:
            with suppress(NotFollowed):  # those are shown as they last said
                self._await(self.mirror.changed, _PATIENCE)
            return self.cluster.host_states(self.mirror.changed)

        return self.known(asked, copied)

    def apply(self, documents: Sequence[Document]) -> tuple[list[Document], int]:
        """Put documents in force, all at once; on this host when this returns.

        Returns:
            The documents, with the addresses of services, and the store's revision.

        Raises:
            CannotEnforce: a policy is mandatory, and a host of an endpoint that it
                selects has a backend that is cooperative.
            CapabilityMissing: the host of a port's or a limit's endpoint has none.
            InUse: the host itself listens on a port to be published.
            InvalidValue: it has not the address on which it is to be published.
            AgentUnreachable: a host that has to be asked did not answer.
        """
        state = self._admit(documents)
        for port, host in publishers(state, documents, state.endpoints):
            address = None if port.address is None else str(port.address)
            try:
                asked: dict[str, Any] = {"address": address, "port": port.port}
                if port.protocol is not Protocol.TCP:  # which earlier versions take for granted
                    asked["protocol"] = port.protocol
                if port.held:  # likewise
                    asked["held"] = sorted(port.held)
                there = self.inquiries.ask(host, "listens", **asked)
            except InvalidValue as error:
                field = f"{port.source.prefix}{port.title}: {error.field}"
                raise InvalidValue(field, error.wanted, error.got) from error
            check_free(port, host, there)
        made, revision = self.cluster.documents.apply(documents, self._admit)
        self.sync_strictly()
        return made, revision

    def tell_ranges(self) -> None:
        """Tell the others what this host is by now, and what it has on its interfaces."""
        self._tell(attrs.evolve(self.site.host, ranges=ranges(), taken=taken()))

    def check(self, documents: Sequence[Document]) -> list[PolicyWarning]:
        """What is surely not meant in these, were they applied; nothing is changed."""
        self.sync()
        titles = {each.title for each in documents}
        state = concerning(self.mirror.state(self.site.host), documents)
        return [each for each in policy_check(state) if each.policy in titles]

    def status(self) -> dict[str, Any]:
        """What is in force here, and what stands in its way."""
        self.known(self.store.look, lambda: None)
        status = self.backend.status()
        trouble = self._troubles()
        return {
            "instance": self.config.instance,
            "host": self.config.host,
            "address": str(self.site.host.address),
            "interface": self.site.interface,
            "pid": os.getpid(),
            "since": self.since,
            "backend": self.backend.name,
            "why": self.why,
            "enforcing": self.site.host.enforcing and not self.endpoints.unpoliced,
            "features": records.encode(self.site.host.features),
            "needs": records.encode(self.backend.capabilities.needs),
            "takes": records.encode(self.backend.capabilities.takes),
            "wires": records.encode(self.site.host.wires),
            "store": self.config.store,
            "cluster": self.store.id,
            "key_file": str(self.config.key_file),
            "stale": self.stale,
            "revision": self.mirror.followed,
            "installed": self._installed,
            "generation": status.generation,
            "attached": sorted(status.endpoints),
            "counters": records.encode(status.counters),
            "abi": status.abi,
            "detail": records.encode(status.detail),
            "ready": not trouble,
            "trouble": trouble,
            "warnings": [
                *map(str, uncarried(self.mirror.state(self.site.host))),
                *self._unknown(),
                *self.names.warnings(),
            ],
        }

    def wait(
        self, revision: int | None, timeout: float, hosts: Iterable[str] | None = None
    ) -> dict[str, int]:
        """Wait until hosts have followed the store to ``revision``; by default to where
        it is now.

        Args:
            revision: of the store.
            timeout: seconds.
            hosts: their names; by default every live host.

        Returns:
            host name to the revision that it follows.

        Raises:
            NotFound: one of ``hosts`` does not live.
            NotFollowed: some have not, after ``timeout`` seconds; says which.
        """
        if revision is None:
            self.sync()
            revision = self.mirror.changed
        return self._await(revision, timeout, hosts)

    def _await(
        self, revision: int, timeout: float, hosts: Iterable[str] | None = None
    ) -> dict[str, int]:
        want(self.store, revision)
        self.sync()  # this one says it at once
        return await_hosts(self.store, revision, timeout, hosts)

    def _admit(self, documents: Sequence[Document]) -> State:
        """Refuse what cannot hold; the state that it becomes otherwise."""
        self.sync()
        state = with_documents(self.mirror.state(self.site.host), documents)
        admit(state, documents, state.endpoints)
        return state

    def _decide(self, flow: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the data path here answers to a flow; ``None`` where it cannot."""
        asked = records.flow(flow)
        network = next(
            (each for each in self.mirror.networks() if each.name == asked.network), None
        )
        decision = None if network is None else self.backend.ask(asked, network)
        answer: dict[str, Any] | None = records.encode(decision)
        return answer

    def _listens(
        self,
        address: str | None,
        port: int,
        protocol: int = Protocol.TCP,
        held: Iterable[int] = (),
    ) -> str | None:
        """Where this host itself listens, or its data path does."""
        if protocol == Protocol.TCP and self.backend.claims(port):
            return str(self.site.host.address)
        where = None if address is None else IPAddress(address)
        return self.endpoints.listener(where, port, Protocol(protocol), held)

    def _obstacles(self, peer: str, wire: str) -> list[str]:
        """What on this host stands between it and another one, that it talks to by a wire."""
        by = Wire(wire)
        context = self.backend.context
        openings = self.backend.openings(context.options).get(by, ())
        here = (firewall(), context.interface, context.host.address)
        return [str(each) for each in obstacles(*here, IPAddress(peer), by, openings)]

    def _tend(self) -> None:
        """Housekeeping; where it fails, the rest goes on."""
        try:
            self.backend.tend()
        except BackendError as error:
            if str(error) != self._untended:
                _log.warning("%s", error)
            self._untended = str(error)
        except Exception as error:  # noqa: BLE001  # whatever a plugin does
            text = f"housekeeping: {type(error).__name__}: {error}"
            if text != self._untended:
                _log.exception("housekeeping failed")
            self._untended = text
        else:
            self._untended = ""

    def _take_keys(self) -> None:
        key = self.keys.name if self.site.host.key else ""
        host = attrs.evolve(self.site.host, key=key)
        self.site = attrs.evolve(self.site, keys=self.keys.keys, host=host)

    def _follow_keys(self) -> None:
        """Bring this host's keys to what the store, or its file, says now."""
        self.keys.follow(self.mirror.keyring, lambda found: self.backend.rekey(*found))
        self.keys.tell(self.store, self._lease)
        if self.site.keys != self.keys.keys:
            names = ", ".join(fingerprint(each) for each in self.keys.keys)
            _log.info("keys, the first of which signs: %s", names)
            self.site = attrs.evolve(self.site, keys=self.keys.keys)
        if self.site.host.key:
            self._tell(attrs.evolve(self.site.host, key=self.keys.name))

    def _register(self) -> None:
        self.keys.forget()
        self._lease = self.store.lease(self.config.lease)
        self.cluster.set_host(self.site.host, self._lease)
        self._renewed = time.monotonic()
        self._said = 0.0
        self._reported = (0, 0)

    def _renew(self, now: float) -> None:
        if now - self._renewed < self.config.lease / 4:
            return
        try:
            self.store.renew(self._lease)
        except NotFound:
            _log.warning("the lease of host %s ran out; registering again", self.config.host)
            self._register()
        self._renewed = now
        if now - self._said >= _SEEN:
            self._say()
        self.tell_ranges()
        self._look_for_cut_off()

    def _refuse_cut_off(self, backend: str) -> None:
        """Take no ports from a service of the host that runs.

        Raises:
            ConfigError: one listens on a port that the data path would take for itself.
        """
        for option, ports in self._ports.items():
            if there := cut_off(ports, (), self.site.host.address):
                wanted = f"{len(ports)} ports on which this host does not listen itself"
                raise ConfigError(f"backend.{backend}.{option}", wanted, there)

    def _look_for_cut_off(self) -> None:
        """Whether a service of the host has begun to listen on such a port since."""
        found = [
            f"nothing from outside reaches port {there}: backend {self.backend.name} has"
            f" TCP ports {ports[0]} to {ports[-1]} for itself ({option})"
            for option, ports in self._ports.items()
            if (there := cut_off(ports, self.endpoints.cgroups(), self.site.host.address))
        ]
        self._cut_off = "; ".join(found)

    def _say(self) -> None:
        """Write down that this host was here."""
        self.cluster.set_seen(self.site.host, self._installed, self._generation())
        self._said = time.monotonic()

    def _generation(self) -> int:
        """Of the tables in force; 0 before the first of this process."""
        tables = self.installer.tables
        return 0 if tables is None else tables.generation

    def _tell(self, host: Host) -> None:
        """The others that this is what the host is now."""
        if host != self.site.host:
            try:
                self.cluster.set_host(host, self._lease)
                self.site = attrs.evolve(self.site, host=host)
            except NotFound:  # a busy machine takes longer to start a data path than a lease lasts
                self.site = attrs.evolve(self.site, host=host)
                self._register()

    def _report(self) -> None:
        """Tell the cluster what this host has in force, where somebody wants to know: once
        when it is asked, and once when it is that far, if it was not."""
        if not self.installer.trouble:
            self._installed = self.mirror.followed
        wanted, installed = self.mirror.wanted, self._installed
        if (wanted, min(wanted, installed)) == self._reported:
            return
        self.cluster.set_installed(self.site.host, installed, self._lease, self._generation())
        self._reported, self._said = (wanted, min(wanted, installed)), time.monotonic()

    def _hinder(self, text: str) -> None:
        if text and text != self._trouble:
            _log.warning("%s; the data path stays as it is", text)
        elif self._trouble and not text:
            _log.info("following the store again")
        self._trouble = text

    def _troubles(self) -> list[str]:
        found = [
            self.stale,
            self._trouble,
            self._untended,
            self._cut_off,
            self._moved,
            self.installer.trouble,
            self.keys.trouble,
            *self.endpoints.trouble.values(),
            *self.mirror.problems.values(),
            self._strangers(),
            *self._overlaps(),
            wires.apart(self.site.host, self.mirror.hosts()),
        ]
        return list(dict.fromkeys(each for each in found if each))

    def _strangers(self) -> str:
        """The hosts with which none of our connections is accelerated, since their key
        is another; each refuses what the other sends."""
        here = self.site.host
        others = [each for each in self.mirror.hosts() if each.differs_in_key(here)]
        if not others or self.keys.trouble:
            return ""
        names = ", ".join(f"{each.name} ({each.key})" for each in others)
        return (
            f"{here.name} ({here.key}) has not the key of {names}: no connection between them"
            f" is possible; copy {self.config.key_file} from one host to the others and"
            " start their agents again"
        )

    def _unknown(self) -> Iterator[str]:
        """What the store holds that this version knows nothing of."""
        if found := self.mirror.unknown:
            yield f"the store holds what this version leaves alone: {keys.named(found)}"

    def _overlaps(self) -> Iterator[str]:
        """The networks into which something of this host has come since."""
        for network in self.mirror.networks():
            for cidr in network.cidrs:
                if found := overlapped(cidr, self.site.host):
                    yield (
                        f"network {network.name}: its range {cidr} overlaps {found}: nobody"
                        " here reaches both; give one of the two another range"
                    )

    def _summary(self) -> str:
        summary = f"{len(self.endpoints.attached)} endpoints, generation {self._generation()}"
        return "; ".join([*self._troubles(), summary])
