# SPDX-License-Identifier: Apache-2.0
"""Sockets and options that endpoints do not get."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import time

import pytest

from slimnet.model import Reason
from slimnet_ebpf import requirements

INET, INET6 = socket.AF_INET, socket.AF_INET6
STREAM, DATAGRAM, RAW = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW
DENIED = {errno.EPERM, errno.EACCES}
#: What a kernel without the protocol says.
WITHOUT = {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}

IPPROTO_MPTCP, IPPROTO_SMC, IPPROTO_SMC6 = 262, 256, 257
AF_SMC = 43


def refusal(action, *arguments):
    with pytest.raises(OSError) as caught:
        action(*arguments)
    return caught.value.errno


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        (STREAM, IPPROTO_MPTCP),
        (STREAM, IPPROTO_SMC),
        (DATAGRAM, socket.IPPROTO_UDPLITE),
        (DATAGRAM, socket.IPPROTO_ICMP),
        (DATAGRAM, socket.IPPROTO_ICMPV6),
        (RAW, socket.IPPROTO_RAW),
        (RAW, socket.IPPROTO_TCP),
        (RAW, socket.IPPROTO_ICMP),
        (STREAM, socket.IPPROTO_SCTP),
        (socket.SOCK_SEQPACKET, socket.IPPROTO_SCTP),
        (6, 33),  # SOCK_DCCP, IPPROTO_DCCP
    ],
    ids=[
        "mptcp",
        "smc",
        "udplite",
        "ping",
        "ping6",
        "raw",
        "raw-tcp",
        "raw-icmp",
        "sctp",
        "sctp-seqpacket",
        "dccp",
    ],
)
def test_every_protocol_but_tcp_and_udp(lab, family, kind, protocol):
    """Refused as by a kernel that has none of it, so that programs fall back; and
    counted, unless this kernel has none of it."""
    endpoint = lab.endpoint()
    host = endpoint.host
    with host.sysctl("net.ipv4.ping_group_range", "0 2147483647"):
        try:
            host.root.socket(family, kind, protocol).close()
        except OSError as error:
            assert error.errno in WITHOUT
            assert refusal(endpoint.socket, family, kind, protocol) in WITHOUT
            return
        before = host.counters().get(Reason.PROTOCOL, 0)
        assert refusal(endpoint.socket, family, kind, protocol) == errno.EPROTONOSUPPORT
        assert host.counters()[Reason.PROTOCOL] == before + 1


def test_smc_family(lab):
    """AF_SMC sockets carry a TCP socket of the kernel's own making."""
    endpoint = lab.endpoint()
    number = refusal(endpoint.socket, AF_SMC, STREAM, 0)
    assert number in DENIED | WITHOUT | {errno.EAFNOSUPPORT}


# Options


IP_BIND_ADDRESS_NO_PORT, IP_PKTINFO = 24, 8
SOL_UDP = 17
TCP_SAVE_SYN, TCP_SAVED_SYN, SO_ORIGINAL_DST, IP_PKTOPTIONS = 27, 28, 80, 9
TCP_REPAIR, TCP_ULP, SO_ATTACH_FILTER = 19, 31, 26
#: struct sock_fprog's program: every packet passes.
PASS = struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF)
GROUP = socket.inet_aton("239.1.2.3")
MD5 = struct.pack(
    "=HH4s120sBBHi80s", INET, 0, socket.inet_aton("10.77.0.9"), b"", 0, 0, 4, 0, b"word"
)

