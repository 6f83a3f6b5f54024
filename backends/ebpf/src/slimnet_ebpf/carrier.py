# SPDX-License-Identifier: Apache-2.0
"""Connections of endpoints with network namespaces of their own: programs on the devices,
whose devices these are, and the records of what is carried (carry.h)."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.encoding import u32
from slimnet.fallback import Plug
from slimnet.fallback.record import Record
from slimnet.layout import Layout
from slimnet.linux import netns
from slimnet.linux.netns import Netns
from slimnet.linux.sock_diag import Diagnosis, Socket
from slimnet.model import Connection, Direction, Wire
from slimnet.tables import LimitRecord
from slimnet_ebpf import contract as private
from slimnet_ebpf import filters, links
from slimnet_ebpf.maps import Map
from slimnet_ebpf.objects import Program

__all__ = ["DEVICES", "Carried", "Carrier", "ends"]

_ARRIVE, _DEVICE_IN, _PORTAL = "slim_arrive_tc", "slim_device_tc", "slim_portal_tc"
#: The programs that only the devices of such endpoints need.
DEVICES = frozenset({_ARRIVE, _DEVICE_IN, _PORTAL})

_DEVICE = Layout(private.slim_device)
_ACCOUNT_KEY = Layout(contract.slim_account_key)
_POLICE = Layout(private.slim_police)
_KEY = Layout(private.slim_carried_key)
_CARRIED = Layout(private.slim_carried)


@frozen
class Carried:
    """A connection that is carried, as its endpoint sees it.

    Attributes:
        key: of the record of what the endpoint sends.
        endpoint: its id.
        peer_endpoint: of the other end.
        local: its address and port.
        peer: what it dialled, or who called.
        port: as policy was asked.
        rule: of its own policy.
        accepted: it was called.
        is_open: the handshake is over.
        wire: by which; ``None``: with an endpoint of this host, or with the outside.
        opened: CLOCK_MONOTONIC in ns.
        traffic: bytes sent and received.
    """

    key: bytes
    endpoint: int
    peer_endpoint: int
    local: tuple[IPAddress, int]
    peer: tuple[IPAddress, int]
    port: int
    rule: int
    accepted: bool
    is_open: bool
    wire: Wire | None
    opened: int
    traffic: tuple[int, int]

    @property
    def direction(self) -> Direction:
        """Whose policy it was put to, for this end."""
        return Direction.INGRESS if self.accepted else Direction.EGRESS

    @property
    def socket(self) -> Socket:
        """Its socket in the endpoint, whatever its cookie is."""
        ends = (self.local, self.peer)
        ports = struct.pack("!HH", *(port for _, port in ends))
        addresses = b"".join(int(address).to_bytes(4, "big") + bytes(12) for address, _ in ends)
        cookie = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        return Socket(
            socket.AF_INET, socket.IPPROTO_TCP, 1, ports + addresses + cookie, cgroup=0, storage=b""
        )


class Carrier:
    """Those of one instance.

    Args:
        maps: the contract's maps by number.
        programs: by name; :data:`DEVICES` may be missing.
        load: loads those.
        host: the host's network namespace.
    """

    def __init__(
        self,
        maps: Mapping[int, Map],
        programs: Mapping[str, Program],
        load: Callable[[], Mapping[str, Program]],
        host: Netns,
    ) -> None:
        self._apart = maps[private.SLIM_MAP_APART]
        self._devices = maps[private.SLIM_MAP_DEVICE]
        self._accounts = maps[private.SLIM_MAP_ACCOUNT]
        self._police = maps[private.SLIM_MAP_POLICE]
        self._carried = maps[private.SLIM_MAP_CARRIED]
        self._programs = programs
        self._load = load
        self._host = host
        #: The programs on devices are another load's and stay for now.
        self.waits = False

    def add(self, record: Record, router: Path, plug: Plug) -> None:
        """Carry an endpoint's connections from now on.

        Args:
            record: the fallback overlay's.
            router: its router's network namespace.
            plug: how it is connected there.

        Raises:
            BackendError: the kernel, or what of slimnet is installed now, refuses.
        """
        if not self._programs.keys() >= DEVICES:
            self._programs = {**self._programs, **self._load()}
        held = self._devices.get(u32(plug.device))
        carried = _DEVICE.unpack(held)["carried"] if held is not None else 0
        self._devices.set(
            u32(plug.device),
            _DEVICE.pack(
                endpoint=record.endpoint,
                vni=record.vni,
                address=int(record.address),
                near=int(plug.near),
                uplink=plug.uplink,
                portal=plug.portal,
                carried=carried,
                macs=plug.macs,
            ),
        )
        self._apart.set(u32(record.endpoint), u32(plug.device))
        if self.waits:
            return
        with netns.enter(router):
            filters.keep(plug.uplink, filters.INGRESS, self._programs[_ARRIVE].fd)
            self._put_across(plug.device, _DEVICE_IN)
        with self._host.entered():
            self._put_across(plug.portal, _PORTAL)
            filters.keep(plug.portal, filters.EGRESS, self._programs["slim_tc_egress"].fd)

    def _put_across(self, device: int, name: str) -> None:
        """On what comes from the other end of a device: where both are a netkit, before it is
        queued, and so that nobody at that end takes the program off."""
        program = self._programs[name].fd
        if not links.keep_on_device(program, device, links.ATTACH_NETKIT_PEER):
            filters.keep(device, filters.INGRESS, program)

    def limit(self, limits: Mapping[int, LimitRecord], plugs: Mapping[int, Plug]) -> int:
        """Put limits in force; how many endpoints here have one.

        Args:
            limits: endpoint id to its limit.
            plugs: of the endpoints that are here.
        """
        wanted = {
            u32(plug.device): limits[endpoint]
            for endpoint, plug in plugs.items()
            if endpoint in limits
        }
        held = {key: _POLICE.unpack(value) for key, value in self._police.items()}
        self._police.remove(held.keys() - wanted.keys())
        for key, limit in wanted.items():
            before = held.get(key, {})
            record = {"rate": limit.rate, "connection_rate": limit.connection_rate}
            if before != before | record or not before:
                self._police.set(key, _POLICE.pack(**record))
        return len(wanted)

    def keep(self, endpoints: Mapping[int, Plug]) -> None:
        """Forget all endpoints but these, and what was carried of them."""
        devices = {u32(plug.device) for plug in endpoints.values()}
        self._apart.remove(
            key for key, device in dict(self._apart.items()).items() if device not in devices
        )
        held = dict(self._devices.items())
        gone = held.keys() - devices
        if not gone:
            return
        left = {_DEVICE.unpack(held[key])["endpoint"] for key in gone}
        self._accounts.remove(
            key for key, _ in self._accounts.items() if _ACCOUNT_KEY.unpack(key)["endpoint"] in left
        )
        self._carried.remove(
            key for key, value in _records(self._carried).items() if u32(value["device"]) in gone
        )
        self._devices.remove(gone)

    def carried(self) -> list[Carried]:
        """The connections that are not over."""
        found = []
        for raw, out, back in _live(self._carried):
            key = _KEY.unpack(raw)
            found.append(
                Carried(
                    raw,
                    endpoint=out["endpoint"],
                    peer_endpoint=out["peer"],
                    local=(IPAddress(key["source"], 4), key["source_port"]),
                    peer=(IPAddress(key["destination"], 4), key["destination_port"]),
                    port=out["port"],
                    rule=out["rule"],
                    accepted=bool(out["flags"] & private.SLIM_CARRIED_ACCEPTED),
                    is_open=bool(out["flags"] & private.SLIM_CARRIED_OPENED),
                    wire=_wire(out),
                    opened=out["opened"],
                    traffic=(out["bytes"], back["bytes"]),
                )
            )
        return found

    def connections(self) -> Iterator[Connection]:
        """See :meth:`slimnet.abc.Backend.connections`."""
        epoch = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        for one in self.carried():
            waits = "SYN-RECV" if one.accepted else "SYN-SENT"
            yield Connection(
                endpoint=one.endpoint,
                peer_endpoint=one.peer_endpoint,
                local=one.local,
                peer=one.peer,
                direction=one.direction,
                wire=one.wire,
                state="ESTAB" if one.is_open else waits,
                opened=one.opened / 1e9 + epoch,
            )

    def end(self, one: Carried, where: Path) -> None:
        """End a connection at both ends: its socket with a reset, which is the last packet
        that passes.

        Args:
            one: the connection.
            where: path of its endpoint's network namespace.
        """
        with contextlib.suppress(OSError), netns.enter(where):
            diagnosis = Diagnosis()
            try:
                diagnosis.destroy([one.socket])
            finally:
                diagnosis.close()
        value = self._carried.get(one.key)
        if value is None:
            return
        out = _CARRIED.unpack(value)
        for key in (one.key, _other(out)):
            held = self._carried.get(key)
            if held is not None:
                record = _CARRIED.unpack(held)
                flags = record["flags"] | private.SLIM_CARRIED_REVOKED
                self._carried.set(key, _CARRIED.pack(**(record | {"flags": flags})))


def ends(table: Map) -> int:
    """How many ends of connections that are not over are in a table of records, which may be
    another version's."""
    if table.value_size == _CARRIED.size:
        return sum(1 for _ in _live(table))
    keys = [_KEY.unpack(key) for key, _ in table.items()]
    return sum(1 for key in keys if key["device"] and key["source"])


