# SPDX-License-Identifier: Apache-2.0
"""What slimnet talks about, as frozen values.

Addresses are :class:`netaddr.IPAddress`, ranges :class:`netaddr.IPNetwork`;
strings are accepted and converted. A wrong value raises
:class:`~slimnet.InvalidValue`, which names the field.
"""

from __future__ import annotations

import contextlib
import copyreg
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from attrs import Attribute, field, frozen
from netaddr import AddrFormatError, IPAddress, IPNetwork

from slimnet import contract
from slimnet.exceptions import InvalidValue
from slimnet.names import NAME, NAME_WANTED, is_label
from slimnet.place import Part, Place
from slimnet.reason import Reason

__all__ = [
    "Account",
    "Answer",
    "Capabilities",
    "Connection",
    "Decision",
    "Direction",
    "Endpoint",
    "Event",
    "EventKind",
    "Feature",
    "Flow",
    "Host",
    "HostState",
    "Namespace",
    "Network",
    "Opening",
    "Probe",
    "Protocol",
    "Reason",
    "Status",
    "Verdict",
    "Way",
    "WayKind",
    "Wire",
    "WireFormat",
]

VNI_MAX = 2**24 - 1


class Direction(enum.IntEnum):
    """Of a flow, seen from the endpoint whose policy is asked."""

    INGRESS = contract.SLIM_INGRESS
    EGRESS = contract.SLIM_EGRESS


class Protocol(enum.IntEnum):
    """IP protocol numbers that a policy can name (IANA)."""

    ICMP = 1
    TCP = 6
    UDP = 17
    SCTP = 132


class Wire(enum.StrEnum):
    """How two hosts carry a connection (design, section 4)."""

    SYN = "syn"
    ANNOUNCE = "announce"
    VXLAN = "vxlan"


@frozen
class WireFormat:
    """A wire in one version of its format. Two hosts understand one another by it only
    where both have the same; written ``syn/1``, and ``syn`` is its first version."""

    wire: Wire
    version: int = 1

    @classmethod
    def parse(cls, text: str) -> WireFormat:
        """The inverse of ``str()``.

        Raises:
            ValueError: it is none.
        """
        wire, _, version = text.partition("/")
        return cls(Wire(wire), int(version or 1))

    def __str__(self) -> str:
        return f"{self.wire}/{self.version}"


@frozen
class Opening:
    """Ports at which a host hears other hosts, which a firewall has to let in.

    Attributes:
        protocol: ``tcp`` or ``udp``.
        ports: of this host, and where others speak the same, of theirs.
    """

    protocol: str
    ports: range

    def __str__(self) -> str:
        first, last = self.ports[0], self.ports[-1]
        ports = f"port {first}" if first == last else f"ports {first} to {last}"
        return f"{self.protocol.upper()} {ports}"


class Feature(enum.StrEnum):
    """What a backend can do besides connecting endpoints and deciding policy."""

    SERVICES = "services"
    PUBLISHED_PORTS = "published_ports"
    #: Ports of UDP too, for endpoints that datagrams are brought to.
    PUBLISHED_DATAGRAMS = "published_datagrams"
    EGRESS_LIMITS = "egress_limits"


