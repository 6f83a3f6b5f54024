# SPDX-License-Identifier: Apache-2.0
"""Names that are not slimnet's, asked of the name servers of the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
from dns.entropy import random_16

__all__ = ["forward"]

_log = logging.getLogger(__name__)

#: Seconds for one server. glibc and musl ask again after five.
_TIMEOUT = 2.0
_PORT = 53


async def forward(
    query: dns.message.Message, servers: Sequence[str], allowed: Callable[[str], bool]
) -> dns.message.Message:
    """Ask one server after the other, by UDP, and by TCP where the answer is too long.

    Args:
        query: as it came.
        servers: their addresses, in order.
        allowed: whether who asks may ask this one: a resolver that asked for him anyway
            would be a way around egress policy.

    Returns:
        the answer, REFUSED where he may ask none, SERVFAIL where none answers.
    """
    refused = True
    for server in servers:
        if not allowed(server):
            continue
        refused = False
        asked = dns.message.from_wire(query.to_wire())
        asked.id = random_16()
        try:
            answer, _ = await dns.asyncquery.udp_with_fallback(
                asked, server, timeout=_TIMEOUT, port=_PORT, ignore_unexpected=True
            )
        except (OSError, EOFError, dns.exception.DNSException) as error:
            _log.debug("name server %s: %s", server, error or type(error).__name__)
            continue
        if answer.rcode() in (dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP):
            continue  # another may know, as resolv.conf(5) has it
        answer.id = query.id
        return answer
    reply = dns.message.make_response(query, recursion_available=True)
    reply.set_rcode(dns.rcode.REFUSED if refused else dns.rcode.SERVFAIL)
    return reply
