# SPDX-License-Identifier: Apache-2.0
"""How a machine becomes a host of a cluster, and ceases to be one.

What is written of it on the machine is ``conf.d/cluster.toml`` beside the configuration, the
cluster's key, and the certificate of the store's authority where it has one. All is looked at
first: what is refused has changed nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen
from netaddr import AddrFormatError, IPAddress

from slimnet import agent, directories, records, wires
from slimnet.abc import Revision, Store
from slimnet.agent import instance
from slimnet.agent.site import read_keys, underlay, write_keys
from slimnet.cluster import Cluster, keys
from slimnet.cluster.change import Guard, counter
from slimnet.cluster.keyring import Keyring, fingerprint
from slimnet.cluster.own import FORMAT_KEY, OwnStore, check_format, store_id
from slimnet.cluster.token import CARRIED, PUBLIC, Token
from slimnet.cluster.which import open_configured
from slimnet.config import Config, load_config
from slimnet.exceptions import (
    AlreadyExists,
    ConfigError,
    Conflict,
    InUse,
    InvalidValue,
    NotFound,
)
from slimnet.model import Host, HostState
from slimnet.names import missing
from slimnet.plugins import Choice
from slimnet.trusted import make_trusted

__all__ = [
    "Invitation",
    "Terms",
    "Wishes",
    "beside",
    "check_member",
    "form",
    "invitations",
    "invite",
    "join",
    "join_again",
    "leave",
    "membership",
    "refuse_key",
    "withdraw",
]


@frozen
class Terms:
    """What a token is good for.

    Attributes:
        uses: how many hosts may join by it.
        seconds: after which it expires.
    """

    uses: int = 10
    seconds: float = 3600.0


@frozen
class Wishes:
    """What a host is to be, beside what its configuration says.

    Attributes:
        host: its name; ``None``: the configuration's.
        address: its underlay address; ``None``: the configuration's, or found.
        options: of the store's driver.
    """

    host: str | None = None
    address: str | None = None
    options: Mapping[str, Any] = attrs.field(factory=dict, hash=False)


@frozen
class Invitation:
    """What the store has of a token.

    Attributes:
        id: of the token.
        uses: how many hosts may still join by it.
        expires: seconds since the epoch, by the clock of the host that made it; the store's
            lease decides.
        host: on which it was made.
    """

    id: str
    uses: int
    expires: float
    host: str


def form(
    path: str | None,
    wishes: Wishes,
    store: str | None = None,
    serve: Callable[[str, IPAddress, Path], AbstractContextManager[tuple[str, Mapping[str, Any]]]]
    | None = None,
) -> tuple[Config, Path]:
    """Make this machine the first host of a cluster; with its configuration, and the file that
    was written.

    Args:
        path: of the configuration; ``None``: the default one.
        wishes: what it is to be.
        store: URL; ``None``: the configuration's.
        serve: starts one, for the instance, its underlay address and the file that is to be
            written; its URL and options. It takes that back where this fails.

    Raises:
        AlreadyExists: it is in a cluster, or the store holds one whose key is not here.
        ConfigError, InvalidValue, StoreUnreachable, InUse: nothing was changed.
    """
    found, own = _configuration(path)
    if store is not None or serve is not None or wishes.options:
        _refuse_store(found, "--store")
    with contextlib.ExitStack() as held:
        if serve is not None:
            address = _host(_wished(found, wishes, found.store, {})).address
            store, options = held.enter_context(serve(found.instance, address, own))
            wishes = attrs.evolve(wishes, options={**options, **wishes.options})
        config = _wished(found, wishes, store or found.store, wishes.options)
        if config.store != found.store:
            held.enter_context(instance.hold(config))
        host = _host(config)
        there = config.key_file.exists()
        own_keys = read_keys(config.key_file) if there else (secrets.token_bytes(16),)
        opened = held.enter_context(open_configured(config, make=True))
        _refuse_later(opened)
        number = store_id(opened)
        if number and not there:
            raise AlreadyExists(
                f"the store holds cluster {number}, whose key is not here: join it with a token"
                " (`slimnet cluster token create` on a host of it), or name another prefix"
            )
        refuse_key(opened, config, own_keys)
        _refuse_twin(opened, host, itself=True)
        files = held.enter_context(_files())
        if not there:
            files.add(config.key_file, f"{own_keys[0].hex()}\n")
        files.add(own, _toml(found, config, "init"))
        store_own = OwnStore(opened)
        with contextlib.suppress(Conflict):  # its agent has said more of it
            store_own.transact(expect={keys.SEEN.at(host.name): None}, put=_seen(host))
        files.publish()
    return load_config(path), own


def invite(config: Config, terms: Terms) -> Token:
    """A token for others.

    Raises:
        NotFound: this host is in no cluster.
        InUse: its key is being changed.
        ConfigError, StoreUnreachable: nothing was changed.
    """
    with open_configured(config) as store:
        number = check_member(config, store)
        own = read_keys(config.key_file)
        refuse_key(store, config, own)
        ring, revision = Keyring.read(store)
        if ring is not None and ring.next:
            raise InUse("the cluster's key is being changed: `slimnet cluster rotate-key` ends it")
        options = dict(config.store_options)
        files = {}
        member = next(file for file in config.files.values() if file.match("conf.d/cluster.toml"))
        for option in CARRIED & options.keys():
            path = Path(options[option])
            if option in PUBLIC or path == beside(member, option):
                del options[option]
                files[option] = path.read_text(encoding="ascii")
        token = Token(number, config.store, options, files)
        lease = OwnStore(store).lease(terms.seconds)
        record = {
            "uses": terms.uses,
            "expires": time.time() + terms.seconds,
            "host": config.host,
            "lease": lease,
            "sealed": token.seal(own[0]).hex(),
        }
        key = keys.TOKEN.at(token.id)
        try:
            OwnStore(store).transact(
                expect={key: None, keys.KEYRING.at(): revision},
                put=_dumped(key, record),
                leases={key: lease},
            )
        except Conflict:
            raise InUse("the cluster's key was changed just now: try again") from None
    return token


def check_member(config: Config, store: Store) -> str:
    """The id of the cluster that this host is in.

    Raises:
        NotFound: the store holds none, or nothing says that the key here is that cluster's.
    """
    number = store_id(store)
    member = any(file.match("conf.d/cluster.toml") for file in config.files.values())
    if not number or not member:
        raise NotFound(f"this host is in no cluster on {config.store}: `slimnet cluster init`")
    return number


def invitations(store: Store) -> list[Invitation]:
    """The tokens that have not expired, those among them that are used up."""
    found = store.list(keys.TOKEN.below())[0]
    records_of = {key: records.load(key, value, dict) for key, (value, _) in sorted(found.items())}
    return [_invitation(key, record) for key, record in records_of.items()]


def withdraw(store: Store, number: str) -> None:
    """Let nobody join by a token any more.

    Raises:
        NotFound: there is none of that id.
    """
    there = [each.id for each in invitations(store)]
    if number not in there:
        raise missing("token", number, there)
    OwnStore(store).transact(delete=[keys.TOKEN.at(number)])


def join(path: str | None, token: Token, wishes: Wishes) -> tuple[Config, Path]:
    """Make this machine a host of a token's cluster; with its configuration, and the file that
    was written.

    Args:
        path: of the configuration; ``None``: the default one.
        token: of the cluster.
        wishes: what it is to be.

    Raises:
        InvalidValue: the token is expired, used up, or of another cluster.
        AlreadyExists: this machine is in a cluster, or another host has its name or address.
        ConfigError, NotFound, StoreUnreachable, InUse, ForeignDataPath: nothing was changed.
    """
    found, own = _configuration(path)
    _refuse_store(found, "the token")
    config = _wished(found, wishes, token.store, {**token.options, **wishes.options})
    with contextlib.ExitStack() as held:
        held.enter_context(instance.hold(config))
        host = _host(config)
        files = held.enter_context(_files())
        settings = config
        for option in token.files.keys() - wishes.options.keys():
            config = _with_file(config, option, beside(own, option))
            fresh = files.add(Path(config.store_options[option]), token.files[option])
            settings = _with_file(settings, option, fresh)
        try:
            store = held.enter_context(open_configured(settings))
        except ConfigError as error:
            if str(error.got).startswith(str(own.parent.parent / ".slimnet-")):
                raise ConfigError(error.field, error.wanted, "the token's") from error
            raise
        _refuse_later(store)
        _refuse_other(store, token)
        there = instance.running(config)
        for each in there.values():
            instance.check_store(config, token.cluster, each)
        _refuse_apart(store, host, instance.choose(config, there))
        files.add(own, _toml(found, config, "join"))
        store = OwnStore(store)
        while True:
            record, revision = _record(store, token)
            key = token.unseal(bytes.fromhex(record["sealed"]))
            if config.key_file.exists():
                if key not in read_keys(config.key_file):
                    got = f"{config.key_file} with another: remove it, if nothing else needs it"
                    raise ConfigError("key_file", "the cluster's key, or no file", got)
            elif config.key_file not in files:
                files.add(config.key_file, f"{key.hex()}\n")
            refuse_key(store, config, [key])
            # One after the other: of two with one address, the second has to see the first.
            turn = counter(store, "joined")
            _refuse_twin(store, host)
            try:
                _claim(store, token, record, revision, host, turn)
            except Conflict:  # another host used the token, or joined with another one
                continue
            break
        files.publish()
    return load_config(path), own


def join_again(path: str | None, token: Token) -> Config:
    """Give a host of a cluster the key that it has by now; with its configuration. Its agent,
    which may run, takes it from the file.

    Args:
        path: of the configuration; ``None``: the default one.
        token: of the same cluster.

    Raises:
        NotFound: this machine is in no cluster.
        InvalidValue: the token is expired, used up, or of another cluster.
        ConfigError, StoreUnreachable: nothing was changed.
    """
    config = load_config(path)
    with open_configured(config) as opened:
        number = check_member(config, opened)
        if number != token.cluster:
            got = f"one for cluster {token.cluster}"
            raise InvalidValue("token", f"one for cluster {number}, which this host is in", got)
        store = OwnStore(opened)
        while True:
            record, revision = _record(store, token)
            key = token.unseal(bytes.fromhex(record["sealed"]))
            if read_keys(config.key_file)[0] == key:
                return config  # it has it
            try:
                _spend(store, token, record, revision)
            except Conflict:
                continue
            write_keys(config.key_file, [key])
            return config


def leave(path: str | None, *, force: bool = False) -> Config:
    """Take this machine out of its cluster: its data path, its endpoints, and its key.

    Args:
        path: of the configuration; ``None``: the default one.
        force: end the processes of endpoints first.

    Raises:
        NotFound: it is in none.
        InUse: its agent runs, or an endpoint has processes; nothing was changed.
        StoreUnreachable: nothing was changed.
    """
    config = load_config(path)
    own = membership(path)
    if not own.exists():
        raise NotFound(f"this host joined no cluster: there is no {own}")
    with open_configured(config) as opened:
        store = OwnStore(opened) if store_id(opened) else None  # it was wiped
        agent.teardown(config, force=force)
        if store is not None:
            # Nobody renews its lease any more.
            store.transact(delete=[each.at(config.host) for each in (keys.HOST, keys.INSTALLED)])
            with contextlib.suppress(NotFound):  # another host was quicker
                Cluster(store).remove_host(config.host)
    written = [own, *(beside(own, option) for option in CARRIED)]
    named = config.files.get("key_file", own)
    if named.absolute() == own:  # others may have the one that the user named
        written.append(config.key_file)
    for each in written:
        each.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        own.parent.rmdir()
    return config


def _configuration(path: str | None) -> tuple[Config, Path]:
    """This machine's, and the file that says which cluster it is in."""
    own = membership(path)
    if own.exists():
        raise AlreadyExists(f"{own}: this host is in a cluster already: `slimnet cluster leave`")
    found = load_config(path)
    if "key_file" not in found.files:
        found = attrs.evolve(found, key_file=own.parent.parent / "key")
    return found, own


