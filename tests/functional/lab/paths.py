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
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from attrs import field, frozen

from slimnet.model import Feature, Probe, Wire
from slimnet.plugins import probe

__all__ = [
    "DATA_PATHS",
    "EVERY",
    "LAB_PATHS",
    "NOOP",
    "PLAIN",
    "WHOLE_HOSTS",
    "Can",
    "DataPath",
    "can",
    "having",
    "require",
]


NOOP = "noop"
#: Where tests are long that are about agents, the testbed and the command line, and start hosts
#: for each: what they see is the same whatever carries connections.
WHOLE_HOSTS = (NOOP, "preload")


class Can(enum.Enum):
    """What users see of one data path and not of another."""

    #: As :attr:`slimnet.abc.Backend.features` says.
    SERVICES = Feature.SERVICES
    PUBLISHED_PORTS = Feature.PUBLISHED_PORTS
    EGRESS_LIMITS = Feature.EGRESS_LIMITS
    #: connect(2) itself is decided: for what is denied nothing is sent. Without: a packet is
    #: refused under way, with a reset; or, to an address that nobody has, with an ICMP error,
    #: for which the kernel may send again.
    DECIDES_AT_CONNECT = "decides at connect"
    #: A connection goes on while tables lack its other end. Without: it ends.
    OUTLIVES_PEERS = "outlives peers"
    #: Every address of a host is the host's, whatever the tables say. Without: those that
    #: the tables do not name are outside, and policy for the outside decides.
    KNOWS_ITS_HOST = "knows its host"
    #: Connections that open and close make events while somebody observes.
    OBSERVES = "observes"
    #: What happens is told when it does. Without: that a connection closed, within seconds.
    TELLS_AT_ONCE = "tells at once"
    #: :meth:`slimnet.abc.Backend.ask` answers.
    ANSWERS = "answers"
    #: UDP between endpoints. Without: refused at once.
    DATAGRAMS = "datagrams"
    #: What is refused behind a service's address is refused as of the endpoint there. Without:
    #: nobody is at that address, and an endpoint does not reach itself by it.
    ANSWERS_FOR_SERVICES = "answers for services"
    #: So is a port of UDP. Without: refused when it is written.
    PUBLISHED_DATAGRAMS = Feature.PUBLISHED_DATAGRAMS
    #: What is over a limit waits. Without: it is dropped, and somewhat less than the limit
    #: allows comes through.
    PACES = "paces"
    #: An endpoint's sockets are in a network namespace of its own, with all that comes
    #: with one: every source port, every socket option.
    OWN_NAMESPACE = "own namespace"
    #: A network namespace that is brought is the endpoint's. Without: it is refused.
    TAKES_NAMESPACES = "takes namespaces"
    #: What endpoints sent and received is on account, by rule.
    COUNTS = "counts"
    #: A connection to a published port is one as those between endpoints: on account as they are,
    #: and ended at once. Without: the fallback overlay has it, which ends it at its next packet.
    CARRIES_PUBLISHED = "carries published"
    #: What new tables forbid ends at both ends at once, whoever waits there. Without: at
    #: its next packet.
    ENDS_AT_ONCE = "ends at once"
    #: Its loopback and its way outside are devices of a network namespace of its own. Without:
    #: sockets of the host stand in for them, which are watched as those between endpoints are.
    OWN_DEVICES = "own devices"
    #: An install writes what differs from the tables before, as ``change`` says.
    WRITES_CHANGES = "writes changes"
    #: Connections between hosts go over the underlay as they are.
    DIRECT = "direct"
    #: Who connects is said by the SYN (wire ``syn``). Without: by nothing that TCP sends.
    NAMED_BY_SYN = "named by SYN"
    #: Policy holds against a process that does not want it. Without: whoever leaves out what
    #: the endpoint is known by is the host's.
    ENFORCES = "enforces"
    #: Whatever runs in an endpoint's place is the endpoint's. Without: what makes its system
    #: calls itself (static programs, Go, io_uring) is the host's, and ``slimnet run`` refuses it.
    ANY_PROGRAM = "any program"
    #: Endpoints take no ports of the host, but for a bind to port 0. Without: each port that an
    #: endpoint binds is one of the host's, and each connection has a source port of its own.
    SPARES_PORTS = "spares ports"
    #: A socket that was bound by listen(2) or to port 0, and shut down, listens again. Without:
    #: its port is still taken.
    LISTENS_AGAIN = "listens again"
    #: A host that could not be reached is tried by the next connect. Without: it counts as down
    #: for up to two seconds more.
    TRIES_AT_ONCE = "tries at once"
    #: What a connected UDP socket sends is seen: it is told where it is refused, and the socket
    #: ends when new tables forbid it. Without: neither.
    SEES_DATAGRAMS = "sees datagrams"
    #: With IP_BIND_ADDRESS_NO_PORT bind(2) takes no port yet. Without: it does.
    BINDS_LATE = "binds late"
    #: Who may not come to a published port, or finds nobody there, is told by the SYN's answer.
    #: Without: the connection is made, and reset at once.
    REFUSES_SYNS = "refuses SYNs"


