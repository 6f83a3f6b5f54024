# SPDX-License-Identifier: Apache-2.0
"""What a change costs a cluster of many hosts on one etcd: ``python tests/etcd/crowd.py``.

Simulated agents, many in a process. Each has what an agent has of the store: connection, watch,
lease, host, copy of all records (:class:`slimnet.agent.mirror.Mirror`), and says what it has in
force when somebody waits. Some, "whole" ones, also compile each change and install it in a
:class:`slimnet.testing.MemoryBackend`, as every host does on a processor of its own: so many
compilers have no room on one machine. Those of one process share the records that they decode, for
the same reason, and read the whole store once. No data path, no sockets for clients.

- From a change's first request to etcd until the last agent has it, and until the last whole one
  has it in force: of one policy, of one endpoint.
- Requests to etcd for it, changes that etcd told, and the bytes that one agent was told.
- Until all have said that it is in force, where somebody waits.
- One agent from nothing: registered, everything read, compiled and installed.

Needs root and etcd. JSON on the standard output: seconds, counts, bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from servers import own_address

from slimnet import records
from slimnet.abc import Context, Store
from slimnet.agent.installer import Installer
from slimnet.agent.mirror import Mirror
from slimnet.agent.names import Names
from slimnet.cluster import Cluster, keys
from slimnet.cluster.own import OwnStore
from slimnet.cluster.progress import await_hosts
from slimnet.exceptions import NotFound
from slimnet.model import Endpoint, Host, Namespace, Network
from slimnet.policy import parse
from slimnet.policy.document import Document
from slimnet.tables import Change, Tables
from slimnet.testbed.etcd import Etcd
from slimnet.testing import MemoryBackend
from slimnet_etcd import EtcdStore, _feed

NETWORK = Network("prod", 1000, "10.0.0.0/8")
#: Endpoints of a namespace, and of how many applications they are.
IN_NAMESPACE, APPLICATIONS = 100, 10
#: Seconds that hosts have to follow.
PATIENCE = 120.0
#: Seconds of a lease: longer than an agent's, since one machine renews all of them.
LEASE = 60.0
#: Keys of one transaction that fills the store.
AT_ONCE = 500


def host(number: int) -> Host:
    return Host(f"h{number}", f"172.16.{number >> 8}.{number & 255}", {"vxlan"}, "memory")


def policy(number: int, namespaces: int, port: int = 80) -> Document:
    """Of one application of a namespace: it is reached from its neighbour, on a port."""
    application = number // namespaces % APPLICATIONS
    neighbour = {"matchLabels": {"app": f"a{(application - 1) % APPLICATIONS}"}}
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"p{number}",
            "namespace": f"n{number % namespaces}",
            "annotations": {"slimnet.io/network": NETWORK.name},
        },
        "spec": {
            "podSelector": {"matchLabels": {"app": f"a{application}"}},
            "ingress": [
                {"from": [{"podSelector": neighbour}], "ports": [{"port": port}]},
            ],
        },
    }
    (found,) = parse([{"manifest": manifest}])
    return found


def world(agents: int, endpoints: int, policies: int) -> dict[str, bytes]:
    """What the store holds of such a cluster, written as the cluster's own words write it."""
    namespaces = max(1, endpoints // IN_NAMESPACE)
    pairs: dict[str, bytes] = {keys.NETWORK.at(NETWORK.name): records.dump(NETWORK)}
    for number in range(namespaces):
        one = Namespace(NETWORK.name, f"n{number}")
        pairs[keys.NAMESPACE.at(NETWORK.name, one.name)] = records.dump(one)
    identities: dict[str, int] = {}
    for number in range(endpoints):
        labels = {"app": f"a{number % IN_NAMESPACE // (IN_NAMESPACE // APPLICATIONS)}"}
        space = f"n{number // IN_NAMESPACE}"
        identity = keys.IDENTITY.at(NETWORK.name, space, f"app={labels['app']}")
        made = Endpoint(
            NETWORK.name,
            f"e{number}",
            f"10.1.{number >> 8}.{number & 255}",
            f"h{number % agents}",
            namespace=space,
            id=(1 << 24) + number,
            labels=labels,
            identity=identities.setdefault(identity, 256 + len(identities)),
        )
        place = keys.ENDPOINT.at(NETWORK.name, space, made.name)
        pairs[place] = records.dump(made)
        pairs[keys.ADDRESS.at(NETWORK.name, made.address)] = records.dump(place)
        pairs[keys.ID.at(made.id)] = records.dump(place)
    pairs |= {key: b"%d" % number for key, number in identities.items()}
    pairs[keys.COUNTER.at("identity")] = b"%d" % len(identities)
    for number in range(policies):
        one = policy(number, namespaces)
        place = keys.POLICY.at(NETWORK.name, f"n{number % namespaces}", f"p{number}")
        pairs[place] = records.dump(one.to_json())
    pairs |= {keys.HOST.at(host(each).name): records.dump(host(each)) for each in range(agents)}
    return pairs


# In a process of agents


class Timed(MemoryBackend):
    """Says when tables were in force."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.times: list[float] = []

    def install(self, tables: Tables, change: Change | None = None) -> None:
        super().install(tables, change)
        self.times.append(time.monotonic())


class Agent:
    """What :class:`slimnet.agent.agent.Agent` does about the store, and what it does not.

    Args:
        url: of the store.
        number: of the host, which the store has already.
        directory: for the hosts files of one that is whole; ``None``: it is not.
        opened: opens the store.
    """

    def __init__(
        self,
        url: str,
        number: int,
        directory: Path | None,
        opened: Callable[[str, Mapping[str, Any]], Store] = EtcdStore.open,
    ) -> None:
        self.host = host(number)
        self.store = OwnStore(opened(url, {"timeout": 60}))
        self.cluster = Cluster(self.store)
        self.mirror = Mirror(self.store, self.store.id)
        self.lease = self.store.lease(LEASE)
        self.installer: Installer | None = None
        #: When tables were installed.
        self.times: list[float] = []
        if directory is not None:
            context = Context(f"crowd-{number}", self.host, "", directory, directory, bytes(16))
            backend = Timed(context)
            self.installer = Installer(backend, self.host, Names(directory))
            self.times = backend.times
        #: Seconds of its thread that it took to take over a change, with its tables and names.
        self.took: list[float] = []
        #: When it had followed the store up to a revision, and whatever that changes in its
        #: tables was in force.
        self.followed: list[tuple[int, float]] = []
        self._said = 0
        self._renewed = time.monotonic()
        self._take(self.mirror.catch_up())

    def run(self) -> None:
        while True:
            self.mirror.wait(LEASE / 20)
            self._take(self.mirror.take_told())
            if time.monotonic() - self._renewed >= LEASE / 4:
                try:
                    self.store.renew(self.lease)
                except NotFound:
                    self.lease = self.store.lease(LEASE)
                self._renewed = time.monotonic()

    def _take(self, changed: bool) -> None:
        followed, at = self.mirror.followed, time.monotonic()
        if changed and self.installer is not None:
            before, begin = len(self.times), time.thread_time()
            self.installer.apply(self.mirror)
            self.took.append(time.thread_time() - begin)
            assert not self.installer.trouble, self.installer.trouble
            # Hosts files come later: nobody waits for them.
            at = self.times[-1] if len(self.times) > before else time.monotonic()
        if not self.followed or followed > self.followed[-1][0]:
            self.followed.append((followed, at))
        wanted = self.mirror.wanted
        if self._said < wanted <= followed:
            self.cluster.set_installed(self.host, followed, self.lease, 1)
            self._said = wanted

    def since(self, revision: int) -> float | None:
        """When it had that revision; ``None``: not yet."""
        return next((at for reached, at in self.followed if reached >= revision), None)


class Once(EtcdStore):
    """The whole store is read once in a process, and followed from there: what it costs to join
    is measured alone."""

    whole: tuple[dict[str, tuple[bytes, int]], int] | None = None

    def list(self, prefix: str) -> tuple[dict[str, tuple[bytes, int]], int]:
        if prefix:
            return super().list(prefix)
        if Once.whole is None:
            Once.whole = super().list(prefix)
        return Once.whole


def shared(load: Callable[..., Any]) -> Callable[..., Any]:
    """The same record is decoded once in a process."""
    known: dict[tuple[Any, bytes], Any] = {}

    def look(key: str, data: bytes, decode: Callable[[Mapping[str, Any]], Any]) -> Any:
        if (decode, data) not in known:
            known[decode, data] = load(key, data, decode)
        return known[decode, data]

    return look


def work(url: str, numbers: range, whole: int, directory: Path) -> None:
    """The agents of one process; says of each revision that it reads when they had it."""
    records.load = shared(records.load)
    # gRPC looks ten times a second in each stream whether a signal came to the main thread; one
    # agent does not feel it, and a thousand have no time left.
    grpc._common.MAXIMUM_WAIT_TIMEOUT = 10.0  # type: ignore[attr-defined]
    told: list[int] = []
    take = _feed.Feed._take

    def count(feed: Any, response: Any) -> None:
        told.append(response.ByteSize())
        take(feed, response)

    _feed.Feed._take = count  # type: ignore[method-assign]
    threading.stack_size(256 * 1024)
    agents = []
    for place, number in enumerate(numbers):
        own = directory / f"h{number}"
        own.mkdir()
        compiles = place % max(1, len(numbers) // whole) == 0 if whole else False
        agents.append(Agent(url, number, own if compiles else None, Once.open))
        threading.Thread(target=agents[-1].run, daemon=True).start()
        print(f"{number} joined", file=sys.stderr) if place % 50 == 0 else None
    print("ready", flush=True)
    for line in sys.stdin:
        revision = int(line)
        deadline = time.monotonic() + PATIENCE
        while any(each.since(revision) is None for each in agents):
            assert time.monotonic() < deadline, f"revision {revision}"
            time.sleep(0.05)
        answer = {
            "followed": [each.since(revision) for each in agents],
            "whole": [each.since(revision) for each in agents if each.installer],
            "installed": sum(len(each.times) for each in agents),
            "took": [each.took[-1] for each in agents if each.took],
            "bytes": sum(told),
        }
        print(json.dumps(answer), flush=True)


# The measurements


class Crowd:
    """Processes of agents on one etcd."""

    def __init__(self, asked: argparse.Namespace, directory: Path) -> None:
        self._held = contextlib.ExitStack()
        self.agents = asked.agents
        self.etcd = Etcd(directory / "etcd", own_address(), durable=asked.durable)
        self._held.callback(self.etcd.remove)
        try:
            self.etcd.start()
            self.url = self.etcd.url
            self.store = self._held.enter_context(
                OwnStore(EtcdStore.open(self.url, {"timeout": 60}))
            )
            self._fill(world(asked.agents, asked.endpoints, asked.policies))
            self.workers = [
                self._worker(range(number, asked.agents, asked.processes), asked.whole, directory)
                for number in range(asked.processes)
            ]
            for worker in self.workers:
                assert worker.stdout is not None
                assert worker.stdout.readline() == "ready\n"
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._held.close()

    def _fill(self, pairs: dict[str, bytes]) -> None:
        every = list(pairs.items())
        for first in range(0, len(every), AT_ONCE):
            self.store.transact(put=dict(every[first : first + AT_ONCE]))

    def _worker(self, numbers: range, whole: int, directory: Path) -> subprocess.Popen[str]:
        code = (
            "import crowd, pathlib; crowd.work("
            f"{self.url!r}, {numbers!r}, {whole}, pathlib.Path({str(directory)!r}))"
        )
        worker = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._held.callback(worker.wait)
        self._held.callback(worker.kill)
        return worker

    def ask(self, revision: int) -> dict[str, Any]:
        """What all processes say of a revision, once all of their agents have it."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{revision}\n")
            worker.stdin.flush()
        answers = [json.loads(each.stdout.readline()) for each in self.workers if each.stdout]
        return {
            "followed": [each for one in answers for each in one["followed"]],
            "whole": [each for one in answers for each in one["whole"]],
            "installed": sum(each["installed"] for each in answers),
            "took": [each for one in answers for each in one["took"]],
            "bytes": sum(each["bytes"] for each in answers),
        }

    def counts(self) -> dict[str, float]:
        """What etcd was asked so far, by method, and how many changes it told."""
        address = f"http://{self.etcd.endpoints[0]}/metrics"
        with urllib.request.urlopen(address, timeout=60) as answer:
            text = answer.read().decode()
        asked = re.findall(
            r'^grpc_server_started_total{grpc_method="(\w+)".*} (\S+)', text, re.MULTILINE
        )
        told = re.findall(r"^(etcd_debugging_mvcc_events_total) (\S+)", text, re.MULTILINE)
        return {name: float(number) for name, number in (*asked, *told)}


