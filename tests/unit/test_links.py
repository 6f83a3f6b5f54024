# SPDX-License-Identifier: Apache-2.0
"""One end of a link of wire announce, in Python: the other end is the same, or nobody's."""

import os
import socket

import pytest
from netaddr import IPAddress
from wire_reference import siphash as reference

from slimnet import contract
from slimnet.layout import to_bytes16

link = pytest.importorskip("slimnet_ebpf.link")

KEY, NEW = b"0123456789abcdef", b"fedcba9876543210"
ONE, TWO = (to_bytes16(IPAddress(f"192.0.2.{number}")) for number in (1, 2))


def pair(key=KEY, says=ONE, good=(KEY,)):
    """The opener and the acceptor; the opener's key, the host that it says it is, and the keys
    that the acceptor takes."""
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
    return (
        link.AnnounceLink(near, says, TWO, [key], opener=True),
        link.AnnounceLink(far, TWO, ONE, good, opener=False),
    )


def talk(*ends):
    """Until nobody has anything to say; what came to whom."""
    came = {end: [] for end in ends}
    for end in ends:
        if end.connecting:
            end.flush()
    for _ in range(4):
        for end in reversed(ends):
            came[end] += end.frames()
    return [came[end] for end in ends]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 72, 80])
def test_siphash_is_that_of_the_paper(size):
    key, message = os.urandom(16), os.urandom(size)
    assert link.siphash(key, message) == reference(key, message)


def test_frames_cross():
    near, far = pair()
    assert talk(near, far) == [[], []]
    assert near.ready
    assert far.ready
    assert near.synced
    near.send(contract.SLIM_FRAME_RESOLVE, client=1, server=2, port=80)
    far.send(contract.SLIM_FRAME_LISTENER, server=2, port=80, underlay_port=20000)
    here, there = talk(near, far)
    assert [frame["kind"] for frame in there] == [contract.SLIM_FRAME_RESOLVE]
    assert (there[0]["client"], there[0]["server"], there[0]["port"]) == (1, 2, 80)
    assert [frame["underlay_port"] for frame in here] == [20000]
    near.close()
    with pytest.raises(link.LinkEnd):
        talk(far)


@pytest.mark.parametrize("good", [(KEY, NEW), (NEW, KEY)])
@pytest.mark.parametrize("key", [KEY, NEW])
def test_a_link_by_either_key(key, good):
    """Whichever the acceptor itself would begin with; both ends say by which it is."""
    near, far = pair(key, good=good)
    assert talk(near, far) == [[], []]
    assert near.ready
    assert near.by == far.by == key


@pytest.mark.parametrize("other", [{"key": bytes(16)}, {"says": TWO}])
def test_a_stranger_ends_it(other):
    near, far = pair(**other)
    with pytest.raises(link.LinkEnd):
        talk(near, far)
    assert not far.ready


@pytest.mark.parametrize("how", ["changed", "twice"])
def test_what_is_not_as_it_was_sent_ends_it(how):
    near, far = pair()
    talk(near, far)
    before, far.sock = far.sock, None
    near.send(contract.SLIM_FRAME_ANNOUNCE, token=1)
    data = before.recv(200)
    left, right = socket.socketpair()
    right.setblocking(False)
    far.sock = right
    left.sendall(data * 2 if how == "twice" else bytes([data[0], data[1] ^ 1]) + data[2:])
    with pytest.raises(link.LinkEnd):
        list(far.frames())


def test_an_echo_is_no_router():
    near, far = pair()
    near.flush()
    far.sock.send(far.sock.recv(200))
    with pytest.raises(link.LinkEnd):
        list(near.frames())