#: Level, option, value, and whether a plain socket takes it here (else the kernel has
#: none of it, wants another state first, or another type).
FORBIDDEN = {
    "SO_BINDTODEVICE": (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0", True),
    "SO_BINDTOIFINDEX": (socket.SOL_SOCKET, 62, 2, True),
    "SO_MARK": (socket.SOL_SOCKET, socket.SO_MARK, 7, True),
    "SO_ATTACH_BPF": (socket.SOL_SOCKET, 50, 0, False),
    "SO_ATTACH_REUSEPORT_CBPF": (socket.SOL_SOCKET, 51, 0, False),
    "SO_ATTACH_REUSEPORT_EBPF": (socket.SOL_SOCKET, 52, 0, False),
    "SO_TXTIME": (socket.SOL_SOCKET, 61, struct.pack("=iI", 1, 2), True),
    "IP_TRANSPARENT": (socket.IPPROTO_IP, 19, 1, True),
    "IP_OPTIONS": (socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x01", True),
    "IP_UNICAST_IF": (socket.IPPROTO_IP, 50, 2 << 24, True),
    "IP_LOCAL_PORT_RANGE": (socket.IPPROTO_IP, 51, struct.pack("=HH", 40000, 40000), True),
    "IP_IPSEC_POLICY": (socket.IPPROTO_IP, 16, 0, False),
    "IP_XFRM_POLICY": (socket.IPPROTO_IP, 17, 0, False),
    "IP_ADD_MEMBERSHIP": (socket.IPPROTO_IP, 35, GROUP + bytes(4), False),
    "IP_ADD_SOURCE_MEMBERSHIP": (socket.IPPROTO_IP, 39, GROUP + bytes(8), False),
    "MCAST_JOIN_GROUP": (socket.IPPROTO_IP, 42, bytes(136), False),
    "MCAST_JOIN_SOURCE_GROUP": (socket.IPPROTO_IP, 46, bytes(264), False),
    "IPV6_TRANSPARENT": (socket.IPPROTO_IPV6, 75, 1, True),
    "IPV6_UNICAST_IF": (socket.IPPROTO_IPV6, 76, 2 << 24, True),
    "IPV6_PKTINFO": (socket.IPPROTO_IPV6, 50, bytes(20), True),
    "IPV6_2292PKTOPTIONS": (socket.IPPROTO_IPV6, 6, b"", True),
    "IPV6_NEXTHOP": (socket.IPPROTO_IPV6, 9, bytes(28), False),
    "IPV6_RTHDR": (socket.IPPROTO_IPV6, 57, b"", True),
    "IPV6_RTHDRDSTOPTS": (socket.IPPROTO_IPV6, 55, b"", True),
    "IPV6_HOPOPTS": (socket.IPPROTO_IPV6, 54, b"", True),
    "IPV6_DSTOPTS": (socket.IPPROTO_IPV6, 59, b"", True),
    "IPV6_FLOWLABEL_MGR": (socket.IPPROTO_IPV6, 32, bytes(32), False),
    "IPV6_IPSEC_POLICY": (socket.IPPROTO_IPV6, 34, 0, False),
    "IPV6_XFRM_POLICY": (socket.IPPROTO_IPV6, 35, 0, False),
    "IPV6_JOIN_GROUP": (socket.IPPROTO_IPV6, 20, bytes(20), False),
    "IPV6_JOIN_ANYCAST": (socket.IPPROTO_IPV6, 27, bytes(20), False),
    "MCAST_JOIN_GROUP, IPv6": (socket.IPPROTO_IPV6, 42, bytes(136), False),
    "MCAST_JOIN_SOURCE_GROUP, IPv6": (socket.IPPROTO_IPV6, 46, bytes(264), False),
    "TCP_REPAIR": (socket.IPPROTO_TCP, TCP_REPAIR, 1, True),
    "TCP_SAVE_SYN": (socket.IPPROTO_TCP, TCP_SAVE_SYN, 1, True),
    "TCP_MD5SIG": (socket.IPPROTO_TCP, 14, MD5, False),
    "TCP_MD5SIG_EXT": (socket.IPPROTO_TCP, 32, MD5, False),
    "TCP_AO_ADD_KEY": (socket.IPPROTO_TCP, 38, bytes(256), False),
    "TCP_AO_DEL_KEY": (socket.IPPROTO_TCP, 39, bytes(256), False),
    "TCP_AO_INFO": (socket.IPPROTO_TCP, 40, bytes(256), False),
    "TCP_AO_GET_KEYS": (socket.IPPROTO_TCP, 41, bytes(256), False),
    "TCP_AO_REPAIR": (socket.IPPROTO_TCP, 42, bytes(256), False),
    "TCP_ULP, smc": (socket.IPPROTO_TCP, TCP_ULP, b"smc", False),
    "UDP_ENCAP": (SOL_UDP, 100, 1, False),
}

#: Taken without a word, and nothing is done: level, option, kinds of socket.
SWALLOWED = {
    "IP_RECVOPTS": (socket.IPPROTO_IP, 6, [STREAM, DATAGRAM]),
    "IP_RETOPTS": (socket.IPPROTO_IP, 7, [STREAM, DATAGRAM]),
    "IP_PKTINFO": (socket.IPPROTO_IP, 8, [STREAM, DATAGRAM]),
    "IP_RECVERR": (socket.IPPROTO_IP, 11, [STREAM, DATAGRAM]),
    "IP_RECVORIGDSTADDR": (socket.IPPROTO_IP, 20, [STREAM, DATAGRAM]),
    "IP_RECVERR_RFC4884": (socket.IPPROTO_IP, 26, [STREAM, DATAGRAM]),
    "IPV6_2292PKTINFO": (socket.IPPROTO_IPV6, 2, [STREAM, DATAGRAM]),
    "IPV6_RECVERR": (socket.IPPROTO_IPV6, 25, [STREAM, DATAGRAM]),
    "IPV6_RECVERR_RFC4884": (socket.IPPROTO_IPV6, 31, [STREAM, DATAGRAM]),
    "IPV6_RECVPKTINFO": (socket.IPPROTO_IPV6, 49, [STREAM, DATAGRAM]),
    "IPV6_RECVORIGDSTADDR": (socket.IPPROTO_IPV6, 74, [STREAM, DATAGRAM]),
    "SO_REUSEADDR": (socket.SOL_SOCKET, socket.SO_REUSEADDR, [DATAGRAM]),
    "SO_REUSEPORT": (socket.SOL_SOCKET, socket.SO_REUSEPORT, [DATAGRAM]),
    "TCP_FASTOPEN": (socket.IPPROTO_TCP, socket.TCP_FASTOPEN, [STREAM]),
    "TCP_FASTOPEN_CONNECT": (socket.IPPROTO_TCP, 30, [STREAM]),
}


@pytest.mark.parametrize("option", FORBIDDEN)
def test_options_that_would_lead_around(lab, option):
    """What names a device, an address, a port or a peer of the underlay, or shows one:
    though root with every capability asks. On the host it may."""
    level, number, value, taken = FORBIDDEN[option]
    endpoint = lab.endpoint()
    family = INET6 if level == socket.IPPROTO_IPV6 else INET
    kinds = {socket.IPPROTO_TCP: [STREAM], SOL_UDP: [DATAGRAM]}.get(level, [STREAM, DATAGRAM])
    for kind in kinds:
        if taken:
            endpoint.host.root.socket(family, kind).setsockopt(level, number, value)
        before = endpoint.host.counters().get(Reason.OPTION, 0)
        sock = endpoint.socket(family, kind)
        assert refusal(sock.setsockopt, level, number, value) == errno.EPERM
        assert endpoint.host.counters()[Reason.OPTION] == before + 1


@pytest.mark.parametrize("option", SWALLOWED)
def test_options_that_are_taken_and_void(lab, option):
    """They would tell of the underlay with what arrives: an address of the host that a datagram
    came to, or those in an ICMP error; whoever asks takes that as a hint."""
    level, number, kinds = SWALLOWED[option]
    endpoint = lab.endpoint()
    family = INET6 if level == socket.IPPROTO_IPV6 else INET
    for kind in kinds:
        sock = endpoint.host.root.socket(family, kind)
        sock.setsockopt(level, number, 1)
        assert sock.getsockopt(level, number) == 1
        sock = endpoint.socket(family, kind)
        sock.setsockopt(level, number, 1)
        assert sock.getsockopt(level, number) == 0


def _every_option(family: int, kind: int, levels: list[int]) -> dict[tuple[int, int], list[int]]:
    """The errnos of setting and getting each one of a fresh socket."""
    found = {}
    for level in levels:
        for name in range(128):
            said = []
            for value in (b"", struct.pack("=i", 1), bytes(16)):
                with socket.socket(family, kind) as sock:
                    try:
                        sock.setsockopt(level, name, value)
                        said.append(0)
                    except OSError as error:
                        said.append(error.errno)
            with socket.socket(family, kind) as sock:
                try:
                    sock.getsockopt(level, name, 256)
                    said.append(0)
                except OSError as error:
                    said.append(error.errno)
            found[level, name] = said
    return found


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_every_other_option_is_the_kernels(lab, kind):
    """The lists above are whole: whatever is not in them is as it is on the host."""
    named = {(level, number) for level, number, *_ in [*FORBIDDEN.values(), *SWALLOWED.values()]}
    named |= {(socket.IPPROTO_TCP, TCP_SAVED_SYN), (socket.IPPROTO_IP, IP_PKTOPTIONS)}
    named |= {(socket.SOL_SOCKET, SO_ATTACH_FILTER)}
    endpoint = lab.endpoint()
    levels = [socket.SOL_SOCKET, socket.IPPROTO_IP, socket.IPPROTO_IPV6]
    levels.append(socket.IPPROTO_TCP if kind == STREAM else SOL_UDP)
    host, ours = (
        hands.call(_every_option, INET6, kind, levels) for hands in (endpoint.host.root, endpoint)
    )
    assert {key for key, said in ours.items() if said != host[key]} - named == set()


def _attach_filter(family: int, kind: int, code: bytes) -> None:
    import ctypes

    program = ctypes.create_string_buffer(code)
    value = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(program))
    with socket.socket(family, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 26, value)


def test_a_filter_that_reads_headers(lab):
    """It tells its packets' addresses bit by bit, by what it lets through. Sockets that
    name nothing of the underlay keep theirs: libudev's have one."""
    endpoint = lab.endpoint()
    for family in (INET, INET6):
        for kind in (STREAM, DATAGRAM):
            endpoint.host.root.call(_attach_filter, family, kind, PASS)
            assert refusal(endpoint.call, _attach_filter, family, kind, PASS) == errno.EPERM
    endpoint.call(_attach_filter, socket.AF_UNIX, DATAGRAM, PASS)
    endpoint.call(_attach_filter, socket.AF_NETLINK, DATAGRAM, PASS)


def test_tls_is_the_applications_own_business(lab):
    """The one upper-layer protocol that stays in TCP: refused for its state, if at all."""
    sock = lab.endpoint().socket()
    assert refusal(sock.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"tls") in {
        errno.ENOTCONN,
        errno.ENOENT,
    }


def _swap_while_the_kernel_reads(seconds: float) -> set[int]:
    """The errnos of setting an upper-layer protocol whose name another process changes."""
    import ctypes
    import mmap
    import signal

    libc = ctypes.CDLL(None, use_errno=True)
    value = mmap.mmap(-1, 8192)
    swapper = os.fork()
    while not swapper:
        value[:6] = b"mptcp\0"
        value[:6] = b"tls\0\0\0"
    found = set()
    until = time.monotonic() + seconds
    address = ctypes.byref(ctypes.c_char.from_buffer(value))
    with socket.socket() as sock:
        while time.monotonic() < until:
            failed = libc.setsockopt(sock.fileno(), 6, 31, address, 5000)
            found.add(ctypes.get_errno() if failed else 0)
    os.kill(swapper, signal.SIGKILL)
    os.waitpid(swapper, 0)
    return found


def test_a_value_that_changes_while_the_kernel_reads_it(lab):
    """Of a value that is longer than a page the kernel would read the caller's own memory,
    after it was looked at."""
    endpoint = lab.endpoint()
    for name in (b"mptcp", b"tlsx"):
        sock = endpoint.socket()
        assert refusal(sock.setsockopt, socket.IPPROTO_TCP, TCP_ULP, name) == errno.EPERM
    host = endpoint.host.root.socket()
    other = refusal(host.setsockopt, socket.IPPROTO_TCP, TCP_ULP, b"mptcp")
    assert other not in {errno.EPERM, errno.ENOENT, errno.ENOTCONN}
    assert other in endpoint.host.root.call(_swap_while_the_kernel_reads, 0.5)
    assert other not in endpoint.call(_swap_while_the_kernel_reads, 1.0)


def _getsockopt(sock: socket.socket, level: int, option: int, size: int) -> tuple[int, bytes]:
    """getsockopt(2)'s errno, and what it left in the caller's buffer."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(b"\xaa" * size, size)
    length = ctypes.c_uint32(size)
    failed = libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length))
    return ctypes.get_errno() if failed else 0, buffer.raw


@pytest.mark.parametrize(
    ("level", "option"),
    [
        (socket.IPPROTO_TCP, TCP_SAVED_SYN),
        (socket.IPPROTO_IP, IP_PKTOPTIONS),
    ],
    ids=["TCP_SAVED_SYN", "IP_PKTOPTIONS"],
)
def test_options_that_show_the_underlay(ends, level, option):
    """Its addresses, the first the tag as well. The refusal comes after the kernel's answer,
    so nothing may have been saved for one: it would be in the caller's memory already."""
    client, server = ends
    listener = server.socket()
    listener.bind(("0.0.0.0", 80))
    assert refusal(listener.setsockopt, socket.IPPROTO_TCP, TCP_SAVE_SYN, 1) == errno.EPERM
    listener.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    listener.listen()
    client.connect(server.address, 80)
    accepted, _ = listener.accept()
    before = server.host.counters().get(Reason.OPTION, 0)
    number, left = server.call(_getsockopt, accepted, level, option, 256)
    assert number == errno.EPERM
    assert left == b"\xaa" * 256
    assert server.host.counters()[Reason.OPTION] == before + 1


def test_the_original_destination(lab, ends):
    """Connection tracking knows the underlay's: at both ends it is the one that was dialled,
    and the kernel's own answer is nowhere in the buffer."""
    client, server = ends
    for host in {client.host, server.host}:
        # It runs for a rule that wants it.
        host.netns.run(
            "nft",
            "table ip track { chain input { type filter hook input priority 0;"
            " ct state established accept; }; }",
        )
    try:
        listener = server.listen(80)
        opened = client.connect(server.address, 80)
        accepted, _ = listener.accept()
        wanted = struct.pack("=H", INET) + struct.pack("!H", 80)
        wanted += socket.inet_aton(server.address) + bytes(8) + b"\xaa" * 48
        for hands, sock in ((client, opened), (server, accepted)):
            number, left = hands.call(_getsockopt, sock, socket.IPPROTO_IP, SO_ORIGINAL_DST, 64)
            assert (number, left) == (0, wanted)
    finally:
        for host in {client.host, server.host}:
            host.netns.run("nft", "delete table ip track")


def _with_a_record_of_its_route(address: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 11, 4, *bytes(9)]))
    sock.connect((address, port))
    return sock


