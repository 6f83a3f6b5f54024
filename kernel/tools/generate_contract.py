#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write what Python and C must know of ``contract.h`` from the BTF of a probe.

``kernel/uapi/slimnet/contract.h`` is the source; this writes

- ``src/slimnet/contract.py``: every constant, struct and map name,
- ``kernel/uapi/slimnet/fingerprint.h``: the fingerprint, for the data paths to state,
- ``kernel/uapi/slimnet/fingerprints.txt``: the fingerprint of each ABI version, one line each.

``--check`` writes nothing and fails when one of them is stale. A layout that
changed while ``SLIM_ABI_VERSION`` did not is refused; ``--unreleased`` says that
nobody has that version yet and takes the new layout for it.

Needs clang and bpftool (``CLANG`` and ``BPFTOOL`` name others than the default).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEADER = Path("kernel/uapi/slimnet/contract.h")
MODULE = Path("src/slimnet/contract.py")
FINGERPRINT = Path("kernel/uapi/slimnet/fingerprint.h")
HISTORY = Path("kernel/uapi/slimnet/fingerprints.txt")

# bpftool lives in /usr/sbin, which is not everybody's PATH.
ENVIRONMENT = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
BIG_ENDIAN = {"__be16", "__be32", "__be64"}


class ContractError(Exception):
    """The header cannot be a contract; the message says why."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One field of a struct: offset and sizes in bytes, ``count`` 0 for no array."""

    name: str
    type: str
    offset: int
    size: int
    count: int
    signed: bool

    @property
    def big_endian(self) -> bool:
        """Whether the field is kept in network order."""
        return self.type in BIG_ENDIAN

    @property
    def declaration(self) -> str:
        """As C writes it."""
        return f"{self.type} {self.name}" + (f"[{self.count}]" if self.count else "")

    @property
    def element(self) -> str:
        """Its ctypes type, of one element if it is an array."""
        if self.type.startswith("struct "):
            return self.type.removeprefix("struct ")
        bits = self.size // (self.count or 1) * 8
        return f"ctypes.c_{'' if self.signed else 'u'}int{bits}"


