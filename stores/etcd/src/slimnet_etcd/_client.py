# SPDX-License-Identifier: Apache-2.0
"""Asks one of several servers, and another one where that does not answer.

gRPC's own ways are switched off where they would hide what happened: its retries, its waits
between two connections, the environment's proxies. It is asked for one server at a time, so
that whoever reads and whoever watches do so at the same one.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

# The errors of its C part, which would go to our standard error, are raised as well.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc  # reads the line above

from slimnet.exceptions import ConfigError, StoreUnreachable
from slimnet_etcd import _messages
from slimnet_etcd._settings import Settings

__all__ = ["Client", "Doubt", "Refused", "words"]

_CODE = grpc.StatusCode

#: Answers of a server that may answer better later, or another one now. What is unknown to gRPC
#: is what went wrong within etcd, such as its own deadline.
_LATER = (
    _CODE.UNAVAILABLE,
    _CODE.DEADLINE_EXCEEDED,
    _CODE.CANCELLED,
    _CODE.UNKNOWN,
    _CODE.INTERNAL,
)
#: Seconds between two rounds of all servers while none of them can answer, as when they elect.
_PAUSE = 0.1
#: Seconds that each step of a handshake may take that is only tried to see what is wrong.
_SHAKE = 2.0
#: How often it is tried with a server that resets.
_SHAKES = 3
#: X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED (openssl/x509_vfy.h)
_OUT_OF_TIME = (9, 10)
_OPTIONS = [
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    # A peer that is gone without a word is noticed: etcd allows a ping in 5 s
    # (--grpc-keepalive-min-time), not more.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
]
#: How every text of the servers' own begins.
_ETCD = "etcdserver: "
#: Nobody is there; and other cases in which nothing was done.
_ABSENT = ("failed to connect", "DNS resolution failed")
_NOT_DONE = (*_ABSENT, "no leader", "not capable", "too many requests")
#: A user's token that a server does not know any more, or that is older than its users.
_STALE = ("invalid auth token", "revision of auth store is old")


class Refused(Exception):  # by what happened, as slimnet's own
    """A server answered no.

    Attributes:
        code: gRPC's.
        text: etcd's words.
    """

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Doubt(StoreUnreachable):
    """Nobody says whether it was done."""


class Client:
    """Connections to the servers. Threads may share one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closed = False
        #: Which of them is asked, by its place in the list.
        self.server = 0
        self._token = ""
        self._channels: dict[int, grpc.Channel] = {}
        self._lock = threading.Lock()
        self._credentials = settings.ca and grpc.ssl_channel_credentials(
            settings.ca, settings.key, settings.cert
        )

    def ask(self, method: str, request: Any, answer: str, *, once: bool = False) -> Any:
        """Call a method.

        Args:
            method: such as ``KV/Range``.
            request: its message.
            answer: the kind of the answer's.
            once: it must not be done twice: it is sent again only where it was not done.

        Raises:
            Refused: by what is asked.
            Doubt: nobody says whether it was done.
            StoreUnreachable: nobody answers in time.
        """

        def call(channel: grpc.Channel, seconds: float) -> Any:
            stub = channel.unary_unary(f"/etcdserverpb.{method}", _bytes, _messages.reader(answer))
            return stub(request, timeout=seconds, metadata=self._metadata())

        return self._try(call, once=once)

    def keep_alive(self, lease: int) -> Any:
        """One question and answer of the stream that renews leases; ``None``: no answer.

        Raises:
            StoreUnreachable: as for :meth:`ask`.
        """
        request = _messages.new("LeaseKeepAliveRequest", ID=lease)

        def call(channel: grpc.Channel, seconds: float) -> Any:
            reader = _messages.reader("LeaseKeepAliveResponse")
            stub = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive", _bytes, reader)
            stream = stub(iter([request]), timeout=seconds, metadata=self._metadata())
            try:
                return next(stream, None)
            finally:
                stream.cancel()

        return self._try(call)

    def stream(self, requests: Iterator[Any]) -> Any:
        """Watch, at the server that was asked last."""
        with self._lock:
            channel = self._channel(self.server)
        stub = channel.stream_stream(
            "/etcdserverpb.Watch/Watch", _bytes, _messages.reader("WatchResponse")
        )
        return stub(requests, metadata=self._metadata())

    def close(self) -> None:
        """Cuts whatever is under way."""
        with self._lock:
            self.closed = True
            for channel in self._channels.values():
                channel.close()
            self._channels.clear()

    def _try(self, call: Any, *, once: bool = False) -> Any:
        """Until one server has answered, none is there, or the time is over."""
        count = len(self.settings.endpoints)
        deadline = time.monotonic() + self.settings.timeout
        absent: set[int] = set()
        asked_anew = False
        attempt = 0
        while True:
            with self._lock:
                at, channel = self.server, self._channel(self.server)
            # One that says nothing leaves the others some time.
            left = min(deadline - time.monotonic(), max(1.0, self.settings.timeout / count))
            sent = False
            attempt += 1
            try:
                if self.settings.user and not self._token:
                    self._authenticate(channel, max(0.1, left))
                sent = True
                return call(channel, max(0.1, left))
            except ValueError as error:  # gRPC's, where the channel was closed meanwhile
                self._check_open(error)
                continue
            except grpc.RpcError as error:
                self._check_open(error)
                code, text = error.code(), words(error)
                if any(each in text for each in _STALE) and not asked_anew:
                    self._token, asked_anew = "", True
                    continue
                busy = "too many requests" in text
                if code not in _LATER and not busy:
                    if code is _CODE.RESOURCE_EXHAUSTED and "larger than max" not in text:
                        raise self.unreachable(text) from error
                    raise Refused(code, text) from error
                answered = (error.details() or "").startswith(_ETCD)
                self._leave(at, channel, cut=code is _CODE.UNAVAILABLE and not answered)
                if once and sent and not any(each in text for each in _NOT_DONE):
                    doubt = f"{text}; it may have been done"
                    raise Doubt(f"store {self.settings.url}: {doubt}") from error
                if any(each in text for each in _ABSENT):
                    absent.add(at)
                    text = text.rpartition(": ")[2]  # what the kernel or the resolver said
                if len(absent) == count or time.monotonic() > deadline:
                    raise self.unreachable(f"{self.settings.endpoints[at]}: {text}") from error
                if attempt % count == 0:
                    time.sleep(_PAUSE)

    def _channel(self, at: int) -> grpc.Channel:
        """Called with the lock held."""
        self._check_open()
        if at not in self._channels:
            target = self.settings.endpoints[at]
            self._channels[at] = (
                grpc.secure_channel(target, self._credentials, _OPTIONS)
                if self._credentials
                else grpc.insecure_channel(target, _OPTIONS)
            )
        return self._channels[at]

    def _leave(self, at: int, channel: grpc.Channel, *, cut: bool) -> None:
        """Ask another server the next time. A new connection waits for nothing that an old
        one learned."""
        with self._lock:
            if self.server == at:
                self.server = (at + 1) % len(self.settings.endpoints)
            if cut and self._channels.get(at) is channel:
                del self._channels[at]
                channel.close()

    def _check_open(self, error: BaseException | None = None) -> None:
        if self.closed:
            raise self.unreachable("closed") from error

    def unreachable(self, why: str) -> StoreUnreachable:
        """The error that says which store it is."""
        return StoreUnreachable(f"store {self.settings.url}: {why}")

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        # A server that lost the others says so at once, and ends what watches it.
        led = ("hasleader", "true")
        return (led, ("token", self._token)) if self._token else (led,)

    def _authenticate(self, channel: grpc.Channel, seconds: float) -> None:
        stub = channel.unary_unary(
            "/etcdserverpb.Auth/Authenticate", _bytes, _messages.reader("AuthenticateResponse")
        )
        request = _messages.new(
            "AuthenticateRequest", name=self.settings.user, password=self.settings.password
        )
        self._token = stub(request, timeout=seconds).token

    def explain(self) -> ConfigError | None:
        """What TLS has to do with it that no server answers, if it has."""
        settings = self.settings
        for each in settings.endpoints:
            host, _, port = each.rpartition(":")
            if found := _shake_hands(host.strip("[]"), int(port), settings):
                name, wanted, got = found
                return ConfigError(f"store.etcd.{name}", f"{wanted} of {each}", got)
        return None


