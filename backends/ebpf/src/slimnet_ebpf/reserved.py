# SPDX-License-Identifier: Apache-2.0
"""Ports of the host that the kernel gives to nobody by itself: the wire ports.

A service that binds to port 0 could be given one, and nothing from outside would reach it
(networking/ip-sysctl.rst, ip_local_reserved_ports; of the network namespace of the calling
thread).
"""

from __future__ import annotations

from collections.abc import Iterable

from slimnet.linux import sysctl

__all__ = ["SETTING", "give_back", "missing", "reserve"]

SETTING = "net/ipv4/ip_local_reserved_ports"


def missing(ports: range) -> str:
    """Those of ``ports`` that are not reserved yet, as the kernel writes them
    (``4790-4885``); empty where all are."""
    return _text(set(ports) - _parse(sysctl.read(SETTING)))


def reserve(ports: range) -> None:
    """Reserve them beside what is reserved."""
    held = _parse(sysctl.read(SETTING))
    if not held.issuperset(ports):
        sysctl.write(SETTING, _text(held.union(ports)))


def give_back(ports: str) -> None:
    """Undo :func:`reserve` for those that were :func:`missing` before; what others have
    reserved stays."""
    sysctl.write(SETTING, _text(_parse(sysctl.read(SETTING)) - _parse(ports)))


def _parse(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


def _text(ports: Iterable[int]) -> str:
    spans: list[tuple[int, int]] = []
    for port in sorted(ports):
        if spans and spans[-1][1] == port - 1:
            spans[-1] = (spans[-1][0], port)
        else:
            spans.append((port, port))
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in spans)