def test_ip_options_of_a_syn_to_a_published_port(lab):
    """The child has them, and the host has written its own address into a record of the
    route (RFC 791, option 7)."""
    server = lab.endpoint()
    lab.publish(server, 8080, 80)
    lab.install()
    listener = server.listen(80)
    opened = lab.outside.root.call(_with_a_record_of_its_route, server.host.address, 8080)
    child, name = listener.accept()
    assert name == opened.getsockname()
    number, left = server.call(_getsockopt, child, socket.IPPROTO_IP, socket.IP_OPTIONS, 64)
    assert (number, left) == (0, bytes(12) + b"\xaa" * 52)


def test_the_port_that_a_socket_sits_on(ends):
    """IP_PROTOCOL says a TCP socket's port, of an accepted one a wire port."""
    client, server = ends
    listener = server.listen(80)
    opened = client.connect(server.address, 80)
    accepted, name = listener.accept()
    ports = [sock.getsockopt(socket.IPPROTO_IP, 52) for sock in (listener, accepted, opened)]
    assert ports == [80, 80, name[1]]


def _send_with_options(address: str, port: int, connected: bool, route: str) -> None:
    """A datagram with a loose source route as control data (ip(7), IP_RETOPTS)."""
    hops = bytes([1, 131, 7, 4]) + socket.inet_aton(route)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if connected:
            sock.connect((address, port))
        control = [(socket.IPPROTO_IP, 7, hops)]
        sock.sendmsg([b"x"], control, 0, *([] if connected else [(address, port)]))


