# SPDX-License-Identifier: Apache-2.0
"""The data paths that the lab runs on, and what each of them states of itself.

A backend comes into the laboratory by one entry of :data:`DATA_PATHS`. Tests do not
ask for its name. What only some of them can is a :class:`Can`: a test that needs it is
marked ``needs(Can.X)``, and one that asserts what happens instead ``lacks(Can.X)``.
"""

from __future__ import annotations

import enum
import errno
import functools
from collections.abc import Callable

import pytest
from attrs import frozen

from slimnet.model import Feature, Probe
from slimnet.plugins import probe

__all__ = ["DATA_PATHS", "PLAIN", "Can", "DataPath", "can", "having", "require"]


class Can(enum.Enum):
    """What users see of one data path and not of another."""

    #: As :attr:`slimnet.abc.Backend.features` says.
    SERVICES = Feature.SERVICES
    PUBLISHED_PORTS = Feature.PUBLISHED_PORTS
    EGRESS_LIMITS = Feature.EGRESS_LIMITS
    #: connect(2) itself is decided: for what is denied nothing is sent. Without: a packet is
    #: refused under way, and where the kernel takes that for a passing trouble it sends,
    #: and is refused, again.
    DECIDES_AT_CONNECT = "decides at connect"
    #: A connection goes on while tables lack its other end. Without: it ends.
    OUTLIVES_PEERS = "outlives peers"
    #: Every address of a host is the host's, whatever the tables say. Without: those that
    #: the tables do not name are outside, and policy for the outside decides.
    KNOWS_ITS_HOST = "knows its host"
    #: Connections that open and close make events while somebody observes.
    OBSERVES = "observes"
    #: :meth:`slimnet.abc.Backend.ask` answers.
    ANSWERS = "answers"
    #: UDP between endpoints. Without: refused at once.
    DATAGRAMS = "datagrams"
    #: An endpoint's sockets are in a network namespace of its own, with all that comes
    #: with one: every source port, every socket option.
    OWN_NAMESPACE = "own namespace"
    #: What endpoints sent and received is on account, by rule.
    COUNTS = "counts"
    #: What new tables forbid ends at both ends at once, whoever waits there. Without: at
    #: its next packet.
    ENDS_AT_ONCE = "ends at once"
    #: An install writes what differs from the tables before, as ``change`` says.
    WRITES_CHANGES = "writes changes"
    #: Connections between hosts go over the underlay as they are (wire ``syn``).
    DIRECT = "direct"


@frozen
class DataPath:
    """One backend as the lab runs it.

    Attributes:
        backend: its entry point's name.
        can: what it can.
        denied: errno of a connect(2) that the endpoint's own egress policy denies.
        at_home: whom the endpoint's own host sees when the endpoint dials it; empty: the
            host's own address, as everywhere outside.
        records: how many records of handshakes an instance holds; 0 where it needs none.
    """

    backend: str
    can: frozenset[Can]
    denied: int
    at_home: str = ""
    records: Callable[[str], int] = lambda _: 0


def _handshakes(instance: str) -> int:
    from slimnet_ebpf.pins import Pins

    return len(list(Pins(instance).open_map("slim_flow").items()))


#: One entry for each backend.
DATA_PATHS = {
    path.backend: path
    for path in (
        DataPath(
            "ebpf",
            frozenset(Can) - {Can.DATAGRAMS, Can.OWN_NAMESPACE},
            errno.EACCES,
            records=_handshakes,
        ),
        DataPath(
            "noop",
            frozenset({Can.DATAGRAMS, Can.OWN_NAMESPACE}),
            errno.EHOSTUNREACH,
            at_home="0.0.0.1",
        ),
    )
}


def can(backend: str, what: Can) -> bool:
    """Whether the data path of that name states it."""
    return what in DATA_PATHS[backend].can


@functools.cache  # a probe loads the data path: 0.4 s of a processor
def _probed(name: str) -> Probe:
    return probe(name)


def require(name: str) -> None:
    """Skip where the backend of that name cannot run."""
    answer = _probed(name)
    if not answer:
        pytest.skip(f"backend {name}: {answer.reason}")


def having(what: Can) -> list[str]:
    """The names of the data paths that state it."""
    return [name for name in DATA_PATHS if can(name, what)]


#: Containers on one bridge, without slimnet: no backend, and no policy to deny anything.
PLAIN = "plain"
