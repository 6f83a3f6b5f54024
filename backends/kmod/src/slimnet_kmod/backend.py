# SPDX-License-Identifier: Apache-2.0
"""The backend ``kmod``."""

from __future__ import annotations

import contextlib
import errno
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve

from slimnet import answers, contract, fallback
from slimnet.abc import Backend, Context
from slimnet.answers import FlowQuestion
from slimnet.exceptions import (
    AbiMismatch,
    BackendError,
    CapabilityMissing,
    ConfigError,
    InvalidValue,
)
from slimnet.fallback import Beneath, Fallback
from slimnet.layout import Layout, from_bytes16, to_bytes16
from slimnet.linux.sock_diag import STATES
from slimnet.model import (
    Account,
    Capabilities,
    Connection,
    Decision,
    Direction,
    Endpoint,
    Event,
    Flow,
    Network,
    Opening,
    Probe,
    Reason,
    Running,
    Status,
    Wire,
)
from slimnet.place import Life, Place
from slimnet.tables import Change, Tables
from slimnet_kmod import contract as private
from slimnet_kmod import requirements
from slimnet_kmod.messages import FAMILY
from slimnet_kmod.module import Module, ModuleEvents, RequestRefused
from slimnet_kmod.options import KmodOptions
from slimnet_kmod.requirements import CAPABILITIES, ModuleStamp
from slimnet_kmod.tables import commit, prepare

__all__ = ["KmodBackend"]

_CONNECTION = Layout(private.slim_nl_connection)
_ACCOUNT_KEY = Layout(contract.slim_account_key)
_ACCOUNT = Layout(contract.slim_account)
#: Seconds between two looks at what the fallback overlay refused, while somebody reads.
_EVERY = 0.5
#: What a data path is told by the call that starts it, and cannot change while it runs, to
#: the field of the configuration.
_FIXED = {
    "UNDERLAY": "underlay.address",
    "WIRE_PORT": "backend.kmod.wire_ports",
    "RANGE": "backend.kmod.inner_range",
}


