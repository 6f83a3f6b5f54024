# SPDX-License-Identifier: Apache-2.0
"""The configuration: one TOML file, and what ``conf.d`` beside it adds.

::

    instance = "default"          # names this host's data path on this machine
    host = "alpha"                # this host's name in the cluster
    backend = "auto"              # or a plugin's name
    store = "sqlite:////var/lib/slimnet/store.db"
    key_file = "/etc/slimnet/key" # 128 bits, the same on every host of the cluster
    lease = 10                    # seconds after which a silent host is lost

    [underlay]
    address = "192.0.2.1"         # one of the two is enough; neither: the default route's
    interface = "eth0"

    [log]
    level = "info"

    [labels]                      # of this host, for cluster-wide rules
    zone = "a"

    [engines]
    without_agent = "refuse"      # a container that starts while the agent is down; or "later"

    [backend.ebpf]                # a plugin's own options
    wire_ports = 4790

An ordinary user's store and key are in that user's own directories
(:mod:`slimnet.directories`).

TOML lets no key be text and table at once: in a file with a ``[backend.<name>]``
the backend is named by ``backend.name = "ebpf"``, or left at ``auto``. The same holds for
a store's own options: with a ``[store.etcd]`` there is ``store.url``, or neither, where that
table says all there is to say.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import field, frozen
from netaddr import AddrFormatError, IPAddress

from slimnet import directories
from slimnet.exceptions import ConfigError
from slimnet.names import NAME, is_label
from slimnet.plugins import backend_names, store_names, suggest

__all__ = ["Config", "UnderlayConfig", "load_config"]

_LEVELS = ("debug", "info", "warning", "error")
#: What becomes of an engine's container that starts while the agent is down.
_WITHOUT_AGENT = ("refuse", "later")
#: Names of keys that are tables elsewhere.
_SHORT = {"backend.name": "backend", "store.url": "store"}


def _host_name() -> str:
    return socket.gethostname().partition(".")[0].lower()


@frozen
class UnderlayConfig:
    """Where this host meets the others. What is ``None`` is found by the other,
    or by the default route.

    Attributes:
        address: this host's underlay address.
        interface: the name of the interface that has it.
    """

    address: IPAddress | None = None
    interface: str | None = None


@frozen
class Config:
    """What the agent of one host is told. Where its files are by default:
    :mod:`slimnet.directories`.

    Attributes:
        path: the file that it came from; ``None`` for the defaults.
        instance: names this host's data path on this machine.
        host: this host's name in the cluster.
        backend: a plugin's name, or ``auto``.
        store: URL of the store.
        store_options: that driver's own options.
        key_file: file of the cluster's secret, 32 hexadecimal digits.
        lease: seconds after which the others take a silent host for lost.
        underlay: address and interface of this host.
        level: how much the agent logs.
        labels: this host's labels.
        without_agent: what becomes of an engine's container that starts while the agent is
            down: ``refuse``, or ``later``: it starts without a network, and joins it then.
        options: backend name to its own options.
        files: key (``underlay.address``) to the file that has it.
    """

    path: Path | None = None
    instance: str = "default"
    host: str = field(factory=_host_name)
    backend: str = "auto"
    store: str = field(factory=lambda: f"sqlite:///{directories.state() / 'store.db'}")
    store_options: Mapping[str, Any] = field(factory=dict, hash=False)
    key_file: Path = field(factory=lambda: directories.configuration() / "key")
    lease: float = 10.0
    underlay: UnderlayConfig = UnderlayConfig()
    level: str = "info"
    labels: Mapping[str, str] = field(factory=dict, hash=False)
    without_agent: str = "refuse"
    options: Mapping[str, Mapping[str, Any]] = field(factory=dict, hash=False)
    files: Mapping[str, Path] = field(factory=dict, eq=False, repr=False)

    def located(self, error: ConfigError) -> ConfigError:
        """An error about a value of this configuration, with the file that has it: as
        :func:`load_config` names it where it sees the error itself."""
        keys = (key for key in self.files if f"{key}.".startswith(f"{error.field}."))
        file = self.files.get(next(keys, ""), self.path)
        if file is None:
            return error
        return ConfigError(f"{file}: {error.field}", error.wanted, error.got)

    @property
    def run(self) -> Path:
        """The directory of what is gone after a reboot."""
        return directories.run() / self.instance

    @property
    def socket(self) -> Path:
        """The agent's Unix socket."""
        return self.run / "agent.sock"


