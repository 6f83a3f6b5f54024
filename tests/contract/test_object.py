# SPDX-License-Identifier: Apache-2.0
"""The built BPF object states its contract."""

import json
import struct
import subprocess

import generate_contract
import pytest
from generate_contract import ROOT

from slimnet import contract
from slimnet_ebpf import contract as private

OBJECT = ROOT / "backends/ebpf/src/slimnet_ebpf/slimnet.bpf.o"


@pytest.fixture(scope="module")
def built():
    subprocess.run(["make", "--silent", "-C", ROOT / "backends/ebpf"], check=True)
    if not OBJECT.exists():
        pytest.skip(f"no {OBJECT.relative_to(ROOT)}")
    return OBJECT


def sections(built):
    """The object's data sections in BTF: name to the names of their variables."""
    dump = json.loads(generate_contract.run(["bpftool", "-j", "btf", "dump", "file", str(built)]))[
        "types"
    ]
    names = {kind["id"]: kind.get("name") for kind in dump}
    return {
        kind["name"]: {names[variable["type_id"]] for variable in kind["vars"]}
        for kind in dump
        if kind["kind"] == "DATASEC"
    }


def read_symbol(built, name):
    """The bytes of a constant."""
    command = ["llvm-readelf-19", "--elf-output-style=JSON", "--symbols", "--sections"]
    elf = json.loads(generate_contract.run([*command, "--section-data", str(built)]))[0]
    found = [entry["Symbol"] for entry in elf["Symbols"] if entry["Symbol"]["Name"]["Name"] == name]
    assert found, f"{built.name} has no {name}"
    section = elf["Sections"][found[0]["Section"]["Value"]]["Section"]
    data = bytes(section["SectionData"]["Bytes"])
    return data[found[0]["Value"] :][: found[0]["Size"]]


def test_it_states_version_and_fingerprint(built):
    """So that a mismatch can be refused before anything is loaded."""
    stamp = struct.unpack("=3Q", read_symbol(built, "slim_abi_stamp"))
    assert stamp == (contract.SLIM_ABI_VERSION, contract.FINGERPRINT, private.FINGERPRINT)


def test_its_maps_are_those_of_the_contract(built):
    """No map is missing, and none has a name that Python does not know."""
    assert sections(built)[".maps"] == set(private.MAPS.values())


def test_it_keeps_btf_and_no_debugging(built):
    """CO-RE needs BTF; DWARF would make the wheel twenty times larger."""
    listing = generate_contract.run(["llvm-readelf-19", "--sections", "--wide", str(built)])
    assert ".BTF.ext" in listing
    assert ".debug_info" not in listing
