# SPDX-License-Identifier: Apache-2.0
"""The file out of which a router has its tables (``preload/control.h``, enum slim_file_table)."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import sizeof
from pathlib import Path

from netaddr import AddrFormatError, IPAddress

from slimnet import contract as shared
from slimnet.encoding import encodings
from slimnet.layout import Layout, to_bytes16
from slimnet.model import Wire
from slimnet.tables import HostRecord, Tables
from slimnet_preload import contract
from slimnet_preload.record import replace

__all__ = ["write"]

_HEADER = Layout(contract.slim_file_header)
_SECTION = Layout(contract.slim_file_section)
_HOST = Layout(contract.slim_file_host)
_ALIGNMENT = 8
_NUMBER = 4
#: The tables in the file's order, each with the sizes of key and value.
_TABLES = {
    "addresses": (sizeof(shared.slim_address_key), _NUMBER),
    "endpoints": (_NUMBER, sizeof(shared.slim_endpoint)),
    "cidrs": (sizeof(shared.slim_cidr_key), sizeof(shared.slim_cidr)),
    "policy": (sizeof(shared.slim_policy_key), sizeof(shared.slim_policy)),
    "services": (sizeof(shared.slim_service_key), sizeof(shared.slim_service)),
    "published": (sizeof(shared.slim_publish_key), sizeof(shared.slim_publish)),
    "hosts": (16, sizeof(contract.slim_file_host)),
}


def write(tables: Tables, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: it could not be.
    """
    every = {each.table: each for each in encodings({})}
    sections, bodies, at = [], [], _HEADER.size
    for name, (key_size, value_size) in _TABLES.items():
        rows = _hosts(tables) if name == "hosts" else every[name].records(tables)
        body = b"".join(rows)
        count = len(body) // (key_size + value_size)
        sections.append(
            _SECTION.pack(offset=at, count=count, key_size=key_size, value_size=value_size)
        )
        body += bytes(-len(body) % _ALIGNMENT)
        bodies.append(body)
        at += len(body)
    header = _HEADER.pack(
        magic=contract.SLIM_FILE_MAGIC,
        abi=shared.SLIM_ABI_VERSION,
        generation=tables.generation,
        size=at,
        sections=b"".join(sections),
    )
    replace(path, header, *bodies)


def _hosts(tables: Tables) -> Iterator[bytes]:
    """Those that hear announcements."""
    for address, record in tables.hosts.items():
        if any(each.wire is Wire.ANNOUNCE for each in record.wires):
            control, port = _control(address, record)
            yield to_bytes16(address) + _HOST.pack(control=to_bytes16(control), port=port)


def _control(address: IPAddress, record: HostRecord) -> tuple[IPAddress, int]:
    """Where one does; of one that does not say, where they do by default."""
    where, _, port = record.control.rpartition(":")
    try:
        return IPAddress(where), int(port)
    except (AddrFormatError, ValueError):
        return address, shared.SLIM_ANNOUNCE_PORT
