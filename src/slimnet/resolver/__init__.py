# SPDX-License-Identifier: Apache-2.0
"""Names by DNS (RFC 1034, 1035): what an endpoint's resolver asks on its own host.

- :mod:`~slimnet.resolver.zone`: what the zone ``slimnet.`` holds, as one network sees it.
- :mod:`~slimnet.resolver.forwarder`: everything else, asked of the host's name servers.
- :mod:`~slimnet.resolver.resolver`: the sockets, one pair for each endpoint.

Each endpoint has sockets of its own for it, on its loopback, so that who asks is known by where
the question comes in. This package imports no DNS by itself; its modules do.
"""

from __future__ import annotations

from netaddr import IPAddress

from slimnet import contract

__all__ = ["DOMAIN", "OWN", "PORT", "address", "search"]

#: The top of the names: ``NAME.NAMESPACE.NETWORK.slimnet``.
DOMAIN = "slimnet"
PORT = contract.SLIM_RESOLVER_PORT
#: Where it is in a network namespace of the endpoint's own.
OWN = IPAddress("127.128.0.53")

_NETWORK = contract.SLIM_RESOLVER_NETWORK
_MASK = contract.SLIM_RESOLVER_MASK


def address(endpoint: int) -> IPAddress:
    """Where the resolver of an endpoint is that shares its host's loopback: an address of
    127.128.0.0/9 that no other endpoint of its host has.

    Args:
        endpoint: its id.
    """
    return IPAddress(_NETWORK | endpoint & _MASK)


def search(network: str, namespace: str) -> tuple[str, ...]:
    """The domains in which a name of fewer than two dots is looked for (resolv.conf(5)):
    ``web``, ``web.default`` and ``web.default.prod`` are one endpoint."""
    return f"{namespace}.{network}.{DOMAIN}", f"{network}.{DOMAIN}", DOMAIN
