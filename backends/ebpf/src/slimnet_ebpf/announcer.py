# SPDX-License-Identifier: Apache-2.0
"""Connections with hosts that speak wire announce and not wire syn, as those of the backend
preload: what such a host announces becomes the record of a handshake before its SYN comes, and
what connects from here is announced there.

A thread of its own, since whoever connects waits for it. The data path goes by what stands in
its maps: the listeners of such hosts as they tell them, and records.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import frozen

from slimnet import contract
from slimnet.exceptions import BackendError
from slimnet.layout import Layout
from slimnet.linux.netns import Netns
from slimnet_ebpf import contract as private
from slimnet_ebpf.libbpf import SampleFunction, check, library
from slimnet_ebpf.link import AnnounceLink, LinkEnd
from slimnet_ebpf.maps import Map

__all__ = ["Announcer", "Here"]

_log = logging.getLogger(__name__)

_ANNOUNCEMENT = Layout(private.slim_announcement)
_TUPLE = Layout(contract.slim_tuple)
_KEY = Layout(private.slim_remote_key)
_REMOTE = Layout(private.slim_remote)
_TOLD = Layout(private.slim_told)
_TICK = 0.1
#: Seconds that an announcement may wait for tables that know whom it is about.
_LATER = 0.6
#: Links that have not shown that they know the key.
_STRANGERS = 64
#: Links of other hosts at the most.
_LINKS = 4096
_BACKLOG = 128
_LINK = contract.SLIM_ANNOUNCE_LINK_MS / 1000
_IDLE = contract.SLIM_ANNOUNCE_IDLE_MS / 1000
_DEAD = contract.SLIM_ANNOUNCE_DEAD_MS / 1000
_ANNOUNCED = contract.SLIM_ANNOUNCE_ANNOUNCED_MS / 1000


@frozen
class Here:
    """This host, as others know it.

    Attributes:
        address: underlay, as the contract holds it.
        port: at which it hears what others announce.
        wire_port: the first of its wire ports.
        keys: the cluster's; the first makes links, the others are good as well.
    """

    address: bytes
    port: int
    wire_port: int
    keys: tuple[bytes, ...]

    @property
    def v4(self) -> str:
        """Its underlay address in words."""
        return socket.inet_ntoa(self.address[-4:])


@frozen
class _Announced:
    """A connection from here, until it is over."""

    token: int
    time: float
    told: Mapping[str, Any]


class Announcer:
    """The links of one host, and its thread, which there is from the first such host on.

    Args:
        netns: the host's network namespace.
        here: this host.
        remote: the map of other hosts' listeners.
        told: the ring buffer of connections from here.
        admit: runs ``slim_announced`` on an announcement.
    """

    def __init__(
        self, netns: Netns, here: Here, remote: Map, told: Map, admit: Callable[[bytes], bytes]
    ) -> None:
        self._netns = netns
        self._here = here
        self._remote = remote
        self._admit = admit
        self._hosts: dict[bytes, tuple[str, int]] = {}
        self._links: list[AnnounceLink] = []
        self._told: dict[bytes, _Announced] = {}
        self._held: dict[bytes, tuple[int, float]] = {}
        self._later: list[tuple[float, AnnounceLink, Mapping[str, Any]]] = []
        self._dialled: dict[bytes, float] = {}
        self._tokens = int.from_bytes(os.urandom(7), "big")
        self._listener: socket.socket | None = None
        self._complained = False
        self._thread: threading.Thread | None = None
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sample = SampleFunction(self._take)  # has to live as long as the ring
        self._ring: int | None = library().ring_buffer__new(told.fd, self._sample, None, None)
        if self._ring is None:
            check(None, "open the ring buffer of connections to announce")
        # Of a process before this one: nobody would announce what connects there.
        remote.remove([key for key, _ in remote.items()])

    def follow(self, hosts: Mapping[bytes, tuple[str, int]]) -> None:
        """These are the hosts now, each with where it hears announcements."""
        if hosts == self._hosts:
            return
        self._hosts = dict(hosts)
        if self._thread is None and hosts:
            self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)

    def rekey(self, keys: tuple[bytes, ...]) -> None:
        """Other keys from now on. A link by the first of them follows each that is by another,
        which ends a little later: what is under way on it arrives."""
        self._here = attrs.evolve(self._here, keys=keys)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the links. Closing twice is no error."""
        if self._ring is None:
            return
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        library().ring_buffer__free(self._ring)
        self._ring = None
        os.close(self._wake)

    # The thread

    def _run(self) -> None:
        with self._netns.entered(), selectors.DefaultSelector() as selector:
            self._selector = selector
            selector.register(self._wake, selectors.EVENT_READ, self._woken)
            epoll = library().ring_buffer__epoll_fd(self._ring)
            selector.register(epoll, selectors.EVENT_READ, self._consume)
            while not self._closing:
                try:
                    self._turn()
                except BackendError as error:
                    _log.error("announcements: %s", error)
            for link in list(self._links):
                self._end(link, "closing")
            if self._listener is not None:
                self._listener.close()

    def _turn(self) -> None:
        self._tick()
        for key, mask in self._selector.select(_TICK):
            if isinstance(key.data, AnnounceLink):
                self._serve(key.data, mask)
            else:
                key.data()

    def _woken(self) -> None:
        os.eventfd_read(self._wake)

    def _tick(self) -> None:
        now = time.monotonic()
        self._listen()
        for link in list(self._links):
            age = now - link.heard
            stale = link.by not in self._here.keys[: 1 if link.opener else None]
            if stale and link.until is None:
                link.until = now + _LINK
            if link.until is not None and now > link.until:
                self._end(link, "by a key that is no more")
            elif link.host not in self._hosts:
                self._end(link, "no host that announces")
            elif age > (_DEAD if link.ready else _LINK):
                self._end(link, "silent")
            elif link.ready and age > _IDLE:
                self._send(link, contract.SLIM_FRAME_PING)
        opened = {link.host for link in self._links if link.opener and link.until is None}
        for host in self._hosts.keys() - opened:
            if now - self._dialled.get(host, 0.0) >= _TICK:
                self._dialled[host] = now
                self._dial(host)
        waiting, self._later = self._later, []
        for deadline, link, frame in waiting:
            self._announced(link, frame, deadline)
        if len(self._told) > _LINKS or len(self._held) > _LINKS:
            self._prune(now)

    def _prune(self, now: float) -> None:
        """What is older than any SYN."""
        self._told = {key: one for key, one in self._told.items() if now - one.time < _ANNOUNCED}
        self._held = {key: one for key, one in self._held.items() if now - one[1] < _ANNOUNCED}

    def _listen(self) -> None:
        """Only where there is somebody to hear."""
        if self._listener is not None or not self._hosts:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._here.v4, self._here.port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if not self._complained:
                self._complained = True
                _log.error(
                    "port %d, at which other hosts announce their connections: %s",
                    self._here.port,
                    error.strerror,
                )
            return
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101  # for the type checker
        try:
            sock, name = self._listener.accept()
        except OSError:
            return
        host = bytes(10) + b"\xff\xff" + socket.inet_aton(name[0])
        strangers = sum(not link.ready and not link.opener for link in self._links)
        if host not in self._hosts or strangers >= _STRANGERS or len(self._links) >= _LINKS:
            sock.close()
            return
        self._add(sock, host, opener=False)

    def _dial(self, host: bytes) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            # The other end knows a host by the address that its link comes from.
            sock.bind((self._here.v4, 0))
            result = sock.connect_ex(self._hosts[host])
        except OSError as error:
            result = error.errno or errno.EINVAL
        if result not in {0, errno.EINPROGRESS}:
            sock.close()
            return
        self._add(sock, host, opener=True)

    def _add(self, sock: socket.socket, host: bytes, *, opener: bool) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = AnnounceLink(sock, self._here.address, host, self._here.keys, opener=opener)
        self._links.append(link)
        self._selector.register(sock, self._mask(link), link)

    @staticmethod
    def _mask(link: AnnounceLink) -> int:
        # Readable is also what failed to connect; before that there is nothing to read.
        if link.connecting:
            return selectors.EVENT_WRITE
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if link.wants_to_write else 0)

    def _end(self, link: AnnounceLink, why: str) -> None:
        if link not in self._links:
            return
        _log.debug("link with %s: %s", socket.inet_ntoa(link.host[-4:]), why)
        self._links.remove(link)
        self._selector.unregister(link.sock)
        link.close()
        if link.opener and not self._opened(link.host):
            self._remote.remove(
                [key for key, _ in self._remote.items() if key.startswith(link.host)]
            )

    def _opened(self, host: bytes) -> bool:
        """Whether a link to a host tells which listeners it has."""
        return any(link.opener and link.synced and link.host == host for link in self._links)

    def _send(self, link: AnnounceLink, kind: int, **fields: int | bytes) -> None:
        try:
            link.send(kind, **fields)
        except LinkEnd as end:
            self._end(link, str(end))
            return
        self._selector.modify(link.sock, self._mask(link), link)

    def _serve(self, link: AnnounceLink, mask: int) -> None:
        if link not in self._links:
            return  # ended by what came before it in this turn
        was_ready, was_synced = link.ready, link.synced
        try:
            if mask & selectors.EVENT_WRITE:
                link.flush()
            if mask & selectors.EVENT_READ:
                for frame in link.frames():
                    if link not in self._links:
                        return
                    (self._from_acceptor if link.opener else self._from_opener)(link, frame)
        except (LinkEnd, BackendError) as end:  # a map may be full
            self._end(link, str(end))
            return
        if link not in self._links:
            return
        self._selector.modify(link.sock, self._mask(link), link)
        if link.ready and not was_ready:
            if link.opener:
                self._announce_again(link)
            else:
                self._dialled.pop(link.host, None)  # it is there again
        if link.synced and not was_synced:
            self._remote.set(_KEY.pack(host=link.host), _REMOTE.pack())

    # What others connect here

    def _from_opener(self, link: AnnounceLink, frame: Mapping[str, Any]) -> None:
        kind = frame["kind"]
        if kind == contract.SLIM_FRAME_RESOLVE:
            # Decided when it is announced, by the data path.
            turn = (frame["server"] + frame["port"]) % contract.SLIM_WIRE_PORTS
            fields = {name: frame[name] for name in ("id", "token", "client", "server", "port")}
            self._send(
                link,
                contract.SLIM_FRAME_RESOLVED,
                underlay_port=self._here.wire_port + turn,
                **fields,
            )
        elif kind == contract.SLIM_FRAME_ANNOUNCE:
            self._announced(link, frame, time.monotonic() + _LATER)
        elif kind == contract.SLIM_FRAME_WITHDRAW:
            key = self._tuple(link, frame)
            if self._held.get(key, (None, 0.0))[0] == frame["token"]:
                del self._held[key]
                self._ask(link, frame, withdrawn=1)
        elif kind != contract.SLIM_FRAME_PROBED:
            self._end(link, f"frame {kind}")

    def _announced(self, link: AnnounceLink, frame: Mapping[str, Any], deadline: float) -> None:
        if link not in self._links:
            return
        key = self._tuple(link, frame)
        turn = frame["underlay_port"] - self._here.wire_port
        if frame["source"] != link.host or not 0 <= turn < contract.SLIM_WIRE_PORTS:
            answer: Mapping[str, Any] = {
                "error": errno.ECONNREFUSED,
                "reason": contract.SLIM_REASON_SYN_SOURCE,
                "rule": 0,
            }
        elif self._held.get(key, (None, 0.0))[0] == frame["token"]:
            # Twice: it is known, and perhaps used.
            answer = {"error": 0, "reason": 0, "rule": 0}
        else:
            answer = self._ask(link, frame)
            if answer["later"] and time.monotonic() < deadline:
                self._later.append((deadline, link, frame))
                return
            if not answer["error"]:
                self._held[key] = (frame["token"], time.monotonic())
        self._send(
            link,
            contract.SLIM_FRAME_ANNOUNCED,
            token=frame["token"],
            **{name: answer[name] for name in ("error", "reason", "rule")},
        )

    def _tuple(self, link: AnnounceLink, frame: Mapping[str, Any]) -> bytes:
        return _TUPLE.pack(
            source=link.host,
            destination=self._here.address,
            source_port=frame["source_port"],
            destination_port=frame["underlay_port"],
        )

    def _ask(
        self, link: AnnounceLink, frame: Mapping[str, Any], withdrawn: int = 0
    ) -> Mapping[str, Any]:
        question = _ANNOUNCEMENT.pack(
            tuple=self._tuple(link, frame),
            source_endpoint=frame["client"],
            destination_endpoint=frame["server"],
            source_port=frame["client_port"],
            port=frame["port"],
            withdrawn=withdrawn,
            error=errno.EIO,
        )
        try:
            return _ANNOUNCEMENT.unpack(self._admit(question))
        except BackendError as error:
            _log.error("an announcement: %s", error)
            return _ANNOUNCEMENT.unpack(question)

    # What connects from here

    def _from_acceptor(self, link: AnnounceLink, frame: Mapping[str, Any]) -> None:
        kind = frame["kind"]
        if kind == contract.SLIM_FRAME_LISTENER:
            key = _KEY.pack(host=link.host, endpoint=frame["server"], port=frame["port"])
            if frame["underlay_port"]:
                self._remote.set(key, _REMOTE.pack(port=frame["underlay_port"]))
            else:
                self._remote.remove([key])
            self._send(link, contract.SLIM_FRAME_LISTENER, answer=1, token=frame["token"])
        elif kind == contract.SLIM_FRAME_PROBE:
            self._consume()  # its SYN left behind what stands there
            self._send(
                link,
                contract.SLIM_FRAME_PROBED,
                source=frame["source"],
                source_port=frame["source_port"],
                underlay_port=frame["underlay_port"],
                token=frame["token"],
            )
        elif kind not in {contract.SLIM_FRAME_FORGET, contract.SLIM_FRAME_RESOLVED}:
            self._end(link, f"frame {kind}")

    def _consume(self) -> None:
        check(library().ring_buffer__consume(self._ring), "read the ring of connections")

    def _take(self, _: Any, data: int, size: int) -> int:
        told = _TOLD.unpack(ctypes.string_at(data, size))
        key = told["tuple"]
        if told["kind"] == private.SLIM_TOLD_REFUSED:
            self._say(contract.SLIM_FRAME_REFUSED, _Announced(0, 0.0, told))
            return 0
        if told["kind"] == private.SLIM_TOLD_CLOSED:
            one = self._told.pop(key, None)
            if one is not None:
                self._say(contract.SLIM_FRAME_WITHDRAW, one)
            return 0
        self._tokens += 1
        one = self._told[key] = _Announced(self._tokens, time.monotonic(), told)
        self._say(contract.SLIM_FRAME_ANNOUNCE, one)
        return 0

    def _say(self, kind: int, one: _Announced, to: AnnounceLink | None = None) -> None:
        names = _TUPLE.unpack(one.told["tuple"])
        host = names["destination"]
        link = to or next(
            # Of two, the later one: the other one ends soon.
            (
                each
                for each in reversed(self._links)
                if each.opener and each.ready and each.host == host
            ),
            None,
        )
        if link is None or link.host != host:
            return
        self._send(
            link,
            kind,
            token=one.token,
            client=one.told["source_endpoint"],
            server=one.told["destination_endpoint"],
            source=names["source"],
            source_port=names["source_port"],
            client_port=one.told["source_port"],
            underlay_port=names["destination_port"],
            port=one.told["port"],
            reason=one.told["reason"],
            rule=one.told["rule"],
        )

    def _announce_again(self, link: AnnounceLink) -> None:
        """What may not have reached the other end of a link that is new: it knows what it
        has."""
        now = time.monotonic()
        for one in list(self._told.values()):
            if now - one.time < _ANNOUNCED:
                self._say(contract.SLIM_FRAME_ANNOUNCE, one, link)
