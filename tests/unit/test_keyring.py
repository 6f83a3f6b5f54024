# SPDX-License-Identifier: Apache-2.0
"""What a host does about its keys follows from the state alone, not from the way there."""

import itertools
import struct

import pytest

from slimnet.cluster.keyring import Keyring, fingerprint
from slimnet.cluster.sealed import seal, unseal
from slimnet.exceptions import InvalidValue

OLD, NEW, OTHER = (bytes([number]) * 16 for number in (1, 2, 3))
PREPARED = Keyring.prepare(OLD, NEW)
SWITCHED = PREPARED.signing(fingerprint(NEW))
DONE, BACK = Keyring.rest(fingerprint(NEW)), Keyring.rest(fingerprint(OLD))


@pytest.mark.parametrize(
    ("ring", "held", "wanted"),
    [
        (PREPARED, [OLD], (OLD, NEW)),
        (PREPARED, [OLD, NEW], (OLD, NEW)),
        (PREPARED, [NEW, OLD], (OLD, NEW)),
        (SWITCHED, [OLD], (NEW, OLD)),
        (SWITCHED, [OLD, NEW], (NEW, OLD)),
        (SWITCHED, [NEW], (NEW,)),
        (DONE, [NEW, OLD], (NEW,)),
        (DONE, [OLD, NEW], (NEW,)),
        (BACK, [OLD, NEW], (OLD,)),
        (BACK, [NEW, OLD], (OLD,)),
    ],
)
def test_what_a_host_takes(ring, held, wanted):
    assert ring.choose(held) == wanted


@pytest.mark.parametrize(
    ("ring", "held"),
    [(DONE, [OLD]), (BACK, [NEW]), (PREPARED, [OTHER]), (SWITCHED, [OTHER]), (DONE, [OTHER])],
)
def test_a_host_that_cannot_follow_says_what_to_do(ring, held):
    with pytest.raises(InvalidValue, match="^key_file: .*join --again TOKEN.* here"):
        ring.choose(held)


def test_only_the_old_key_opens_the_new_one():
    assert NEW.hex() not in str(PREPARED)
    sealed = bytes.fromhex(PREPARED.sealed)
    about = f"{PREPARED.key}/{PREPARED.next}"
    assert unseal(OLD, about, sealed) == NEW
    assert unseal(OTHER, about, sealed) is None
    assert unseal(OLD, about[::-1], sealed) is None
    for bit in range(8 * len(sealed)):
        changed = (int.from_bytes(sealed) ^ 1 << bit).to_bytes(len(sealed))
        assert unseal(OLD, about, changed) is None
    assert seal(OLD, about, NEW) == sealed


@pytest.mark.parametrize(
    "record",
    [b"{}", b"[]", b'{"key":"a","next":"b","signs":"c"}', b'{"key":"a","next":"","signs":""}',
     b'{"key":"a","next":"","signs":"a","sealed":"x"}',
     b'{"key":"a","next":"","signs":"a","of":2}'],
)  # fmt: skip
def test_what_is_no_state(record):
    with pytest.raises(InvalidValue, match="^store key keyring: "):
        Keyring.load(record)


def test_a_map_has_a_whole_key_that_signs_at_every_step():
    """Whatever was there before, and whatever follows; after the last step, what was wanted."""
    steps = pytest.importorskip("slimnet_ebpf.keys").steps

    def native(key):
        return struct.pack("=2Q", *struct.unpack("<2Q", key))

    for one, two, signs, key, other in itertools.product(
        *[(OLD, NEW, OTHER)] * 2, (0, 1), *[(OLD, NEW, OTHER)] * 2
    ):
        held = struct.pack("=16s16sII", native(one), native(two), signs, 0)
        for after in steps(held, key, other):
            (*before, was, _), (*now, is_, _) = (
                struct.unpack("=16s16sII", each) for each in (held, after)
            )
            assert now[was] == before[was], "the key that signs is not written"
            assert is_ == was or before == now, "nor any, when another one is to sign"
            held = after
        *both, last, _ = struct.unpack("=16s16sII", held)
        assert (both[last], both[1 - last]) == (native(key), native(other))
