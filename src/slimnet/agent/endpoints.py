# SPDX-License-Identifier: Apache-2.0
"""The endpoints of one host: attached, adopted after a restart, and let go."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from netaddr import AddrFormatError, IPAddress

from slimnet.abc import Backend, Revision
from slimnet.agent.admission import admit, check_free, publishers
from slimnet.agent.holder import Holders
from slimnet.agent.listening import is_own, listener
from slimnet.agent.mirror import Mirror
from slimnet.agent.names import Names
from slimnet.agent.site import Site
from slimnet.attached import PlacedEndpoint
from slimnet.cluster import Cluster
from slimnet.exceptions import (
    AlreadyExists,
    BackendError,
    CapabilityMissing,
    Conflict,
    InUse,
    InvalidValue,
    StoreUnreachable,
)
from slimnet.linux import cgroup
from slimnet.model import Endpoint, Protocol
from slimnet.place import Life, Place
from slimnet.policy import State
from slimnet.resolver import address

__all__ = ["Endpoints"]

_log = logging.getLogger(__name__)


class Endpoints:
    """Those that live on this host.

    Args:
        site: this host.
        run: the instance's directory.
        backend: what attaches them.
        cluster: where they are written down.
        mirror: what of it this host has read.
        names: their hosts files and resolvers.
        sync: brings the tables to what the store says; answers what hinders it.
    """

    def __init__(
        self,
        site: Site,
        run: Path,
        backend: Backend,
        cluster: Cluster,
        mirror: Mirror,
        names: Names,
        sync: Callable[[], str],
    ) -> None:
        self._site = site
        self._names = names
        self._backend = backend
        self._cluster = cluster
        self._mirror = mirror
        self._sync = sync
        self._holders = Holders(run / "holders")
        # Held from an endpoint's record in the store to its attachment, so that whoever looks
        # for records without an attachment takes none that is just being made for one.
        self._changing = threading.RLock()
        #: Endpoint id to where it is attached.
        self.attached: dict[int, Place] = {}
        #: Endpoint id to why it could not be adopted or let go.
        self.trouble: dict[int, str] = {}
        #: Those among them whose processes no data path of ours polices.
        self.unpoliced: set[int] = set()

    def attach(self, asked: Mapping[str, Any], holder: int | None) -> PlacedEndpoint:
        """Attach an endpoint; it can talk when this returns.

        Args:
            asked: ``network``, ``name`` and, where wanted, ``namespace``,
                ``address``, ``labels``, ``ports``, ``cgroup``, ``netns``, ``closed``.
            holder: the process with whose end the endpoint goes, once its
                cgroup is empty too; ``None`` for one that stays.

        Raises:
            AlreadyExists: it is there and is not what was asked for, or lives.
            CannotEnforce, CapabilityMissing, InUse: what is written for it cannot
                hold on this host.
        """
        asked = dict(asked)
        for needed in ("network", "name"):
            if not isinstance(asked.get(needed), str):
                raise InvalidValue(f"endpoint.{needed}", "a name", asked.get(needed))
        if asked.get("address") is not None:
            asked["address"] = _address(asked["address"])
        asked.setdefault("namespace", "default")
        network = self._cluster.network(asked["network"])
        with self._changing:
            held = self._held(asked)
            if held is not None:
                if held.netns or held.cgroup:  # the path may name another by now
                    place = self._backend.attach(held, network)
                    self._names.add(held, place)
                return self.placed(held)
            place = self._place(asked)
            spec = {
                **asked,
                "host": self._site.host.name,
                "cgroup": str(place.cgroup or ""),
                # One that the backend makes is its own affair; another may serve the rest.
                "netns": asked.get("netns", ""),
                "closed": place.closed,
            }
            if "ports" in asked:
                spec["ports"] = {key: _port(value) for key, value in asked["ports"].items()}
            endpoint, _ = self._cluster.create_endpoint(spec, self._admit)
            try:
                if holder is not None:
                    self._holders.put(endpoint.id, holder)
                hindrance = self._sync()
                if hindrance:
                    raise BackendError(f"host {self._site.host.name}: {hindrance}")
                place = self._backend.attach(endpoint, network)
                self._names.add(endpoint, place)
                self.attached[endpoint.id] = place
            except BaseException:
                self._undo(endpoint)
                raise
            return self.placed(endpoint, created=True)

    def find(self, network: str, namespace: str, name: str) -> PlacedEndpoint:
        """An endpoint that lives on this host.

        Raises:
            NotFound: there is none of that name.
            InvalidValue: it lives on another host.
            BackendError: it is not attached; says why.
        """
        endpoint = self._cluster.endpoint(network, namespace, name)
        here = self._site.host.name
        if endpoint.host != here:
            raise InvalidValue("endpoint.host", f"an endpoint of {here}", endpoint.host)
        if endpoint.id not in self.attached:
            why = self.trouble.get(endpoint.id, "it is about to be, or to go")
            raise BackendError(f"endpoint {endpoint.path} is not attached: {why}")
        return self.placed(endpoint)

    def label(
        self,
        network: str,
        namespace: str,
        name: str,
        labels: Mapping[str, str | None],
        *,
        overwrite: bool,
    ) -> tuple[Endpoint, Revision]:
        """Give an endpoint, of whatever host, other labels; see
        :meth:`slimnet.cluster.Cluster.label_endpoint`.

        Raises:
            CannotEnforce, CapabilityMissing: with these labels it would be subject to what
                cannot hold on its host.
        """
        return self._cluster.label_endpoint(
            (network, namespace, name), labels, self._state_with, overwrite=overwrite
        )

    def listener(
        self,
        address: IPAddress | None,
        port: int,
        protocol: Protocol = Protocol.TCP,
        held: Iterable[int] = (),
    ) -> str | None:
        """Where this host itself listens, no endpoint of it, on a port of TCP or UDP; with no
        socket of those that are ``held`` for one.

        Raises:
            InvalidValue: it has no such address.
        """
        if address is not None and not is_own(address):
            wanted = f"an address of host {self._site.host.name}"
            raise InvalidValue("spec.address", wanted, str(address))
        own = {*self._backend.holds(), *held}
        return listener(address, port, self.cgroups(), own, protocol)

    def cgroups(self) -> list[Path]:
        """Those of attached endpoints."""
        return [each.cgroup for each in list(self.attached.values()) if each.cgroup is not None]

    def detach(self, network: str, namespace: str, name: str, *, kill: bool) -> None:
        """Detach an endpoint and remove it; of a lost host, only remove it.

        Args:
            network: its network.
            namespace: its namespace.
            name: its name.
            kill: end its processes first.

        Raises:
            NotFound: there is none.
            InUse: it has processes.
            InvalidValue: it lives on another host.
        """
        endpoint = self._cluster.endpoint(network, namespace, name)
        here = self._site.host.name
        if endpoint.host != here:
            if self._is_alive(endpoint.host):
                raise InvalidValue("endpoint.host", f"an endpoint of {here}", endpoint.host)
            self._cluster.remove_endpoint(endpoint)
        else:
            if kill and endpoint.cgroup:
                cgroup.kill(Path(endpoint.cgroup))
            elif kill:
                self._backend.kill(endpoint.full_name)
            with self._changing:
                self._let_go(endpoint)
        self._sync()

    def placed(self, endpoint: Endpoint, *, created: bool = False) -> PlacedEndpoint:
        """Where the processes of an attached endpoint belong."""
        place = self.attached[endpoint.id]
        place = attrs.evolve(
            place,
            netns=place.netns or Path(f"/proc/{os.getpid()}/ns/net"),
            mounts={**self._names.files(endpoint), **place.mounts},
        )
        return PlacedEndpoint(endpoint, place, created)

    def adopt(self) -> None:
        """Attach those endpoints of the store that live here; those whose place
        is gone go. One with processes is only adopted where the data path has it:
        what they opened without it, it does not know."""
        self._adopt(self._backend.status().endpoints)

    def _adopt(self, known: frozenset[int]) -> None:
        """The same, of those that the data path has."""
        networks = {each.name: each for each in self._mirror.networks()}
        for number in self.attached.keys() - known:  # somebody took it from the data path
            del self.attached[number]
        unpoliced = set()
        for endpoint in self._mirror.endpoints(self._site.host.name):
            if endpoint.id in self.attached or endpoint.network not in networks:
                continue
            with self._noting(endpoint.id, endpoint.name):
                life = self._life(endpoint)
                if life is Life.GONE:
                    _log.info("endpoint %s is gone: it has no place", endpoint.name)
                    self._let_go(endpoint)
                    continue
                if endpoint.id not in known and life is Life.BUSY:
                    unpoliced.add(endpoint.id)
                    raise BackendError(
                        f"processes in {endpoint.cgroup or endpoint.netns} that the data path"
                        " does not have: stop them"
                    )
                place = self._backend.attach(endpoint, networks[endpoint.network])
                self._names.add(endpoint, place)
                self.attached[endpoint.id] = place
                _log.info("endpoint %s is adopted", endpoint.name)
        self.unpoliced = unpoliced

    def tend(self) -> None:
        """Let go of what ended, adopt what nobody attached. Not while an endpoint
        is being attached or detached: then it is done the next time."""
        if not self._changing.acquire(blocking=False):
            return
        try:
            mine = {each.id: each for each in self._mirror.endpoints(self._site.host.name)}
            known = self._backend.status().endpoints
            for number in known - mine.keys():
                with self._noting(number, str(number)):
                    self._backend.detach(number)
                    self.attached.pop(number, None)
                    self._names.remove(number)
                    self._holders.drop(number)
            self._adopt(known)
            for number, endpoint in mine.items():
                if number in self.attached and self._has_ended(endpoint):
                    _log.info("endpoint %s has ended", endpoint.name)
                    with self._noting(number, endpoint.name):
                        self._let_go(endpoint)
        finally:
            self._changing.release()

    @contextmanager
    def _noting(self, number: int, name: str) -> Iterator[None]:
        """What one endpoint's trouble is, so that it is not the others' too."""
        try:
            yield
        except StoreUnreachable:
            raise
        except InUse:
            # The store no longer has this endpoint, but its cgroup has processes. No error:
            # the installed tables do not know it, so everything that these try is refused.
            self.trouble.pop(number, None)
        except Exception as error:  # noqa: BLE001  # whatever a plugin does
            text = f"endpoint {name}: {error}"
            if self.trouble.get(number) != text:
                _log.error("%s", text)  # once, and in one line
            self.trouble[number] = text
        else:
            self.trouble.pop(number, None)

    def _life(self, endpoint: Endpoint) -> Life:
        return self._backend.life(endpoint.full_name, endpoint.place)

    def _has_ended(self, endpoint: Endpoint) -> bool:
        life = self._life(endpoint)
        if life is Life.GONE:
            return True
        return self._holders.lives(endpoint.id) is False and life is Life.IDLE

    def _admit(self, endpoint: Endpoint) -> None:
        """Refuse what could not be held to what is written for it, or has a port that this
        host itself listens on.

        Raises:
            Conflict: its id is to be drawn again.
        """
        resolver = address(endpoint.id)
        if any(address(each) == resolver for each in self.attached):
            raise Conflict(f"endpoint {endpoint.id} would share its resolver's address")
        state = self._state_with(endpoint)
        for document, host in publishers(state, state.published, [endpoint]):
            there = self.listener(document.address, document.port, document.protocol, document.held)
            check_free(document, host, there)

    def _state_with(self, endpoint: Endpoint) -> State:
        """The state that it becomes with this endpoint as it is here; refuses one that could
        not be held to what is written for it."""
        self._sync()
        state = self._mirror.state(self._site.host)
        others = (each for each in state.endpoints if each.id != endpoint.id)
        state = attrs.evolve(state, endpoints=(*others, endpoint))
        admit(state, (*state.policies, *state.published, *state.limits), [endpoint])
        return state

    def _held(self, asked: Mapping[str, Any]) -> Endpoint | None:
        """The endpoint that has the name, when it is what was asked for; an
        abandoned one is cleared away."""
        there = self._cluster.find_endpoint(asked["network"], asked["namespace"], asked["name"])
        if there is None:
            return None
        title = f"endpoint {there.path}"
        if there.host != self._site.host.name:
            if self._is_alive(there.host):
                raise AlreadyExists(f"{title} is there, on host {there.host}")
            self._cluster.remove_endpoint(there)
            return None
        life = self._life(there)
        brought = there.netns and life is not Life.GONE
        if brought and asked.get("netns", there.netns) != there.netns:
            # Its processes are in no cgroup of ours: nobody knows here whether it has any.
            raise AlreadyExists(f"{title} is there, in {there.netns}")
        held = self._holders.lives(there.id)
        if held or (held is False and life is Life.BUSY):
            raise AlreadyExists(f"{title} runs already")
        if held is None:
            if there.id in self.attached and life is not Life.GONE and _same(asked, there):
                return there
            if life is Life.BUSY:
                raise AlreadyExists(f"{title} is there, not as asked for, and has processes")
        self._let_go(there)
        return None

    def _place(self, asked: Mapping[str, Any]) -> Place:
        """Where it is to be: as asked for, the rest as the backend says.

        Raises:
            InvalidValue: what was asked for is no such thing, another endpoint's, or of
                no use to the backend.
            CapabilityMissing: it is to be closed, and this host cannot.
        """
        given = Place(asked.get("cgroup"), asked.get("netns"), closed=asked.get("closed", False))
        if given.cgroup is not None:
            cgroup.check(given.cgroup, "endpoint.cgroup")
            for each in self._mirror.endpoints(self._site.host.name):
                other = each.place.cgroup
                if other is not None and (
                    given.cgroup.is_relative_to(other) or other.is_relative_to(given.cgroup)
                ):
                    wanted = f"a cgroup apart from that of {each.name}"
                    raise InvalidValue("endpoint.cgroup", wanted, str(given.cgroup))
        if given.netns is not None and not given.netns.is_absolute():
            raise InvalidValue("endpoint.netns", "an absolute path", str(given.netns))
        name = f"{asked['network']}.{asked['namespace']}.{asked['name']}"
        place = self._backend.place(name, given)
        if given.closed and not place.closed:
            raise CapabilityMissing(f"endpoint.closed: backend {self._backend.name} closes none")
        return place

    def _let_go(self, endpoint: Endpoint) -> None:
        place = endpoint.place
        if self._life(endpoint) is Life.BUSY:
            raise InUse(f"endpoint {endpoint.name} has processes in {place.cgroup or place.netns}")
        self._backend.detach(endpoint.id)
        self.attached.pop(endpoint.id, None)
        self.trouble.pop(endpoint.id, None)
        self._names.remove(endpoint.id)
        self._cluster.remove_endpoint(endpoint)
        self._holders.drop(endpoint.id)
        if place.cgroup is not None and place.cgroup.is_relative_to(self._site.cgroups):
            cgroup.remove(place.cgroup)

    def _undo(self, endpoint: Endpoint) -> None:
        """Take a failed attach back as far as it came; the rest is :meth:`tend`'s."""
        try:
            self._let_go(endpoint)
            self._sync()
        except Exception:  # noqa: BLE001  # the first error is the one to tell
            _log.debug("undoing the attach of %s", endpoint.name, exc_info=True)

    def _is_alive(self, host: str) -> bool:
        return any(each.name == host for each in self._cluster.hosts())


def _port(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _address(value: object) -> IPAddress:
    try:
        return IPAddress(str(value))
    except (AddrFormatError, ValueError) as error:
        raise InvalidValue("endpoint.address", "an IP address", value) from error


def _same(asked: Mapping[str, Any], there: Endpoint) -> bool:
    """Whether ``there`` is what was asked for; what was not said is as it is."""
    address = asked.get("address")
    ports = {key: _port(value) for key, value in asked.get("ports", there.ports).items()}
    return (
        address in (None, there.address)
        and dict(asked.get("labels", there.labels)) == dict(there.labels)
        and ports == dict(there.ports)
        and str(asked.get("cgroup", there.cgroup)) == there.cgroup
        and str(asked.get("netns", there.netns)) == there.netns
        and asked.get("closed", there.closed) == there.closed
    )
