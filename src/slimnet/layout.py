# SPDX-License-Identifier: Apache-2.0
"""Records of the contract to bytes and back, quicker than ctypes would.

The order, the widths and the byte order all come from the generated
:mod:`slimnet.contract`, or from what is generated of a data path's own contract;
nothing is written here a second time.
"""

from __future__ import annotations

import ctypes
import struct
from importlib import import_module
from typing import Any

from netaddr import IPAddress

__all__ = ["Layout", "from_bytes16", "to_bytes16"]

_MAPPED = bytes(10) + b"\xff\xff"


def to_bytes16(address: IPAddress) -> bytes:
    """As the contract holds it: network order, IPv4 mapped (RFC 4291, 2.5.5.2)."""
    packed: bytes = address.packed
    return packed if len(packed) == 16 else _MAPPED + packed


def from_bytes16(data: bytes) -> IPAddress:
    """The inverse of :func:`to_bytes16`."""
    if data.startswith(_MAPPED):
        return IPAddress(int.from_bytes(data[12:], "big"), version=4)
    return IPAddress(int.from_bytes(data, "big"), version=6)


class Layout:
    """The bytes of one struct of the contract.

    Fields are keyword arguments, absent ones are 0. Arrays in network order
    (addresses) and structs within are ``bytes``; scalars in network order are
    plain integers.
    """

    def __init__(self, structure: type[ctypes.Structure]) -> None:
        big_endian = import_module(structure.__module__).BIG_ENDIAN[structure.__name__]
        self._fields: list[tuple[str, str, int]] = []
        form = "="
        for name, kind in structure._fields_:  # type: ignore[misc]
            size = ctypes.sizeof(kind)
            if issubclass(kind, (ctypes.Array, ctypes.Structure)):
                role = "bytes" if name in big_endian else "array"
                form += f"{size}s"
            elif name in big_endian:
                role = "big"
                form += f"{size}s"
            else:
                role = "plain"
                form += {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
            self._fields.append((name, role, size))
        self._struct = struct.Struct(form)
        self._zero = {"bytes": b"", "array": b"", "big": 0, "plain": 0}
        self.structure = structure
        self.size = ctypes.sizeof(structure)
        if self._struct.size != self.size:
            raise AssertionError(f"{structure.__name__} has padding that is not explicit")

    def pack(self, **fields: Any) -> bytes:
        """Bytes of a record.

        Raises:
            TypeError: a field that the struct has not.
        """
        values = []
        for name, role, size in self._fields:
            value = fields.pop(name, self._zero[role])
            values.append(value.to_bytes(size, "big") if role == "big" else value)
        if fields:
            raise TypeError(f"{self.structure.__name__} has no field {', '.join(fields)}")
        return self._struct.pack(*values)

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Fields of a record."""
        return {
            name: int.from_bytes(value, "big") if role == "big" else value
            for (name, role, _), value in zip(self._fields, self._struct.unpack(data), strict=True)
        }