@pytest.mark.parametrize("connected", [False, True])
def test_ip_options_as_control_data(lab, connected):
    """A source route is another destination than the one that policy is asked for."""
    endpoint = lab.endpoint()
    outside = lab.outside.address
    denied = str(lab.hosts[1].address)
    arguments = (outside, 9, connected, denied)
    endpoint.host.root.call(_send_with_options, *arguments)
    before = endpoint.host.counters().get(Reason.OPTION, 0)
    assert refusal(endpoint.call, _send_with_options, *arguments) == errno.EPERM
    assert endpoint.host.counters().get(Reason.OPTION, 0) == before + 1


#: Whether this kernel shows programs what is in control data; else the probe says that it
#: passes (test_start.py).
SHOWN = requirements.knows(requirements.CASTS)


def _send_through(address: str, port: int, interface: str) -> None:
    """A datagram with the device that it is to leave by as control data."""
    where = struct.pack("=i8x", socket.if_nametoindex(interface))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([b"x"], [(socket.IPPROTO_IP, 8, where)], 0, (address, port))


def test_a_device_as_control_data(lab):
    """As SO_BINDTODEVICE, for one datagram (ip(7), IP_PKTINFO)."""
    endpoint = lab.endpoint()
    arguments = (lab.outside.address, 9, "eth0")
    endpoint.host.root.call(_send_through, *arguments)
    if SHOWN:
        assert refusal(endpoint.call, _send_through, *arguments) == errno.EPERM
    else:
        endpoint.call(_send_through, *arguments)