class KmodBackend(Backend):
    """Connections moved and named by the kernel module, the rest over VXLAN.

    Options (``[backend.kmod]``): :class:`~slimnet_kmod.options.KmodOptions`.

    The module's data path goes on without the process; who drives it holds it, and a second
    one is refused. Policy holds against root in the endpoint: it is decided in the kernel, and
    for what stays in the endpoint's namespace by the router outside of it.

    Raises:
        ConfigError: an option or the host's address will not do.
        AbiMismatch: the module was built from another contract.
        BackendError: there is no module, it refused, or somebody else drives it here.
    """

    name: ClassVar[str] = "kmod"
    preference: ClassVar[int] = 50
    #: Seconds between two looks at endpoints that only one half knows.
    pace: float = 10.0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options = KmodOptions.parse(context.options)
        if context.host.address.version != 4:
            raise ConfigError("underlay.address", "an IPv4 address", str(context.host.address))
        if len(context.key) != 16:
            raise ConfigError("key_file", "a key of 16 bytes", f"{len(context.key)} bytes")
        self._mutex = threading.RLock()
        self._closed = False
        self._tables: Tables | None = None
        self._kept = time.monotonic()
        with contextlib.ExitStack() as undo:
            self._module = undo.enter_context(contextlib.closing(_connect()))
            started = self._start()
            if started:
                undo.callback(self._module.request, private.SLIM_CMD_TEARDOWN, FORCE=True)
            self._events: ModuleEvents = undo.enter_context(
                contextlib.closing(self._module.listen())
            )
            self._beneath = _beneath(context.instance, context.state)
            self._fallback = Fallback(
                self._beneath.context(context),
                self._options.vxlan_port,
                serves=True,
                publishes=True,
            )
            undo.callback(self._fallback.close)
            self._reconcile()
            undo.pop_all()

    def _keys(self) -> dict[str, bytes]:
        """As the module is told of them."""
        key, other = self.context.key, self.context.other_key
        # One that is too old to take two takes one.
        return {"KEY": key} if other is None else {"KEY": key, "KEY_OTHER": other}

    def rekey(self, key: bytes, other: bytes | None = None) -> None:
        """See :meth:`slimnet.abc.Backend.rekey`."""
        with self._mutex:
            before = self.context
            self.context = evolve(before, key=key, other_key=other)
            try:
                self._start()
            except BackendError:
                self.context = before
                raise

    def _start(self) -> bool:
        """Start or adopt; whether nothing ran."""
        info = self._module.request(private.SLIM_CMD_INFO)
        ours, theirs = ModuleStamp.ours(), ModuleStamp.of(info)
        if ours != theirs:
            raise AbiMismatch(
                f"the module slimnet was built from contract {theirs}, not {ours}: stop its"
                " endpoints, then load the module of this version"
            )
        wanted = {
            "INSTANCE": self.context.instance,
            "UNDERLAY": to_bytes16(self.context.host.address),
            "WIRE_PORT": self._options.wire_ports,
            "RANGE": self._options.inner_range.network.packed,
        }
        if info.get("INSTANCE", wanted["INSTANCE"]) != wanted["INSTANCE"]:
            raise BackendError(f"instance {info['INSTANCE']} serves this network namespace already")
        for name, field in _FIXED.items():
            if info.get(name, wanted[name]) != wanted[name]:
                raise ConfigError(
                    field,
                    "the value that the running data path has (tear it down first)",
                    str(self.context.host.address)
                    if name == "UNDERLAY"
                    else str(getattr(self._options, field.rpartition(".")[2])),
                )
        try:
            self._module.request(
                private.SLIM_CMD_START,
                ABI_VERSION=ours.version,
                FINGERPRINT=ours.fingerprint,
                **wanted,
                **self._keys(),
                CLUSTER=self.context.cluster,
            )
        except RequestRefused as error:
            if error.errno == errno.EBUSY:
                raise BackendError(
                    f"another process drives the data path of instance {self.context.instance}"
                ) from error
            if error.errno == errno.EPROTONOSUPPORT:
                raise AbiMismatch(str(error)) from error
            raise
        return "INSTANCE" not in info

    def _reconcile(self) -> None:
        """Detach from the module what the fallback overlay has no record of: a process that
        was killed between the two left it."""
        for endpoint in self._attached() - self._fallback.attached():
            self._module.request(private.SLIM_CMD_DETACH, ENDPOINT=endpoint)

    def _attached(self) -> frozenset[int]:
        records = self._module.dump(private.SLIM_CMD_ENDPOINTS)
        return frozenset(int(record["ENDPOINT"]) for record in records)

    @classmethod
    def probe(cls) -> Probe:
        """See :func:`slimnet_kmod.requirements.probe`."""
        return requirements.probe()

    @property
    def capabilities(self) -> Capabilities:
        """See :attr:`slimnet.abc.Backend.capabilities`."""
        return CAPABILITIES

    @classmethod
    def find(cls, instance: str, state: Path) -> Running | None:
        """See :meth:`slimnet.abc.Backend.find`: what the module says, and the fallback
        overlay's own."""
        found = _beneath(instance, state).find()
        info = _running(instance)
        if info is None:
            return found
        cluster = str(info.get("CLUSTER", ""))
        return Running((), cluster) if found is None else evolve(found, cluster=cluster)

    @classmethod
    def purge(cls, instance: str, state: Path) -> None:
        """See :meth:`slimnet.abc.Backend.purge`."""
        info = _running(instance)
        if info is not None:
            with contextlib.closing(Module()) as module:
                # As it runs, whatever contract that is.
                same = ("ABI_VERSION", "FINGERPRINT", "INSTANCE", *_FIXED)
                module.request(
                    private.SLIM_CMD_START, **{name: info[name] for name in same}, KEY=bytes(16)
                )
                module.request(private.SLIM_CMD_TEARDOWN, FORCE=True)
        _beneath(instance, state).purge()

    def place(self, name: str, given: Place) -> Place:
        """See :meth:`slimnet.abc.Backend.place`: a cgroup and a namespace; either may be the
        caller's."""
        return self._fallback.place(name, given)

    def life(self, name: str, place: Place) -> Life:
        """See :meth:`slimnet.abc.Backend.life`: by the cgroup; and a namespace that was
        brought has to be there."""
        return self._fallback.life(name, place)

    def attach(self, endpoint: Endpoint, network: Network) -> Place:
        """See :meth:`slimnet.abc.Backend.attach`. The fallback overlay first: in its namespace
        nothing passes that the router does not allow."""
        with self._open():
            if not 0 < endpoint.id < contract.SLIM_ADDRESS_SERVICE:
                raise InvalidValue("endpoint.id", "an id that the store has given", endpoint.id)
            fresh = endpoint.id not in self._fallback.attached()
            place = self._fallback.attach(endpoint, network)
            assert place.netns is not None  # noqa: S101  # for the type checker
            try:
                with place.netns.open() as namespace:
                    self._module.request(
                        private.SLIM_CMD_ATTACH,
                        ENDPOINT=endpoint.id,
                        NETNS_FD=namespace.fileno(),
                        VNI=network.vni,
                        ADDRESS=to_bytes16(endpoint.address),
                    )
            except BaseException:
                if fresh:
                    self._fallback.detach(endpoint.id)
                raise
            return place

    def detach(self, endpoint: int) -> None:
        """See :meth:`slimnet.abc.Backend.detach`."""
        with self._open():
            self._fallback.detach(endpoint)
            self._module.request(private.SLIM_CMD_DETACH, ENDPOINT=endpoint)

    def install(self, tables: Tables, change: Change | None = None) -> None:
        """See :meth:`slimnet.abc.Backend.install`. The module's tables are made ready, then
        the routers' are written, then the module's are in force."""
        with self._open():
            held = self._module.request(private.SLIM_CMD_INFO).get("GENERATION", 0)
            if held != tables.generation:
                prepare(self._module, tables, change if change and change.base == held else None)
            self._fallback.install(tables)
            if held != tables.generation:
                try:
                    commit(self._module, tables)
                except BaseException:
                    if self._tables is not None:
                        with contextlib.suppress(BackendError):
                            self._fallback.install(self._tables)
                    raise
            self._tables = tables

    def status(self) -> Status:
        """See :meth:`slimnet.abc.Backend.status`. An endpoint is attached where both halves
        have it; a generation is in force where both have it."""
        with self._open():
            info = self._module.request(private.SLIM_CMD_INFO)
            beneath = self._fallback.status()
            counts = info["COUNTERS"]
            counted = {
                Reason(number): count
                for number in range(contract.SLIM_REASON_COUNT)
                if (count := int.from_bytes(counts[number * 8 : number * 8 + 8], sys.byteorder))
            }
            return Status(
                generation=min(info.get("GENERATION", 0), beneath.generation),
                endpoints=beneath.endpoints & self._attached(),
                counters=Counter(beneath.counters) + Counter(counted),
                abi=str(ModuleStamp.of(info)),
                detail={
                    "module": info.get("MODULE_VERSION", ""),
                    "sockets": info.get("SOCKETS", 0),
                    "networks": beneath.detail["networks"],
                },
            )

    def ask(self, flow: Flow, network: Network) -> Decision | None:
        """See :meth:`slimnet.abc.Backend.ask`: the module's answer, but for a way that only
        the module refuses."""
        with self._open():
            question = FlowQuestion.of(flow, network)
            try:
                answer = self._module.request(private.SLIM_CMD_ASK, QUESTION=question.pack())
            except RequestRefused as error:
                if error.errno == errno.ENOENT:
                    return None
                raise
            return fallback.carried(answers.decision(answer["QUESTION"]), self._tables)

    def connections(self) -> list[Connection]:
        """See :meth:`slimnet.abc.Backend.connections`: the module's, and what conntrack holds
        in the routers."""
        with self._open():
            epoch = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
            moved = [
                _connection(_CONNECTION.unpack(record["CONNECTION"]), epoch)
                for record in self._module.dump(private.SLIM_CMD_CONNECTIONS)
            ]
            return moved + self._fallback.connections()

    def accounts(self) -> Iterable[Account]:
        """See :meth:`slimnet.abc.Backend.accounts`: of what the module carries."""
        with self._open():
            found: dict[tuple[int, int, int], Counter[str]] = {}
            for record in self._module.dump(private.SLIM_CMD_ACCOUNTS):
                key = _ACCOUNT_KEY.unpack(record["ACCOUNT_KEY"])
                whose = key["endpoint"], key["rule"], key["direction"]
                found.setdefault(whose, Counter()).update(_ACCOUNT.unpack(record["ACCOUNT"]))
            return [
                Account(endpoint, rule, Direction(direction), **entry)
                for (endpoint, rule, direction), entry in sorted(found.items())
            ]

    def events(self, timeout: float) -> list[Event]:
        """See :meth:`slimnet.abc.Backend.events`: the module's as they come, the routers'
        refusals every half a second."""
        deadline = time.monotonic() + timeout
        while True:
            found = self._fallback.events(0)
            left = max(0.0, deadline - time.monotonic())
            found += answers.events(self._events.read(0 if found else min(left, _EVERY)))
            if found or not left or self._closed:
                return found

    def observe(self, *, enabled: bool) -> None:
        """See :meth:`slimnet.abc.Backend.observe`."""
        both = private.SLIM_NL_OBSERVE_OPENED | private.SLIM_NL_OBSERVE_CLOSED
        with self._open():
            self._module.request(private.SLIM_CMD_OBSERVE, OBSERVE=both if enabled else 0)

    @classmethod
    def ports(cls, options: Mapping[str, Any]) -> Mapping[str, range]:
        """See :meth:`slimnet.abc.Backend.ports`: the wire ports."""
        return {"wire_ports": KmodOptions.parse(options).ports}

    @classmethod
    def openings(cls, options: Mapping[str, Any]) -> Mapping[Wire, Sequence[Opening]]:
        """See :meth:`slimnet.abc.Backend.openings`."""
        parsed = KmodOptions.parse(options)
        packets = Opening("udp", range(parsed.vxlan_port, parsed.vxlan_port + 1))
        return {Wire.SYN: [Opening("tcp", parsed.ports)], Wire.VXLAN: [packets]}

    def tend(self) -> None:
        """See :meth:`slimnet.abc.Backend.tend`: every :attr:`pace`, detach what only the
        module has. The module looks after its own."""
        now = time.monotonic()
        if now - self._kept >= self.pace:
            with self._open():
                self._kept = now
                self._reconcile()

    def close(self) -> None:
        """See :meth:`slimnet.abc.Backend.close`."""
        # Reading ends before anything is locked: it may wait for long.
        self._closed = True
        self._events.close()
        with self._mutex:
            self._module.close()
            self._fallback.close()

    def teardown(self) -> None:
        """See :meth:`slimnet.abc.Backend.teardown`."""
        with self._open():
            self._fallback.teardown()
            self._module.request(private.SLIM_CMD_TEARDOWN, FORCE=True)
            self._beneath.forget()
        self.close()

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        with self._mutex:
            if self._closed:
                raise BackendError("the backend is closed")
            yield


