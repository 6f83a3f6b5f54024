# SPDX-License-Identifier: Apache-2.0
"""The messages of the generic netlink family ``slimnet``, as pyroute2 writes and reads them.

Names, numbers and meanings are those of ``slimnet/netlink.h``, which is their manual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyroute2.netlink import genlmsg

from slimnet_kmod import contract

__all__ = ["FAMILY", "GROUP", "ROOM", "Message", "decode", "encode", "named"]

#: The family's name, and its multicast group's (SLIM_NL_FAMILY, SLIM_NL_GROUP_EVENTS).
FAMILY, GROUP = "slimnet", "events"
#: Bytes that fit into one attribute: its length, 16 bits, counts a header of four.
ROOM = 0xFFFF - 4

_PREFIX = "SLIM_ATTR_"
# What carries no number; by the comments of enum slim_nl_attribute.
_KINDS = {
    "UNSPEC": "none",
    "PAD": "none",
    "FINGERPRINT": "uint64",
    "MODULE_VERSION": "asciiz",
    "INSTANCE": "asciiz",
    "CLUSTER": "asciiz",
    "UNDERLAY": "cdata",
    "WIRE_PORT": "uint16",
    "RANGE": "cdata",
    "KEY": "cdata",
    "KEY_OTHER": "cdata",
    "GENERATION": "uint64",
    "BASE": "uint64",
    "RECORDS": "cdata",
    "GONE": "cdata",
    "ADDRESS": "cdata",
    "NETNS_COOKIE": "uint64",
    "HELD": "flag",
    "FORCE": "flag",
    "COUNTERS": "cdata",
    "CONNECTION": "cdata",
    "ACCOUNT_KEY": "cdata",
    "ACCOUNT": "cdata",
    "QUESTION": "cdata",
    "EVENT": "cdata",
}
_NAMES = {
    number: name.removeprefix(_PREFIX)
    for name, number in vars(contract).items()
    if name.startswith(_PREFIX) and name != "SLIM_ATTR_COUNT"
}


class Message(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """One message of the family. Attributes that are in no list below are u32."""

    __slots__ = ()
    prefix = _PREFIX
    nla_map = tuple(
        (number, _PREFIX + name, _KINDS.get(name, "uint32"))
        for number, name in sorted(_NAMES.items())
    )


def named(number: int) -> str:
    """What an attribute is called, in lower case, for messages to people."""
    return _NAMES.get(number, str(number)).lower()


def encode(
    family: int, command: int, flags: int, sequence: int, attributes: Mapping[str, Any]
) -> bytes:
    """A request's bytes.

    Args:
        family: the number that the kernel has given the family.
        command: enum slim_nl_command.
        flags: NLM_F_* (netlink(7)).
        sequence: what its answers carry again.
        attributes: by their names without SLIM_ATTR_, in their order; ``None`` for a flag.
    """
    message = Message()
    message["cmd"] = command
    message["version"] = contract.SLIM_NL_VERSION
    message["attrs"] = [(_PREFIX + name, value) for name, value in attributes.items()]
    message["header"]["type"] = family
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = sequence
    message.encode()
    return bytes(message.data)


def decode(data: bytes) -> Iterator[tuple[str, Any]]:
    """The attributes of one message, by their names without SLIM_ATTR_. One that this
    version does not know is left out.

    Args:
        data: the message, from its netlink header on.
    """
    message = Message(data)
    message.decode()
    for name, value in message["attrs"]:
        if name.startswith(_PREFIX):
            # Of the others, pyroute2 gives bytes as text.
            yield name.removeprefix(_PREFIX), value
