# SPDX-License-Identifier: Apache-2.0
"""Network namespaces and the underlay between them.

The namespaces have no name: file descriptors of the test process hold them,
so that nothing is left even when it is killed.

::

    switched:  host0   host1   host2   outside        one bridge, 192.168.50.0/24
                 \\______\\_______\\_______/

    routed:    host0 --- router --- host1 ...         192.168.50+n.0/24 each
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from slimnet.linux import netns

__all__ = ["Namespace", "Underlay"]


class Namespace:
    """A network namespace; ``path`` can be entered by any process.

    Args:
        path: of one that somebody else made and will remove; ``None``: a new one,
            with loopback up.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._handle = -1
        if path is not None:
            self.path = path
            return

        def hold() -> None:
            self._handle = os.open(netns.own(), os.O_RDONLY)

        netns.apart(hold)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._handle}")
        self.ip("link set lo up")

    def run(self, *argv: str) -> str:
        """Run a program in here; its output."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", *argv], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, words: str) -> str:
        return self.run("ip", *words.split())

    def tc(self, words: str) -> str:
        return self.run("tc", *words.split())

    def sysctl(self, name: str, value: object) -> None:
        self.run("sysctl", "-q", "-w", f"{name}={value}")

    def cable(self, name: str, other: Namespace, other_name: str) -> None:
        """A veth pair between two namespaces, both ends up."""
        self.ip(f"link add {name} type veth peer name {other_name} netns {other.path}")
        self.ip(f"link set {name} up")
        other.ip(f"link set {other_name} up")

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Underlay:
    """What the hosts hang on; ``middle`` is the switch or the router."""

    INTERFACE = "eth0"

    def __init__(self, *, routed: bool = False) -> None:
        self.routed = routed
        self.middle = Namespace()
        self._hosts = 0
        if routed:
            self.middle.sysctl("net.ipv4.ip_forward", 1)
        else:
            self.middle.ip("link add bridge type bridge")
            self.middle.ip("link set bridge up")

    def join(self, namespace: Namespace) -> str:
        """Connect a namespace; its underlay address."""
        number = self._hosts
        self._hosts += 1
        namespace.cable(self.INTERFACE, self.middle, f"port{number}")
        if self.routed:
            address = f"192.168.{50 + number}.10"
            self.middle.ip(f"address add 192.168.{50 + number}.1/24 dev port{number}")
            namespace.ip(f"address add {address}/24 dev {self.INTERFACE}")
            namespace.ip(f"route add default via 192.168.{50 + number}.1")
        else:
            address = f"192.168.50.{10 + number}"
            self.middle.ip(f"link set port{number} master bridge")
            namespace.ip(f"address add {address}/24 dev {self.INTERFACE}")
        return address

    def close(self) -> None:
        self.middle.close()
