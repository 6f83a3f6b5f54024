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
    """What the hosts hang on; ``middle`` is the switch or the router.

    Args:
        routed: each host in a subnet of its own.
        mtu: of every interface, in bytes.
    """

    INTERFACE = "eth0"

    def __init__(self, *, routed: bool = False, mtu: int = 1500) -> None:
        self.routed = routed
        self.mtu = mtu
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
        port = f"port{number}"
        self.plug(namespace, port)
        if self.routed:
            address = f"192.168.{50 + number}.10"
            self.middle.ip(f"address add 192.168.{50 + number}.1/24 dev {port}")
            namespace.ip(f"address add {address}/24 dev {self.INTERFACE}")
            namespace.ip(f"route add default via 192.168.{50 + number}.1")
        else:
            address = f"192.168.50.{10 + number}"
            self.middle.ip(f"link set {port} master bridge")
            namespace.ip(f"address add {address}/24 dev {self.INTERFACE}")
        return address

    def plug(self, namespace: Namespace, port: str) -> None:
        """Make a host's underlay interface, whose other end is ``port`` of the middle."""
        self.cable(namespace, self.INTERFACE, port)

    def cable(self, namespace: Namespace, name: str, port: str) -> None:
        """A veth pair of the underlay's MTU from an interface of that name to ``port``."""
        namespace.cable(name, self.middle, port)
        namespace.ip(f"link set {name} mtu {self.mtu}")
        self.middle.ip(f"link set {port} mtu {self.mtu}")

    def close(self) -> None:
        self.middle.close()
