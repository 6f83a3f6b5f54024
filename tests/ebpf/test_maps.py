# SPDX-License-Identifier: Apache-2.0
"""Maps of the kernel, one entry at a time and in batches."""

import os
import struct

import pytest

from slimnet_ebpf.libbpf import BpfError, possible_cpus
from slimnet_ebpf.maps import (
    NO_PREALLOC,
    TYPE_ARRAY,
    TYPE_HASH,
    TYPE_LPM_TRIE,
    TYPE_PERCPU_ARRAY,
    Map,
)

pytestmark = pytest.mark.root


def key(number):
    return struct.pack("=I", number)


@pytest.fixture(params=["hash", "trie"])
def table(request):
    if request.param == "hash":
        made = Map.create(TYPE_HASH, "t", 4, 8, 20000, NO_PREALLOC)
        yield made, key
    else:
        made = Map.create(TYPE_LPM_TRIE, "t", 8, 8, 20000, NO_PREALLOC)
        yield made, lambda number: struct.pack("=I", 32) + struct.pack("!I", number)
    made.close()


def test_one_entry(table):
    map_, to_key = table
    assert map_.get(to_key(1)) is None
    map_.set(to_key(1), b"12345678")
    assert map_.get(to_key(1)) == b"12345678"
    assert map_.delete(to_key(1)) is True
    assert map_.delete(to_key(1)) is False


def test_batches_are_whole(table):
    """More entries than one batch holds, none lost and none twice."""
    map_, to_key = table
    expected = {to_key(number): struct.pack("=Q", number) for number in range(10000)}
    map_.update(expected.items())
    found = list(map_.items())
    assert len(found) == 10000
    assert dict(found) == expected


def test_removing_skips_what_is_not_there(table):
    map_, to_key = table
    map_.update((to_key(number), bytes(8)) for number in range(0, 10000, 2))
    map_.remove(to_key(number) for number in range(9000))
    assert {to_key(number) for number in range(9000, 10000, 2)} == dict(map_.items()).keys()


def test_an_empty_table_has_no_items(table):
    assert list(table[0].items()) == []


@pytest.mark.parametrize("used", [[], [0], [63, 64, 255, 256, 1999], list(range(2000))])
def test_places_that_are_not_in_use_are_passed_over(used):
    array = Map.create(TYPE_ARRAY, "t", 4, 8, 2000)
    array.update((key(number), b"used" + key(number)) for number in used)
    expected = {key(number): b"used" + key(number) for number in used}
    assert dict(array.items(without=bytes(8))) == expected
    assert len(list(array.items())) == 2000


def test_per_cpu_values_stand_behind_one_another():
    with_all = Map.create(TYPE_PERCPU_ARRAY, "t", 4, 8, 2)
    assert len(with_all.get(key(0))) == 8 * possible_cpus()
    assert [len(value) for _, value in with_all.items()] == [8 * possible_cpus()] * 2


def test_errors_have_the_kernels_number_and_what_was_tried():
    small = Map.create(TYPE_HASH, "small", 4, 8, 1)
    small.set(key(1), bytes(8))
    with pytest.raises(BpfError, match="write to small: Argument list too long") as error:
        small.set(key(2), bytes(8))
    assert error.value.errno == 7


def test_a_key_of_the_wrong_size_never_reaches_the_kernel():
    array = Map.create(TYPE_ARRAY, "t", 4, 8, 1)
    with pytest.raises(ValueError, match="key of 3"):
        array.get(b"abc")
    with pytest.raises(ValueError, match="value of 3"):
        array.set(key(0), b"abc")


def test_closing_twice_is_no_error():
    array = Map.create(TYPE_ARRAY, "t", 4, 8, 1)
    fd = array.fd
    array.close()
    array.close()
    with pytest.raises(OSError):
        os.fstat(fd)