def _records(table: Map) -> dict[bytes, dict[str, Any]]:
    """What is carried, by key: a record for each way, and some of names."""
    return {key: _CARRIED.unpack(value) for key, value in table.items()}


def _live(table: Map) -> Iterator[tuple[bytes, dict[str, Any], dict[str, Any]]]:
    """The connections that are not over: the key of what the endpoint sends, and what becomes
    of that and of what comes back."""
    every = _records(table)
    for raw, out in every.items():
        back = every.get(_other(out))
        if not _KEY.unpack(raw)["device"] or back is None:
            continue
        if out["flags"] & private.SLIM_CARRIED_CLOSED:
            continue
        if not out["flags"] & back["flags"] & private.SLIM_CARRIED_FINAL:
            yield raw, out, back


def _wire(out: dict[str, Any]) -> Wire | None:
    """By which wire a connection goes, by the record of what its endpoint sends."""
    if out["back"] or not out["source"] >> 24 or out["flags"] & private.SLIM_CARRIED_PUBLISHED:
        return None
    return Wire.ANNOUNCE if out["flags"] & private.SLIM_CARRIED_ANNOUNCED else Wire.SYN


def _other(record: dict[str, Any]) -> bytes:
    """The key of the other way's record: slim_carried_other()."""
    return _KEY.pack(
        device=record["back"],
        source=record["destination"],
        destination=record["source"],
        source_port=record["destination_port"],
        destination_port=record["source_port"],
    )
