# SPDX-License-Identifier: Apache-2.0
"""A testbed: made, completed, found again, and removed without a trace."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from slimnet import lock
from slimnet.exceptions import AlreadyExists, InUse, InvalidValue, NotFound, SlimnetError
from slimnet.linux import cgroup, netns
from slimnet.names import NAME
from slimnet.testbed.host import TestbedHost

if TYPE_CHECKING:
    from slimnet.testbed.etcd import Etcd
    from slimnet.testing import Underlay

__all__ = ["Testbed"]

_log = logging.getLogger(__name__)

_RUN = Path("/run/slimnet")
_ALL = _RUN / "testbed"
_HOSTS_MAX = 250
_STORES = ("sqlite", "etcd", *(f"etcd:{number}" for number in range(1, 8)))
#: Of the underlay's addresses, the one of its etcd: behind those of all hosts.
_ETCD_NUMBER = 257
#: Characters; a host's instance is called ``<name>-<host>``, which 63 must hold.
_NAME_MAX = 40


_NAMED_CGROUPS = """
import sys
from slimnet.cluster import Cluster
from slimnet.plugins import open_store
with open_store(sys.argv[1]) as store:
    print(*{each.cgroup for each in Cluster(store).endpoints() if each.cgroup}, sep="\\n")
"""


class Testbed:
    """Makes the hosts and their agents, and removes them when the block ends.

    Args:
        name: unique on this machine.
        hosts: how many.
        backend: of all hosts; ``auto`` takes the best one that works here.
        options: of the backend.
        level: how much the agents log.
        mtu: of the underlay, in bytes.
        store: what all agents share: ``sqlite``, ``etcd``, or ``etcd:N`` for N servers of it
            that form one cluster, on an address of the underlay. ``SLIMNET_TESTBED_STORE``
            by default, or ``sqlite``.

    Raises:
        InvalidValue: one of these is wrong.
    """

    __test__ = False  # pytest shall not take it for a test class

    def __init__(
        self,
        name: str = "default",
        hosts: int = 2,
        backend: str = "auto",
        *,
        options: Mapping[str, Any] | None = None,
        level: str = "info",
        mtu: int = 1500,
        store: str | None = None,
    ) -> None:
        if not NAME.fullmatch(name) or len(name) > _NAME_MAX:
            raise InvalidValue("name", "lower-case letters, digits and '-', at most 40", name)
        if not 1 <= hosts <= _HOSTS_MAX:
            raise InvalidValue("hosts", f"1 to {_HOSTS_MAX}", hosts)
        default = os.environ.get("SLIMNET_TESTBED_STORE") or "sqlite"
        self.store = default if store is None else store
        if self.store not in _STORES:
            raise InvalidValue("store", f"one of: {', '.join(_STORES)}", self.store)
        self.name = name
        self.backend = backend
        self._store_asked = store is not None
        self.options = dict(options or {})
        self.level = level
        self.mtu = mtu
        self._count = hosts
        self.directory = _ALL / name

    @classmethod
    def find(cls, name: str) -> Testbed:
        """The testbed of that name, as it was made.

        Raises:
            NotFound: there is none; says which there are.
        """
        try:
            return cls(name, **json.loads((_ALL / name / "testbed.json").read_text()))
        except FileNotFoundError:
            there = ", ".join(each.name for each in cls.all()) or "none at all"
            raise NotFound(f"testbed {name!r}: there is none; there are: {there}") from None

    @classmethod
    def all(cls) -> list[Testbed]:
        """Every testbed of this machine, by name."""
        return [cls.find(file.parent.name) for file in sorted(_ALL.glob("*/testbed.json"))]

    @property
    def hosts(self) -> tuple[TestbedHost, ...]:
        """The hosts."""
        return tuple(
            TestbedHost(
                name=host.name,
                instance=f"{self.name}-{host.name}",
                netns=host.netns,
                address=host.address,
                interface=host.interface,
                directory=self.directory / host.name,
                agent=_RUN / f"{self.name}-{host.name}" / "agent.sock",
            )
            for host in self._underlay().hosts
        )

    def host(self, name: str) -> TestbedHost:
        """The host of that name (``h1``).

        Raises:
            NotFound: says which there are.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        there = ", ".join(host.name for host in self.hosts)
        raise NotFound(f"host {name!r} of testbed {self.name!r}: there are: {there}")

    def up(self) -> None:
        """Make what is missing. Where it fails and there was nothing before,
        nothing is left behind.

        Raises:
            AlreadyExists: it is there, with another backend or store, or more hosts.
            CapabilityMissing: there is no etcd on this machine.
            SlimnetError: an agent or a server does not start; with the last line of its log.
        """
        with (
            lock.hold(_RUN, shared=True),
            lock.hold(self.directory),
            contextlib.ExitStack() as undo,
        ):
            if not self._adopt():
                undo.callback(self._remove)
            self._underlay().up()
            self._start_store()
            hosts = self.hosts
            for host in hosts:
                self._configure(host)
            (self.directory / "testbed.json").write_text(json.dumps(self._description()))
            # They start side by side: each is ready some tenths of a second later.
            for starting in [host.start_agent() for host in hosts]:
                starting.wait()
            undo.pop_all()

    def down(self) -> None:
        """End every process of every endpoint, stop the agents, remove the data
        paths, the namespaces and all files. What is not there is no error.

        Raises:
            InUse: the calling process is in an endpoint, or somebody else's agent runs an
                instance; nothing was removed.
            SlimnetError: something could not be removed; says what.
        """
        with lock.hold(self.directory):
            self._adopt(complete=True)
            self._remove()
        lock.remove_if_idle(_RUN, _ALL, *(path.parent for path in self._cgroups().values()))

    def _underlay(self) -> Underlay:
        from slimnet.testing import Underlay  # noqa: PLC0415  # pyroute2: 130 ms

        return Underlay(hosts=self._count, name=self.name, mtu=self.mtu)

    def _description(self) -> dict[str, Any]:
        return {
            "hosts": self._count,
            "backend": self.backend,
            "options": self.options,
            "level": self.level,
            "mtu": self.mtu,
            "store": self.store,
        }

    def _adopt(self, *, complete: bool = False) -> bool:
        """Take over what an existing testbed has and was not asked for here;
        whether there is one.

        Args:
            complete: take over everything, asked for or not.
        """
        try:
            there = Testbed.find(self.name)
        except NotFound:
            self._resolve()
            return False
        if complete:
            self._count, self.backend, self.options = len(there.hosts), there.backend, there.options
            self.mtu, self.store = there.mtu, there.store
            return True
        if self.backend not in ("auto", there.backend):
            raise AlreadyExists(f"testbed {self.name!r} is there, with backend {there.backend}")
        if self._count < len(there.hosts):
            raise AlreadyExists(f"testbed {self.name!r} is there, with {len(there.hosts)} hosts")
        if self._store_asked and self.store != there.store:
            raise AlreadyExists(f"testbed {self.name!r} is there, with store {there.store}")
        self.backend, self.mtu, self.store = there.backend, there.mtu, there.store
        self.options = self.options or there.options
        return True

    def _resolve(self) -> None:
        from slimnet.plugins import choose_backend  # noqa: PLC0415  # stevedore, when wanted

        self.backend = choose_backend(self.backend).kind.name

    def _configure(self, host: TestbedHost) -> None:
        settings = {
            "instance": host.instance,
            "host": host.name,
            "backend.name": self.backend,
            "store": self._store_url,
            "key_file": f"{self.directory}/key",
            "underlay.address": str(host.address),
            "underlay.interface": host.interface,
            "log.level": self.level,
            **{f"backend.{self.backend}.{key}": value for key, value in self.options.items()},
        }
        host.directory.mkdir(parents=True, exist_ok=True)
        # JSON's strings, numbers, booleans and lists are TOML's too.
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
        host.config.write_text("".join(lines))

    @property
    def etcd(self) -> Etcd | None:
        """The servers of its store, if it has some."""
        kind, _, members = self.store.partition(":")
        if kind != "etcd":
            return None
        from slimnet.testbed.etcd import Etcd  # noqa: PLC0415  # only where it is wanted

        underlay = self._underlay()
        address = str(underlay.network[_ETCD_NUMBER])
        directory = self.directory / "etcd"
        return Etcd(directory, address, int(members or 1), namespace=underlay.switch)

    @property
    def _store_url(self) -> str:
        etcd = self.etcd
        return f"sqlite:///{self.directory}/store.db" if etcd is None else etcd.url

    def _start_store(self) -> None:
        """What does not run of it; the underlay is up."""
        etcd = self.etcd
        if etcd is not None:
            underlay = self._underlay()
            underlay.join(underlay.network[_ETCD_NUMBER])
            etcd.start()

    def _cgroups(self) -> dict[str, Path]:
        return {host.name: cgroup.mount() / "slimnet" / host.instance for host in self.hosts}

    def _remove(self) -> None:
        own = [*self._cgroups().values(), *self._named_cgroups()]
        here = cgroup.of_process(os.getpid())
        if here is not None and any(here.is_relative_to(each) for each in own):
            raise InUse(f"testbed {self.name!r}: this process is in an endpoint of it")
        for host in self.hosts:
            agent = lock.holder(host.agent.parent)
            if agent not in (None, host.pid):
                raise InUse(
                    f"testbed {self.name!r}: an agent (process {agent}) that is not its own"
                    f" runs instance {host.instance}: stop it first"
                )
        troubles: list[str] = []
        for each in own:
            with _noted(troubles):
                cgroup.kill(each)
        for host in self.hosts:
            with _noted(troubles):
                host.stop_agent()
        with _noted(troubles):
            self._tear_down(troubles)
        for host in self.hosts:
            with _noted(troubles):
                cgroup.remove(self._cgroups()[host.name])
            host.clear()
        with _noted(troubles):
            if (etcd := self.etcd) is not None:
                etcd.remove()
        with _noted(troubles):
            self._underlay().down()
        shutil.rmtree(self.directory, ignore_errors=True)
        left = [str(path) for path in self._places() if path.exists()]
        if left := left + list(self._running()):
            troubles.append(f"still there: {', '.join(left)}")
        if troubles:
            raise SlimnetError(f"testbed {self.name!r}: {'; '.join(troubles)}")

    def _named_cgroups(self) -> list[Path]:
        """The cgroups that users named for endpoints."""
        from slimnet.cluster import Cluster  # noqa: PLC0415  # only where it is wanted
        from slimnet.plugins import open_store  # noqa: PLC0415  # only where it is wanted

        if self.etcd is not None:
            return self._asked_apart() if self.etcd.directory.exists() else []
        if not (self.directory / "store.db").exists():
            return []
        with open_store(self._store_url) as store:
            return [Path(each.cgroup) for each in Cluster(store).endpoints() if each.cgroup]

    def _asked_apart(self) -> list[Path]:
        """By a process of its own, which is in the underlay with all the threads that its
        client makes."""
        try:
            self._underlay().up()
            self._start_store()
        except (SlimnetError, OSError) as error:  # the rest has to go all the same
            _log.warning("testbed %s: its store is lost: %s", self.name, error)
            return []
        with netns.enter(self._underlay().switch):
            done = subprocess.run(
                [sys.executable, "-c", _NAMED_CGROUPS, self._store_url],
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            _log.warning("testbed %s: its store does not answer: %s", self.name, done.stderr)
        return [Path(line) for line in done.stdout.splitlines() if line]

    def _tear_down(self, troubles: list[str]) -> None:
        """Have each host's backend remove its data path. Where it cannot, what it left
        is purged: no process of any endpoint is left that could be unpoliced."""
        from slimnet.agent import teardown  # noqa: PLC0415  # only where it is wanted
        from slimnet.config import load_config  # noqa: PLC0415  # only where it is wanted
        from slimnet.plugins import (  # noqa: PLC0415  # stevedore, when wanted
            backend_class,
            backend_names,
        )

        if not any(host.config.exists() for host in self.hosts):
            return
        self._underlay().up()  # a namespace that went missing may hold the data path's end
        for host in self.hosts:
            if not host.config.exists():
                continue
            try:
                with host.enter():
                    teardown(load_config(host.config))
            except InUse as error:  # whatever killing did not end stays policed
                troubles.append(str(error))
            except Exception as error:  # noqa: BLE001  # the rest has to go all the same
                _log.warning("teardown of %s: %s", host.instance, error)
                _log.debug("teardown", exc_info=True)
                with host.enter(), _noted(troubles):
                    for name in backend_names():
                        backend_class(name).purge(host.instance, host.agent.parent / "state")

    def _running(self) -> Iterator[str]:
        """The data paths that there are."""
        from slimnet.plugins import running  # noqa: PLC0415  # stevedore, when wanted

        for host in self.hosts:
            for name in running(host.instance, host.agent.parent / "state"):
                yield f"{name} of instance {host.instance}"

    def _places(self) -> Iterator[Path]:
        for host in self.hosts:
            yield from (host.netns, host.agent.parent)
        yield self._underlay().switch
        yield from self._cgroups().values()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()


@contextlib.contextmanager
def _noted(troubles: list[str]) -> Iterator[None]:
    """An error becomes one of ``troubles``, and the removal goes on."""
    try:
        yield
    except (SlimnetError, OSError) as error:
        troubles.append(str(error))
