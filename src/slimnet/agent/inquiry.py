# SPDX-License-Identifier: Apache-2.0
"""Questions to the agents of other hosts, over the store: all that agents share.

==========================  ================================================
``~inquiries/<host>/<id>``  a question to that host; leased
``~answers/<id>``           its answer, tied to the same lease
==========================  ================================================

Both lie apart: only who is asked, or asks, is told. Whoever asks removes both; the lease does it
for one that was killed. A host that finds the question gone writes no answer.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from slimnet import records
from slimnet.abc import Revision, Store
from slimnet.agent import failure
from slimnet.cluster import keys
from slimnet.exceptions import (
    AgentUnreachable,
    Conflict,
    NotFound,
    SlimnetError,
    StoreUnreachable,
)

__all__ = ["Inquiries"]

_log = logging.getLogger(__name__)

#: Seconds that a host has to answer.
PATIENCE = 2.0


class Inquiries:
    """Asks, and answers for one host.

    Args:
        store: over which.
        host: this one.
        answers: question to what answers it, with the fields of the question; what
            it returns is JSON, and a :class:`~slimnet.SlimnetError` is the answer too.
    """

    def __init__(self, store: Store, host: str, answers: Mapping[str, Callable[..., Any]]) -> None:
        self._store = store
        self._host = host
        self._answers = answers
        self._below = keys.INQUIRY.below(host)
        #: Up to which the questions are known; 0: they are to be listed.
        self._revision: Revision = 0
        #: Key to question, of those that came and were not answered.
        self._open: dict[str, bytes] = {}

    def ask(self, host: str, question: str, **fields: Any) -> Any:
        """What a host answers; this one is not asked over the store.

        Raises:
            AgentUnreachable: it did not, within two seconds.
            SlimnetError: what it raised.
        """
        if host == self._host:
            return self._answers[question](**fields)
        lease = self._store.lease(2 * PATIENCE)
        number = secrets.token_hex(8)
        asked, answered = keys.INQUIRY.at(host, number), keys.ANSWER.at(number)
        record = {"question": question, "fields": fields, "lease": lease}
        deadline = time.monotonic() + PATIENCE
        try:
            revision = self._store.transact(
                put={asked: records.dump(record)}, leases={asked: lease}
            )
            found = self._await(answered, revision, deadline)
        finally:
            with suppress(StoreUnreachable):  # the lease does it then
                self._store.transact(delete=[asked, answered])
        if found is None:
            raise AgentUnreachable(f"the agent of host {host} did not answer in {PATIENCE:g} s")
        answer = records.load(answered, found, dict)
        if "error" in answer:
            raise failure.from_json(answer["error"])
        return answer.get("answer")

    def wait(self, timeout: float) -> bool:
        """Wait until somebody asks this host, for :meth:`answer`, or ``timeout`` seconds;
        whether somebody did. One thread calls this and that."""
        try:
            if not self._revision:
                raise Conflict("none is known yet")
            events, self._revision = self._store.watch(
                self._below, after=self._revision, timeout=timeout
            )
        except Conflict:  # the first time, or its history is gone
            found, self._revision = self._store.list(self._below)
            self._open = {key: value for key, (value, _) in found.items()}
        else:
            for event in events:
                self._open.pop(event.key, None)
                if event.value is not None:
                    self._open[event.key] = event.value
        return bool(self._open)

    def answer(self) -> None:
        """Answer the questions that came."""
        while self._open:
            key, record = self._open.popitem()
            with suppress(Conflict, NotFound):  # nobody waits for it any more
                found = self._store.get(key)
                if found is None:
                    continue
                lease, answer = self._reply(key, record)
                answered = keys.ANSWER.at(key.rpartition("/")[2])
                self._store.transact(
                    expect={key: found[1]},
                    put={answered: records.dump(answer)},
                    leases={} if lease is None else {answered: lease},
                )

    def _await(self, key: str, revision: int, deadline: float) -> bytes | None:
        while (left := deadline - time.monotonic()) > 0:
            try:
                events, revision = self._store.watch(key, after=revision, timeout=left)
                for event in events:
                    if event.value is not None:
                        return event.value
            except Conflict:  # its history is gone
                found, revision = self._store.list(key)
                if key in found:
                    return found[key][0]
        return None

    def _reply(self, key: str, data: bytes) -> tuple[int | None, dict[str, Any]]:
        lease = None
        try:
            record = records.load(key, data, dict)
            lease = record.get("lease")
            answers = self._answers.get(str(record.get("question")))
            if answers is None:
                raise NotFound(f"host {self._host} does not know that question: its agent is older")
            return lease, {"answer": answers(**record.get("fields", {}))}
        except SlimnetError as error:
            return lease, {"error": failure.to_json(error)}
        except Exception as error:  # noqa: BLE001  # the agent stays, whatever is asked
            _log.exception("%s", key)
            text = f"host {self._host}: {type(error).__name__}: {error}"
            return lease, {"error": failure.to_json(SlimnetError(text))}
