# SPDX-License-Identifier: Apache-2.0
"""What the size of the tables costs the eBPF data path: ``python tests/policy/scale.py``.

- connect() with 10, 1,000 and 100,000 policy entries in force on both hosts, within one
  host and between two. The sizes take turns, each round has fresh hosts and begins with
  another size. A figure is the median of the rounds' medians, a ratio to the smallest
  size the median of the rounds' own ratios.
- Installing them, whole and for one changed entry; the memory that they take, as the
  kernel charges a map for it and as its slab grows.
- Compiling and installing many policies for many endpoints, from nothing and for one
  change of the store.

Needs root, gcc and make. JSON on the standard output; connect() in microseconds, the
rest in milliseconds and bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from attrs import evolve

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))
sys.path.insert(0, str(Path(__file__).parent))

import benchmark
from lab import Endpoint, Host, Lab
from lab.cluster import NETWORK
from worlds_big import big

from slimnet import contract
from slimnet.abc import Backend
from slimnet.encoding import encodings
from slimnet.model import Direction, Reason
from slimnet.model import Endpoint as Record
from slimnet.policy import Compiler
from slimnet.tables import Change, PolicyKey, PolicyRecord, Tables
from slimnet_ebpf import contract as private
from slimnet_ebpf.maps import Map
from slimnet_ebpf.pins import Pins

PROGRAMS = Path(__file__).parents[2] / "src" / "slimnet" / "demo" / "programs"
PORT = 7000
WARM = 200
CHANGES = 9
#: Whoever else is on the machine moves its slab more than fewer entries do.
SEEN_IN_SLAB = 100_000
#: Label sets of the cluster, numbered one after another as a store does, and how many
#: of them live on one host.
IDENTITIES, LOCAL = 2000, 64
MIDDLE = contract.SLIM_IDENTITY_FIRST + IDENTITIES // 2
#: The dialling endpoint and those that it dials: their entries have neighbours all around.
CLIENT, NEAR, FAR = (MIDDLE + number for number in (0, 7, 300))


def policy(entries: int) -> dict[PolicyKey, PolicyRecord]:
    """So many entries: subjects deny peers all but one port."""
    chance = random.Random(entries)

    def pairs() -> Iterator[tuple[int, int, Direction]]:
        for server in (NEAR, FAR):
            yield CLIENT, server, Direction.EGRESS
            yield server, CLIENT, Direction.INGRESS
        subjects = range(MIDDLE - LOCAL // 2, MIDDLE + LOCAL // 2)
        peers = range(contract.SLIM_IDENTITY_FIRST, contract.SLIM_IDENTITY_FIRST + IDENTITIES)
        every = list(itertools.product(subjects, peers, Direction))
        yield from chance.sample(every, min(len(every), entries))

    found: dict[PolicyKey, PolicyRecord] = {}
    for subject, peer, direction in pairs():
        if len(found) >= entries:
            break
        port = PORT if CLIENT in {subject, peer} else chance.randrange(1, 65536)
        allowed = PolicyKey(subject, peer, direction, 6, port, 16)
        found[allowed] = PolicyRecord(True, Reason.RULE_ALLOW, len(found) + 1)
        found[PolicyKey(subject, peer, direction)] = PolicyRecord(False, Reason.DEFAULT_DENY)
    return found


# What runs in the process of a host's backend


def _call(name: str, *arguments: Any) -> Any:
    import scale

    return getattr(scale, name)(*arguments)


def timed(backend: Backend, tables: Tables, change: Change | None = None) -> float:
    """Install; how long it took, in milliseconds."""
    return benchmark.timed(lambda: backend.install(tables, change))[0]


def install(backend: Backend, tables: Tables, entries: int) -> float:
    """Put these tables in force with so many policy entries."""
    generation = backend.status().generation + 1
    return timed(backend, evolve(tables, generation=generation, policy=policy(entries)))


def cost(backend: Backend, tables: Tables, entries: int) -> dict[str, Any]:
    """What so many entries cost but for connections."""
    slab = _slab()
    report: dict[str, Any] = {"whole ms": round(install(backend, tables, entries), 2)}
    grown = _slab() - slab
    tables = evolve(tables, generation=backend.status().generation, policy=policy(entries))
    times = []
    for turn in range(CHANGES + 1):
        key = PolicyKey(CLIENT, MIDDLE + turn, Direction.EGRESS, 17, 53, 16)
        one = {key: PolicyRecord(True, Reason.RULE_ALLOW, 2**31 + turn)}
        after = evolve(tables, generation=tables.generation + 1, policy={**tables.policy, **one})
        change = Change(tables.generation, Tables(after.generation, policy=one))
        times.append(timed(backend, after, change))
        tables = after
    report["first change ms"] = round(times[0], 2)
    report["one change ms"] = round(statistics.median(times[1:]), 2)
    charged = held(backend, private.SLIM_MAP_POLICY)
    report["memlock bytes per entry"] = round(charged / len(tables.policy), 1)
    if entries >= SEEN_IN_SLAB:
        report["slab bytes per entry"] = round(grown / entries, 1)
    report |= look_up(backend, tables)
    return report


def look_up(backend: Any, tables: Tables) -> dict[str, Any]:
    """A look-up by system call: of the dialling pair's entry, again and again, and of
    entries here and there. Only the difference between sizes is the table's."""
    kind = next(kind for kind in encodings({}) if kind.table == "policy")
    keys = list(tables.policy)
    chance = random.Random(1)
    orders = {
        "look-up ns": [PolicyKey(CLIENT, FAR, Direction.EGRESS, 6, PORT, 16)],
        "look-up here and there ns": chance.sample(keys, min(len(keys), 1000)),
    }
    report = {}
    with closing(active(backend, private.SLIM_MAP_POLICY)) as table:
        for name, some in orders.items():
            times = []
            for key in itertools.islice(itertools.cycle([kind.key(item) for item in some]), 20000):
                start = time.perf_counter_ns()
                table.get(key)
                times.append(time.perf_counter_ns() - start)
            report[name] = statistics.median(times)
    return report


