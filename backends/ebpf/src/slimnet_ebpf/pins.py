# SPDX-License-Identifier: Apache-2.0
"""What of a data path outlives the process: its pins under bpffs.

::

    /sys/fs/bpf/slimnet/<instance>/
        maps/<map>                   the contract's maps, and two of our own:
        maps/record                  what was changed on the host, as JSON; pinned last
        maps/index                   which endpoint has which inner index
        programs/<program>-<attach type>
        links/lookup                 sk_lookup on the network namespace
        links/tcx-*                  tc programs on the underlay interface (Linux 6.6)

The programs of endpoints have no pins: their cgroups keep them. The record dies with
the boot, as what it records does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from slimnet import contract
from slimnet.exceptions import BackendError, CapabilityMissing, ConfigError
from slimnet.linux import libc, mounts
from slimnet.trusted import open_trusted
from slimnet_ebpf.libbpf import check, library
from slimnet_ebpf.links import program_type
from slimnet_ebpf.maps import TYPE_ARRAY, Map
from slimnet_ebpf.objects import Object, Program

__all__ = ["BPFFS", "INDEX_DEAD", "INDEX_ENTRY", "Pins", "mount_bpffs"]

BPFFS = Path("/sys/fs/bpf")
_RECORD_SIZE = 4096
#: A value of maps/index: endpoint, flags, cgroup id, freed at (monotonic, ns).
INDEX_ENTRY = "=IIQQ"
#: One of these flags: the endpoint is detached, but the kernel still has sockets of it.
INDEX_DEAD = 4
_ZERO = bytes(4)
# Maps that are not the contract's.
_OWN = frozenset({"index", "record"})


def mount_bpffs() -> None:
    """Mount bpffs at its usual place when nothing is mounted there.

    Raises:
        CapabilityMissing: it cannot be mounted.
    """
    if _mounted():
        return
    try:
        below = os.open(BPFFS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CapabilityMissing(f"{BPFFS} is missing: mount sysfs at /sys") from error
    try:
        # Two mounts over one another would hide the pins of the first.
        fcntl.flock(below, fcntl.LOCK_EX)
        if not _mounted():
            libc.mount("bpf", str(BPFFS), "bpf", data="mode=0700")
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise CapabilityMissing(
            f"bpffs cannot be mounted at {BPFFS} ({why}): mount -t bpf bpf {BPFFS}"
        ) from error
    finally:
        os.close(below)


def _mounted() -> bool:
    return any(each.point == str(BPFFS) for each in mounts.table("bpf"))


class Pins:
    """The pins of one instance.

    Raises:
        ConfigError: the instance's name cannot be a directory of bpffs.
    """

    def __init__(self, instance: str) -> None:
        if not instance or "." in instance or "/" in instance:
            raise ConfigError("instance", "a name without '.' and '/'", instance)
        self.root = BPFFS / "slimnet" / instance
        self.maps = self.root / "maps"
        self.programs = self.root / "programs"
        self.links = self.root / "links"
        self._held: dict[Path, int] = {}

    @contextlib.contextmanager
    def lock(self, *, create: bool = False) -> Iterator[None]:
        """Keep every other process from changing this instance.

        Raises:
            BackendError: the instance is gone.
            CapabilityMissing: a directory on the way is another user's, who may have
                made it before us, bpffs being writable for all where it was mounted so.
        """
        while True:
            try:
                fd = open_trusted(self.root, mode=0o700 if create else None)
            except FileNotFoundError as error:
                if create:
                    continue
                raise BackendError(f"{self.root} is gone: the data path was torn down") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # It may have been torn down, and made again, while we waited.
                if os.fstat(fd).st_nlink and self._is_root(fd):
                    yield
                    return
            finally:
                os.close(fd)

    def _is_root(self, fd: int) -> bool:
        try:
            return self.root.stat().st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            return False

    def complete(self) -> bool:
        """Whether a load got as far as its last pin."""
        return (self.maps / "record").exists()

    def store(self, loaded: Object, **record: Any) -> None:
        """Pin what was loaded, and last the record with its first entries."""
        for directory in (self.maps, self.programs, self.links):
            directory.mkdir(exist_ok=True)
        for name, map_ in loaded.maps().items():
            map_.pin(self.maps / name)
        for program in loaded.programs():
            self._pin(program)
        index = Map.create(
            TYPE_ARRAY, "index", 4, struct.calcsize(INDEX_ENTRY), contract.SLIM_INDEX_MAX + 1
        )
        index.pin(self.maps / "index")
        text = Map.create(TYPE_ARRAY, "record", 4, _RECORD_SIZE, 1)
        text.set(_ZERO, _to_record(record))
        text.pin(self.maps / "record")

    def replace(self, loaded: Object, kept: Collection[str]) -> None:
        """Pin what was loaded in place of what is pinned, but for the maps that go on.
        What becomes of the record is the caller's affair."""
        for path in self.maps.iterdir():
            if path.name not in kept and path.name not in _OWN:
                path.unlink()
        for path in self.programs.iterdir():
            path.unlink()
        for name, map_ in loaded.maps().items():
            if name not in kept:
                map_.pin(self.maps / name)
        for program in loaded.programs():
            self._pin(program)

    def has(self, program: str) -> bool:
        """Whether a program of that name is pinned."""
        return any(self.programs.glob(f"{program}-*"))

    def add(self, loaded: Object, own: str | None = None) -> None:
        """Pin and hold the programs of a later load, which has our maps.

        Args:
            loaded: has them.
            own: a map that is its own, pinned last.
        """
        for program in loaded.programs():
            # Whoever died in the midst of this left some of them.
            self._path(program).unlink(missing_ok=True)
            self._hold(self._pin(program))
        if own is not None:
            path = self.maps / own
            loaded.maps()[own].pin(path)
            self._hold(path)

    def _pin(self, program: Program) -> Path:
        path = self._path(program)
        check(library().bpf_obj_pin(program.fd, bytes(path)), f"pin {path}")
        return path

    def _path(self, program: Program) -> Path:
        return self.programs / f"{program.name}-{program.attach_type}"

    def hold(self) -> None:
        """Keep what is pinned open, for :meth:`mend`, until :meth:`release`."""
        for directory in (self.maps, self.programs):
            for path in directory.iterdir():
                self._hold(path)

    def _hold(self, path: Path) -> None:
        if path in self._held:
            os.close(self._held.pop(path))
        self._held[path] = check(library().bpf_obj_get(bytes(path)), f"open {path}")

    def release(self) -> None:
        """The inverse of :meth:`hold`."""
        while self._held:
            os.close(self._held.popitem()[1])

    def mend(self) -> list[str]:
        """Pin again what is held and somebody has removed, or hidden by an unmount.

        Returns:
            What was pinned.

        Raises:
            BackendError: the data path was torn down.
        """
        if not self._lost():
            return []
        mount_bpffs()
        with self.lock(create=True):
            if _removed(self._held[self.maps / "record"]):
                with contextlib.suppress(OSError):
                    self.remove_root()
                raise BackendError(f"{self.root} is gone: the data path was torn down")
            for directory in (self.maps, self.programs, self.links):
                directory.mkdir(exist_ok=True)
            for path in self._lost():
                check(library().bpf_obj_pin(self._held[path], bytes(path)), f"pin {path}")
        return [f"pins in {self.root}"]

    def _lost(self) -> list[Path]:
        there: set[Path] = set()
        for directory in (self.maps, self.programs):
            with contextlib.suppress(FileNotFoundError):
                there.update(directory.iterdir())
        return [path for path in self._held if path not in there]

    def open_map(self, name: str) -> Map:
        """A pinned map."""
        return Map.pinned(self.maps / name)

    def open_programs(self, prefix: str = "") -> list[Program]:
        """The pinned programs whose names begin so; the caller closes their descriptors."""
        found = []
        for path in sorted(self.programs.glob(f"{prefix}*")):
            name, _, attach_type = path.name.rpartition("-")
            fd = check(library().bpf_obj_get(bytes(path)), f"open {path}")
            found.append(Program(name, program_type(fd), int(attach_type), fd))
        return found

    def record(self) -> dict[str, Any]:
        """What was changed on the host."""
        data = self.open_map("record").get(_ZERO) or b""
        found: dict[str, Any] = json.loads(data.rstrip(b"\0") or b"{}")
        return found

    def write_record(self, **changes: Any) -> None:
        """Change some entries of the record; ``None`` removes one."""
        self.open_map("record").set(_ZERO, _to_record(self.record() | changes))

    def remove(self) -> None:
        """Remove every pin. The record goes first: what is left of an
        interrupted removal is no data path."""
        path = self.maps / "record"
        if path.exists():
            record = Map.pinned(path)
            path.unlink()
            # For a process that holds it, and would pin it again.
            record.set(_ZERO, _to_record({"removed": True}))
        for directory, names, files in os.walk(self.root, topdown=False):
            for name in files:
                (Path(directory) / name).unlink()
            for name in names:
                (Path(directory) / name).rmdir()

    def remove_root(self) -> None:
        """Remove the empty directory, and that of all instances if it is empty too."""
        self.root.rmdir()
        with contextlib.suppress(OSError):
            self.root.parent.rmdir()


def _removed(record: int) -> bool:
    """Whether a data path with that record, a descriptor of it, was removed on purpose."""
    data = Map(os.dup(record)).get(_ZERO) or b""
    return "removed" in json.loads(data.rstrip(b"\0") or b"{}")


def _to_record(entries: dict[str, Any]) -> bytes:
    text = json.dumps({key: value for key, value in entries.items() if value is not None})
    return text.encode().ljust(_RECORD_SIZE, b"\0")