@frozen
class DataPath:
    """One backend as the lab runs it.

    Attributes:
        backend: its entry point's name.
        can: what it can.
        wire: by which its hosts carry connections.
        denied: errno of a connect(2) that the endpoint's own egress policy denies.
        denied_datagram: errno of a datagram that it denies, where that is another.
        at_home: whom the endpoint's own host sees when the endpoint dials it; empty: the
            host's own address, as everywhere outside.
        records: how many records of handshakes an instance holds; 0 where it needs none.
        options: its backend's own table of the configuration.
        also: wires by which its hosts carry what is no connection.
        module: the kernel module that it drives. The lab runs on it where that is loaded,
            which is in the machines of ``tests/vm``.
    """

    backend: str
    can: frozenset[Can]
    wire: Wire
    denied: int
    denied_datagram: int = 0
    at_home: str = ""
    records: Callable[[str], int] = lambda _: 0
    options: Mapping[str, str] = field(factory=dict, hash=False)
    also: frozenset[Wire] = frozenset()
    module: str = ""

    def is_here(self) -> bool:
        """Whether this machine has its module."""
        return not self.module or Path("/sys/module", self.module).is_dir()


def _handshakes(instance: str) -> int:
    from slimnet_ebpf.pins import Pins

    return len(list(Pins(instance).open_map("slim_flow").items()))


#: One entry for each backend.
EVERY = {
    path.backend: path
    for path in (
        DataPath(
            "ebpf",
            frozenset(Can)
            - {Can.DATAGRAMS, Can.OWN_DEVICES, Can.OWN_NAMESPACE, Can.PUBLISHED_DATAGRAMS},
            Wire.SYN,
            errno.EACCES,
            records=_handshakes,
            also=frozenset({Wire.VXLAN}),
        ),
        DataPath(
            "kmod",
            frozenset(Can)
            - {
                Can.CARRIES_PUBLISHED,
                Can.PACES,
                Can.REFUSES_SYNS,
                Can.EGRESS_LIMITS,
                Can.KNOWS_ITS_HOST,
                Can.OWN_NAMESPACE,
                Can.WRITES_CHANGES,
                Can.SEES_DATAGRAMS,
            },
            Wire.SYN,
            errno.EACCES,
            denied_datagram=errno.EHOSTUNREACH,
            at_home="0.0.0.1",
            module="slimnet",
            also=frozenset({Wire.VXLAN}),
        ),
        DataPath(
            NOOP,
            frozenset(
                {
                    Can.DATAGRAMS,
                    Can.OWN_DEVICES,
                    Can.OWN_NAMESPACE,
                    Can.TAKES_NAMESPACES,
                    Can.ENFORCES,
                    Can.ANY_PROGRAM,
                    Can.SPARES_PORTS,
                    Can.LISTENS_AGAIN,
                    Can.TRIES_AT_ONCE,
                    Can.BINDS_LATE,
                    Can.TELLS_AT_ONCE,
                }
            ),
            Wire.VXLAN,
            errno.ECONNREFUSED,
            denied_datagram=errno.EHOSTUNREACH,
            at_home="0.0.0.1",
        ),
        DataPath(
            "preload",
            frozenset(
                {
                    Can.SERVICES,
                    Can.ANSWERS_FOR_SERVICES,
                    Can.PUBLISHED_PORTS,
                    Can.CARRIES_PUBLISHED,
                    Can.DECIDES_AT_CONNECT,
                    Can.OUTLIVES_PEERS,
                    Can.OBSERVES,
                    Can.ANSWERS,
                    Can.ENDS_AT_ONCE,
                    Can.DIRECT,
                }
            ),
            Wire.ANNOUNCE,
            errno.EACCES,
        ),
    )
}


#: Those that this machine can run.
DATA_PATHS = {name: path for name, path in EVERY.items() if path.is_here()}
#: What the lab's hosts of ``ebpf`` are called where every endpoint has a namespace of its own.
NETNS = "ebpf-netns"
#: Those, and those of them that are run in another way besides: what the lab runs on.
LAB_PATHS = DATA_PATHS | {
    NETNS: DataPath(
        "ebpf",
        frozenset(Can)
        - {
            Can.DECIDES_AT_CONNECT,
            Can.KNOWS_ITS_HOST,
            Can.SEES_DATAGRAMS,
            Can.REFUSES_SYNS,
            Can.PACES,
            Can.ANSWERS_FOR_SERVICES,
        },
        Wire.SYN,
        errno.ECONNREFUSED,
        denied_datagram=errno.EHOSTUNREACH,
        at_home="0.0.0.1",
        options={"placement": "netns"},
        also=frozenset({Wire.VXLAN}),
    )
}


def can(backend: str, what: Can) -> bool:
    """Whether the data path of that name states it."""
    return what in LAB_PATHS[backend].can


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
