# SPDX-License-Identifier: Apache-2.0
"""Every compiler, and ctypes, lays the contracts out as clang does for BPF."""

import ctypes
import os
import subprocess
from pathlib import Path

import generate_contract
import pytest
from generate_contract import CONTRACTS, EBPF, KMOD, PRELOAD, ROOT, SHARED, UAPI

from slimnet import contract
from slimnet.model import Reason
from slimnet_ebpf import contract as private
from slimnet_kmod import contract as driven
from slimnet_preload import contract as preload

MODULES = {SHARED: contract, EBPF: private, KMOD: driven, PRELOAD: preload}


@pytest.fixture(scope="module", params=MODULES, ids=["shared", "ebpf", "kmod", "preload"])
def of(request):
    """A contract, the Python module of it, and its layout."""
    module = MODULES[request.param]
    return request.param, module, generate_contract.read(request.param)


@pytest.fixture(scope="module")
def layout(of):
    return of[2]


def expected(layout):
    """The layout as ``name -> numbers``."""
    values = {
        constant: (value,)
        for constants in layout.enums.values()
        for constant, value in constants.items()
    }
    for struct in layout.structs.values():
        values[struct.name] = (struct.size,)
        for member in struct.members:
            values[f"{struct.name}.{member.name}"] = (member.offset, member.size)
    return values


def printer(of):
    """A C program that prints the same."""
    written, _, layout = of
    lines = ["#include <stddef.h>", "#include <stdio.h>"]
    lines += [f'#include "{ROOT / header}"' for header in written.headers]
    lines.append("int main(void) {")
    for constants in layout.enums.values():
        lines += [f'printf("{name} %lld\\n", (long long){name});' for name in constants]
    for struct in layout.structs.values():
        name = struct.name
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        lines += [
            f'printf("{name}.{member.name} %zu %zu\\n", offsetof(struct {name}, {member.name}), '
            f"sizeof(((struct {name} *)0)->{member.name}));"
            for member in struct.members
        ]
    return "\n".join([*lines, "return 0; }", ""])