# UDP


@pytest.mark.parametrize("address", ["0.0.0.0", "own", "host", "127.0.0.1"])
def test_udp_binds_to_explicit_ports(lab, address):
    endpoint = lab.endpoint()
    wanted = {"own": endpoint.address, "host": endpoint.host.address}.get(address, address)
    sock = endpoint.socket(INET, DATAGRAM)
    refusal(sock.bind, (wanted, 5353))
    # The port is the host's.
    host = endpoint.host.root.socket(INET, DATAGRAM)
    host.bind(("0.0.0.0", 5353))
    host.close()


# What a socket tells, and whose it is


def _keep(first: int, count: int) -> list[socket.socket]:
    return [socket.create_server(("", first + number)) for number in range(count)]


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_the_name_after_a_connect_that_found_no_port(lab, ends, family):
    """The kernel keeps the source address that it had chosen: the socket says that it has
    none, as before."""
    client, server = ends
    server.serve(80)
    sock = client.socket(family)
    name = sock.getsockname()
    # In TIME_WAIT nobody else has one of these: other tests take ports from 32768 to 60999.
    with client.host.sysctl("net.ipv4.ip_local_port_range", "61100 61107"):
        held = client.host.root.call(_keep, 61100, 8)
        assert len(held) == 8
        with pytest.raises(OSError) as caught:
            sock.connect((server.address if family == INET else f"::ffff:{server.address}", 80))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        assert sock.getsockname() == name
        for one in held:
            one.close()


