# SPDX-License-Identifier: Apache-2.0
"""The two things that can be plugged in: a data path and a store.

:func:`slimnet.testing.check_backend` and :func:`slimnet.testing.check_store`
run every clause of these contracts on any implementation.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from attrs import field, frozen

from slimnet.model import (
    Account,
    Capabilities,
    Connection,
    Decision,
    Endpoint,
    Event,
    Flow,
    Host,
    Network,
    Opening,
    Probe,
    Running,
    Status,
    Wire,
)
from slimnet.place import Life, Place
from slimnet.tables import Change, Tables

__all__ = ["Backend", "Context", "Revision", "Store", "StoreEvent", "Upgrade"]


class Upgrade(enum.Enum):
    """What becomes of a running data path that was built from another contract.

    Attributes:
        NO: it is refused, and goes on.
        KEEPING: it is replaced, unless live connections would be closed for that.
        CLOSING: it is replaced, and they are closed.
    """

    NO = enum.auto()
    KEEPING = enum.auto()
    CLOSING = enum.auto()


@frozen
class Context:
    """Where a backend works: one host.

    Attributes:
        instance: names this host's data path on this machine; two instances
            never touch each other's pins, cgroups, devices or filters.
        host: the host that it serves.
        interface: the underlay interface's name, in the current network namespace.
        cgroup: the cgroup v2 directory below which endpoints are made.
        state: a directory for what must outlive the process (not a reboot).
        key: the cluster's 128-bit secret.
        other_key: another that is good as well, while the key rotates.
        options: the backend's own table of the configuration.
        cluster: id of the store whose endpoints it serves. A backend keeps the last
            one with what outlives the process, and tells it in :meth:`Backend.find`.
        upgrade: what is to become of a running data path of another contract.
    """

    instance: str
    host: Host
    interface: str
    cgroup: Path
    state: Path
    key: bytes
    options: Mapping[str, Any] = field(factory=dict, hash=False)
    cluster: str = ""
    other_key: bytes | None = None
    upgrade: Upgrade = Upgrade.NO

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """That which signs, and one that is good as well; the same where there is one."""
        return self.key, self.key if self.other_key is None else self.other_key


class Backend(abc.ABC):
    """Drives one data path on one host.

    A backend is a context manager; leaving it calls :meth:`close`. Every
    method may be called again with the same arguments and then changes
    nothing. What the data path does depends on the state that it was brought
    to, never on the order of the calls that brought it there.

    Creating the object validates ``context.options``
    (:class:`~slimnet.ConfigError` names a wrong key), then starts the data
    path or adopts one that runs under ``context.instance``. One that runs and
    was built from another contract raises :class:`~slimnet.AbiMismatch` and
    is left as it was; with :attr:`Context.upgrade`, a backend that can replaces it with
    its endpoints running. Nothing passes by no policy meanwhile: the one before decides
    until :meth:`install` has put the first tables in force, or, where connections are
    closed, nobody gets through until then. Started again after an end in the middle it
    goes on where it was.

    *Threads.* An agent calls from three kinds of thread, at the same time:

    ==================  ============================================================
    its main thread     the constructor, :meth:`install`, :meth:`tend`, :meth:`attach`
                        (of what it adopts), :meth:`detach`, :meth:`life`,
                        :meth:`status`, :meth:`close`
    those of its API    everything but the constructor, :meth:`tend`, :meth:`events`,
                        :meth:`close` and :meth:`teardown`
    that of its feed    :meth:`events`, alone and again and again
    ==================  ============================================================

    Two calls of :meth:`attach` or :meth:`detach` never overlap, nor do two of
    :meth:`install`; any other two may, and the backend locks what it has to.
    :meth:`events` may wait while others call; :meth:`close` and :meth:`teardown` end
    its waiting. The constructor, :meth:`probe`, :meth:`find` and :meth:`purge` are called
    in the host's network namespace; the others by threads that may be in any.

    *Clocks.* What is told to people, :attr:`.Event.time` and :attr:`.Connection.opened`,
    is seconds since the epoch (CLOCK_REALTIME). Whatever is waited for, or due, is measured
    by CLOCK_MONOTONIC: timeouts, what :meth:`tend` does when, the age of a data path's
    records. That one starts again with the machine, as the data path does.
    """

    #: The name of the entry point.
    name: ClassVar[str]
    #: For ``backend = "auto"``: the highest whose probe says yes is taken.
    preference: ClassVar[int] = 0
    #: Whether an ordinary user can run it. One that only root can run is not asked for what
    #: it has of a user's instance: what has that name is root's.
    unprivileged: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self.context = context

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What it can do on this machine, as :meth:`probe` says too."""

    @classmethod
    @abc.abstractmethod
    def probe(cls) -> Probe:
        """Can this work here, and what could it do? Changes nothing and never raises for a machine
        that lacks something: that is the answer ``NO``, with what is missing.
        Any exception counts as ``UNKNOWN``."""

    @classmethod
    def look(cls) -> Probe:
        """As :meth:`probe`, before a start that follows at once: what is dear to try, and the
        start tries anyway, is left out. A start that then cannot raises
        :class:`~slimnet.BackendUnavailable` with what the probe would have said."""
        return cls.probe()

    @classmethod
    @abc.abstractmethod
    def find(cls, instance: str, state: Path) -> Running | None:
        """What there is of an instance on this machine, an unfinished start or
        removal included; ``None``: nothing at all.

        It is read from the data path, whatever the configuration says now and
        whatever :meth:`probe` says, and changes nothing: an agent asks every
        installed backend before it starts or removes one.

        Args:
            instance: whose; as :attr:`Context.instance`.
            state: its directory; as :attr:`Context.state`.
        """

    @classmethod
    @abc.abstractmethod
    def purge(cls, instance: str, state: Path) -> None:
        """Remove what there is of an instance that cannot be adopted, and so not torn
        down: one of another contract, or one of which a part is lost. Its caller has seen
        that no endpoint has processes. Whatever can be removed goes; what is not there is
        no error. In the host's network namespace.

        Args:
            instance: whose; as :attr:`Context.instance`.
            state: its directory; as :attr:`Context.state`.
        """

    @abc.abstractmethod
    def place(self, name: str, given: Place) -> Place:
        """Where :meth:`attach` would put an endpoint: what the caller gives, and of the
        rest what this backend needs (:attr:`capabilities`). Changes nothing.

        Args:
            name: the endpoint's :attr:`~slimnet.model.Endpoint.full_name`.
            given: by the caller.

        Raises:
            InvalidValue: a part is given that this backend cannot use, or one that is not
                what it should be; names the part and says why.
        """

    @abc.abstractmethod
    def life(self, name: str, place: Place) -> Life:
        """Whether the endpoint that belongs in a place lives, attached or not. Changes
        nothing.

        Args:
            name: the endpoint's :attr:`~slimnet.model.Endpoint.full_name`.
            place: as its record says, perhaps of another backend that was here before.
        """

    def kill(self, name: str) -> None:
        """End every process of an endpoint that has no cgroup, attached or not. Of one that has,
        its caller ends those in it. One that is gone has none.

        Args:
            name: the endpoint's :attr:`~slimnet.model.Endpoint.full_name`.

        Raises:
            InUse: some do not end.
        """

    @abc.abstractmethod
    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """Make of :meth:`place` what is not there, for ``endpoint.place``, and put the
        data path in force there *before* it answers, so that no process in it is ever
        unpoliced. Before the first tables everything that an endpoint tries is refused.

        Attaching an attached endpoint answers the same. One of the same id with another
        address, network or place is another endpoint.

        A cgroup that was an endpoint's may be that endpoint's again. For another one
        it has to be removed and made anew, where sockets belong to the cgroup: those
        of the first may live on in other processes.

        Returns:
            all that the endpoint's processes need.

        Raises:
            InvalidValue: as of :meth:`place`; nothing changed.
            BackendError: it could not, or its id or its place is another endpoint's;
                nothing is left behind, and nothing changed.
        """

    @abc.abstractmethod
    def detach(self, endpoint: int) -> None:
        """Let go of an endpoint. One that is not attached is no error. What its caller
        gave stays, but for the data path in it.

        Its sockets may live on, in processes that they were handed to. From now on
        whatever these try is refused, for as long as there are such sockets; in a
        cgroup that its caller keeps, for as long as that is there.

        Raises:
            InUse: it is :attr:`~slimnet.place.Life.BUSY`; it stays attached and policed.
        """

    @abc.abstractmethod
    def install(self, tables: Tables, change: Change | None = None) -> None:
        """Put ``tables`` in force, atomically: a flow sees the old generation
        or the new one, whole. ``change`` says what differs from generation
        ``change.base``; a backend that holds that generation may write only
        this much. Installing the generation in force changes nothing.

        Live connections that the new tables forbid are closed when this
        returns, with an ordinary error; those that they allow never notice.

        Raises:
            BackendError: the old tables stay in force.
        """

    @abc.abstractmethod
    def status(self) -> Status:
        """What is in force, read from the data path itself."""

    @abc.abstractmethod
    def connections(self) -> Iterable[Connection]:
        """The live connections of attached endpoints."""

    @abc.abstractmethod
    def events(self, timeout: float) -> list[Event]:
        """The events since the last call; waits up to ``timeout`` seconds for
        the first. Events may be lost when nobody asks for long; the counters
        of :meth:`status` are never."""

    def tend(self) -> None:
        """Do what is due of the data path's housekeeping: give back what nobody needs any
        more, follow what changes on the host. Its caller calls it several times a second
        for as long as it lives, whether anybody reads events or not; how much of it is
        due each time, the backend says. Changes nothing that is in force.

        What the data path needs of the host (interfaces, routes, settings, programs, rules),
        and somebody has taken away, is put back within two seconds. To look for that must
        cost next to nothing: it is done for ever.

        What must not wait for it is done in the kernel: a data path whose keeper has died
        goes on refusing.

        Raises:
            BackendError: what the data path lacks and why it cannot be put back now; the
                next calls try again. Users read the text in ``slimnet status``.
        """

    def rekey(self, key: bytes, other: bytes | None = None) -> None:
        """Sign with ``key`` from now on, and take ``other`` as well from other hosts; no
        connection is lost or refused. A backend whose wires need no key has nothing to do.

        Args:
            key: 128 bits.
            other: 128 bits; ``None``: no other one.

        Raises:
            BackendError: the data path does not take them; it goes on with those before.
        """

    def ask(self, flow: Flow, network: Network) -> Decision | None:
        """What the data path itself answers to a flow, out of the tables in force;
        ``None`` where it cannot be asked, or has none yet. Counts nothing."""
        del flow, network
        return None

    def accounts(self) -> Iterable[Account]:
        """What attached endpoints sent and received, by rule; nothing where the
        data path does not count."""
        return ()

    @classmethod
    def ports(cls, options: Mapping[str, Any]) -> Mapping[str, range]:
        """The TCP ports of its host that the data path takes for itself: what comes from
        outside reaches no other listener there. None by default.

        Args:
            options: as of :class:`Context`.

        Returns:
            the option that says where they are, to the ports.

        Raises:
            ConfigError: an option is wrong.
        """
        del options
        return {}

    @classmethod
    def openings(cls, options: Mapping[str, Any]) -> Mapping[Wire, Sequence[Opening]]:
        """Where this host hears other hosts, by the wire on which they speak; nothing by default.

        Args:
            options: as of :class:`Context`.

        Raises:
            ConfigError: an option is wrong.
        """
        del options
        return {}

    def claims(self, port: int) -> bool:
        """Whether the data path itself needs this TCP port of the host."""
        return any(port in each for each in self.ports(self.context.options).values())

    def holds(self) -> frozenset[int]:
        """Inodes of the sockets by which the data path itself listens on published ports of
        the host: none of them keeps a port from being published."""
        return frozenset()

    def observe(self, *, enabled: bool) -> None:
        """Whether opened and closed connections make events. Refusals always
        do. Off until somebody asks, since nobody should pay for what nobody
        reads."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the data path, which goes on as it is. Closing twice is
        no error; any other call after it is one."""

    @abc.abstractmethod
    def teardown(self) -> None:
        """Remove the data path and everything that it left on the machine,
        then close. What is refused to the sockets of detached endpoints stays so.

        Raises:
            InUse: an endpoint still has processes; nothing was removed.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


#: A store's counter: grows by at least one with every change.
Revision = int


@frozen
class StoreEvent:
    """One change: ``value`` is ``None`` when the key went."""

    key: str
    value: bytes | None
    revision: Revision


class Store(AbstractContextManager["Store"], abc.ABC):
    """A small, ordered, watchable key-value store: desired state lives here.

    Keys are paths (``endpoints/prod/default/web``), values are bytes. Every change has a
    revision, an integer greater than those before it, for the whole store.

    Every method, :meth:`open` among them, raises :class:`~slimnet.StoreUnreachable` and no
    other :class:`ConnectionError` when the store cannot be reached, and all but
    :meth:`close` do when it was closed here. Whoever catches it may try again: a store that
    is back has its keys, its history and its revision. Threads may share one.
    """

    @classmethod
    @abc.abstractmethod
    def open(cls, url: str, options: Mapping[str, Any] | None = None) -> Store:
        """Open the store that ``url`` names (``sqlite:///var/lib/...``).

        Args:
            url: its scheme is the driver's name.
            options: the configuration's table ``[store.<driver>]``.

        Raises:
            ConfigError: the URL is not one of this driver's, or an option is wrong: its
                field is ``store.<driver>.<option>``.
        """

    @abc.abstractmethod
    def get(self, key: str) -> tuple[bytes, Revision] | None:
        """The value and the revision that last changed it, or ``None``."""

    @abc.abstractmethod
    def list(self, prefix: str) -> tuple[dict[str, tuple[bytes, Revision]], Revision]:
        """All keys below ``prefix``, and the store's revision that this is of."""

    @abc.abstractmethod
    def transact(
        self,
        *,
        expect: Mapping[str, Revision | None] | None = None,
        put: Mapping[str, bytes] | None = None,
        delete: Iterable[str] = (),
        leases: Mapping[str, int] | None = None,
    ) -> Revision:
        """Do all or nothing.

        Args:
            expect: key to the revision that it must have; ``None``: must not exist.
            put: key to its new value.
            delete: keys; one that does not exist is no error, and no change.
            leases: key to the lease that it goes with, for some of those in ``put``. One
                that is put and not named here stays until it is deleted.

        Returns:
            The store's revision after it.

        Raises:
            Conflict: an expectation does not hold; nothing changed.
            NotFound: a lease ran out already; nothing changed.
            InvalidValue: ``leases`` names a key that is not in ``put``, or it is larger than
                this store takes: says what. Nothing changed. Every store takes 1 MiB of keys
                and values, 1,000 keys and 64 expectations.
        """

    @abc.abstractmethod
    def watch(
        self, prefix: str, *more: str, after: Revision, timeout: float
    ) -> tuple[Sequence[StoreEvent], Revision]:
        """The changes below some prefixes, oldest first.

        What changes elsewhere ends no wait: nobody is woken for what is others'. The
        revision in the answer passes over it, so that a watcher of what rarely changes is
        not too late either when old history is trimmed.

        Keys that begin with ``~`` lie apart: what many write and few read. Such a prefix is
        watched alone, and may be told a little later than its revision is in force; a
        revision in the answer to other prefixes need not pass over them. So may be that a
        key went with its lease.

        Args:
            prefix: of keys; ``""`` is of all that do not lie apart.
            more: others that are watched as well.
            after: changes up to this revision are known.
            timeout: seconds to wait for the first change.

        Returns:
            The changes, none when the time is over; and the revision up to which there
            are no others.

        Raises:
            Conflict: the history back to ``after`` is gone; list again.
            InvalidValue: a prefix that begins with ``~`` is not the only one.
        """

    @abc.abstractmethod
    def lease(self, seconds: float) -> int:
        """A new lease: keys tied to it go when it is not renewed in time."""

    @abc.abstractmethod
    def renew(self, lease: int) -> None:
        """Start the lease's time again.

        Raises:
            NotFound: it ran out already.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Closing twice is no error."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
