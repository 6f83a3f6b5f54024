# SPDX-License-Identifier: Apache-2.0
"""BTF: what the compiler says of types, in an object file or in the kernel.

Source: the kernel's ``Documentation/bpf/btf.rst``.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import Any, Self

from slimnet_ebpf.libbpf import check, library

__all__ = ["Btf"]

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _DATASEC, _FLOAT, _ENUM64 = 1, 2, 3, 4, 5, 6, 15, 16, 19
_SCALARS = {_INT: "int", _ENUM: "int", _ENUM64: "int", _FLOAT: "float"}
# typedef, volatile, const, restrict and type tag: other names for what they are of.
_ALIASES = frozenset({8, 9, 10, 11, 18})


class Btf:
    """The types of one object.

    Args:
        handle: libbpf's; it has to outlive this.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._owned = False

    @classmethod
    def of_kernel(cls, number: int) -> Self:
        """That which was loaded into the kernel under that number; :meth:`close` it.

        Raises:
            BpfError: there is none.
        """
        handle = library().btf__load_from_kernel_by_id(number)
        check(None if handle is None else 0, f"read BTF {number}")
        made = cls(handle)
        made._owned = True
        return made

    def close(self) -> None:
        """Closing twice is no error."""
        if self._owned:
            library().btf__free(self._handle)
            self._owned = False

    def layout(self, number: int) -> str:
        """What bytes of that type are: each member's name, offset in bits, and layout. Two of
        the same layout are read alike, whatever their types are called.

        Args:
            number: the type's; 0: none, whose layout is empty.
        """
        if not number:
            return ""
        address = library().btf__type_by_id(self._handle, number)
        _, info, size = struct.unpack("=III", ctypes.string_at(address, 12))
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind in _ALIASES:
            return self.layout(size)
        if kind == _ARRAY:
            element, _, length = struct.unpack("=III", ctypes.string_at(address + 12, 12))
            return f"{self.layout(element)}[{length}]"
        if kind in (_STRUCT, _UNION):
            members = ctypes.string_at(address + 12, count * 12)
            inside = ",".join(
                f"{self._name(name)}@{offset}:{self.layout(member)}"
                for name, member, offset in struct.iter_unpack("=III", members)
            )
            return f"{size}{{{inside}}}"
        if kind == _PTR:
            return "*"
        return f"{_SCALARS.get(kind, kind)}{size}"

    def variables(self, name: str) -> Iterator[tuple[str, int, int]]:
        """(section, offset, size) of the variables of that name."""
        lib = library()
        for number in range(1, lib.btf__type_cnt(self._handle) if self._handle else 0):
            address = lib.btf__type_by_id(self._handle, number)
            section, info = struct.unpack("=II", ctypes.string_at(address, 8))
            if info >> 24 & 31 != _DATASEC:
                continue
            members = ctypes.string_at(address + 12, (info & 0xFFFF) * 12)
            for variable, offset, size in struct.iter_unpack("=III", members):
                (label,) = struct.unpack(
                    "=I", ctypes.string_at(lib.btf__type_by_id(self._handle, variable), 4)
                )
                if self._name(label) == name:
                    yield self._name(section), offset, size

    def _name(self, offset: int) -> str:
        return str(library().btf__name_by_offset(self._handle, offset).decode())
