# SPDX-License-Identifier: Apache-2.0
"""The cluster's key is followed by another one, while connections come and go.

The states are :class:`.Keyring`'s; whoever runs this moves the store from one to the next when
every host is where it has to be. Whoever is stopped in between is followed by whoever runs it
again, on any host.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from slimnet import records
from slimnet.abc import Store
from slimnet.agent.member import check_member, refuse_key
from slimnet.agent.site import read_keys
from slimnet.cluster import Cluster, keys
from slimnet.cluster.keyring import Keyring, held_keys
from slimnet.cluster.own import OwnStore
from slimnet.cluster.which import open_configured
from slimnet.config import Config
from slimnet.exceptions import Conflict, InUse, NotFollowed, NotFound

__all__ = ["rotate"]

#: Seconds that a SYN may be under way, which the host that sent it signed with the old key.
_UNDER_WAY = 1.0
#: Tokens that one transaction removes.
_AT_ONCE = 500


def rotate(
    config: Config,
    *,
    abort: bool = False,
    leave_lost: bool = False,
    timeout: float = 60.0,
    say: Callable[[str], None] = lambda _: None,
) -> Keyring:
    """Replace the cluster's key, or go on where somebody stopped; with what is in force then.

    Args:
        config: of a host of it.
        abort: go back to the old key instead.
        leave_lost: do not wait for hosts that are lost; they have to join again.
        timeout: seconds that hosts may take for each step.
        say: is told of each step.

    Raises:
        NotFound: this host is in no cluster, or there is nothing to go back from.
        ConfigError: the key of this host is not that of the others; nothing was changed.
        InUse: a host is lost, or of a version that cannot; nothing was changed.
        NotFollowed: a host does not follow. All goes on as it is, with both keys; this again
            goes on from there.
        StoreUnreachable: likewise.
    """
    with open_configured(config) as opened:
        check_member(config, opened)
        store = OwnStore(opened)
        turn = _Turn(store, leave_lost=leave_lost, timeout=timeout, say=say)
        while True:
            try:
                return _rotate(config, store, turn, abort=abort)
            except Conflict:  # somebody else does the same
                continue


def _rotate(config: Config, store: Store, turn: _Turn, *, abort: bool) -> Keyring:
    ring, revision = Keyring.read(store)
    if ring is None or not ring.next:
        if abort:
            raise NotFound("no key is being changed: there is nothing to go back from")
        own = read_keys(config.key_file)
        refuse_key(store, config, own[:1])
        turn.refuse()
        fresh = own[1] if own[1:] else secrets.token_bytes(16)
        ring = Keyring.prepare(own[0], fresh)
        tokens = list(store.list(keys.TOKEN.below())[0])[:_AT_ONCE]
        revision = _put(store, ring, revision, tokens)
        if tokens:
            turn.say(f"{len(tokens)} tokens to join are removed: they had the old key")
    keep, drop = (ring.key, ring.next) if abort else (ring.next, ring.key)
    if not abort:
        turn.wait(lambda held: {keep, drop} <= set(held), "take both keys")
    if ring.signs != keep:
        revision = _put(store, ring.signing(keep), revision)
    turn.wait(lambda held: held[:1] == [keep], f"sign with {keep}")
    time.sleep(_UNDER_WAY)
    ring = Keyring.rest(keep)
    _put(store, ring, revision)
    turn.wait(lambda held: held == [keep], f"have no key but {keep}")
    return ring


class _Turn:
    """Waits until hosts are where they have to be."""

    def __init__(
        self, store: Store, *, leave_lost: bool, timeout: float, say: Callable[[str], None]
    ) -> None:
        self.say = say
        self._store = store
        self._cluster = Cluster(store)
        self._leave_lost = leave_lost
        self._timeout = timeout

    def refuse(self) -> None:
        """Whoever could not follow.

        Raises:
            InUse: there are some.
        """
        told = held_keys(self._store)
        states = self._cluster.host_states(0)
        lost = [each.name for each in states if each.lost]
        if lost and not self._leave_lost:
            raise InUse(
                f"host {', '.join(lost)} is lost, and would have to join again: start its agent,"
                " or `slimnet cluster rm` it, or say --leave-lost"
            )
        old = [each for each in states if not each.lost and each.name not in told]
        if old:
            names = ", ".join(
                f"{each.name} ({(each.host and each.host.version) or 'version unknown'})"
                for each in old
            )
            raise InUse(f"host {names} does not say which keys it takes: upgrade its slimnet")

    def wait(self, there: Callable[[Sequence[str]], bool], what: str) -> None:
        """Until each host's keys are so.

        Raises:
            NotFollowed: names those whose are not.
        """
        deadline = time.monotonic() + self._timeout
        while behind := self._behind(there):
            if time.monotonic() > deadline:
                raise NotFollowed(
                    f"host {', '.join(behind)} does not {what}: both keys stay good until this"
                    " command is run again, or with --abort"
                )
            time.sleep(0.1)
        self.say(f"all hosts {what}")

    def _behind(self, there: Callable[[Sequence[str]], bool]) -> list[str]:
        told = held_keys(self._store)
        return [
            f"{each.name}{' (lost)' if each.lost else ''}"
            for each in self._cluster.host_states(0)
            if not (each.lost and self._leave_lost) and not there(list(told.get(each.name, ())))
        ]


def _put(store: Store, ring: Keyring, revision: int | None, tokens: Sequence[str] = ()) -> int:
    """Write the next state, where nobody else has.

    Raises:
        Conflict: somebody has.
    """
    key = keys.KEYRING.at()
    return store.transact(expect={key: revision}, put={key: records.dump(ring)}, delete=tokens)