def membership(path: str | None) -> Path:
    """The file that says which cluster this machine is in, if it is in one."""
    given = path or os.environ.get("SLIMNET_CONFIG")
    directory = Path(given).absolute().parent if given else directories.configuration()
    return directory / "conf.d" / "cluster.toml"


def beside(own: Path, option: str) -> Path:
    """Where a file lies that came with the token, or is of a store that slimnet started.

    Args:
        own: the file that says which cluster this machine is in.
        option: of the store, which names it.
    """
    return own.parent.parent / f"store-{option}.pem"


def _refuse_store(config: Config, who: str) -> None:
    for key, file in config.files.items():
        if key == "store" or key.startswith("store."):
            raise ConfigError(f"{file}: {key}", f"nothing, as {who} says it", config.store)


def _wished(config: Config, wishes: Wishes, store: str, options: Mapping[str, Any]) -> Config:
    changed = attrs.evolve(config, store=store)
    if options or store != config.store:
        # No file says so yet.
        changed = attrs.evolve(changed, store_options=dict(options), path=None, files={})
    if wishes.host is not None:
        changed = attrs.evolve(changed, host=wishes.host)
    if wishes.address is not None:
        try:
            address = IPAddress(wishes.address)
        except (AddrFormatError, ValueError) as error:
            raise InvalidValue("--address", "an IP address of this host", wishes.address) from error
        changed = attrs.evolve(changed, underlay=attrs.evolve(config.underlay, address=address))
    return changed