def active(backend: Any, number: int) -> Map:
    """The table in force, newly opened."""
    pins = Pins(backend.context.instance)
    with closing(pins.open_map("slim_active")) as slots:
        slot = int.from_bytes(slots.get(bytes(4)) or b"", sys.byteorder) & 1
    with closing(pins.open_map(private.MAPS[number])) as tables:
        table = tables.inner(slot)
    assert table is not None
    return table


def held(backend: Any, number: int) -> int:
    """What the kernel charges the active table for (memlock of /proc/PID/fdinfo)."""
    with closing(active(backend, number)) as table:
        lines = Path(f"/proc/self/fdinfo/{table.fd}").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["memlock"])


def _slab() -> int:
    """Unreclaimable slab of the whole machine, where tries' nodes are."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(dict(line.split(":") for line in lines)["SUnreclaim"].split()[0])


def compile_and_install(backend: Backend, policies: int, endpoints: int) -> dict[str, Any]:
    """A world of that size, from nothing and for one change."""
    state = evolve(big(policies, endpoints, replicas=1), revision=backend.status().generation + 1)
    compiler = Compiler("h1")
    compiling, (tables, _) = benchmark.timed(lambda: compiler.update(state))
    installing = timed(backend, tables)
    report: dict[str, Any] = {
        "policies": policies,
        "endpoints": endpoints,
        "policy entries": len(tables.policy),
        "compile ms": round(compiling, 1),
        "install ms": round(installing, 1),
    }
    changes = (
        ("one policy", benchmark.changed_policy),
        ("one endpoint", benchmark.another_endpoint),
    )
    for name, alter in changes:
        times = []
        for turn in range(CHANGES + 1):
            state = alter(state, turn)
            compiling, (tables, change) = benchmark.timed(
                lambda state=state: compiler.update(state)
            )
            times.append((compiling, timed(backend, tables, change)))
        # The first writes whole tables: nobody knew how the other slot differed.
        for step, values in zip(("compile", "install"), zip(*times[1:], strict=True), strict=True):
            report[f"{name}, {step} ms"] = round(statistics.median(values), 2)
    for number, what in (
        (private.SLIM_MAP_POLICY, "policy"),
        (private.SLIM_MAP_ENDPOINT, "endpoints"),
        (private.SLIM_MAP_ADDRESS, "addresses"),
    ):
        size = held(backend, number) / len(getattr(tables, what))
        report[f"memlock bytes per entry of {what}"] = round(size, 1)
    return report


# The measurements


class Stage:
    """Fresh hosts: a client, and a server for it on each of two hosts."""

    def __init__(self, programs: Path) -> None:
        self._load = [*_pinned(0), programs / "load"]
        self.lab = Lab("ebpf", hosts=2)
        try:
            self.client = self._endpoint(CLIENT, self.lab.hosts[0])
            self.servers = {
                "one host": self._endpoint(NEAR, self.lab.hosts[0]),
                "two hosts": self._endpoint(FAR, self.lab.hosts[1]),
            }
            for server in self.servers.values():
                server.spawn([*_pinned(-1), programs / "answer", str(PORT), "accept"])
        except BaseException:
            self.lab.close()
            raise

    def _endpoint(self, identity: int, host: Host) -> Endpoint:
        number = len(self.lab.endpoints) + 1
        record = Record(
            NETWORK.name,
            f"e{number}",
            f"10.77.0.{number}",
            host.name,
            id=number,
            identity=identity,
        )
        return self.lab.attach(host, record, NETWORK)

    def ask(self, host: Host, name: str, *arguments: Any) -> Any:
        """Call a function of this module in the process of a host's backend."""
        assert host.driver is not None
        return host.driver.call(_call, name, host.backend, *arguments, deadline=600)

    def install(self, entries: int) -> None:
        for host in self.lab.hosts:
            self.ask(host, "install", self.lab.tables(host), entries)

    def connect(self, place: str, count: int) -> float:
        """The median time of connect(), in microseconds."""
        server = self.servers[place].address
        self.client.run([*self._load, "wait", server, PORT])
        self.client.run([*self._load, "connect", server, PORT, WARM])
        said = json.loads(self.client.run([*self._load, "connect", server, PORT, count]))
        if said["failed"]:
            raise RuntimeError(f"{place}: {said['failed']}")
        return float(said["connect_us"]["p50"])


