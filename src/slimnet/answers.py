# SPDX-License-Identifier: Apache-2.0
"""What data paths that are written in C say, as values: events (``slimnet/event.h``), and
answers to questions (``slimnet/ask.h``)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from typing import Self

from attrs import frozen
from netaddr import IPAddress

from slimnet import contract
from slimnet.layout import Layout, from_bytes16, to_bytes16
from slimnet.model import (
    Decision,
    Direction,
    Event,
    EventKind,
    Flow,
    Network,
    Reason,
    Verdict,
    Way,
    WayKind,
)

__all__ = ["FlowQuestion", "decision", "events"]

_EVENT = Layout(contract.slim_event)
_KINDS = {
    contract.SLIM_EVENT_OPENED: EventKind.OPENED,
    contract.SLIM_EVENT_REFUSED: EventKind.REFUSED,
    contract.SLIM_EVENT_CLOSED: EventKind.CLOSED,
}
_QUESTION = Layout(contract.slim_question)
_VERDICT = Layout(contract.slim_verdict)
_NOBODY = bytes(16)


@frozen
class FlowQuestion:
    """A flow, with what a data path knows of it (struct slim_question).

    Attributes:
        vni: the network that both addresses are seen from.
        direction: whose policy is asked: EGRESS the source's, INGRESS the destination's.
        source: overlay or outside address.
        destination: likewise, or a service's.
        protocol: IP protocol number.
        port: destination port.
    """

    vni: int
    direction: Direction
    source: IPAddress
    destination: IPAddress
    protocol: int
    port: int

    @classmethod
    def of(cls, flow: Flow, network: Network) -> Self:
        """What :meth:`slimnet.abc.Backend.ask` is asked."""
        return cls(
            network.vni, flow.direction, flow.source, flow.destination, flow.protocol, flow.port
        )

    def pack(self) -> bytes:
        """As it is asked. What chooses among a service's endpoints is drawn, as in connect()."""
        return _QUESTION.pack(
            vni=self.vni,
            direction=int(self.direction),
            source=to_bytes16(self.source),
            destination=to_bytes16(self.destination),
            port=self.port,
            protocol=self.protocol,
            random=random.getrandbits(32),
            verdict=b"",
        )


def decision(answered: bytes) -> Decision:
    """The answer to a question.

    Args:
        answered: struct slim_question as the data path gave it back.
    """
    found = _QUESTION.unpack(answered)
    verdict = _VERDICT.unpack(found["verdict"])
    way = None
    if found["direction"] == contract.SLIM_EGRESS:
        way = Way(
            WayKind(found["way"]),
            Reason(found["way_reason"]),
            found["way_error"],
            Direction(found["way_direction"]),
        )
    return Decision(
        verdict=Verdict(
            verdict["action"] == contract.SLIM_ALLOW, Reason(verdict["reason"]), verdict["rule"]
        ),
        generation=found["generation"],
        subject=found["subject"],
        peer=found["peer"],
        endpoint=found["endpoint"],
        service=found["service"],
        target=(from_bytes16(found["target"]), found["target_port"]),
        host=from_bytes16(found["host"]) if found["host"] != _NOBODY else None,
        way=way,
    )


def events(told: Iterable[bytes], *, monotonic: bool = True) -> Iterator[Event]:
    """What a data path told, without what is only for its own Python.

    Args:
        told: each a struct slim_event, and perhaps more behind it.
        monotonic: its times are CLOCK_MONOTONIC's, as the kernel's are; else CLOCK_REALTIME's.
    """
    epoch = time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC) if monotonic else 0
    for data in told:
        record = _EVENT.unpack(data[: _EVENT.size])
        if record["kind"] in _KINDS:
            yield Event(
                kind=_KINDS[record["kind"]],
                time=(record["time"] + epoch) / 1e9,
                endpoint=record["endpoint"],
                peer_endpoint=record["peer_endpoint"],
                source=(from_bytes16(record["source"]), record["source_port"]),
                destination=(from_bytes16(record["destination"]), record["destination_port"]),
                protocol=record["protocol"],
                direction=Direction(record["direction"]),
                reason=Reason(record["reason"]),
                rule=record["rule"],
                sent=record["sent"],
                received=record["received"],
                duration=record["duration"] / 1e9,
                omitted=record["omitted"],
            )