def _in_a_namespace_of_its_own(port: int) -> list[str]:
    """As root in a user namespace would: loopback, protocols, and a port of its own."""
    import ctypes
    import threading

    said = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(0x40000000):
                raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            server = socket.create_server(("127.0.0.1", 8000))
            client = socket.create_connection(("127.0.0.1", 8000), 2)
            child, name = server.accept()
            said.append(f"{client.getpeername()[0]} {name[0]}")
            child.sendall(b"hello")
            said.append(client.recv(5).decode())
            for family, own in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                there = socket.socket(family, socket.SOCK_DGRAM)
                there.bind((own, 8000))
                there.settimeout(2)
                here = socket.socket(family, socket.SOCK_DGRAM)
                here.sendto(b"to", (own, 8000))
                here.connect((own, 8000))
                here.send(b"connected")
                said.append(f"{there.recv(10).decode()} {there.recv(10).decode()}")
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
            with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
                file.write(f"{port} {port}")
            for family in (socket.AF_INET, socket.AF_INET6):
                listener = socket.socket(family)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.listen()
                said.append(str(listener.getsockname()[1]))
                kept.append(listener)
        except OSError as error:
            said.append(str(error))

    kept: list[socket.socket] = globals().setdefault("_kept", [])
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return said


def test_a_network_namespace_inside_an_endpoint(lab):
    """It is none of slimnet's (bubblewrap, Chrome, docker in docker): what it has is its own,
    and its ports do not silence the host's services of those numbers."""
    endpoint = lab.endpoint()
    host = endpoint.host
    listener = host.root.listen(2222)
    said = endpoint.call(_in_a_namespace_of_its_own, 2222)
    assert said == [
        "127.0.0.1 127.0.0.1",
        "hello",
        "to connected",
        "to connected",
        "2222",
        "2222",
    ]
    opened = lab.outside.root.connect(host.address, 2222)
    _, peer = listener.accept()
    assert peer == opened.getsockname()


