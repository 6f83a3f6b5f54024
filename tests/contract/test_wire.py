# SPDX-License-Identifier: Apache-2.0
"""The wire is defined in bytes: every machine reads and makes the same option."""

import itertools
import random
import socket
import struct
import subprocess

import pytest
from generate_contract import ROOT
from wire_reference import siphash, syn_option

COMPILERS = {
    "gcc, sanitizers": (["gcc", "-O1", "-fsanitize=address,undefined"], []),
    "clang": (["clang-19", "-O2"], []),
    "big-endian": (["s390x-linux-gnu-gcc", "-O2", "-static"], ["qemu-s390x"]),
}
PADDING = bytes.fromhex("020405b4 0402080a 00000001 00000000 01030307".replace(" ", ""))


@pytest.fixture(scope="module", params=COMPILERS)
def reads(request, tmp_path_factory):
    """What wire.h makes of SYNs, built by one compiler, run on one machine."""
    compiler, runner = COMPILERS[request.param]
    program = tmp_path_factory.mktemp("wire") / "wire"
    source = ROOT / "kernel" / "test" / "wire.c"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'kernel' / 'uapi'}"]
    subprocess.run([*compiler, *flags, "-o", program, source], check=True)

    def run(syns):
        lines = [" ".join(word.hex() for word in syn) for syn in syns]
        done = subprocess.run(
            [*runner, program], input="\n".join(lines), capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    return run


def test_the_reference_is_the_papers():
    """The paper's own example, appendix A: 15 bytes."""
    assert siphash(bytes(range(16)), bytes(range(15))) == bytes.fromhex("e545be4961ca29a1")


def syns(count):
    """Key, SYN and options at random places among others, from a fixed seed."""
    rng = random.Random(253)  # not a secret
    for _ in range(count):
        key, source, destination = rng.randbytes(16), rng.randbytes(4), rng.randbytes(4)
        source_port, sequence = rng.randrange(1 << 16), rng.randrange(1 << 32)
        option = syn_option(
            key,
            socket.inet_ntoa(source),
            socket.inet_ntoa(destination),
            source_port,
            sequence,
            port=rng.randrange(1 << 16),
            called=rng.randrange(1 << 32),
            calling=rng.randrange(1 << 32),
            name=rng.choice([None, rng.randrange(1 << 16)]),
        )
        yield (
            key,
            source,
            destination,
            struct.pack("!H", source_port),
            struct.pack("!I", sequence),
            rng.choice(
                [option, PADDING + option, option + PADDING, b"\1" * (40 - len(option)) + option]
            ),
        )


def beginning(options):
    """Where the option begins, with a name or without."""
    return max(options.find(b"\xfd\x10"), options.find(b"\xfd\x12"))


def test_every_machine_makes_the_same_tag(reads):
    """Against an implementation that shares no line with wire.h."""
    for syn, line in zip(sent := list(syns(200)), reads(sent), strict=True):
        options = syn[-1]
        start = beginning(options)
        assert line == f"{options[start + 12 : start + 16].hex()} right"


@pytest.mark.parametrize("field", range(1, 6))
def test_every_field_is_covered(reads, field):
    """One bit of anything but the tag changes it."""
    changed = []
    for syn in syns(40):
        value = bytearray(syn[field])
        if field == 5:
            start = beginning(value)
            covered = [*range(2, 12), *range(16, value[start + 1])]
            value[start + covered[len(changed) % len(covered)]] ^= 1
        else:
            value[len(changed) % len(value)] ^= 1
        changed.append((*syn[:field], bytes(value), *syn[field + 1 :]))
    assert {line.split()[1] for line in reads(changed)} == {"wrong"}


OPTION = bytes([253, 16]) + bytes(14)
LISTS = {
    "none": (b"\0", "0"),
    "ended before it": (b"\0" * 4 + OPTION, "0"),
    "of another length": (bytes([253, 15]) + bytes(14), "0"),
    "of another kind": (bytes([254, 16]) + bytes(14), "0"),
    "cut off": (b"\1" * 24 + OPTION[:12], "0"),
    "cut off before its name": (b"\1" * 24 + bytes([253, 18]) + bytes(14), "0"),
    "without a name's second byte": (b"\1" * 8 + bytes([253, 18]) + bytes(15), "0"),
    "behind one without a length": (bytes([5, 0]) + OPTION, "0"),
    "behind one of length 1": (bytes([5, 1]) + OPTION, "0"),
    "skipped by a length": (bytes([5, 18]) + OPTION, "0"),
    "a cookie in its place": (bytes([34, 10]) + bytes(8), "-1"),
    "a question for a cookie": (bytes([34, 2, 0, 0]), "0"),
    "a cookie behind": (OPTION + bytes([34, 10]) + bytes(8), None),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_options(reads, name):
    """What is found, and what is not, in lists that are short, long or broken."""
    options, wanted = LISTS[name]
    (line,) = reads([(bytes(16), bytes(4), bytes(4), bytes(2), bytes(4), options)])
    assert line == wanted or (wanted is None and line.split()[1] == "wrong")


def test_no_list_is_read_beyond_its_end(reads):
    """Every short list of every kind and length byte; the sanitizers watch."""
    fields = (bytes(16), bytes(4), bytes(4), bytes(2), bytes(4))
    lists = [
        bytes([1] * before + [kind, size])
        for before, kind, size in itertools.product(
            (0, 1, 22, 23, 24, 38), (0, 1, 34, 253, 255), (0, 1, 2, 16, 18, 40, 255)
        )
    ]
    assert len(reads([(*fields, options) for options in lists])) == len(lists)
