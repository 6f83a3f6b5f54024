# SPDX-License-Identifier: Apache-2.0
"""A container engine on one of the demo's hosts, with a store of its own and, where the engine has
one, a daemon of its own.

Containers see this machine's ``/usr``, read-only, below a root directory that has nothing else:
what runs in them is what runs on the hosts.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from slimnet.exceptions import CapabilityMissing, SlimnetError
from slimnet.testbed import daemon

__all__ = ["BRIDGE", "CONTAINERD", "CONTAINERS_CONF", "ENGINES", "Docker", "HostEngine", "Podman"]

#: The device of an engine's own network.
BRIDGE = "demo0"
#: Where Debian has engines and servers; a machine may have others first in its path.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
#: What programs want of /etc, besides.
_FILES = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "alternatives", "postgresql-common")
_PATIENCE = 60.0
_PLUGINS = Path("/run/docker/plugins")

#: Of Podman: for a directory, and that of ``slimnet-cni``.
CONTAINERS_CONF = """\
[network]
network_backend = "cni"
network_config_dir = "{where}/net.d"
cni_plugin_dirs = ["{plugin}", "/usr/lib/cni"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
"""

#: For a directory.
CONTAINERD = """\
version = 2
root = "{where}/c"
state = "{where}/cs"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{where}/c.sock"
"""


class HostEngine(abc.ABC):
    """One host's.

    Args:
        directory: of its own; made where it is missing.
        netns: the host's network namespace.
    """

    #: The programs that it needs, each with the Debian package that has it.
    needs: ClassVar[dict[str, str]]

    def __init__(self, directory: Path, netns: Path) -> None:
        self.directory = directory
        self.netns = netns
        self.environment = {"PATH": _PATH, "HOME": str(directory)}

    @classmethod
    def check(cls) -> None:
        """Is it installed?

        Raises:
            CapabilityMissing: says which Debian package has it.
        """
        for program, package in cls.needs.items():
            if not shutil.which(program, path=f"{_PATH}:/usr/lib/cni"):
                raise CapabilityMissing(f"{program}: not found; apt install {package}")

    @abc.abstractmethod
    def command(self, *words: object) -> list[str]:
        """A command line of the engine's, on its host."""

    @abc.abstractmethod
    def start(self) -> None:
        """Make ready to run containers."""

    @abc.abstractmethod
    def bridge(self, subnet: str, gateway: str, mtu: int) -> None:
        """Make the network ``demo`` the engine's own, on the device :data:`BRIDGE`."""

    @abc.abstractmethod
    def overlay(self, network: str, agent: Path, subnet: str, label: str) -> None:
        """Make the network ``demo`` slimnet's, with ``app=label`` for its containers."""

    @abc.abstractmethod
    def image(self) -> Sequence[str]:
        """The words for what containers start from."""

    def run(self, name: str, network: str, mount: Path, *options: str) -> int:
        """Start a container that does nothing, and sees a directory of this machine.

        Returns:
            its first process.
        """
        words = ("run", "--detach", "--name", name, "--network", network, *options)
        mounts = ("--volume=/usr:/usr:ro", f"--volume={mount}:{mount}")
        self.call(*words, *mounts, *self.image(), "sleep", "infinity")
        return int(self.call("inspect", "--format={{.State.Pid}}", name))

    def call(self, *words: object) -> str:
        """What the engine says.

        Raises:
            SlimnetError: it refuses; with its last line.
        """
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            raise SlimnetError(f"{type(self).__name__.lower()} {words[0]}: {said[0]}")
        return done.stdout

    def end(self) -> None:
        """Remove its containers, and all that it has; what is not there is no error."""
        with contextlib.suppress(SlimnetError, OSError, subprocess.TimeoutExpired):
            self._remove_containers()
        self._stop()
        # Monitors and shims name the directory; of an engine that was killed they are there.
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # ended meanwhile
                if f"{self.directory}/".encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for each in reversed(mounts):
            if each.startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", each], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _remove_containers(self) -> None:
        if self.directory.exists() and (found := self.call("ps", "--all", "--quiet").split()):
            self.call("rm", "--force", *found)

    def _stop(self) -> None:
        """End what :meth:`start` started."""

    def _root(self) -> Path:
        root = self.directory / "root"
        for each in ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"):
            (root / each).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        for each in ("bin", "lib", "lib64", "sbin"):
            if Path("/", each).is_symlink():
                (root / each).symlink_to(f"usr/{each}")
        for each in _FILES:
            source = Path("/etc", each)
            if source.is_dir():
                shutil.copytree(source, root / "etc" / each, symlinks=True)
            elif source.exists():
                shutil.copy(source, root / "etc" / each)
        return root


class Podman(HostEngine):
    """By CNI, as Debian 12 has it."""

    needs: ClassVar[dict[str, str]] = {
        "podman": "podman",
        "runc": "runc",
        "bridge": "containernetworking-plugins",
    }

    def command(self, *words: object) -> list[str]:
        """See :meth:`HostEngine.command`."""
        where = self.directory
        prefix = ["nsenter", f"--net={self.netns}", "podman", "--log-level=error"]
        return [*prefix, "--root", f"{where}/s", "--runroot", f"{where}/r", *map(str, words)]

    def start(self) -> None:
        """See :meth:`HostEngine.start`."""
        (self.directory / "net.d").mkdir(parents=True)
        plugin = Path(sys.executable).parent
        conf = self.directory / "containers.conf"
        conf.write_text(CONTAINERS_CONF.format(where=self.directory, plugin=plugin))
        self.environment["CONTAINERS_CONF"] = str(conf)
        self._root()

    def bridge(self, subnet: str, gateway: str, mtu: int) -> None:
        """See :meth:`HostEngine.bridge`."""
        ipam = {"type": "host-local", "ranges": [[{"subnet": subnet, "gateway": gateway}]]}
        self._network(
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "mtu": mtu,
                "ipam": {**ipam, "dataDir": f"{self.directory}/ipam"},
                "capabilities": {"ips": True},
            }
        )

    def overlay(self, network: str, agent: Path, subnet: str, label: str) -> None:
        """See :meth:`HostEngine.overlay`."""
        del subnet  # it is the network's
        words = {"type": "slimnet-cni", "network": network, "agent": str(agent)}
        self._network({**words, "labels": {"app": label}})

    def _network(self, plugin: dict[str, object]) -> None:
        listed = {"cniVersion": "0.4.0", "name": "demo", "plugins": [plugin]}
        (self.directory / "net.d/demo.conflist").write_text(json.dumps(listed))

    def image(self) -> Sequence[str]:
        """See :meth:`HostEngine.image`."""
        return "--rootfs", f"{self.directory}/root"

    def end(self) -> None:
        """See :meth:`HostEngine.end`."""
        self.environment["CONTAINERS_CONF"] = f"{self.directory}/containers.conf"
        super().end()


