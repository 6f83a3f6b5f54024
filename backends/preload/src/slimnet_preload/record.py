# SPDX-License-Identifier: Apache-2.0
"""What the next process must know of an instance, and of its endpoints: files of its state
directory, where those of other backends may be too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from attrs import asdict, frozen
from netaddr import IPAddress

from slimnet import contract as shared
from slimnet_preload import contract

__all__ = ["ABI", "AttachedRecord", "InstanceRecord", "replace"]

#: What a data path of this package is: versions and layouts of all that crosses.
ABI = (
    f"{shared.SLIM_ABI_VERSION}:{shared.FINGERPRINT_HEX}"
    f"+{contract.SLIM_SHIM_VERSION}.{shared.SLIM_ANNOUNCE_VERSION}:{contract.FINGERPRINT_HEX}"
)


def replace(path: Path, *parts: bytes) -> None:
    """Write a file, for its owner only; whole or not at all.

    Raises:
        OSError: it could not be.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.writelines(parts)
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


@frozen
class InstanceRecord:
    """An instance.

    Attributes:
        abi: of what made it.
        cluster: id of the store that it serves.
    """

    abi: str
    cluster: str

    @classmethod
    def read(cls, state: Path) -> Self | None:
        """``None``: there is none."""
        try:
            return cls(**json.loads((state / "preload.json").read_text()))
        except FileNotFoundError:
            return None

    def write(self, state: Path) -> None:
        """Put it in place of the one that is there."""
        replace(state / "preload.json", json.dumps(asdict(self)).encode())


@frozen
class AttachedRecord:
    """An attached endpoint.

    Attributes:
        endpoint: its id.
        name: its full name.
        vni: its network's.
        address: its overlay address.
        cgroup: of its processes; empty: it has none.
        made: whether the cgroup was made here, and so goes with the endpoint.
        title: the path that stands for it where one is told: its cgroup, or what that would be.
        whole: all of it is there; written first without, so that whoever is killed in between
            leaves nothing that nobody knows of.
    """

    endpoint: int
    name: str
    vni: int
    address: str
    cgroup: str
    made: bool
    title: str
    whole: bool = False

    @property
    def overlay(self) -> IPAddress:
        """Its address."""
        return IPAddress(self.address)

    @property
    def directory(self) -> Path | None:
        """Its cgroup."""
        return Path(self.cgroup) if self.cgroup else None

    def is_there(self) -> bool:
        """Whether nobody has removed its cgroup."""
        return self.directory is None or self.directory.is_dir()

    def write(self, state: Path) -> None:
        """Put it in place of the one that is there."""
        replace(self._path(state), json.dumps(asdict(self)).encode())

    def remove(self, state: Path) -> None:
        """Removing what is not there is no error."""
        self._path(state).unlink(missing_ok=True)

    def _path(self, state: Path) -> Path:
        return state / f"preload-{self.endpoint}.json"

    @classmethod
    def all(cls, state: Path) -> Iterator[Self]:
        """Every one of the directory."""
        for path in sorted(state.glob("preload-*.json")):
            value: Mapping[str, Any] = json.loads(path.read_text())
            yield cls(**value)
