# SPDX-License-Identifier: Apache-2.0
"""Routers and processes under the shim on hosts that are network namespaces, without an
agent: tables are written here."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attrs import evolve
from netaddr import IPAddress, IPNetwork

from slimnet.layout import to_bytes16
from slimnet.model import Direction, Reason, Wire, WireFormat
from slimnet.tables import CidrRecord, EndpointRecord, HostRecord, PolicyKey, PolicyRecord, Tables
from slimnet_preload import tables as file
from slimnet_preload.control import Control, RouterGone

SOURCES = Path(__file__).parents[2] / "backends" / "preload"
VNI = 7
PORT = 4789
_numbers = itertools.count(1)


def make(out: Path, *variables: str) -> Path:
    """Router and shim, in a directory."""
    out.mkdir(exist_ok=True)
    subprocess.run(
        ["make", "--silent", "-C", SOURCES, f"OUT={out}", *variables],
        check=True,
    )
    return out


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def compile_test(name: str, out: Path, *options: str, compiler: str = "gcc") -> Path:
    """A program of backends/preload/test."""
    program = out / name
    subprocess.run(
        [
            *(compiler, "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g"),
            *("-Wall", "-Wextra", "-Werror", "-pthread"),
            *options,
            *("-o", program, SOURCES / "test" / f"{name}.c"),
        ],
        check=True,
    )
    return program


class Host:
    """A network namespace with an underlay address, and a router in it."""

    def __init__(
        self,
        directory: Path,
        programs: Path,
        number: int,
        netns: str,
        user: int | None,
        through: Sequence[str | Path],
    ) -> None:
        self.user = user
        self.through = through
        self.directory = directory
        self.netns = netns
        self.address = IPAddress(f"10.99.0.{number}")
        self.control = Control(directory / "control")
        self.programs = programs
        self.router: subprocess.Popen[bytes] | None = None
        (directory / "key").write_bytes(b"0123456789abcdef")
        if user is not None:
            os.chown(directory, user, user)

    def command(self, *words: str | Path) -> list[str]:
        inside = ["ip", "netns", "exec", self.netns]
        if self.user is not None:
            inside += ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        return [*inside, *map(str, self.through), *map(str, words)]

    def start(self, *options: str) -> None:
        self.router = subprocess.Popen(
            self.command(
                self.programs / "slimnet-router",
                *("--control", self.directory / "control", "--state", self.directory / "state"),
                *("--host", str(self.address), "--listen", f"{self.address}:{PORT}"),
                *("--key", self.directory / "key", *options),
            )
        )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(RouterGone):
                self.control.status()
                return
            assert self.router.poll() is None, "the router does not start"
            assert time.monotonic() < deadline, "the router does not answer"
            time.sleep(0.005)

    def kill(self) -> None:
        assert self.router
        self.router.kill()
        self.router.wait()
        self.router = None

    def stop(self) -> None:
        if self.router:
            self.router.terminate()
            assert self.router.wait(10) == 0, "the router had an end of its own"


class Bench:
    """Hosts, and endpoints on them: endpoint ``n`` has the address 10.1.0.n and identity
    256 + n."""

    def __init__(
        self,
        directory: Path,
        programs: Path,
        hosts: int,
        user: int | None,
        through: Sequence[str | Path],
    ) -> None:
        self.programs = programs
        self.directory = directory
        self.hosts: list[Host] = []
        self.endpoints: dict[int, Host] = {}
        self.policy: dict[PolicyKey, PolicyRecord] = {}
        self.extra = Tables(generation=1)
        self.generation = 0
        self.before: list[str] = []  # libraries that are preloaded before the shim
        self.processes: list[subprocess.Popen[bytes]] = []
        self._names: list[str] = []
        for number in range(1, hosts + 1):
            name = f"slpl{os.getpid()}-{next(_numbers)}"
            self._ip("netns", "add", name)
            self._names.append(name)
            self._ip("-n", name, "link", "set", "lo", "up")
            own = directory / f"h{number}"
            own.mkdir(exist_ok=True)
            self.hosts.append(Host(own, programs, number, name, user, through))
        self._wire()

    def _wire(self) -> None:
        """The first is the bridge of them all."""
        first = self._names[0]
        self._ip("-n", first, "link", "add", "u0", "type", "bridge")
        self._ip("-n", first, "addr", "add", "10.99.0.1/24", "dev", "u0")
        self._ip("-n", first, "link", "set", "u0", "up")
        for number, name in enumerate(self._names[1:], 2):
            self._ip(
                *("-n", name, "link", "add", "u0", "type", "veth"),
                *("peer", "name", f"p{number}", "netns", first),
            )
            self._ip("-n", first, "link", "set", f"p{number}", "master", "u0", "up")
            self._ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", "u0")
            self._ip("-n", name, "link", "set", "u0", "up")

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def attach(self, number: int, host: Host) -> None:
        self.endpoints[number] = host
        address = to_bytes16(IPAddress(f"10.1.0.{number}"))
        host.control.attach(number, VNI, address, self.socket(number), host.user)

    def socket(self, number: int) -> Path:
        return self.endpoints[number].directory / f"e{number}"

    def tables(self, host: Host) -> Tables:
        wires = frozenset({WireFormat(Wire.ANNOUNCE, 1)})
        cidrs = {(VNI, IPNetwork("10.1.0.0/16")): CidrRecord(identity=1, overlay=True)}
        for each in self.hosts:
            cidrs[VNI, IPNetwork(each.address)] = CidrRecord(identity=2, host=True)
        return evolve(
            self.extra,
            generation=self.generation,
            addresses={(VNI, IPAddress(f"10.1.0.{n}")): n for n in self.endpoints}
            | dict(self.extra.addresses),
            endpoints={
                number: EndpointRecord(
                    address=IPAddress(f"10.1.0.{number}"),
                    host=place.address,
                    vni=VNI,
                    identity=256 + number,
                    local=place is host,
                    wire=None if place is host else Wire.ANNOUNCE,
                )
                for number, place in self.endpoints.items()
            },
            cidrs=cidrs,
            policy=self.policy,
            hosts={
                each.address: HostRecord(str(each.address), wires, f"{each.address}:{PORT}")
                for each in self.hosts
            },
        )

    def install(self) -> None:
        self.generation += 1
        for host in self.hosts:
            if not host.router or host.router.poll() is not None:
                continue
            path = host.directory / f"tables.{self.generation % 2}"
            file.write(self.tables(host), path)
            if host.user is not None:
                os.chown(path, host.user, host.user)
            host.control.install(path)

    def deny(self, subject: int, peer: int, direction: Direction) -> None:
        key = PolicyKey(256 + subject, 256 + peer, direction)
        self.policy[key] = PolicyRecord(allow=False, reason=Reason.RULE_DENY, rule=1)

    def environment(self, number: int | None) -> dict[str, str]:
        found = dict(os.environ)
        if number is not None:
            shim = self.programs / "libslimnet-shim.so"
            found["LD_PRELOAD"] = ":".join([*self.before, str(shim)])
            found["SLIMNET_SOCKET"] = str(self.socket(number))
        return found

    def popen(
        self,
        number: int | None,
        words: Sequence[str | Path],
        host: Host | None = None,
        stdin: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """A process of an endpoint, or of a host itself."""
        place = host or self.endpoints[number or 0]
        # The shim is for the program, not for ip(8).
        extra = self.environment(number)
        command = place.command(
            "env", f"LD_PRELOAD={extra.get('LD_PRELOAD', '')}",
            f"SLIMNET_SOCKET={extra.get('SLIMNET_SOCKET', '')}", *words,
        )  # fmt: skip
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def run(
        self, number: int | None, *words: str | Path, host: Host | None = None, timeout: float = 30
    ) -> str:
        process = self.popen(number, words, host)
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, err.decode()
        return out.decode()

    def serve(
        self, number: int, *words: str | Path, stdin: int | None = None
    ) -> subprocess.Popen[bytes]:
        """A server, when it has printed a line."""
        process = self.popen(number, words, stdin=stdin)
        assert process.stdout
        line = process.stdout.readline()
        assert line, process.communicate()[1].decode()
        return process

    def close(self) -> None:
        for process in self.processes:
            # With what it forked, which has its pipes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        with contextlib.ExitStack() as stack:  # each of it, whatever of it fails
            for name in self._names:
                stack.callback(self._ip, "netns", "del", name)
            for host in self.hosts:
                stack.callback(host.stop)


@contextlib.contextmanager
def bench(
    directory: Path,
    programs: Path,
    hosts: int,
    endpoints: int,
    user: int | None = None,
    through: Sequence[str | Path] = (),
) -> Iterator[Bench]:
    """Endpoint ``n`` is on host ``n % hosts``; routers and processes are ``user``'s, started by
    the command ``through``."""
    made = Bench(directory, programs, hosts, user, through)
    try:
        for host in made.hosts:
            host.start()
        for number in range(1, endpoints + 1):
            made.attach(number, made.hosts[number % hosts])
        made.install()
        yield made
    finally:
        made.close()