@dataclasses.dataclass(frozen=True)
class Struct:
    """A struct and its fields in order."""

    name: str
    size: int
    members: tuple[Member, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything that the header defines."""

    enums: dict[str, dict[str, int]]
    structs: dict[str, Struct]

    @property
    def version(self) -> int:
        """The header's ABI version."""
        return self.enums["slim_abi"]["SLIM_ABI_VERSION"]

    @property
    def maps(self) -> dict[str, str]:
        """Constant to map name."""
        return {
            name: "slim_" + name.removeprefix("SLIM_MAP_").lower()
            for name in self.enums["slim_map"]
            if not name.endswith("_COUNT")
        }

    def canonical(self) -> str:
        """The text that the fingerprint is of: independent of order and comments."""
        lines = [
            f"enum {name} {constant} {value}"
            for name, constants in sorted(self.enums.items())
            for constant, value in sorted(constants.items())
        ]
        for name, struct in sorted(self.structs.items()):
            lines.append(f"struct {name} size {struct.size}")
            lines += [
                f"struct {name} {member.declaration} offset {member.offset} size {member.size}"
                for member in struct.members
            ]
        return "\n".join(lines) + "\n"

    @property
    def fingerprint(self) -> int:
        """The first 64 bits of the SHA-256 of the canonical text."""
        return int.from_bytes(hashlib.sha256(self.canonical().encode()).digest()[:8], "big")


def names(header: Path) -> tuple[list[str], list[str]]:
    """The enums and structs that the header defines, in its order."""
    text = header.read_text(encoding="utf-8")
    return (
        re.findall(r"^enum (\w+) \{", text, re.MULTILINE),
        re.findall(r"^struct (\w+) \{", text, re.MULTILINE),
    )


def probe(header: Path) -> str:
    """A C file that makes the compiler describe every type of the header."""
    enums, structs = names(header)
    lines = [f'#include "{header}"']
    lines += [f"enum {name} probe_enum_{name};" for name in enums]
    lines += [f"struct {name} probe_struct_{name};" for name in structs]
    return "\n".join(lines) + "\n"


def btf(header: Path) -> dict[int, dict[str, Any]]:
    """The BTF types of the probe by their id."""
    clang = os.environ.get("CLANG", "clang-19")
    bpftool = os.environ.get("BPFTOOL", "bpftool")
    with tempfile.TemporaryDirectory() as directory:
        source, built = Path(directory, "probe.c"), Path(directory, "probe.o")
        source.write_text(probe(header), encoding="utf-8")
        flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Werror"]
        # Debian keeps asm/types.h in a directory that only native targets search.
        flags += [
            f"-I{path}"
            for path in sorted(Path("/usr/include").glob("*-linux-gnu"))
            if (path / "asm/types.h").exists()
        ]
        run([clang, *flags, "-c", str(source), "-o", str(built)])
        dump = run([bpftool, "-j", "btf", "dump", "file", str(built)])
    return {int(kind["id"]): kind for kind in json.loads(dump)["types"]}


def run(command: list[str]) -> str:
    """The standard output of a command that must succeed."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    except FileNotFoundError as error:
        raise ContractError(f"{command[0]}: not installed") from error
    except subprocess.CalledProcessError as error:
        raise ContractError(f"{command[0]}: {error.stderr.strip()}") from error
    return done.stdout


def read(header: Path) -> Layout:
    """The layout that clang gives the header for the BPF target."""
    types = btf(header)
    enum_names, struct_names = names(header)
    by_name = {(kind["kind"], kind.get("name")): kind for kind in types.values()}
    enums = {}
    for name in enum_names:
        kind = by_name.get(("ENUM", name)) or by_name[("ENUM64", name)]
        enums[name] = {value["name"]: int(value["val"]) for value in kind["values"]}
    structs = {name: read_struct(types, by_name[("STRUCT", name)]) for name in struct_names}
    return Layout(enums, structs)


def read_struct(types: dict[int, dict[str, Any]], kind: dict[str, Any]) -> Struct:
    """One struct; refuses what another compiler might lay out differently."""
    members: list[Member] = []
    end = 0
    for entry in kind["members"]:
        member = read_member(types, kind["name"], entry)
        if member.offset != end:
            raise ContractError(
                f"struct {kind['name']}: hole of {member.offset - end} bytes before "
                f"{member.name}; pad it by hand"
            )
        end = member.offset + member.size
        members.append(member)
    if end != kind["size"]:
        raise ContractError(f"struct {kind['name']}: hole of {kind['size'] - end} bytes at its end")
    return Struct(kind["name"], kind["size"], tuple(members))


def read_member(types: dict[int, dict[str, Any]], struct: str, entry: dict[str, Any]) -> Member:
    """One field: a fixed-width integer, a struct, or an array of one."""
    kind, count = types[entry["type_id"]], 0
    if kind["kind"] == "ARRAY":
        count, kind = int(kind["nr_elems"]), types[kind["type_id"]]
    name = f"struct {kind['name']}" if kind["kind"] == "STRUCT" else kind["name"]
    while kind["kind"] == "TYPEDEF":
        kind = types[kind["type_id"]]
    fixed = kind["kind"] == "INT" and name.startswith("__")
    if not (fixed or kind["kind"] == "STRUCT") or entry.get("bitfield_size"):
        raise ContractError(
            f"struct {struct}: {entry['name']} must be a fixed-width integer, a struct of this "
            "header, or an array of one"
        )
    return Member(
        name=entry["name"],
        type=name,
        offset=int(entry["bits_offset"]) // 8,
        size=int(kind["size"]) * (count or 1),
        count=count,
        signed=kind.get("encoding") == "SIGNED",
    )


def python(layout: Layout) -> str:
    """The text of the Python module."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Generated by kernel/tools/{Path(__file__).name} from {HEADER}. Do not edit.",
        '"""The contract between Python and C: constants, layouts and map names.',
        "",
        "A class has the name of its C struct and the same fields. Fields that",
        ":data:`BIG_ENDIAN` lists hold network order, as they are in memory; all",
        "others hold the host's.",
        '"""',
        "",
        "import ctypes",
        "from collections.abc import Mapping",
        "from typing import Final",
        "",
        "# The header's version, and the first 64 bits of the SHA-256 of its layouts.",
        f"ABI_VERSION: Final[int] = {layout.version}",
        f"FINGERPRINT: Final[int] = 0x{layout.fingerprint:016X}",
        f'FINGERPRINT_HEX: Final[str] = "{layout.fingerprint:016x}"',
    ]
    for name, constants in layout.enums.items():
        lines += ["", f"# enum {name}"]
        lines += [f"{constant}: Final[int] = {value}" for constant, value in constants.items()]
    lines += ["", "# Map number to map name.", "MAPS: Final[Mapping[int, str]] = {"]
    lines += [f'    {constant}: "{name}",' for constant, name in layout.maps.items()]
    lines += ["}", "", "# Struct to the fields that hold network order."]
    lines += ["BIG_ENDIAN: Final[Mapping[str, frozenset[str]]] = {"]
    for struct in layout.structs.values():
        swapped = [f'"{member.name}"' for member in struct.members if member.big_endian]
        inner = "{" + ", ".join(swapped) + "}" if swapped else ""
        line = f'    "{struct.name}": frozenset({inner}),'
        if len(line) > LINE:
            lines += [f'    "{struct.name}": frozenset(', "        {"]
            lines += [f"            {field}," for field in swapped]
            lines += ["        }", "    ),"]
        else:
            lines.append(line)
    lines += ["}"]
    for struct in layout.structs.values():
        lines += python_struct(struct)
    return "\n".join(lines) + "\n"