def measure(
    crowd: Crowd, changes: Iterator[Callable[[], int]], times: int, pause: float
) -> dict[str, Any]:
    """What one kind of change costs; its call answers with the store's revision."""
    last, in_force, each_agent, written = [], [], [], []
    before = crowd.ask(1)
    requests: dict[str, list[float]] = {}
    installed, told = before["installed"], before["bytes"]
    figures: dict[str, list[float]] = {"installed": [], "bytes": [], "told": [], "took": []}
    for _ in range(times):
        change = next(changes)
        counted = crowd.counts()
        begin = time.monotonic()
        revision = change()
        written.append(time.monotonic() - begin)
        found = crowd.ask(revision)
        after = crowd.counts()
        last.append(max(found["followed"]) - begin)
        in_force.append(max(found["whole"]) - begin)
        each_agent += [each - begin for each in found["followed"]]
        for name in ("Range", "Txn", "LeaseGrant", "Watch"):
            requests.setdefault(name, []).append(after.get(name, 0) - counted.get(name, 0))
        name = "etcd_debugging_mvcc_events_total"
        figures["told"].append((after[name] - counted[name]) / crowd.agents)
        figures["installed"].append(found["installed"] - installed)
        figures["took"] += found["took"]
        figures["bytes"].append((found["bytes"] - told) / crowd.agents)
        installed, told = found["installed"], found["bytes"]
        time.sleep(pause)
    return {
        "changes": times,
        "written s, median": _round(statistics.median(written)),
        "an agent has it s, median": _round(statistics.median(each_agent)),
        "all agents have it s, median": _round(statistics.median(last)),
        "all agents have it s, worst": _round(max(last)),
        "in force on all whole ones s, median": _round(statistics.median(in_force)),
        "in force on all whole ones s, worst": _round(max(in_force)),
        "whole ones that installed, median": statistics.median(figures["installed"]),
        "a whole one's processor s, median": round(statistics.median(figures["took"]), 6),
        "bytes told to an agent, median": round(statistics.median(figures["bytes"])),
        "changes of keys told to an agent, median": round(statistics.median(figures["told"]), 1),
        "requests": {name: statistics.median(each) for name, each in requests.items()},
    }