def _shake_hands(host: str, port: int, settings: Settings) -> tuple[str, str, str | None] | None:
    """As :func:`_shake`; nothing of a server that cannot be asked."""
    for _ in range(_SHAKES):
        try:
            with socket.create_connection((host, port), _SHAKE) as connection:
                return _shake(connection, host, settings)
        except ConnectionResetError:
            continue  # who speaks no TLS may reset before its words are read
        except OSError:
            break
    return None


def _shake(
    connection: socket.socket, host: str, settings: Settings
) -> tuple[str, str, str | None] | None:
    """The option that is wrong, what it should be, and what it is; by the handshake of
    Python's ssl, whose errors say more than gRPC's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if settings.ca is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=settings.ca.decode("ascii"))
    if settings.cert is not None:
        context.load_cert_chain(settings.files["cert"], settings.files["key"])
    try:
        with context.wrap_socket(connection, server_hostname=host) as secure:
            if settings.ca is None:
                return "ca", "the authority (it speaks TLS)", None
            secure.recv(1)  # what it thinks of our certificate comes after the handshake
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message
        if error.verify_code in _OUT_OF_TIME:
            now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            why += f"; the clock of this host says {now}"
        return "ca", f"what signed the certificate ({why})", settings.files["ca"]
    except ssl.SSLError as error:
        if settings.ca is None:
            # It may be that it shook hands and misses a certificate.
            speaks = "ALERT" in str(error)
            return ("ca", "the authority (it speaks TLS)", None) if speaks else None
        if "ALERT" not in str(error):
            return "ca", "nothing, as TLS is not the language", settings.files["ca"]
        wanted = f"a certificate that pleases ({error.reason}) the authority"
        return "cert", wanted, settings.files.get("cert")
    return None


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def words(error: Any) -> str:
    """etcd's, or the last of gRPC's, in one line."""
    text = " ".join((error.details() or str(error.code().name)).split())
    return text.removeprefix(_ETCD)