def _with_file(config: Config, option: str, path: Path) -> Config:
    return attrs.evolve(config, store_options={**config.store_options, option: str(path)})


def _host(config: Config) -> Host:
    """This host, as far as it is known before its agent ran."""
    return Host(config.host, underlay(config)[1], backend=config.backend, labels=config.labels)


def _seen(host: Host) -> dict[str, bytes]:
    """What keeps its name for it until its agent has run."""
    return _dumped(keys.SEEN.at(host.name), HostState(host.name, host, lost=True))


def _dumped(key: str, value: object) -> dict[str, bytes]:
    return {key: records.dump(value)}


def _refuse_later(store: Store) -> None:
    """A store that a later version has written: what it says next is not understood."""
    found = store.get(FORMAT_KEY)
    check_format(None if found is None else found[0])


def _refuse_other(store: Store, token: Token) -> None:
    found = store_id(store)
    if found != token.cluster:
        wanted = f"one for cluster {found}, which the store holds" if found else "one for a store"
        raise InvalidValue("token", wanted, f"one for cluster {token.cluster}")


def refuse_key(store: Store, config: Config, own: Sequence[bytes]) -> None:
    """Whether the keys of this host are the cluster's.

    Raises:
        ConfigError: they are not.
    """
    names = [fingerprint(each) for each in own]
    got = f"{config.key_file} with {', '.join(names)}"
    ring, _ = Keyring.read(store)
    if ring is not None:  # a host that has another one was away when it was changed
        if ring.key not in names:
            raise ConfigError("key_file", f"the cluster's key ({ring.key})", got)
        return
    for each in Cluster(store).hosts():
        if each.key not in ("", *names):
            raise ConfigError("key_file", f"the key of host {each.name} ({each.key})", got)