def load_config(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and check a configuration.

    Args:
        path: the file; ``SLIMNET_CONFIG`` or ``/etc/slimnet/slimnet.toml`` by
            default, of an ordinary user ``~/.config/slimnet/slimnet.toml``. Files
            ``conf.d/*.toml`` beside it are merged over it, in the order of their names.
            Only the default file may be absent.

    Raises:
        ConfigError: a file cannot be read, or a key or value in it is wrong;
            says which, and what would do.
    """
    given = path if path is not None else os.environ.get("SLIMNET_CONFIG")
    main = Path(given) if given else directories.configuration() / "slimnet.toml"
    merged: dict[str, tuple[Any, Path]] = {}
    found = given is not None or _is_there(main)
    for part in [main] * found + sorted((main.parent / "conf.d").glob("*.toml")):
        for key, value in _flatten(_read(part)):
            merged[_SHORT.get(key, key)] = (value, part)
    return _Check(merged).config(main if found else None)


def _is_there(path: Path) -> bool:
    """Also where that cannot be told: then reading it says why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _is_absolute(text: str) -> bool:
    return Path(text).is_absolute()


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"a readable file ({error.strerror})", "none") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "TOML", str(error)) from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; an empty table is a value, so that it is checked too."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Check:
    """Takes the merged keys one by one; what is left at the end is unknown."""

    _KEYS = (
        "backend",
        "engines.without_agent",
        "host",
        "instance",
        "key_file",
        "lease",
        "log.level",
        "store",
        "underlay.address",
        "underlay.interface",
    )

    def __init__(self, merged: dict[str, tuple[Any, Path]]) -> None:
        self._left = merged

    def config(self, path: Path | None) -> Config:
        files = {key: file for key, (_, file) in self._left.items()}
        options = self._options("backend", backend_names())
        stores = self._options("store", store_names())
        labels = self._labels()
        self._unknown()
        default = Config()
        return Config(
            path=path,
            instance=self._instance(default.instance),
            host=self._name("host", default.host),
            backend=self._backend(default.backend),
            store=(store := self._store(stores, default.store)),
            store_options=stores.get(store.partition("://")[0], {}),
            key_file=Path(
                self._text("key_file", str(default.key_file), "an absolute path", _is_absolute)
            ),
            lease=self._lease(default.lease),
            underlay=UnderlayConfig(
                address=self._address("underlay.address"),
                interface=self._text(
                    "underlay.interface", "", "an interface's name", lambda text: 0 < len(text) < 16
                )
                or None,
            ),
            level=self._one_of("log.level", _LEVELS, default.level),
            labels=labels,
            without_agent=self._one_of(
                "engines.without_agent", _WITHOUT_AGENT, default.without_agent
            ),
            options=options,
            files=MappingProxyType(files),
        )

    def _where(self, key: str) -> str:
        return f"{self._left[key][1]}: {key}"

    def _value(self, key: str) -> Any:
        return self._left[key][0] if key in self._left else None

    def _wrong(self, key: str, wanted: str) -> ConfigError:
        return ConfigError(self._where(key), wanted, self._value(key))

    def _text(self, key: str, default: str, wanted: str, holds: Any) -> str:
        value = self._value(key)
        if value is None:
            return default
        if not isinstance(value, str) or not holds(value):
            raise self._wrong(key, wanted)
        return value

    def _name(self, key: str, default: str) -> str:
        return self._text(
            key,
            default,
            "lower-case letters, digits and '-', at most 63 (RFC 1123)",
            NAME.fullmatch,
        )

    def _instance(self, default: str) -> str:
        name = self._name("instance", default)
        if name == "testbed":  # that directory of /run/slimnet holds every testbed's files
            raise self._wrong("instance", "another name than 'testbed'")
        return name

    def _backend(self, default: str) -> str:
        value = self._value("backend")
        if value is None:
            return default
        names = ["auto", *backend_names()]
        if value not in names:
            raise self._wrong("backend", suggest(str(value), names))
        return str(value)

    def _store(self, tables: Mapping[str, Any], default: str) -> str:
        return self._text(
            "store",
            f"{next(iter(tables))}://" if len(tables) == 1 else default,
            "a URL, "
            + suggest(str(self._value("store")), [f"{name}://" for name in store_names()]),
            lambda text: text.partition("://")[0] in store_names() and "://" in text,
        )

    def _lease(self, default: float) -> float:
        value = self._value("lease")
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 3600:
            raise self._wrong("lease", "seconds, 1 to 3600")
        return float(value)

    def _one_of(self, key: str, words: Sequence[str], default: str) -> str:
        value = self._value(key)
        if value is None:
            return default
        if value not in words:
            raise self._wrong(key, suggest(str(value), words))
        return str(value)

    def _address(self, key: str) -> IPAddress | None:
        value = self._value(key)
        if value is None:
            return None
        try:
            address = IPAddress(value) if isinstance(value, str) else None
        except (AddrFormatError, ValueError):
            address = None
        if address is None or address.is_loopback() or address.is_multicast() or not int(address):
            raise self._wrong(key, "this host's IP address on the underlay")
        return address

    def _options(self, kind: str, names: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
        """``[backend.<name>]`` or ``[store.<name>]``: its keys are the plugin's to check."""
        tables: dict[str, dict[str, Any]] = {}
        for key in [key for key in self._left if key.startswith(f"{kind}.")]:
            _, name, *rest = key.split(".")
            if name not in names:
                raise ConfigError(
                    f"{self._left[key][1]}: {kind}.{name}", suggest(name, names), name
                )
            value, path = self._left.pop(key)
            table = tables.setdefault(name, {})
            if not rest and value != {}:
                raise ConfigError(f"{path}: {key}", "a table of options", value)
            for step in rest[:-1]:
                table = table.setdefault(step, {})
            if rest:
                table[rest[-1]] = value
        return MappingProxyType({name: MappingProxyType(table) for name, table in tables.items()})

    def _labels(self) -> Mapping[str, str]:
        labels = {}
        for key in [key for key in self._left if key.startswith("labels.")]:
            value, path = self._left.pop(key)
            name = key.removeprefix("labels.")
            if not is_label(name, value):
                raise ConfigError(f"{path}: {key}", "a Kubernetes label", value)
            labels[name] = value
        return MappingProxyType(labels)

    def _unknown(self) -> None:
        tables = {key.partition(".")[0] for key in self._KEYS if "." in key} | {
            "backend",
            "labels",
            "store",
        }
        for key, (value, path) in self._left.items():
            if key in self._KEYS or (value == {} and key in tables):
                continue
            if key in tables:
                raise ConfigError(f"{path}: {key}", f"a table, [{key}]", value)
            known = [
                *self._KEYS,
                "backend.<name>.<option>",
                "labels.<key>",
                "store.<name>.<option>",
            ]
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{path}: {key}", f"one of: {', '.join(known)}{hint}", "an unknown key"
            )
