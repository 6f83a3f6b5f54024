# SPDX-License-Identifier: Apache-2.0
"""Settings of the kernel: files below /proc/sys (proc_sys(5), sysctl(8)).

Names are paths (``net/ipv4/ip_forward``), and no dotted words: a device's name may have
a dot in it. What is below ``net/`` is the network namespace's of the calling thread.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["exists", "read", "write"]

_ROOT = Path("/proc/sys")


def exists(name: str) -> bool:
    """Whether this kernel has it: one without IPv6 has nothing below ``net/ipv6``, and
    a device's settings go with the device."""
    return (_ROOT / name).exists()


def read(name: str) -> str:
    """Its value, without the newline.

    Raises:
        FileNotFoundError: this kernel has none of that name.
    """
    return (_ROOT / name).read_text().strip()


def write(name: str, value: object) -> None:
    """Set it.

    Raises:
        FileNotFoundError: this kernel has none of that name.
        OSError: the kernel refused the value.
    """
    (_ROOT / name).write_text(f"{value}\n")