def _forget_handshakes(instance: str) -> int:
    """As the sweep does with those that are too old."""
    from slimnet_ebpf.pins import Pins

    flows = Pins(instance).open_map("slim_flow")
    keys = [key for key, _ in flows.items()]
    flows.remove(keys)
    return len(keys)


def _accept_late(listener: socket.socket) -> list[tuple[str, int]]:
    sock, name = listener.accept()
    with sock:
        return [name[:2], sock.getsockname()[:2]]


@pytest.mark.parametrize("family", [INET, INET6], ids=["v4", "v6"])
def test_a_child_whose_record_is_gone_has_no_name(lab, family):
    """An accept that waits for data (TCP_DEFER_ACCEPT) may wait longer than the record lives
    that would name both ends. The kernel's own are the hosts' addresses and a wire port."""
    client, server = lab.endpoint(0), lab.endpoint(1)
    listener = server.socket(family)
    listener.bind(("" if family == INET else "::", 80))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 10)
    listener.listen()
    nobody = ("0.0.0.0" if family == INET else "::", 0)
    server.host.kill_backend()  # it destroys such a child, a moment later
    try:
        sock = client.connect(server.address, 80)
        assert server.host.root.call(_forget_handshakes, f"{lab.name}-h1") == 1
        sock.sendall(b"x")
        assert server.call(_accept_late, listener) == [nobody, nobody]
    finally:
        server.host.start_backend()
        lab.install()
