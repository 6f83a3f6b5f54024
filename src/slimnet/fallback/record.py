# SPDX-License-Identifier: Apache-2.0
"""What the next process must know of an endpoint that this one attached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from netaddr import IPAddress

from slimnet.linux import netns
from slimnet.place import Place

__all__ = ["Record"]


@frozen
class Record:
    """One attached endpoint, as a file of the state directory.

    Attributes:
        endpoint: its id.
        vni: its network's.
        address: its overlay address.
        cgroup: of its processes.
        made: whether the cgroup was made here, and so goes with the endpoint.
        netns: where its network namespace is mounted.
        given: inode number of the namespace that its caller brought; 0: it was made here,
            and so goes with the endpoint.
        whole: all of it is there; written first without, so that whoever is
            killed in between leaves nothing that nobody knows of.
    """

    endpoint: int
    vni: int
    address: IPAddress
    cgroup: Path
    made: bool
    netns: Path
    given: int = 0
    whole: bool = False

    def place(self) -> Place:
        """Where its processes belong."""
        return Place(self.cgroup, self.netns)

    def is_there(self) -> bool:
        """Whether nobody has removed its cgroup, or the namespace that was brought."""
        return self.cgroup.is_dir() and self.given in (0, netns.number(self.netns))

    def write(self, state: Path) -> None:
        """Whole or not at all."""
        path = self._path(state)
        fresh = path.with_suffix(".new")
        fresh.write_text(
            json.dumps(
                {
                    "endpoint": self.endpoint,
                    "vni": self.vni,
                    "address": str(self.address),
                    "cgroup": str(self.cgroup),
                    "made": self.made,
                    "netns": str(self.netns),
                    "given": self.given,
                    "whole": self.whole,
                }
            )
        )
        fresh.rename(path)

    def remove(self, state: Path) -> None:
        """Removing what is not there is no error."""
        self._path(state).unlink(missing_ok=True)

    def _path(self, state: Path) -> Path:
        return state / f"endpoint-{self.endpoint}.json"

    @classmethod
    def all(cls, state: Path) -> Iterator[Record]:
        """Every record of the directory."""
        for path in sorted(state.glob("endpoint-*.json")):
            value = json.loads(path.read_text())
            yield cls(
                endpoint=value["endpoint"],
                vni=value["vni"],
                address=IPAddress(value["address"]),
                cgroup=Path(value["cgroup"]),
                made=value["made"],
                netns=Path(value["netns"]),
                given=value.get("given", 0),
                whole=value["whole"],
            )
