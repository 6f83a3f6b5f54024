#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write what Python and C must know of the contracts from the BTF of a probe.

A contract is some headers (:data:`CONTRACTS`): what all data paths share, what the
eBPF and the preload data path keep for themselves, and how the kernel module is
driven. Of each this writes

- a Python module with every constant, struct and map name,
- a header with its fingerprint, for the data paths to state (the module states a version of
  what is its own);

and of the shared one

- ``src/slimnet/reason.py``: its reasons as an enumeration,
- ``kernel/uapi/slimnet/fingerprints.txt``: the fingerprint of each ABI version, one line each.

``--check`` writes nothing and fails when one of them is stale. A shared layout that
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
UAPI = Path("kernel/uapi")
HISTORY = UAPI / "slimnet" / "fingerprints.txt"
REASONS = Path("src/slimnet/reason.py")


@dataclasses.dataclass(frozen=True)
class Contract:
    """Headers, and what is made from them; paths below the tree's root.

    Attributes:
        name: what it is the contract of, for the module's docstring.
        headers: where it is written.
        module: for Python.
        fingerprint: the header that is written; ``None``: it has a version instead.
        macro: the fingerprint's name there.
    """

    name: str
    headers: tuple[Path, ...]
    module: Path
    fingerprint: Path | None = None
    macro: str = ""

    @property
    def sources(self) -> str:
        """Its headers, for messages."""
        first, *others = self.headers
        stems = ",".join(header.stem for header in self.headers)
        return f"{first.parent}/{{{stems}}}.h" if others else str(first)


SHARED = Contract(
    "every data path",
    tuple(
        UAPI / "slimnet" / f"{name}.h"
        for name in ("reason", "tables", "event", "wire", "keys", "announce", "inner", "resolver")
    ),
    Path("src/slimnet/contract.py"),
    UAPI / "slimnet" / "fingerprint.h",
    "SLIM_FINGERPRINT",
)
EBPF = Contract(
    "the eBPF data path alone",
    (Path("backends/ebpf/bpf/contract.h"),),
    Path("backends/ebpf/src/slimnet_ebpf/contract.py"),
    Path("backends/ebpf/bpf/fingerprint.h"),
    "SLIM_EBPF_FINGERPRINT",
)
KMOD = Contract(
    "the kernel module alone",
    (UAPI / "slimnet" / "netlink.h",),
    Path("backends/kmod/src/slimnet_kmod/contract.py"),
)
PRELOAD = Contract(
    "the preload data path alone",
    tuple(Path(f"backends/preload/protocol/preload/{name}.h") for name in ("control", "shim")),
    Path("backends/preload/src/slimnet_preload/contract.py"),
    Path("backends/preload/protocol/preload/fingerprint.h"),
    "SLIM_PRELOAD_FINGERPRINT",
)
CONTRACTS = (SHARED, EBPF, KMOD, PRELOAD)

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
    """Everything that the headers define."""

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
            for name in self.enums.get("slim_map", ())
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


def names(headers: Iterable[Path]) -> tuple[list[str], list[str]]:
    """The enums and structs that the headers define, in their order."""
    text = "\n".join(header.read_text(encoding="utf-8") for header in headers)
    return (
        re.findall(r"^enum (\w+) \{", text, re.MULTILINE),
        re.findall(r"^struct (\w+) \{", text, re.MULTILINE),
    )


def probe(headers: Sequence[Path]) -> str:
    """A C file that makes the compiler describe every type of the headers."""
    enums, structs = names(headers)
    lines = [f'#include "{header}"' for header in headers]
    lines += [f"enum {name} probe_enum_{name};" for name in enums]
    lines += [f"struct {name} probe_struct_{name};" for name in structs]
    return "\n".join(lines) + "\n"


def btf(headers: Sequence[Path], uapi: Path) -> dict[int, dict[str, Any]]:
    """The BTF types of the probe by their id."""
    clang = os.environ.get("CLANG", "clang-19")
    bpftool = os.environ.get("BPFTOOL", "bpftool")
    with tempfile.TemporaryDirectory() as directory:
        source, built = Path(directory, "probe.c"), Path(directory, "probe.o")
        source.write_text(probe(headers), encoding="utf-8")
        flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", f"-I{uapi}"]
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


