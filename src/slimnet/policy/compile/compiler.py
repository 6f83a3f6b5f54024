# SPDX-License-Identifier: Apache-2.0
"""State in, tables out: what every data path decides by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netaddr import IPAddress, IPNetwork

from slimnet import contract, wires
from slimnet.exceptions import InvalidValue, NotFound
from slimnet.model import Direction, Endpoint, Host, Namespace, Network
from slimnet.policy.compile.applied import AppliedPolicy, RuleIds
from slimnet.policy.compile.difference import Touched, altered, difference, keyed
from slimnet.policy.compile.follower import follower_name
from slimnet.policy.compile.limits import LimitRecords
from slimnet.policy.compile.network import NetworkCompiler, PolicyName
from slimnet.policy.compile.number import Collision, Numbers
from slimnet.policy.compile.published import Published
from slimnet.policy.compile.roster import Roster
from slimnet.policy.compile.services import Services
from slimnet.policy.compile.table import Pairs, PolicyTable
from slimnet.policy.document import EgressLimit, NetworkPolicy, Policy, PublishedPort
from slimnet.policy.state import State
from slimnet.tables import Change, CidrRecord, EndpointRecord, HostRecord, Tables

__all__ = ["Compiler", "DocumentChange", "compile"]

#: Documents on which neither names nor services depend.
PlainDocument = Policy | PublishedPort | EgressLimit
#: One as it was, and as it is; ``None``: it was not there, or is no more.
DocumentChange = tuple[PlainDocument | None, PlainDocument | None]

#: Identities that the compiler gives out begin here; the store's are below.
IDENTITY_DERIVED = 2**24


def compile(state: State, host: str) -> Tables:  # noqa: A001  # the word that everybody uses
    """The tables of one host, from nothing.

    Args:
        state: the desired state.
        host: whose endpoints' policies are wanted; all hosts' endpoints are in the tables.

    Raises:
        NotFound: no host has that name.
        InvalidValue: two things have what only one may have.
    """
    return Compiler(host).update(state)[0]


class Compiler:
    """Compiles again and again, with work in proportion to what changed.

    The tables are a function of the state alone, whatever came before.

    Args:
        host: the name of the host that the tables are for; ``None`` for one that
            all endpoints would live on, and where no port is published.

    Attributes:
        networks: by name.
        roster: the endpoints that it took in.
        services: the services, as it understood them.
        published: the published ports, likewise.
        limits: the egress limits, likewise.
    """

    networks: Mapping[str, Network]
    roster: Roster
    services: Services
    published: Published
    limits: LimitRecords

    def __init__(self, host: str | None) -> None:
        self._host = host
        self._tables: Tables | None = None
        self._touched = Touched()
        self._begin({}, {}, Numbers(1))

    def update(self, state: State) -> tuple[Tables, Change | None]:
        """The tables of this state, and what differs from the last call's.

        Returns:
            The tables, and the change; ``None`` at the first call.

        Raises:
            NotFound: the state has no host of that name.
            InvalidValue: two things have what only one may have. The next call
                starts from nothing.
        """
        before, self._tables = self._tables, None
        hosts = keyed(state.hosts, lambda item: item.name, "hosts")
        networks = keyed(state.networks, lambda item: item.name, "networks")
        keyed(state.networks, lambda item: item.vni, "vni of networks")
        self._touched = Touched()
        touched: Touched | None = self._touched
        if before is None or (hosts, networks) != (self._hosts, self.networks):
            self._restart(state, hosts, networks)
            touched = None
        else:
            try:
                self._advance(state)
            except (Collision, InvalidValue):
                # Twins; or a number that the store gave to others since. If it
                # still is wrong from nothing, then it is.
                self._restart(state, hosts, networks)
                touched = None
        self._tables = self._assemble(state.revision)
        change = None if before is None else difference(before, self._tables, touched)
        return self._tables, change

    def advance(
        self, changes: Iterable[DocumentChange], revision: int
    ) -> tuple[Tables, Change | None] | None:
        """What :meth:`update` would answer where nothing but these documents differs from the
        state before. The work grows with them, not with all that there is.

        Args:
            changes: each document once.
            revision: the store's.

        Returns:
            ``None`` where :meth:`update` is to be called instead: nothing is known, or what
            is does not go with the changes.
        """
        changes, touched = list(changes), Touched()
        before = self._tables
        if before is None or not all(self._goes_with(*each) for each in changes):
            return None
        self._tables, self._touched = None, touched
        try:
            for old, new in changes:
                self._set_document(old, new)
            self._settle()
        except (Collision, InvalidValue):
            return None
        self._tables = self._assemble(revision)
        return self._tables, difference(before, self._tables, touched)

    def applied_policies(self) -> list[tuple[AppliedPolicy, RuleIds]]:
        """Every policy in every network where it applies, with its rules' ids."""
        return [
            (applied, self._rule_ids[name])
            for share in self._compilers.values()
            for name, applied in share.applied_policies.items()
        ]

    def _assemble(self, revision: int) -> Tables:
        return Tables(
            max(revision, 1),
            self._addresses,
            self._records,
            self._cidrs,
            PolicyTable(self._subjects),
            self._rules,
            self.services.records,
            self.published.records,
            self.limits.records,
            self._host_records,
        )

    def _begin(
        self, hosts: Mapping[str, Host], networks: Mapping[str, Network], ids: Numbers
    ) -> None:
        self._hosts = hosts
        self._host_records = {
            each.address: HostRecord(each.name, each.wires, each.control) for each in hosts.values()
        }
        self.networks = networks
        self._compilers: dict[str, NetworkCompiler] = {}
        self._namespaces: Mapping[tuple[str, str], Namespace] = {}
        self._endpoints: Mapping[int, Endpoint] = {}
        self._policies: dict[PolicyName, Policy] = {}
        self._rule_ids: dict[PolicyName, RuleIds] = {}
        self.roster = Roster()
        self.services = Services(networks, self.roster, ids)
        self.published = Published(self._host, self.roster)
        self.limits = LimitRecords(self._host, self.roster)
        self._followers = (self.services, self.published, self.limits)
        # What a generation's tables are made of: replaced where it changes, never edited.
        self._addresses: dict[tuple[int, IPAddress], int] = {}
        self._records: dict[int, EndpointRecord] = {}
        self._cidrs: dict[tuple[int, IPNetwork], CidrRecord] = {}
        self._rules: dict[int, str] = {}
        self._subjects: dict[int, Pairs] = {}

    def _restart(
        self, state: State, hosts: Mapping[str, Host], networks: Mapping[str, Network]
    ) -> None:
        """From nothing, again until no two names have one number."""
        if self._host is not None and self._host not in hosts:
            raise NotFound(f"the state has no host {self._host!r}")
        self._numbers, self._rule_numbers = Numbers(IDENTITY_DERIVED), Numbers(1)
        numbers = (self._numbers, self._rule_numbers, Numbers(1))
        while True:
            self._begin(hosts, networks, numbers[-1])
            for network in networks.values():
                self._compilers[network.name] = NetworkCompiler(
                    network, hosts.values(), self._host, self._numbers
                )
            try:
                self._advance(state)
            except Collision as twins:
                twins.numbers.separate(*twins.names)
                for other in numbers:
                    if other is not twins.numbers:
                        other.clear()
            else:
                return

    def _advance(self, state: State) -> None:
        """From what was to what is."""
        self._place_namespaces(state.namespaces)
        self._place_endpoints(state.endpoints)
        self._place_policies(state.policies)
        self.services.place(state.services)
        self.published.place(state.published)
        self.limits.place(state.limits)
        self._settle()

    def _place_namespaces(self, namespaces: Iterable[Namespace]) -> None:
        old = self._namespaces
        new = keyed(namespaces, lambda item: (item.network, item.name), "namespaces")
        for key in altered(old, new):
            if key[0] in self._compilers:
                self._compilers[key[0]].set_namespace(key[1], new.get(key))
        self._namespaces = new

    def _place_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Endpoints of a host or network that is not (or no more) there, or with an address
        that is not the network's, are left out: nobody reaches them."""
        old = self._endpoints
        new = keyed(
            (
                item
                for item in endpoints
                if item.network in self.networks and item.host in self._hosts
            ),
            lambda item: item.id,
            "endpoints",
        )
        changed = altered(old, new)
        if changed:
            self._addresses, self._records = dict(self._addresses), dict(self._records)
        for identifier in changed & old.keys():
            if identifier not in self._records:
                continue
            endpoint = old[identifier]
            share = self._compilers[endpoint.network]
            share.drop_endpoint(identifier)
            self.roster.drop(endpoint)
            for follower in self._followers:
                follower.drop_endpoint(endpoint)
            del self._addresses[share.network.vni, endpoint.address]
            del self._records[identifier]
            self._touched.addresses.add((share.network.vni, endpoint.address))
            self._touched.endpoints.add(identifier)
        others = {
            name: [other for other in self._compilers.values() if other is not share]
            for name, share in self._compilers.items()
        }
        for identifier in sorted(changed & new.keys()):
            endpoint = new[identifier]
            share = self._compilers[endpoint.network]
            if not any(endpoint.address in cidr for cidr in share.network.cidrs):
                continue
            field = f"endpoints.{endpoint.full_name}"
            if not contract.SLIM_IDENTITY_FIRST <= endpoint.identity < IDENTITY_DERIVED:
                raise InvalidValue(
                    f"{field}.identity",
                    f"a number, {contract.SLIM_IDENTITY_FIRST} to {IDENTITY_DERIVED - 1}",
                    endpoint.identity,
                )
            if any(endpoint.identity in item for item in others[endpoint.network]):
                raise InvalidValue(
                    f"{field}.identity", "one that no other network has", endpoint.identity
                )
            self.roster.add(endpoint)
            share.set_endpoint(endpoint)
            for follower in self._followers:
                follower.set_endpoint(endpoint)
            key = (share.network.vni, endpoint.address)
            self._addresses[key] = identifier
            self._touched.addresses.add(key)
        self._endpoints = new

    def _place_policies(self, policies: Iterable[Policy]) -> None:
        new = keyed(policies, policy_name, "policies")
        changed = altered(self._policies, new)
        if changed:
            self._rules = dict(self._rules)
        for name in sorted(changed):
            self._set_policy(name, new.get(name))
        self._policies = new  # equal, and known by identity the next time

    def _set_policy(self, name: PolicyName, new: Policy | None) -> None:
        old = self._policies.pop(name, None)
        ids = self._rule_ids[name] = self._number_rules(name, new, old)
        for share in self._compilers.values():
            if name[0] in {"", share.network.name}:
                share.set_policy(name, new, ids)
        if new is None:
            del self._rule_ids[name]
        else:
            self._policies[name] = new

    def _goes_with(self, old: PlainDocument | None, new: PlainDocument | None) -> bool:
        """Whether that document was so, and is of a network that there is."""
        known: PlainDocument | None
        match new or old:
            case Policy() as policy:
                return self._policies.get(policy_name(policy)) == old
            case PublishedPort() as port:
                known = self.published.documents.get(follower_name(port))
                return known == old and port.network in self.networks
            case EgressLimit() as limit:
                known = self.limits.documents.get(follower_name(limit))
                return known == old and limit.network in self.networks
        return False

    def _set_document(self, old: PlainDocument | None, new: PlainDocument | None) -> None:
        match new or old:
            case Policy() as policy:
                self._rules = dict(self._rules)
                self._set_policy(policy_name(policy), policy if new else None)
            case PublishedPort() as port:
                self.published.set_document(follower_name(port), port if new else None)
            case EgressLimit() as limit:
                self.limits.set_document(follower_name(limit), limit if new else None)

    def _number_rules(self, name: PolicyName, new: Policy | None, old: Policy | None) -> RuleIds:
        ids: dict[tuple[Direction, int], int] = {}
        for policy in filter(None, (new, old)):
            for direction in Direction:
                for index in range(len(policy.rules(direction) or ())):
                    words = f"{'/'.join(name)} {direction.name} {index}"
                    if policy is new:
                        number = ids[direction, index] = self._rule_numbers.take(words)
                        self._rules[number] = rule_text(policy, direction, index)
                        self._touched.rules.add(number)
                    elif (last := self._rule_numbers.release(words)) is not None:
                        del self._rules[last]
                        self._touched.rules.add(last)
        return ids

    def _settle(self) -> None:
        self._subjects = dict(self._subjects)
        for share in self._compilers.values():
            settled = share.settle()
            if settled.endpoints:
                self._records = dict(self._records)
            for identifier in settled.endpoints:
                self._records[identifier] = self._record(identifier, share)
            self._touched.endpoints |= settled.endpoints
            if settled.ranges:
                before = self._cidrs
                others = [item.cidrs for item in self._compilers.values() if item is not share]
                self._cidrs = {key: value for part in others for key, value in part.items()}
                self._cidrs |= share.cidrs
                self._touched.cidrs |= altered(before, self._cidrs)
            for subject in settled.subjects:
                pairs = share.subjects.pairs.get(subject)
                if pairs:
                    self._subjects[subject] = pairs
                else:
                    self._subjects.pop(subject, None)
            self._touched.subjects |= settled.subjects
        self._touched.services = self.services.settle()
        self._touched.published = self.published.settle()
        self._touched.limits = self.limits.settle()
        places = {(key.vni, key.address) for key in self._touched.services}
        if places:
            self._addresses = dict(self._addresses)
            self._touched.addresses |= places
        for place in places:
            if place in self.services.addresses:
                self._addresses[place] = contract.SLIM_ADDRESS_SERVICE
            elif self._addresses.get(place) == contract.SLIM_ADDRESS_SERVICE:
                del self._addresses[place]

    def _record(self, identifier: int, share: NetworkCompiler) -> EndpointRecord:
        endpoint = self._endpoints[identifier]
        host = self._hosts[endpoint.host]
        return EndpointRecord(
            address=endpoint.address,
            host=host.address,
            vni=share.network.vni,
            identity=share.identity[identifier],
            local=self._host in {None, endpoint.host},
            wire=wires.choose(self._hosts.get(self._host or "", host), host),
            packets=not host.shares or endpoint.place.netns is not None,
        )


def policy_name(policy: Policy) -> PolicyName:
    """By what a policy differs from all others."""
    if isinstance(policy, NetworkPolicy):
        return policy.network, policy.namespace, policy.name
    return "", "", policy.name


def rule_text(policy: Policy, direction: Direction, index: int) -> str:
    """How messages name a rule: ``default/web-in ingress[0] (web.yaml:12)``."""
    path = f"{direction.name.lower()}[{index}]"
    rules = policy.rules(direction) or ()
    name = f" {rules[index].name!r}" if rules[index].name else ""
    where = policy.source.at(path)
    return f"{policy.title} {path}{name}" + (f" ({where})" if where else "")
