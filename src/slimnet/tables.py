# SPDX-License-Identifier: Apache-2.0
"""The compiled policy and placement: what a backend installs.

The records are those of ``kernel/uapi/slimnet/tables.h``, as Python values;
:mod:`slimnet.policy` makes them and a backend writes them where its data path
looks them up.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from netaddr import IPAddress, IPNetwork

from slimnet.model import Direction, Reason, Wire, WireFormat

__all__ = [
    "Change",
    "CidrRecord",
    "EndpointRecord",
    "HostRecord",
    "LimitRecord",
    "PolicyKey",
    "PolicyRecord",
    "PublishKey",
    "PublishRecord",
    "ServiceKey",
    "ServiceRecord",
    "Tables",
]


@frozen
class HostRecord:
    """What a host of the cluster is to the data paths of the others.

    Attributes:
        name: of the host.
        wires: what it speaks.
        control: ``address:port`` at which it hears what others announce; empty where its
            wires need none.
    """

    name: str
    wires: frozenset[WireFormat] = frozenset()
    control: str = ""


@frozen
class EndpointRecord:
    """Where an endpoint is and what policy knows it by (struct slim_endpoint).

    Attributes:
        address: its overlay address.
        host: underlay address of its host, a key of ``hosts``.
        vni: of its network.
        identity: of its label set.
        local: it lives on the host whose tables these are.
        wire: by which a TCP connection from here is carried to it, had it to leave the
            host; ``None``: by none, and it is refused (UNREACHABLE).
        packets: the fallback overlay reaches it, if its host hears VXLAN: it has a network
            namespace of its own.
    """

    address: IPAddress
    host: IPAddress
    vni: int
    identity: int
    local: bool
    wire: Wire | None
    packets: bool = True


@frozen
class CidrRecord:
    """The identity of a range (struct slim_cidr)."""

    identity: int
    overlay: bool = False
    host: bool = False


@frozen
class PolicyKey:
    """What a policy record answers for (struct slim_policy_key).

    Attributes:
        subject: identity of the endpoint whose policy this is.
        peer: identity of the other end; 0 for any that has no record of its own.
        direction: of the subject.
        protocol: IP protocol number, or ``None`` for any.
        port: the first port of the range, 0 where ``port_bits`` is 0.
        port_bits: how many leading bits of the port are matched, 0 to 16.
    """

    subject: int
    peer: int
    direction: Direction
    protocol: int | None = None
    port: int = 0
    port_bits: int = 0


@frozen
class PolicyRecord:
    """The answer (struct slim_policy)."""

    allow: bool
    reason: Reason
    rule: int = 0


@frozen
class ServiceKey:
    """One port of a service (struct slim_service_key).

    Attributes:
        vni: the service's network.
        address: its virtual address.
        protocol: IP protocol number.
        port: as it is dialled.
    """

    vni: int
    address: IPAddress
    protocol: int
    port: int


@frozen
class ServiceRecord:
    """Who serves it (struct slim_service).

    Attributes:
        id: of the service's port; the same on every host.
        affinity: seconds that a client stays with its endpoint; 0: none.
        slots: a Maglev table of SLIM_SERVICE_SLOTS (endpoint id, port); empty where
            no endpoint is ready.
        size: how many endpoints are in it.
    """

    id: int
    affinity: int
    slots: tuple[tuple[int, int], ...] = field(repr=False)
    size: int


@frozen
class PublishKey:
    """A port of this host (struct slim_publish_key).

    Attributes:
        address: of the host; ``None`` for all of them.
        protocol: IP protocol number.
        port: of the host.
    """

    address: IPAddress | None
    protocol: int
    port: int


@frozen
class PublishRecord:
    """Whose it is (struct slim_publish): an endpoint of this host, and its port."""

    endpoint: int
    port: int


@frozen
class LimitRecord:
    """What an endpoint may send, in bytes a second (struct slim_limit); 0: no limit.

    Attributes:
        rate: all its connections together.
        connection_rate: each of them.
    """

    rate: int = 0
    connection_rate: int = 0


@frozen
class Tables:
    """Everything that a host's data path decides by, at one generation.

    Attributes:
        generation: the store's revision that these were compiled from; at least 1.
        addresses: (vni, overlay address) to endpoint id, or for the address of a
            service SLIM_ADDRESS_SERVICE.
        endpoints: endpoint id to record.
        cidrs: (vni, range) to record; the longest match is the answer.
        policy: key to record; the longest match is the answer.
        rules: rule id to the words that name it (``default/web-in ingress[0]``).
        services: port of a service to its endpoints.
        published: ports of this host that are endpoints'.
        limits: endpoint id to what it may send; endpoints of this host that have a limit.
        hosts: underlay address to record.
    """

    generation: int
    addresses: Mapping[tuple[int, IPAddress], int] = field(factory=dict, hash=False)
    endpoints: Mapping[int, EndpointRecord] = field(factory=dict, hash=False)
    cidrs: Mapping[tuple[int, IPNetwork], CidrRecord] = field(factory=dict, hash=False)
    policy: Mapping[PolicyKey, PolicyRecord] = field(factory=dict, hash=False)
    rules: Mapping[int, str] = field(factory=dict, hash=False)
    services: Mapping[ServiceKey, ServiceRecord] = field(factory=dict, hash=False)
    published: Mapping[PublishKey, PublishRecord] = field(factory=dict, hash=False)
    limits: Mapping[int, LimitRecord] = field(factory=dict, hash=False)
    hosts: Mapping[IPAddress, HostRecord] = field(factory=dict, hash=False)

    def hears_packets(self, endpoint: EndpointRecord) -> bool:
        """Whether the fallback overlay reaches an endpoint of another host; yes, where nothing
        is known of that host."""
        record = self.hosts.get(endpoint.host)
        return endpoint.packets and (
            record is None or any(each.wire is Wire.VXLAN for each in record.wires)
        )


@frozen
class Change:
    """What differs from the tables of generation ``base``: per table, the
    records that were set and the keys that went."""

    base: int
    set: Tables
    gone_addresses: frozenset[tuple[int, IPAddress]] = frozenset()
    gone_endpoints: frozenset[int] = frozenset()
    gone_cidrs: frozenset[tuple[int, IPNetwork]] = frozenset()
    gone_policy: frozenset[PolicyKey] = frozenset()
    gone_services: frozenset[ServiceKey] = frozenset()
    gone_published: frozenset[PublishKey] = frozenset()
    gone_limits: frozenset[int] = frozenset()
    gone_hosts: frozenset[IPAddress] = frozenset()