def _refuse_apart(store: Store, host: Host, choice: Choice) -> None:
    """A backend with which none of the hosts could be reached."""
    own = attrs.evolve(host, backend=choice.kind.name, wires=choice.capabilities.wires)
    others = Cluster(store).hosts()
    if others and all(wires.choose(own, each) is None for each in others):
        spoken = ", ".join(map(wires.spoken, others))
        raise ConfigError("backend", f"one with a wire that others speak: {spoken}", own.backend)


def _refuse_twin(store: Store, host: Host, *, itself: bool = False) -> None:
    """Two hosts of one name or one address; lost ones may come back."""
    for state in Cluster(store).host_states(0):
        address = state.host.address if state.host else None
        if itself and state.name == host.name and address in (None, host.address):
            continue
        if state.name == host.name:
            raise AlreadyExists(
                f"host {host.name} is in the cluster ({address or 'address unknown'}): name this"
                f" one with --host, or `slimnet cluster rm {host.name}` there, if that is lost"
            )
        if address == host.address:
            raise AlreadyExists(
                f"underlay address {address} is that of host {state.name}: choose another with"
                f" --address, or `slimnet cluster rm {state.name}` there, if that is lost"
            )


def _record(store: Store, token: Token) -> tuple[dict[str, Any], Revision]:
    """What the store has of a token that is good."""
    key = keys.TOKEN.at(token.id)
    found = store.get(key)
    if found is None:
        wanted = "one that has not expired, nor was removed"
        raise InvalidValue("token", wanted, f"token {token.id}, which the store has no more")
    record: dict[str, Any] = records.load(key, found[0], dict)
    if record["uses"] < 1:
        got = f"token {token.id}, which has been used as often as was said"
        raise InvalidValue("token", "one that is not used up", got)
    return record, found[1]