@pytest.mark.parametrize(
    "compiler",
    [
        ["gcc", "-O2"],
        ["gcc", "-O0", "-m64", "-std=gnu11", "-fshort-enums"],  # the flag must not matter
        ["clang-19", "-O2"],
    ],
    ids=["gcc", "gcc -fshort-enums", "clang"],
)
def test_a_compiler_agrees_with_bpf(of, layout, compiler, tmp_path):
    """Same constants, sizes and offsets."""
    source, program = tmp_path / "print.c", tmp_path / "print"
    source.write_text(printer(of))
    subprocess.run([*compiler, f"-I{ROOT / UAPI}", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    got = {
        name: tuple(map(int, numbers))
        for name, *numbers in (line.split() for line in printed.splitlines())
    }
    assert got == expected(layout)


@pytest.fixture(scope="module")
def kernel():
    """A directory that kernel modules can be built against."""
    found = sorted(Path("/usr/src").glob("linux-headers-*/Module.symvers"))
    if not found:
        pytest.skip("needs kernel headers; ./testbed/setup installs linux-headers-cloud-<arch>")
    return found[-1].parent


def assertions(of):
    """A file of the kernel's that compiles only if it sees the same layout."""
    written, _, layout = of
    lines = ["#include <linux/stddef.h>"]
    lines += [f'#include "{ROOT / header}"' for header in written.headers]
    for name, numbers in expected(layout).items():
        struct, _, member = name.partition(".")
        if member:
            text = f"offsetof(struct {struct}, {member})"
            lines.append(f'_Static_assert({text} == {numbers[0]}, "{name}");')
            text = f"sizeof_field(struct {struct}, {member})"
        else:
            text = f"sizeof(struct {name})" if name in layout.structs else name
        lines.append(f'_Static_assert({text} == {numbers[-1]}, "{name}");')
    return "\n".join([*lines, ""])


def build_module(kernel, directory, text, *options):
    (directory / "layout.c").write_text(text)
    uapi = ROOT / "kernel" / "uapi"
    (directory / "Makefile").write_text(f"obj-m := layout.o\nccflags-y := -I{uapi}\n")
    return subprocess.run(
        ["make", "-C", kernel, f"M={directory}", *options, "layout.o"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def test_kbuild_agrees_with_bpf(of, kernel, tmp_path):
    """Same constants, sizes and offsets, with the kernel's own flags and types."""
    done = build_module(kernel, tmp_path, assertions(of))
    assert done.returncode == 0, done.stdout + done.stderr


def test_kbuild_would_have_noticed(of, layout, kernel, tmp_path):
    """The same file with one number changed does not compile."""
    text = assertions(of)
    name, size = next((each.name, each.size) for each in layout.structs.values())
    wrong = text.replace(f"sizeof(struct {name}) == {size}", f"sizeof(struct {name}) == 1")
    assert wrong != text
    done = build_module(kernel, tmp_path, wrong)
    assert done.returncode != 0
    assert name in done.stderr


def test_kbuild_and_sparse_take_every_shared_header(kernel, tmp_path):
    """Not one warning, of byte orders above all."""
    text = (ROOT / "kernel" / "lint.c").read_text()
    check = "CHECK=sparse -D__CHECK_ENDIAN__"
    done = build_module(kernel, tmp_path, text, "C=2", check)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CHECK" in done.stdout
    assert not done.stderr
    swapped = text.replace("slim_rate_holds(next, now, SLIM_RATE_SEGMENT)", "slim_htobe32(1)")
    assert swapped != text
    assert "restricted __be32" in build_module(kernel, tmp_path, swapped, "C=2", check).stderr


def test_ctypes_agrees_with_bpf(of, layout):
    """The classes of the module have the sizes and offsets of the structs."""
    _, module, _ = of
    got = {}
    for constants in layout.enums.values():
        got |= {name: (getattr(module, name),) for name in constants}
    for name in layout.structs:
        kind = getattr(module, name)
        got[name] = (ctypes.sizeof(kind),)
        for field in kind._fields_:
            descriptor = getattr(kind, field[0])
            got[f"{name}.{field[0]}"] = (descriptor.offset, descriptor.size)
    assert got == expected(layout)


def test_network_order_is_said_of_every_field_that_has_it(of, layout):
    """BIG_ENDIAN lists every __be field and no other."""
    assert {name: set(fields) for name, fields in of[1].BIG_ENDIAN.items()} == {
        struct.name: {member.name for member in struct.members if member.big_endian}
        for struct in layout.structs.values()
    }


def test_every_map_has_a_name():
    """And the count is not a map."""
    assert sorted(private.MAPS) == list(range(private.SLIM_MAP_COUNT))
    assert private.MAPS[private.SLIM_MAP_ENDPOINT] == "slim_endpoint"


def test_reasons_are_numbered_without_gap_or_repetition():
    """Counters are an array by reason; Python's are those of the header."""
    assert [each.value for each in Reason] == list(range(contract.SLIM_REASON_COUNT))
    assert {f"SLIM_REASON_{each.name}": each.value for each in Reason} == {
        name: value
        for name, value in vars(contract).items()
        if name.startswith("SLIM_REASON_") and name != "SLIM_REASON_COUNT"
    }


def test_flags_are_single_bits(layout):
    """No two flags share a bit."""
    kinds = [values for name, values in layout.enums.items() if name.endswith("_flag")]
    assert kinds
    for values in kinds:
        assert all(value.bit_count() == 1 for value in values.values())
        assert len(set(values.values())) == len(values)


def test_a_layout_belongs_to_one_contract():
    """What all share knows nothing of the eBPF data path, and nothing stands twice."""
    layouts = [generate_contract.read(each) for each in CONTRACTS]
    names = [name for each in layouts for name in (*each.enums, *each.structs)]
    assert len(names) == len(set(names))
    for header in (ROOT / UAPI / "slimnet").iterdir():
        assert "SLIM_MAP_" not in header.read_text(), header
