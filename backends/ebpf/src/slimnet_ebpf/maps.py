# SPDX-License-Identifier: Apache-2.0
"""A BPF map by its file descriptor: single and batched access, as bytes.

Source: the kernel's ``Documentation/bpf/maps.rst`` and ``uapi/linux/bpf.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from slimnet_ebpf.libbpf import MapOptions, check, library, possible_cpus

__all__ = ["Map"]

TYPE_HASH = 1
TYPE_ARRAY = 2
TYPE_PERCPU_ARRAY = 6
TYPE_LPM_TRIE = 11
TYPE_ARRAY_OF_MAPS = 12
NO_PREALLOC = 1

_FIRST_BATCH, _BATCH = 256, 4096
_PASSED_OVER = 64  # at once, where all are to be


class _Info(ctypes.Structure):
    """The start of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
    )


class Map:
    """An open map; closed by :meth:`close` or with the object.

    Args:
        fd: owned from here on.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        info = _Info()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        check(
            library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)),
            "ask for a map's shape",
        )
        self.type: int = info.type
        self.id: int = info.id
        self.key_size: int = info.key_size
        self.value_size: int = info.value_size
        self.max_entries: int = info.max_entries
        self.flags: int = info.map_flags
        self.name: str = info.name.decode()
        #: The kernel's number of the BTF that describes it, 0 where none does, and the numbers of
        #: key's and value's types in there.
        self.btf: tuple[int, int, int] = (
            info.btf_id,
            info.btf_key_type_id,
            info.btf_value_type_id,
        )
        # What a look-up from user space fills: one value for each CPU.
        self._value_room = self.value_size
        if self.type == TYPE_PERCPU_ARRAY:
            self._value_room = (self.value_size + 7) // 8 * 8 * possible_cpus()

    @classmethod
    def create(
        cls,
        type_: int,
        name: str,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
    ) -> Self:
        """A new map."""
        options = MapOptions(sz=ctypes.sizeof(MapOptions), map_flags=flags)
        fd = library().bpf_map_create(
            type_, name.encode(), key_size, value_size, max_entries, ctypes.byref(options)
        )
        return cls(check(fd, f"create map {name}"))

    @classmethod
    def pinned(cls, path: Path) -> Self:
        """The map that is pinned there."""
        return cls(check(library().bpf_obj_get(bytes(path)), f"open {path}"))

    @classmethod
    def by_id(cls, number: int) -> Self:
        """The map of that id (an outer map answers look-ups with one)."""
        return cls(check(library().bpf_map_get_fd_by_id(number), f"open map id {number}"))

    def like(self, max_entries: int) -> Map:
        """A new, empty map of the same shape and another size."""
        return Map.create(
            self.type, self.name, self.key_size, self.value_size, max_entries, self.flags
        )

    def pin(self, path: Path) -> None:
        """Keep it beyond this process."""
        check(library().bpf_obj_pin(self.fd, bytes(path)), f"pin {path}")

    def get(self, key: bytes) -> bytes | None:
        """The value, or ``None``; per-CPU values stand behind one another."""
        value = ctypes.create_string_buffer(self._value_room)
        result = library().bpf_map_lookup_elem(self.fd, self._key(key), value)
        if result == -errno.ENOENT:
            return None
        check(result, f"look up in {self.name}")
        return value.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Set one entry."""
        if len(value) != self._value_room:
            raise ValueError(f"{self.name}: value of {len(value)}, not {self._value_room} bytes")
        check(
            library().bpf_map_update_elem(self.fd, self._key(key), value, 0),
            f"write to {self.name}",
        )

    def delete(self, key: bytes) -> bool:
        """Remove one entry; whether it was there."""
        result = library().bpf_map_delete_elem(self.fd, self._key(key))
        if result == -errno.ENOENT:
            return False
        check(result, f"delete an entry of {self.name}")
        return True

    def items(self, *, without: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All entries, in batches (5.6 and newer). Entries that come and go
        meanwhile may be missed or seen twice.

        Args:
            without: a value to pass over: that of an array's many places which are not in use.
        """
        # Most tables are small, most of the time: new memory for thousands of entries costs more
        # than to read those.
        room = min(_FIRST_BATCH, self.max_entries)
        token = ctypes.create_string_buffer(max(self.key_size, 8))
        first = True
        keys = values = ctypes.create_string_buffer(0)
        while True:
            if len(keys) != room * self.key_size:
                keys = ctypes.create_string_buffer(room * self.key_size)
                values = ctypes.create_string_buffer(room * self._value_room)
            count = ctypes.c_uint32(room)
            # A failing look-up must be able to start again from the same place.
            after = ctypes.create_string_buffer(len(token))
            result = library().bpf_map_lookup_batch(
                self.fd, None if first else token, after, keys, values, ctypes.byref(count), None
            )
            if result == -errno.ENOSPC:  # a hash bucket holds more than the room
                room *= 2
                continue
            if result != -errno.ENOENT:
                check(result, f"read {self.name}")
            key_size, size = self.key_size, self._value_room
            key = ctypes.string_at(keys, count.value * key_size)
            value = ctypes.string_at(values, count.value * size)
            for start in range(0, count.value, _PASSED_OVER):
                end = min(start + _PASSED_OVER, count.value)
                part = value[start * size : end * size]
                if part == without * (end - start):
                    continue
                read = struct.iter_unpack(f"{key_size}s", key[start * key_size : end * key_size])
                for (one,), (its,) in zip(read, struct.iter_unpack(f"{size}s", part), strict=True):
                    if its != without:
                        yield one, its
            if result == -errno.ENOENT:
                return
            token, first = after, False
            room = min(4 * room, max(_BATCH, room), self.max_entries)

    def update(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Set many entries, in batches."""
        todo = list(items)
        for start in range(0, len(todo), _BATCH):
            part = todo[start : start + _BATCH]
            count = ctypes.c_uint32(len(part))
            check(
                library().bpf_map_update_batch(
                    self.fd,
                    b"".join(key for key, _ in part),
                    b"".join(value for _, value in part),
                    ctypes.byref(count),
                    None,
                ),
                f"write {len(part)} entries to {self.name}",
            )

    def remove(self, keys: Iterable[bytes]) -> None:
        """Delete many entries, in batches; those that are not there are no error."""
        todo = list(keys)
        while todo:
            part = todo[:_BATCH]
            count = ctypes.c_uint32(len(part))
            result = library().bpf_map_delete_batch(
                self.fd, b"".join(part), ctypes.byref(count), None
            )
            if result == -errno.ENOENT:  # it stopped at one that is not there
                todo = todo[count.value + 1 :]
                continue
            check(result, f"delete {len(part)} entries from {self.name}")
            todo = todo[_BATCH:]

    def inner(self, slot: int) -> Map | None:
        """The inner map in a slot of an array of maps, newly opened."""
        found = self.get(slot.to_bytes(4, sys.byteorder))
        return Map.by_id(int.from_bytes(found, sys.byteorder)) if found else None

    def set_inner(self, slot: int, inner: Map) -> None:
        """Put an inner map into a slot. The kernel answers after an RCU grace
        period: every program that may still use what was there has ended."""
        self.set(slot.to_bytes(4, sys.byteorder), inner.fd.to_bytes(4, sys.byteorder))

    def close(self) -> None:
        """Closing twice is no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"{self.name}: key of {len(key)}, not {self.key_size} bytes")
        return key