def _pinned(which: int) -> list[str]:
    return ["taskset", "--cpu-list", str(sorted(os.sched_getaffinity(0))[which])]


def connects(programs: Path, sizes: Sequence[int], rounds: int, count: int) -> dict[str, Any]:
    """connect() at every size, all rounds."""
    found: dict[str, dict[int, list[float]]] = {}
    for turn in range(rounds):
        shift = turn % len(sizes)
        stage = Stage(programs)
        with closing(stage.lab):
            for size in (*sizes[shift:], *sizes[:shift]):
                stage.install(size)
                for place in stage.servers:
                    value = stage.connect(place, count)
                    found.setdefault(place, {}).setdefault(size, []).append(value)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    report = {}
    for place, values in found.items():
        smallest = values[min(sizes)]
        report[place] = {
            str(size): {
                "us": round(statistics.median(values[size]), 2),
                "ratio": round(
                    statistics.median(a / b for a, b in zip(values[size], smallest, strict=True)), 3
                ),
                "lowest": round(min(values[size]), 2),
                "highest": round(max(values[size]), 2),
            }
            for size in sizes
        }
    return report


def costs(programs: Path, sizes: Sequence[int], policies: int, endpoints: int) -> dict[str, Any]:
    """Everything but connections, each size on hosts of its own."""
    report: dict[str, Any] = {}
    for size in sizes:
        stage = Stage(programs)
        with closing(stage.lab):
            host = stage.lab.hosts[0]
            report[str(size)] = stage.ask(host, "cost", stage.lab.tables(host), size)
    stage = Stage(programs)
    with closing(stage.lab):
        world = stage.ask(stage.lab.hosts[0], "compile_and_install", policies, endpoints)
    return {"tables": report, "world": world}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--connects", type=int, default=1000, help="in each round")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1000, 100_000])
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10_000)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slt-") as directory:
        programs = Path(directory)
        programs.chmod(0o755)
        subprocess.run(["make", "-s", "-C", PROGRAMS, f"OUT={programs}"], check=True)
        report = {
            "kernel": platform.release(),
            "load before": os.getloadavg()[0],
            "connect": connects(programs, options.sizes, options.rounds, options.connects),
            **costs(programs, options.sizes, options.policies, options.endpoints),
        }
    return report | {"seconds": round(time.monotonic() - started)}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