def _claim(
    store: Store,
    token: Token,
    record: Mapping[str, Any],
    revision: Revision,
    host: Host,
    turn: Guard,
) -> None:
    """Use it once, and keep the host's name for it."""
    expect = {keys.SEEN.at(host.name): None, **turn.expect}
    _spend(store, token, record, revision, expect, {**_seen(host), **turn.put})


def _spend(
    store: Store,
    token: Token,
    record: Mapping[str, Any],
    revision: Revision,
    expect: Mapping[str, Revision | None] | None = None,
    put: Mapping[str, bytes] | None = None,
) -> None:
    """Use it once.

    Raises:
        Conflict: it, or what else is expected, has changed.
        InvalidValue: it expired just now.
    """
    key = keys.TOKEN.at(token.id)
    left = record["uses"] - 1
    spent = {**record, "uses": left, "sealed": record["sealed"] if left else ""}
    try:
        store.transact(
            expect={**(expect or {}), key: revision},
            put={**(put or {}), **_dumped(key, spent)},
            leases={key: record["lease"]},
        )
    except NotFound as error:
        got = f"token {token.id}, which expired just now"
        raise InvalidValue("token", "one that has not expired", got) from error


def _invitation(key: str, record: Mapping[str, Any]) -> Invitation:
    number = key.removeprefix(keys.TOKEN.below())
    return Invitation(number, int(record["uses"]), float(record["expires"]), str(record["host"]))


def _toml(found: Config, config: Config, command: str) -> str:
    """What the configuration did not say."""
    values: dict[str, Any] = {"host": config.host}
    if "key_file" not in found.files and config.key_file != Config().key_file:
        values["key_file"] = str(config.key_file)
    if config.underlay != found.underlay:
        values["underlay.address"] = str(config.underlay.address)
    if config.store != found.store or config.store_options != found.store_options:
        values["store.url"] = config.store
        driver = config.store.partition("://")[0]
        values |= {f"store.{driver}.{key}": value for key, value in config.store_options.items()}
    # JSON's strings, numbers, booleans and lists are TOML's too.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()]
    return f"# By `slimnet cluster {command}`; `slimnet cluster leave` removes it.\n" + "".join(
        lines
    )


class _Files:
    """Files of root's, or of this user's, that come all of them when all is well."""

    def __init__(self) -> None:
        self._fresh: dict[Path, Path] = {}

    def __contains__(self, path: Path) -> bool:
        return path in self._fresh

    def add(self, path: Path, text: str) -> Path:
        """Where it lies until then, readable for its owner only."""
        make_trusted(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".slimnet-")
        self._fresh[path] = Path(name)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        return Path(name)

    def publish(self) -> None:
        """Put them where they belong."""
        for path, fresh in self._fresh.items():
            fresh.rename(path)

    def clear(self) -> None:
        """Remove what was not published."""
        for fresh in self._fresh.values():
            fresh.unlink(missing_ok=True)
        for directory in sorted({path.parent for path in self._fresh}, reverse=True):
            with contextlib.suppress(OSError):  # it has something in it
                directory.rmdir()


@contextlib.contextmanager
def _files() -> Iterator[_Files]:
    files = _Files()
    try:
        yield files
    finally:
        files.clear()
