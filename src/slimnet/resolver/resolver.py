# SPDX-License-Identifier: Apache-2.0
"""One host's resolver: the sockets at which endpoints ask, and a thread that answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
from attrs import field, frozen
from netaddr import IPAddress

from slimnet.linux import netns
from slimnet.model import Direction, Endpoint, Flow, Protocol
from slimnet.policy import State
from slimnet.policy.explain.oracle import Oracle
from slimnet.resolver import OWN, PORT, address
from slimnet.resolver.forwarder import forward
from slimnet.resolver.zone import Zone

__all__ = ["Resolver"]

_log = logging.getLogger(__name__)

#: What may be in flight for one endpoint, and how many connections it may hold open.
_FLIGHTS = 128
_CONNECTIONS = 16
#: Seconds that a connection may be idle (RFC 7766, 6.2.3).
_IDLE = 10.0
#: Bytes of a datagram that crosses every network (the DNS flag day of 2020), and of one
#: whose sender has not said what he takes (RFC 1035, 4.2.1).
_PAYLOAD = 1232
_SMALL = 512
#: Stands for "outside" where a name server is on the host's loopback, or at an IPv6 address,
#: which policy does not know (RFC 5737).
_OUTSIDE = "192.0.2.53"


@frozen(eq=False)
class _Client:
    """An endpoint, its namespace's number (0: the host's own), and its sockets."""

    endpoint: Endpoint
    namespace: int
    datagrams: socket.socket
    stream: socket.socket
    tasks: set[asyncio.Task[None]] = field(factory=set)
    connections: set[asyncio.Task[None]] = field(factory=set)

    def close(self) -> None:
        for each in (*self.tasks, *self.connections):
            each.cancel()
        self.datagrams.close()
        self.stream.close()


class Resolver:
    """Answers the endpoints of one host.

    Args:
        servers: the host's name servers, at each call as they are by then.

    Names follow :meth:`update`; without one nothing of slimnet's is known. What it cannot
    serve is an endpoint without a resolver, never an error.
    """

    def __init__(self, servers: Callable[[], Sequence[str]]) -> None:
        self._servers = servers
        self._host = netns.Netns()
        self._clients: dict[int, _Client] = {}
        self._lock = threading.Lock()
        self._state = State()
        self._zones: dict[str, Zone] = {}
        self._oracle: Oracle | None = None
        self._verdicts: dict[tuple[int, str], bool] = {}
        self._thread = threading.Thread(target=self._run, name="slimnet-resolver", daemon=True)
        #: That of the thread, which starts with the first endpoint.
        self._loop = asyncio.new_event_loop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def close(self) -> None:
        """Close every socket, and end the thread; twice is no error."""
        if self._loop.is_closed():
            return
        for number in list(self._clients):
            self.remove(number)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
        self._loop.close()
        self._host.close()

    def serves(self, endpoint: int) -> bool:
        """Whether an endpoint has a resolver."""
        return endpoint in self._clients

    def add(self, endpoint: Endpoint, namespace: Path | None) -> str:
        """Serve an endpoint. One that is served already is no error; one that is in another
        namespace by now is served there.

        Args:
            endpoint: whose questions they are.
            namespace: its network namespace; ``None`` for the host's own.

        Returns:
            why it cannot be served; empty where it is.
        """
        where = address(endpoint.id) if namespace is None else OWN
        number = 0 if namespace is None else netns.number(namespace)
        held = self._clients.get(endpoint.id)
        if held is not None and held.namespace != number:
            self.remove(endpoint.id)
        with self._lock:
            if endpoint.id in self._clients:
                return ""
            try:
                with self._host.entered() if namespace is None else netns.enter(namespace):
                    client = _Client(endpoint, number, *_open(where))
            except OSError as error:
                return f"cannot listen at {where}:{PORT}: {error.strerror}"
            self._clients[endpoint.id] = client
            if not self._thread.is_alive():
                self._thread.start()
        self._loop.call_soon_threadsafe(self._serve, client)
        return ""

    def remove(self, endpoint: int) -> None:
        """Serve it no more; one that is not served is no error."""
        with self._lock:
            client = self._clients.pop(endpoint, None)
        if client is None:
            return

        def close() -> None:
            self._loop.remove_reader(client.datagrams)
            self._loop.remove_reader(client.stream)
            client.close()
            closed.set()

        closed = threading.Event()
        self._loop.call_soon_threadsafe(close)
        closed.wait(5)

    def update(self, state: State) -> None:
        """Names and policy are as in ``state`` from now on; read when the next question
        comes."""

        def swap() -> None:
            self._state, self._oracle = state, None
            self._zones.clear()
            self._verdicts.clear()

        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(swap)
        else:
            swap()

    # In the thread

    def _serve(self, client: _Client) -> None:
        if client.endpoint.id in self._clients:
            self._loop.add_reader(client.datagrams, self._datagrams, client)
            self._loop.add_reader(client.stream, self._accept, client)

    def _datagrams(self, client: _Client) -> None:
        for _ in range(64):  # then the others' turn
            try:
                data, source = client.datagrams.recvfrom(65535)
            except OSError:  # nothing more; or an error of the one before (ip(7))
                return
            if len(client.tasks) >= _FLIGHTS:
                continue  # dropped: who asks asks again
            query = _parse(data)
            if query is None:
                continue
            reply = self._here(client, query)
            if reply is not None:
                _send(client.datagrams, reply, query, source)
            else:
                self._spawn(client.tasks, self._forward_datagram(client, query, source))

    async def _forward_datagram(
        self, client: _Client, query: dns.message.Message, source: tuple[str, int]
    ) -> None:
        _send(client.datagrams, await self._forward(client, query), query, source)

    def _accept(self, client: _Client) -> None:
        try:
            connection, _ = client.stream.accept()
        except OSError:
            return
        if len(client.connections) >= _CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._spawn(client.connections, self._converse(client, connection))

    async def _converse(self, client: _Client, connection: socket.socket) -> None:
        """Questions and answers of one connection, each after its length (RFC 1035, 4.2.2)."""
        with connection, contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(sock=connection)
            try:
                while True:
                    async with asyncio.timeout(_IDLE):
                        (length,) = struct.unpack("!H", await reader.readexactly(2))
                        query = _parse(await reader.readexactly(length))
                    if query is None:
                        return
                    reply = self._here(client, query)
                    if reply is None:
                        reply = await self._forward(client, query)
                    data = reply.to_wire(max_size=65535)
                    async with asyncio.timeout(_IDLE):
                        writer.write(struct.pack("!H", len(data)) + data)
                        await writer.drain()
            finally:
                writer.close()

    def _spawn(self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _here(self, client: _Client, query: dns.message.Message) -> dns.message.Message | None:
        """What is answered at once; ``None`` where others have to be asked."""
        wrong = _wrong(query)
        if wrong is not None:
            reply = dns.message.make_response(query, recursion_available=True)
            reply.set_rcode(wrong)
            return reply
        network = client.endpoint.network
        zone = self._zones.get(network)
        if zone is None:
            zone = self._zones[network] = Zone(self._state, network)
        return zone.answer(query)

    async def _forward(self, client: _Client, query: dns.message.Message) -> dns.message.Message:
        return await forward(query, self._servers(), lambda server: self._may(client, server))

    def _may(self, client: _Client, server: str) -> bool:
        """Whether egress policy lets the endpoint ask that server itself."""
        key = (client.endpoint.id, server)
        if key not in self._verdicts:
            to = IPAddress(server.partition("%")[0])
            known = to.version == 4 and not to.is_loopback()
            self._oracle = self._oracle or Oracle(self._state)
            judgement = self._oracle.judge(
                Flow(
                    network=client.endpoint.network,
                    source=client.endpoint.address,
                    destination=to if known else _OUTSIDE,
                    protocol=Protocol.UDP,
                    port=PORT,
                    direction=Direction.EGRESS,
                )
            )
            self._verdicts[key] = judgement is not None and judgement.allowed
        return self._verdicts[key]


def _open(where: IPAddress) -> tuple[socket.socket, socket.socket]:
    """Datagrams and connections at an address, in the calling thread's namespace."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        datagrams.bind((str(where), PORT))
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stream.bind((str(where), PORT))
            stream.listen(_CONNECTIONS)
        except BaseException:
            stream.close()
            raise
    except BaseException:
        datagrams.close()
        raise
    return datagrams, stream


def _parse(data: bytes) -> dns.message.Message | None:
    """``None`` for what is no query: nobody is answered who may not have asked."""
    try:
        query = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError):
        return None
    return None if query.flags & dns.flags.QR else query


def _wrong(query: dns.message.Message) -> dns.rcode.Rcode | None:
    """What is wrong with a query that can be read."""
    if query.edns > 0:
        return dns.rcode.BADVERS
    if query.opcode() != dns.opcode.QUERY:
        return dns.rcode.NOTIMP
    if len(query.question) != 1:
        return dns.rcode.FORMERR
    if query.question[0].rdclass != dns.rdataclass.IN:
        return dns.rcode.REFUSED
    return None


def _send(
    datagrams: socket.socket,
    reply: dns.message.Message,
    query: dns.message.Message,
    source: tuple[str, int],
) -> None:
    room = min(max(query.payload, _SMALL), _PAYLOAD) if query.edns >= 0 else _SMALL
    with contextlib.suppress(OSError):  # the sender is gone, or its queue is full
        datagrams.sendto(reply.to_wire(max_size=room, prefer_truncation=True), source)
