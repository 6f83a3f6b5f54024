# SPDX-License-Identifier: Apache-2.0
"""An intersphinx inventory of the few names of Python's library that slimnet's
interfaces mention, made here so that a build needs no network."""

from __future__ import annotations

import zlib
from pathlib import Path

PYTHON = "https://docs.python.org/3"

# Page of the library to names on it.
_NAMES = {
    "collections.abc": {
        "class": [
            "collections.abc.Callable",
            "collections.abc.Collection",
            "collections.abc.Iterable",
            "collections.abc.Iterator",
            "collections.abc.Mapping",
            "collections.abc.Sequence",
        ],
    },
    "contextlib": {"class": ["contextlib.AbstractContextManager"]},
    "enum": {"class": ["enum.Enum", "enum.IntEnum", "enum.StrEnum"]},
    "exceptions": {
        "exception": [
            "AssertionError",
            "ConnectionError",
            "Exception",
            "LookupError",
            "OSError",
            "ValueError",
        ]
    },
    "abc": {"class": ["abc.ABC"]},
    "constants": {"data": ["Ellipsis", "None", "True", "False"]},
    "functions": {"class": ["bool", "bytes", "dict", "float", "frozenset", "int", "list", "object",
                            "set", "str", "tuple", "type"]},
    "os": {"class": ["os.PathLike"]},
    "pathlib": {"class": ["pathlib.Path"]},
    "subprocess": {"class": ["subprocess.Popen"]},
    "types": {"class": ["types.TracebackType", "types.MappingProxyType"]},
    "typing": {"class": ["typing.ClassVar", "typing.IO", "typing.Protocol"],
               "data": ["typing.Any", "typing.Self"]},
}  # fmt: skip


def write(directory: Path) -> Path:
    """Write the inventory, in Sphinx' format version 2, and say where."""
    lines = [
        f"{name} py:{role} 1 library/{page}.html#$ -\n"
        for page, roles in _NAMES.items()
        for role, names in roles.items()
        for name in names
    ]
    head = (
        "# Sphinx inventory version 2\n# Project: Python\n# Version: 3\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    directory.mkdir(exist_ok=True)
    path = directory / "python.inv"
    path.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return path