def _beneath(instance: str, state: Path) -> Beneath:
    return Beneath("kmod", instance, state)


def _connect() -> Module:
    try:
        return Module()
    except RequestRefused as error:
        if error.errno == errno.ENOENT:
            reason, remedy = requirements.absence(platform.release())
            raise CapabilityMissing(f"{reason}: {remedy}") from error
        raise


def _running(instance: str) -> dict[str, Any] | None:
    """What the module says of an instance in this network namespace. A module that is not
    there runs nothing, and is not loaded for the question."""
    if not Path("/sys/module", FAMILY).is_dir():
        return None
    try:
        with contextlib.closing(Module()) as module:
            info = module.request(private.SLIM_CMD_INFO)
    except RequestRefused as error:
        if error.errno in (errno.ENOENT, errno.EPERM):
            return None
        raise
    return info if info.get("INSTANCE") == instance else None


def _connection(record: dict[str, Any], epoch: float) -> Connection:
    flags, state = record["flags"], record["state"]
    return Connection(
        endpoint=record["endpoint"],
        peer_endpoint=record["peer_endpoint"],
        local=(from_bytes16(record["local"]), record["local_port"]),
        peer=(from_bytes16(record["peer"]), record["peer_port"]),
        direction=Direction.INGRESS if flags & private.SLIM_NL_ACCEPTED else Direction.EGRESS,
        wire=Wire.SYN if flags & private.SLIM_NL_WIRE else None,
        state=STATES[state] if state < len(STATES) else STATES[0],
        opened=record["opened"] / 1e9 + epoch if record["opened"] else 0.0,
        cookie=record["cookie"],
    )
