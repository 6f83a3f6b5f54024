# SPDX-License-Identifier: Apache-2.0
"""What the routers counted and noted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen
from netaddr import IPAddress

from slimnet.fallback import nft
from slimnet.fallback.ruleset import TABLE, Refusal
from slimnet.model import Protocol, Reason

__all__ = ["Refused", "counters", "refusals"]

# What is about to expire may be gone before it is deleted.
_MARGIN = 2


@frozen
class Refused:
    """One packet that was refused: when, from where, to where, and why."""

    time: float
    source: tuple[IPAddress, int]
    destination: tuple[IPAddress, int]
    why: Refusal


def counters(routers: Iterable[Path]) -> dict[Reason, int]:
    """How often each reason was given; those that never were are left out."""
    total: dict[Reason, int] = {}
    for router in routers:
        for kind, value in nft.listing(f"counters table ip {TABLE}", router):
            if kind == "counter" and value["packets"]:
                reason = Reason(int(value["name"].removeprefix("reason_")))
                total[reason] = total.get(reason, 0) + value["packets"]
    return total


def refusals(router: Path) -> list[Refused]:
    """The refusals since the last call, oldest first; they are forgotten here."""
    found, keys = [], []
    now = time.time()
    for kind, value in nft.listing(f"set ip {TABLE} refused", router):
        for item in value.get("elem", ()) if kind == "set" else ():
            element = item["elem"]
            if element["expires"] > _MARGIN:
                source, sport, destination, dport, mark = element["val"]["concat"]
                why = Refusal.from_mark(mark)
                # ICMP has a type and a checksum there.
                ports = (0, 0) if why.protocol == Protocol.ICMP else (sport, dport)
                found.append(
                    Refused(
                        now - (value["timeout"] - element["expires"]),
                        (IPAddress(source), ports[0]),
                        (IPAddress(destination), ports[1]),
                        why,
                    )
                )
                keys.append(f"{source} . {sport} . {destination} . {dport} . {mark}")
    if keys:
        nft.apply(f"delete element ip {TABLE} refused {{ {', '.join(keys)} }}", router)
    return sorted(found, key=lambda refused: refused.time)
