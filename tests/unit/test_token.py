# SPDX-License-Identifier: Apache-2.0
"""Tokens to join a cluster: what is in one, and which are refused."""

import base64
import zlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimnet.cluster.token import Token
from slimnet.exceptions import InvalidValue

KEY = bytes(range(16))
TOKEN = Token(
    "c0ffee", "etcd://", {"endpoints": ["10.0.0.1:2379"], "timeout": 2.5}, {"ca": "PEM \n"}
)


def body(token):
    raw = str(token).partition(".")[2]
    return zlib.decompress(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4))[8:])


def test_there_and_back():
    assert Token.parse(str(TOKEN)) == TOKEN
    assert str(TOKEN).isascii()
    assert not set(str(TOKEN)) & set(" '\"$`\\/+=&|;<>()")


def test_the_key_is_neither_in_the_token_nor_in_what_is_sealed():
    """One of the two is not enough; a process list shows one of them at most."""
    sealed = TOKEN.seal(KEY)
    assert TOKEN.unseal(sealed) == KEY
    for there in (body(TOKEN), str(TOKEN).encode(), sealed):
        assert KEY not in there
        assert KEY.hex().encode() not in there
    assert TOKEN.secret not in sealed
    assert TOKEN.secret.hex() not in repr(TOKEN)


def test_no_two_are_alike():
    other = Token(TOKEN.cluster, TOKEN.store)
    assert (other.id, other.secret) != (TOKEN.id, TOKEN.secret)
    assert len(other.secret) == 32


@pytest.mark.parametrize("name", ["cluster", "id", "secret"])
def test_what_another_token_sealed_is_refused(name):
    """By another secret, or under another's name."""
    sealed = TOKEN.seal(KEY)
    other = attrs.evolve(TOKEN, **{name: b"x" * 32 if name == "secret" else "other"})
    with pytest.raises(InvalidValue, match="^token: wanted the one that sealed the key"):
        other.unseal(sealed)


@given(st.integers(0, 31), st.integers(1, 255))
def test_a_sealed_key_that_was_changed_is_refused(at, bits):
    changed = bytearray(TOKEN.seal(KEY))
    changed[at] ^= bits
    with pytest.raises(InvalidValue):
        TOKEN.unseal(bytes(changed))


@pytest.mark.parametrize("sealed", [b"", b"x", bytes(15), bytes(33)])
def test_what_is_no_sealed_key_is_refused(sealed):
    with pytest.raises(InvalidValue):
        TOKEN.unseal(sealed)


@given(st.integers(1, len(str(TOKEN)) - 1))
def test_a_token_that_is_cut_is_refused(length):
    with pytest.raises(InvalidValue, match="^token: wanted ") as caught:
        Token.parse(str(TOKEN)[:length])
    assert "\n" not in str(caught.value)


@given(st.text(max_size=80).map(lambda text: f"slimnet1.{text}") | st.text(max_size=80))
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidValue, match="^token: wanted "):
        Token.parse(text)


def test_another_version_is_refused():
    with pytest.raises(InvalidValue, match=r"^token: wanted one of version 1, .* 'slimnet2\.'$"):
        Token.parse(str(TOKEN).replace("slimnet1.", "slimnet2."))


def test_what_a_stranger_made_is_refused():
    """Files of other names than the public ones, a name that is a path, more than fits."""
    for wrong in (
        attrs.evolve(TOKEN, files={"../../shadow": "x"}),
        attrs.evolve(TOKEN, id="../x"),
        attrs.evolve(TOKEN, store=7),
        attrs.evolve(TOKEN, options=[]),
        attrs.evolve(TOKEN, files={"ca": "x" * (1 << 20)}),
    ):
        with pytest.raises(InvalidValue):
            Token.parse(str(wrong))