class Docker(HostEngine):
    """With containerd apart, as Debian has it, and slimnet's plugin."""

    needs: ClassVar[dict[str, str]] = {"dockerd": "docker.io", "containerd": "containerd"}

    def __init__(self, directory: Path, netns: Path) -> None:
        super().__init__(directory, netns)
        self._driver = f"{directory.parent.name}-{directory.name}"
        self._options: tuple[str, ...] = ()

    def command(self, *words: object) -> list[str]:
        """See :meth:`HostEngine.command`."""
        docker = shutil.which("docker", path=_PATH) or "docker"
        return [docker, "--host", f"unix://{self.directory}/d.sock", *map(str, words)]

    def start(self) -> None:
        """See :meth:`HostEngine.start`."""
        where = self.directory
        where.mkdir(parents=True)
        (where / "containerd.toml").write_text(CONTAINERD.format(where=where))
        (where / "none.json").write_text("{}")  # not the machine's
        self._start("containerd", where / "c.sock", "--config", where / "containerd.toml")
        self._start(
            *("dockerd", where / "d.sock", "--config-file", where / "none.json"),
            *("--data-root", where / "d", "--exec-root", where / "x", "--pidfile", where / "pid"),
            *("--host", f"unix://{where}/d.sock", "--containerd", where / "c.sock"),
            *("--bridge=none", "--iptables=false", "--ip-forward=false", "--userland-proxy=false"),
            *("--storage-driver=vfs", "--exec-opt", "native.cgroupdriver=cgroupfs"),
            *("--oom-score-adjust=0", "--shutdown-timeout=3"),
        )
        tar = subprocess.run(
            ["tar", "-C", self._root(), "-c", "."], check=True, capture_output=True
        ).stdout
        subprocess.run(self.command("import", "-", "demo"), input=tar, check=True,
                       capture_output=True, env=self.environment)  # fmt: skip

    def bridge(self, subnet: str, gateway: str, mtu: int) -> None:
        """See :meth:`HostEngine.bridge`."""
        own = (f"name={BRIDGE}", "enable_ip_masquerade=false")
        options = [f"--opt=com.docker.network.bridge.{each}" for each in own]
        options.append(f"--opt=com.docker.network.driver.mtu={mtu}")
        self.call(
            *("network", "create", "--driver=bridge", "--subnet", subnet, "--gateway", gateway),
            *(*options, "demo"),
        )

    def overlay(self, network: str, agent: Path, subnet: str, label: str) -> None:
        """See :meth:`HostEngine.overlay`."""
        del network  # it is the one that has the subnet
        plugin = _PLUGINS / f"{self._driver}.sock"
        self._start(
            *(sys.executable, plugin, "-m", "slimnet.cli", "--agent", agent, "docker-plugin"),
            *("--socket", plugin, "--docker", self.directory / "d.sock"),
        )
        driver = ("--driver", self._driver, "--ipam-driver", self._driver)
        self.call("network", "create", *driver, "--subnet", subnet, "demo")
        self._options = ("--label", f"app={label}")

    def image(self) -> Sequence[str]:
        """See :meth:`HostEngine.image`."""
        return *self._options, "demo"

    def _start(self, program: str, answers: Path, *words: object) -> None:
        name = Path(program).name
        found = shutil.which(program, path=_PATH) or program
        nsenter = shutil.which("nsenter") or "nsenter"
        argv = [nsenter, f"--net={self.netns}", found, *map(str, words)]
        pid_file = self.directory / f"{name}.pidfile"
        daemon.start(argv, pid_file, self.directory / f"{name}.log", self.environment)
        deadline = time.monotonic() + _PATIENCE
        while not _answers(answers):
            if daemon.running(pid_file) is None or time.monotonic() > deadline:
                said = (self.directory / f"{name}.log").read_text().splitlines()[-1:]
                raise SlimnetError(f"{name}: {said[0] if said else 'it does not answer'}")
            time.sleep(0.1)

    def _remove_containers(self) -> None:
        super()._remove_containers()
        with contextlib.suppress(SlimnetError):
            self.call("network", "rm", "demo")

    def _stop(self) -> None:
        for name in ("dockerd", "containerd", Path(sys.executable).name):
            daemon.stop(self.directory / f"{name}.pidfile")
        (_PLUGINS / f"{self._driver}.sock").unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.connect(str(path))
        return True
    return False


#: By what ``--engine`` calls them.
ENGINES: dict[str, type[HostEngine]] = {"podman": Podman, "docker": Docker}
