# SPDX-License-Identifier: Apache-2.0
"""The zone ``slimnet.``, as an endpoint of one network sees it.

=====================================  ====  ==============================================
``NAME.NAMESPACE.NETWORK.slimnet``     A     the address of an endpoint, or of a service
``_PORT._PROTOCOL.`` before it         SRV   a named port (RFC 2782)
an overlay address in in-addr.arpa     PTR   who has it
=====================================  ====  ==============================================

A name that an endpoint and a service share is the endpoint's, as in the hosts files. Names of
other networks are not there: nobody could connect to them.
"""

from __future__ import annotations

from collections.abc import Iterator

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename
import dns.rrset
from netaddr import IPAddress

from slimnet.policy import State
from slimnet.resolver import DOMAIN

__all__ = ["Zone"]

#: Seconds that an answer may be kept. Who moves is at another address at once.
_TTL = 5
_TOP = dns.name.from_text(DOMAIN)
_LOCALHOST = dns.name.from_text("localhost")
_REVERSE = dns.name.from_text("in-addr.arpa")
_A = dns.rdatatype.A
_AAAA = dns.rdatatype.AAAA
_PTR = dns.rdatatype.PTR
_SRV = dns.rdatatype.SRV
_SOA = dns.rdatatype.SOA
_NS = dns.rdatatype.NS
_ANY = dns.rdatatype.ANY

_Records = dict[dns.name.Name, dict[dns.rdatatype.RdataType, list[str]]]


class Zone:
    """The names of one network.

    Args:
        state: where they are from.
        network: whose endpoints ask.
    """

    def __init__(self, state: State, network: str) -> None:
        self._cidrs = next((each.cidrs for each in state.networks if each.name == network), ())
        self._records: _Records = {}
        own = dns.name.from_text(f"{network}.{DOMAIN}")
        soa = f"ns.{DOMAIN}. root.{DOMAIN}. {state.revision & 0xFFFFFFFF} 60 60 60 {_TTL}"
        self._add(_TOP, _SOA, soa)
        self._add(_TOP, _NS, f"ns.{DOMAIN}.")
        self._add(own)
        for namespace in state.namespaces:
            if namespace.network == network:
                self._add(dns.name.from_text(namespace.name, own))
        for service in state.services:
            if service.network == network and service.address is not None:
                ports = [
                    (port.name, port.protocol.name.lower(), port.port)
                    for port in service.ports
                    if port.name
                ]
                self._put(own, service.namespace, service.name, service.address, ports)
        for endpoint in state.endpoints:
            if endpoint.network == network:
                ports = [(name, *port) for name, port in endpoint.ports.items()]
                self._put(own, endpoint.namespace, endpoint.name, endpoint.address, ports)

    def answer(self, query: dns.message.Message) -> dns.message.Message | None:
        """The answer to a query of one question.

        Returns:
            ``None`` where the name is not of this zone.
        """
        question = query.question[0]
        name, kind = question.name, question.rdtype
        if not self._has(name):
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        reply.flags |= dns.flags.AA
        there = self._records.get(name)
        if there is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        for each, texts in (there or {}).items():
            if texts and kind in (each, _ANY):
                reply.answer.append(dns.rrset.from_text_list(name, _TTL, "IN", each, texts))
        if not reply.answer:  # RFC 2308: what says for how long that holds
            soa = self._records[_TOP][_SOA]
            reply.authority.append(dns.rrset.from_text_list(_TOP, _TTL, "IN", _SOA, soa))
        if kind == _SRV:
            reply.additional.extend(self._targets(reply))
        return reply

    def _has(self, name: dns.name.Name) -> bool:
        """Whether nobody else is to be asked for it: ours, and what leaves no machine
        (RFC 6761, section 6.3)."""
        if name.is_subdomain(_TOP) or name.is_subdomain(_LOCALHOST):
            if name.is_subdomain(_LOCALHOST):
                self._records.setdefault(name, {_A: ["127.0.0.1"], _AAAA: ["::1"]})
            return True
        if not name.is_subdomain(_REVERSE):
            return False
        try:
            address = IPAddress(dns.reversename.to_address(name))
        except (ValueError, dns.exception.DNSException):
            return False
        return any(address in cidr for cidr in self._cidrs)

    def _targets(self, reply: dns.message.Message) -> Iterator[dns.rrset.RRset]:
        """The addresses of those whom SRV names, which save the next question."""
        for rrset in reply.answer:
            for each in rrset:
                texts = self._records.get(each.target, {}).get(_A)
                if texts:
                    yield dns.rrset.from_text_list(each.target, _TTL, "IN", _A, texts)

    def _put(
        self,
        own: dns.name.Name,
        namespace: str,
        name: str,
        address: IPAddress,
        ports: list[tuple[str, str, int]],
    ) -> None:
        group = dns.name.from_text(namespace, own)
        full = dns.name.from_text(name, group)
        if full in self._records:  # a service; its ports are those of its own address
            for each in [each for each in self._records if each.is_subdomain(full)]:
                del self._records[each]
        self._add(group)
        self._add(full, _A, str(address))
        self._add(dns.reversename.from_address(str(address)), _PTR, str(full))
        for port, protocol, number in ports:
            transport = dns.name.from_text(f"_{protocol}", full)
            self._add(transport)
            self._add(dns.name.from_text(f"_{port}", transport), _SRV, f"0 0 {number} {full}")

    def _add(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType | None = None, text: str = ""
    ) -> None:
        """A record; without one, a name that is there because others are below it (RFC 8020)."""
        there = self._records.setdefault(name, {})
        if kind is not None:
            there.setdefault(kind, []).append(text)
