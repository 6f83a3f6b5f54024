# SPDX-License-Identifier: Apache-2.0
"""This host's copy of the cluster's keys: in its file, in its data path, told to the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slimnet import records
from slimnet.abc import Store
from slimnet.agent.site import read_keys, write_keys
from slimnet.cluster import keys as store_keys
from slimnet.cluster.keyring import Keyring, fingerprint
from slimnet.exceptions import BackendError, InvalidValue, NotFound

__all__ = ["KeyHolder"]


class KeyHolder:
    """Follows the store's :class:`.Keyring`, and the file, which others write too.

    Args:
        path: of the file.
        host: whose.
    """

    def __init__(self, path: Path, host: str) -> None:
        self._path = path
        self._host = host
        self._stamp = _stamp(path)
        #: Those that this host takes, that which it signs with first.
        self.keys = read_keys(path)
        #: What the cluster knows its key by.
        self.name = fingerprint(self.keys[0])
        #: Why it cannot follow; empty when it can.
        self.trouble = ""
        self._told: tuple[str, ...] = ()

    def follow(
        self, keyring: Keyring | None, use: Callable[[tuple[bytes, ...]], None] | None = None
    ) -> None:
        """Take the keys that the store names.

        Args:
            keyring: of the store.
            use: puts them in force in the data path.
        """
        before = self.keys
        try:
            wanted = self._wanted(keyring)
        except InvalidValue as error:
            self.trouble = str(error)
            return
        self.trouble = ""
        if wanted != before:
            try:
                if use is not None:
                    use(wanted)
            except BackendError as error:
                self.trouble = f"keys: {error}"
                return
            self.keys = wanted
        names = [fingerprint(each) for each in self.keys]
        known = keyring is not None and keyring.key in names
        self.name = keyring.key if keyring is not None and known else names[0]

    def _wanted(self, keyring: Keyring | None) -> tuple[bytes, ...]:
        there = self.keys
        stamp = _stamp(self._path)
        if stamp not in (None, self._stamp):  # somebody wrote it
            there = read_keys(self._path)
            self._stamp = stamp
        wanted = there if keyring is None else keyring.choose((*self.keys, *there))
        if wanted != there:
            # Before anybody is told that it takes them: a host that starts again has them too.
            write_keys(self._path, wanted)
            self._stamp = _stamp(self._path)
        return wanted

    def tell(self, store: Store, lease: int) -> None:
        """The cluster, which keys this host takes by now."""
        names = tuple(fingerprint(each) for each in self.keys)
        if names == self._told:
            return
        key = store_keys.HELD.at(self._host)
        try:
            store.transact(put={key: records.dump({"keys": names})}, leases={key: lease})
        except NotFound:  # it ran out; with the next one
            return
        self._told = names

    def forget(self) -> None:
        """What it told is gone, with its lease."""
        self._told = ()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
