# SPDX-License-Identifier: Apache-2.0
"""What ``[store.etcd]`` says, checked before anybody is asked."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from slimnet.exceptions import ConfigError
from slimnet.plugins import suggest

__all__ = ["OPTIONS", "SCHEME", "Settings"]

SCHEME = "etcd://"
_FIELD = "store.etcd."
_ENDPOINTS = "a list of host:port"
#: Option of ``[store.etcd]`` to its default.
OPTIONS: Mapping[str, object] = {
    "endpoints": None,
    "prefix": "slimnet",
    "ca": None,
    "cert": None,
    "key": None,
    "user": None,
    "password_file": None,
    "timeout": 5.0,
}


@frozen
class Settings:
    """How a cluster's etcd is reached.

    Attributes:
        endpoints: ``host:port`` of each server that may be asked.
        prefix: of all keys, with a ``/`` at its end.
        timeout: seconds that an answer may take, with all the servers that are asked for it.
        ca: PEM of the authority that the servers' certificates are from; ``None``: no TLS.
        cert: PEM of the client's certificate, if it has one.
        key: PEM of its private key.
        files: option to the file that it named, for what is wrong with it.
        user: to be; empty: nobody.
        password: of that user.
    """

    endpoints: tuple[str, ...]
    prefix: str
    timeout: float
    ca: bytes | None = None
    cert: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    files: Mapping[str, str] = field(factory=dict, hash=False)
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """For messages."""
        return SCHEME + ",".join(self.endpoints) + "/" + self.prefix.removesuffix("/")

    @classmethod
    def read(cls, url: str, options: Mapping[str, Any]) -> Settings:
        """Of a URL ``etcd://host:port,host:port/prefix`` and the table beside it; each of the
        URL's two parts may stand in the table instead.

        Raises:
            ConfigError: names the field.
        """
        if not url.startswith(SCHEME):
            raise ConfigError("store", "etcd://<host>:<port>,.../<prefix>", url)
        for option in options:
            if option not in OPTIONS:
                raise ConfigError(_FIELD + option, suggest(option, OPTIONS), "an unknown key")
        servers, _, prefix = url.removeprefix(SCHEME).partition("/")
        files, pem = _pem(options)
        user, password = _login(options)
        return cls(
            endpoints=_endpoints(servers, options),
            prefix=_prefix(prefix, options),
            ca=pem.get("ca"),
            cert=pem.get("cert"),
            key=pem.get("key"),
            files=files,
            user=user,
            password=password,
            timeout=_timeout(options),
        )


def _endpoints(servers: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    given = options.get("endpoints")
    if servers and given is not None:
        raise ConfigError(f"{_FIELD}endpoints", "nothing, for the store's URL has them", given)
    name = "store" if servers else f"{_FIELD}endpoints"
    found = servers.split(",") if servers else given
    if not isinstance(found, list) or not found:
        raise ConfigError(name, _ENDPOINTS, given)
    for each in found:
        if not isinstance(each, str) or not _is_endpoint(each):
            raise ConfigError(name, _ENDPOINTS, each)
    return tuple(dict.fromkeys(found))


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1].replace(":", "")
    plain = bool(host) and host.isascii() and host.isprintable() and not set(host) & set("/:[]@ ")
    return plain and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def _prefix(prefix: str, options: Mapping[str, Any]) -> str:
    given = options.get("prefix")
    if prefix.strip("/") and given is not None:
        raise ConfigError(f"{_FIELD}prefix", "nothing, for the store's URL has it", given)
    name = "store" if prefix.strip("/") else f"{_FIELD}prefix"
    found = prefix.rstrip("/") or (OPTIONS["prefix"] if given is None else given)
    if not isinstance(found, str) or not found.strip("/") or not found.isprintable():
        raise ConfigError(name, "a prefix of keys, such as 'slimnet'", found)
    return found.rstrip("/") + "/"


def _pem(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, bytes]]:
    """The files by option, and what they hold."""
    files = {name: options[name] for name in ("ca", "cert", "key") if name in options}
    pem = {name: _file(name, path) for name, path in files.items()}
    if pem and "ca" not in pem:
        raise ConfigError(f"{_FIELD}ca", "the authority's file, as there is a certificate", None)
    for one, other in (("cert", "key"), ("key", "cert")):
        if one in pem and other not in pem:
            raise ConfigError(f"{_FIELD}{other}", f"a file, as there is a {one}", None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if "ca" in pem:
        try:
            context.load_verify_locations(cadata=pem["ca"].decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{_FIELD}ca", "certificates in PEM", files["ca"]) from error
    if "cert" in pem:
        try:
            context.load_cert_chain(files["cert"], files["key"], password="")
        except (ssl.SSLError, ValueError) as error:
            mismatch = "MISMATCH" in str(error)
            name = "key" if mismatch or b"-----BEGIN CERTIFICATE" in pem["cert"] else "cert"
            wanted = "the certificate's private key" if name == "key" else "a certificate"
            raise ConfigError(_FIELD + name, f"{wanted} in PEM", files[name]) from error
    return files, pem


def _login(options: Mapping[str, Any]) -> tuple[str, str]:
    user, path = options.get("user"), options.get("password_file")
    if user is None and path is None:
        return "", ""
    if not isinstance(user, str) or not user:
        raise ConfigError(f"{_FIELD}user", "a user's name", user)
    if path is None:
        raise ConfigError(f"{_FIELD}password_file", "a file, as there is a user", None)
    try:
        password = _file("password_file", path).decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_FIELD}password_file", "text in UTF-8", path) from error
    if not password:
        raise ConfigError(f"{_FIELD}password_file", "a password in it", path)
    return user, password


def _file(name: str, path: object) -> bytes:
    if not isinstance(path, str) or not Path(path).is_absolute():
        raise ConfigError(_FIELD + name, "a file's absolute path", path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(_FIELD + name, f"a readable file ({error.strerror})", path) from error


def _timeout(options: Mapping[str, Any]) -> float:
    value = options.get("timeout", OPTIONS["timeout"])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.5 <= value <= 60:
        raise ConfigError(f"{_FIELD}timeout", "seconds, 0.5 to 60", value)
    return float(value)
