# SPDX-License-Identifier: Apache-2.0
"""Hand-made SYNs, and what comes back."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections.abc import Iterator
from typing import Any

from attrs import evolve, frozen
from wire_reference import syn_option

from lab.hands import Hands

__all__ = ["Syn", "inject", "no_reset", "option", "sealed", "send", "shake_hands"]

_ports = itertools.count(33000)


@frozen
class Syn:
    """A TCP segment on its own, a SYN by default.

    Attributes:
        source: IP address.
        destination: IP address.
        port: destination port.
        source_port: by default one that was not used before.
        sequence: initial sequence number.
        acknowledgement: what the ACK flag confirms.
        options: TCP options, a multiple of four bytes.
        ip_options: IP options, a multiple of four bytes.
        fragment: cut into two IP fragments behind the TCP header.
        flags: of the TCP header (2: SYN).
    """

    source: str
    destination: str
    port: int
    source_port: int = 0
    sequence: int = 12345
    acknowledgement: int = 0
    options: bytes = b""
    ip_options: bytes = b""
    fragment: bool = False
    flags: int = 2

    def packets(self) -> list[bytes]:
        """As IPv4 packets, checksums right."""
        length = 20 + len(self.options)
        tcp = struct.pack(
            "!HHIIBBHHH",
            self.source_port,
            self.port,
            self.sequence,
            self.acknowledgement,
            (length // 4) << 4,
            self.flags,
            64240,
            0,
            0,
        )
        tcp += self.options
        pseudo = socket.inet_aton(self.source) + socket.inet_aton(self.destination)
        check = _checksum(pseudo + struct.pack("!HH", 6, length) + tcp)
        tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
        if not self.fragment:
            return [self.around(tcp)]
        return [self.around(tcp[:24], fragment=0x2000), self.around(tcp[24:], fragment=3)]

    def around(
        self, payload: bytes, protocol: int = socket.IPPROTO_TCP, *, fragment: int = 0
    ) -> bytes:
        """An IPv4 packet with these addresses and something else in it."""
        size = 20 + len(self.ip_options)
        head = struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | size // 4,
            0,
            size + len(payload),
            4711,
            fragment,
            64,
            protocol,
            0,
            socket.inet_aton(self.source),
            socket.inet_aton(self.destination),
        )
        head += self.ip_options
        return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload


def sealed(packet: bytes) -> bytes:
    """A captured IPv4 packet with its TCP checksum, which between namespaces is left to
    a device that there is none of: without it the receiver's TCP drops the packet."""
    offset = (packet[0] & 15) * 4
    tcp = packet[offset : offset + 16] + bytes(2) + packet[offset + 18 :]
    check = _checksum(packet[12:20] + struct.pack("!HH", 6, len(tcp)) + tcp)
    return packet[:offset] + tcp[:16] + struct.pack("!H", check) + tcp[18:]


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def send(hands: Hands, syn: Syn, wait: float = 0.4) -> str:
    """Send it from there: ``"syn-ack"``, ``"rst"`` or ``"nothing"`` came back."""
    if not syn.source_port:
        syn = evolve(syn, source_port=next(_ports))
    return str(hands.call(_send, syn.packets(), syn.destination, syn.port, syn.source_port, wait))


def _send(packets: list[bytes], destination: str, port: int, source_port: int, wait: float) -> str:
    import time

    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as answers,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender,
    ):
        for packet in packets:
            sender.sendto(packet, (destination, 0))
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0:
            answers.settimeout(left)
            try:
                data = answers.recv(2048)
            except TimeoutError:
                break
            offset = (data[0] & 15) * 4
            if data[12:16] != socket.inet_aton(destination):
                continue
            if struct.unpack("!HH", data[offset : offset + 4]) != (port, source_port):
                continue
            flags = data[offset + 13]
            return "rst" if flags & 4 else "syn-ack" if flags & 18 == 18 else f"flags {flags}"
    return "nothing"


def inject(hands: Hands, packet: bytes) -> None:
    """Send an IPv4 packet from there as it is."""
    hands.call(_inject, packet, socket.inet_ntoa(packet[16:20]))


def _inject(packet: bytes, destination: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.sendto(packet, (destination, 0))


@contextlib.contextmanager
def no_reset(host: Any) -> Iterator[None]:
    """The host does not reset what it knows nothing of: its hand-made connections."""
    table = "table ip no_reset"
    chain = "chain output { type filter hook output priority 0; tcp flags & rst == rst drop; }"
    host.netns.run("nft", f"{table} {{ {chain}; }}")
    try:
        yield
    finally:
        host.netns.run("nft", f"delete {table}")


def shake_hands(hands: Hands, syn: Syn, packet: bytes | None = None) -> bool:
    """Send the SYN (or ``packet``, which is one like it), and when it is answered the last
    ACK; whether it was. Its host is under :func:`no_reset`."""
    theirs = hands.call(_answered, packet or syn.packets()[0], syn.destination, syn.port)
    if theirs is None:
        return False
    last = evolve(
        syn, sequence=syn.sequence + 1, acknowledgement=theirs + 1, flags=0x10, options=b""
    )
    inject(hands, last.packets()[0])
    return True


def _answered(packet: bytes, destination: str, port: int) -> int | None:
    """Send it; the sequence number of the SYN-ACK that comes, or None."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as answers,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender,
    ):
        sender.sendto(packet, (destination, 0))
        answers.settimeout(5)
        while True:
            try:
                data = answers.recv(2048)
            except TimeoutError:
                return None
            offset = (data[0] & 15) * 4
            if int.from_bytes(data[offset : offset + 2], "big") != port:
                continue
            if data[offset + 13] & 0x12 != 0x12:
                return None
            return int.from_bytes(data[offset + 4 : offset + 8], "big")


def option(
    key: bytes,
    syn: Syn,
    port: int,
    destination: int,
    source: int,
    *,
    wrong: bool = False,
    name: int | None = None,
) -> Syn:
    """The SYN with slimnet's option (and a wrong tag, if asked for)."""
    data = syn_option(
        key,
        syn.source,
        syn.destination,
        syn.source_port,
        syn.sequence,
        port=port,
        called=destination,
        calling=source,
        name=name,
    )
    data = data[:15] + bytes([data[15] ^ wrong]) + data[16:]
    return evolve(syn, options=syn.options + data + b"\1" * (-len(data) % 4))


def new_port() -> int:
    """A source port that no forged SYN had before."""
    return next(_ports)
