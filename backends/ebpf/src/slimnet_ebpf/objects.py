# SPDX-License-Identifier: Apache-2.0
"""A BPF object file: opened, looked at, loaded into the kernel."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import evolve, fields, frozen

from slimnet import contract
from slimnet.exceptions import BackendUnavailable
from slimnet_ebpf import contract as private
from slimnet_ebpf.btf import Btf
from slimnet_ebpf.libbpf import BpfError, OpenOptions, check, library, recent
from slimnet_ebpf.maps import TYPE_ARRAY_OF_MAPS, Map

__all__ = ["AbiStamp", "Object", "Program", "Shape"]

_LOG_SIZE = 1 << 20
_LOG_LINES = 4
_INNER_SIZE = 1024
_STAMP = struct.Struct("=3Q")

Maps = Mapping[str, Map]


@frozen
class AbiStamp:
    """Which contracts a data path was built from.

    Attributes:
        version: of the one that all data paths share.
        fingerprint: of its layouts.
        own: of the layouts that only this data path has.
    """

    version: int
    fingerprint: int
    own: int

    @classmethod
    def ours(cls) -> Self:
        """What this distribution is built for."""
        return cls(contract.SLIM_ABI_VERSION, contract.FINGERPRINT, private.FINGERPRINT)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Self:
        """What the record of a data path says; 0 for what it does not."""
        return cls(*(record.get(item.name, 0) for item in fields(cls)))

    def __str__(self) -> str:
        return f"{self.version}/{self.fingerprint:016x}.{self.own:016x}"


@frozen
class Shape:
    """What a map is.

    Attributes:
        type: enum bpf_map_type.
        key_size: of a key, in bytes.
        value_size: of a value, in bytes.
        max_entries: at most.
        flags: BPF_F_*.
        layouts: of key and value (:meth:`.Btf.layout`); ``None``: not known.
    """

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    layouts: tuple[str, str] | None

    def fits(self, other: Shape) -> bool:
        """Whether programs that are made for the one can work on the other."""
        if self.layouts is None or other.layouts is None:
            return evolve(self, layouts=None) == evolve(other, layouts=None)
        return self == other


@frozen
class Program:
    """A loaded program.

    Attributes:
        name: of its C function.
        type: enum bpf_prog_type.
        attach_type: enum bpf_attach_type; 0 where the type has none.
        fd: open as long as its object is.
    """

    name: str
    type: int
    attach_type: int
    fd: int


class Object:
    """An object file; a context manager that closes what it opened.

    What has been pinned, or is otherwise held, outlives it.

    Raises:
        BackendUnavailable: the file is not there.
        BpfError: it is no BPF object.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise BackendUnavailable(f"{path} is missing: build it (make -C backends/ebpf)")
        self.path = path
        self._log = ctypes.create_string_buffer(_LOG_SIZE)
        options = OpenOptions(
            sz=ctypes.sizeof(OpenOptions),
            object_name=b"slimnet",
            kernel_log_buf=ctypes.addressof(self._log),
            kernel_log_size=_LOG_SIZE,
        )
        self._object: int | None = library().bpf_object__open_file(
            bytes(path), ctypes.byref(options)
        )
        if self._object is None:
            check(None, f"open {path}")

    def load(self, wanted: Callable[[str], bool] | None = None, maps: Maps | None = None) -> None:
        """Create its maps, verify and load its programs. The slots of its
        pairs of tables get empty tables.

        Args:
            wanted: whether a program is, by name; all are where nothing is given.
            maps: those of another load, by name, to be taken in place of its own.

        Raises:
            BpfError: with the verifier's last lines, or libbpf's last words.
        """
        lib = library()
        for handle in self._program_handles():
            name = lib.bpf_program__name(handle).decode()
            if wanted is not None and not wanted(name):
                check(lib.bpf_program__set_autoload(handle, False), f"leave out {name}")
        shared = set()
        for handle in self._map_handles():
            name = lib.bpf_map__name(handle).decode()
            if maps is not None and name in maps:
                check(lib.bpf_map__reuse_fd(handle, maps[name].fd), f"share {name}")
                shared.add(handle)
        # libbpf forgets the template of an inner map when it has loaded.
        templates = {
            handle: [
                ask(lib.bpf_map__inner_map(handle))
                for ask in (
                    lib.bpf_map__type,
                    lib.bpf_map__key_size,
                    lib.bpf_map__value_size,
                    lib.bpf_map__map_flags,
                )
            ]
            for handle in self._map_handles()
            if lib.bpf_map__type(handle) == TYPE_ARRAY_OF_MAPS and handle not in shared
        }
        recent.clear()
        result = lib.bpf_object__load(self._object)
        if result < 0:
            raise BpfError(-result, f"load {self.path.name}", self._last_lines())
        for handle, (kind, key_size, value_size, flags) in templates.items():
            outer = self._map(handle)
            for slot in range(outer.max_entries):
                outer.set_inner(
                    slot,
                    Map.create(kind, outer.name, key_size, value_size, _INNER_SIZE, flags),
                )

    def programs(self) -> list[Program]:
        """Its programs; loaded ones."""
        lib = library()
        return [
            Program(
                name=lib.bpf_program__name(handle).decode(),
                type=lib.bpf_program__type(handle),
                attach_type=lib.bpf_program__expected_attach_type(handle),
                fd=fd,
            )
            for handle in self._program_handles()
            if (fd := lib.bpf_program__fd(handle)) >= 0
        ]

    def maps(self) -> dict[str, Map]:
        """Its loaded maps by name, but for those that hold its constants."""
        return {
            name: self._map(handle)
            for handle in self._map_handles()
            if "." not in (name := library().bpf_map__name(handle).decode())
        }

    def shapes(self) -> dict[str, Shape]:
        """What its maps are, or will be, by name, but for those that hold its constants."""
        lib = library()
        types = Btf(lib.bpf_object__btf(self._object))
        return {
            name: Shape(
                lib.bpf_map__type(handle),
                lib.bpf_map__key_size(handle),
                lib.bpf_map__value_size(handle),
                lib.bpf_map__max_entries(handle),
                lib.bpf_map__map_flags(handle),
                (
                    types.layout(lib.bpf_map__btf_key_type_id(handle)),
                    types.layout(lib.bpf_map__btf_value_type_id(handle)),
                ),
            )
            for handle in self._map_handles()
            if "." not in (name := lib.bpf_map__name(handle).decode())
        }

    def constant(self, name: str) -> bytes:
        """The bytes of a global variable, as the file has them.

        Raises:
            LookupError: it has none of that name.
        """
        address, size = self._variable(name)
        return ctypes.string_at(address, size)

    def set_constant(self, name: str, value: bytes) -> None:
        """Give a global variable another value, before it is loaded.

        Raises:
            LookupError: it has none of that name and size.
        """
        address, size = self._variable(name)
        if size != len(value):
            raise LookupError(f"{self.path.name}: {name} has {size} bytes, not {len(value)}")
        ctypes.memmove(address, value, size)

    def _variable(self, name: str) -> tuple[int, int]:
        types = Btf(library().bpf_object__btf(self._object))
        for section, offset, size in types.variables(name):
            handle = library().bpf_object__find_map_by_name(self._object, section.encode())
            room = ctypes.c_size_t()
            data = library().bpf_map__initial_value(handle, ctypes.byref(room)) if handle else None
            if data and offset + size <= room.value:
                return data + offset, size
        raise LookupError(f"{self.path.name} has no variable {name}")

    def stamp(self) -> AbiStamp:
        """The contracts that it was built from (``slim_abi_stamp``)."""
        found = self.constant("slim_abi_stamp").ljust(_STAMP.size, b"\0")  # an older one is shorter
        return AbiStamp(*_STAMP.unpack(found))

    def close(self) -> None:
        """Closing twice is no error."""
        if self._object is not None:
            library().bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _program_handles(self) -> Iterator[Any]:
        handle = library().bpf_object__next_program(self._object, None)
        while handle:
            yield handle
            handle = library().bpf_object__next_program(self._object, handle)

    def _map_handles(self) -> Iterator[Any]:
        handle = library().bpf_object__next_map(self._object, None)
        while handle:
            yield handle
            handle = library().bpf_object__next_map(self._object, handle)

    def _map(self, handle: Any) -> Map:
        # libbpf closes its descriptors with the object; ours are our own.
        return Map(os.dup(library().bpf_map__fd(handle)))

    def _last_lines(self) -> str:
        lines = self._log.value.decode(errors="replace").strip().splitlines()
        # The last one is the verifier's statistics.
        said = [line for line in lines if line and not line.startswith("processed ")]
        return " | ".join(said[-_LOG_LINES:] or list(recent)[-2:])