def read(contract: Contract, root: Path = ROOT) -> Layout:
    """The layout that clang gives a contract for the BPF target."""
    headers = [root / header for header in contract.headers]
    types = btf(headers, root / UAPI)
    enum_names, struct_names = names(headers)
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
    while kind["kind"] == "ARRAY":  # one of several dimensions is one array to Python
        count, kind = int(kind["nr_elems"]) * (count or 1), types[kind["type_id"]]
    name = f"struct {kind['name']}" if kind["kind"] == "STRUCT" else kind["name"]
    while kind["kind"] == "TYPEDEF":
        kind = types[kind["type_id"]]
    fixed = kind["kind"] == "INT" and (name.startswith("__") or name == "char")
    if not (fixed or kind["kind"] == "STRUCT") or entry.get("bitfield_size"):
        raise ContractError(
            f"struct {struct}: {entry['name']} must be a fixed-width integer, a struct of a "
            "contract, or an array of one"
        )
    return Member(
        name=entry["name"],
        type=name,
        offset=int(entry["bits_offset"]) // 8,
        size=int(kind["size"]) * (count or 1),
        count=count,
        signed=kind.get("encoding") == "SIGNED",
    )


def python(contract: Contract, layout: Layout) -> str:
    """The text of the Python module."""
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Generated by kernel/tools/{Path(__file__).name} from",
        f"# {contract.sources}. Do not edit.",
        f'"""The contract between Python and the C of {contract.name}.',
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
        *imports(layout),
        "# The first 64 bits of the SHA-256 of its layouts.",
        f"FINGERPRINT: Final[int] = 0x{layout.fingerprint:016X}",
        f'FINGERPRINT_HEX: Final[str] = "{layout.fingerprint:016x}"',
    ]
    for name, constants in layout.enums.items():
        lines += ["", f"# enum {name}"]
        lines += [f"{constant}: Final[int] = {value}" for constant, value in constants.items()]
    if layout.maps:
        lines += ["", "# Map number to map name.", "MAPS: Final[Mapping[int, str]] = {"]
        lines += [f'    {constant}: "{name}",' for constant, name in layout.maps.items()]
        lines += ["}"]
    lines += ["", "# Struct to the fields that hold network order."]
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


def imports(layout: Layout) -> list[str]:
    """What the structs of a contract hold of the shared one's."""
    held = {
        member.type.removeprefix("struct ")
        for struct in layout.structs.values()
        for member in struct.members
        if member.type.startswith("struct ")
    }
    foreign = sorted(held - layout.structs.keys())
    return [f"from slimnet.contract import {', '.join(foreign)}", ""] if foreign else []


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


def reasons(layout: Layout) -> str:
    """The text of reason.py."""
    prefix = "SLIM_REASON_"
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# Generated by kernel/tools/{Path(__file__).name} from",
        f"# {SHARED.headers[0]}. Do not edit.",
        '"""Why a data path answered as it did."""',
        "",
        "import enum",
        "",
        '__all__ = ["Reason"]',
        "",
        "",
        "class Reason(enum.IntEnum):",
        '    """Why a data path answered as it did: enum slim_reason of the contract."""',
        "",
    ]
    lines += [
        f"    {name.removeprefix(prefix)} = {value}"
        for name, value in layout.enums["slim_reason"].items()
        if not name.endswith("_COUNT")
    ]
    return "\n".join(lines) + "\n"


def c(contract: Contract, layout: Layout) -> str:
    """The text of the header with the fingerprint."""
    guard = f"SLIMNET_{contract.macro.removeprefix('SLIM_')}_H"
    return "\n".join(
        [
            "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */",
            f"/* Generated by kernel/tools/{Path(__file__).name}. Do not edit. */",
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            f"#define {contract.macro} 0x{layout.fingerprint:016x}ULL",
            "",
            f"#endif /* {guard} */",
            "",
        ]
    )


def history(layout: Layout, recorded: str, *, unreleased: bool) -> str:
    """The text of fingerprints.txt, which never forgets a version."""
    known = {int(version): print_ for version, print_ in map(str.split, recorded.splitlines())}
    current = f"{layout.fingerprint:016x}"
    if known.get(layout.version, current) != current and not unreleased:
        raise ContractError(
            f"{SHARED.sources}: the layout differs from that of ABI version {layout.version}; "
            "raise SLIM_ABI_VERSION (or give --unreleased if nobody has that version)"
        )
    if layout.version < max(known, default=0):
        raise ContractError(f"SLIM_ABI_VERSION {layout.version} is below {max(known)}")
    known[layout.version] = current
    return "".join(f"{version} {print_}\n" for version, print_ in sorted(known.items()))


def generate(root: Path, *, unreleased: bool = False) -> dict[Path, str]:
    """Every generated file of the tree below ``root``, and its text."""
    recorded = (root / HISTORY).read_text(encoding="utf-8") if (root / HISTORY).exists() else ""
    files = {}
    for contract in CONTRACTS:
        layout = read(contract, root)
        files[root / contract.module] = python(contract, layout)
        if contract.fingerprint is not None:
            files[root / contract.fingerprint] = c(contract, layout)
        if contract is SHARED:
            files[root / HISTORY] = history(layout, recorded, unreleased=unreleased)
            files[root / REASONS] = reasons(layout)
    return files


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