LINE = 100  # of the project's formatter


def python_struct(struct: Struct) -> list[str]:
    """One struct as a class."""
    lines = ["", "", f"class {struct.name}(ctypes.Structure):"]
    lines += [f'    """struct {struct.name}, {struct.size} bytes."""', ""]
    for member in struct.members:
        single = member.element if member.type.startswith("struct ") else "int"
        kind = f"ctypes.Array[{member.element}]" if member.count else single
        order = f"  # {member.type}" if member.big_endian else ""
        lines.append(f"    {member.name}: {kind}{order}")
    lines += ["", "    _fields_ = ("]
    for member in struct.members:
        times = f" * {member.count}" if member.count else ""
        lines.append(f'        ("{member.name}", {member.element}{times}),')
    lines += ["    )"]
    return lines


def c(layout: Layout) -> str:
    """The text of fingerprint.h."""
    return "\n".join(
        [
            "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */",
            f"/* Generated by kernel/tools/{Path(__file__).name} from contract.h. Do not edit. */",
            "#ifndef SLIMNET_FINGERPRINT_H",
            "#define SLIMNET_FINGERPRINT_H",
            "",
            f"#define SLIM_FINGERPRINT 0x{layout.fingerprint:016x}ULL",
            "",
            "#endif /* SLIMNET_FINGERPRINT_H */",
            "",
        ]
    )


def history(layout: Layout, recorded: str, *, unreleased: bool) -> str:
    """The text of fingerprints.txt, which never forgets a version."""
    known = {int(version): print_ for version, print_ in map(str.split, recorded.splitlines())}
    current = f"{layout.fingerprint:016x}"
    if known.get(layout.version, current) != current and not unreleased:
        raise ContractError(
            f"{HEADER}: the layout differs from that of ABI version {layout.version}; raise "
            "SLIM_ABI_VERSION (or give --unreleased if nobody has that version)"
        )
    if layout.version < max(known, default=0):
        raise ContractError(f"{HEADER}: SLIM_ABI_VERSION {layout.version} is below {max(known)}")
    known[layout.version] = current
    return "".join(f"{version} {print_}\n" for version, print_ in sorted(known.items()))


def generate(root: Path, *, unreleased: bool = False) -> dict[Path, str]:
    """Every generated file of the tree below ``root``, and its text."""
    layout = read(root / HEADER)
    recorded = (root / HISTORY).read_text(encoding="utf-8") if (root / HISTORY).exists() else ""
    return {
        root / HISTORY: history(layout, recorded, unreleased=unreleased),
        root / MODULE: python(layout),
        root / FINGERPRINT: c(layout),
    }


def main(arguments: list[str] | None = None) -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    parser.add_argument("--unreleased", action="store_true", help="nobody has this ABI version")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree (default: this one)")
    options = parser.parse_args(arguments)
    try:
        files = generate(options.root, unreleased=options.unreleased)
    except ContractError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [
        path
        for path, text in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if options.check:
            print(f"{path}: stale; run {Path(__file__).name}", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
            print(f"wrote {path}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