class Answer(enum.StrEnum):
    """The three answers of a probe."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class EventKind(enum.StrEnum):
    """What happened to a connection."""

    OPENED = "opened"
    REFUSED = "refused"
    CLOSED = "closed"


# What a converter cannot convert it returns as it is, for the validator to refuse.


def _to_address(value: IPAddress | str) -> IPAddress:
    if isinstance(value, str):
        with contextlib.suppress(AddrFormatError, ValueError):
            return IPAddress(value)
    return cast("IPAddress", value)


def _to_network(value: IPNetwork | str) -> IPNetwork:
    if isinstance(value, str):
        with contextlib.suppress(AddrFormatError, ValueError):
            return IPNetwork(value).cidr
    return cast("IPNetwork", value)


def _to_networks(
    value: IPNetwork | str | Sequence[IPNetwork | str],
) -> tuple[IPNetwork, ...]:
    if isinstance(value, (str, IPNetwork)):
        return (_to_network(value),)
    if isinstance(value, (list, tuple)):
        return tuple(_to_network(item) for item in value)
    return cast("tuple[IPNetwork, ...]", value)


def _to_cidrs(
    value: IPNetwork | str | Sequence[IPNetwork | str],
) -> tuple[IPNetwork, ...]:
    """As they are written: without a length, or with an address in place of the network's,
    they are for :func:`_check_cidrs` to refuse, and not to be guessed at."""
    several = (value,) if isinstance(value, (str, IPNetwork)) else value
    if not isinstance(several, (list, tuple)):
        return cast("tuple[IPNetwork, ...]", value)
    found: list[Any] = []
    for each in several:
        made: Any = each
        if isinstance(each, str) and "/" in each:
            with contextlib.suppress(AddrFormatError, ValueError):
                made = IPNetwork(each)
        found.append(made)
    return tuple(found)


def _to_mapping(value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


def _to_taken(value: Mapping[IPNetwork, str] | Mapping[str, str]) -> Mapping[IPNetwork, str]:
    if not isinstance(value, Mapping):
        return value
    return MappingProxyType({_to_network(key): text for key, text in value.items()})


def _to_wires(value: Iterable[WireFormat | str]) -> frozenset[WireFormat]:
    with contextlib.suppress(TypeError, ValueError):
        return frozenset(
            item if isinstance(item, WireFormat) else WireFormat.parse(item) for item in value
        )
    return cast("frozenset[WireFormat]", value)


def _to_features(value: Iterable[Feature | str]) -> frozenset[Feature]:
    with contextlib.suppress(TypeError, ValueError):
        return frozenset(Feature(item) for item in value)
    return cast("frozenset[Feature]", value)


def _to_protocol(value: Protocol | int) -> Protocol:
    with contextlib.suppress(ValueError):
        return Protocol(value)
    return cast("Protocol", value)


def _to_direction(value: Direction | int) -> Direction:
    with contextlib.suppress(ValueError):
        return Direction(value)
    return cast("Direction", value)


def _reduce(proxy: MappingProxyType[Any, Any]) -> tuple[Any, ...]:
    return _to_mapping, (dict(proxy),)


# Values travel between processes; the standard library forgot this one.
copyreg.pickle(MappingProxyType, _reduce)


def _check(
    wanted: str, holds: Callable[[Any], bool]
) -> Callable[[object, Attribute[Any], Any], None]:
    def validate(instance: object, attribute: Attribute[Any], value: object) -> None:
        if not holds(value):
            owner = type(instance).__name__.lower()
            raise InvalidValue(f"{owner}.{attribute.name}", wanted, value)

    return validate


def _is_labels(value: object) -> bool:
    return isinstance(value, Mapping) and all(is_label(*each) for each in value.items())


def _is_number(value: object, last: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last


def _one_of(kind: type[enum.IntEnum]) -> Callable[[object, Attribute[Any], Any], None]:
    wanted = ", ".join(f"{item.name} ({item.value})" for item in kind)
    return _check(f"one of {wanted}", lambda value: isinstance(value, kind))


_name = _check(
    NAME_WANTED,
    lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None,
)
_address = _check("an IP address", lambda value: isinstance(value, IPAddress))
_labels = _check("a table of Kubernetes labels", _is_labels)
_number = _check("a 32-bit number", lambda value: _is_number(value, 2**32 - 1))
_port = _check("a port, 0 to 65535", lambda value: _is_number(value, 65535))
_text = _check("text", lambda value: isinstance(value, str))
_ranges = _check(
    "CIDRs",
    lambda value: isinstance(value, tuple) and all(isinstance(item, IPNetwork) for item in value),
)


def _check_cidrs(_network: object, _attribute: Attribute[Any], value: object) -> None:
    wanted = "a range such as 10.1.0.0/16"
    if not isinstance(value, tuple) or not value:
        raise InvalidValue("network.cidrs", "one or more ranges such as 10.1.0.0/16", value)
    for each in value:
        if not isinstance(each, IPNetwork):
            raise InvalidValue("network.cidrs", wanted, each)
        if each.ip != each.network:
            wanted = f"{each.cidr}, or {each.ip}/32 for that address alone"
            raise InvalidValue("network.cidrs", wanted, str(each))


_taken = _check(
    "a table of ranges",
    lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(key, IPNetwork) and isinstance(each, str) for key, each in value.items())
    ),
)
_features = _check(f"some of {', '.join(Feature)}", lambda value: isinstance(value, frozenset))
_wires = _check(f"some of {', '.join(Wire)}", lambda value: isinstance(value, frozenset))


@frozen
class Network:
    """One overlay.

    Attributes:
        name: unique in the store.
        vni: VXLAN network identifier (RFC 7348), 24 bits, not 0.
        cidrs: the overlay's ranges, not overlapping.
    """

    name: str = field(validator=_name)
    vni: int = field(
        validator=_check(
            f"a VNI, 1 to {VNI_MAX}",
            lambda value: _is_number(value, VNI_MAX) and value > 0,
        )
    )
    cidrs: tuple[IPNetwork, ...] = field(converter=_to_cidrs, validator=_check_cidrs)


@frozen
class Namespace:
    """A labelled group of endpoints within a network; policies belong to one."""

    network: str = field(validator=_name)
    name: str = field(validator=_name)
    labels: Mapping[str, str] = field(
        factory=dict, converter=_to_mapping, validator=_labels, hash=False
    )


@frozen
class Host:
    """A machine, or a network namespace that stands in for one.

    Attributes:
        name: unique in the store.
        address: its underlay address.
        wires: the wires that its backend speaks, each with the version of its format.
        backend: the name of the backend that it runs.
        labels: what cluster-wide rules select hosts by.
        enforcing: whether policy on connections holds there against a hostile process.
        features: what its backend can do besides.
        key: fingerprint of the cluster's key that it has; empty where its wires need
            none, and of a host that is too old to say.
        ranges: what else the host is: the addresses and ranges that it delivers to
            itself, as it says.
        control: ``address:port`` at which its data path hears what others announce; empty
            where its wires need none.
        taken: the ranges that no network may overlap, since they mean something else
            there: those of its interfaces, and its name servers; each with whose it is.
        version: of slimnet; empty of a host that is too old to say.
        shares: its endpoints are in its own network namespace, but for those that bring one.
    """

    name: str = field(validator=_name)
    address: IPAddress = field(converter=_to_address, validator=_address)
    wires: frozenset[WireFormat] = field(factory=frozenset, converter=_to_wires, validator=_wires)
    backend: str = "noop"
    labels: Mapping[str, str] = field(
        factory=dict, converter=_to_mapping, validator=_labels, hash=False
    )
    enforcing: bool = False
    features: frozenset[Feature] = field(
        factory=frozenset, converter=_to_features, validator=_features
    )
    key: str = field(default="", validator=_text)
    ranges: tuple[IPNetwork, ...] = field(default=(), converter=_to_networks, validator=_ranges)
    control: str = field(default="", validator=_text)
    taken: Mapping[IPNetwork, str] = field(
        factory=dict, converter=_to_taken, validator=_taken, hash=False
    )
    version: str = field(default="", validator=_text)
    shares: bool = False

    def differs_in_key(self, other: Host) -> bool:
        """Whether both say which key they have, and it is not the same."""
        return bool(self.key and other.key and self.key != other.key)


@frozen
class HostState:
    """What the cluster knows of a host, lost ones among them.

    Attributes:
        name: of the host.
        host: as it was last; ``None`` where that was not written down.
        lost: whether its lease ran out, and it has not been removed: its agent has ended, or
            does not reach the store. Its data path may go on.
        seen: when it last said so itself, within a minute, in seconds since the epoch of its
            own clock; of one that is not lost, now; 0 where that was not written down.
        installed: the store's revision whose tables are in force there, as it last said; 0
            before the first.
        wanted: the revision of the last change that can concern tables: a host whose
            ``installed`` is less has not followed yet.
        generation: of the tables in force there. It grows by each change of that host's own
            tables, and says nothing beside a revision or another host's.
        endpoints: how many are on it.
    """

    name: str
    host: Host | None
    lost: bool
    seen: float = 0.0
    installed: int = 0
    wanted: int = 0
    generation: int = 0
    endpoints: int = 0

    @property
    def behind(self) -> bool:
        """Whether it has not followed yet."""
        return self.installed < self.wanted


@frozen
class Endpoint:
    """One overlay address on one host.

    Attributes:
        id: cluster-wide, 32 bits, given by the store and never used again; 0 before.
        network: the network's name.
        namespace: the namespace's name.
        name: unique in its namespace.
        address: its overlay address.
        host: the name of the host on which it lives.
        labels: what policies select it by.
        ports: named ports, as ``{"http": ("tcp", 80)}``.
        identity: the number of its label set; 0 before the store has given one.
        cgroup: the cgroup v2 directory of its processes on its host.
        netns: path of their network namespace there; empty for the host's own.
        closed: whether the data path keeps from them what ``slimnet run`` would.
    """

    network: str = field(validator=_name)
    name: str = field(validator=_name)
    address: IPAddress = field(converter=_to_address, validator=_address)
    host: str = field(validator=_name)
    namespace: str = field(default="default", validator=_name)
    id: int = field(default=0, validator=_number)
    labels: Mapping[str, str] = field(
        factory=dict, converter=_to_mapping, validator=_labels, hash=False
    )
    ports: Mapping[str, tuple[str, int]] = field(factory=dict, converter=_to_mapping, hash=False)
    identity: int = field(default=0, validator=_number)
    cgroup: str = ""
    netns: str = ""
    closed: bool = False

    @property
    def full_name(self) -> str:
        """``network.namespace.name``, as what is made for it on its host is called."""
        return f"{self.network}.{self.namespace}.{self.name}"

    @property
    def place(self) -> Place:
        """Where its processes belong, as far as its record says."""
        return Place(self.cgroup, self.netns, closed=self.closed)

    @property
    def title(self) -> str:
        """``namespace/name``: how messages about its network call it."""
        return f"{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """``network/namespace/name``."""
        return f"{self.network}/{self.title}"


@frozen
class Flow:
    """What is put to the policy: may ``source`` open this to ``destination``?

    Attributes:
        network: the network that both addresses are seen from.
        source: overlay or outside address of the opener.
        destination: overlay or outside address.
        protocol: IP protocol number.
        port: destination port.
        direction: whose policy is asked: egress the source's, ingress the destination's.
    """

    network: str
    source: IPAddress = field(converter=_to_address, validator=_address)
    destination: IPAddress = field(converter=_to_address, validator=_address)
    protocol: Protocol = field(converter=_to_protocol, validator=_one_of(Protocol))
    port: int = field(validator=_port)
    direction: Direction = field(converter=_to_direction, validator=_one_of(Direction))


@frozen
class Verdict:
    """The answer to a flow: allowed or not, why, and by which rule (0: none)."""

    allowed: bool
    reason: Reason
    rule: int = 0


class WayKind(enum.IntEnum):
    """What becomes of a connect, or of a datagram: enum slim_way_kind of the contract."""

    REFUSED = contract.SLIM_WAY_REFUSED
    SELF = contract.SLIM_WAY_SELF
    SAME_HOST = contract.SLIM_WAY_SAME_HOST
    WIRE = contract.SLIM_WAY_WIRE
    OUTSIDE = contract.SLIM_WAY_OUTSIDE


@frozen
class Way:
    """What becomes of a connect(2), or of a sendto(2) of a datagram.

    Attributes:
        kind: refused, or where it goes.
        reason: why it is refused; else the egress policy's.
        error: the errno of a refused call (errno(3)); else 0.
        direction: of what a policy refused, whose policy that was.
    """

    kind: WayKind
    reason: Reason
    error: int = 0
    direction: Direction = Direction.EGRESS


@frozen
class Decision:
    """What a data path answers to a flow, asked of the tables in force.

    Attributes:
        verdict: what the policy of the asked end says.
        generation: of the tables that were asked.
        subject: identity of the end whose policy was asked.
        peer: identity of the other end.
        endpoint: id of the destination's endpoint (egress), or of the source's
            (ingress); 0 where it is none.
        service: id of the service's port that the destination is; 0 where it is none.
        target: overlay address and port of the destination, behind a service.
        host: underlay address of the peer's host; ``None`` where it is no endpoint.
        way: what becomes of the source's call, policy or not; ``None`` for ingress, and
            where the data path refuses nothing by itself.
    """

    verdict: Verdict
    generation: int
    subject: int
    peer: int
    endpoint: int
    service: int
    target: tuple[IPAddress, int]
    host: IPAddress | None
    way: Way | None = None


@frozen
class Account:
    """What one endpoint sent and received by one rule, since it was attached.

    Attributes:
        endpoint: id of the local endpoint.
        rule: the rule's id; 0: no rule was needed.
        direction: EGRESS for what it opened, INGRESS for what it accepted.
        connections: ended ones and live ones.
        refused: connects that this rule, or the lack of one, refused.
        sent: payload bytes that the endpoint sent.
        received: payload bytes that the endpoint received.
    """

    endpoint: int
    rule: int
    direction: Direction
    connections: int = 0
    refused: int = 0
    sent: int = 0
    received: int = 0


@frozen
class Connection:
    """One live connection of a local endpoint, as the data path holds it.

    Attributes:
        endpoint: id of the local endpoint.
        peer_endpoint: id of the other endpoint; 0 when it is outside the overlays.
        local: overlay address and port of this end.
        peer: overlay (or outside) address and port of the other end.
        direction: INGRESS when it was accepted, EGRESS when it was opened here.
        wire: how it travels; ``None`` on the same host or to the outside.
        state: TCP state, as ``ss`` prints it (``ESTAB``).
        opened: seconds since the epoch.
        cookie: the kernel's socket cookie.
    """

    endpoint: int
    peer_endpoint: int
    local: tuple[IPAddress, int]
    peer: tuple[IPAddress, int]
    direction: Direction
    wire: Wire | None
    state: str
    opened: float
    cookie: int = 0


@frozen
class Event:
    """Something that a data path tells: a connection opened, refused or closed.

    Attributes:
        kind: which of the three.
        time: seconds since the epoch.
        endpoint: id of the local endpoint, 0 where none is known.
        peer_endpoint: id of the other endpoint, 0 when it is none.
        source: address and port of the opener, overlay where it is known.
        destination: address and port that were dialled.
        protocol: IP protocol number.
        direction: EGRESS on the opener's host, INGRESS on the acceptor's.
        reason: why, for a refusal; else what allowed it.
        rule: the rule's id, 0 where there is none.
        sent: payload bytes that this end sent (closed only).
        received: payload bytes that this end received (closed only).
        duration: seconds (closed only).
        omitted: how many refusals like this one came since the one that was told
            before, and were only counted: a data path may limit what it tells.
    """

    kind: EventKind
    time: float
    endpoint: int
    peer_endpoint: int
    source: tuple[IPAddress, int]
    destination: tuple[IPAddress, int]
    protocol: int
    direction: Direction
    reason: Reason
    rule: int = 0
    sent: int = 0
    received: int = 0
    duration: float = 0.0
    omitted: int = 0


@frozen
class Capabilities:
    """What a backend can do on this machine; others read it in the host's record.

    Attributes:
        enforcing: whether policy on connections holds against a hostile process inside
            an endpoint; no claim about what else of the host such a process sees.
        wires: what it can talk to other hosts with.
        features: what it can do besides. Tables with services, published ports or limits
            are installed on any backend; one without the feature passes over them.
        needs: the parts of a place by which it knows an endpoint: it makes what of them
            the caller does not give. A process that lacks one is no endpoint's.
        takes: other parts of a place that it uses where the caller gives them.
        control: ``address:port`` at which it hears what others announce; empty where its
            wires need none.
    """

    enforcing: bool = False
    wires: frozenset[WireFormat] = field(factory=frozenset, converter=_to_wires, validator=_wires)
    features: frozenset[Feature] = field(
        factory=frozenset, converter=_to_features, validator=_features
    )
    needs: frozenset[Part] = frozenset()
    takes: frozenset[Part] = frozenset()
    control: str = ""


@frozen
class Probe:
    """What a backend says of this machine.

    Attributes:
        answer: yes; certainly no; or could not tell.
        reason: one line: what is missing, or what it found.
        remedy: one line: what to do about it; empty where nothing is needed.
        capabilities: what it can do here, where the answer is yes.
    """

    answer: Answer
    reason: str
    remedy: str = ""
    capabilities: Capabilities = Capabilities()

    def __bool__(self) -> bool:
        """True only for a certain yes."""
        return self.answer is Answer.YES

    @property
    def advice(self) -> str:
        """The reason, with the remedy behind it in brackets where there is one."""
        return f"{self.reason} ({self.remedy})" if self.remedy else self.reason


@frozen
class Running:
    """What a backend has of an instance on this machine.

    Attributes:
        endpoints: the cgroups of its endpoints, or what else is left of one.
        cluster: id of the store that it serves; empty where it does not know.
        busy: those among ``endpoints`` that have processes, or may have.
    """

    endpoints: tuple[Path, ...] = ()
    cluster: str = ""
    busy: tuple[Path, ...] = ()


@frozen
class Status:
    """What a backend holds at this moment.

    Attributes:
        generation: of the tables in force; 0 before the first.
        endpoints: ids of the attached endpoints.
        counters: how often each reason was given.
        abi: version and fingerprint of the data path's contract.
        detail: more, by the backend's own names: text, numbers, addresses, tables of these.
    """

    generation: int
    endpoints: frozenset[int]
    counters: Mapping[Reason, int] = field(factory=dict, hash=False)
    abi: str = ""
    detail: Mapping[str, Any] = field(factory=dict, hash=False)