def _round(seconds: float) -> float:
    return round(seconds, 3)


def policies(crowd: Crowd, asked: argparse.Namespace) -> Iterator[Callable[[], int]]:
    cluster = Cluster(crowd.store)
    namespaces = max(1, asked.endpoints // IN_NAMESPACE)
    for turn in range(asked.changes):
        changed = policy(turn, namespaces, 1000 + turn)
        yield functools.partial(lambda one: cluster.documents.apply([one])[1], changed)


def endpoints(crowd: Crowd, asked: argparse.Namespace) -> Iterator[Callable[[], int]]:
    cluster = Cluster(crowd.store)
    spec = {"network": NETWORK.name, "namespace": "n0", "labels": {"app": "a1"}}
    for turn in range(-1, asked.changes):
        made = spec | {"name": f"new{turn}", "host": host(turn % asked.agents).name}
        if turn < 0:  # the first one reads which addresses are taken
            cluster.create_endpoint(made)
        else:
            yield functools.partial(lambda one: cluster.create_endpoint(one)[1], made)


def waits(crowd: Crowd, asked: argparse.Namespace) -> dict[str, Any]:
    """A change for which somebody waits: until all have said that it is in force."""
    took, requests = [], []
    for turn in range(asked.changes):
        before, begin = crowd.counts(), time.monotonic()
        _, revision = Cluster(crowd.store).set_namespace(NETWORK.name, f"w{turn}")
        await_hosts(crowd.store, revision, PATIENCE)
        took.append(time.monotonic() - begin)
        after = crowd.counts()
        requests.append(sum(after[name] - before[name] for name in ("Range", "Txn")))
        time.sleep(asked.pause)
    return {
        "s, median": _round(statistics.median(took)),
        "s, worst": _round(max(took)),
        "requests, median": statistics.median(requests),
    }


def join(crowd: Crowd, asked: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """One more, in a process that has no other, from nothing."""
    took = []
    for turn in range(3):
        code = (
            "import sys, time, pathlib; begin = time.monotonic(); import crowd\n"
            f"one = crowd.Agent({crowd.url!r}, {asked.agents + turn}, pathlib.Path(sys.argv[1]))\n"
            "one.cluster.set_host(one.host, one.lease)\n"
            "one._take(one.mirror.catch_up())\n"
            "print(time.monotonic() - begin)"
        )
        own = directory / f"join{turn}"
        own.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", code, own],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
        )
        took.append(float(done.stdout))
        time.sleep(asked.pause)
    return {"s, median": _round(statistics.median(took)), "s, worst": _round(max(took))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--whole", type=int, default=2, help="agents of each that compile")
    parser.add_argument("--changes", type=int, default=9)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two changes")
    parser.add_argument("--durable", action="store_true", help="etcd waits for the disk")
    asked = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="slimnet-crowd-"))
    try:
        begin = time.monotonic()
        crowd = Crowd(asked, directory)
        with contextlib.closing(crowd):
            report: dict[str, Any] = {**vars(asked), "set up s": round(time.monotonic() - begin, 1)}
            report["load average"] = os.getloadavg()[0]
            report["policy"] = measure(crowd, policies(crowd, asked), asked.changes, asked.pause)
            report["endpoint"] = measure(crowd, endpoints(crowd, asked), asked.changes, asked.pause)
            report["waited for"] = waits(crowd, asked)
            report["join"] = join(crowd, asked, directory)
        print(json.dumps(report, indent=1))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
