# SPDX-License-Identifier: Apache-2.0
"""Podman on a host of the laboratory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from attrs import field, frozen

from lab.engines import PLUGIN, Words, kill_all
from slimnet.demo.engine import CONTAINERS_CONF
from slimnet.linux import netns
from slimnet.testbed.host import TestbedHost


@frozen
class Podman(Words):
    """One host's, with a store of its own."""

    host: TestbedHost
    directory: Path
    image: Path
    network: str
    environment: dict = field(factory=dict)

    @classmethod
    def on(cls, host, directory, image, network):
        """In a directory of its own."""
        (directory / "net.d").mkdir()
        text = CONTAINERS_CONF.format(where=directory, plugin=PLUGIN.parent)
        (directory / "containers.conf").write_text(text)
        return cls(host, directory, image, network)

    def start(self, *words, **how):
        """Of the machine's podman, in the host's network."""
        command = ["nsenter", f"--net={self.host.netns}", "podman", "--root", self.directory / "s"]
        command += ["--runroot", self.directory / "r", "--log-level=error", *words]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.directory)}
        environment["CONTAINERS_CONF"] = str(self.directory / "containers.conf")
        environment |= self.environment
        return subprocess.Popen(
            [str(each) for each in command], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
        )  # fmt: skip

    def run(self, *words, status=0, options=()):
        """A container from the root file system: its options, ``--``, its command."""
        cut = words.index("--")
        options, command = words[:cut], words[cut + 1 :]
        return self("run", "--network", self.network, *options, "--rootfs", self.image, *command,
                    status=status)  # fmt: skip

    def end(self):
        """Remove its containers, and what it has mounted."""
        # Of a container whose start was killed, monitor and namespace stay.
        made = {
            each["path"]
            for file in self.directory.glob("s/*-containers/*/userdata/config.json")
            for each in json.loads(file.read_text())["linux"]["namespaces"]
            if each.get("path", "").startswith(f"{netns.DIRECTORY}/netns-")
        }
        self("rm", "--all", "--force", "--time=0")
        kill_all(self.directory)
        for path in made:
            netns.remove(Path(path))
        for kind in ("s/overlay", "s/vfs", "r"):
            subprocess.run(
                ["umount", "--quiet", "--recursive", self.directory / kind],
                check=False, capture_output=True,
            )  # fmt: skip
